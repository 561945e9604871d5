"""Skerry's units as they are on a box: how closely confined, and that the confinement holds."""

import json
import re
from collections.abc import Callable

import pytest

from tests.hosts import nspawn
from tests.provision.confined import run_inside
from tests.provision.conftest import MODEL, QUESTION, ROOT, Provisioned

PAGE = ROOT / "docs" / "reference" / "units.md"
MOST_EXPOSURE = 0.3
DAEMON = "skerry-inferenced.service"
RELEASES = {"bookworm": "12", "trixie": "13"}

RecordProperty = Callable[[str, object], None]


@pytest.fixture
def box(each_provisioned: Provisioned) -> nspawn.Box:
    return each_provisioned.box


@pytest.fixture
def release(box: nspawn.Box) -> str:
    """The number of its Debian release."""
    return box.run(". /etc/os-release && echo $VERSION_ID").stdout.strip()


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading of the page."""
    lines = PAGE.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0].splitlines()
    return [[c.strip().strip("`") for c in line.strip("|").split("|")] for line in lines if line.startswith("|")][2:]


def analysis(box: nspawn.Box, unit: str) -> tuple[float, dict[str, float]]:
    """What systemd-analyze says of a unit file: its exposure, and what each directive that is not set costs."""
    command = f"LC_ALL=C.UTF-8 systemd-analyze security --no-pager --offline=true /etc/systemd/system/{unit}"
    said = box.run(command, timeout_s=60).stdout
    level = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert level, said
    missing = re.findall(r"^✗ (\S+).* ([0-9.]+)$", said, re.MULTILINE)
    return float(level[1]), {name: float(cost) for name, cost in missing}


# --- exposure ---------------------------------------------------------------------------------------------------------


def test_every_service_is_within_the_limit(box: nspawn.Box, release: str, record_property: RecordProperty) -> None:
    """Each service of ours on the box is on the page, has the exposure that the page says, and at most 0.3."""
    found = box.run("cd /etc/systemd/system && ls -d skerry-*.service").stdout.split()
    documented = {row[0]: float(row[3 if release == "12" else 4]) for row in rows("Services")}
    measured = {unit: analysis(box, unit)[0] for unit in found}
    record_property("exposure", json.dumps(measured))
    print(f"exposure on Debian {release}: {measured}")
    assert measured == documented
    assert max(measured.values()) <= MOST_EXPOSURE


def test_what_is_left_out_is_explained(box: nspawn.Box, release: str) -> None:
    """Every directive that systemd-analyze finds missing stands on the page with cost and reason, and no other."""
    documented = {
        (unit, directive): float(cost)
        for unit, directive, releases, cost, reason in rows("Left out")
        if release in releases.split(", ") and reason
    }
    units = [row[0] for row in rows("Services")]
    measured = {(unit, name): cost for unit in units for name, cost in analysis(box, unit)[1].items()}
    assert measured == documented


def test_units_are_sound(box: nspawn.Box) -> None:
    """systemd finds no mistake in any unit file of ours, and starts the sockets and the daemon at boot."""
    found = box.run(
        "systemd-analyze verify /etc/systemd/system/skerry-*.service /etc/systemd/system/skerry-*.socket "
        "/etc/systemd/system/skerry-*.timer 2>&1 | grep -i skerry || true"
    ).stdout
    assert not found
    for unit in (DAEMON, "skerry-inferenced.socket", "skerry-sandbox.socket", "skerry-disk.timer"):
        assert box.run(f"systemctl is-enabled {unit}").stdout.strip() == "enabled"
    assert "skerry" not in " ".join(box.failed_units())


def test_the_daemon_answers_inside(each_provisioned: Provisioned) -> None:
    """Confined as it is, it loads the real model at its start and answers with it."""
    box = each_provisioned.box
    assert f"loaded {MODEL}" in box.journal(DAEMON)
    assert "Paris" in box.run(f"skerry ask {QUESTION!r} --temperature 0", user="app", timeout_s=120).stdout


def test_it_denies_itself_the_network_too(box: nspawn.Box) -> None:
    """The unit's filter of system calls leaves the daemon the call with which it closes the network for itself."""
    assert "cannot deny the daemon the network" not in box.journal(DAEMON)


