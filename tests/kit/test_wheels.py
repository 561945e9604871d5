"""The lock files, and what is made of them."""

import re
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from appliance.errors import BuildError
from kit import wheels
from kit.suites import SUITES
from tests.kit.conftest import ROOT


def wheel(folder: Path, name: str, version: str, *requires: str) -> Path:
    """A wheel that has nothing but metadata."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {r}" for r in requires),
    ]
    with zipfile.ZipFile(path, "w") as z:
        z.writestr(f"{name}-{version}.dist-info/METADATA", "\n".join(lines) + "\n\n")
    return path


@pytest.mark.parametrize(
    ("suite", "needed"),
    [("bookworm", {"app", "old", "extra", "deep"}), ("trixie", {"app", "new", "extra", "deep"})],
)
def test_requirements_are_followed_for_the_boxs_python(tmp_path: Path, suite: str, needed: set[str]) -> None:
    """Markers are judged for the Python of the box, not the station's; extras that nobody asked for are left out."""
    found = {
        "app": wheel(
            tmp_path,
            "app",
            "1.0",
            'old; python_version < "3.12"',
            'new>=2; python_version >= "3.12"',
            'never; sys_platform == "win32"',
            "extra[fast]",
            'unwanted; extra == "other"',
        ),
        "old": wheel(tmp_path, "old", "1.0"),
        "new": wheel(tmp_path, "new", "2.1"),
        "extra": wheel(tmp_path, "extra", "1.0", 'deep; extra == "fast"', 'absent; extra == "slow"'),
        "deep": wheel(tmp_path, "deep", "1.0", "app"),
    }
    assert wheels.closure(["app"], found, SUITES[suite]) == needed


@pytest.mark.parametrize(("requires", "words"), [("absent", "absent"), ("other>=2", "other>=2")])
def test_what_is_missing_is_named(tmp_path: Path, requires: str, words: str) -> None:
    """A requirement that no wheel meets is an error of the station, not of the box at night."""
    found = {"app": wheel(tmp_path, "app", "1.0", requires), "other": wheel(tmp_path, "other", "1.0")}
    with pytest.raises(BuildError, match=re.escape(words)) as caught:
        wheels.closure(["app"], found, SUITES["bookworm"])
    assert caught.value.hint == "python kit/build.py lock"


@pytest.mark.parametrize("suite", SUITES.values(), ids=lambda s: s.name)
def test_the_locks_fit_the_project(suite: wheels.Suite) -> None:
    """Every requirement of pyproject.toml is pinned in a version that will do: else run kit/build.py lock."""
    pins = {pin.name: pin for pin in wheels.read_lock(suite)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in map(Requirement, [*project["dependencies"], wheels.ANSIBLE, wheels.PIP]):
        pin = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pin.version), f"{requirement} is pinned to {pin.version}"
    assert len(pins) == len(wheels.read_lock(suite))


def test_a_line_that_is_no_pin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock without a digest is refused, with its line."""
    monkeypatch.setattr(wheels, "lock_file", lambda suite: tmp_path / "some.lock")
    (tmp_path / "some.lock").write_text("# comment\nansible-core==2.19.14\n")
    with pytest.raises(BuildError, match=r"some\.lock:2"):
        wheels.read_lock(SUITES["bookworm"])


def test_what_a_box_installs_is_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two files of requirements, each line with the digest of its wheel; Ansible is not in the runtime's."""
    monkeypatch.setattr(wheels, "ANSIBLE", "ansible-core")
    own = wheel(tmp_path, "skerry", "0.1.0", "shared")
    found = {
        "ansible-core": wheel(tmp_path, "ansible_core", "2.19.1", "shared"),
        "shared": wheel(tmp_path, "shared", "1.0"),
        "pip": wheel(tmp_path, "pip", "26.0"),
    }
    files = wheels.requirement_files(SUITES["trixie"], found, own)
    names = {name: [line.split(b"==")[0] for line in text.splitlines()] for name, text in files.items()}
    assert names == {"ansible-cp313.txt": [b"ansible-core", b"shared"], "runtime-cp313.txt": [b"shared", b"skerry"]}
    assert all(
        re.search(rb"--hash=sha256:[0-9a-f]{64}$", line) for text in files.values() for line in text.splitlines()
    )


def test_our_wheel_is_reproducible(tmp_path: Path) -> None:
    """Two builds of this tree give the same bytes; it holds the two packages and nothing else."""
    a, b = wheels.build_own(tmp_path / "a"), wheels.build_own(tmp_path / "b")
    assert a.read_bytes() == b.read_bytes()
    assert wheels.build_own(tmp_path / "a") == a
    with zipfile.ZipFile(a) as z:
        assert {n.split("/")[0].partition("-")[0] for n in z.namelist()} == {"appliance", "tui", "skerry"}
