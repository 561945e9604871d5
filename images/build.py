"""Build a disk image that boots by UEFI into a Skerry box, and a root tarball of the same for containers. As root.

    make image                              with a kit made for it, from this station's keys for development
    make image ARGS="--kit DIR"             with a kit that was built and checked before
    make image ARGS="--refresh"             with Debian's packages of today, not those of the last image

Prints the image's path; build/image/ then holds, with the version in their names, the image (.img), the tarball
(-root.tar.zst), the list of packages (-packages.txt) and SHA256SUMS. The steps are the functions that `build` calls.

Needs no loop device and no KVM: systemd-nspawn boots the root, and disk.py writes the file systems. Two builds from the
same kit and the same packages are the same bytes.

What this does NOT do: sign the image, or what it boots (Secure Boot stays off). docs/how-to/build-an-image.md
"""

import argparse
import datetime
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
if not __package__:  # run as a file
    sys.path.insert(0, str(ROOT))

from appliance.errors import BuildError, SkerryError  # noqa: E402  after the path that finds them
from images import clean, disk, provision  # noqa: E402
from images.disk import GiB, MiB  # noqa: E402

OUT = ROOT / "build" / "image"
LOADER = "usr/lib/systemd/boot/efi/systemd-bootx64.efi"
NUMBER = "5ce44900-0000-4000-8000-00000000000"
DATA = "5ce44900-da7a-4000-8000-000000000000"

# overlay/etc/fstab and overlay/etc/repart.d know these numbers; the last partition grows at the first boot. /home and
# /var/log are their own: neither a user nor a log fills what the system needs (Lynis FILE-6310, ANSSI-BP-028 R28).
LAYOUT = (
    disk.Partition("skerry-esp", disk.ESP, 256 * MiB, NUMBER + "1"),
    disk.Partition("skerry-root", disk.ROOT_X86_64, 4 * GiB, NUMBER + "2"),
    disk.Partition("skerry-log", disk.LINUX, 1 * GiB, NUMBER + "3"),
    disk.Partition("skerry-home", disk.HOME, 256 * MiB, NUMBER + "4"),
    disk.Partition("skerry-data", DATA, 2 * GiB, NUMBER + "5"),
)
ROOT_LINE = f"UUID={NUMBER}2 / ext4 rw,noatime,errors=remount-ro 0 1\n"
PLACES = {"skerry-log": "var/log", "skerry-home": "home", "skerry-data": "var/lib/skerry"}
TRIES = 3
# A container brings its own kernel, and no boot loader.
NOT_IN_CONTAINERS = ("./boot/*", "./efi/*", "./usr/lib/modules/*", "./usr/lib/systemd/boot/*")


def main() -> int:
    """Understand the command line; gives the exit code."""
    options = _options()
    if os.geteuid() != 0:
        print("image: cannot build an image: not root, expected root\nhint: sudo make image", file=sys.stderr)
        return 3
    try:
        print(build(options.kit or make_kit(), options.out, refresh=options.refresh))
    except (SkerryError, disk.DiskError) as error:
        hint = getattr(error, "hint", None)
        print(f"image: {error}" + (f"\nhint: {hint}" if hint else ""), file=sys.stderr)
        return getattr(error, "exit_code", 1)
    except KeyboardInterrupt:
        return 130
    return 0


def build(kit: Path, out: Path, *, refresh: bool = False) -> Path:
    """Build from a kit; gives the image's path."""
    began = time.monotonic()
    about = read_manifest(kit)
    epoch = int(datetime.datetime.fromisoformat(about["built"]).timestamp())
    name = f"skerry-{about['version']}"
    root = out / "work" / "root"
    shutil.rmtree(out / "work", ignore_errors=True)
    root.parent.mkdir(parents=True)

    say(f"Debian {provision.SUITE}")
    copy(debian(out, epoch, refresh=refresh), root)
    provision.add_overlay(root)
    say("Installing the kit, in a booted container without a network: some minutes")
    provision.install_kit(root, kit.resolve(), digest(kit / "kit.gpg"))
    say("Making the initrd, cleaning")
    provision.rebuild_initrd(root, epoch)
    clean.clean(root, epoch)
    say("Packing")
    (out / f"{name}-packages.txt").write_text(package_list(root))
    pack_root(root, out / f"{name}-root.tar.zst")
    image = out / f"{name}.img"
    assemble(root, image, epoch, about["version"])
    write_sums(out, name)
    shutil.rmtree(out / "work")
    say(f"{image.name}: {image.stat().st_size / 1e9:.1f} GB, {image.stat().st_blocks * 512 / 1e9:.1f} of them written")
    say(f"done in {time.monotonic() - began:.0f} s")
    return image


def make_kit() -> Path:
    """Build a kit for the image's Debian, with the station's keys for development."""
    command = [sys.executable, str(ROOT / "kit" / "build.py"), "--suite", provision.SUITE]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(
            "cannot build a kit for the image, see above", hint="make kit, then make image ARGS='--kit DIR'"
        )
    return Path(done.stdout.strip().splitlines()[-1])


def read_manifest(kit: Path) -> dict[str, str]:
    """Read what a kit says of itself; the installer will check that it is true."""
    try:
        lines = (kit / "manifest").read_text().splitlines()
    except OSError as error:
        raise BuildError(
            f"cannot use {kit}: {error.strerror}, expected the folder of a kit", hint="make kit"
        ) from error
    about = {}
    for line in lines:
        if line.startswith("# "):
            name, _, value = line[2:].partition(" ")
            about[name] = value
    if provision.SUITE not in about.get("suites", "").split():
        raise BuildError(
            f"cannot use {kit}: it is for {about.get('suites')}, expected {provision.SUITE}", hint="make kit"
        )
    return about


