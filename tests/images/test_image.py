"""The image: built twice alike, booted by UEFI into a ready box, and as a container. Slow."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hosts import nspawn, process, qemu, ssh, usb
from tests.images.conftest import Image, build_image
from tests.provision.conftest import QUESTION, Keys

pytestmark = [pytest.mark.slow, pytest.mark.timeout(5400)]

DISK_GIB = 12
FIRST_BOOT_LIMIT_S = 2400
"""On an emulated processor; a real one takes a minute or two."""
NETWORK = "10.0.2.15/24 10.0.2.2"


def machine(image: Image, size_gib: int = DISK_GIB) -> qemu.Machine:
    """A machine with a disk larger than the image that was written to it."""
    return qemu.Machine(image.disk, size_gib=size_gib)


def stick(keys: Keys, file: Path) -> Path:
    """What the owner brings: two keys, a name and an address."""
    files: dict[str, Path | bytes] = {
        "skerry/operator.pub": keys.operator.with_suffix(".pub").read_bytes(),
        "skerry/rescue.pub": keys.rescue.with_suffix(".pub").read_bytes(),
        "skerry/hostname": b"box-07\r\n",
        "skerry/network": NETWORK.encode(),
    }
    return usb.stick(file, files, label="SKERRY")


def wait_console(box: qemu.Box, text: str, limit_s: float, fails: str = "FAILED:") -> None:
    """Wait until the machine has written something to its console."""
    end = time.monotonic() + limit_s
    while text not in box.console():
        assert box.is_on, box.console_tail()
        assert fails not in box.console(), box.console()[-3000:]
        assert "emergency mode" not in box.console(), box.console()[-3000:]
        assert time.monotonic() < end, f"no {text!r} after {limit_s:.0f} s: {box.console()[-3000:]}"
        time.sleep(1)


@pytest.fixture(scope="module")
def box(image: Image, keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> Iterator[qemu.Box]:
    """A machine after its first boot, with a stick in."""
    medium = stick(keys, tmp_path_factory.mktemp("stick") / "stick.img")
    began = time.monotonic()
    with qemu.boot(machine(image), sticks=[medium], login=("rescue", keys.rescue), wait=False) as box:
        wait_console(box, "Skerry is ready", FIRST_BOOT_LIMIT_S)
        print(f"from power on to ready: {time.monotonic() - began:.0f} s")
        yield box


def entries(box: qemu.Box) -> list[str]:
    """The boot menu's files; behind a plus is how many attempts one has left."""
    return box.run("ls /efi/loader/entries").stdout.split()


def test_it_boots_into_a_ready_box(box: qemu.Box, keys: Keys) -> None:
    """After the first boot, with what was on the stick, a model answers, the operator's key opens the console alone."""
    assert "Paris" in box.run(f"skerry ask {QUESTION!r} --temperature 0", timeout_s=600).stdout
    assert box.run("hostname").stdout == "box-07\n"
    assert "FILE SYSTEM" in box.ssh("operator", keys.operator, "disk status", timeout_s=120).stdout
    assert box.ssh("operator", keys.operator, "id", check=False, timeout_s=120).returncode != 0
    assert box.failed_units() == []


def test_every_promise_is_kept(box: qemu.Box) -> None:
    """The box proves its own state."""
    report = box.run("skerry-setup --report", check=False, timeout_s=1200)
    assert report.returncode == 0, (report.stdout + report.stderr)[-3000:]


def test_the_data_partition_takes_the_rest_of_the_disk(box: qemu.Box) -> None:
    """The image is smaller than the disk; what is left belongs to /var/lib/skerry."""
    size = int(box.run("df --output=size -B1 /var/lib/skerry | tail -n 1").stdout)
    assert size > (DISK_GIB - 6.5) * (1 << 30)
    for place in ("/var/log", "/home", "/var/lib/skerry"):
        assert box.run(f"findmnt -no SOURCE {place}").stdout.startswith("/dev/vda"), place


def test_the_machine_is_nobodys_twin(box: qemu.Box, image: Image) -> None:
    """Machine id and host keys were made here, and the program that asked for keys is gone."""
    assert re.fullmatch(r"[0-9a-f]{32}\n", box.read("/etc/machine-id"))
    assert box.exists("/etc/ssh/ssh_host_ed25519_key")
    assert box.exists("/etc/skerry/first-boot")
    assert not box.exists("/usr/local/lib/skerry/first_boot.py")
    assert not box.exists("/usr/local/lib/systemd/system/skerry-first-boot.service")
    assert not box.exists("/run/skerry-usb-window")


def test_a_reboot_is_a_good_boot(box: qemu.Box, keys: Keys) -> None:
    """The next boot answers by itself, and then its entry counts no attempts any more."""
    box.reboot(900)
    assert "Paris" in box.run(f"skerry ask {QUESTION!r} --temperature 0", timeout_s=600).stdout
    end = time.monotonic() + 300
    while any(re.search(r"\+\d+(-\d+)?\.conf$", name) for name in entries(box)):
        assert time.monotonic() < end, (entries(box), box.journal("skerry-good-boot.service"))
        time.sleep(3)
    assert len(entries(box)) == 1
    assert box.failed_units() == []


def test_only_ssh_is_open(box: qemu.Box) -> None:
    """No other socket listens to anybody outside, the virtual machine's own channel to its host included."""
    lines = box.run("ss -Hltun").stdout.splitlines()
    assert {line.split()[4] for line in lines if not line.split()[4].startswith(("127.", "[::1]"))} == {"0.0.0.0:22"}
    assert "sshd" not in box.run("systemctl list-units --plain --no-legend --type=socket").stdout


