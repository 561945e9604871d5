"""How the station puts a kit together."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from appliance.errors import BuildError, FileProblem
from kit import assembly, manifest, openpgp
from tests.kit.conftest import CONTENT, ROOT, SUITE, Stick, make_stick


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_folder_holds_exactly_the_files(tmp_path: Path) -> None:
    """What an earlier kit had and this one has not is removed, links and empty folders too."""
    kit = tmp_path / "kit"
    assembly.put_together(kit, {"a/old": b"1", "b": b"2", "manifest": b"m"})
    (kit / "link").symlink_to("b")
    source = tmp_path / "source"
    source.write_bytes(b"3")
    assert assembly.put_together(kit, {"b": b"2", "c/d": source}) == 3
    assert files_of(kit) == {"b": b"2", "c/d": b"3", "manifest": b"m"}
    assert not (kit / "a").exists()


def test_only_what_changed_is_written(tmp_path: Path) -> None:
    """A second time nothing is written; a file of the same size with another content is."""
    source = tmp_path / "source"
    source.write_bytes(b"one")
    files: assembly.Files = {"a": source, "b": b"bytes"}
    assert assembly.put_together(tmp_path / "kit", files) == 2
    assert assembly.put_together(tmp_path / "kit", files) == 0
    source.write_bytes(b"two")
    os.utime(source, (1, 1))
    assert assembly.put_together(tmp_path / "kit", files) == 1
    assert (tmp_path / "kit" / "a").read_bytes() == b"two"


def test_modes_do_not_come_from_the_station(tmp_path: Path) -> None:
    """Only install.sh may be run; a file that only its owner could read is readable on the stick."""
    source = tmp_path / "source"
    source.write_bytes(b"x")
    source.chmod(0o600)
    assembly.put_together(tmp_path / "kit", {"a": source, "install.sh": source})
    assert (tmp_path / "kit" / "a").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "kit" / "install.sh").stat().st_mode & 0o777 == 0o755


def test_a_kit_that_did_not_change_keeps_its_manifest(tmp_path: Path, signer: openpgp.Signer) -> None:
    """Signing the same files later changes nothing, so that boxes know the kit again; a changed file changes it."""
    stick = make_stick(tmp_path / "kit", signer, built=1_800_000_000)
    before = files_of(stick.path)
    make_stick(stick.path, signer, built=1_900_000_000)
    assert files_of(stick.path) == before
    files = {**CONTENT, "kit.gpg": signer.public(), "playbooks/site.yml": b"- hosts: none\n"}
    assembly.put_together(stick.path, files)
    assembly.sign(stick.path, files, (SUITE,), signer, built=1_900_000_000)
    assert manifest.header_of(stick.manifest)["built"] == "2030-03-17T17:46:40Z"


def test_two_stations_build_the_same(tmp_path: Path, signer: openpgp.Signer) -> None:
    """The same files and time give the same kit; only the signature may differ."""
    kits = [files_of(make_stick(tmp_path / name, signer, built=1_800_000_000).path) for name in ("a", "b")]
    for kit in kits:
        del kit["manifest.asc"]
    assert kits[0] == kits[1]


def test_coreutils_read_the_manifest(good_stick: Stick) -> None:
    """`sha256sum -c` accepts a good kit and names a changed file: nobody needs our tools for it."""
    command = ["sha256sum", "--check", "--strict", "--quiet", "manifest"]
    done = subprocess.run(command, cwd=good_stick.path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_header_says_what_the_kit_is(good_stick: Stick) -> None:
    """Version, time, suites, architecture, number and size of the files stand in the signed manifest."""
    header = manifest.header_of(good_stick.manifest)
    sizes = [len(c) for p, c in files_of(good_stick.path).items() if not p.startswith("manifest")]
    assert (header["skerry-kit"], header["suites"], header["architecture"]) == ("1", "bookworm", "amd64")
    assert re.fullmatch(r"20..-..-..T..:..:..Z", header["built"])
    assert (int(header["files"]), int(header["bytes"])) == (len(sizes), sum(sizes))


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "a:b", "a b", "a\nb", "a\\b", "a*", "a?", 'a"', "<a", "a|b", ".hidden", "a/.hidden", "-option", "a/../b", "..",
        "a//b", "/a", "a/", "end.", "aux", "nul.txt", "Com1.whl", "wheels/con", "gr\u00fcn", "x" * 181, "",
    ],
)  # fmt: skip
def test_names_that_a_stick_would_change(path: str) -> None:
    """FAT32, a shell and sha256sum must read every name as it is meant."""
    with pytest.raises(BuildError, match="cannot put"):
        manifest.check_names({path: 1})


@pytest.mark.parametrize(
    "path",
    [
        "libc6_2.36-9+deb12u14_amd64.deb",
        "perl_5%3a5.36~rc1_all.deb",
        "skerry-sandbox@.service",
        "_x",
        "a.b.c",
        "auxiliary",
    ],
)
def test_names_that_are_fine(path: str) -> None:
    """Names as Debian, Python and systemd write them."""
    manifest.check_names({path: 1})


def test_names_that_differ_in_case_alone() -> None:
    """FAT32 takes them for one file."""
    with pytest.raises(BuildError, match="FAT32 takes it for"):
        manifest.check_names({"wheels/PyYAML.whl": 1, "wheels/pyyaml.whl": 1})


def test_a_file_of_4_gib() -> None:
    """FAT32 does not hold it."""
    manifest.check_names({"a": (1 << 32) - 1})
    with pytest.raises(BuildError, match="4 GiB"):
        manifest.check_names({"a": 1 << 32})


def test_install_sh_has_the_same_rule_for_names() -> None:
    """Station and box agree on what a name is."""
    rule = re.search(r"^readonly PART='(.*)'$", (ROOT / "kit" / "install.sh").read_text(), re.MULTILINE)
    assert rule
    assert rule[1] == manifest.NAME.pattern


# --- what goes with it ------------------------------------------------------------------------------------------------


def test_playbooks_come_without_caches_and_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches and hidden files stay at the station; a link is an error, as no stick holds it."""
    monkeypatch.setattr(assembly, "ROOT", tmp_path)
    for path in ("site.yml", "roles/a/__pycache__/x.pyc", ".ansible/x", "site.retry", "roles/a/tasks/main.yml"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    assert [str(p.relative_to(tmp_path)) for p in assembly.tree(tmp_path)] == ["roles/a/tasks/main.yml", "site.yml"]
    (tmp_path / "link").symlink_to("site.yml")
    with pytest.raises(FileProblem, match="it is a link"):
        list(assembly.tree(tmp_path))


def test_no_host_of_a_registry_is_written_down() -> None:
    """Where packages come from is the station's business: no file of kit/ names a server."""
    for file in (ROOT / "kit").iterdir():
        if file.is_file():
            assert not re.search(r"\b(https?|ftp)://|\b(pypi|debian)\.(org|net)\b", file.read_text()), file.name


@pytest.mark.parametrize("name", ["README.txt", "site.example.yaml"])
def test_texts_fit_a_console(name: str) -> None:
    """What a person reads on a bare console has 80 columns and plain ASCII."""
    text = (ROOT / "kit" / name).read_text(encoding="ascii")
    assert max(map(len, text.splitlines())) <= 80


def test_the_example_uses_real_variables() -> None:
    """Every variable of site.example.yaml, those in comments too, is one of the roles'."""
    text = (ROOT / "kit" / "site.example.yaml").read_text()
    assert yaml.safe_load(text)
    named = set(re.findall(r"^(?:# )?([a-z]+_[a-z_]+):", text, re.MULTILINE))
    known = set()
    for specification in (ROOT / "playbooks" / "roles").glob("*/meta/argument_specs.yml"):
        known |= set(yaml.safe_load(specification.read_text())["argument_specs"]["main"].get("options") or {})
    assert len(named) >= 3
    assert named <= known, named - known


def test_the_development_key_is_made_once(tmp_path: Path) -> None:
    """The second kit has the first one's key, and the note beside it says what it is not for."""
    station = tmp_path / "s"
    first = openpgp.developer(station).public()
    try:
        assert openpgp.developer(station).public() == first
        assert openpgp.developer(station).fingerprint()
    finally:
        openpgp.end_agent(station / "gnupg")
    assert "development" in (station / "README.txt").read_text()


def test_a_key_that_is_not_there(signer: openpgp.Signer) -> None:
    """A fingerprint that the GnuPG home does not hold is named."""
    with pytest.raises(BuildError, match="cannot "):
        openpgp.Signer(signer.home, "0123456789ABCDEF").public()
