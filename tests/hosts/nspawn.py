"""A box that boots within a second: a systemd-nspawn container on a throw-away layer over a cached root.

    with nspawn.boot(roots.debian("bookworm"), binds={"/mnt/kit": kit}) as box:
        box.run("/mnt/kit/install.sh", check=True, timeout_s=300)
        box.run("skerry ask hello", user="ada")
        box.reboot()

The box has a loopback interface and no other, unless `veth=True` gives it a cable to a dead end (`cable.py`). Commands
enter by nsenter, as root with the container's capabilities or as a user of the box; `ssh` goes through the box's sshd.

What it does NOT show: the kernel is this machine's. So there are no modules, no kernel audit, no clock of its own, and
limits that need cgroup v2 controllers (MemoryMax, CPUQuota) or BPF (IPAddressDeny) may do nothing: test those in a VM.
Root in the box is not held as an attacker would have to be: it may make device nodes.
"""

import contextlib
import fcntl
import functools
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import pytest

from tests.hosts import cable, keeper, process, roots, ssh
from tests.hosts.process import CommandTimeout, HostError, Result

BOXES = roots.CACHE / "boxes"
BOOT_LIMIT_S = 90
TOOLS = {"systemd-nspawn": "systemd-container", "nsenter": "util-linux", "unshare": "util-linux", "ip": "iproute2"}

# As root or as a user of the box: its environment, and no more rights than the container's own processes have. Without
# the latter, root would come with this machine's capabilities and could set its clock.
ENTER = """
umask 022
user=$1 bounds=$2 folder=$3
shift 3
group=$(id -g -- "$user") || exit 125
cd "$folder" || exit 125
exec setpriv --reuid="$user" --regid="$group" --init-groups --inh-caps=-all --bounding-set="$bounds" --reset-env \\
    env -- "$@"
"""


@contextlib.contextmanager
def boot(
    root: Path | Sequence[Path],
    *,
    binds: Mapping[str, Path] | None = None,
    binds_rw: Mapping[str, Path] | None = None,
    veth: bool = False,
    options: Sequence[str] = (),
    timeout_s: float = BOOT_LIMIT_S,
) -> Iterator["Box"]:
    """Boot a fresh copy of a root; the box and all that it wrote are gone when the block ends, however it ends.

    Args:
        root: a folder from `roots`, or the `layers` of a box that is off: what it wrote is then there, for many boxes.
        binds: folders of this machine by their place in the box, read-only.
        binds_rw: the same, writable.
        veth: give the box a cable to `box.outside`, a network of one machine that leads nowhere.
        options: more options of systemd-nspawn.
        timeout_s: the time to boot.
    Raises:
        HostError: the machine did not come up; the text shows its console.
    """
    require()
    with _state_folder() as folder:
        box = Box(folder, [root] if isinstance(root, Path) else root, nspawn_options(binds, binds_rw, veth, options))
        box.veth = veth
        try:
            box.start(timeout_s)
            yield box
        finally:
            box.kill()


def require() -> None:
    """Skip the test when this machine cannot run containers."""
    reason = why_not()
    if reason:
        pytest.skip(f"not run: {reason}")


@functools.cache
def why_not() -> str:
    """Say why this machine cannot run containers; empty if it can."""
    if os.geteuid() != 0:
        return "containers need root"
    missing = sorted({package for tool, package in TOOLS.items() if shutil.which(tool) is None})
    if missing:
        return f"tools missing, install {', '.join(missing)}"
    if not keeper.cgroup_folders("x"):
        return "no control groups under /sys/fs/cgroup"
    BOXES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BOXES) as folder:
        trial = f"cd {shlex.quote(folder)} && mkdir a b c d && mount -t overlay -o lowerdir=a,upperdir=b,workdir=c o d"
        found = process.run(["unshare", "--mount", "--net", "sh", "-c", trial], timeout_s=10)
    return "" if found.ok else f"no namespaces or no overlay file system here: {process.tail(found.stderr, 1)}"


def nspawn_options(
    binds: Mapping[str, Path] | None, binds_rw: Mapping[str, Path] | None, veth: bool, options: Sequence[str]
) -> list[str]:
    """Return systemd-nspawn's options for a box's folders and network."""
    found = []
    for kind, folders in (("--bind-ro", binds or {}), ("--bind", binds_rw or {})):
        for inside, folder in folders.items():
            if not folder.exists():
                raise ValueError(f"cannot bind {folder} at {inside}: it is not there")
            found.append(f"{kind}={_escape(str(folder.resolve()))}:{_escape(inside)}")
    if veth:
        found.append(f"--network-veth-extra={cable.OUTSIDE}:{cable.INSIDE}")
    return [*found, *options]


