"""The Debian packages of a kit: which are asked for, and the repository that they become."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from appliance.errors import BuildError
from kit import debs
from kit.openpgp import Signer
from kit.suites import SUITES
from tests.kit.conftest import SUITE


def test_names_and_comments() -> None:
    """A line is a package, for all suites or for one; comments say why."""
    text = "# head\n\npython3   # reason\nlibfoo-1.0+x [trixie]  # only there\nsudo [bookworm]\n"
    assert debs.wanted(SUITES["bookworm"], text) == ["python3", "sudo"]
    assert debs.wanted(SUITES["trixie"], text) == ["python3", "libfoo-1.0+x"]


@pytest.mark.parametrize(
    "line", ["Python3", "python3 sudo", "a", "python3 [sid]", "-o=Dir::Etc", "?essential", "python3=1"]
)
def test_what_is_no_package(line: str) -> None:
    """Anything else than a name is refused with its line: it would reach apt's command line."""
    with pytest.raises(BuildError, match=r"packages\.txt:2"):
        debs.wanted(SUITES["bookworm"], f"# head\n{line}\n")


def test_every_package_has_a_reason() -> None:
    """In the real list a comment stands beside every name, and no name stands twice."""
    lines = [line for line in debs.PACKAGES.read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.search(r" # \S", line) for line in lines), [line for line in lines if " # " not in line]
    for suite in SUITES.values():
        names = debs.wanted(suite, debs.PACKAGES.read_text())
        assert len(names) == len(set(names))


def make_deb(folder: Path, name: str, version: str = "1:1.0") -> Path:
    """A package that holds one file."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("not run: dpkg-deb missing, install dpkg")
    tree = folder / name
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: x <x@skerry.invalid>\n"
        "Description: one line\n and another\n"
    )
    (tree / "content").write_text(name)
    path = folder / f"{name}_{version.replace(':', '%3a')}_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", tree, path], check=True, capture_output=True)
    return path


@pytest.fixture
def repository(tmp_path: Path, signer: Signer) -> Path:
    """A repository of two packages, as it lies in a kit."""
    packages = [make_deb(tmp_path, name) for name in ("first", "second")]
    folder = tmp_path / "kit" / "debs"
    folder.mkdir(parents=True)
    for name, path in debs.repository(SUITE, packages, signer, tmp_path / "index").items():
        shutil.copy(path, folder / name)
    (tmp_path / "kit" / "kit.gpg").write_bytes(signer.public())
    return folder


def apt(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """apt with this repository as its only source, without rights and without a system of its own."""
    if shutil.which("apt-get") is None:
        pytest.skip("not run: apt-get missing; this is no Debian")
    state = repository.parents[1] / "apt"
    for part in ("lists/partial", "archives/partial", "sources"):
        (state / part).mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    (state / "sources" / "kit.sources").write_text(
        f"Types: deb\nURIs: file:{repository}\nSuites: ./\nSigned-By: {repository.parent}/kit.gpg\n"
    )
    options = {
        "Dir::Etc::sourcelist": "/dev/null",
        "Dir::Etc::sourceparts": state / "sources",
        "Dir::State": state,
        "Dir::State::status": state / "status",
        "Dir::Cache": state,
        "APT::Sandbox::User": "root",
        "APT::Architecture": "amd64",
        "APT::Update::Post-Invoke": "",
    }
    command = ["apt-get", "-q", *(part for k, v in options.items() for part in ("-o", f"{k}={v}")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_apt_accepts_the_repository(repository: Path) -> None:
    """apt verifies the index with the kit's key and finds the packages in it."""
    updated = apt(repository, "update")
    assert updated.returncode == 0, updated.stderr
    assert "W:" not in updated.stderr
    found = apt(repository, "install", "--simulate", "first", "second")
    assert "Inst first (1:1.0 Skerry kit:bookworm [all])" in found.stdout, found.stdout + found.stderr


def test_apt_refuses_another_index(repository: Path) -> None:
    """An index that was changed after it was signed is not used, nor is one of another key."""
    (repository / "Packages").write_text((repository / "Packages").read_text().replace("first", "worst"))
    assert apt(repository, "update").returncode != 0


def test_the_index_is_signed_once(tmp_path: Path, signer: Signer) -> None:
    """The same packages keep their index, so that the kit stays the same; another package changes it."""
    packages = [make_deb(tmp_path, "first")]
    before = debs.repository(SUITE, packages, signer, tmp_path / "index")["InRelease"].read_bytes()
    assert debs.repository(SUITE, packages, signer, tmp_path / "index")["InRelease"].read_bytes() == before
    packages.append(make_deb(tmp_path, "second"))
    assert debs.repository(SUITE, packages, signer, tmp_path / "index")["InRelease"].read_bytes() != before
