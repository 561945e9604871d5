"""Answers in words: characters, stop strings, reasons, and how many steps each takes."""

import numpy as np
import pytest

from appliance.decoding.breaker import Mode, Words
from appliance.decoding.sampling import SamplingParams
from appliance.engine.completion import CompletionRequest, Delta, complete
from appliance.engine.forward import Forward
from appliance.engine.generate import Prefilled
from appliance.engine.prefixes import PART
from tests.fakes.scripted import RuledSession, ScriptedSession

GREEDY = SamplingParams(temperature=0)
END = 256


BYTES = Words.of([bytes([b]) for b in range(256)] + [b""] * 44)
"""A vocabulary whose token n is the byte n."""


def answer(
    script: bytes, *, max_tokens: int = 100, stop: tuple[str, ...] = (), prompt: int = 3
) -> tuple[list[Delta], ScriptedSession]:
    session = ScriptedSession([*script, END, 0], stop=(END,))
    request = CompletionRequest(prompt=(1,) * prompt, sampling=GREEDY, max_tokens=max_tokens, stop=stop)
    steps = complete(session, BYTES, request)  # type: ignore[arg-type]
    return [s for s in steps if isinstance(s, Delta)], session


def test_characters_are_never_split() -> None:
    """Each piece is whole characters, though every token is one byte; together they are the text."""
    text = "Größe: 3 µm – ok 👩‍🔧 çà"
    deltas, _ = answer(text.encode())
    assert "".join(d.text for d in deltas) == text
    assert not any("\ufffd" in d.text for d in deltas)
    assert deltas[-1].finish_reason == "stop"


def test_cut_character_at_the_end_is_marked() -> None:
    """An answer that ends by max_tokens inside of a character shows one U+FFFD, and only at its end."""
    deltas, _ = answer("aé".encode(), max_tokens=2)
    assert "".join(d.text for d in deltas) == "a\ufffd"
    assert deltas[-1].finish_reason == "length"


@pytest.mark.parametrize(
    ("script", "stop", "shown", "reason"),
    [
        (b"one two three", ("two",), "one ", "stop"),
        (b"one two three", ("three",), "one two ", "stop"),
        (b"one two three", ("twice", "thr"), "one two ", "stop"),
        (b"one two", ("two three",), "one two", "stop"),  # held back, then given out at the end
        (b"aab", ("ab",), "a", "stop"),
        ("né né".encode(), ("é n",), "n", "stop"),
    ],
)
def test_stop_strings(script: bytes, stop: tuple[str, ...], shown: str, reason: str) -> None:
    """The text before the stop string is shown, all of it, and nothing after."""
    deltas, _ = answer(script, stop=stop)
    assert "".join(d.text for d in deltas) == shown
    assert deltas[-1].finish_reason == reason


def test_nothing_is_computed_past_a_stop() -> None:
    """The engine takes exactly the steps up to the token that completes the stop string."""
    _, session = answer(b"ab|cdef", stop=("|",))
    assert session.said == 3


def test_max_tokens_are_exact() -> None:
    """`max_tokens` steps and the reason "length"; usage counts prompt and answer."""
    deltas, session = answer(b"abcdef", max_tokens=4, prompt=7)
    assert session.said == 4
    assert deltas[-1].finish_reason == "length"
    assert deltas[-1].usage is not None
    assert (deltas[-1].usage.prompt_tokens, deltas[-1].usage.completion_tokens) == (7, 4)


def test_a_step_is_one_forward() -> None:
    """Between two steps of the iterator lies one forward pass: whoever stops asking stops the work."""
    session = ScriptedSession([*b"abcdefgh", END], stop=(END,))
    request = CompletionRequest(prompt=(1,) * (2 * PART + 10), sampling=GREEDY, max_tokens=8)
    steps = complete(session, BYTES, request)  # type: ignore[arg-type]
    for done in range(1, 7):
        wanted = next(steps)
        assert isinstance(wanted, Forward)
        assert len(session.forwards) == done - 1
        step = next(steps)
        assert len(session.forwards) == done
        assert isinstance(step, Prefilled) == (done <= 3)
    assert session.forwards == [PART, PART, 9, 1, 1, 1]