def test_a_damaged_data_partition_does_not_stop_the_boot(box: qemu.Box) -> None:
    """Without its models the box still comes up and lets one in by SSH; the last test of this box."""
    box.run("dd if=/dev/zero of=/dev/disk/by-partlabel/skerry-data bs=1M count=64 conv=fsync status=none")
    box.reboot(900)
    assert box.run("findmnt /var/lib/skerry", check=False).returncode != 0
    assert "var-lib-skerry.mount" in box.run("systemctl list-units --all --plain 'var-lib-skerry*'").stdout
    assert box.run("systemctl is-active ssh.service nftables.service").stdout == "active\nactive\n"


def test_a_boot_that_answers_nobody_uses_up_an_attempt(image: Image, tmp_path: Path) -> None:
    """A power cut before the box was ready leaves one attempt less; somebody at the console can name the key."""
    public = ssh.make_key(tmp_path / "key").with_suffix(".pub").read_text().strip()
    with qemu.boot(machine(image), wait=False) as box:
        with keyboard(box) as console:
            wait_console(box, "1 or 2", 900)
            for prompt, answer in (
                ("1 or 2", "1"),
                ("in one line", "ssh-ed25519 AAAA nonsense"),
                ("That will not do", public),
                ("Network", NETWORK),
                ("Name of this machine", "box-08"),
                ("Time in UTC", ""),
                ("Is that right", "yes"),
            ):
                wait_console(box, prompt, 120)
                console.sendall(f"{answer}\r".encode())
            wait_console(box, "Thank you (console)", 300)
        box.power_cut()
        assert attempts(box, tmp_path) == [2, 1]
        for left in ([1, 2], [0, 3]):
            boots = box.console().count("BdsDxe: starting")
            box.start(wait=False)
            wait_until(lambda boots=boots: logins(box, boots), 600, box)
            box.power_cut()
            assert attempts(box, tmp_path) == left


def logins(box: qemu.Box, boots: int) -> bool:
    """Whether one can log in on the console after so many boots and one more."""
    return "login:" in "".join(box.console().split("BdsDxe: starting")[boots + 1 :])


def attempts(box: qemu.Box, folder: Path) -> list[int]:
    """How many attempts the boot entry has left and has had."""
    raw = folder / "esp.raw"
    process.run(
        ["qemu-img", "dd", "-O", "raw", "bs=1M", "count=258", f"if={box.folder}/disk.qcow2", f"of={raw}"], timeout_s=120
    ).check()
    env = {**os.environ, "MTOOLS_SKIP_CHECK": "1"}
    listed = subprocess.run(
        ["mdir", "-b", "-i", f"{raw}@@1M", "::/loader/entries"], env=env, capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r"\+(\d+)(?:-(\d+))?\.conf", listed)
    assert found, listed
    return [int(found[1]), int(found[2] or 0)]


@contextlib.contextmanager
def keyboard(box: qemu.Box) -> Iterator[socket.socket]:
    """Connect to a machine's console, to type at it; what it says is read and left to its log."""
    path = box.console_socket
    with socket.socket(socket.AF_UNIX) as console:
        folder = os.open(path.parent, os.O_PATH)  # the whole path is longer than a socket's name may be
        try:
            console.connect(f"/proc/self/fd/{folder}/{path.name}")
        finally:
            os.close(folder)
        # Some 200 single bytes fill the socket, and then the machine waits for its reader.
        reader = threading.Thread(target=lambda: all(iter(lambda: console.recv(4096), b"")))
        reader.start()
        try:
            yield console
        finally:
            with contextlib.suppress(OSError):
                console.shutdown(socket.SHUT_RDWR)
            reader.join()


def wait_until(done: Callable[[], bool], limit_s: float, box: qemu.Box) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < end, box.console_tail()
        time.sleep(1)


def test_the_tarball_is_a_container(image: Image, keys: Keys, tmp_path: Path) -> None:
    """The root tarball boots in systemd-nspawn, takes the key that its host gives, and answers."""
    root = tmp_path / "root"
    root.mkdir()
    subprocess.run(["tar", "-xf", image.tarball, "--zstd", "--numeric-owner", "--xattrs", "-C", root], check=True)
    public = keys.operator.with_suffix(".pub").read_text().strip()
    with nspawn.boot(root, options=[f"--set-credential=skerry.operator:{public}"]) as box:
        end = time.monotonic() + 300
        while not box.exists("/etc/skerry/first-boot"):
            assert time.monotonic() < end, box.journal("skerry-first-boot.service")[-3000:]
            time.sleep(1)
        assert "Paris" in box.run(f"skerry ask {QUESTION!r} --temperature 0", timeout_s=120).stdout
        assert box.ssh("rescue", keys.operator, "id -un").stdout == "rescue\n"
        assert box.failed_units() == []
    shutil.rmtree(root)


def test_two_builds_are_the_same_bytes(image: Image, kit_folder: Path, tmp_path: Path) -> None:
    """The same kit and the same Debian packages make the same disk, tarball and list, to the last byte."""
    # By cp: the root has device nodes, which Python would read to their end.
    (tmp_path / "image").mkdir()
    subprocess.run(["cp", "--archive", image.disk.parent / "cache", tmp_path / "image"], check=True)
    second = build_image(kit_folder, tmp_path / "image")
    assert second.sums == image.sums
    shutil.rmtree(tmp_path / "image")
