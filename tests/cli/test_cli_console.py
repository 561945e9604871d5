"""`skerry console`: what it offers, what it refuses, and how a session goes and ends."""

import inspect
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
import typing
from pathlib import Path

import pytest
import typer.main

from appliance.cli import ask, console, leave, main, terminal
from appliance.cli.box import Box
from tests.cli.screen import Screen
from tests.fakes.daemon import Says, chat_events, error_body, model_body, says_json, status_body, stream

SKERRY = [sys.executable, "-c", "from appliance.cli.main import main; main()"]
CHAT = "/v1/chat/completions"


@pytest.fixture
def ssh(daemon, home):
    """Run the console as sshd does for `ssh box LINE`; None is a session without a terminal."""

    def run(line, stdin=b""):
        environment = {k: v for k, v in os.environ.items() if k != "SSH_ORIGINAL_COMMAND"}
        if line is not None:
            environment["SSH_ORIGINAL_COMMAND"] = line
        return subprocess.run([*SKERRY, "console"], input=stdin, capture_output=True, env=environment, timeout=60)

    return run


@pytest.fixture
def tree():
    return console.offered(typer.main.get_command(main.app))


def commands_of(group, words=()):
    for name, command in group.commands.items():
        if getattr(command, "commands", None) is not None:
            yield from commands_of(command, (*words, name))
        else:
            yield " ".join((*words, name)), command


# --- what is offered --------------------------------------------------------------------------------------------------


def test_only_the_table_is_offered(tree):
    """Every command of the table is there with exactly its parameters; a slip in a name would be a missing one."""
    found = {words: [p.name for p in command.params] for words, command in commands_of(tree)}
    assert {w: set(p) for w, p in found.items()} == {w: set(p.split()) for w, p in console._OFFERED.items()}


def test_no_option_takes_a_path(tree):
    """Whatever is offered names no file: none is of the type Path, and arguments that may be paths are restricted."""
    for words, command in commands_of(tree):
        types = typing.get_type_hints(inspect.unwrap(command.callback))
        for p in command.params:
            assert "Path" not in str(types[p.name]), f"{words}: {p.name}"
            assert not {"FILE", "DIR", "PATH", "PACKAGE"} & set((p.metavar or "").split("|")), f"{words}: {p.name}"
            assert (p.metavar == "NAME") <= (p.name in ("name", "model", *console._NAMES)), f"{words}: {p.name}"
    assert "Path" in str(typing.get_type_hints(inspect.unwrap(ask.ask))["file"]), "the test would see a path"


def test_the_real_commands_are_untouched(tree):
    """The table restricts copies: `skerry ask --file` itself still exists."""
    real = typer.main.get_command(main.app)
    assert "file" in [p.name for p in real.commands["ask"].params]
    assert "skerry ask" in real.commands["ask"].help


REFUSED = [
    "bash", "sh -c id", "/bin/sh", "/usr/lib/openssh/sftp-server", "internal-sftp", "scp -t /tmp", "rsync --server . x",
    "serve", "serve --check", "console", "key new x", "model sign x --key y", "model build r --out d", "disk watch",
    "receipt write", "ask --file /etc/passwd hi", "ask -f /etc/passwd hi", "ask -f/etc/passwd hi",
    "ask --system -- --file /etc/passwd hi", "ask --file=/etc/passwd hi", "ask --fil /etc/passwd hi",
    "--socket /s status", "--state-dir /d status", "--install-completion", "--debug status", "status --socket /s",
    "model verify x --keys /k", "model inspect /etc", "model inspect ../etc", "model inspect .", "model inspect etc",
    "model verify etc", "receipt show /etc/passwd", "receipt show proc", "receipt verify x --key /etc/passwd",
    "receipt show --folder /tmp", "receipt show x --out y", "ask 'unbalanced", "chat --history /x",
]  # fmt: skip


