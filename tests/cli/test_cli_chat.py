"""`skerry chat`: turns, commands, history, and terminals of all kinds."""

import pytest

from appliance.cli import chat
from tests.cli.screen import Screen
from tests.fakes.daemon import chat_events, error_body, says_json, stream

CHAT = "/v1/chat/completions"


def sent(daemon):
    """The conversations that were sent, as lists of (first letter of the role, text)."""
    bodies = [r.json for r in daemon.requests if r.path == CHAT]
    return [[(m["role"][0], m["content"]) for m in body["messages"]] for body in bodies]


def test_a_conversation_remembers(skerry, daemon):
    """Each turn is sent with those before it, answers included."""
    result = skerry("chat", stdin=b"one\n\ntwo\n")
    assert (result.code, result.out, result.err) == (0, "Hello\nHello\n", "")
    assert sent(daemon) == [[("u", "one")], [("u", "one"), ("a", "Hello"), ("u", "two")]]


def test_reset_and_system(skerry, daemon):
    """/system is sent first; /reset forgets turns, not the system text; - clears it."""
    skerry("chat", stdin=b"/system be brief\none\n/reset\ntwo\n/system -\n/reset\nthree\n")
    assert sent(daemon) == [[("s", "be brief"), ("u", "one")], [("s", "be brief"), ("u", "two")], [("u", "three")]]


def test_a_turn_that_failed_is_forgotten(skerry, daemon):
    """After an error the conversation goes on, as if the turn had not been."""
    busy = says_json(error_body("too_many_requests", "busy", hint="wait"), 429, retry_after="1")
    daemon.says("POST", CHAT, busy, stream(*chat_events("ok")))
    result = skerry("chat", stdin=b"one\ntwo\n")
    assert result.code == 0
    assert result.err == "skerry: busy\nhint: wait\ntry again in 1 s\n"
    assert sent(daemon)[1] == [("u", "two")]


def test_a_full_context_names_the_way_out(skerry, daemon):
    """When the conversation no longer fits, the operator is told of /reset."""
    daemon.says("POST", CHAT, stream(*chat_events("ok")), says_json(error_body("context_length_exceeded", "full"), 400))
    assert skerry("chat", stdin=b"one\ntwo\n").err == "skerry: full\nhint: /reset forgets the conversation so far\n"


def test_lines(skerry, daemon):
    """A backslash joins lines, two slashes say one, an unknown command says so, /quit ends."""
    result = skerry("chat", stdin=b"one \\\ntwo\n//etc is a folder\n/dance\n/quit\nnever\n")
    assert [turns[-1][1] for turns in sent(daemon)] == ["one \ntwo", "/etc is a folder"]
    assert result.err == "skerry: cannot do /dance: no such command\nhint: /help lists them\n"


def test_input_that_ends_in_a_backslash(skerry, daemon):
    """The last line counts, though the line that it promises does not come."""
    skerry("chat", stdin=b"one\\")
    assert sent(daemon) == [[("u", "one")]]


def test_models(skerry, daemon):
    """/model lists and changes; a model that is not installed is refused with those that are."""
    daemon.says("GET", "/v1/models", {"data": [{"id": "a"}, {"id": "b"}]})
    result = skerry("chat", stdin=b"/model b\n/model\n/model c\nhi\n")
    assert result.out == "  a\n* b\nHello\n"
    assert "cannot use model c: it is not installed\nhint: installed: a, b" in result.err
    assert daemon.requests[-1].json["model"] == "b"


def test_stats(skerry, daemon):
    """/stats shows figures, now and from then on."""
    result = skerry("chat", stdin=b"/stats\none\n")
    assert result.err.splitlines()[0] == "no answer yet"
    assert "84.0/s" in result.err.splitlines()[-1]


def test_help_lists_every_command(skerry, daemon):
    """Help is made of the commands themselves and fits the screen."""
    lines = skerry("chat", stdin=b"/help\n").out.splitlines()
    assert {line.split()[0] for line in lines} >= {"/help", "/model", "/quit", "/reset", "/stats", "/system"}
    assert max(map(len, lines)) <= 80


def test_a_pipe_keeps_no_history(skerry, daemon, home):
    """Only what a person types is kept."""
    skerry("chat", stdin=b"one\n")
    assert list(home.iterdir()) == []


