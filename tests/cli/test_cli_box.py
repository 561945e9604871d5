"""`skerry status`, `doctor` and `serve`: the box as a whole."""

import datetime
import json
import os

import pytest

from appliance import __version__
from appliance.cli import doctor
from appliance.system import clock, disk
from appliance.trust import keys
from tests.fakes.daemon import model_body, says_json, status_body
from tests.fakes.package import make_tiny_package

# --- status -----------------------------------------------------------------------------------------------------------


def test_status(skerry, daemon):
    """One screen: state, load, limits, memory, caller, models."""
    result = skerry("status")
    lines = result.out.splitlines()
    assert lines[0] == "daemon       ready, version 0.1.0, up 3 h 12 min, pid 4242"
    assert "now          1 running, 0 waiting" in lines
    assert "tokens       18,204 read, 9,911 written" in lines
    assert "you          uid 1000, roles: client, operator" in lines
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 23


def test_status_of_the_usual_models_is_one_line_each(skerry, daemon):
    """The names that Skerry gives its models fit the table at 80 columns."""
    models = [model_body("smollm2-135m-instruct-w8a8"), model_body("gemma-3-270m-w8a8", state="installed")]
    daemon.says("GET", "/skerry/v1/status", status_body(models=models))
    assert [line.split()[0] for line in skerry("status").out.splitlines()[-2:]] == [m["name"] for m in models]


def test_status_without_anything(skerry, daemon):
    """A daemon that tells almost nothing, and has no models, gives a screen and no error."""
    daemon.says("GET", "/skerry/v1/status", {"state": "draining"})
    result = skerry("status")
    assert result.code == 0
    assert result.out.startswith("daemon       draining, version ?, up -, pid -\n")
    assert result.out.endswith("no models are installed\n")


def test_status_json(skerry, daemon):
    """--json is the whole status."""
    value = json.loads(skerry("status", "--json").out)
    assert value["limits"] == {"running": 4, "queued": 32, "per_caller": 8}
    assert value["models"][0]["parameters"]["effective"] == 106_203_456


# --- doctor -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A box in a folder with one trusted key and one model signed by it."""
    root = tmp_path / "box"
    for name in ("models", "keys", "run"):
        (root / name).mkdir(parents=True)
    (root / "keys").chmod(0o755)
    key = keys.generate()
    key.public().save(root / "keys" / "station.pub")
    make_tiny_package(root / "models", "good", key)
    return root


def findings(skerry, folder, *options):
    result = skerry("--state-dir", folder, "doctor", "--json", *options)
    return result.code, {f["check"]: f for f in json.loads(result.out)["findings"]}


def test_a_well_box(skerry, folder, daemon, monkeypatch):
    """All checks are well, the code is 0, and the screen fits."""
    (folder / "run" / "inference.sock").symlink_to(daemon.path)
    daemon.says("GET", "/skerry/v1/status", status_body(version=__version__))
    roomy = disk.FileSystem("/", ("data", "log", "root"), 9 << 30, 8 << 30, 10, 1, "ok", None)
    monkeypatch.setattr(disk, "survey", lambda settings: disk.Survey((roomy,), ()))
    code, found = findings(skerry, folder)
    assert {c: f for c, f in found.items() if f["level"] == "fail"} == {}
    assert code == 0
    assert found["model"]["found"].startswith("good: verified")
    assert set(found) == {
        "python", "runtime", "processor", "memory", "clock", "station", "disk", "filesystem", "keys", "model", "daemon"
    }  # fmt: skip
    result = skerry("--state-dir", folder, "doctor")
    assert result.code == 0
    # A path is never broken, and this folder's is longer than any box's.
    assert max(map(len, result.out.replace(str(folder), "/box").splitlines())) <= 80
    assert result.out.splitlines()[-1].endswith(" 0 failures")


def test_a_daemon_that_is_down(skerry, folder):
    """Doctor works without the daemon, and says how to start it."""
    code, found = findings(skerry, folder)
    assert code == 1
    assert found["daemon"]["level"] == "fail"
    assert found["daemon"]["mend"] == f"start it with: skerry --state-dir {folder} serve"
    assert found["model"]["level"] == "ok"


def test_a_changed_model(skerry, folder):
    """A model that would be refused is found before anybody asks for it; --quick does not look."""
    (folder / "models" / "good" / "tokenizer.json").write_text("{}")
    _, found = findings(skerry, folder)
    assert found["model"]["level"] == "fail"
    assert "tokenizer.json" in found["model"]["found"]
    assert "model" not in findings(skerry, folder, "--quick")[1]