@pytest.mark.parametrize("line", REFUSED)
def test_what_is_not_offered_is_refused(daemon, tree, capsys, monkeypatch, line):
    """Other programs, other commands, other options and paths: code 2, a reason, and nothing was asked of anybody."""
    monkeypatch.chdir("/")
    code = console.run(tree, line, Box())
    taken = capsys.readouterr()
    assert (code, taken.out) == (2, "")
    assert taken.err
    assert daemon.requests == []


@pytest.mark.parametrize(
    "line", ["ask hi; id", "ask hi | id", "ask $(id)", "ask `id`", "ask hi && id", "ask hi > x", "ask hi\nid", "#"]
)
def test_shell_characters_are_words(ssh, daemon, line):
    """Nothing expands, pipes or redirects: what a shell would obey reaches the model as words, or is refused."""
    result = ssh(line)
    said = " ".join(r.json["messages"][-1]["content"] for r in daemon.requests if r.path == CHAT)
    assert "uid=" not in said + result.stdout.decode() + result.stderr.decode()


# --- one line over ssh ------------------------------------------------------------------------------------------------


def test_one_command_with_its_code(ssh, daemon):
    """`ssh box COMMAND` runs it and ends with its code; the word skerry before it does no harm."""
    result = ssh("status")
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.startswith(b"daemon")
    assert b"skerry>" not in result.stdout
    assert ssh("skerry status").stdout == result.stdout
    daemon.says("GET", "/skerry/v1/status", says_json(error_body("permission_denied", "no"), 403))
    assert ssh("status").returncode == 3


def test_question_on_standard_input(ssh, daemon):
    """`echo text | ssh box ask` asks it."""
    result = ssh("ask --seed 7", stdin=b"how long is the film?\n")
    assert (result.returncode, result.stdout) == (0, b"Hello\n")
    (asked,) = [r.json for r in daemon.requests if r.path == CHAT]
    assert (asked["messages"][0]["content"], asked["seed"]) == ("how long is the film?", 7)


def test_answer_cannot_drive_the_far_terminal(ssh, daemon):
    """Behind ssh a pipe ends at a terminal: control characters of an answer are made visible there too."""
    daemon.says("POST", CHAT, stream(*chat_events("Hel\x1b[2J", "\x9b5n")))
    assert ssh("ask hi").stdout.decode() == "Hel\\x1b[2J\\x9b5n\n"
    daemon.says("POST", CHAT, stream(*chat_events("a\x1b[2Jb")))
    assert ssh("chat", stdin=b"hi\n").stdout.decode() == "a\\x1b[2Jb\n"


def test_a_plain_pipe_keeps_its_bytes(skerry, daemon, monkeypatch):
    """Without the console, `skerry ask > file` still writes what the model said."""
    monkeypatch.setattr(terminal, "_far", False)
    daemon.says("POST", CHAT, stream(*chat_events("a\x1bb")))
    assert skerry("ask", "hi").out == "a\x1bb\n"


def test_lines_from_a_pipe(ssh, daemon):
    """Without a terminal and without a command, lines are commands; there is no greeting, and an error ends nothing."""
    result = ssh(None, stdin=b"nonsense\nmodel list\n\nquit\nstatus\n")
    assert result.returncode == 0
    assert b"No such command 'nonsense'" in result.stderr
    assert result.stdout.startswith(b"NAME") or b"tiny" in result.stdout
    assert b"daemon" not in result.stdout


def test_help(ssh):
    """It lists what is offered and nothing else, and explains one command."""
    listed = ssh("help").stdout.decode()
    assert "status" in listed
    assert "serve" not in listed
    assert max(map(len, listed.splitlines())) <= 80
    explained = ssh("help ask").stdout.decode()
    assert "--seed" in explained
    assert "--file" not in explained
    assert ssh("ask -h").stdout.decode() == explained


# --- a session --------------------------------------------------------------------------------------------------------


