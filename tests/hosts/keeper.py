"""The process that holds one container: its mounts, its network and its control group live and die with it.

`nspawn.boot` starts it as process 1 of PID, mount and network namespaces of its own, with a pipe as its standard input.
It mounts the root, runs systemd-nspawn, and starts that again when the machine inside reboots. When the pipe closes,
for whatever reason (the test is over, failed, or was killed), it kills everything. So nothing is left behind, even when
it is killed itself: with the namespaces end processes, mounts and interfaces, none of which has a name outside.
Only the standard library, since it runs without the project.

Source: systemd-nspawn(1): exit status 133 means "reboot" under --keep-unit.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

CGROUPS = (Path("/sys/fs/cgroup/systemd"), Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup"))
REBOOT = 133


def cgroup_folders(name: str) -> list[Path]:
    """Return the folders of a box's control groups: one in a pure v2 tree, two where v1 and v2 are both mounted."""
    return [top / f"skerry-test-{name}" for top in CGROUPS if (top / "cgroup.procs").exists()]


def remove_cgroups(name: str, limit_s: float = 10) -> None:
    """Kill what still runs in a box's control groups, and remove them."""
    end = time.monotonic() + limit_s
    for top in cgroup_folders(name):
        while top.exists():
            folders = [Path(folder) for folder, _, _ in os.walk(top, topdown=False)]
            for folder in folders:
                try:
                    for pid in (folder / "cgroup.procs").read_text().split():
                        os.kill(int(pid), signal.SIGKILL)
                    folder.rmdir()
                except OSError:  # gone by itself, or still dying
                    continue
            if time.monotonic() > end:
                raise TimeoutError(f"cannot remove the control group {top}: still busy after {limit_s:g} s")
            time.sleep(0.01)


def mount_root(spec: dict[str, str]) -> None:
    """Put the box's root at its place: read-only layers under a writable one."""
    options = f"lowerdir={spec['lower']},upperdir={spec['upper']},workdir={spec['work']}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, spec["root"]], check=True)
    # nspawn keeps a folder per machine here, which it cannot remove again when it is no tmpfs.
    Path("/run/systemd/nspawn").mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run/systemd/nspawn"], check=True)


def start(argv: list[str], name: str) -> subprocess.Popen[bytes]:
    """Start nspawn in the box's control group."""

    def join() -> None:
        for folder in cgroup_folders(name):
            (folder / "cgroup.procs").write_text(str(os.getpid()))

    for folder in cgroup_folders(name):
        folder.mkdir(exist_ok=True)
    # A real Debian has the unified hierarchy; without this the box would get the host's, whatever that is.
    env = {**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, env=env, preexec_fn=join)


def wait(child: subprocess.Popen[bytes]) -> int | None:
    """Wait for nspawn's end and return its code, or None when the pipe closed first."""
    descriptor = os.pidfd_open(child.pid)
    try:
        ready, _, _ = select.select([descriptor, sys.stdin], [], [])
    finally:
        os.close(descriptor)
    return child.wait() if descriptor in ready else None


def stop(child: subprocess.Popen[bytes]) -> None:
    """Kill the machine, and wait for nspawn to notice; nspawn itself only if it does not."""
    for pid in Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split():
        os.kill(int(pid), signal.SIGKILL)
    try:
        child.wait(5)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def main() -> int:
    """Hold the box until it is off or nobody wants it any more."""
    spec = json.loads(sys.argv[1])
    name = spec["name"]
    mount_root(spec)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    code: int | None = REBOOT
    try:
        while code == REBOOT:
            child = start(spec["nspawn"], name)
            code = wait(child)
            if code is None:
                stop(child)
            # After a reboot too: what outlived the old machine must not meet the new one.
            remove_cgroups(name)
    finally:
        remove_cgroups(name)
    return 0 if code is None else code


if __name__ == "__main__":
    sys.exit(main())
