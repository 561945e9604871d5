"""The command's frame: help, options, errors and exit codes."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from appliance import errors
from appliance.cli import main
from appliance.cli.box import Box
from tests.fakes.daemon import error_body, model_body, says_json, status_body

SKERRY = [sys.executable, "-c", "from appliance.cli.main import main; main()"]
COMMANDS = [
    [],
    ["ask"],
    ["chat"],
    ["status"],
    ["doctor"],
    ["serve"],
    ["key"],
    ["key", "new"],
    ["key", "show"],
    ["model"],
    ["console"],
    *(["disk", verb] for verb in ("status", "watch")),
    *(["receipt", verb] for verb in ("write", "verify", "show")),
    *(["model", verb] for verb in ("build", "evaluate", "sign", "verify", "inspect", "list", "load", "unload")),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: " ".join(c) or "skerry")
def test_help_fits_the_screen(skerry, command):
    """Every command explains itself within 80 columns and 24 lines, without anything cut off."""
    result = skerry(*command, "--help")
    lines = result.out.splitlines()
    assert result.code == 0
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 25
    assert "..." not in result.out.replace("q4, ...", "").replace("COMMAND [ARGS]...", "")


def test_help_comes_at_once():
    """Help imports nothing heavy; what a command needs is imported when it runs."""
    heavy = ["onnxruntime", "numpy", "httpx2", "rich", "cryptography", "asyncio", "yaml", "starlette", "readline"]
    code = (
        "import sys; from appliance.cli.main import run; run(['--help']); "
        f"print([m for m in {heavy} if m in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr.strip() == "[]"


def test_version(skerry):
    """The version goes to stdout."""
    from appliance import __version__

    assert skerry("--version").out == f"skerry {__version__}\n"


@pytest.mark.parametrize("arguments", [["nonsense"], ["ask", "--seed", "x", "hi"], ["status", "--nonsense"]])
def test_usage_errors(skerry, arguments):
    """A wrong command line is told on stderr, code 2."""
    result = skerry(*arguments)
    assert (result.code, result.out) == (2, "")
    assert "Error:" in result.err


@pytest.mark.parametrize("error", [e for e in errors.every_error() if e.kind != "error"], ids=lambda e: e.kind)
def test_exit_codes(skerry, daemon, error):
    """Each kind of the daemon's errors ends the command with its own code, a message and a hint, no traceback."""
    body = error_body(error.kind, "cannot do it: no, expected yes", hint="ask an administrator")
    daemon.says("GET", "/skerry/v1/status", says_json(body, error.http_status))
    result = skerry("status")
    assert result.code == error.exit_code
    assert result.out == ""
    assert result.err == "skerry: cannot do it: no, expected yes\nhint: ask an administrator\n"


def test_codes_are_those_that_are_documented():
    """Denied is 3, refused by policy 4, verification failed 5."""
    assert errors.PermissionDenied.exit_code == 3
    assert errors.LicenceNotAccepted.exit_code == 4
    assert {e.exit_code for e in errors.every_error(errors.VerificationFailed)} == {5}


def test_retry_after_is_told(skerry, daemon):
    """A busy daemon's advice reaches the operator."""
    daemon.says("GET", "/skerry/v1/status", says_json(error_body("too_many_requests"), 429, retry_after="3"))
    assert "try again in 3 s" in skerry("status").err


def test_an_error_cannot_drive_the_terminal(skerry, daemon):
    """Messages that came over the socket are shown, not obeyed."""
    daemon.says("GET", "/skerry/v1/status", says_json(error_body("not_found", "\x1b[2Jgone", hint="\x9b5n"), 404))
    result = skerry("status")
    assert "\\x1b[2Jgone" in result.err
    assert "\x1b" not in result.err
    assert "\x9b" not in result.err


def test_a_defect_is_told_without_a_traceback(skerry, daemon, monkeypatch):
    """What nobody foresaw becomes one line and a next step; --debug shows where."""
    monkeypatch.setattr("appliance.cli.status._overview", lambda s: 1 / 0)
    result = skerry("status")
    assert (result.code, result.err.splitlines()[0]) == (
        1,
        "skerry: internal error: ZeroDivisionError: division by zero",
    )
    assert "Traceback" not in result.err
    monkeypatch.setenv("SKERRY_DEBUG", "0")  # so that it is restored after --debug has set it
    assert "Traceback" in skerry("--debug", "status").err