def test_session_on_a_dumb_terminal(daemon, home):
    """Greeting, prompt, a command, Ctrl-C stops the command and not the session, Ctrl-D ends it: lines of ASCII."""
    daemon.says("POST", CHAT, stream(*chat_events("Hel\x1b[2J")[:2], hang=True))
    with Screen("console", home=home, term="dumb", SKERRY_SOCKET=str(daemon.path)) as screen:
        screen.wait_for("daemon: ready, 1 of 1 models loaded, 1 requests running")
        screen.wait_for("skerry> ")
        screen.type("model list\r")
        screen.wait_for("tiny")
        screen.wait_for("skerry> ")
        screen.type("ask hi\r")
        screen.wait_for("Hel\\x1b[2J")
        screen.type("\x03")
        screen.wait_for("stopped")
        screen.wait_for("skerry> ")
        screen.type("half a line")
        screen.wait_for("half a line")
        screen.interrupt()
        screen.wait_for("skerry> ")
        screen.type("\x04")
        assert screen.exit_code() == 0
    assert screen.seen.isascii()
    assert "\x1b" not in screen.seen
    assert max(map(len, screen.seen.splitlines())) <= 80


def test_keys_that_would_leave_to_a_shell(daemon, home):
    """Ctrl-Z and Ctrl-\\ do nothing, at the prompt and during an answer."""
    daemon.says("POST", CHAT, stream(*chat_events("Hel")[:2], 1.0, *chat_events("lo")[1:]))
    with Screen("console", home=home, term="dumb", SKERRY_SOCKET=str(daemon.path)) as screen:
        screen.wait_for("skerry> ")
        screen.type("\x1a\x1c")
        screen.type("ask hi\r")
        screen.wait_for("Hel")
        screen.type("\x1a\x1c")
        screen.wait_for("lo")
        screen.wait_for("skerry> ")
        screen.type("quit\r")
        assert screen.exit_code() == 0


def test_dead_daemon_leaves_a_console(tmp_path, home):
    """The greeting says that it is down, commands say so, and what needs no daemon works."""
    with Screen("console", home=home, term="dumb", SKERRY_SOCKET=str(tmp_path / "none.sock")) as screen:
        screen.wait_for("daemon: DOWN: cannot reach the daemon at ")
        screen.wait_for("skerry> ")
        screen.type("status\r")
        screen.wait_for("cannot reach the daemon")
        screen.wait_for("skerry> ")
        screen.type("disk status\r")
        screen.wait_for("FILE SYSTEM")
        screen.wait_for("skerry> ")
        screen.type("exit\r")
        assert screen.exit_code() == 0


def test_hung_daemon_leaves_a_console(daemon, home):
    """A daemon that accepts and says nothing delays the greeting by its limit, not for ever."""
    daemon.says("GET", "/healthz", Says(delay_s=20))
    began = time.monotonic()
    with Screen("console", home=home, term="dumb", SKERRY_SOCKET=str(daemon.path)) as screen:
        screen.wait_for("daemon: DOWN: ")
        screen.wait_for("skerry> ")
        assert time.monotonic() - began < 10
        screen.type("\x04")
        assert screen.exit_code() == 0


def test_odd_bytes_do_not_end_the_session(daemon, home):
    """A key of another encoding is a wrong command, no more."""
    strict = {"SKERRY_SOCKET": str(daemon.path), "PYTHONIOENCODING": "utf-8:strict"}  # as in most UTF-8 locales
    with Screen("console", home=home, term="dumb", **strict) as screen:
        screen.wait_for("skerry> ")
        os.write(screen._terminal, b"\xe4\xff\r")
        screen.wait_for("No such command")
        screen.wait_for("skerry> ")
        screen.type("\x04")
        assert screen.exit_code() == 0


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_hang_up_ends_the_session_and_not_just_the_command(daemon, home, number):
    """When the line drops during an answer, nothing stays: the answer is cancelled, the process ends."""
    daemon.says("POST", CHAT, stream(*chat_events("Hel")[:2], hang=True))
    with Screen("console", home=home, term="dumb", SKERRY_SOCKET=str(daemon.path)) as screen:
        screen.wait_for("skerry> ")
        screen.type("ask hi\r")
        screen.wait_for("Hel")
        began = time.monotonic()
        screen._process.send_signal(number)
        assert screen.exit_code(5) == 128 + number
        assert time.monotonic() - began < 1.5
        assert daemon.client_gone.wait(5)


