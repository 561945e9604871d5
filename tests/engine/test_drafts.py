"""Guesses: what is guessed, how much, and that an answer is the same with them as without."""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.decoding.breaker import Words
from appliance.decoding.sampling import SamplingParams
from appliance.engine.completion import CompletionRequest, Delta, complete
from appliance.engine.drafts import ANCHOR, FIRST, LONGEST_PAUSE, PAUSE, Drafts
from appliance.engine.generate import Token, generate
from appliance.engine.session import Session
from tests.fakes import built_models
from tests.fakes.grammars import IDS, OBJECT, SMALL, STOP, TINY, schema_grammar
from tests.fakes.scripted import RuledSession

ROOM = 1000


def array(tokens: Sequence[int]) -> np.ndarray:
    return np.array(tokens, np.int64)


def propose(tokens: Sequence[int], longest: int = 8, room: int = ROOM) -> list[int]:
    return Drafts(longest).propose(array(tokens), room)


# --- what is guessed --------------------------------------------------------------------------------------------------

# name | tokens | guess
GUESSES = [
    ("what stood before", [1, 2, 3, 4, 5, 6, 9, 1, 2, 3], [4, 5, 6, 9]),
    ("up to the end", [1, 2, 3, 4, 1, 2, 3], [4, 1, 2, 3]),
    ("a run of one token", [7, 7, 7, 7], [7]),
    ("two tokens alike are too few", [1, 2, 4, 5, 6, 1, 2], []),
    ("nothing alike", [1, 2, 3, 4, 5], []),
    ("too short to be alike", [1, 1], []),
    ("the place that agrees longest", [5, 1, 2, 3, 8, 6, 1, 2, 3, 9, 7, 5, 1, 2, 3], [8, 6, 1, 2]),
    ("the latest of equal ones", [5, 1, 2, 3, 8, 6, 1, 2, 3, 9, 7, 1, 2, 3], [9, 7, 1, 2]),
]


@pytest.mark.parametrize(("tokens", "guess"), [g[1:] for g in GUESSES], ids=[g[0] for g in GUESSES])
def test_what_followed_is_guessed_to_follow_again(tokens: list[int], guess: list[int]) -> None:
    """After three tokens that stood before, from the place that agrees best."""
    assert propose(tokens) == guess


def test_a_guess_leaves_room_for_what_is_drawn_after_it() -> None:
    """One token less than there may be."""
    text = [*range(20), *range(10)]
    assert [len(propose(text, room=room)) for room in (1, 2, 3, 100)] == [0, 1, 2, FIRST]
    assert [len(propose(text, longest=longest)) for longest in (0, 1, 3, 100)] == [0, 1, 3, FIRST]


def test_right_guesses_grow() -> None:
    """Twice as long after one that was right; as long as was right after another."""
    drafts, text = Drafts(12), array([*range(100), *range(50)])
    assert len(drafts.propose(text, ROOM)) == FIRST
    drafts.learn(150, FIRST, FIRST)
    assert len(drafts.propose(text, ROOM)) == 2 * FIRST
    drafts.learn(150, 2 * FIRST, 2 * FIRST)
    assert len(drafts.propose(text, ROOM)) == 12
    drafts.learn(150, 12, 5)
    assert len(drafts.propose(text, ROOM)) == 5


def test_wrong_guesses_pause() -> None:
    """For longer each time, up to a limit; one that was right at all ends that."""
    drafts, text, end, pauses = Drafts(8), array(list(range(10)) * 100), 50, []
    for accepted in (0, 0, 0, 0, 0, 0, 1, 0):
        drafts.learn(end, 4, accepted)
        again = next(n for n in range(end, 1000) if drafts.propose(text[:n], ROOM))
        pauses.append(again - end)
        end = again
    assert pauses == [PAUSE, 8, 16, 32, LONGEST_PAUSE, LONGEST_PAUSE, 0, PAUSE]


