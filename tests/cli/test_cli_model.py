"""`skerry model` and `skerry key`: packages and keys on disk, models of a daemon."""

import json
import os
import shutil
import sys

import pytest

from appliance.models.package import sign_package
from appliance.trust import keys
from tests.fakes.daemon import error_body, model_body, says_json
from tests.fakes.package import make_tiny_package


@pytest.fixture
def key(tmp_path):
    """A key pair in files, and a directory that trusts it."""
    private = keys.generate()
    private.save(tmp_path / "demo.key")
    (tmp_path / "trusted").mkdir(mode=0o755)
    private.public().save(tmp_path / "trusted" / "demo.pub")
    return private


@pytest.fixture
def package(tmp_path):
    return make_tiny_package(tmp_path)


# --- keys -------------------------------------------------------------------------------------------------------------


def test_a_new_key(skerry, tmp_path):
    """`key new` makes a private file for its owner only and a public one; `key show` knows both by one id."""
    result = skerry("key", "new", "demo", "--out", tmp_path / "k", "--json")
    made = json.loads(result.out)
    assert "not encrypted" in result.err
    assert (tmp_path / "k" / "demo.key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "k" / "demo.pub").stat().st_mode & 0o777 == 0o644
    for name in ("demo.key", "demo.pub"):
        shown = json.loads(skerry("key", "show", tmp_path / "k" / name, "--json").out)
        assert shown["key_id"] == made["key_id"]
        assert shown["private"] is (name == "demo.key")
    pem = skerry("key", "show", tmp_path / "k" / "demo.key", "--pem").out
    assert pem == (tmp_path / "k" / "demo.pub").read_text()


def test_a_key_with_a_passphrase(skerry, tmp_path):
    """The passphrase file's line, with or without its end, opens the key; without it the key stays shut."""
    (tmp_path / "pass").write_text("open sesame\n")
    assert "note" not in skerry("key", "new", "a", "--out", tmp_path, "--passphrase-file", tmp_path / "pass").err
    assert "ENCRYPTED" in (tmp_path / "a.key").read_text()
    (tmp_path / "pass").write_text("open sesame")
    assert skerry("key", "show", tmp_path / "a.key", "--passphrase-file", tmp_path / "pass").code == 0
    assert skerry("key", "show", tmp_path / "a.key").code == 2


@pytest.mark.parametrize("existing", ["a.key", "a.pub"])
def test_a_key_is_never_replaced(skerry, tmp_path, existing):
    """If one of the files is there, nothing is written at all."""
    (tmp_path / existing).write_text("precious")
    assert skerry("key", "new", "a", "--out", tmp_path).code == 1
    assert [p.name for p in tmp_path.iterdir() if p.name != "home"] == [existing]
    assert (tmp_path / existing).read_text() == "precious"


@pytest.mark.parametrize("name", ["../a", "a/b", ".hidden", "", ".."])
def test_key_names_are_plain(skerry, tmp_path, name):
    """A key's name cannot lead elsewhere."""
    assert skerry("key", "new", name, "--out", tmp_path / "k").code == 2
    assert not (tmp_path / "k").exists()


@pytest.mark.parametrize("content", ["", "\n", "a\nb\n"])
def test_a_passphrase_is_one_line(skerry, tmp_path, content):
    """An empty passphrase file, or one with several lines, is a mistake and makes no key."""
    (tmp_path / "pass").write_text(content)
    assert skerry("key", "new", "a", "--out", tmp_path, "--passphrase-file", tmp_path / "pass").code == 2
    assert not (tmp_path / "a.key").exists()


# --- packages ---------------------------------------------------------------------------------------------------------


def test_sign_then_verify(skerry, tmp_path, package, key):
    """What `sign` signs, `verify` accepts with the key's id; also from inside the folder."""
    assert skerry("model", "sign", package, "--key", tmp_path / "demo.key").code == 0
    verified = json.loads(skerry("model", "verify", package, "--keys", tmp_path / "trusted", "--json").out)
    assert verified["verified"] is True
    assert verified["key_id"] == key.public().key_id
    lines = skerry("model", "verify", package, "--keys", tmp_path / "trusted").out.splitlines()
    assert lines[0].split() == ["verified", "tiny"]
    assert max(map(len, lines)) <= 80


def test_verify_here(skerry, tmp_path, package, key, monkeypatch):
    """A package is found by `.` too; its name is the folder's."""
    sign_package(package, key)
    monkeypatch.chdir(package)
    assert skerry("model", "verify", ".", "--keys", tmp_path / "trusted").code == 0


def test_a_changed_package_is_refused(skerry, tmp_path, package, key):
    """Verification failures end with 5 and name the file."""
    sign_package(package, key)
    (package / "tokenizer.json").write_text("{}")
    result = skerry("model", "verify", package, "--keys", tmp_path / "trusted", "--json")
    assert (result.code, result.out) == (5, "")
    assert "tokenizer.json" in result.err


def test_install(skerry, tmp_path, package, key):
    """`install` puts signed packages into a box, says what changed, and leaves them alone the second time."""
    box = ("--state-dir", tmp_path / "box")
    arguments = ("model", "install", package, "--keys", tmp_path / "trusted")
    skerry("model", "sign", package, "--key", tmp_path / "demo.key")
    assert skerry(*box, *arguments, "--dry-run").out.startswith("would install  tiny\n")
    assert not (tmp_path / "box").exists()
    assert skerry(*box, *arguments).out.startswith("installed      tiny\n")
    assert skerry(*box, *arguments).out.startswith("unchanged      tiny\n")
    assert json.loads(skerry(*box, *arguments, "--json").out)["models"][0]["changed"] is False
    assert (
        skerry(
            "--state-dir", tmp_path / "box", "model", "verify", tmp_path / "box" / "models" / "tiny", *arguments[3:]
        ).code
        == 0
    )


def test_install_of_an_unsigned_package(skerry, tmp_path, package, key):
    """Without a signature nothing is written; the exit code is that of a failed verification."""
    result = skerry("--state-dir", tmp_path / "box", "model", "install", package, "--keys", tmp_path / "trusted")
    assert result.code == 5
    assert not (tmp_path / "box").exists()


def test_verify_of_a_file_of_a_package(skerry, daemon, package, key):
    """A file is not a package: that is said, with the folder to name, and the daemon is not asked for such a model."""
    result = skerry("model", "verify", package / "card.yaml")
    assert (result.code, result.out) == (2, "")
    assert "a file, expected a package's folder" in result.err
    assert f"skerry model verify {package}\n" in result.err
    assert daemon.requests == []


def test_the_box_has_its_own_keys(skerry, tmp_path, package, key):
    """Without --keys the key directory of the box decides."""
    sign_package(package, key)
    (tmp_path / "box" / "keys").mkdir(parents=True, mode=0o755)
    assert skerry("--state-dir", tmp_path / "box", "model", "verify", package).code == 5
    shutil.copy(tmp_path / "trusted" / "demo.pub", tmp_path / "box" / "keys")
    assert skerry("--state-dir", tmp_path / "box", "model", "verify", package).code == 0


def test_inspect(skerry, tmp_path, package, key):
    """The card as a table, the parameters as a picture, the embedding's share, and that nothing was verified."""
    result = skerry("model", "inspect", package)
    assert result.code == 0
    assert "60.0% are the embedding table" in result.out
    assert "signature: NONE" in result.out
    assert max(map(len, result.out.splitlines())) <= 80
    bar = next(line for line in result.out.splitlines() if line.startswith("embedding"))
    assert bar.count("\u2588") + bar.count("#") == 18  # 60 % of 30
    sign_package(package, key)
    assert "signature: there, not checked" in skerry("model", "inspect", package).out


def test_inspect_json(skerry, package):
    """--json carries the whole card, and never says verified."""
    value = json.loads(skerry("model", "inspect", package, "--json").out)
    assert value["card"]["parameters"]["parts"]["feed_forward"] == 20
    assert (value["signed"], value["verified"]) == (False, False)
    assert value["files"]["model.onnx.data"] > 0


def test_inspect_an_installed_model(skerry, tmp_path):
    """A name is looked up among the installed models, without a daemon."""
    (tmp_path / "box" / "models").mkdir(parents=True)
    make_tiny_package(tmp_path / "box" / "models", "a-model")
    assert "a-model, version 1" in skerry("--state-dir", tmp_path / "box", "model", "inspect", "a-model").out
    assert skerry("--state-dir", tmp_path / "box", "model", "inspect", "b-model").code == 1


def test_inspect_does_not_hang_on_a_trap(skerry, package):
    """A FIFO in the card's place is refused, not waited for."""
    (package / "card.yaml").unlink()
    os.mkfifo(package / "card.yaml")
    assert skerry("model", "inspect", package).code == 5


def test_a_card_that_is_none(skerry, package):
    """A broken card is told in a line."""
    (package / "card.yaml").write_text("format: 1\nname: [\n")
    result = skerry("model", "inspect", package)
    assert result.code == 2
    assert result.err.startswith("skerry: cannot read card.yaml")


# --- the station ------------------------------------------------------------------------------------------------------


def test_without_the_station(skerry, tmp_path, monkeypatch):
    """Where the station's packages are missing, building says how to get them."""
    for name in [m for m in sys.modules if m.startswith("appliance.forge")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    result = skerry("model", "build", "recipe.yaml", "--out", tmp_path / "out")
    assert result.code == 1
    assert "not installed, expected the extra 'station'" in result.err


def test_build_passes_every_option(skerry, tmp_path, monkeypatch):
    """`model build` hands its options to the forge and prints the package's path alone on stdout."""
    from appliance.forge import build, recipe

    seen = {}
    monkeypatch.setattr(recipe, "load", lambda path: path)
    monkeypatch.setattr(build, "build", lambda r, out, **k: seen.update(k, recipe=r, out=out) or out / "p-q8")
    result = skerry("model", "build", "r.yaml", "--out", tmp_path, "--weights", "w.gguf", "--quantization", "q4",
                    "--accept-licence", "--no-evaluate", "--force")  # fmt: skip
    assert result.out == f"{tmp_path / 'p-q8'}\n"
    assert callable(seen.pop("progress"))
    assert {k: str(v) for k, v in seen.items()} == {
        "recipe": "r.yaml",
        "out": str(tmp_path),
        "weights": "w.gguf",
        "quantization": "q4",
        "accept_licence": "True",
        "evaluate": "False",
        "force": "True",
    }
    skerry("model", "build", "r.yaml", "--out", tmp_path)
    assert (seen["weights"], seen["quantization"], seen["evaluate"], seen["force"]) == (None, None, True, False)


def test_evaluate_compares_schemes(skerry, monkeypatch):
    """`model evaluate` builds each scheme aside and prints its figures; the change is against the reference."""
    from appliance.forge import build, recipe

    asked = []

    def fake_build(r, out, *, quantization, **_):
        asked.append(quantization)
        return make_tiny_package(out, f"tiny-{quantization}")

    monkeypatch.setattr(recipe, "load", lambda path: path)
    monkeypatch.setattr(build, "build", fake_build)
    result = skerry("model", "evaluate", "r.yaml", "--quantization", "q8", "--quantization", "q4")
    assert asked == ["q8", "q4"]
    assert "18.500  +0.54%  0.0040           97.0%" in result.out
    assert "reference (float32) perplexity 18.400, on 512 tokens" in result.out
    value = json.loads(skerry("model", "evaluate", "r.yaml", "--quantization", "q8", "--json").out)
    assert value[0]["figures"]["perplexity"] == 18.5


# --- a daemon's models ------------------------------------------------------------------------------------------------


def test_list(skerry, daemon):
    """Models with their states; a refused one with reason and next step below the table."""
    problem = {"kind": "digest_mismatch", "message": "cannot verify bad: changed", "hint": "install it again"}
    refused = model_body("bad\x1b[2J", state="refused", problem=problem, chat=None)
    daemon.says("GET", "/skerry/v1/models", {"models": [model_body(), refused]})
    lines = skerry("model", "list").out.splitlines()
    assert lines[0].split() == ["MODEL", "STATE", "SIZE", "CONTEXT", "PARAMS", "CHAT", "CALLS"]
    assert lines[1].split() == ["tiny", "loaded", "139", "MiB", "8,192", "134.5", "M", "yes", "212"]
    assert lines[2].startswith("bad\\x1b[2J  refused")
    assert lines[-2:] == ["reason    cannot verify bad: changed", "hint      install it again"]


def test_json_cannot_drive_the_terminal(skerry, daemon):
    """What JSON itself lets through is escaped, and the value stays the same."""
    name = "bad\x1b[2J\x9b5n\u202e"
    daemon.says("GET", "/skerry/v1/models", {"models": [model_body(name)]})
    out = skerry("model", "list", "--json").out
    assert json.loads(out)["models"][0]["name"] == name
    assert not set(out) & set("\x1b\x9b\u202e")


def test_list_without_a_daemon(skerry, tmp_path):
    """When the daemon is down, what is installed is listed all the same, and stderr says that it is a second best."""
    (tmp_path / "box" / "models").mkdir(parents=True)
    assert skerry("--state-dir", tmp_path / "box", "model", "list").code == 1
    make_tiny_package(tmp_path / "box" / "models", "a-model")
    result = skerry("--state-dir", tmp_path / "box", "model", "list")
    assert result.code == 0
    assert result.out.splitlines()[1].split()[:2] == ["a-model", "installed"]
    assert "there is no such socket" in result.err
    assert "unverified" in result.err


def test_load_unload_verify(skerry, daemon):
    """Each asks its route and says what the model is now."""
    assert skerry("model", "load", "tiny").out == "tiny: loaded in 0.40 s\n"
    assert skerry("model", "unload", "tiny").out == "tiny: installed\n"
    assert skerry("model", "verify", "tiny").out.startswith("verified  tiny\n")
    assert [r.path.rsplit("/", 1)[1] for r in daemon.requests] == ["load", "unload", "verify"]


def test_a_refused_load(skerry, daemon):
    """The daemon's refusal of a model keeps its code and reason."""
    body = error_body("unsigned", "cannot load tiny: it has no signature", hint="sign it at the station")
    daemon.says("POST", "/skerry/v1/models/tiny/load", says_json(body, 409))
    result = skerry("model", "load", "tiny")
    assert (result.code, result.out) == (5, "")
    assert result.err == "skerry: cannot load tiny: it has no signature\nhint: sign it at the station\n"