def test_chat_inside(daemon, home):
    """A conversation ends with Ctrl-D back at the console's prompt."""
    with Screen("console", home=home, term="dumb", SKERRY_SOCKET=str(daemon.path)) as screen:
        screen.wait_for("skerry> ")
        screen.type("chat --no-history\r")
        screen.wait_for("> ")
        screen.type("hi\r")
        screen.wait_for("Hello")
        screen.wait_for("> ")
        screen.type("\x04")
        screen.wait_for("skerry> ")
        screen.type("\x04")
        assert screen.exit_code() == 0


def test_tab_completes_commands_and_no_files(daemon, home):
    """Tab knows the commands; names of files it does not know."""
    with Screen("console", home=home, term="dumb", SKERRY_SOCKET=str(daemon.path)) as screen:
        screen.wait_for("skerry> ")
        screen.type("disk st\t\r")
        screen.wait_for("FILE SYSTEM")
        screen.wait_for("skerry> ")
        screen.type("ask /etc/pass\t\r")
        screen.wait_for("Hello")
        screen.wait_for("skerry> ")
        screen.type("\x04")
        assert screen.exit_code() == 0
    assert daemon.requests[-1].json["messages"][0]["content"] == "/etc/pass"


# --- greeting ---------------------------------------------------------------------------------------------------------


def test_greeting_says_what_is_refused(daemon):
    """A model that was refused is in the first lines that an operator sees."""
    models = [model_body("a"), model_body("b", state="refused")]
    daemon.says("GET", "/skerry/v1/status", status_body(models=models))
    assert console.greeting(Box(socket=daemon.path))[1] == (
        "daemon: ready, 1 of 2 models loaded, 1 REFUSED, 1 requests running"
    )


def test_greeting_of_a_caller_who_may_not_see_the_status(daemon):
    """A client is told whether the daemon is ready, from its health."""
    daemon.says("GET", "/skerry/v1/status", says_json(error_body("permission_denied", "no"), 403))
    assert console.greeting(Box(socket=daemon.path))[1] == "daemon: ready"
    daemon.says("GET", "/healthz", says_json({"status": "draining"}, 503))
    assert console.greeting(Box(socket=daemon.path))[1] == "daemon: draining"


def test_greeting_fits_and_is_ascii(daemon, monkeypatch):
    """Names of any length and alphabet: 79 columns of ASCII, and no control character."""
    daemon.says("GET", "/skerry/v1/status", status_body(state="größe\x1b[2J" * 20))
    monkeypatch.setattr(console, "_user", lambda: "änna" * 30)
    for line in console.greeting(Box(socket=daemon.path)):
        assert line.isascii()
        assert line.isprintable()
        assert len(line) <= 79


# --- idle -------------------------------------------------------------------------------------------------------------


def test_idle_limit_by_the_clock():
    """Warned a minute before, out at the limit; a key or an output begins anew, the warning itself does not."""
    idle = leave.Idle(900, 60, now=1000)
    assert [idle.look(1000 + t, "a") for t in (0, 600, 839)] == ["stay"] * 3
    assert idle.look(1840, "a") == "warn"
    idle.warned("b")
    assert idle.look(1845, "b") == "stay"
    assert idle.look(1899, "b") == "stay"
    assert idle.look(1900, "b") == "leave"
    idle = leave.Idle(900, 60, now=0)
    assert [idle.look(t, m) for t, m in ((0, "a"), (840, "a"), (850, "key"), (1000, "key"))] == [
        "stay", "warn", "stay", "stay",
    ]  # fmt: skip
    assert idle.look(850 + 840, "key") == "warn"


def test_warning_is_no_sign_of_life(monkeypatch):
    """The warning is written to the terminal whose times are watched, and the session ends on time all the same."""
    now, mtime, said = 0.0, 1, []

    def note(text):
        nonlocal mtime
        mtime += 1
        said.append(now)

    def wait():
        nonlocal now
        now += 5
        return now > 2000

    monkeypatch.setattr(leave, "note", note)
    assert leave.nobody_there(900, lambda: mtime, wait, lambda: now)
    assert said == [845, 905]  # counted from the first look


