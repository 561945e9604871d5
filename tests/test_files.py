"""Durable writes and directories that appear whole or not at all."""

import os
from pathlib import Path

import pytest

from appliance.errors import FileProblem
from appliance.files import publish_directory, read_limited, write_durably


def test_write_replaces_whole_file(tmp_path: Path) -> None:
    """The file has the new bytes and mode, and nothing else is left in the folder."""
    path = tmp_path / "f"
    path.write_text("old and longer")
    write_durably(path, b"new", 0o640)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["f"]


def test_order_of_system_calls_is_the_promised_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsync of the file comes before the rename, fsync of the folder after it."""
    calls = []
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(fd: int) -> None:
        calls.append("fsync " + ("folder" if os.path.isdir(f"/proc/self/fd/{fd}") else "file"))
        real_fsync(fd)

    def replace(self: Path, target: Path) -> Path:
        calls.append("rename")
        return real_replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    write_durably(tmp_path / "f", b"x")
    assert calls == ["fsync file", "rename", "fsync folder"]


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is an error with a hint; the old file and no temporary one is there."""
    path = tmp_path / "f"
    path.write_text("old")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileProblem, match="No space left") as e:
        write_durably(path, b"new")
    assert e.value.hint
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["f"]


def test_directory_appears_whole(tmp_path: Path) -> None:
    """Inside the block the target is not there; after it, it is, with modes that no umask changed."""
    before = os.umask(0o002)
    try:
        with publish_directory(tmp_path / "d") as work:
            (work / "a").write_text("1")
            assert not (tmp_path / "d").exists()
    finally:
        os.umask(before)
    assert (tmp_path / "d" / "a").read_text() == "1"
    assert (tmp_path / "d" / "a").stat().st_mode & 0o777 == 0o644
    assert os.listdir(tmp_path) == ["d"]


def test_failed_directory_leaves_nothing(tmp_path: Path) -> None:
    """When the block fails, nothing new is there, and what was there is unchanged."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "precious").write_text("1")
    with pytest.raises(RuntimeError), publish_directory(tmp_path / "d", replace=True) as work:  # noqa: PT012
        (work / "half").write_text("x")
        raise RuntimeError
    assert os.listdir(tmp_path) == ["d"]
    assert os.listdir(tmp_path / "d") == ["precious"]
    with pytest.raises(FileProblem, match="exists"), publish_directory(tmp_path / "d"):
        pass
    with publish_directory(tmp_path / "d", replace=True) as work:
        (work / "new").write_text("x")
    assert os.listdir(tmp_path) == ["d"]
    assert os.listdir(tmp_path / "d") == ["new"]


def test_what_a_killed_process_left_is_taken_away(tmp_path: Path) -> None:
    """A half directory of a dead process goes, one of a living process stays, and a target moved aside comes back."""
    import subprocess
    import sys

    code = """
import sys, time
from pathlib import Path
from appliance.files import publish_directory
with publish_directory(Path(sys.argv[1])) as work:
    (work / "half").write_text("x")
    print("working", flush=True)
    time.sleep(60)
"""
    living, dead = (
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "d")], stdout=subprocess.PIPE) for _ in range(2)
    )
    for process in (living, dead):
        assert process.stdout
        assert process.stdout.readline() == b"working\n"
    dead.kill()
    dead.communicate()
    (tmp_path / ".e.1.old").mkdir()
    (tmp_path / ".e.1.old" / "precious").write_text("1")
    try:
        with publish_directory(tmp_path / "d") as work:
            (work / "new").write_text("x")
        with pytest.raises(FileProblem), publish_directory(tmp_path / "e"):
            pass
        left = [n for n in os.listdir(tmp_path) if n.startswith(".")]
        assert len(left) == 1
    finally:
        living.kill()
        living.communicate()
    assert os.listdir(tmp_path / "d") == ["new"]
    assert os.listdir(tmp_path / "e") == ["precious"]


def test_large_and_missing_files_are_refused(tmp_path: Path) -> None:
    """Reading is bounded, and errors name the file."""
    (tmp_path / "f").write_bytes(b"x" * 11)
    assert read_limited(tmp_path / "f", 11) == b"x" * 11
    with pytest.raises(FileProblem, match="larger than 10"):
        read_limited(tmp_path / "f", 10)
    with pytest.raises(FileProblem, match="No such file"):
        read_limited(tmp_path / "g", 10)


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    """A FIFO without a writer would make a reader wait for ever; a folder is no file either."""
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path):
        with pytest.raises(FileProblem, match=r"not a regular file|Is a directory"):
            read_limited(path, 10)