def test_no_models(skerry, tmp_path, folder):
    """An empty box is a warning, with where to put a model."""
    (folder / "models" / "good").rename(tmp_path / "good")
    _, found = findings(skerry, folder)
    assert found["models"]["level"] == "warn"
    assert str(folder / "models") in found["models"]["mend"]


def test_no_trusted_key(skerry, folder):
    """A box without keys loads nothing, and doctor says so."""
    (folder / "keys" / "station.pub").unlink()
    _, found = findings(skerry, folder)
    assert found["keys"]["level"] == "fail"
    assert found["model"]["level"] == "fail"


def test_a_key_directory_that_others_can_write(skerry, folder):
    """Whoever can add a key decides what runs: that is a failure, told once."""
    (folder / "keys").chmod(0o777)
    _, found = findings(skerry, folder)
    assert found["keys"]["level"] == "fail"
    assert "0777" in found["keys"]["found"]
    assert found["models"] == {
        "check": "models",
        "level": "fail",
        "found": "1 installed, none can be verified",
        "mend": "mend the keys first",
    }


CLOCKS = [
    ("1970", datetime.date(1970, 1, 1), "fail"),
    ("the day before the release", clock.RELEASED - datetime.timedelta(days=1), "fail"),
    ("the day of the release", clock.RELEASED, "ok"),
    ("ten years later", clock.RELEASED + datetime.timedelta(days=3650), "ok"),
    ("2099", datetime.date(2099, 1, 1), "fail"),
]


@pytest.mark.parametrize(("name", "day", "level"), CLOCKS, ids=[c[0] for c in CLOCKS])
def test_the_clock(monkeypatch, name, day, level):
    """A clock that lost its battery, or was set far off, is found."""

    class Now(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime.combine(day, datetime.time(12), tz)

    monkeypatch.setattr(doctor.datetime, "datetime", Now)
    assert doctor._clock().level == level


PROCESSORS = [
    ({"avx2", "avx512_vnni"}, "x86_64", "ok", "avx512_vnni"),
    ({"avx2"}, "x86_64", "ok", "no VNNI"),
    ({"sse2"}, "x86_64", "warn", "no AVX2"),
    (set(), "x86_64", "warn", "flags unknown"),
    ({"asimddp"}, "aarch64", "warn", "not x86-64"),
]


@pytest.mark.parametrize(("flags", "machine", "level", "found"), PROCESSORS, ids=[p[3] for p in PROCESSORS])
def test_the_processor(monkeypatch, flags, machine, level, found):
    """What makes models slow is named."""
    from appliance.system import host

    monkeypatch.setattr(host, "cpu_flags", lambda: frozenset(flags))
    monkeypatch.setattr(doctor.platform, "machine", lambda: machine)
    finding = doctor._processor()
    assert (finding.level, found in finding.found) == (level, True)


@pytest.mark.parametrize(("free", "level"), [(None, "warn"), (100 << 20, "fail"), (900 << 20, "warn"), (4 << 30, "ok")])
def test_the_memory(monkeypatch, free, level):
    """Too little memory is told before the first load."""
    from appliance.system import host

    monkeypatch.setattr(host, "available_memory_bytes", lambda: free)
    assert doctor._memory().level == level


@pytest.mark.parametrize(("free", "level"), [(10 << 20, "fail"), (1 << 30, "warn"), (9 << 30, "ok")])
def test_the_disk(monkeypatch, skerry, folder, free, level):
    """A disk that is nearly full is told."""
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: doctor.shutil._ntuple_diskusage(10 << 30, 0, free))
    assert findings(skerry, folder)[1]["disk"]["level"] == level


def test_another_release_is_running(skerry, folder, daemon):
    """A daemon of another version than the command is a warning."""
    (folder / "run" / "inference.sock").symlink_to(daemon.path)
    daemon.says("GET", "/skerry/v1/status", status_body(version="0.0.1"))
    assert findings(skerry, folder)[1]["daemon"]["level"] == "warn"


