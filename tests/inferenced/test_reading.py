"""How an answer with a form ends: by itself, at its length, at a stop text, closed by the breaker; and what is told."""

import json
import logging
from typing import Any

import pytest

from appliance.decoding.breaker import Words
from appliance.decoding.conformity import NO_SUCH_TIME
from appliance.decoding.grammar import Constraint, Vocabulary, compile_grammar
from appliance.decoding.sampling import SamplingParams
from appliance.engine.completion import CompletionRequest, Delta, complete
from appliance.errors import InternalError
from appliance.inferenced.preferences import PreferenceStore, keep_breaks
from appliance.inferenced.reading import Reading
from appliance.inferenced.responses import Answer
from appliance.inferenced.structure import Plan
from appliance.models.tool_styles import HERMES, Tool
from tests.fakes.scripted import RuledSession
from tests.inferenced.test_structured import FORM, PUMP, deltas, shape, streamed, whole

TOKEN_BYTES = [*(bytes([b]) for b in range(256)), b""]
END = 256
VOCABULARY = Vocabulary(TOKEN_BYTES, {}, [END], lambda text: list(text.encode()))
INTEGER = Constraint("json_schema", '{"type": "integer"}')
NOTE = Constraint("json_schema", json.dumps({"type": "object", "properties": {"note": {"type": "string"}}, "required": ["note"], "additionalProperties": False}))  # fmt: skip  # noqa: E501


def compute(form: Constraint, says: str, for_ever: str = "", **request: Any) -> list[Delta]:
    """The steps of an answer by a model that says a text, and then another one for ever, or ends."""

    def rule(seen: Any) -> dict[int, float]:
        at = len(seen) - 1
        if at < len(says):
            return {ord(says[at]): 50}
        return {ord(for_ever[(at - len(says)) % len(for_ever)]) if for_ever else END: 50}

    wanted = CompletionRequest(
        prompt=(1,),
        sampling=SamplingParams(temperature=0),
        grammar=compile_grammar(form, VOCABULARY),
        **{"max_tokens": 900, "streamed": False, **request},
    )
    session = RuledSession(rule, len(TOKEN_BYTES), stop=(END,))
    return [s for s in complete(session, Words.of(TOKEN_BYTES), wanted) if isinstance(s, Delta)]  # type: ignore[arg-type]


# what ends it | form | request | text | finish reason | reason why it is not valid
ENDS = [
    ("the model", INTEGER, {}, "1234567", "stop", None),
    ("the model, with a stop text that never comes", INTEGER, {"stop": ("9",)}, "1234567", "stop", None),
    ("the form", Constraint("regex", "[0-9]{3}"), {"stop": ("9",)}, "123", "stop", None),
    ("its length", INTEGER, {"max_tokens": 4}, "1234", "length", "max_tokens was reached before its end"),
    ("its length, of a regex", Constraint("regex", "[0-9]+"), {"max_tokens": 4}, "1234", "length", "max_tokens was reached before its end"),  # noqa: E501
    ("a stop text", INTEGER, {"stop": ("7",)}, "123456", "stop", "a stop text came before its end"),
    ("a stop text at the form's end", Constraint("regex", "[0-9]{6}7?"), {"stop": ("7",)}, "123456", "stop", None),
]  # fmt: skip


@pytest.mark.parametrize(("form", "request_", "text", "reason", "why"), [e[1:] for e in ENDS], ids=[e[0] for e in ENDS])
def test_valid_is_what_came_to_its_end(
    form: Constraint, request_: Any, text: str, reason: str, why: str | None
) -> None:
    """A number that was cut is a number too, but not the one that was meant; a stop text counts only if it came."""
    steps = compute(form, "1234567", **request_)
    choice = whole(Plan(form), steps)
    assert (choice["message"]["content"], choice["finish_reason"]) == (text, reason)
    told = {"valid": True} if why is None else {"valid": False, "reason": why}
    assert choice["skerry"]["structure"] == told
    assert streamed(Plan(form), steps) == choice


def test_a_defect_is_one_whatever_stop_texts_were_asked_for() -> None:
    """A stop text that did not come explains nothing; one that came does."""
    with pytest.raises(InternalError, match="let something invalid through"):
        whole(Plan(FORM), deltas('{"city": "Oslo"}'))
    cut = Delta("", finish_reason="stop", usage=deltas()[-1].usage, complete=True, at_stop_text=True)
    choice = whole(Plan(FORM), [Delta('{"city": "Oslo"'), cut])
    assert choice["skerry"]["structure"] == {"valid": False, "reason": "a stop text came before its end"}
    unfinished = whole(Plan(FORM), deltas('{"city": "Oslo"', complete=False))
    assert unfinished["skerry"]["structure"] == {"valid": False, "reason": "not JSON, at 15"}