def test_at_a_terminal(daemon, home):
    """Ctrl-C stops an answer and not the conversation, Ctrl-D ends; what was typed is kept for the operator only."""
    daemon.says("POST", CHAT, stream(*chat_events("Hel\x1b[2J")[:2], hang=True), stream(*chat_events("second")))
    with Screen("chat", home=home, SKERRY_SOCKET=str(daemon.path)) as screen:
        screen.wait_for("> ")
        screen.type("one\r")
        screen.wait_for("Hel\\x1b[2J")
        screen.type("\x03")
        screen.wait_for("stopped")
        assert daemon.client_gone.wait(5)
        screen.wait_for("> ")
        screen.type("two\r")
        screen.wait_for("second")
        screen.wait_for("> ")
        screen.interrupt()
        screen.wait_for("(Ctrl-D or /quit ends)")
        screen.wait_for("> ")
        screen.type("\x04")
        assert screen.exit_code() == 0
    assert sent(daemon)[1] == [("u", "one"), ("a", "Hel\x1b[2J"), ("u", "two")]
    history = home / ".local/state/skerry/chat_history"
    assert history.read_text() == "one\ntwo\n"
    assert history.stat().st_mode & 0o777 == 0o600
    assert history.parent.stat().st_mode & 0o777 == 0o700


def test_lines_of_yesterday_come_back(daemon, home):
    """The up key brings the last conversation's last line."""
    history = home / ".local/state/skerry/chat_history"
    history.parent.mkdir(parents=True)
    history.write_text("what was it\n")
    history.chmod(0o644)
    with Screen("chat", home=home, SKERRY_SOCKET=str(daemon.path)) as screen:
        screen.wait_for("> ")
        screen.type("\x1b[A\r")
        screen.wait_for("Hello")
        screen.wait_for("> ")
        screen.type("\x04")
        assert screen.exit_code() == 0
    assert sent(daemon) == [[("u", "what was it")]]
    assert history.stat().st_mode & 0o777 == 0o600


def test_no_history(daemon, home):
    """--no-history leaves no trace."""
    with Screen("chat", "--no-history", home=home, SKERRY_SOCKET=str(daemon.path)) as screen:
        screen.wait_for("> ")
        screen.type("secret\r")
        screen.wait_for("Hello")
        screen.wait_for("> ")
        screen.type("\x04")
        assert screen.exit_code() == 0
    assert list(home.iterdir()) == []


def test_a_dumb_terminal_gets_plain_lines(daemon, home):
    """TERM=dumb works, and gets not one escape sequence."""
    with Screen("chat", home=home, term="dumb", SKERRY_SOCKET=str(daemon.path)) as screen:
        screen.wait_for("> ")
        screen.type("one\r")
        screen.wait_for("Hello")
        screen.wait_for("> ")
        screen.type("/quit\r")
        assert screen.exit_code() == 0
    assert "\x1b" not in screen.seen


def test_nobody_is_there(home):
    """Without a daemon the conversation ends before the first question."""
    with Screen("--state-dir", str(home), "chat", home=home) as screen:
        assert screen.exit_code() == 1
    assert f"start it with: skerry --state-dir {home} serve" in screen.seen.replace("\r\n", "")


def test_a_history_that_is_a_link_is_not_followed(tmp_path, capsys):
    """Nobody can make the chat write into another file by a link."""
    target = tmp_path / "precious"
    target.touch()
    link = tmp_path / "chat_history"
    link.symlink_to(target)
    assert chat._open_history(link) is None
    assert "no history" in capsys.readouterr().err


def test_a_long_history_is_shortened(tmp_path):
    """The file does not grow for ever: its oldest lines go."""
    path = tmp_path / "chat_history"
    path.write_text("".join(f"{i}\n" for i in range(2 * chat.HISTORY_LINES + 1)))
    with chat._history(path) as keep:
        keep("last")
    lines = path.read_text().splitlines()
    assert len(lines) == chat.HISTORY_LINES + 1
    assert lines[-2:] == [str(2 * chat.HISTORY_LINES), "last"]


@pytest.mark.parametrize(
    ("value", "below"), [("/x", "/x"), ("relative", "HOME/.local/state"), ("", "HOME/.local/state")]
)
def test_where_history_is_kept(home, monkeypatch, value, below):
    """XDG_STATE_HOME if it is absolute, as its specification says, else the home."""
    monkeypatch.setenv("XDG_STATE_HOME", value)
    assert str(chat.history_path()) == below.replace("HOME", str(home)) + "/skerry/chat_history"
