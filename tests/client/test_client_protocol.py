"""The client's core without a socket: events, streamed answers, errors by kind."""

import itertools
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance import errors
from appliance.client import protocol, types
from appliance.client.protocol import EventParser, Reply, StreamReader
from tests.fakes.daemon import chat_body, chat_events, error_body, event


def feed(*chunks: bytes) -> tuple[list[str], StreamReader]:
    reader, texts = StreamReader(), []
    for chunk in chunks:
        reader.push(chunk)
        while (piece := reader.next_piece()) is not None:
            texts.append(piece.text)
    return texts, reader


@given(st.lists(st.integers(0, 2000), max_size=12))
def test_a_stream_cut_anywhere_gives_the_same_answer(cuts):
    """Where the network cuts the bytes, inside a character or a line end, does not change the answer."""
    whole = b"".join(chat_events("Grüße, ", "日本", "\n\n", "🦭")).replace(b"\n", b"\r\n")
    places = sorted({min(c, len(whole)) for c in cuts} | {0, len(whole)})
    texts, reader = feed(*(whole[a:b] for a, b in itertools.pairwise(places)))
    reader.end()
    assert "".join(texts) == reader.answer.text == "Grüße, 日本\n\n🦭"
    assert reader.answer.finish_reason == "stop"
    assert reader.answer.usage.total_tokens == 73
    assert reader.answer.timings.decode_tokens_per_s == 84.0