def test_a_draining_daemon(skerry, folder, daemon):
    """A daemon that is going away is a warning."""
    (folder / "run" / "inference.sock").symlink_to(daemon.path)
    daemon.says("GET", "/healthz", says_json({"status": "draining"}, 503))
    found = findings(skerry, folder)[1]["daemon"]
    assert found["level"] == "warn"
    assert found["found"].endswith(": draining, takes no requests")


def test_a_check_that_breaks_is_a_finding(skerry, folder, monkeypatch):
    """One check that cannot be made does not take the others with it."""

    def broken(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.shutil, "disk_usage", broken)
    _, found = findings(skerry, folder)
    assert found["disk"]["level"] == "fail"
    assert "Permission denied" in found["disk"]["found"]
    assert "daemon" in found


def test_a_broken_configuration(skerry, tmp_path, monkeypatch):
    """With a configuration that cannot be used the machine is examined all the same."""
    (tmp_path / "config.yaml").write_text("nonsense: 1\n")
    monkeypatch.setattr("appliance.config.CONFIG_PATH", tmp_path / "config.yaml")
    result = skerry("doctor", "--json")
    found = {f["check"]: f["level"] for f in json.loads(result.out)["findings"]}
    assert found["configuration"] == "fail"
    assert "python" in found


# --- serve ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(monkeypatch):
    """The configurations that the daemon was run with."""
    from appliance.inferenced import main

    seen = []
    monkeypatch.setattr(main, "run", seen.append)
    return seen


def test_serve_a_folder(skerry, tmp_path, served):
    """One folder is enough: it is made, and nobody else may write its keys, whatever the umask."""
    old = os.umask(0o002)
    try:
        assert skerry("serve", "--state-dir", tmp_path / "a" / "box").code == 0
    finally:
        os.umask(old)
    box = tmp_path / "a" / "box"
    assert served[0].socket == str(box / "run" / "inference.sock")
    assert served[0].keys_dir == str(box / "keys")
    for path in (box, box / "keys", box / "models", box / "run"):
        assert path.stat().st_mode & 0o777 == 0o755


def test_serve_takes_the_global_folder(skerry, tmp_path, served, monkeypatch):
    """The global option and the environment name the folder too; socket and threads can be set beside it."""
    assert skerry("--state-dir", tmp_path / "a", "serve", "--threads", 3).code == 0
    assert (served[0].models_dir, served[0].threads) == (str(tmp_path / "a" / "models"), 3)
    monkeypatch.setenv("SKERRY_STATE_DIR", str(tmp_path / "b"))
    assert skerry("serve", "--socket", tmp_path / "s").code == 0
    assert (served[1].models_dir, served[1].socket) == (str(tmp_path / "b" / "models"), str(tmp_path / "s"))


def test_serve_a_configuration(skerry, tmp_path, served, monkeypatch):
    """--config wins over the environment's folder, and contradicts an option's."""
    file = tmp_path / "c.yaml"
    file.write_text("models_dir: /m\nkeys_dir: /k\nsocket: /s\nthreads: 2\n")
    monkeypatch.setenv("SKERRY_STATE_DIR", str(tmp_path / "b"))
    assert skerry("serve", "--config", file).code == 0
    assert (served[0].models_dir, served[0].threads) == ("/m", 2)
    assert not (tmp_path / "b").exists()
    result = skerry("serve", "--config", file, "--state-dir", tmp_path / "c")
    assert result.code == 2
    assert not (tmp_path / "c").exists()


def test_serve_nothing(skerry, tmp_path, served, monkeypatch):
    """Without folder and configuration nothing is served, and the way out is named."""
    monkeypatch.setattr("appliance.config.CONFIG_PATH", tmp_path / "none.yaml")
    result = skerry("serve")
    assert (result.code, served) == (2, [])
    assert "hint: by hand: skerry serve --state-dir DIR" in result.err


@pytest.fixture
def configured(tmp_path, folder):
    """Write the configuration of the folder's box, and return its path."""

    def write(**changes):
        fields = {"models_dir": folder / "models", "keys_dir": folder / "keys", "socket": folder / "run" / "s.sock"}
        file = tmp_path / "config.yaml"
        file.write_text("".join(f"{k}: {v}\n" for k, v in (fields | changes).items()))
        return file

    return write