def test_it_knows_its_callers(box: nspawn.Box) -> None:
    """Users are kept apart, and still a caller's uid and groups arrive as they are: roles depend on it."""
    box.run("usermod -aG skerry-viewer app")
    try:
        caller = json.loads(box.run("skerry status --json", user="app").stdout)["caller"]
    finally:
        box.run("gpasswd -d app skerry-viewer")
    assert caller["uid"] == int(box.run("id -u app").stdout)
    assert set(caller["roles"]) >= {"client", "viewer"}


# --- what a daemon that was taken over could try ----------------------------------------------------------------------

ATTEMPTS = {
    "IPv4": "socket.socket(socket.AF_INET)",
    "IPv6": "socket.socket(socket.AF_INET6)",
    "netlink": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "a virtual machine's socket": "socket.socket(socket.AF_VSOCK)",
    "packets": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "IPv4 by the bare system call": "call(41, 2, 1, 0)",
    "io_uring": "call(425, 8, ctypes.create_string_buffer(256))",
    "write home": "write(os.path.expanduser('~/x'))",
    "write /tmp": "write('/tmp/x')",
    "write /var/tmp": "write('/var/tmp/x')",
    "write /dev/shm": "write('/dev/shm/x')",
    "write /run": "write('/run/x')",
    "write /run/skerry": "write('/run/skerry/x')",
    "write models": "write('/var/lib/skerry/models/x')",
    "write the runtime": "write('/opt/skerry/current/x')",
    "write /etc": "write('/etc/x')",
    "a shell": "spawn('/bin/sh', '-c', 'exit 0')",
    "any other command": "spawn('/usr/bin/id')",
    "read passwords": "open('/etc/shadow')",
    "read the site's file": "open('/etc/skerry/site.yaml')",
    "read host keys": "look('/etc/ssh')",
    "read sealed keys": "look('/etc/credstore.encrypted')",
    "read receipts": "look('/var/lib/skerry/receipts')",
    "read kits": "look('/var/lib/skerry/kit')",
    "read the journal": "look('/var/log/journal')",
    "see processes of others": "open('/proc/1/status')",
    "signal others": "os.kill(1, 0)",
    "memory to write and run": "mmap.mmap(-1, 4096, prot=7)",
    "run from memory": "os.execv(f'/proc/self/fd/{os.memfd_create(\"x\", 0)}', ['x'])",
    "become root": "os.setuid(0)",
    "a namespace": "call(272, 0x10000000)",
    "a mount": "call(165, b'none', b'/tmp', b'tmpfs', 0, 0)",
    "trace": "call(101, 16, os.getppid(), 0, 0)",
    "a device": "open('/dev/mem')",
    "the kernel's log": "open('/dev/kmsg')",
    "set the clock": "time.clock_settime(time.CLOCK_REALTIME, time.time())",
    "real-time priority": "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))",
}
"""What is tried: a name, and a Python expression that raises OSError when the attempt fails."""

HARNESS = """
import ctypes, json, mmap, os, socket, time
libc = ctypes.CDLL(None, use_errno=True)

def call(*arguments):
    if libc.syscall(*arguments) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

def write(path):
    open(path, "w").close()
    os.unlink(path)

def spawn(path, *arguments):
    status = os.waitstatus_to_exitcode(os.waitpid(os.posix_spawn(path, [path, *arguments], {}), 0)[1])
    if status:
        raise OSError(status, "exit status")

def look(folder):
    if not os.listdir(folder):
        raise OSError(0, "an empty folder")

said = {}
for name, attempt in json.loads(%r).items():
    try:
        eval(attempt)
        said[name] = "succeeded"
    except OSError as e:
        said[name] = f"{type(e).__name__}: {e.strerror}"
print(json.dumps(said))
"""