def _escape(path: str) -> str:
    return path.replace("\\", "\\\\").replace(":", "\\:")


class Box:
    """One container, on or off. Made by `boot`."""

    def __init__(self, folder: Path, root: Sequence[Path], options: Sequence[str]) -> None:
        self.folder = folder
        self.name = folder.name
        self.veth = False
        self._lower = list(root)
        self._options = list(options)
        self._keeper: subprocess.Popen[bytes] | None = None
        for part in ("upper", "work", "root"):
            (folder / part).mkdir()

    # -- on and off

    def start(self, timeout_s: float = BOOT_LIMIT_S) -> None:
        """Switch the box on, with what it wrote before, and wait until systemd says that it is up."""
        if self.is_on:
            raise HostError(f"cannot start {self.name}: it is on")
        self.kill()  # what is left of a machine that ended by itself
        argv = ["systemd-nspawn", "--quiet", f"--directory={self.folder / 'root'}", f"--machine={self.name}", "--boot"]
        argv += ["--register=no", "--keep-unit", "--private-network", "--link-journal=no", "--resolv-conf=off"]
        argv += ["--timezone=off", *self._options]
        spec = {
            "name": self.name,
            "nspawn": argv,
            "lower": ":".join(map(str, self._lower)),
            **{part: str(self.folder / part) for part in ("root", "upper", "work")},
        }
        holder = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--net"]
        holder += [sys.executable, "-I", keeper.__file__, json.dumps(spec)]
        with (self.folder / "console.log").open("ab") as log:
            self._keeper = subprocess.Popen(
                holder, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True, env=_plain_environment()
            )
        self._wait_up(time.monotonic() + timeout_s, before=None)

    boot_again = start

    def reboot(self, timeout_s: float = BOOT_LIMIT_S) -> None:
        """Reboot by systemctl, orderly, and wait until the box is up again."""
        before = self.leader
        end = time.monotonic() + timeout_s
        self._systemctl_quietly("reboot")
        self._wait_up(end, before)

    def poweroff(self, timeout_s: float = 60) -> None:
        """Switch off by systemctl, orderly, and wait until nothing of it runs."""
        self._systemctl_quietly("poweroff")
        if self._keeper is None:
            return
        try:
            self._keeper.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise CommandTimeout(f"cannot power off {self.name}: on after {timeout_s:g} s\n{self._console()}") from None
        self.kill()

    def power_cut(self) -> None:
        """Kill the machine at once; what it wrote stays, as its files are this machine's. `start` boots it again.

        Unlike in a real power cut, nothing is lost that was written without fsync: the page cache is this machine's.
        """
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.leader, signal.SIGKILL)
        self.kill()

    def kill(self) -> None:
        """End all that runs in the box or holds it."""
        if self._keeper is None:
            return
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()  # tells it to kill
        try:
            self._keeper.wait(15)
        except subprocess.TimeoutExpired:
            process.kill_tree(self._keeper)
            keeper.remove_cgroups(self.name)
        self._keeper = None

    @property
    def is_on(self) -> bool:
        return self._keeper is not None and self._keeper.poll() is None

    @property
    def layers(self) -> list[Path]:
        """The root of this box as it is now, to boot others from while this one is off; gone when its block ends."""
        if self.is_on:
            raise HostError(f"cannot take the layers of {self.name}: it is on, switch it off first")
        return [self.folder / "upper", *self._lower]

    @property
    def leader(self) -> int:
        """The box's process 1, by its number on this machine."""
        leader = self._find_leader()
        if leader is None:
            raise HostError(f"cannot find process 1 of {self.name}: the box is off\n{self._console()}")
        return leader

    # -- commands

    def run(
        self,
        command: str | Sequence[str],
        *,
        check: bool = True,
        user: str | None = None,
        timeout_s: float = 60,
        stdin: str | bytes = b"",
        env: Mapping[str, str] | None = None,
        folder: str = "/",
    ) -> Result:
        """Run a command inside, by /bin/sh if it is one string, as root or as a user with all its groups.

        There is no login: no PAM, no limits, no session. `ssh` has all that.

        Raises:
            CommandFailed: it ended with another code than 0, and `check` is set.
            CommandTimeout: it did not end in time; it and its children were killed.
        """
        done = process.run(
            self._entering(command, user or "root", env or {}, folder),
            timeout_s=timeout_s,
            stdin=stdin.encode() if isinstance(stdin, str) else stdin,
            env=_plain_environment(),
            shown_as=command if isinstance(command, str) else shlex.join(command),
            where=self.name,
        )
        return done.check(self.name) if check else done

    def popen(
        self,
        command: str | Sequence[str],
        *,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        folder: str = "/",
        stdin: int | IO[bytes] | None = subprocess.DEVNULL,
        stdout: int | IO[bytes] | None = subprocess.PIPE,
        stderr: int | IO[bytes] | None = subprocess.STDOUT,
    ) -> "subprocess.Popen[bytes]":
        """Start a command inside and return at once; end it with `process.kill_tree`, or it ends with the box."""
        argv = self._entering(command, user or "root", env or {}, folder)
        return subprocess.Popen(
            argv, stdin=stdin, stdout=stdout, stderr=stderr, env=_plain_environment(), start_new_session=True
        )

    def ssh(
        self,
        user: str,
        key: Path,
        command: str = "",
        *,
        stdin: str | bytes = b"",
        check: bool = True,
        tty: bool = False,
        from_outside: bool = False,
        timeout_s: float = 60,
    ) -> Result:
        """Log in through the box's own sshd and run a command; 255 is ssh's own failure, such as a refused key.

        Args:
            from_outside: come in by the cable (`veth=True`), through the firewall, and not by the loopback interface.
        """
        done = process.run(
            [*self.ssh_argv(user, key, tty=tty, from_outside=from_outside), *([command] if command else [])],
            timeout_s=timeout_s,
            stdin=stdin.encode() if isinstance(stdin, str) else stdin,
            shown_as=f"ssh {user}@{self.name} {command}".rstrip(),
        )
        return done.check(self.name) if check else done

    def ssh_argv(self, user: str, key: Path, *, tty: bool = False, from_outside: bool = False) -> list[str]:
        """Return the command line of `ssh` without a remote command, for a test that brings its own terminal."""
        ssh.require()
        network, address = (self.outside.pid, cable.BOX_ADDRESS) if from_outside else (self.leader, "127.0.0.1")
        proxy = f"nsenter --target={network} --net socat - TCP:{address}:22"
        return ssh.client(user, key, proxy=proxy, known_hosts=self.folder / "known_hosts", host=self.name, tty=tty)

    # -- files

    def put(self, source: Path | str | bytes, target: str, mode: int | None = None, owner: str | None = None) -> None:
        """Write a file (bytes or text), or copy a file or a folder of this machine to that place.

        Args:
            mode: its permissions; else 0644, or the source's own.
            owner: `user` or `user:group`; else root.
        """
        quoted = shlex.quote(target)
        if isinstance(source, Path) and source.is_dir():
            argv = ["tar", "--create", "--owner=root:0", "--group=root:0", f"--directory={source}", "."]
            packed = subprocess.run(argv, check=True, capture_output=True, timeout=120).stdout
            self.run(f"mkdir -p {quoted} && tar -xf - -C {quoted}", stdin=packed, timeout_s=120)
        else:
            if isinstance(source, Path):
                mode = source.stat().st_mode & 0o7777 if mode is None else mode
                source = source.read_bytes()
            self.run(f'mkdir -p "$(dirname {quoted})" && cat > {quoted}', stdin=source, timeout_s=120)
            mode = 0o644 if mode is None else mode
        if owner:
            self.run(["chown", "-R", owner, target])
        if mode is not None:
            self.run(["chmod", f"{mode:o}", target])

    def read(self, path: str) -> str:
        """Return a file of the box as text."""
        return self.run(["cat", "--", path]).stdout

    def exists(self, path: str) -> bool:
        """Say whether something is at a path; a dangling link is something."""
        return self.run(f"test -e {shlex.quote(path)} || test -L {shlex.quote(path)}", check=False).ok

    # -- systemd

    def wait_unit(self, unit: str, state: str = "active", timeout_s: float = 30) -> None:
        """Wait until a unit is in a state; fails at once, with its journal, when it is `failed` instead."""
        end = time.monotonic() + timeout_s
        while True:
            found = self.run(["systemctl", "show", "-P", "ActiveState", unit]).stdout.strip()
            if found == state:
                return
            if time.monotonic() > end or found == "failed":
                raise HostError(
                    f"cannot wait for {unit} on {self.name}: it is {found}, expected {state}\n"
                    f"{process.tail(self.journal(unit))}"
                )
            time.sleep(0.05)

    def journal(self, unit: str | None = None, *options: str) -> str:
        """Return the journal of a unit since the box booted, or the whole; `options` are journalctl's."""
        which = [f"--unit={unit}"] if unit else []
        return self.run(
            ["journalctl", "--boot", "--no-pager", "--output=short-precise", *which, *options], check=False
        ).stdout

    def failed_units(self) -> list[str]:
        """Name the units that failed."""
        lines = self.run("systemctl list-units --failed --plain --no-legend").stdout.splitlines()
        return [line.split()[0] for line in lines if line]

    # -- network

    @property
    def outside(self) -> cable.Outside:
        """The other end of the box's cable."""
        if not self.veth or self._keeper is None:
            raise ValueError("a box without veth=True, or that is off, has no cable")
        return cable.Outside(self._keeper.pid)

    def open_socket(self, family: int = socket.AF_INET, type_: int = socket.SOCK_STREAM) -> socket.socket:
        """Open a socket inside the box's network: to knock at its loopback ports from the test."""
        return cable.socket_in(self.leader, family, type_)

    # -- within

    def _entering(self, command: str | Sequence[str], user: str, env: Mapping[str, str], folder: str) -> list[str]:
        leader = self.leader
        within = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        settings = [f"{key}={value}" for key, value in {"LANG": "C.UTF-8", **env}.items()]
        argv = ["nsenter", f"--target={leader}", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"]
        return [*argv, "/bin/sh", "-c", ENTER, "sh", user, _bounds(leader), folder, *settings, *within]

    def _systemctl_quietly(self, verb: str) -> None:
        """Ask for an end; the machine may be gone before the answer, which is then no failure."""
        done = self.run(["systemctl", "--no-block", verb], check=False, timeout_s=30)
        if not done.ok and done.returncode > 0 and self._find_leader() is not None and "reset" not in done.stderr:
            done.check(self.name)

    def _find_leader(self) -> int | None:
        """Find process 1 of the PID namespace inside the keeper's."""
        depth = len(_namespace_pids("self")) + 2
        for pid in process.descendants(self._keeper.pid) if self._keeper else []:
            with contextlib.suppress(OSError):
                numbers = _namespace_pids(pid)
                if len(numbers) == depth and numbers[-1] == "1":
                    return pid
        return None

    def _wait_up(self, end: float, before: int | None) -> None:
        """Wait for a new process 1, then until systemd has started everything; a failed unit is no obstacle."""
        started, state = time.monotonic(), "no process 1"
        while time.monotonic() < end:
            assert self._keeper is not None
            if self._keeper.poll() is not None:
                code = self._keeper.returncode
                raise HostError(f"cannot boot {self.name}: systemd-nspawn ended with {code}\n{self._console()}")
            if self._find_leader() not in (None, before):
                with contextlib.suppress(HostError):  # gone again, or too early
                    left = max(1.0, end - time.monotonic())
                    state = self.run(
                        ["systemctl", "is-system-running", "--wait"], check=False, timeout_s=left
                    ).stdout.strip()
                if state in ("running", "degraded"):
                    break
            time.sleep(0.02)
        else:
            raise CommandTimeout(
                f"cannot boot {self.name}: {state} after {time.monotonic() - started:.0f} s, expected running or "
                f"degraded\n{self._console()}"
            )
        if self.veth:
            cable.connect(self._keeper.pid, self.leader)

    def _console(self) -> str:
        log = self.folder / "console.log"
        return f"--- console\n{process.tail(log.read_text(errors='replace'))}" if log.exists() else "(no console)"


def _namespace_pids(pid: int | str) -> list[str]:
    """Return a process's number in each PID namespace that it is in, this one's first."""
    return Path(f"/proc/{pid}/status").read_text().split("NSpid:")[1].split("\n")[0].split()


def _bounds(leader: int) -> str:
    """Return the capabilities of a box's process 1 as setpriv's bounding set."""
    status = Path(f"/proc/{leader}/status").read_text()
    mask = int(status.split("CapBnd:")[1].split()[0], 16)
    return ",".join(["-all", *(f"+cap_{bit}" for bit in range(64) if mask >> bit & 1)])


def _plain_environment() -> dict[str, str]:
    """The environment for what enters a box: nothing of this machine's but the search path."""
    return {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}


@contextlib.contextmanager
def _state_folder() -> Iterator[Path]:
    """Make a box's folder and hold its lock; remove the folders of processes that were killed before they could."""
    BOXES.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with roots.locked(BOXES / "lock"):
            for stale in BOXES.glob("*/lock"):
                with stale.open() as lock, contextlib.suppress(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _remove(stale.parent)
            folder = BOXES / f"box-{secrets.token_hex(3)}"
            folder.mkdir()
            mine = stack.enter_context((folder / "lock").open("w"))
            fcntl.flock(mine, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            _remove(folder)


def _remove(folder: Path) -> None:
    keeper.remove_cgroups(folder.name)
    shutil.rmtree(folder, ignore_errors=True)
