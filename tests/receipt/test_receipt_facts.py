"""What a receipt takes up of a box, and what it leaves out."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from appliance.config import Config
from appliance.errors import DigestMismatch, FileProblem, InvalidRequest
from appliance.receipt import facts
from appliance.receipt.facts import Given, collect
from tests.receipt.conftest import MACHINE_ID

ANALYZED = """\
✗ UMask=    Files created by service are world-readable by default    0.1

→ Overall exposure level for skerry-inferenced.service: 0.2 SAFE 😀
→ Overall exposure level for /etc/systemd/system/skerry-disk.service: 0.1 SAFE 😀
"""


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_state_of_a_box(root: Path, config: Config) -> None:
    """Settings as digests, links as links, packages as one digest, models with digest and key."""
    state = collect(config, Given(), root)
    assert state.files == {
        "/etc/skerry/config.yaml": sha256("threads: 2\n"),
        "/etc/ssh/sshd_config": sha256("PermitRootLogin no\n"),
        "/etc/sysctl.d/90-skerry.conf": sha256("kernel.kptr_restrict=2\n"),
        "/etc/systemd/system/skerry-inferenced.service": sha256("[Service]\n"),
        "/etc/systemd/system/skerry-old.service": "-> /dev/null",
    }
    assert (state.system.debian, state.system.systemd) == ("12.11", "252.39-1~deb12u2")
    assert state.system.debs is not None
    assert state.system.debs.count == 2
    assert state.system.debs.sha256 == sha256("adduser 3.134 all\nsystemd 252.39-1~deb12u2 amd64\n")
    assert [m.name for m in state.models] == ["tiny"]
    assert state.software.wheels.count > 10


def test_machine_id_and_texts_stay_out(root: Path, config: Config) -> None:
    """Neither the machine id nor the content of any file is in the receipt."""
    (root / "etc/skerry/site.yaml").write_text("secret: hunter2\n")
    text = json.dumps(msgspec.to_builtins(collect(config, Given(), root)))
    assert "/etc/skerry/site.yaml" in text
    for secret in (MACHINE_ID, "hunter2", "PermitRootLogin"):
        assert secret not in text


def test_machine_id_is_hashed_as_systemd_does(root: Path, config: Config) -> None:
    """The id is what systemd-id128 derives from this machine's id for the same application."""
    tool = shutil.which("systemd-id128")
    real = Path("/etc/machine-id")
    if tool is None or not real.exists() or len(real.read_text().strip()) != 32:
        pytest.skip("not run: no systemd-id128, or this machine has no id")
    run = subprocess.run(
        [tool, "machine-id", f"--app-specific={facts.APPLICATION.hex}"], capture_output=True, text=True, check=True
    )
    (root / "etc/machine-id").write_text(real.read_text())
    assert collect(config, Given(), root).box.id == run.stdout.strip()


@pytest.mark.parametrize("content", [None, "uninitialized\n", ""])
def test_machine_without_an_id(root: Path, config: Config, content: str | None) -> None:
    """Before its first boot is over a machine has none; the receipt says so."""
    (root / "etc/machine-id").unlink()
    if content is not None:
        (root / "etc/machine-id").write_text(content)
    assert collect(config, Given(), root).box.id is None


def test_machine_without_dpkg(root: Path, config: Config) -> None:
    """Not Debian: what cannot be known is null."""
    (root / "var/lib/dpkg/status").unlink()
    (root / "etc/debian_version").unlink()
    system = collect(config, Given(), root).system
    assert (system.debian, system.systemd, system.debs) == (None, None, None)


def test_list_of_packages_is_that_of_dpkg_query(config: Config) -> None:
    """The digest of the Debian packages can be had with dpkg's own tool."""
    if shutil.which("dpkg-query") is None:
        pytest.skip("not run: no dpkg-query")
    command = (
        "dpkg-query -W -f='${db:Status-Status} ${Package} ${Version} ${Architecture}\\n'"
        " | sed -n 's/^installed //p' | LC_ALL=C sort | sha256sum"
    )
    run = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    debs = facts._packages(facts._debs(Path("/")))
    assert debs.sha256 == run.stdout.split()[0]


def test_changed_model_is_refused(root: Path, config: Config) -> None:
    """A receipt never says that a model is there which is not what was signed."""
    (Path(config.models_dir) / "tiny" / "tokenizer.json").write_text("{}")
    with pytest.raises(DigestMismatch):
        collect(config, Given(), root)