@pytest.mark.parametrize("breaker", ["break", "off"])
def test_dry_does_not_reach_across_a_line(breaker: Mode) -> None:
    """A repetition ends at a line's end for DRY, whether anybody looks for loops or not."""
    session = RuledSession(lambda seen: {b"ab\nab\nab\nab\n"[len(seen) - 1]: 9.0}, stop=(END,))
    sampling = SamplingParams(temperature=0, dry_multiplier=8, dry_allowed_length=1)
    request = CompletionRequest(prompt=(1,), sampling=sampling, max_tokens=7, breaker=breaker)
    said = "".join(s.text for s in complete(session, BYTES, request) if isinstance(s, Delta))  # type: ignore[arg-type]
    assert said == "ab\nab\na"


def test_end_of_text_has_no_logprobs_entry() -> None:
    """Entries and shown tokens go together: the token that ends the answer has none."""
    session = ScriptedSession([*b"ab", END], stop=(END,))
    request = CompletionRequest(prompt=(1,), sampling=GREEDY, max_tokens=8, top_logprobs=2)
    deltas = [s for s in complete(session, BYTES, request) if isinstance(s, Delta)]  # type: ignore[arg-type]
    entries = [d.logprobs for d in deltas if d.logprobs]
    assert [e.token for e in entries] == list(b"ab")
    assert all(np.isclose(e.logprob, 0, atol=1e-3) for e in entries)


def test_log_probabilities_without_rivals() -> None:
    """None of them are wanted, but that of each token is."""
    session = ScriptedSession([*b"ab", END], stop=(END,))
    request = CompletionRequest(prompt=(1,), sampling=GREEDY, max_tokens=8, top_logprobs=0)
    deltas = [s for s in complete(session, BYTES, request) if isinstance(s, Delta)]  # type: ignore[arg-type]
    assert [(d.logprobs.token, d.logprobs.top) for d in deltas if d.logprobs] == [(ord("a"), ()), (ord("b"), ())]


def test_penalties_leave_the_prompt_out() -> None:
    """What the caller wrote may be said again."""
    session = RuledSession(lambda seen: {ord("a"): 3, ord("b"): 2}, stop=(END,))
    sampling = SamplingParams(temperature=0, presence_penalty=2)
    request = CompletionRequest(prompt=(ord("a"),) * 3, sampling=sampling, max_tokens=2)
    steps = complete(session, BYTES, request)  # type: ignore[arg-type]
    assert "".join(s.text for s in steps if isinstance(s, Delta)) == "ab"


def test_a_stop_string_that_is_known_at_the_end_is_the_reason() -> None:
    """A longer one could still have come, but there is no room: it is the shorter one that ends the answer."""
    deltas, _ = answer(b"xabcdef", max_tokens=3, stop=("abcd", "ab"))
    assert "".join(d.text for d in deltas) == "x"
    assert deltas[-1].finish_reason == "stop"


def test_times_are_those_of_the_prompt_and_of_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the first token, and from there to the last, by a clock that ticks with each step of the model."""
    session = ScriptedSession([*b"abcdefgh", END], stop=(END,))
    monkeypatch.setattr("appliance.engine.completion.time.monotonic", lambda: float(len(session.forwards) + 5))
    request = CompletionRequest(prompt=(1,) * (2 * PART + 10), sampling=GREEDY, max_tokens=8)
    (*_, last) = complete(session, BYTES, request)  # type: ignore[arg-type]
    assert isinstance(last, Delta)
    assert last.usage
    assert (last.usage.prompt_s, last.usage.decode_s) == (4.0, 7.0)
