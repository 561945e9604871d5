"""Loops inside of a form: what is taken back, drawn anew and completed keeps to the grammar."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from appliance.decoding.breaker import Break, Words
from appliance.decoding.grammar import Constraint, GrammarState, Vocabulary, compile_grammar
from appliance.decoding.sampling import Logits, SamplingParams
from appliance.engine.completion import CompletionRequest, Delta, complete
from appliance.engine.session import Wanted
from tests.fakes.scripted import RuledSession

SAID = (" the", " pump", " is", " hot", " now", " and", " wet", " ok")
TOKEN_BYTES = [*(bytes([b]) for b in range(256)), *(word.encode() for word in SAID), b""]
THE, OK, END = 256, 263, 264
SENTENCE = [*range(THE, OK), ord(".")]
TEXT = "".join(SAID[:-1]) + "."
COPIES = 12
"""Of the sentence, before it is a loop: 96 tokens."""


def encode(text: str) -> list[int]:
    """Words where there are some, else bytes."""
    for token, word in enumerate(SAID, THE):
        if text.startswith(word):
            return [token, *encode(text[len(word) :])]
    return [text.encode()[0], *encode(text[1:])] if text else []


VOCABULARY = Vocabulary(TOKEN_BYTES, {}, [END], encode)
WORDS = Words.of(TOKEN_BYTES)


def says(script: Sequence[int], for_ever: Sequence[int] = SENTENCE) -> RuledSession:
    """A model that says a script and then the same for ever, whatever was said instead; at second best ` ok`."""

    def rule(seen: Sequence[int]) -> dict[int, float]:
        said = len(seen) - 1
        token = script[said] if said < len(script) else for_ever[(said - len(script)) % len(for_ever)]
        return {token: 50, OK: 40} if token != OK else {OK: 50}

    return RuledSession(rule, len(TOKEN_BYTES), stop=(END,))


def run(
    session: RuledSession, form: Constraint, max_tokens: int = 1000, **request: Any
) -> tuple[str, Delta, list[Break], list[Delta]]:
    """The text, the last step, what was broken, and all steps."""
    wanted = CompletionRequest(
        prompt=(1,),
        sampling=SamplingParams(temperature=0),
        max_tokens=max_tokens,
        grammar=compile_grammar(form, VOCABULARY),
        **{"streamed": False, **request},
    )
    steps = [s for s in complete(session, WORDS, wanted) if isinstance(s, Delta)]  # type: ignore[arg-type]
    return "".join(s.text for s in steps), steps[-1], [done for s in steps for done in s.breaks], steps


def copies(least: int, most: int) -> Constraint:
    """So many sentences, then ` ok`."""
    sentence = TEXT.replace(".", r"\.")
    return Constraint("regex", f"({sentence}){{{least},{most}}} ok")


LETTER = "I write to you about what was found on 3 May in boiler room B, and what we did: "


# With log probabilities every token is drawn, also those that a grammar leaves no choice about.


def test_a_form_that_wants_the_repetition_gets_it() -> None:
    """Going back, the grammar goes back too: there it allows nothing but the same again, and at last the end of it."""
    text, last, breaks, _ = run(says([]), copies(14, 40), top_logprobs=0)
    assert [(done.rung, done.length) for done in breaks] == [("resample", 8), ("complete", 8)]
    assert [done.replacement for done in breaks] == [THE, None]
    assert text == TEXT * 14 + " ok"
    assert last.complete
    assert last.usage
    assert last.usage.completion_tokens == 14 * 8 + 1
    assert last.usage.rewound_tokens == sum(done.rewound for done in breaks)


def test_a_form_that_need_not_repeat_is_left() -> None:
    """The token that would begin the loop again is banned, and another one that the grammar allows is drawn."""
    text, last, breaks, _ = run(says([]), copies(1, 40), top_logprobs=0)
    assert [(done.rung, done.replacement) for done in breaks] == [("resample", OK)]
    assert text == TEXT + " ok"
    assert (last.finish_reason, last.complete) == ("stop", True)


def test_what_replaces_a_loop_is_told_with_its_rivals() -> None:
    """Also where the form allows so few tokens that only their logits are computed elsewhere."""
    sentence = TEXT.removeprefix(SAID[0]).replace(".", r"\.")
    session = says([])
    few, whole = list[bool](), session.forward_together

    def noted(wanted: Sequence[Wanted]) -> list[Logits]:
        few.extend(w.ids is not None for w in wanted)
        return whole(wanted)

    session.forward_together = noted  # type: ignore[method-assign]
    text, _, breaks, _ = run(session, Constraint("regex", f"(( the| ok){sentence}){{3,40}}"), max_tokens=200)
    assert breaks[0].rung == "resample"
    assert breaks[0].replacement == OK
    assert {token for token, _ in breaks[0].alternatives} >= {THE, OK}
    assert len(breaks[0].alternatives) > 2, "of all tokens, not of those that the form allows"
    assert True in few
    assert text.startswith(TEXT + " ok")


def test_a_completion_without_room_is_cut() -> None:
    """The answer ends with the reason for that, and is not called complete."""
    text, last, breaks, _ = run(says([]), copies(14, 40), max_tokens=100, top_logprobs=0)
    assert [done.rung for done in breaks] == ["resample", "complete"]
    assert (last.finish_reason, last.complete) == ("length", False)
    assert encode(text) == (SENTENCE * 13)[:100]


def test_a_form_without_a_way_out_ends_in_its_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no completion is found the answer is cut before the repetition, and says so."""
    monkeypatch.setattr(GrammarState, "shortest_completion", lambda self: None)
    text, last, _, _ = run(says([]), copies(14, 40), top_logprobs=0)
    assert text == TEXT
    assert (last.finish_reason, last.complete) == ("loop", False)


