"""`skerry receipt`: write, verify and show, as the provisioning and an auditor do."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from appliance.trust.keys import generate
from tests.fakes.package import make_tiny_package

SKERRY = [sys.executable, "-c", "from appliance.cli.main import main; main()"]


@pytest.fixture
def state_dir(tmp_path):
    """A box in a folder with a model, a folder for receipts, and a key of the box's own."""
    root = tmp_path / "b"
    for name in ("models", "keys", "receipts"):
        (root / name).mkdir(parents=True)
        (root / name).chmod(0o755)
    station = generate()
    station.public().save(root / "keys" / "station.pub")
    make_tiny_package(root / "models", "tiny", station)
    generate().save(root / "receipt.key")
    return root


@pytest.fixture
def receipt(skerry, state_dir):
    """Run `skerry receipt ...` on that box."""
    return lambda *arguments: skerry("--state-dir", state_dir, "receipt", *arguments)


def test_write_then_unchanged(receipt, state_dir):
    """The first run writes and says so, the second says that nothing changed; both end with 0."""
    first = receipt("write", "--key", state_dir / "receipt.key")
    second = receipt("write", "--key", state_dir / "receipt.key")
    assert (first.code, first.err, second.code, second.err) == (0, "", 0, "")
    assert first.out.startswith("written")
    assert second.out.split() == ["unchanged", first.out.split()[1]]
    value = json.loads(receipt("write", "--key", state_dir / "receipt.key", "--json").out)
    assert (value["changed"], value["path"]) == (False, first.out.split()[1])


def test_new_setting_is_a_new_receipt(receipt, state_dir, tmp_path):
    """An exposure that was not there before is something to say."""
    receipt("write", "--key", state_dir / "receipt.key")
    (tmp_path / "exposure").write_text("Overall exposure level for skerry-x.service: 0.2 SAFE\n")
    result = receipt("write", "--key", state_dir / "receipt.key", "--exposure", tmp_path / "exposure")
    assert result.out.startswith("written")
    assert "receipt-000002" in result.out
    assert "0.2 skerry-x.service" in receipt("show").out


def test_files_for_a_writer_who_may_not_read(receipt, state_dir, tmp_path):
    """What `files` prints is what `write --files` takes, and nothing changes by the detour."""
    (tmp_path / "files").write_text(receipt("files").out)
    receipt("write", "--key", state_dir / "receipt.key")
    result = receipt("write", "--key", state_dir / "receipt.key", "--files", tmp_path / "files")
    assert result.out.startswith("unchanged")


def test_key_from_the_service_manager(receipt, state_dir, tmp_path, monkeypatch):
    """Without --key the credential of this name is the key; without either, the way out is named."""
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    result = receipt("write")
    assert result.code == 2
    assert "skerry key new" in result.err
    (tmp_path / "credentials").mkdir()
    (state_dir / "receipt.key").rename(tmp_path / "credentials" / "receipt-key")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    # As systemd gives it to a user who is not root: an ACL's mask shows as rights of the group.
    (tmp_path / "credentials" / "receipt-key").chmod(0o440)
    assert receipt("write").out.startswith("written")
    (tmp_path / "credentials" / "receipt-key").chmod(0o444)
    assert "lets others read it" in receipt("write").err


def test_root_without_capabilities_is_enough(state_dir, tmp_path):
    """What the confined unit is: root's files, no capability, no program started."""
    setpriv = shutil.which("setpriv")
    if setpriv is None or os.getuid() != 0:
        pytest.skip("not run: needs root and setpriv")
    drop = [setpriv, "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
    command = [*SKERRY, "--state-dir", str(state_dir), "receipt", "write", "--key", str(state_dir / "receipt.key")]
    run = subprocess.run([*drop, *command], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("written")


def test_without_a_folder(receipt, state_dir):
    """The folder is the provisioning's to make; the error says how."""
    (state_dir / "receipts").rmdir()
    result = receipt("write", "--key", state_dir / "receipt.key")
    assert result.code == 1
    assert "mkdir -p -m 755" in result.err


def test_changed_model_stops_the_receipt(receipt, state_dir):
    """Code 5, and no receipt."""
    (state_dir / "models" / "tiny" / "tokenizer.json").write_text("{}")
    assert receipt("write", "--key", state_dir / "receipt.key").code == 5
    assert os.listdir(state_dir / "receipts") == []


def test_verify(receipt, state_dir, tmp_path):
    """With the box's key it is right; with another key, or changed, it is not: code 5."""
    receipt("write", "--key", state_dir / "receipt.key")
    (name,) = (n for n in os.listdir(state_dir / "receipts") if n.startswith("receipt-"))
    path, key = state_dir / "receipts" / name, state_dir / "receipts" / "box.pub"
    good = receipt("verify", path, "--key", key)
    assert (good.code, good.err) == (0, "")
    assert good.out.startswith("verified")
    assert json.loads(receipt("verify", path, "--key", key, "--json").out)["verified"] is True
    generate().public().save(tmp_path / "other.pub")
    assert receipt("verify", path, "--key", tmp_path / "other.pub").code == 5
    path.write_text(path.read_text().replace("e", "f", 1))
    bad = receipt("verify", path, "--key", key)
    assert (bad.code, bad.out) == (5, "")
    path.unlink()
    assert receipt("verify", path, "--key", key).code == 1


def test_verify_by_name_warns_of_the_key_beside(receipt, state_dir):
    """Without --key the key of the same folder is taken, and what that is worth is said."""
    receipt("write", "--key", state_dir / "receipt.key")
    for arguments in ((), sorted(os.listdir(state_dir / "receipts"))[1:]):
        result = receipt("verify", *arguments)
        assert result.code == 0
        assert "see --key" in result.err


def test_show(receipt, state_dir):
    """One screen, by name or the newest, and it says that it verified nothing."""
    assert receipt("show").code == 1
    receipt("write", "--key", state_dir / "receipt.key")
    result = receipt("show")
    assert result.code == 0
    lines = result.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("model") and "tiny" in line for line in lines)
    assert lines[-1].startswith("signature: not checked")
    assert json.loads(receipt("show", "--json").out)["verified"] is False
    assert receipt("show", "receipt-9.json").code == 2


def test_receipt_cannot_drive_the_terminal(receipt, state_dir, tmp_path):
    """A receipt from elsewhere may hold anything; it is shown, not obeyed."""
    import msgspec

    from appliance.receipt.statement import Box, seal
    from tests.receipt.test_receipt_statement import PREDICATE, STATE

    odd = msgspec.structs.replace(STATE, box=Box(hostname="\x1b[2Jbox", id=None))
    path = tmp_path / "odd.json"
    path.write_bytes(seal(msgspec.structs.replace(PREDICATE, state=odd), generate()))
    result = receipt("show", path)
    assert result.code == 0
    assert "\\x1b[2Jbox" in result.out
    assert "\x1b" not in result.out
