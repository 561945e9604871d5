"""Disks of virtual machines: a plain Debian that boots by UEFI, and folders of this machine to carry in.

The plain Debian is what an installer leaves: a kernel, systemd, an SSH server, and a root that may log in with one key.
It has QEMU's agent too, by which tests give commands as root whatever the firewall and sshd say.
"""

import hashlib
import os
import shutil
import uuid
from pathlib import Path

import pytest

from images.disk import ESP, ROOT_X86_64, GiB, MiB, Partition, folder_image, make_ext4, make_fat, partition
from tests.hosts import process, roots, ssh

LOADER = Path("/usr/lib/systemd/boot/efi/systemd-bootx64.efi")
TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mkfs.vfat": "dosfstools",
    "mcopy": "mtools",
    "sfdisk": "fdisk",
    "mke2fs": "e2fsprogs",
}
PACKAGES = ("linux-image-amd64", "openssh-server", "qemu-guest-agent", "zstd")
RECIPE = "1"  # raise it when a change of the code below changes the disk

# Only what this machine needs: the kernel unpacks it on an emulated processor. There is no display and no installer.
MODULES = "virtio_pci\nvirtio_blk\next4\n"
OPTIONS = "console=ttyS0 rw quiet systemd.show_status=false net.ifnames=0"
FILES = {
    "etc/fstab": "LABEL=root / ext4 rw,errors=remount-ro 0 1\n",
    "etc/systemd/network/10-eth0.network": (
        "[Match]\nName=eth0\n[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n"
    ),
    "etc/initramfs-tools/conf.d/modules": "MODULES=list\n",
    "etc/initramfs-tools/modules": MODULES,
}
INSIDE = """
set -eu
systemctl enable --quiet systemd-networkd ssh
systemctl mask --quiet systemd-networkd-wait-online.service apt-daily.timer apt-daily-upgrade.timer
update-initramfs -u
"""


def why_not() -> str:
    """Say why this machine cannot run virtual machines; empty if it can."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing = sorted({package for tool, package in TOOLS.items() if shutil.which(tool, path=path) is None})
    missing += [] if Path("/usr/share/OVMF/OVMF_CODE_4M.fd").exists() else ["ovmf"]
    missing += [] if LOADER.exists() else ["systemd-boot-efi"]
    return f"tools missing, install {', '.join(missing)}" if missing else ""


def debian(suite: str) -> Path:
    """Return a folder with `disk.qcow2` of a plain Debian, its `key` for root, and its kernel and initrd.

    Skips the test if it cannot be had. Never write into it.
    """
    if reason := why_not():
        pytest.skip(f"not run: {reason}")
    root = roots.debian(suite, PACKAGES)
    recipe = "\n".join([str(root), MODULES, OPTIONS, INSIDE, *map("=".join, FILES.items()), RECIPE])
    return roots.cached(f"disk-{suite}", recipe, lambda target: _build(root, target))


def _build(root: Path, target: Path) -> None:
    target.mkdir()
    tree = target / "tree"
    _do("cp", "--archive", "--reflink=auto", root, tree)
    key = ssh.make_key(target / "key")
    for name, text in FILES.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    (tree / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
    (tree / "root/.ssh/authorized_keys").write_text(key.with_suffix(".pub").read_text())
    _do("unshare", "--mount", "--net", "--fork", "--pid", "--mount-proc", f"--root={tree}", "/bin/sh", "-c", INSIDE)
    for name, link in (("vmlinuz", "boot/vmlinuz-*"), ("initrd.img", "boot/initrd.img-*")):
        shutil.copyfile(next(tree.glob(link)), target / name)
    _assemble(target, tree)
    shutil.rmtree(tree)


def _assemble(target: Path, tree: Path) -> None:
    raw = target / "disk.raw"
    parts = [
        Partition("esp", ESP, 128 * MiB, str(uuid.uuid4())),
        Partition("root", ROOT_X86_64, 8 * GiB, str(uuid.uuid4())),
    ]
    esp, root = partition(raw, 8 * GiB + 130 * MiB, str(uuid.uuid4()), parts)
    make_ext4(root, tree, label="root", uuid=str(uuid.uuid4()))
    entry = f"title Debian\nlinux /vmlinuz\ninitrd /initrd.img\noptions root=LABEL=root {OPTIONS}\n"
    files: dict[str, Path | bytes] = {
        "EFI/BOOT/BOOTX64.EFI": LOADER,
        "loader/loader.conf": b"timeout 0\n",
        "loader/entries/debian.conf": entry.encode(),
        "vmlinuz": target / "vmlinuz",
        "initrd.img": target / "initrd.img",
    }
    make_fat(esp, files, label="ESP")
    _do("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, target / "disk.qcow2")
    raw.unlink()


def image_of(folder: Path) -> Path:
    """Return an ext4 image that holds a folder, such as a kit; made once as long as the folder does not change."""
    state = [str(folder.resolve())]
    for path in sorted(folder.rglob("*")):
        seen = path.lstat()
        state.append(f"{path.relative_to(folder)} {seen.st_size} {seen.st_mtime_ns} {seen.st_mode} {seen.st_ino}")
    name = f"folder-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]}"

    def build(target: Path) -> None:
        target.mkdir()
        for old in roots.CACHE.glob(f"{name}-*"):  # of this folder only the newest is of use
            if old.is_dir() and old != target.parent:
                shutil.rmtree(old, ignore_errors=True)
        folder_image(target / "disk.raw", folder, label="carried")

    return roots.cached(name, "\n".join(state), build) / "disk.raw"


def _do(*command: str | Path) -> None:
    result = process.run([str(part) for part in command], timeout_s=600)
    if not result.ok:
        raise roots.BuildFailed(f"{command[0]} ended with {result.returncode}: {process.tail(result.stderr, 5)}")
