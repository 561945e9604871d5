"""A box with a kernel of its own: a QEMU virtual machine that boots by UEFI, on a throw-away layer over a cached disk.

    with qemu.boot(qemu.debian_vm("bookworm"), binds={"/mnt/kit": kit}) as box:    # some seconds: resumed, not booted
        box.run("/mnt/kit/install.sh --key ...", timeout_s=1800)
        box.snapshot("provisioned")
        box.reboot()
        box.power_cut(); box.start()
    with qemu.boot(Path("build/image/skerry.img"), login=("rescue", key)) as box: ...

The methods are those of `nspawn.Box`, with `snapshot`, `restore`, `save`, `usb_attach`, `usb_detach` and `set_clock`.
`run` goes through QEMU's agent in the guest, so it works whatever the firewall and sshd say; of a guest without the
agent (an image) it goes over SSH as the user given by `login`, with sudo.

The guest's network is one cable to QEMU, which leads nowhere (`restrict=on`): only its port 22 answers at a port of
this machine's loopback, and what comes in there comes from 10.0.2.2. What leaves the guest is kept in `box.frames()`.

Without hardware virtualization the processor is emulated: everything takes five to twenty times as long, and what is
measured there is no measure of time. What it does NOT show: real firmware, real disks that lose writes they confirmed.
"""

import contextlib
import dataclasses
import fcntl
import json
import secrets
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.hosts import accel, disk, process, roots, ssh
from tests.hosts.process import CommandTimeout, HostError, Result
from tests.hosts.qmp import Agent, Qmp, QmpError
from tests.hosts.shell import AgentShell, Shell, SshShell

MACHINES = roots.CACHE / "machines"
FIRMWARE = Path("/usr/share/OVMF")
MEMORY_MIB = 2048
CPUS = 2
BOOT_LIMIT_S = 600
# What a saved machine is made of; raise it when `_devices` changes, as a state fits the same devices only.
DEVICES = "2"


@dataclasses.dataclass(frozen=True)
class Machine:
    """A machine that is off, or frozen while it ran: where each start of it begins. Nothing of it is written to."""

    disk: Path
    format: str = "raw"
    variables: Path | None = None
    state: Path | None = None
    key: Path | None = None
    memory_mib: int = MEMORY_MIB
    cpus: int = CPUS
    size_gib: int = 0
    """Of the disk that a start sees, if it is to be larger than the image on it."""


def debian_vm(suite: str) -> Machine:
    """Return a plain Debian that has booted and runs, with a root that logs in with `key`; skip if it cannot be had.

    Made once: the disk takes a minute or two, its first boot another. It has no Python and no sudo.
    """
    base = disk.debian(suite)
    cold = Machine(base / "disk.qcow2", format="qcow2", key=base / "key")

    def build(target: Path) -> None:
        target.mkdir()
        with boot(cold, timeout_s=600) as box:
            # So that the first command of a test does not wait for what systemd does after a boot.
            box.run(
                "systemctl start systemd-tmpfiles-clean.service; systemctl is-system-running --wait; sync",
                timeout_s=300,
            )
            box.save(target)

    recipe = f"{base} {accel.name()} {DEVICES}"
    return load(roots.cached(f"vm-{suite}", recipe, build))


def load(folder: Path) -> Machine:
    """Return the machine that `Box.save` wrote into a folder."""
    seen = json.loads((folder / "machine.json").read_text())
    return Machine(
        disk=folder / "disk.qcow2",
        format="qcow2",
        variables=folder / "variables.qcow2",
        state=folder / "state",
        key=Path(seen["key"]) if seen["key"] else None,
        memory_mib=seen["memory_mib"],
        cpus=seen["cpus"],
    )


