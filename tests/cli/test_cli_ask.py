"""`skerry ask`: words in, words out."""

import json
from typing import get_args

import pytest

from appliance.cli.ask import explanation
from appliance.client.types import LoopBreak
from appliance.decoding.breaker import Rung
from appliance.decoding.loop_shapes import Kind
from tests.cli.screen import Screen
from tests.fakes.daemon import chat_events, error_body, event, says_json, stream

CHAT = "/v1/chat/completions"


def asked(daemon):
    return daemon.requests[-1].json["messages"][-1]["content"]


def test_the_answer_goes_to_stdout(skerry, daemon):
    """The answer, ended by one line feed, is all of stdout; stderr is silent."""
    result = skerry("ask", "hi")
    assert (result.code, result.out, result.err) == (0, "Hello\n", "")
    assert daemon.requests[-1].json["stream"] is True


def test_an_answer_that_ends_its_line_gets_no_second_end(skerry, daemon):
    """No empty line is added."""
    daemon.says("POST", CHAT, stream(*chat_events("a", "b\n")))
    assert skerry("ask", "hi").out == "ab\n"


def test_options_reach_the_daemon(skerry, daemon):
    """Every option is sent under its name, and what is not given is not sent."""
    skerry("ask", "hi", "-m", "tiny", "--system", "be brief", "--max-tokens", 5, "--temperature", 0, "--seed", 7,
           "--top-p", 0.5, "--stop", "a", "--stop", "b")  # fmt: skip
    body = daemon.requests[-1].json
    assert body["messages"] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    wanted = {"model": "tiny", "max_tokens": 5, "temperature": 0.0, "seed": 7, "top_p": 0.5, "stop": ["a", "b"]}
    assert {k: body[k] for k in wanted} == wanted
    skerry("ask", "hi")
    assert set(daemon.requests[-1].json) == {"messages", "stream", "stream_options"}


QUESTIONS = [
    # name, arguments, stdin, question
    ("argument", ["hi"], b"not read", "hi"),
    ("pipe", [], b"from a pipe\n", "from a pipe"),
    ("dash", ["-"], b"from a pipe\n", "from a pipe"),
    ("argument and file", ["what is it?", "-f", "FILE"], b"", "the file\n\nwhat is it?"),
    ("pipe and file", ["-", "-f", "FILE"], b"question", "the file\n\nquestion"),
    ("two files", ["q", "-f", "FILE", "-f", "FILE"], b"", "the file\n\nthe file\n\nq"),
    ("byte order mark", ["-"], b"\xef\xbb\xbfhi", "hi"),
]


@pytest.mark.parametrize(("name", "arguments", "stdin", "question"), QUESTIONS, ids=[q[0] for q in QUESTIONS])
def test_where_the_question_comes_from(skerry, daemon, tmp_path, name, arguments, stdin, question):
    """Argument, pipe and files make up one question."""
    (tmp_path / "FILE").write_text("the file\n")
    arguments = [str(tmp_path / a) if a == "FILE" else a for a in arguments]
    assert skerry("ask", *arguments, stdin=stdin).code == 0
    assert asked(daemon) == question


REFUSED = [
    ("empty", [""], b"", "empty"),
    ("blank pipe", [], b" \n", "empty"),
    ("latin-1 pipe", ["-"], b"caf\xe9", "byte 3 is not UTF-8"),
    ("latin-1 argument", ["caf\udce9"], b"", "UTF-8"),
    ("too much", ["-"], b"x" * ((1 << 20) + 1), "more than 1048576 bytes"),
    ("system with raw", ["hi", "--raw", "--system", "x"], b"", "--raw"),
]


@pytest.mark.parametrize(("name", "arguments", "stdin", "found"), REFUSED, ids=[r[0] for r in REFUSED])
def test_questions_that_are_refused(skerry, daemon, name, arguments, stdin, found):
    """What cannot be asked is told before anything is sent."""
    result = skerry("ask", *arguments, stdin=stdin)
    assert (result.code, result.out) == (2, "")
    assert found in result.err
    assert daemon.requests == []


def test_a_missing_file(skerry, daemon, tmp_path):
    """A file that is not there is named."""
    result = skerry("ask", "hi", "-f", tmp_path / "gone.txt")
    assert result.code == 1
    assert "gone.txt: No such file" in result.err


def test_json(skerry, daemon):
    """--json gives text, reason, usage and times as one object."""
    value = json.loads(skerry("ask", "hi", "--json").out)
    assert (value["text"], value["finish_reason"], value["model"]) == ("Hello", "stop", "tiny")
    assert value["usage"]["completion_tokens"] == 42
    assert value["timings"]["decode_tokens_per_s"] == 84.0


def test_raw_continues_a_text(skerry, daemon):
    """--raw uses completions, streamed or not."""
    assert skerry("ask", "--raw", "once").out == " upon\n"
    assert daemon.requests[-1].path == "/v1/completions"
    assert json.loads(skerry("ask", "--raw", "--json", "once").out)["text"] == " upon"


