"""The command in this process, and a daemon that says what a test wants."""

import io
import sys
from dataclasses import dataclass

import pytest

from appliance.cli.main import run
from tests.fakes.daemon import FakeDaemon


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home and an environment of nobody's."""
    for name in ("SKERRY_SOCKET", "SKERRY_STATE_DIR", "SKERRY_DEBUG", "XDG_STATE_HOME", "LC_ALL"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("COLUMNS", "80")
    return folder


@pytest.fixture
def skerry(home, capsys, monkeypatch):
    """Run one command line; `stdin` is what a pipe would bring."""

    def command(*arguments, stdin=b""):
        monkeypatch.setattr(
            sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8", errors="surrogateescape")
        )
        code = run([str(a) for a in arguments])
        taken = capsys.readouterr()
        return Result(code, taken.out, taken.err)

    return command


@pytest.fixture
def daemon(tmp_path, home, monkeypatch):
    """A daemon that the command finds by SKERRY_SOCKET."""
    with FakeDaemon(tmp_path / "s.sock") as running:
        monkeypatch.setenv("SKERRY_SOCKET", str(running.path))
        yield running