@pytest.mark.parametrize("where", ["prompt", "chat"])
def test_nobody_there(daemon, home, where):
    """A forgotten session warns and ends by itself, at the prompt and in a conversation; code 0."""
    with Screen("console", "--idle", "0.05", home=home, term="dumb", SKERRY_SOCKET=str(daemon.path)) as screen:
        screen.wait_for("skerry> ")
        if where == "chat":
            screen.type("chat --no-history\r")
            screen.wait_for("Ctrl-D ends")
        screen.wait_for("press Enter to stay")
        screen.wait_for("goodbye")
        assert screen.exit_code() == 0


# --- a real sshd ------------------------------------------------------------------------------------------------------


@pytest.fixture
def real_ssh(daemon, tmp_path, home):
    """`ssh box ...` through a real sshd with ForceCommand, without any network: sshd -i is the proxy's command."""
    sshd = shutil.which("sshd") or "/usr/sbin/sshd"
    if os.getuid() != 0 or not Path(sshd).exists() or shutil.which("ssh") is None:
        pytest.skip("not run: needs root, sshd and ssh")
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    for name in ("host", "client"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True)
    wrapper = tmp_path / "skerry"
    wrapper.write_text(
        f"#!{sys.executable}\nimport os, sys\nos.environ['SKERRY_SOCKET'] = {str(daemon.path)!r}\n"
        f"sys.path.insert(0, {str(Path.cwd())!r})\nfrom appliance.cli.main import main\nmain()\n"
    )
    wrapper.chmod(0o755)
    config = tmp_path / "sshd_config"
    config.write_text(
        f"HostKey {tmp_path}/host\nAuthorizedKeysFile {tmp_path}/client.pub\nPermitRootLogin yes\nStrictModes no\n"
        f"UsePAM no\nForceCommand {wrapper} console\nSubsystem sftp internal-sftp\nPidFile none\n"
    )
    command = ["ssh", "-F", "none", "-i", str(tmp_path / "client"), "-o", f"ProxyCommand={sshd} -i -f {config}"]
    command += ["-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={tmp_path}/known", "-o", "BatchMode=yes"]

    def run(*arguments, stdin=b""):
        return subprocess.run([*command, "root@box", *arguments], input=stdin, capture_output=True, timeout=60)

    run.command = [*command, "root@box"]
    if run("help").returncode == 255:
        pytest.skip("not run: sshd does not start here")
    return run


def test_behind_a_real_sshd(real_ssh):
    """One command, its code, standard input, and no shell, sftp or scp, whatever is asked for."""
    assert real_ssh("status").stdout.startswith(b"daemon")
    assert real_ssh("ask", stdin=b"hi\n").stdout == b"Hello\n"
    for line in ("id", "bash -c id", "sh", "status; id", "`id`"):
        result = real_ssh(line)
        assert result.returncode == 2, line
        assert b"uid=" not in result.stdout + result.stderr
    command = [*real_ssh.command[:-1], "-s", real_ssh.command[-1], "sftp"]
    subsystem = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    assert (subsystem.returncode, subsystem.stdout) == (2, b"")


def test_session_behind_a_real_sshd(real_ssh):
    """With a terminal: the greeting, a command, and the end by Ctrl-D."""
    pid, terminal_fd = pty.fork()
    if pid == 0:
        os.execvp("ssh", [real_ssh.command[0], "-tt", *real_ssh.command[1:]])  # noqa: S606
    seen, typed, end = b"", [b"disk status\r", b"\x04"], time.monotonic() + 30
    while time.monotonic() < end:
        try:
            data = os.read(terminal_fd, 4096)
        except OSError:
            break
        if not data:
            break
        seen += data
        if typed and seen.count(b"skerry> ") == 3 - len(typed):
            os.write(terminal_fd, typed.pop(0))
    os.close(terminal_fd)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert b"daemon: ready" in seen
    assert b"FILE SYSTEM" in seen
