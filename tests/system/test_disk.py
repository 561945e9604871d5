"""Watermarks: levels, file systems, settings."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.errors import ConfigError
from appliance.system import disk

MARKS = disk.Settings()


def told(*, used: int, free: int, reserved: int = 0, inodes: tuple[int, int] = (10, 90)) -> Any:
    """What statvfs says, in blocks of 4 KiB; `reserved` is free for root only."""
    return SimpleNamespace(
        f_frsize=4096,
        f_blocks=used + free + reserved,
        f_bfree=free + reserved,
        f_bavail=free,
        f_files=sum(inodes),
        f_ffree=inodes[1],
        f_favail=inodes[1],
    )


@pytest.mark.parametrize(
    ("name", "said", "used", "level"),
    [
        ("empty", told(used=0, free=100), 0, "ok"),
        ("below the first mark", told(used=79, free=21), 79, "ok"),
        ("a little more than that", told(used=791, free=209), 80, "warn"),
        ("on the first mark", told(used=80, free=20), 80, "warn"),
        ("below the second", told(used=89, free=11), 89, "warn"),
        ("on the second", told(used=90, free=10), 90, "critical"),
        ("full", told(used=100, free=0), 100, "critical"),
        ("full but for root's reserve", told(used=95, free=0, reserved=5), 100, "critical"),
        ("no inodes left", told(used=1, free=99, inodes=(100, 0)), 1, "critical"),
        ("a file system that counts no inodes", told(used=1, free=99, inodes=(0, 0)), 1, "ok"),
        ("one without any blocks, like /proc", told(used=0, free=0, inodes=(0, 0)), 0, "ok"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_levels(name: str, said: Any, used: int, level: str) -> None:
    """Blocks or inodes, whichever is worse; a mark belongs to the level that it opens; rounded up."""
    found = disk.judge("/", ["root"], said, MARKS)
    assert (found.used_percent, found.level) == (used, level)
    assert (found.next_step is None) == (level == "ok")


def test_sizes_are_those_of_df() -> None:
    """Size is all of it, free is what a user who is not root may use."""
    found = disk.judge("/", ["root"], told(used=50, free=30, reserved=20), MARKS)
    assert (found.size_bytes, found.free_bytes, found.used_percent) == (100 * 4096, 30 * 4096, 63)


def test_next_steps_fit_the_places() -> None:
    """Each known place has advice of its own, together they have all of it, an unknown one still has some."""
    assert "journalctl" in disk.next_step(["log"])
    assert "skerry model list" in disk.next_step(["data"])
    assert disk.next_step(["log", "data"]) == disk.next_step(["data", "log"])
    assert disk.next_step(["audit"])


def test_places_of_one_file_system_are_one_finding(tmp_path: Path) -> None:
    """Two folders of one disk, one of which is not there yet, are told together, at the mount point."""
    settings = disk.Settings(places={"data": str(tmp_path / "not" / "yet"), "log": str(tmp_path)})
    (found,) = disk.survey(settings).found
    assert found.places == ("data", "log")
    assert os.path.ismount(found.mount_point)
    assert os.stat(found.mount_point).st_dev == tmp_path.stat().st_dev


def test_real_file_systems_are_told_apart() -> None:
    """/proc is another file system than the root."""
    found = disk.survey(disk.Settings(places={"root": "/", "other": "/proc"})).found
    assert [f.mount_point for f in found] == ["/", "/proc"]


def test_place_that_cannot_be_read_leaves_the_others(tmp_path: Path) -> None:
    """A broken disk is a problem of its own, and the others are looked at all the same."""

    def ask(path: str) -> Any:
        if path == "/proc":
            raise OSError(5, "Input/output error")
        return told(used=1, free=1)

    survey = disk.survey(disk.Settings(places={"bad": "/proc", "root": "/"}), ask)
    assert [f.mount_point for f in survey.found] == ["/"]
    assert [e.message for e in survey.problems] == ["cannot look at the file system of /proc: Input/output error"]


def test_settings_of_a_file(tmp_path: Path) -> None:
    """A file replaces the marks and the places; none is the defaults."""
    file = tmp_path / "disk.yaml"
    assert disk.load_settings(file) == disk.Settings() == disk.Settings(places=dict(disk.PLACES))
    file.write_text("warn_percent: 50\nplaces: {audit: /var/lib/skerry/audit}\n")
    assert disk.load_settings(file) == disk.Settings(warn_percent=50, places={"audit": "/var/lib/skerry/audit"})


@pytest.mark.parametrize(
    "text",
    [
        "nonsense: 1\n",
        "warn_percent: 0\n",
        "warn_percent: 101\n",
        "warn_percent: '80'\n",
        "warn_percent: 95\n",
        "places: {data: var}\n",
        "places: {'Data ': /var}\n",
    ],
)
def test_settings_that_are_refused(tmp_path: Path, text: str) -> None:
    """Unknown keys, marks that are none or in the wrong order, relative paths, odd names."""
    file = tmp_path / "disk.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"disk\.yaml"):
        disk.load_settings(file)