def test_a_form_that_ends_with_the_loop_is_complete() -> None:
    """The token that makes a loop certain is the last one: there is nothing to leave."""
    form = Constraint("regex", f"({TEXT[:-1]}[.]){{{COPIES}}}")
    text, last, breaks, _ = run(says([]), form, top_logprobs=0)
    assert (text, breaks) == (TEXT * COPIES, [])
    assert (last.finish_reason, last.complete) == ("stop", True)


@pytest.mark.parametrize(
    ("form", "script", "rung"),
    [
        (Constraint("json_object"), '{"a": "', "complete"),
        (Constraint("lark", r'start: "<" /[^>]*/ ">"'), "<", "complete"),
        (Constraint("lark", r"start: /(.|\n)*/"), LETTER, "restart"),
    ],
    ids=["JSON", "a call", "free text beside calls"],
)
def test_free_text_is_broken_as_without_a_form(form: Constraint, script: str, rung: str) -> None:
    """Where a text may end, as between two calls, nothing has to be completed."""
    _, _, breaks, _ = run(says(encode(script)), form, top_logprobs=0)
    assert [done.rung for done in breaks][:2] == ["resample", rung]


# --- what a grammar leaves no choice about ----------------------------------------------------------------------------

PUMP = {"type": "object", "properties": {"pump": {"enum": ["on", "off"]}}, "required": ["pump"]}
FORM = Constraint("json_schema", json.dumps(PUMP | {"additionalProperties": False}))
ANSWER = '{"pump": "off"}'


def test_forced_tokens_cost_no_step() -> None:
    """Keys and brackets are appended without asking the model, and the answer ends with its form."""
    session = says(encode(ANSWER))
    text, last, _, steps = run(session, FORM)
    assert text == ANSWER
    assert (last.finish_reason, last.complete) == ("stop", True)
    assert last.usage
    assert last.usage.completion_tokens == len([t for s in steps for t in s.tokens]) == len(encode(ANSWER))
    assert len(session.forwards) < len(encode(ANSWER)) / 2


def test_with_log_probabilities_every_token_is_drawn() -> None:
    """Each has an entry, so each needs the model."""
    session = says(encode(ANSWER))
    text, _, _, steps = run(session, FORM, top_logprobs=0)
    assert text == ANSWER
    assert [s.logprobs.token for s in steps if s.logprobs] == encode(ANSWER)
    assert session.forwards == [1] * len(encode(ANSWER))


@pytest.mark.parametrize("max_tokens", range(1, len(encode(ANSWER)) + 1))
def test_forced_tokens_count(max_tokens: int) -> None:
    """No answer is longer than it may be."""
    text, last, _, _ = run(says(encode(ANSWER)), FORM, max_tokens=max_tokens)
    assert encode(text) == encode(ANSWER)[:max_tokens]
    whole = max_tokens == len(encode(ANSWER))
    assert (last.finish_reason, last.complete) == (("stop", True) if whole else ("length", False))


@pytest.mark.parametrize("mode", ["break", "stop"])
@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
def test_what_the_form_leaves_no_choice_about_is_no_loop(mode: str, streamed: bool) -> None:
    """A constant that repeats itself is the caller's; the answer is whole, and shown once."""
    value = {"a": TEXT * 20 + "abcdefghijklmnopqrstuvwxyz", "b": "x"}
    schema = {
        "properties": {"a": {"const": value["a"]}, "b": {"enum": ["x", "y"]}},
        "type": "object",
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    text = json.dumps(value)
    session = says([*encode(text), END])
    said, last, breaks, _ = run(session, Constraint("json_schema", json.dumps(schema)), breaker=mode, streamed=streamed)
    assert (said, last.finish_reason, breaks) == (text, "stop", [])


# --- guesses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "script"),
    [
        (copies(1, 40), ""),
        (copies(14, 40), ""),
        (Constraint("json_object"), '{"a": "'),
        (Constraint("lark", r"start: /(.|\n)*/"), LETTER),
    ],
    ids=["resampled", "completed", "JSON", "begun anew"],
)
def test_a_loop_that_was_guessed_is_broken_as_one_that_was_not(form: Constraint, script: str) -> None:
    """A loop is what guesses are best at: some of it lies in the cache already when it is found."""
    plain = run(says(encode(script)), form, max_tokens=400)
    session = says(encode(script))
    session.draft_tokens = 12
    guessed = run(session, form, max_tokens=400)
    assert guessed[0] == plain[0]
    assert [(done.rung, done.length, done.replacement) for done in guessed[2]] == [
        (done.rung, done.length, done.replacement) for done in plain[2]
    ]
    assert guessed[1].usage
    assert guessed[1].usage.guessed_tokens
    assert plain[2], "there is a loop"
