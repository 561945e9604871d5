"""USB sticks as files: FAT32 or ext4, with or without a partition table, for `qemu.Box.usb_attach`.

    stick = usb.stick(tmp_path / "stick.img", {"skerry/operator.pub": key.read_bytes()}, label="SKERRY")
    with qemu.boot(machine) as box:
        box.usb_attach(stick)
        ...
        box.usb_detach()
    assert usb.read(stick, "report.txt")

What a guest writes is in the file once the guest has flushed it, as on a real stick.
"""

import uuid
from collections.abc import Mapping
from pathlib import Path

from images.disk import LINUX, MiB, Partition, Place, make_ext4, make_fat, partition, read_fat, whole

MICROSOFT_DATA = "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7"  # what other systems give a stick's partition


def stick(
    file: Path,
    files: Mapping[str, Path | bytes],
    *,
    label: str = "STICK",
    size_mib: int = 64,
    partitioned: bool = True,
) -> Path:
    """Write a FAT32 stick with these files, by their path on it.

    Args:
        partitioned: with a GPT and one partition, as sticks are sold; else the file system is the whole stick.
    """
    make_fat(_place(file, size_mib, MICROSOFT_DATA, partitioned=partitioned), files, label=label)
    return file


def ext4_stick(file: Path, folder: Path, *, label: str = "STICK", size_mib: int = 64, partitioned: bool = True) -> Path:
    """Write an ext4 stick that holds a folder."""
    place = _place(file, size_mib, LINUX, partitioned=partitioned)
    make_ext4(place, folder, label=label, uuid=str(uuid.uuid4()), reserved=0)
    return file


def read(file: Path, name: str, *, partitioned: bool = True) -> bytes:
    """Give a file from a FAT stick."""
    size = file.stat().st_size
    start = MiB if partitioned else 0
    return read_fat(Place(file, start, size - start), name)


def _place(file: Path, size_mib: int, kind: str, *, partitioned: bool) -> Place:
    if not partitioned:
        return whole(file, size_mib * MiB)
    parts = [Partition("stick", kind, size_mib * MiB, str(uuid.uuid4()))]
    return partition(file, (size_mib + 2) * MiB, str(uuid.uuid4()), parts)[0]