def test_setting_that_cannot_be_read_is_an_error(root: Path, config: Config) -> None:
    """Nothing is left out in silence."""
    (root / "etc/skerry/big.yaml").write_bytes(bytes(facts.MAX_FILE_BYTES + 1))
    with pytest.raises(FileProblem, match=r"big\.yaml"):
        collect(config, Given(), root)


# --- what other programs say ------------------------------------------------------------------------------------------


def given(tmp_path: Path, **files: str) -> Given:
    paths = {}
    for name, text in files.items():
        paths[name] = tmp_path / name
        paths[name].write_text(text)
    return dataclasses.replace(Given(), **paths)


def test_kit(root: Path, config: Config, tmp_path: Path) -> None:
    """The kit is named by the digest of its manifest; a folder without one is an error."""
    (tmp_path / "kit").mkdir()
    with pytest.raises(FileProblem, match="manifest"):
        collect(config, Given(kit=tmp_path / "kit"), root)
    (tmp_path / "kit" / "manifest").write_text("# skerry-kit 1\n")
    software = collect(config, Given(kit=tmp_path / "kit"), root).software
    assert software.kit_manifest == sha256("# skerry-kit 1\n")


@pytest.mark.parametrize(
    "text",
    [
        ANALYZED,
        '[{"unit":"skerry-inferenced.service","exposure":"0.2"},{"unit":"skerry-disk.service","exposure":"0.1"}]',
    ],
    ids=["text", "json"],
)
def test_exposure(root: Path, config: Config, tmp_path: Path, text: str) -> None:
    """Both forms of systemd-analyze are understood; a unit's path is cut to its name."""
    state = collect(config, given(tmp_path, exposure=text), root)
    assert state.exposure == {"skerry-disk.service": 0.1, "skerry-inferenced.service": 0.2}


def test_exposure_of_the_real_tool(root: Path, config: Config, tmp_path: Path) -> None:
    """What systemd-analyze prints of a unit file is understood."""
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("not run: no systemd-analyze")
    unit = tmp_path / "skerry-test.service"
    unit.write_text("[Service]\nExecStart=/bin/true\nPrivateNetwork=yes\n")
    command = [tool, "security", "--offline=true", "--no-pager", str(unit)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"LC_ALL": "C"})
    (level,) = collect(config, given(tmp_path, exposure=run.stdout), root).exposure.items()
    assert level[0] == "skerry-test.service"
    assert 5 < level[1] < 10


def test_scans(root: Path, config: Config, tmp_path: Path) -> None:
    """Lynis' index, and of oscap the score and the counts of the results, not of the rules."""
    lynis = "lynis_version=3.0.8\nreport_version_major=1\nhardening_index=92\n"
    oscap = (
        '<Benchmark><result>fail</result><TestResult id="x"><profile idref="xccdf_profile_minimal"/>'
        '<rule-result idref="a"><result>pass</result></rule-result><rule-result idref="b"><result>fail</result>'
        '</rule-result><score system="urn:xccdf:scoring:default" maximum="100.000000">87.234</score></TestResult>'
        "</Benchmark>"
    )
    first, second = collect(config, given(tmp_path, lynis=lynis, oscap=oscap), root).scans
    assert (first.tool, first.version, first.score, first.report) == ("lynis", "3.0.8", 92.0, sha256(lynis))
    assert (second.score, second.passed, second.failed) == (87.23, 1, 1)
    assert second.profile == "xccdf_profile_minimal"


def test_settings_that_somebody_else_read(root: Path, config: Config, tmp_path: Path) -> None:
    """A writer who may not read all settings takes their digests from root, and the state is the same."""
    alone = collect(config, Given(), root)
    files = json.dumps(facts.settings(root))
    (root / "etc/ssh/sshd_config").unlink()  # as if it could not be read
    assert collect(config, given(tmp_path, files=files), root) == alone


@pytest.mark.parametrize("name", ["files", "exposure", "lynis", "oscap"])
def test_report_that_is_none(root: Path, config: Config, tmp_path: Path, name: str) -> None:
    """A file of another kind is the caller's mistake, never an empty score."""
    with pytest.raises(InvalidRequest, match="expected"):
        collect(config, given(tmp_path, **{name: "hello\n"}), root)