def debian(out: Path, epoch: int, *, refresh: bool) -> Path:
    """Give the bare Debian that images start from: fetched once for a list of packages, again when told so."""
    wanted = hashlib.sha256("\n".join([provision.SUITE, *provision.packages()]).encode()).hexdigest()[:12]
    cached = out / "cache" / f"{provision.SUITE}-{wanted}"
    if refresh or not cached.exists():
        partial = cached.with_suffix(".partial")
        for folder in (partial, cached):
            shutil.rmtree(folder, ignore_errors=True)
        cached.parent.mkdir(parents=True, exist_ok=True)
        provision.bootstrap(partial, epoch)
        partial.rename(cached)
    return cached


def copy(source: Path, target: Path) -> None:
    """Copy a root with owners, times and attributes."""
    provision.run("copy the root", ["cp", "--archive", "--reflink=auto", source, target])


def package_list(root: Path) -> str:
    """List the packages of a root, one `name version` a line."""
    found: list[str] = []
    for block in (root / "var/lib/dpkg/status").read_text().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and not line.startswith(" "))
        if fields.get("Status", "").endswith(" installed"):
            found.append(f"{fields['Package']} {fields['Version']}")
    return "\n".join(sorted(found)) + "\n"


def pack_root(root: Path, target: Path) -> None:
    """Pack a root for containers, sorted, without what only a machine has."""
    options = ["--sort=name", "--numeric-owner", "--xattrs", "--format=posix", "--pax-option=delete=atime,delete=ctime"]
    options += [f"--exclude={pattern}" for pattern in NOT_IN_CONTAINERS]
    tar = ["tar", f"--directory={root}", *options, "--use-compress-program=zstd -q -6 -T1", "--create"]
    provision.run("pack the root", [*tar, f"--file={target}", "."])


def assemble(root: Path, image: Path, epoch: int, version: str) -> None:
    """Write the disk image. Takes the root apart: each partition gets its folder of it."""
    size = sum(part.size for part in LAYOUT) + 2 * MiB
    partial = image.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    places = dict(zip((p.name for p in LAYOUT), disk.partition(partial, size, NUMBER + "0", LAYOUT), strict=True))
    files = boot_files(root, version)
    fstab = root / "etc/fstab"
    fstab.write_text(ROOT_LINE + fstab.read_text())
    for number, (name, folder) in enumerate(PLACES.items()):
        tree = root.parent / name
        copy_empty(root / folder, tree)
        disk.make_ext4(places[name], tree, label=name, uuid=f"{NUMBER}{number + 3}", epoch=epoch)
    clean.set_times(root, epoch)  # what was taken out changed the times of folders
    disk.make_ext4(places["skerry-root"], root, label="skerry-root", uuid=NUMBER + "2", epoch=epoch)
    disk.make_fat(places["skerry-esp"], files, label="SKERRY-ESP", serial=0x5CE44900, epoch=epoch)
    partial.rename(image)


def copy_empty(folder: Path, tree: Path) -> None:
    """Move a folder out and leave an empty one like it, to be mounted on."""
    state = folder.stat()
    folder.rename(tree)
    folder.mkdir()
    os.chown(folder, state.st_uid, state.st_gid)
    folder.chmod(state.st_mode & 0o7777)


def boot_files(root: Path, version: str) -> dict[str, Path | bytes]:
    """Name the boot partition's files: the loader, one entry that may be tried three times, kernel and initrd.

    Source: the Boot Loader Specification, "Boot counting"; kernel-install's layout, which later updates will use.
    """
    kernels = sorted((root / "boot").glob("vmlinuz-*"))
    if len(kernels) != 1:
        raise BuildError(f"cannot choose a kernel: found {len(kernels)}, expected 1", hint="--refresh")
    release = kernels[0].name.removeprefix("vmlinuz-")
    loader = next(path for path in (root / LOADER, root / f"{LOADER}.signed") if path.exists())
    command_line = (root / "etc/kernel/cmdline").read_text().strip()
    entry = (
        f"title Skerry {version}\nsort-key skerry\nversion {release}\noptions {command_line}\n"
        f"linux /skerry/{release}/linux\ninitrd /skerry/{release}/initrd.img\n"
    )
    return {
        "EFI/BOOT/BOOTX64.EFI": loader,
        "EFI/systemd/systemd-bootx64.efi": loader,
        # No editor: who can type at the boot menu must not add init=/bin/sh. No menu unless a key is held.
        "loader/loader.conf": b"timeout 0\neditor no\n",
        "loader/entries.srel": b"type1\n",
        f"loader/entries/skerry-{release}+{TRIES}.conf": entry.encode(),
        f"skerry/{release}/linux": kernels[0],
        f"skerry/{release}/initrd.img": root / "boot" / f"initrd.img-{release}",
    }


def write_sums(out: Path, name: str) -> None:
    """Write the digests of what was built, for `sha256sum -c`."""
    files = [out / f"{name}{ending}" for ending in (".img", "-packages.txt", "-root.tar.zst")]
    (out / "SHA256SUMS").write_text("".join(f"{digest(file)}  {file.name}\n" for file in files))


def digest(path: Path) -> str:
    """Give a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def say(text: str) -> None:
    """Tell what is being done; the result alone goes to standard output."""
    print(f"image: {text}", file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="images/build.py", description="Build a bootable image of Skerry.")
    add = parser.add_argument
    add("--kit", type=Path, metavar="DIR", help="the kit to install; default: make one with keys for development")
    add("--out", type=Path, metavar="DIR", default=OUT, help="where the image goes; default: build/image")
    add("--refresh", action="store_true", help="fetch Debian's packages again")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
