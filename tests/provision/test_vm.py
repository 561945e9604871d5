"""The same in a virtual machine with its own kernel: what a container cannot show. Slow: its processor is emulated."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import qemu
from tests.provision import machines
from tests.provision.conftest import MODEL, QUESTION

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]


@pytest.fixture(scope="module")
def box() -> Iterator[qemu.Box]:
    """A plain Debian 12 with a kernel, provisioned from the kit; it has no network but the test's way in."""
    with qemu.boot(machines.provisioned_vm("bookworm").machine) as box:
        yield box


def ask(box: qemu.Box) -> str:
    """The answer that an unprivileged program of the box gets."""
    return box.run(f"skerry ask {QUESTION!r} --temperature 0", user="app", timeout_s=600).stdout


def usb_disks(box: qemu.Box) -> str:
    """Block devices that hang on USB."""
    return box.run("readlink -f /sys/block/* | grep /usb || true").stdout


def test_a_machine_answers(box: qemu.Box) -> None:
    """On a machine with its own kernel the signed model answers a user of skerry-client; /tmp is still what it was."""
    assert "Paris" in ask(box)
    assert box.run("findmnt /tmp", check=False).returncode != 0
    assert MODEL in box.run("skerry model list --json", timeout_s=120).stdout


def test_after_a_power_cut_it_answers_again(box: qemu.Box) -> None:
    """Cut off and started again, the box serves by itself, and the whole of what was installed verifies."""
    box.run("sync", timeout_s=60)
    box.power_cut()
    box.start()
    box.wait_unit("skerry-inferenced.socket", timeout_s=600)
    assert "Paris" in ask(box)
    assert "noexec" in box.run("findmnt -no OPTIONS --types tmpfs /tmp").stdout
    box.run(f"skerry model verify /var/lib/skerry/models/{MODEL} --keys /etc/skerry/keys", timeout_s=600)


def test_memory_of_the_daemon_is_bounded(box: qemu.Box) -> None:
    """The kernel ends a daemon that takes more than its limit, nothing else, and systemd brings it back."""
    limit = int(box.run("systemctl show -P MemoryMax skerry-inferenced.service").stdout)
    total = int(box.run("awk '/MemTotal/ {printf \"%d\", $2 * 1024}' /proc/meminfo").stdout)
    assert 0 < limit < total
    before = box.run("systemctl show -P ActiveEnterTimestampMonotonic ssh.service dbus.service").stdout
    # The daemon as the hog: a limit below what it needs is the same to the kernel as a leak.
    box.run("systemctl set-property --runtime skerry-inferenced.service MemoryMax=90M MemoryHigh=infinity")
    box.run("systemctl restart --no-block skerry-inferenced.service")
    for _ in range(60):
        if box.run("journalctl -u skerry-inferenced --no-pager -g 'oom-kill' || true", timeout_s=120).stdout.count(
            "oom"
        ):
            break
        time.sleep(2)
    else:
        raise AssertionError(box.journal("skerry-inferenced.service")[-3000:])
    box.run(f"systemctl set-property --runtime skerry-inferenced.service MemoryMax={limit}")
    assert "Paris" in ask(box)
    assert box.run("systemctl show -P ActiveEnterTimestampMonotonic ssh.service dbus.service").stdout == before


def usb_products(box: qemu.Box) -> dict[str, str]:
    """Whether the kernel may use each USB device that is plugged in: `1` or `0` by its product."""
    script = 'for d in /sys/bus/usb/devices/*/product; do echo "$(cat ${d%/*}/authorized) $(cat $d)"; done'
    lines = box.run(script).stdout.splitlines()
    return {product: state for state, _, product in (line.partition(" ") for line in lines)}


def test_usb_devices_are_let_in_by_what_they_are(box: qemu.Box) -> None:
    """A keyboard works; a reader for smart cards is seen and not let in."""
    box.usb_plug("usb-kbd", "keys")
    box.usb_plug("usb-ccid", "reader")
    try:
        for _ in range(30):
            found = usb_products(box)
            if {"QEMU USB Keyboard", "QEMU USB CCID"} <= found.keys() and found["QEMU USB Keyboard"] == "1":
                break
            time.sleep(2)
        assert found["QEMU USB Keyboard"] == "1"
        assert found["QEMU USB CCID"] == "0"
    finally:
        box.unplug("reader")
        box.unplug("keys")


def test_a_volume_grows_in_use(box: qemu.Box) -> None:
    """Data and logs have file systems of their own, and one that is full can be given more room while it is used."""
    source = {place: box.run(f"findmnt -no SOURCE {place}").stdout.strip() for place in ("/var/lib/skerry", "/var/log")}
    assert all(device.startswith("/dev/loop") for device in source.values()), source
    before = int(box.run("df --output=size -B1 /var/log | tail -n 1").stdout)
    image, device = "/var/lib/skerry-volumes/log.img", source["/var/log"]
    box.run(f"fallocate -l $(($(stat -c %s {image}) + 100000000)) {image} && losetup -c {device} && resize2fs {device}")
    assert int(box.run("df --output=size -B1 /var/log | tail -n 1").stdout) > before + 80_000_000


def test_the_log_of_the_first_run_is_whole(box: qemu.Box) -> None:
    """What Ansible said after it laid a file system over /var/log is in the log that is there now."""
    assert "Hardening | Close the door" in box.read("/var/log/skerry/install.log")


def test_usb_storage_is_blocked_until_the_window_opens(box: qemu.Box, tmp_path: Path) -> None:
    """A stick is not seen; in a window that was opened with a reason it is, and afterwards not any more."""
    stick = tmp_path / "stick.img"
    stick.write_bytes(b"\0" * (16 << 20))
    box.usb_attach(stick, "stick")
    try:
        time.sleep(10)
        assert not usb_disks(box)
        box.run("skerry-usb-window open --reason 'test of the window' --minutes 5", timeout_s=120)
        for _ in range(30):
            if usb_disks(box):
                break
            time.sleep(2)
        assert usb_disks(box)
        box.run("skerry-usb-window close", timeout_s=120)
        assert not usb_disks(box)
        assert "test of the window" in box.run("journalctl -t skerry-usb-window --no-pager", timeout_s=120).stdout
    finally:
        box.usb_detach("stick")
