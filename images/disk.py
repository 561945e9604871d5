"""Write a disk image without root's devices: a partition table and file systems, straight into one sparse file.

    disk = Disk(Path("box.img"), size=4 * GiB, uuid=...)
    esp, root = disk.partition([Partition("esp", ESP, 512 * MiB, uuid), Partition("root", ROOT, REST, uuid)])
    make_fat(esp, {"EFI/BOOT/BOOTX64.EFI": loader}, label="ESP")
    make_ext4(root, folder, label="root", uuid=...)

No loop device, no mount and no kernel module is needed: `sfdisk`, `mkfs.vfat` and `mke2fs` work on a file from an
offset on, and mtools fill FAT. Every identifier and time is given, so that the same content makes the same bytes.

What this does NOT do: encrypt, or sign what boots. Sources: UEFI 2.10 chapter 5 (GPT), the Discoverable Partitions
Specification (type UUIDs), mke2fs(8), mtools(1).
"""

import os
import re
import stat
import subprocess
import tempfile
import uuid as uuids
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

KiB, MiB, GiB = 1 << 10, 1 << 20, 1 << 30
SECTOR = 512
ALIGNMENT = MiB  # what every partitioning tool aligns to; flash and RAID are content with it
FAT_BEGINNING = 315532800  # 1980-01-01, the first day that FAT can write

ESP = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
ROOT_X86_64 = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"
VAR_LOG = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"  # "Linux data": the specification has no type for /var/log
LINUX = VAR_LOG
HOME = "933AC7E1-2EB4-4F13-B844-0E14E2AEF915"
VAR = "4D21B016-B534-45C2-A9FB-5C16E091FD2D"


class DiskError(Exception):
    """A disk image cannot be made."""


@dataclass(frozen=True)
class Partition:
    """One partition: its name is its GPT label."""

    name: str
    type: str
    size: int
    uuid: str
    flags: str = ""


@dataclass(frozen=True)
class Place:
    """Where a file system goes: bytes `start` to `start + size` of a file."""

    file: Path
    start: int
    size: int


def whole(file: Path, size: int) -> Place:
    """Make an empty sparse file and give all of it: for sticks without a partition table."""
    with file.open("wb") as out:
        out.truncate(size)
    return Place(file, 0, size)