def test_check_of_a_good_configuration(skerry, configured, served, folder):
    """--check says what it found, starts nothing and makes nothing."""
    result = skerry("serve", "--check", "--config", configured(preload="[good]"))
    assert (result.code, result.err, served) == (0, "", [])
    told = [f"models 1 in {folder}/models", f"keys 1 trusted in {folder}/keys", f"tasks 0 in {folder}/tasks"]
    told += ["preferences none are kept", "preload good"]
    assert " ".join(result.out.split()) == " ".join([*told, f"socket {folder}/run/s.sock"])
    assert not (folder / "run" / "s.sock").exists()


def test_check_without_keys(skerry, configured, folder):
    """No key at all is legal and refuses every model: it passes, with a note."""
    (folder / "keys" / "station.pub").unlink()
    result = skerry("serve", "--check", "--config", configured())
    assert result.code == 0
    assert "every model will be refused" in result.err


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"nonsense": 1}, "nonsense"),
        ({"threads": 0}, "threads is 0"),
        ({"models_dir": "/nonexistent/models"}, "models_dir /nonexistent/models is not there"),
        ({"keys_dir": "/nonexistent/keys"}, "cannot use key directory /nonexistent/keys"),
        ({"preload": "[good, other]"}, "preload names 'other', which is not installed"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_check_of_a_configuration_that_would_not_start(skerry, configured, served, changes, found):
    """What would end the daemon's start, or refuse every model, is found before: code 2."""
    result = skerry("serve", "--check", "--config", configured(**changes))
    assert (result.code, result.out, served) == (2, "", [])
    assert found in result.err


def test_check_of_a_key_that_is_none(skerry, configured, folder):
    """One key file that cannot be read refuses the whole directory."""
    (folder / "keys" / "other.pub").write_text("hello")
    assert skerry("serve", "--check", "--config", configured()).code == 2


def preferences(directory):
    return f"{{enabled: true, directory: {directory}}}"


def test_check_of_preferences(skerry, configured, tmp_path):
    """The daemon makes their directory, so it may be missing; what the daemon would refuse is an error."""
    kept = tmp_path / "kept"
    result = skerry("serve", "--check", "--config", configured(preferences=preferences(kept)))
    assert (result.code, result.err, kept.exists()) == (0, "", False)
    assert "which the daemon will make" in " ".join(result.out.split())
    kept.mkdir(mode=0o700)
    assert skerry("serve", "--check", "--config", configured(preferences=preferences(kept))).code == 0
    (tmp_path / "link").symlink_to(kept)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    (tmp_path / "file").touch()
    for name, found in (
        ("link", "it is a symbolic link"),
        ("open", "it has mode 0755"),
        ("file", "it is no directory"),
        ("none/kept", "nor is there"),
    ):
        result = skerry("serve", "--check", "--config", configured(preferences=preferences(tmp_path / name)))
        assert (result.code, result.out) == (2, ""), name
        assert f"{tmp_path / name}: {found}" in " ".join(result.err.split()), name
        assert "hint:" in result.err
    off = preferences(tmp_path / "link").replace("true", "false")
    assert skerry("serve", "--check", "--config", configured(preferences=off)).code == 0


def test_check_of_tasks(skerry, configured, folder, tmp_path):
    """A task that cannot be used is told whole, since the operator wrote it; a directory that is none is an error."""
    tasks = folder / "tasks"
    tasks.mkdir()
    good = 'format: 1\nname: good\nversion: "1"\nprompt: {}\n'
    (tasks / "good.yaml").write_text(good)
    (tasks / "bad.yaml").write_text(good.replace("good", "bad") + "colour: red\n")
    (tasks / "link.yaml").symlink_to("/etc/hostname")
    result = skerry("serve", "--check", "--config", configured())
    assert result.code == 0
    assert f"tasks 1 in {tasks}" in " ".join(result.out.split())
    told = " ".join(result.err.split())
    assert "task bad will be refused: " in told
    assert "unknown field `colour`" in told
    assert "task link will be refused: " in told
    none = skerry("serve", "--check", "--config", configured(tasks_dir=tmp_path / "none"))
    assert (none.code, "is not there: there will be no tasks" in none.err) == (0, True)
    file = skerry("serve", "--check", "--config", configured(tasks_dir=tasks / "good.yaml"))
    assert (file.code, "cannot use tasks directory" in file.err) == (2, True)


def test_check_of_a_folder_makes_nothing(skerry, tmp_path, served):
    """With --state-dir, the folder that a start would make is not made."""
    assert skerry("serve", "--check", "--state-dir", tmp_path / "new").code == 2
    assert served == []
    assert not (tmp_path / "new").exists()
