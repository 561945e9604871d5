"""The virtual machines: what a test may rely on. Slow: without hardware virtualization a command takes a second."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.hosts import qemu, usb
from tests.hosts.process import CommandFailed, CommandTimeout

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def box() -> Iterator[qemu.Box]:
    """A plain Debian 12 that is resumed, not booted; each test leaves it as it was."""
    with qemu.boot(qemu.debian_vm("bookworm")) as box:
        yield box


def test_it_has_a_kernel_and_a_systemd_of_its_own(box: qemu.Box) -> None:
    """It runs Debian's kernel and unified control groups, and systemd says that it is up."""
    assert "Debian" in box.run("uname -v").stdout
    assert box.run("stat -fc %T /sys/fs/cgroup").stdout == "cgroup2fs\n"
    assert box.run("systemctl is-system-running").stdout == "running\n"


def test_commands_go_in_and_results_come_out(box: qemu.Box) -> None:
    """Input, output, exit code, user and time limit are what was asked for."""
    found = box.run("cat; id -un; echo told >&2; exit 7", user="nobody", stdin="given\n", check=False)
    assert (found.stdout, found.stderr, found.returncode) == ("given\nnobody\n", "told\n", 7)
    with pytest.raises(CommandFailed, match="7"):
        box.run("exit 7")
    began = time.monotonic()
    with pytest.raises(CommandTimeout):
        box.run("sleep 60", timeout_s=3)
    assert time.monotonic() - began < 30
    assert not box.run("pgrep -x sleep", check=False).stdout


def test_ssh_is_the_only_way_in_and_nothing_leads_out(box: qemu.Box) -> None:
    """The guest's sshd answers through the forwarded port; what it sends elsewhere is answered by nobody."""
    assert box.key is not None
    assert box.ssh("root", box.key, "id -un").stdout == "root\n"
    command = "timeout 5 bash -c '>/dev/tcp/192.0.2.1/80'"
    assert box.run(command, check=False, timeout_s=30).returncode != 0
    assert any(b"\xc0\x00\x02\x01" in frame for frame in box.frames()), "the attempt is on the cable"


def test_a_snapshot_brings_back_memory_and_disk(box: qemu.Box) -> None:
    """What was written after a snapshot, to disk or memory, is gone when it is restored; the clock goes on."""
    box.run("echo before >/root/kept; echo before >/run/kept")
    box.snapshot("here")
    box.run("echo after >/root/kept; echo after >/run/kept; sync")
    box.restore("here")
    assert box.run("cat /root/kept /run/kept").stdout == "before\nbefore\n"
    assert abs(float(box.run("date +%s").stdout) - time.time()) < 10


def test_a_stick_is_read_written_and_pulled(box: qemu.Box, tmp_path: Path) -> None:
    """A FAT stick appears when it is plugged in, what the guest writes is in its file, and pulled it is gone."""
    medium = usb.stick(tmp_path / "stick.img", {"letter.txt": b"for the box\n"}, label="POST")
    device = "/dev/disk/by-label/POST"
    box.usb_attach(medium)
    try:
        wait = f"for i in $(seq 300); do [ -e {device} ] && break; sleep 0.1; done"
        box.run(f"{wait}; mount {device} /mnt && cat /mnt/letter.txt", timeout_s=90)
        box.run("echo from the box >/mnt/answer.txt && umount /mnt")
    finally:
        box.usb_detach()
    assert usb.read(medium, "answer.txt") == b"from the box\n"
    end = time.monotonic() + 30
    while box.exists(device):
        assert time.monotonic() < end, "the stick is still there"
        time.sleep(0.5)


def test_the_clock_is_what_it_is_set_to(box: qemu.Box) -> None:
    """A box can be sent to another time."""
    then = datetime(1999, 12, 31, 23, 0, tzinfo=UTC)
    box.set_clock(then)
    found = datetime.fromtimestamp(float(box.run("date +%s").stdout), UTC)
    box.set_clock(datetime.now(UTC))
    assert then <= found < then + timedelta(minutes=2)


def test_a_power_cut_loses_what_was_not_synced(box: qemu.Box) -> None:
    """Cut off, the machine boots again; what was synced is there, what was only in its memory is not."""
    boot = box.boot_id()
    box.run("mount -o remount,commit=3600 /; echo 0 >/proc/sys/vm/dirty_writeback_centisecs")
    box.run("echo safe >/root/safe; sync; echo lost >/root/lost; echo lost >/run/lost")
    box.power_cut()
    assert not box.is_on
    box.start()
    assert box.boot_id() != boot
    assert box.read("/root/safe") == "safe\n"
    assert not box.exists("/run/lost")
    assert not box.exists("/root/lost")
