"""Limits of the units that need a kernel with control groups of its own: a container cannot show them. Slow.

The virtual machine has the sandbox's units and Python, and nothing else of Skerry's.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import qemu
from tests.provision.confined import run_inside
from tests.provision.conftest import ROOT, build_kit
from tests.provision.test_sandbox import CALL, PREFIX, Answer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ROLES = ROOT / "playbooks" / "roles"
UNITS = [*ROLES.glob("inference/files/root/etc/systemd/system/skerry.slice")]
UNITS += [*ROLES.glob("sandbox/files/root/etc/systemd/system/*")]
SANDBOX = "skerry-sandbox@.service"


@pytest.fixture(scope="module")
def box() -> Iterator[qemu.Box]:
    """A plain Debian 12 with Python from the kit and the sandbox's units."""
    machine = qemu.debian_vm("bookworm")
    debs = build_kit("bookworm").path / "debs" / "bookworm"
    with qemu.boot(machine, binds={"/mnt/debs": debs}) as box:
        source = "deb [trusted=yes] file:///mnt/debs ./"
        box.put(source + "\n", "/etc/apt/sources.list")
        box.run("apt-get -qq update && apt-get -qq install --no-install-recommends python3 >/dev/null", timeout_s=900)
        box.run("mkdir -p /opt/skerry/root && useradd --system --no-create-home skerry-inference")
        for unit in UNITS:
            box.put(unit.read_text(), f"/etc/systemd/system/{unit.name}")
        box.run("systemctl daemon-reload && systemctl start skerry-sandbox.socket", timeout_s=60)
        yield box


def ask(box: qemu.Box, program: str) -> Answer:
    """Run a program in a sandbox."""
    call = ["python3", "-I", "-c", CALL]
    return Answer(**json.loads(box.run(call, user="skerry-inference", stdin=PREFIX + program, timeout_s=120).stdout))


def loosened(box: qemu.Box, *lines: str) -> None:
    """Take away what the unit says about single processes, so that the control group is what holds."""
    path = f"/run/systemd/system/{SANDBOX}.d/test.conf"
    box.put("".join(f"{line}\n" for line in ("[Service]", *lines)), path)
    box.run("systemctl daemon-reload")


@pytest.fixture(autouse=True)
def tightened(box: qemu.Box) -> Iterator[None]:
    """The unit as it is, again, after each test; and the machine is none the worse."""
    yield
    box.run(f"rm -rf '/run/systemd/system/{SANDBOX}.d' && systemctl daemon-reload")
    assert ask(box, "print(6 * 7)").said == "42\n"
    assert not [unit for unit in box.failed_units() if "skerry" in unit]


def test_memory_of_a_sandbox_is_bounded(box: qemu.Box) -> None:
    """Several processes that each stay below their own limit are ended when together they take more than 256 MiB."""
    program = """
for _ in range(4):
    if os.fork() == 0:
        break
kept = bytearray(120 << 20)
for n in range(0, len(kept), 4096):
    kept[n] = 1
import time
time.sleep(8)
print("kept", flush=True)
"""
    answer = ask(box, program)
    assert "kept" not in answer.said
    said = box.run("journalctl --no-pager -q -k -g 'oom' ; journalctl --no-pager -q -u 'skerry-sandbox@*'").stdout
    assert re.search(r"oom.kill", said), said
    assert "skerry-sandbox" in said


def test_memory_of_all_sandboxes_is_bounded(box: qemu.Box) -> None:
    """The slice around them has the limits that its file says, in the kernel."""
    group = "/sys/fs/cgroup/skerry.slice/skerry-sandbox.slice"
    ask(box, "print(1)")
    values = box.run(
        f"cat {group}/memory.max {group}/memory.swap.max {group}/pids.max {group}/cpu.weight"
    ).stdout.split()
    assert values == [str(512 << 20), "0", "64", "20"]
    total = int(box.run("awk '/MemTotal/ {printf \"%d\", $2 * 1024}' /proc/meminfo").stdout)
    assert 0.85 * total < int(box.run("cat /sys/fs/cgroup/skerry.slice/memory.max").stdout) < 0.92 * total


def test_tasks_of_a_sandbox_are_bounded(box: qemu.Box) -> None:
    """A fork bomb ends at 16 tasks even where the limit of the user is taken away."""
    loosened(box, "LimitNPROC=infinity")
    program = """
import time
n = 1
try:
    while n < 100:
        if os.fork() == 0:
            time.sleep(60)
        n += 1
except OSError as e:
    print(n, e.strerror, flush=True)
"""
    assert ask(box, program).said == "16 Resource temporarily unavailable\n"


def test_processors_of_a_sandbox_are_bounded(box: qemu.Box) -> None:
    """Two processes that compute get one processor between them."""
    if int(box.run("nproc").stdout) < 2:
        pytest.skip("not run: the machine has one processor")
    program = """
import time
began = time.monotonic()
child = os.fork()
while time.monotonic() - began < 5:
    pass
if child == 0:
    os._exit(0)
os.wait()
t = os.times()
print((t.user + t.system + t.children_user + t.children_system) / (time.monotonic() - began))
"""
    assert float(ask(box, program).said) < 1.15
    loosened(box, "CPUQuota=")
    assert float(ask(box, program).said) > 1.3


PACKET = """
import socket
try:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.sendto(b"out", ("10.0.2.2", 9))
    print("sent")
except OSError as e:
    print(e.strerror)
"""
OPEN = ("PrivateNetwork=no", "RestrictAddressFamilies=", "SystemCallFilter=", "DynamicUser=no", "User=nobody")


def test_no_packet_leaves_a_unit(box: qemu.Box) -> None:
    """Even with an interface and a socket a unit's packet is dropped by the kernel: IPAddressDeny holds alone."""
    assert "permitted" in run_inside(box, SANDBOX, PACKET, *OPEN, timeout_s=120)
    assert run_inside(box, SANDBOX, PACKET, *OPEN, "IPAddressDeny=", timeout_s=120) == "sent\n"


def test_units_here_are_those_of_the_roles() -> None:
    """The files that were tried are the ones that a box gets."""
    assert {p.name for p in UNITS} >= {"skerry.slice", "skerry-sandbox.slice", "skerry-sandbox.socket", SANDBOX}
    assert all(isinstance(p, Path) and "IPAddressDeny=any" in p.read_text() for p in UNITS if p.name == SANDBOX)