@contextlib.contextmanager
def boot(
    machine: Machine | Path,
    *,
    binds: Mapping[str, Path] | None = None,
    sticks: Sequence[Path] = (),
    login: tuple[str, Path] | None = None,
    clock: datetime | None = None,
    wait: bool = True,
    timeout_s: float = BOOT_LIMIT_S,
) -> Iterator["Box"]:
    """Start a fresh copy of a machine; it and all that it wrote are gone when the block ends, however it ends.

    Args:
        machine: from `debian_vm` or `load`, or a raw disk image that boots by UEFI.
        binds: folders of this machine by their place in the guest, read-only, carried in by a disk made of them.
        sticks: images of USB sticks that are plugged in from the start.
        login: a user that may sudo without a password, and its SSH key, for a guest without the agent.
        clock: what the machine's battery clock says at the start; default: the right time.
        wait: return when systemd says that the machine is up; else at once.
        timeout_s: the time to boot.
    """
    require()
    machine = Machine(machine) if isinstance(machine, Path) else machine
    with _state_folder() as folder:
        box = Box(folder, machine, login, clock)
        try:
            box.start(timeout_s, sticks=sticks, wait=wait)
            for inside, source in (binds or {}).items():
                box.carry(source, inside)
            yield box
        finally:
            box.kill()


def require() -> None:
    """Skip the test when this machine cannot run virtual machines."""
    if reason := disk.why_not():
        pytest.skip(f"not run: {reason}")


