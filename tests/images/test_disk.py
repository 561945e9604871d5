"""The file systems of an image: the same content makes the same bytes, whenever and from whichever folder."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from images import disk

UUID = "5ce44900-0000-4000-8000-000000000002"


def test_a_file_system_has_no_times_of_its_own(tmp_path: Path) -> None:
    """Two folders alike, made and read at different times, give one file system, and a sound one."""
    if shutil.which("mke2fs", path=disk.search_path()) is None:
        pytest.skip("not run: mke2fs missing, install e2fsprogs")
    made = []
    for name in ("first", "second"):
        folder, image = tmp_path / name, tmp_path / f"{name}.img"
        (folder / "etc").mkdir(parents=True)
        (folder / "etc" / "file").write_text("text")
        (folder / "link").symlink_to("etc/file")
        for path in (folder / "link", folder / "etc" / "file", folder / "etc", folder):
            os.utime(path, (1_700_000_000, 1_700_000_000), follow_symlinks=False)
        image.write_bytes(b"")
        os.truncate(image, 40 << 20)
        disk.make_ext4(disk.Place(image, 1 << 20, 32 << 20), folder, label="test", uuid=UUID, epoch=1_700_000_000)
        made.append(image)
        time.sleep(1.1)
    assert made[0].read_bytes() == made[1].read_bytes()
    environment = {**os.environ, "PATH": disk.search_path()}
    subprocess.run(["e2fsck", "-fn", f"{made[0]}?offset={1 << 20}"], env=environment, capture_output=True, check=True)