EVENTS = [
    # name, bytes, data of the events
    ("one", b"data: a\n\n", [b"a"]),
    ("no space", b"data:a\n\n", [b"a"]),
    ("one space only is taken", b"data:  a\n\n", [b" a"]),
    ("two data lines", b"data: a\ndata: b\n\n", [b"a\nb"]),
    ("comment and other fields", b": ping\nevent: x\nid: 1\nretry: 5\ndata: a\n\n", [b"a"]),
    ("nothing but a comment", b": ping\n\n", []),
    ("not complete", b"data: a\n", []),
    ("CRLF", b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
]


@pytest.mark.parametrize(("name", "data", "expected"), EVENTS, ids=[e[0] for e in EVENTS])
def test_events(name, data, expected):
    """Events are parsed as the standard says."""
    assert EventParser().push(data) == expected


def test_an_endless_event_is_refused(monkeypatch):
    """What answers cannot fill the client's memory with an event that never ends."""
    monkeypatch.setattr(protocol, "MAX_EVENT_BYTES", 1000)
    for chunk in (b"x" * 300, b"data: " + b"x" * 300 + b"\n"):
        parser = EventParser()
        for _ in range(3):
            parser.push(chunk)
        with pytest.raises(errors.DaemonUnreachable, match="event of more than 1000 bytes"):
            parser.push(chunk)


def test_two_choices_do_not_mix():
    """Pieces of several choices that come interleaved end up in their own texts, with their own logprobs."""
    chunks = [
        {"choices": [{"index": 1, "text": "b", "logprobs": {"tokens": ["b"]}}]},
        {"choices": [{"index": 0, "text": "a", "logprobs": {"tokens": ["a"]}}]},
        {"choices": [{"index": 1, "text": "B", "logprobs": {"tokens": ["B"]}, "finish_reason": "length"}]},
    ]
    _, reader = feed(*map(event, chunks), event(b"[DONE]"))
    assert [(c.index, c.text, c.finish_reason) for c in reader.answer.choices] == [(0, "a", None), (1, "bB", "length")]
    assert reader.answer.choices[1].logprobs == {"tokens": ["b", "B"]}


def test_an_error_in_the_stream_comes_after_the_pieces_before_it():
    """Text that arrived before an error is shown, then the error is raised as its class."""
    reader = StreamReader()
    reader.push(b"".join(chat_events("a")[:2]) + event(error_body("out_of_memory", "no room", hint="unload")))
    assert reader.next_piece().text == "a"
    with pytest.raises(errors.OutOfMemory, match="no room") as raised:
        reader.next_piece()
    assert raised.value.hint == "unload"


def test_a_stream_without_its_end_mark_is_not_complete():
    """A connection that closes early is an error, not a short answer."""
    _, reader = feed(*chat_events("a")[:-1])
    with pytest.raises(errors.DaemonUnreachable, match="before its end"):
        reader.end()


def test_nothing_is_taken_after_the_end_mark():
    """Bytes after the end mark are not part of the answer."""
    texts, _ = feed(b"".join(chat_events("a")) + b"".join(chat_events("b")))
    assert "".join(texts) == "a"


@pytest.mark.parametrize("error", list(errors.every_error()), ids=lambda e: e.kind)
def test_every_kind_comes_back_as_its_class(error):
    """The daemon's error is raised in the client as the same class, with message, hint and parameter."""
    body = error_body(error.kind, "cannot x: y", hint="do z", param="seed")
    with pytest.raises(errors.SkerryError) as raised:
        protocol.raise_error(Reply(error.http_status, {"retry-after": "7"}, json.dumps(body).encode()))
    e = raised.value
    assert type(e) is error
    assert (e.message, e.hint, e.param, e.retry_after_s) == ("cannot x: y", "do z", "seed", 7.0)


BAD_REPLIES = [
    ("html", 502, b"<html>bad gateway</html>"),
    ("json of somebody else", 404, b'{"detail": "Not Found"}'),
    ("empty", 500, b""),
    ("redirect", 302, b""),
    ("not utf-8", 400, b'{"error": {"message": "\xff"}}'),
    ("whole, but not an answer", 200, b"hello"),
    ("no choices", 200, b'{"choices": []}'),
    ("wrong type", 200, b'{"choices": 5}'),
    ("nested past the stack", 200, b'{"choices": [{"logprobs": {"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}]}"),
]


@pytest.mark.parametrize(("name", "status", "body"), BAD_REPLIES, ids=[b[0] for b in BAD_REPLIES])
def test_what_is_not_the_daemon_is_recognised(name, status, body):
    """An answer that the daemon would never give becomes one clear error, not a traceback."""
    with pytest.raises(errors.DaemonUnreachable) as raised:
        protocol.read_answer(Reply(status, {}, body))
    assert raised.value.hint


def test_an_unknown_kind_is_still_an_error_of_ours():
    """A newer daemon's kind, which this client does not know, keeps its message."""
    with pytest.raises(errors.SkerryError, match="cannot fly: no wings"):
        protocol.raise_error(Reply(418, {}, json.dumps(error_body("no_wings", "cannot fly: no wings")).encode()))


@pytest.mark.parametrize("text", [None, "", "soon", "-1", "1.5", "9" * 400, "٣"])
def test_a_senseless_retry_after_is_ignored(text):
    """Retry-After is whole seconds or nothing."""
    headers = {} if text is None else {"retry-after": text}
    with pytest.raises(errors.TooManyRequests) as raised:
        protocol.raise_error(Reply(429, headers, json.dumps(error_body("too_many_requests")).encode()))
    assert raised.value.retry_after_s is None


def test_a_newer_daemon_is_understood():
    """Fields that this client does not know are ignored."""
    body = chat_body("hi", surprise={"deep": [1]}) | {"skerry": {"timings": {"new_s": 1.0}, "other": 1}}
    assert protocol.read_answer(Reply(200, {}, json.dumps(body).encode())).text == "hi"


def test_an_older_daemon_is_understood():
    """Fields that the daemon does not send yet are None or zero."""
    got = protocol.status().read(Reply(200, {}, b'{"version": "0.0.9", "models": [{"name": "a"}]}'))
    assert got.models[0].name == "a"
    assert got.requests.total == 0


def test_requests_carry_only_what_was_asked_for():
    """What the caller leaves out is not in the body, so that the card's defaults count."""
    body = msgspec.json.decode(protocol.chat("hi", None, {"seed": 1}).body)
    assert body == {"messages": [{"role": "user", "content": "hi"}], "seed": 1}
    body = msgspec.json.decode(protocol.complete("hi", "m", {}, stream=True).body)
    assert body == {"prompt": "hi", "model": "m", "stream": True, "stream_options": {"include_usage": True}}


CALL = {"id": "call_1", "type": "function", "function": {"name": "set_pump", "arguments": '{"pump": "ü"}'}}
BREAK = {"rung": "resample", "kind": "exact", "onset": 10, "period": 4, "copies": 6.0, "at": 34, "rewound": 24}
CALL_LOOP = {"kind": "same_call", "onset": 0, "copies": 3, "certain": True}


def test_calls_loops_and_verdicts_of_a_whole_answer():
    """What stands in a choice beside its text arrives as types, and the choice is the next request's turn."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": None, "refusal": None, "tool_calls": [CALL]},
        "finish_reason": "tool_calls",
        "loop": {"breaks": [BREAK], "stopped": False, "calls": CALL_LOOP, "new": 1},
        "skerry": {"structure": {"valid": False, "reason": "too short"}},
    }
    answer = protocol.read_answer(Reply(200, {}, json.dumps(chat_body("") | {"choices": [choice]}).encode()))
    (got,) = answer.choices
    assert (answer.text, answer.finish_reason) == ("", "tool_calls")
    assert answer.tool_calls[0].function == types.FunctionCall("set_pump", '{"pump": "ü"}')
    assert got.loop == types.Loop(breaks=(types.LoopBreak(**BREAK),), calls=types.CallLoop(**CALL_LOOP))
    assert got.structure == types.Structure(valid=False, reason="too short")
    result = types.Message("tool", "done", tool_call_id="call_1")
    sent = msgspec.json.decode(protocol.chat([got.message, result], None, {}).body)
    assert sent["messages"] == [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "done", "tool_call_id": "call_1"},
    ]


def test_calls_loops_and_verdicts_of_a_stream():
    """The pieces have them as they come, and together they are the answer."""

    def chunk(delta, **more):
        return event({"choices": [{"index": 0, "delta": delta, "finish_reason": None} | more]})

    other = CALL | {"id": "call_2"}
    chunks = [
        chunk({"content": "Look."}),
        chunk({}, loop={"breaks": [BREAK], "stopped": False}),
        chunk({"tool_calls": [{"index": 0, **CALL}]}),
        chunk({"tool_calls": [{"index": 1, **other}]}, loop={"breaks": [BREAK], "stopped": False}),
        chunk(
            {},
            finish_reason="tool_calls",
            loop={"breaks": [], "stopped": True, "calls": CALL_LOOP},
            skerry={"structure": {"valid": True}},
        ),
    ]
    reader, pieces = StreamReader(), []
    reader.push(b"".join(chunks) + event(b"[DONE]"))
    while (piece := reader.next_piece()) is not None:
        pieces.append(piece)
    assert [(p.text, len(p.tool_calls), p.loop is not None, p.finish_reason) for p in pieces] == [
        ("Look.", 0, False, None),
        ("", 0, True, None),
        ("", 1, False, None),
        ("", 1, True, None),
        ("", 0, True, "tool_calls"),
    ]
    (got,) = reader.answer.choices
    assert [c.id for c in got.tool_calls] == ["call_1", "call_2"]
    assert got.loop == types.Loop(
        breaks=(types.LoopBreak(**BREAK),) * 2, stopped=True, calls=types.CallLoop(**CALL_LOOP)
    )
    assert got.structure == pieces[-1].structure == types.Structure(valid=True)
    assert got.message == types.Message("assistant", "Look.", got.tool_calls)


def test_an_answer_of_text_is_the_turn_that_it_was():
    """Without calls, nothing of them is sent back."""
    answer = protocol.read_answer(Reply(200, {}, json.dumps(chat_body("hi")).encode()))
    assert answer.choices[0].loop is answer.choices[0].structure is None
    sent = msgspec.json.decode(protocol.chat([answer.choices[0].message], None, {}).body)
    assert sent["messages"] == [{"role": "assistant", "content": "hi"}]


def test_forms_and_tools_are_sent_as_they_are():
    """The options for structured answers are the API's own fields."""
    options = {"response_format": {"type": "json_object"}, "tools": [{"type": "function"}], "tool_choice": "auto"}
    options |= {"parallel_tool_calls": False, "loop_breaker": "warn"}
    body = msgspec.json.decode(protocol.chat("hi", None, options).body)
    assert body == options | {"messages": [{"role": "user", "content": "hi"}]}


def test_text_that_is_not_utf8_is_refused():
    """A file name's or argument's undecodable bytes are an invalid request, not a crash."""
    with pytest.raises(errors.InvalidRequest, match="UTF-8"):
        protocol.chat("caf\udce9", None, {})


def test_model_names_cannot_leave_their_place_in_the_path():
    """A model's name is one segment of the path, whatever it contains."""
    assert protocol.act_on_model("../../v1/x?y#z", "load").path == "/skerry/v1/models/..%2F..%2Fv1%2Fx%3Fy%23z/load"
    with pytest.raises(errors.InvalidRequest):
        protocol.act_on_model("..", "load")