def test_what_was_taken_back_is_forgotten() -> None:
    """A guess is only ever made of tokens that are there."""
    drafts = Drafts(8)
    text = [1, 2, 3, 4, 5, 6, 7, 8]
    assert drafts.propose(array(text), ROOM) == []
    drafts.rewind(4)
    assert drafts.propose(array([1, 2, 3, 4, 9, 9, 4, 5, 6]), ROOM) == []
    drafts.rewind(3)
    assert drafts.propose(array([1, 2, 3, 9, 1, 2, 3]), ROOM) == [9, 1, 2, 3]


# --- what becomes of it -----------------------------------------------------------------------------------------------

END = 290
WORDS = Words.of([b" " + bytes(97 + (n // 26**k) % 26 for k in range(3)) for n in range(290)] + [b""] * 10)


def chatter(seed: int, peak: float) -> RuledSession:
    """A model that repeats itself a lot, and not always: its next token hangs on the last two of a few."""

    def rule(seen: Sequence[int]) -> dict[int, float]:
        rng = random.Random(f"{seed} {seen[-2:]}")  # noqa: S311
        if len(seen) > 400:
            return {END: 50}
        return {rng.randrange(12): peak * rng.random() for _ in range(4)}

    return RuledSession(rule, stop=(END,))


TINY_WORDS = Words.of(TINY.token_bytes)


def answer(
    session: RuledSession, drafts: int, words: Words = WORDS, **request: object
) -> tuple[list[Delta], list[int]]:
    session.draft_tokens = drafts
    settings = {"max_tokens": 300, "sampling": SamplingParams(temperature=0), **request}
    wanted = CompletionRequest(prompt=(9, 1, 2, 3, 4), **settings)  # type: ignore[arg-type]
    deltas = [s for s in complete(session, words, wanted) if isinstance(s, Delta)]  # type: ignore[arg-type]
    return deltas, session.forwards


def what_was_said(deltas: list[Delta]) -> tuple[object, ...]:
    return (
        "".join(d.text for d in deltas),
        [token for d in deltas for token in d.tokens],
        [done for d in deltas for done in d.breaks],
        [d.logprobs for d in deltas if d.logprobs],
        deltas[-1].finish_reason,
        deltas[-1].usage and (deltas[-1].usage.completion_tokens, deltas[-1].usage.rewound_tokens),
    )


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    peak=st.sampled_from([1.0, 8.0, 40.0]),
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    longest=st.sampled_from([1, 2, 5, 16]),
    breaker=st.sampled_from(["break", "stop", "warn", "off"]),
    streamed=st.booleans(),
    most=st.sampled_from([1, 2, 7, 300]),
    top=st.sampled_from([None, 2]),
)
def test_an_answer_is_the_same_with_guesses_as_without(
    seed: int, peak: float, temperature: float, longest: int, breaker: str, streamed: bool, most: int, top: int | None
) -> None:
    """Token for token, greedy or by chance, with loops broken on the way: where the rows are equal, so is all."""
    request = {
        "sampling": SamplingParams(temperature=temperature, seed=seed),
        "breaker": breaker,
        "streamed": streamed,
        "max_tokens": most,
        "top_logprobs": top,
    }
    plain, _ = answer(chatter(seed, peak), 0, **request)
    guessed, _ = answer(chatter(seed, peak), longest, **request)
    assert what_was_said(guessed) == what_was_said(plain)


FORM = schema_grammar(
    {
        "type": "object",
        "properties": {"rows": {"type": "array", "items": OBJECT, "minItems": 3}, "name": {"type": "string"}},
        "required": ["rows", "name"],
        "additionalProperties": False,
    },
    bounds=SMALL,
)


def babble(seed: int) -> RuledSession:
    """A model that says something of letters, digits and marks, what exactly hangs on the last two tokens."""

    def rule(seen: Sequence[int]) -> dict[int, float]:
        rng = random.Random(f"{seed} {seen[-2:]}")  # noqa: S311
        return {rng.choice(LIKELY): 20 * rng.random() for _ in range(40)}

    return RuledSession(rule, len(TINY.token_bytes), stop=STOP)


LIKELY = [IDS[text.encode()] for text in (*'abc123",:{}[] ', "name", "ab", '"a"', "12", '": ')]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), temperature=st.sampled_from([0.0, 1.0]), top=st.sampled_from([None, 0]))
def test_a_form_is_the_same_with_guesses_as_without(seed: int, temperature: float, top: int | None) -> None:
    """Where the grammar leaves no choice, and where it does; forced tokens may be a part of what was guessed."""
    request = {
        "sampling": SamplingParams(temperature=temperature, seed=seed),
        "grammar": FORM,
        "top_logprobs": top,
        "streamed": False,
    }
    plain, _ = answer(babble(seed), 0, words=TINY_WORDS, **request)
    guessed, _ = answer(babble(seed), 8, words=TINY_WORDS, **request)
    assert what_was_said(guessed) == what_was_said(plain)
    assert guessed[-1].complete == plain[-1].complete


def test_guesses_save_forwards() -> None:
    """Of a text that says much again; and hardly cost any where nothing comes again."""
    _, forwards = answer(chatter(3, 40.0), 0, breaker="off")
    _, fewer = answer(chatter(3, 40.0), 15, breaker="off")
    assert len(forwards) > 2.5 * len(fewer)

    def news(seen: Sequence[int]) -> dict[int, float]:
        return {(7 * len(seen)) % 290: 50}

    _, plain = answer(RuledSession(news, stop=(END,)), 0)
    _, guessed = answer(RuledSession(news, stop=(END,)), 15)
    assert sum(guessed) <= 1.1 * sum(plain)


def test_what_the_form_forbids_is_not_computed() -> None:
    """A guess ends where the grammar does not go on with it, and is none where it does not begin with it."""
    grammar = FORM.start()
    said = [IDS[text.encode()] for text in ("{", '"', "r", "o", "w", "s", '"', ":", " ", "[")]
    wrong, stop = IDS[b"}"], STOP[0]
    assert grammar.accepts(said) == len(said)
    assert grammar.accepts([*said[:3], wrong, *said[3:]]) == 3
    assert grammar.accepts([wrong]) == 0
    assert grammar.accepts([*said[:2], stop, *said[2:]]) == 2
    assert grammar.accepts([len(TINY.token_bytes) + 5]) == 0
    assert grammar.accepts([]) == 0
    for token in said:
        grammar.advance(token)
    assert grammar.accepts(said[1:]) == 0, "none of it changed the state, and now it may not come any more"


@pytest.mark.parametrize("architecture", built_models.ARCHITECTURES)
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_real_engine_says_the_same(
    tmp_path: Path, architecture: built_models.Architecture, temperature: float
) -> None:
    """In float32, whose rows do not hang on how many are computed at once."""
    built = built_models.tiny(tmp_path / "box", architecture, "f32", context_length=1024)
    prompt = array([5, 17, 90, 33, 250, 7, 7, 120, 64, 201, 15, 88] * 3)
    sampling = SamplingParams(temperature=temperature, seed=11)
    said, forwards = [], []
    for longest in (0, 8):
        with Session(built.open(), 1, draft_tokens=longest) as session:
            count, forward = [0], session.forward

            def counting(*a: object, forward=forward, count=count) -> object:  # type: ignore[no-untyped-def]
                count[0] += 1
                return forward(*a)

            session.forward = counting  # type: ignore[method-assign]
            events = generate(session, prompt, sampling, max_tokens=400)
            said.append([event.id for event in events if isinstance(event, Token)])
            forwards.append(count[0])
    assert said[0] == said[1]
    assert len(said[0]) > ANCHOR
    assert forwards[1] <= forwards[0]