def test_a_day_that_no_calendar_has_is_told_and_is_no_defect() -> None:
    """A grammar lets it come: the answer is given, and is not valid."""
    form = Constraint("json_schema", '{"type": "string", "format": "date"}')
    for day, told in (("2023-02-29", {"valid": False, "reason": NO_SUCH_TIME}), ("2024-02-29", {"valid": True})):
        choice = whole(Plan(form), compute(form, f'"{day}"'))
        assert (choice["message"]["content"], choice["finish_reason"]) == (f'"{day}"', "stop")
        assert choice["skerry"]["structure"] == told


def test_a_call_on_a_day_that_no_calendar_has_is_told_too() -> None:
    """The call is given, for a program may know better; the answer is not valid."""
    tool = Tool("plan", "", {"type": "object", "properties": {"day": {"type": "string", "format": "date"}}})
    for day, valid in (("2023-02-29", False), ("2024-02-29", True)):
        reading = Reading(Plan(style=HERMES, tools=(tool,), must_call=True), VOCABULARY)
        said = f'<tool_call>\n{{"name": "plan", "arguments": {{"day": "{day}"}}}}\n</tool_call>'
        calls = [*reading.push(said), *reading.finish("stop", complete=True)]
        assert len([call for call in calls if not isinstance(call, str)]) == 1
        assert reading.valid is valid
        assert reading.reason == ("" if valid else NO_SUCH_TIME)


def test_the_log_names_a_defect_and_not_the_answer(caplog: pytest.LogCaptureFixture) -> None:
    """The keyword that was broken stands in the log; names that the model chose do not."""
    caplog.set_level(logging.INFO)
    form = Constraint("json_schema", json.dumps({"additionalProperties": {"type": "integer"}}))
    with pytest.raises(InternalError):
        whole(Plan(form), deltas('{"secret": "x"}'))
    assert "InternalError" in caplog.text
    assert "breaks type" in caplog.text
    assert "secret" not in caplog.text


SENTENCE = " the pump is hot now and wet again."


@pytest.mark.parametrize("request_", [{}, {"stop": ("}",)}], ids=["closed", "a stop text in what closes it"])
def test_an_answer_that_the_breaker_closed_ended_in_a_loop(request_: Any) -> None:
    """It is whole JSON, but the model did not end it: the reason is `loop`, in the whole answer and in the stream."""
    steps = compute(NOTE, '{"note": "', SENTENCE, breaker="stop", **request_)
    choice = whole(Plan(NOTE), steps)
    assert [done["rung"] for done in choice["loop"]["breaks"]] == ["complete"]
    assert (choice["finish_reason"], choice["loop"]["stopped"]) == ("loop", True)
    assert choice["skerry"]["structure"]["valid"] is (not request_)
    assert streamed(Plan(NOTE), steps) == choice


def test_calls_that_the_breaker_closed_ended_in_a_loop() -> None:
    """The calls are there, but `tool_calls` would say that the model had made them to its end."""
    plan = Plan(style=HERMES, tools=(PUMP,), must_call=True)
    form = plan.constraint({})
    assert form is not None
    begin = '<tool_call>\n{"name": "set_pump", "arguments": {"pump": "'
    choice = whole(plan, compute(form, begin, SENTENCE, breaker="stop", max_tokens=2000))
    assert [done["rung"] for done in choice["loop"]["breaks"]] == ["complete"]
    assert (choice["finish_reason"], choice["loop"]["stopped"]) == ("loop", True)
    assert len(choice["message"]["tool_calls"]) == 1
    assert choice["skerry"]["structure"]["valid"] is True


def test_no_pair_is_kept_of_an_answer_that_was_closed(tmp_path: Any) -> None:
    """What the breaker wrote is nobody's better answer, even if an earlier loop in it was left."""
    answer = Answer()
    for step in compute(NOTE, '{"note": "', SENTENCE):
        answer.add(step)
    assert [done.rung for done in answer.breaks][-1] == "complete"
    assert answer.breaks[0].replacement is not None
    store = PreferenceStore(tmp_path / "pairs", 1 << 20)
    loaded: Any = type("Loaded", (), {"tokenizer": type("T", (), {"token_bytes": TOKEN_BYTES}), "name": "m"})
    keep_breaks(store, "p", answer, loaded)
    assert not (tmp_path / "pairs").exists()


@pytest.mark.parametrize("said", ["<", "<tool", ""])
def test_half_a_marker_of_a_call_that_has_to_come_is_no_content(said: str) -> None:
    """Where a call is required, what was cut in its marker is null, as the API says."""
    plan = Plan(style=HERMES, tools=(PUMP,), must_call=True)
    steps = deltas(said, reason="length", complete=False)
    assert whole(plan, steps)["message"]["content"] is None
    assert streamed(plan, steps) == whole(plan, steps)
    reading = Reading(Plan(style=HERMES, tools=(PUMP,)), shape(plan)._vocabulary)
    assert reading.push(said) + reading.finish("length", complete=False) == ([said] if said else [])