def test_ctrl_c_is_130(skerry, daemon, monkeypatch):
    """Ctrl-C ends any command quietly."""

    def stopped(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("appliance.cli.status._overview", stopped)
    result = skerry("status")
    assert (result.code, result.out, result.err) == (130, "", "")


def test_a_reader_that_leaves_is_no_error(daemon):
    """`| head` ends the command without a word."""
    daemon.says("GET", "/skerry/v1/status", status_body(models=[model_body(f"m{i}") for i in range(5000)]))
    process = subprocess.Popen([*SKERRY, "status"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 1


def test_a_reader_that_left_before(daemon):
    """The same for a result so short that it is written at the very end."""
    reader, writer = os.pipe()
    os.close(reader)
    buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    process = subprocess.run([*SKERRY, "--version"], stdout=writer, stderr=subprocess.PIPE, env=buffered, check=False)
    os.close(writer)
    assert (process.returncode, process.stderr) == (1, b"")


def test_a_character_that_the_terminal_lacks_is_escaped(monkeypatch, daemon):
    """In an old locale the command shows escapes instead of failing."""
    daemon.says("GET", "/skerry/v1/models", {"models": [model_body("größe→")]})
    out = io.TextIOWrapper(io.BytesIO(), encoding="iso-8859-1")
    monkeypatch.setattr(sys, "stdout", out)
    assert main.run(["model", "list"]) == 0
    assert "größe\\u2192".encode("latin-1") in out.buffer.getvalue()


PRECEDENCE = [
    # name, options, environment, socket
    ("nothing", (None, None), {}, "/run/skerry/inference.sock"),
    ("folder", ("/a", None), {}, "/a/run/inference.sock"),
    ("socket", (None, "/s"), {}, "/s"),
    ("socket before folder", ("/a", "/s"), {}, "/s"),
    ("environment's folder", (None, None), {"SKERRY_STATE_DIR": "/b"}, "/b/run/inference.sock"),
    ("environment's socket", (None, None), {"SKERRY_SOCKET": "/t"}, "/t"),
    ("environment's socket before its folder", (None, None), {"SKERRY_SOCKET": "/t", "SKERRY_STATE_DIR": "/b"}, "/t"),
    (
        "option before environment",
        ("/a", None),
        {"SKERRY_SOCKET": "/t", "SKERRY_STATE_DIR": "/b"},
        "/a/run/inference.sock",
    ),
    ("empty environment", (None, None), {"SKERRY_SOCKET": "", "SKERRY_STATE_DIR": ""}, "/run/skerry/inference.sock"),
]


@pytest.mark.parametrize(("name", "options", "environment", "socket"), PRECEDENCE, ids=[p[0] for p in PRECEDENCE])
def test_which_box(home, monkeypatch, name, options, environment, socket):
    """The command line counts more than the environment, a socket more than a folder."""
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert str(Box(*(Path(o) if o else None for o in options)).socket_path()) == socket


def test_which_folders(home, monkeypatch, tmp_path):
    """Models and keys of the chosen folder, of the machine's configuration, or of the default places."""
    assert Box(tmp_path).config().models_dir == str(tmp_path / "models")
    monkeypatch.setattr("appliance.config.CONFIG_PATH", tmp_path / "config.yaml")
    assert Box().config().keys_dir == "/etc/skerry/keys"
    (tmp_path / "config.yaml").write_text("models_dir: /m\nkeys_dir: /k\nsocket: /s\n")
    assert Box().config().keys_dir == "/k"
    (tmp_path / "config.yaml").write_text("models_dir: /m\n")
    with pytest.raises(errors.ConfigError):
        Box().config()


def test_the_shell_completes_models(daemon):
    """Model names are completed from the daemon, and nothing breaks when it is away."""
    environment = os.environ | {
        "_SKERRY_COMPLETE": "complete_bash",
        "COMP_WORDS": "skerry model load ti",
        "COMP_CWORD": "3",
    }
    result = subprocess.run(SKERRY, env=environment, capture_output=True, text=True, check=False)
    assert result.stdout.split() == ["tiny"]
    environment["SKERRY_SOCKET"] = "/nowhere"
    result = subprocess.run(SKERRY, env=environment, capture_output=True, text=True, check=False)
    assert (result.stdout.split(), result.stderr) == ([], "")