def test_stats(skerry, daemon):
    """--stats prints figures on stderr, in one line that fits the screen."""
    result = skerry("ask", "hi", "--stats")
    assert result.err == "42 tokens at 84.0/s; first after 0.21 s; prompt 31 tokens at 155/s\n"
    assert result.out == "Hello\n"


def test_a_cut_answer_is_told(skerry, daemon):
    """An answer at its longest is marked as cut, on stderr."""
    daemon.says("POST", CHAT, stream(*chat_events("Hel", finish="length")))
    result = skerry("ask", "hi")
    assert result.code == 0
    assert result.err == "note: cut after 42 tokens; --max-tokens allows more\n"


def test_an_error_in_the_middle(skerry, daemon):
    """The text before an error is kept, the error ends its line, the code is the error's."""
    daemon.says("POST", CHAT, stream(*chat_events("Hel")[:2], event(error_body("out_of_memory", "no room"))))
    result = skerry("ask", "hi")
    assert (result.code, result.out, result.err) == (4, "Hel\n", "skerry: no room\n")


def test_a_refusal(skerry, daemon):
    """A base model's refusal to chat is a usage error with the daemon's hint."""
    daemon.says("POST", CHAT, says_json(error_body("no_chat_template", "cannot chat", hint="use --raw"), 400))
    result = skerry("ask", "hi")
    assert (result.code, result.out, result.err) == (2, "", "skerry: cannot chat\nhint: use --raw\n")


def test_files_and_pipes_get_the_answer_as_it_is(skerry, daemon):
    """Only terminals need protection; a file gets every character."""
    daemon.says("POST", CHAT, stream(*chat_events("a\x1b[1mb\r\n")))
    assert skerry("ask", "hi").out == "a\x1b[1mb\r\n"


def test_a_terminal_gets_no_control_characters(daemon, home):
    """A model cannot drive the operator's terminal, also when the sequence comes in pieces."""
    daemon.says("POST", CHAT, stream(*chat_events("a\x1b", "[2J\x9b5n")))
    with Screen("ask", "hi", home=home, SKERRY_SOCKET=str(daemon.path)) as screen:
        assert screen.exit_code() == 0
    assert screen.seen == "a\\x1b[2J\\x9b5n\r\n"


def test_ctrl_c_stops_the_model(daemon, home):
    """Ctrl-C cancels at the daemon, keeps the text and ends with 130."""
    daemon.says("POST", CHAT, stream(*chat_events("Hel")[:2], hang=True))
    with Screen("ask", "hi", home=home, SKERRY_SOCKET=str(daemon.path)) as screen:
        screen.wait_for("Hel")
        screen.type("\x03")
        assert screen.exit_code() == 130
    assert daemon.client_gone.wait(5)
    assert "stopped" in screen.seen
    assert "Traceback" not in screen.seen


def test_a_person_without_a_question(daemon, home):
    """`skerry ask` alone on a terminal does not wait in silence."""
    with Screen("ask", home=home, SKERRY_SOCKET=str(daemon.path)) as screen:
        assert screen.exit_code() == 2
    assert "no question" in screen.seen


def broken(*, finish="stop"):
    """A streamed answer in which a loop is broken after the first piece."""
    done = {"rung": "resample", "kind": "counter", "onset": 9, "period": 12, "copies": 6.0, "at": 81, "rewound": 72}
    head = {"id": "chatcmpl-1", "model": "tiny"}
    first, *rest = chat_events("one\n", "two", finish=finish)
    loop = {"index": 0, "delta": {}, "finish_reason": None, "loop": {"breaks": [done], "stopped": False}}
    return stream(first, rest[0], event(head | {"choices": [loop]}), *rest[1:])


def test_explain_tells_of_a_loop_where_it_happens(skerry, daemon):
    """The answer on stdout is the same; what was done stands on stderr, in words, and only if asked for."""
    daemon.says("POST", CHAT, broken(), broken())
    explained = skerry("ask", "hi", "--explain")
    assert explained.out == "one\ntwo\n"
    assert "[loop: the same but numbers, 6 x 12 tokens; 72 taken back, " in explained.err
    assert skerry("ask", "hi").err == ""


def test_an_answer_that_was_cut_in_a_loop_says_so(skerry, daemon):
    """Whoever reads it must know that there is no more to come."""
    daemon.says("POST", CHAT, broken(finish="loop"))
    assert "repeated itself" in skerry("ask", "hi").err


def test_what_was_done_fits_a_line_of_a_terminal():
    """Whatever the loop, and whatever was done about it."""
    for kind in get_args(Kind):
        for rung in get_args(Rung):
            done = LoopBreak(rung=rung, kind=kind, copies=192.0, period=12, rewound=2304)
            assert len(explanation(done)) <= 80
            assert kind not in explanation(done).split()
            assert rung not in explanation(done).split()