def partition(file: Path, size: int, uuid: str, partitions: Sequence[Partition]) -> list[Place]:
    """Make a sparse file with a GPT; gives the place of each partition, in the order given.

    Raises:
        DiskError: they do not fit.
    """
    whole(file, size)
    start, places, lines = ALIGNMENT, [], ["label: gpt", f"label-id: {uuid}"]
    for part in partitions:
        places.append(Place(file, start, part.size))
        attributes = f', attrs="{part.flags}"' if part.flags else ""
        lines.append(
            f"start={start // SECTOR}, size={part.size // SECTOR}, type={part.type}, uuid={part.uuid}"
            f', name="{part.name}"{attributes}'
        )
        start += -(-part.size // ALIGNMENT) * ALIGNMENT
    if start + ALIGNMENT > size:  # the table's copy stands at the end
        raise DiskError(f"cannot partition {file}: {start + ALIGNMENT} bytes are needed, expected at most {size}")
    _run("partition", ["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", file], stdin="\n".join(lines) + "\n")
    return places


def make_ext4(place: Place, folder: Path | None, *, label: str, uuid: str, epoch: int = 0, reserved: int = 1) -> None:
    """Make an ext4 file system that holds a folder with its owners, modes and times.

    Args:
        epoch: the time of creation, and of every inode that mke2fs makes itself.
        reserved: per cent of the blocks that only root may use.
    """
    command = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-L", label, "-U", uuid, "-m", str(reserved)]
    # lazy_itable_init=0: the kernel would zero the tables in the background after the first mount, for minutes.
    command += ["-E", f"offset={place.start},hash_seed={uuid},lazy_itable_init=0,lazy_journal_init=0,nodiscard"]
    command += ["-d", str(folder)] if folder else []
    environment = {"E2FSPROGS_FAKE_TIME": str(max(epoch, 1))}
    _run(f"make {label}", [*command, place.file, f"{place.size // KiB}k"], environment=environment)
    _settle_times(place, label, max(epoch, 1))


def _settle_times(place: Place, label: str, epoch: int) -> None:
    """Give every inode one time of access and of change: mke2fs copies the folder's, which nobody can set."""
    device = f"{place.file}?offset={place.start}"
    groups = _run(f"read {label}", ["dumpe2fs", device]).decode()
    free: set[int] = set()
    for line in re.findall(r"^  Free inodes: (.+)$", groups, re.MULTILINE):
        for part in line.split(", "):
            first, _, last = part.partition("-")
            free.update(range(int(first), int(last or first) + 1))
    total = int(re.findall(r"^Inode count: +(\d+)$", groups, re.MULTILINE)[0])
    used = [number for number in range(1, total + 1) if number not in free]
    lines = [f"set_inode_field <{number}> {field} @{epoch}\n" for number in used for field in ("atime", "ctime")]
    environment = {"E2FSPROGS_FAKE_TIME": str(epoch)}
    _run(f"settle {label}", ["debugfs", "-w", "-f", "-", device], stdin="".join(lines), environment=environment)


def make_fat(
    place: Place, files: Mapping[str, Path | bytes], *, label: str, serial: int = 0x5EE1, epoch: int = 0
) -> None:
    """Make a FAT32 file system with these files, by their path in it."""
    # In a file of its own: mkfs.vfat chooses its geometry by the size of the whole file, whatever it is told.
    with tempfile.TemporaryDirectory(dir=place.file.parent) as scratch:
        alone = whole(Path(scratch, "fat"), place.size)
        options = ["-F", "32", "-n", label, "-i", f"{serial:08x}", "--invariant"]
        _run(f"make {label}", ["mkfs.vfat", *options, alone.file])
        environment = {"SOURCE_DATE_EPOCH": str(max(epoch, FAT_BEGINNING)), "TZ": "UTC"}
        made: set[PurePosixPath] = set()
        for name in sorted(files):
            for folder in reversed(PurePosixPath(name).parents[:-1]):
                if folder not in made:
                    made.add(folder)
                    _run(f"fill {label}", ["mmd", "-i", alone.file, f"::{folder}"], environment=environment)
            source = files[name]
            given = source.read_bytes() if isinstance(source, Path) else source
            # By standard input: then the time is SOURCE_DATE_EPOCH, and not the file's.
            _run(
                f"fill {label}",
                ["mcopy", "-Q", "-i", alone.file, "-", f"::{name}"],
                stdin=given,
                environment=environment,
            )
        _copy(alone.file, place)


def _copy(source: Path, place: Place) -> None:
    """Write a file into its place, leaving out what is all zeros there already."""
    with source.open("rb") as given, place.file.open("r+b") as out:
        for at in range(0, place.size, MiB):
            piece = given.read(MiB)
            if piece.strip(b"\0"):
                out.seek(place.start + at)
                out.write(piece)


def read_fat(place: Place, name: str) -> bytes:
    """Give a file of a FAT file system."""
    at = f"{place.file}@@{place.start}"
    return _run(f"read {name}", ["mcopy", "-Q", "-i", at, f"::{name}", "-"], environment={"MTOOLS_SKIP_CHECK": "1"})


def tree_size(folder: Path) -> int:
    """Give the bytes that an ext4 needs for a folder, about: blocks of data and a quarter KiB an inode."""
    total = 0
    for path, folders, files in os.walk(folder):
        total += 4096 * (1 + len(folders))
        for name in files:
            state = Path(path, name).lstat()
            total += 256 + (-(-state.st_size // 4096) * 4096 if stat.S_ISREG(state.st_mode) else 0)
    return total


def folder_image(file: Path, folder: Path, *, label: str) -> Place:
    """Make an ext4 image that is just large enough for a folder: to carry a kit into a virtual machine."""
    size = int(tree_size(folder) * 1.06) + 24 * MiB
    place = whole(file, -(-size // MiB) * MiB)
    make_ext4(place, folder, label=label, uuid=str(uuids.uuid4()), reserved=0)
    return place


def search_path() -> str:
    """Give where programs are looked for; a user's PATH may lack mke2fs and sfdisk."""
    return f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"


def _run(
    what: str,
    command: Sequence[str | Path],
    *,
    stdin: bytes | str = b"",
    environment: Mapping[str, str] | None = None,
) -> bytes:
    given = stdin.encode() if isinstance(stdin, str) else stdin
    settings = {**os.environ, "PATH": search_path(), "LC_ALL": "C.UTF-8", **(environment or {})}
    done = subprocess.run([str(part) for part in command], input=given, capture_output=True, check=False, env=settings)
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).decode(errors="replace").split())
        raise DiskError(f"cannot {what}: {command[0]} says: {said[-400:] or 'nothing'}")
    return done.stdout