class Box:
    """One virtual machine, on or off. Made by `boot`."""

    def __init__(self, folder: Path, machine: Machine, login: tuple[str, Path] | None, clock: datetime | None) -> None:
        self.folder = folder
        self.name = folder.name
        self.key = machine.key
        self.machine = machine
        self._clock = clock
        self._resume = machine.state
        self._process: subprocess.Popen[bytes] | None = None
        self._qmp: Qmp | None = None
        self._port = 0
        self._sticks: dict[str, str] = {}
        self._carried: dict[str, str] = {}
        self._shell: Shell = SshShell(self, *login) if login else AgentShell(Agent(folder / "agent"), self.name)
        _overlay(machine, folder / "disk.qcow2")
        if machine.variables:
            shutil.copyfile(machine.variables, folder / "variables.qcow2")
        else:
            _qemu_img("convert", "-f", "raw", "-O", "qcow2", FIRMWARE / "OVMF_VARS_4M.fd", folder / "variables.qcow2")

    # -- on and off

    def start(self, timeout_s: float = BOOT_LIMIT_S, *, sticks: Sequence[Path] = (), wait: bool = True) -> None:
        """Switch the machine on, with what it wrote before, and wait until systemd says that it is up.

        The first start of a saved machine goes on where it was saved; all others boot.
        """
        if self.is_on:
            raise HostError(f"cannot start {self.name}: it is on")
        self.kill()
        resume, self._resume = self._resume, None
        argv = [*_qemu(self.machine), *_devices(), "-rtc", f"base={self._rtc()}"]
        argv += ["-incoming", f"exec:cat {shlex.quote(str(resume))}"] if resume else []
        argv += [] if resume else ["-S"]
        # The kernel kills QEMU when the test's process ends, however that ends.
        held = ["setpriv", "--pdeathsig", "KILL", "--", *argv]
        with (self.folder / "qemu.log").open("ab") as log:
            self._process = subprocess.Popen(
                held, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        end = time.monotonic() + timeout_s
        self._qmp = self._connect()
        self._port = _forwarded_port(self._qmp.monitor("info usernet"))
        if resume:
            self._wait_resumed(end)
        for number, image in enumerate(sticks):
            self.usb_attach(image, f"stick{number}")
        self._qmp.execute("cont")
        if resume:
            self.set_clock(datetime.now(UTC))
        elif wait:
            self.wait_up(end - time.monotonic())

    def wait_up(self, timeout_s: float = BOOT_LIMIT_S, before: str = "") -> None:
        """Wait until systemd has started everything; a failed unit is no obstacle.

        Args:
            before: the boot that is not meant, by `boot_id`.
        """
        began, state = time.monotonic(), "no answer"
        while (left := began + timeout_s - time.monotonic()) > 0:
            if not self.is_on:
                raise HostError(f"cannot boot {self.name}: QEMU ended\n{self.console_tail()}")
            with contextlib.suppress(HostError):
                limit = min(left, 20.0)
                if self.boot_id(limit) != before:
                    state = self.run("systemctl is-system-running --wait", check=False, timeout_s=left).stdout.strip()
                if state in ("running", "degraded"):
                    return
            time.sleep(0.5)
        raise CommandTimeout(
            f"cannot boot {self.name}: {state} after {timeout_s:.0f} s, expected running or degraded\n"
            f"{self.console_tail()}"
        )

    def boot_id(self, timeout_s: float = 60) -> str:
        """Return what differs from boot to boot."""
        return self.run("cat /proc/sys/kernel/random/boot_id", timeout_s=timeout_s).stdout.strip()

    def reboot(self, timeout_s: float = BOOT_LIMIT_S) -> None:
        """Reboot by systemctl, orderly, and wait until the machine is up again."""
        end = time.monotonic() + timeout_s
        before = self.boot_id()
        self._quietly("systemctl --no-block reboot")
        self.wait_up(end - time.monotonic(), before)

    def poweroff(self, timeout_s: float = 120) -> None:
        """Switch off by systemctl, orderly, and wait until nothing of it runs."""
        self._quietly("systemctl --no-block poweroff")
        self.wait_off(timeout_s)

    def wait_off(self, timeout_s: float = 120) -> None:
        """Wait until the machine has switched itself off."""
        if self._process is not None:
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                raise CommandTimeout(
                    f"cannot power off {self.name}: on after {timeout_s:g} s\n{self.console_tail()}"
                ) from None
        self.kill()

    def power_cut(self) -> None:
        """Cut the power: what the guest had not written through its cache is lost. `start` boots it again."""
        self.kill()

    def kill(self) -> None:
        """End QEMU at once."""
        self._shell.close()
        if self._qmp is not None:
            self._qmp.close()
            self._qmp = None
        if self._process is not None:
            process.kill_tree(self._process)
            self._process = None
        self._sticks.clear()
        self._carried.clear()

    @property
    def is_on(self) -> bool:
        return self._process is not None and self._process.poll() is None

    # -- commands and files

    def run(
        self,
        command: str | Sequence[str],
        *,
        check: bool = True,
        user: str | None = None,
        timeout_s: float = 120,
        stdin: str | bytes = b"",
        env: Mapping[str, str] | None = None,
        folder: str = "/",
    ) -> Result:
        """Run a command inside, by /bin/sh if it is one string, as root or as a user with all its groups.

        There is no login of that user: no PAM, no limits, no session. `ssh` has all that.

        Raises:
            CommandFailed: it ended with another code than 0, and `check` is set.
            CommandTimeout: it did not end in time; it and its children were killed.
        """
        given = stdin.encode() if isinstance(stdin, str) else stdin
        done = self._shell.run(command, user or "root", timeout_s, given, env or {}, folder)
        return done.check(self.name) if check else done

    def ssh(
        self,
        user: str,
        key: Path,
        command: str = "",
        *,
        stdin: str | bytes = b"",
        check: bool = True,
        tty: bool = False,
        from_outside: bool = True,
        timeout_s: float = 60,
    ) -> Result:
        """Log in through the guest's sshd and firewall and run a command; 255 is ssh's own failure.

        Args:
            from_outside: always so here; it is there as `nspawn.Box` has it.
        """
        done = process.run(
            [*self.ssh_argv(user, key, tty=tty), *([command] if command else [])],
            timeout_s=timeout_s,
            stdin=stdin.encode() if isinstance(stdin, str) else stdin,
            shown_as=f"ssh {user}@{self.name} {command}".rstrip(),
        )
        return done.check(self.name) if check else done

    def ssh_argv(self, user: str, key: Path, *, tty: bool = False, from_outside: bool = True) -> list[str]:
        """Return the command line of `ssh` without a remote command, for a test that brings its own terminal."""
        ssh.require()
        proxy = f"socat - TCP:127.0.0.1:{self._port}"
        known = self.folder / "known_hosts"
        return ssh.client(user, key, proxy=proxy, known_hosts=known, host=self.name, tty=tty)

    def put(self, source: Path | str | bytes, target: str, mode: int | None = None, owner: str | None = None) -> None:
        """Write a file (bytes or text), or copy a small file or folder of this machine to that place; see `carry`.

        Args:
            mode: its permissions; else 0644, or the source's own.
            owner: `user` or `user:group`; else root.
        """
        quoted = shlex.quote(target)
        if isinstance(source, Path) and source.is_dir():
            argv = ["tar", "--create", "--owner=root:0", "--group=root:0", f"--directory={source}", "."]
            packed = subprocess.run(argv, check=True, capture_output=True, timeout=120).stdout
            self.run(f"mkdir -p {quoted} && tar -xf - -C {quoted}", stdin=packed, timeout_s=300)
        else:
            if isinstance(source, Path):
                mode = source.stat().st_mode & 0o7777 if mode is None else mode
                source = source.read_bytes()
            self.run(f'mkdir -p "$(dirname {quoted})" && cat > {quoted}', stdin=source, timeout_s=300)
            mode = 0o644 if mode is None else mode
        if owner:
            self.run(["chown", "-R", owner, target])
        if mode is not None:
            self.run(["chmod", f"{mode:o}", target])

    def carry(self, source: Path, target: str) -> None:
        """Bring a folder of any size in, read-only, as a disk that is mounted at that place.

        It is a SCSI disk, and no stick: USB storage is blocked on a hardened box. A reboot unmounts it: `carry` again.
        """
        serial = f"carried-{secrets.token_hex(3)}"
        image = {"driver": "file", "filename": str(disk.image_of(source)), "read-only": True}
        qmp = self._monitor()
        qmp.execute("blockdev-add", driver="raw", node_name=serial, file=image, read_only=True)
        qmp.execute("device_add", driver="scsi-hd", bus="scsi.0", drive=serial, id=serial, serial=serial)
        device = f"/dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_{serial}"
        wait = f"i=0; until [ -e {device} ]; do i=$((i+1)); [ $i -lt 300 ] || exit 9; sleep 0.1; done"
        self.run(f"mkdir -p {shlex.quote(target)}; {wait}; mount -o ro {device} {shlex.quote(target)}", timeout_s=120)
        self._carried[target] = serial

    def uncarry(self, target: str) -> None:
        """Take a carried folder out again, which `save` asks for."""
        serial = self._carried.pop(target)
        self.run(f"! mountpoint -q {shlex.quote(target)} || umount {shlex.quote(target)}", timeout_s=120)
        self.unplug(serial)
        self._monitor().execute("blockdev-del", node_name=serial)

    def read(self, path: str) -> str:
        """Return a file of the box as text."""
        return self.run(["cat", "--", path]).stdout

    def exists(self, path: str) -> bool:
        """Say whether something is at a path; a dangling link is something."""
        return self.run(f"test -e {shlex.quote(path)} || test -L {shlex.quote(path)}", check=False).ok

    # -- systemd

    def wait_unit(self, unit: str, state: str = "active", timeout_s: float = 60) -> None:
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
            time.sleep(0.2)

    def journal(self, unit: str | None = None, *options: str) -> str:
        """Return the journal of a unit since the box booted, or the whole; `options` are journalctl's."""
        which = [f"--unit={unit}"] if unit else []
        argv = ["journalctl", "--boot", "--no-pager", "--output=short-precise", *which, *options]
        return self.run(argv, check=False).stdout

    def failed_units(self) -> list[str]:
        """Name the units that failed."""
        lines = self.run("systemctl list-units --failed --plain --no-legend").stdout.splitlines()
        return [line.split()[0] for line in lines if line]

    # -- what only a virtual machine can

    def snapshot(self, tag: str = "here") -> None:
        """Keep the machine as it is now, memory and disk; with no writable stick plugged in."""
        self._must(f"savevm {tag}")

    def restore(self, tag: str = "here") -> None:
        """Go back to a snapshot, memory and disk; then the clock is set right, as time went on meanwhile."""
        self._shell.close()
        self._must(f"loadvm {tag}")
        self.set_clock(datetime.now(UTC))

    def save(self, folder: Path) -> Machine:
        """Write the machine as it runs into a folder and end it here; `load` and `boot` go on from there, many times.

        Raises:
            HostError: a stick or a carried disk is there, which the state would need again.
        """
        qmp = self._monitor()
        self._shell.close()
        qmp.execute("stop")
        qmp.execute("migrate-set-parameters", max_bandwidth=1 << 34)
        qmp.execute("migrate", uri=f"exec:cat > {shlex.quote(str(folder.absolute() / 'state'))}")
        end = time.monotonic() + 300
        while (found := qmp.execute("query-migrate")["status"]) != "completed":
            if found in ("failed", "cancelled") or time.monotonic() > end:
                raise HostError(f"cannot save {self.name}: {found}\n{self.console_tail()}")
            time.sleep(0.1)
        self.kill()
        for name in ("disk.qcow2", "variables.qcow2"):
            shutil.move(self.folder / name, folder / name)
        known = {"key": str(self.key) if self.key else None, "memory_mib": self.machine.memory_mib}
        (folder / "machine.json").write_text(json.dumps({**known, "cpus": self.machine.cpus}))
        return load(folder)

    def set_clock(self, when: datetime) -> None:
        """Set the guest's time; its battery clock keeps what it said."""
        self.run(["date", "--utc", "--set", f"@{when.timestamp():.3f}"], timeout_s=120)

    def usb_attach(self, image: Path, name: str = "stick", *, read_only: bool = False) -> None:
        """Plug a USB stick in; what the guest writes is in the image's file at once."""
        medium = {"driver": "file", "filename": str(image.absolute()), "read-only": read_only}
        qmp = self._monitor()
        qmp.execute("blockdev-add", driver="raw", node_name=name, file=medium, read_only=read_only)
        qmp.execute("device_add", driver="usb-storage", bus="xhci.0", drive=name, id=name, removable=True)
        self._sticks[name] = name

    def usb_detach(self, name: str = "stick") -> None:
        """Pull a USB stick out, without warning."""
        self.unplug(name)
        self._monitor().execute("blockdev-del", node_name=name)
        del self._sticks[name]

    def usb_plug(self, driver: str, name: str) -> None:
        """Plug in another USB device that QEMU knows, such as `usb-kbd` or `usb-ccid`."""
        self._monitor().execute("device_add", driver=driver, bus="xhci.0", id=name)

    def unplug(self, name: str) -> None:
        """Pull a device out."""
        qmp = self._monitor()
        qmp.execute("device_del", id=name)
        qmp.wait_event("DEVICE_DELETED", 30, device=name)

    def frames(self) -> list[bytes]:
        """Return the Ethernet frames on the guest's cable since its start, both ways; it is 52:54:00:12:34:56."""
        raw, at, found = (self.folder / "net.pcap").read_bytes(), 24, []
        while at + 16 <= len(raw):
            length = int.from_bytes(raw[at + 8 : at + 12], "little")
            found.append(raw[at + 16 : at + 16 + length])
            at += 16 + length
        return found

    def console(self) -> str:
        """Return what the guest wrote to its serial console, from the first start on."""
        log = self.folder / "console.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def console_tail(self) -> str:
        """Return the end of the console and of QEMU's own messages, for an error."""
        log = self.folder / "qemu.log"
        said = log.read_text(errors="replace") if log.exists() else ""
        return f"--- console\n{process.tail(self.console())}\n--- QEMU\n{process.tail(said)}"

    @property
    def console_socket(self) -> Path:
        """The serial console, to type at: a Unix socket in `folder`. Read what comes, or the guest stops to write."""
        return self.folder / "console"

    # -- within

    def _monitor(self) -> Qmp:
        if self._qmp is None or not self.is_on:
            raise HostError(f"cannot ask {self.name}: it is off\n{self.console_tail()}")
        return self._qmp

    def _must(self, line: str) -> None:
        """Run a command of the monitor for people, which says nothing when all is well."""
        if said := self._monitor().monitor(line, timeout_s=300).strip():
            raise QmpError(f"cannot {line} {self.name}: {said}")

    def _connect(self) -> Qmp:
        end = time.monotonic() + 30
        while time.monotonic() < end and self.is_on:
            with contextlib.suppress(OSError):
                return Qmp(self.folder / "qmp")
            time.sleep(0.02)
        raise HostError(f"cannot start {self.name}: QEMU does not answer\n{self.console_tail()}")

    def _wait_resumed(self, end: float) -> None:
        """Wait until the state is read; then the machine is paused, as it was when it was saved."""
        while (found := self._monitor().execute("query-status")["status"]) != "paused":
            if found not in ("inmigrate", "prelaunch") or time.monotonic() > end:
                raise HostError(f"cannot resume {self.name}: {found}\n{self.console_tail()}")
            time.sleep(0.05)

    def _rtc(self) -> str:
        return self._clock.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S") if self._clock else "utc"

    def _quietly(self, command: str) -> None:
        """Ask for an end; the machine may be gone before the answer, which is then no failure."""
        with contextlib.suppress(HostError):
            self.run(command, check=False, timeout_s=30)


def _qemu(machine: Machine) -> list[str]:
    cpu = "host" if accel.name() == "kvm" else "max"
    size = f"-accel {accel.option()} -cpu {cpu} -smp {machine.cpus} -m {machine.memory_mib}"
    return f"qemu-system-x86_64 -nodefaults -no-user-config -M q35,smm=off -display none {size}".split()


def _devices() -> list[str]:
    """Return the machine's devices; the files are in the current folder. See DEVICES."""
    disk_ = "driver=qcow2,node-name=disk,file.driver=file,file.filename=disk.qcow2,file.cache.no-flush=on"
    lines = f"""
        -drive if=pflash,unit=0,format=raw,readonly=on,file={FIRMWARE}/OVMF_CODE_4M.fd
        -drive if=pflash,unit=1,format=qcow2,file=variables.qcow2
        -qmp unix:qmp,server=on,wait=off
        -chardev socket,id=console,path=console,server=on,wait=off,logfile=console.log,logappend=on
        -serial chardev:console
        -device virtio-rng-pci
        -blockdev {disk_}
        -device virtio-blk-pci,drive=disk,bootindex=0
        -device virtio-scsi-pci,id=scsi
        -device qemu-xhci,id=xhci
        -netdev user,id=net,restrict=on,ipv6=off,hostfwd=tcp:127.0.0.1:0-10.0.2.15:22
        -device virtio-net-pci,netdev=net,romfile=,mac=52:54:00:12:34:56
        -object filter-dump,id=dump,netdev=net,file=net.pcap
        -device virtio-serial-pci
        -chardev socket,id=agent,path=agent,server=on,wait=off
        -device virtserialport,chardev=agent,name=org.qemu.guest_agent.0
    """
    return lines.split()


def _forwarded_port(table: str) -> int:
    """Read the port that QEMU chose on the loopback interface."""
    for line in table.splitlines():
        words = line.split()
        if words and words[0] == "TCP[HOST_FORWARD]":
            return int(words[3])
    raise HostError(f"cannot find the port of SSH, expected TCP[HOST_FORWARD] in:\n{table}")


def _overlay(machine: Machine, target: Path) -> None:
    size = [f"{machine.size_gib}G"] if machine.size_gib else []
    _qemu_img("create", "-q", "-f", "qcow2", "-F", machine.format, "-b", machine.disk.absolute(), target, *size)


def _qemu_img(*arguments: str | Path) -> None:
    process.run(["qemu-img", *map(str, arguments)], timeout_s=120).check()


@contextlib.contextmanager
def _state_folder() -> Iterator[Path]:
    """Make a machine's folder and hold its lock; remove the folders of processes that were killed before they could."""
    MACHINES.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with roots.locked(MACHINES / "lock"):
            for stale in MACHINES.glob("*/lock"):
                with stale.open() as lock, contextlib.suppress(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(stale.parent, ignore_errors=True)
            folder = MACHINES / f"vm-{secrets.token_hex(3)}"
            folder.mkdir()
            mine = stack.enter_context((folder / "lock").open("w"))
            fcntl.flock(mine, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