def test_nothing_works_that_a_daemon_need_not_do(box: nspawn.Box) -> None:
    """From inside the daemon's unit every way out, every write and every look at others' things fails."""
    said = json.loads(run_inside(box, DAEMON, HARNESS % json.dumps(ATTEMPTS)))
    assert set(said) == set(ATTEMPTS)
    assert not [name for name, result in said.items() if result == "succeeded"], said


def test_the_attempts_are_real(box: nspawn.Box) -> None:
    """As root outside of the unit most of the same attempts succeed, so that their failure inside says something."""
    # What replaces or stops the process, or depends on this machine's kernel, cannot be tried so.
    left_out = {"run from memory", "trace", "a device", "the kernel's log", "set the clock", "io_uring", "packets"}
    left_out |= {
        "a virtual machine's socket",
        "become root",
        "IPv6",
        "real-time priority",
        "read the journal",
        "a mount",
    }
    tried = {name: attempt for name, attempt in ATTEMPTS.items() if name not in left_out}
    output = box.run(["python3", "-c", HARNESS % json.dumps(tried)], env={"HOME": "/root"}).stdout
    said = json.loads(output.splitlines()[-1])
    assert not [name for name, result in said.items() if result != "succeeded"], said


def test_there_is_nowhere_to_write(box: nspawn.Box) -> None:
    """The daemon's user may write to no file and no folder that it can see, but for devices and sockets."""
    program = """
import os, stat
for folder, folders, files in os.walk("/"):
    if folder in ("/proc", "/sys"):
        folders[:] = []
        continue
    for name in [*folders, *files]:
        path = os.path.join(folder, name)
        try:
            mode = os.lstat(path).st_mode
        except OSError:
            continue
        if (stat.S_ISDIR(mode) or stat.S_ISREG(mode)) and os.access(path, os.W_OK):
            print(path)
print("looked")
"""
    assert run_inside(box, DAEMON, program, timeout_s=120).split() == ["looked"]


TELEMETRY = """
import os, sys
import onnxruntime
found = [os.path.join(f, n) for f, _, names in os.walk(sys.argv[1] if sys.argv[1:] else "/tmp") for n in names]
print([n for n in found if "onnxruntime" in n] or "nothing kept")
"""


@pytest.mark.parametrize("home", ["/nonexistent", "/tmp", "/var/lib/skerry/models", "/dev/shm"])  # noqa: S108
def test_telemetry_keeps_nothing(box: nspawn.Box, home: str) -> None:
    """onnxruntime cannot keep a device number or a database of events, whichever folder it takes for home."""
    said = run_inside(box, DAEMON, TELEMETRY, f"Environment=HOME={home} XDG_CACHE_HOME={home}")
    assert "nothing kept" in said
    assert not box.run(f"find {home} -name 'onnxruntime.db' -o -name deviceid", check=False).stdout


def test_telemetry_would_keep_something(box: nspawn.Box) -> None:
    """Left to itself, outside of the unit, it does: the tests above look for something that exists."""
    home = box.run("mktemp -d").stdout.strip()
    try:
        said = box.run(["/opt/skerry/current/bin/python", "-c", TELEMETRY, home], env={"HOME": home}).stdout
    finally:
        box.run(f"rm -rf {home}")
    assert "onnxruntime.db" in said


def test_only_the_receipt_gets_a_key(box: nspawn.Box) -> None:
    """Exactly one unit is handed a secret, and the secret's file is of no use elsewhere: it is sealed."""
    found = box.run("grep -l '^LoadCredential\\|^SetCredential' /etc/systemd/system/skerry*.service").stdout.split()
    assert found == ["/etc/systemd/system/skerry-receipt.service"]
    assert "PRIVATE KEY" not in box.run("cat /etc/credstore.encrypted/skerry.receipt-key").stdout
    assert box.run("stat -c %a:%U /etc/credstore.encrypted /etc/credstore.encrypted/*").stdout.split() == [
        "700:root",
        "600:root",
    ]
    box.run("cd /etc/credstore.encrypted && cp skerry.receipt-key other")
    try:
        renamed = box.run("systemd-creds decrypt --name=other /etc/credstore.encrypted/other -", check=False)
    finally:
        box.run("rm /etc/credstore.encrypted/other")
    assert renamed.returncode != 0
