"""Logits of a few tokens are those that the whole head gives for them."""

import json
from collections.abc import Iterator

import numpy as np
import pytest

from appliance.decoding.grammar import Constraint, Vocabulary, compile_grammar
from appliance.decoding.sampling import SamplingParams
from appliance.engine.forward import Forward, compute
from appliance.engine.generate import Token, generate
from appliance.engine.head import Head
from appliance.engine.session import Session, Wanted
from appliance.errors import InternalError
from tests.fakes import built_models

rng = np.random.default_rng(5)
PROMPT = rng.integers(3, 300, 40)
CLOSE = {"f32": 1e-4, "q8": 0.3, "w8a8": 0.3, "q4x": 0.3}
"""How far logits may be apart: with 8 bits the graph's own head rounds activations, and this one does not."""


def few_and_all(session: Session, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The row of some tokens, and the whole row, after the same prompt."""
    one, other = session.new_cache(128), session.new_cache(128)
    rows = np.array([len(PROMPT) - 1])
    (few,) = session.forward_together([Wanted(one, PROMPT, rows, ids)])
    return few[0].copy(), session.forward(other, PROMPT)[0]


@pytest.mark.parametrize("count", [1, 6, 250, 320])
def test_a_few_logits_are_those_of_the_whole_head(session: Session, count: int) -> None:
    """On the tokens that are wanted; minus infinity on the others."""
    ids = np.sort(rng.choice(session.card.vocabulary_size, count, replace=False))
    few, whole = few_and_all(session, ids)
    np.testing.assert_allclose(few[ids], whole[ids], rtol=0, atol=CLOSE[session.card.quantization.scheme])
    assert np.isneginf(np.delete(few, ids)).all()
    assert np.ptp(whole[ids]) > 1 or count == 1, "the logits differ by more than the tolerance"


def test_in_one_pass_with_others_it_is_alone_to_the_bit(session: Session) -> None:
    """Some of the pass want a few tokens and some all: each has its own rows, as it has alone."""
    ids = [None, np.array([5, 7]), None, np.array([300]), np.arange(40)]
    caches = [[session.new_cache(128) for _ in ids] for _ in range(2)]
    prompts = [rng.integers(3, 300, n) for n in (9, 30, 1, 4, 17)]
    for group in caches:
        for cache, prompt in zip(group, prompts, strict=True):
            session.forward(cache, prompt)
    for tokens in (np.array([11]), np.array([4])):
        wanted = [[Wanted(c, tokens, np.array([0]), i) for c, i in zip(g, ids, strict=True)] for g in caches]
        together = [row.copy() for row in session.forward_together(wanted[0])]
        alone = [session.forward_together([one])[0].copy() for one in wanted[1]]
        for mine, other in zip(together, alone, strict=True):
            np.testing.assert_array_equal(mine, other)


def test_guesses_and_a_few_in_one_pass(session: Session) -> None:
    """Forced tokens before the choice: the last row is asked for, beside another sequence's three rows."""
    one, other, alone = (session.new_cache(128) for _ in range(3))
    ids = np.array([3, 4, 200])
    tokens = np.array([5, 6, 7])
    few, rows = session.forward_together([Wanted(one, tokens, np.array([2]), ids), Wanted(other, tokens, np.arange(3))])
    assert rows.shape == (3, session.card.vocabulary_size)
    (again,) = session.forward_together([Wanted(alone, tokens, np.array([2]), ids)])
    np.testing.assert_array_equal(few, again)
    np.testing.assert_allclose(few[0, ids], rows[2, ids], atol=CLOSE[session.card.quantization.scheme])


def test_what_is_not_a_number_is_refused() -> None:
    """A broken row of the head would look like an answer."""
    values = np.full((4, 1, 32), 200, np.uint8)
    head = Head(values, np.array([[1], [np.nan], [1], [1]], np.float32))
    hidden = np.ones(32, np.float32)
    np.testing.assert_array_equal(head.logits(hidden, np.array([0, 2])), [72 * 32, 72 * 32])
    assert np.isnan(head.logits(hidden, np.array([1]))).all()


def test_a_broken_head_is_an_error(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Head, "logits", lambda _self, _hidden, ids: np.full(len(ids), np.nan, np.float32))
    with pytest.raises(InternalError, match="2 of 2 logits are not finite"):
        session.forward_together([Wanted(session.new_cache(128), np.array([5]), np.array([0]), np.array([1, 2]))])


def test_a_broken_row_is_its_own_answers_only(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others of the pass are computed again, alone, and have what they would have had."""
    whole, ids, tokens, last = Head.logits, np.array([1, 2]), np.array([7]), np.array([0])
    healthy, sick, alone = (session.new_cache(128) for _ in range(3))
    for cache in (healthy, sick, alone):
        session.forward(cache, PROMPT)
    broken = np.array([3, 4])
    monkeypatch.setattr(
        Head, "logits", lambda head, hidden, i: whole(head, hidden, i) + (np.nan if i is broken else np.float32(0))
    )
    one = Forward(session, healthy, tokens, last, ids=ids)
    other = Forward(session, sick, tokens, last, ids=broken)
    compute([one, other])
    found = one.logits.copy()
    assert healthy.length == len(PROMPT) + 1
    (expected,) = session.forward_together([Wanted(alone, tokens, last, ids)])
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(InternalError):
        other.finish()


# --- in an answer -----------------------------------------------------------------------------------------------------

FORM = {
    "type": "object",
    "properties": {
        "urgency": {"enum": ["low", "medium", "high", "critical"]},
        "device": {"enum": ["pump", "valve", "boiler", "router"]},
        "count": {"type": "integer"},
        "broken": {"type": "boolean"},
        "note": {"type": "string", "maxLength": 20},
    },
    "required": ["urgency", "device", "count", "broken", "note"],
    "additionalProperties": False,
}
QUESTIONS = ["Two pumps leak into the boiler room.", "The router is slow, no hurry.", "Valve 3 burst: people are hurt!"]


@pytest.fixture(scope="module")
def real() -> Vocabulary:
    return built_models.smollm2_vocabulary()


@pytest.fixture(scope="module")
def smollm2() -> Iterator[Session]:
    with Session(built_models.smollm2().open(), 2) as session:
        yield session


@pytest.mark.parametrize("question", QUESTIONS)
def test_an_answer_in_a_form_asks_for_few(smollm2: Session, real: Vocabulary, question: str) -> None:
    """Where the form leaves few tokens only these are computed, and they are what the whole head says of them."""
    grammar = compile_grammar(Constraint("json_schema", json.dumps(FORM)), real)
    prompt = np.array(real.encode(f"Report: {question}\nAs JSON: "))
    session, few, whole, tokens = smollm2, 0, 0, list[int]()
    for step in generate(session, prompt, SamplingParams(temperature=0), max_tokens=90, grammar=grammar.start()):
        if isinstance(step, Token):
            tokens.append(step.id)
        if not isinstance(step, Forward) or not len(step.rows):
            continue
        whole += step.ids is None
        if step.ids is None:
            continue
        few += 1
        expected = session.forward(step.cache, step.tokens)[0].copy()
        step.cache.rewind(step.cache.length - len(step.tokens))
        found = step.logits[0]
        np.testing.assert_allclose(found[step.ids], expected[step.ids], rtol=0, atol=0.6)
        assert 0 < len(step.ids) <= session.most_ids
    assert few >= 4, "urgency, device, count, broken"
    assert whole >= 1, "the words of the note"
    text = b"".join(real.token_bytes[t] for t in tokens if t not in real.stop)
    assert set(json.loads(text)) == set(FORM["required"])


def test_who_asks_for_log_probabilities_gets_all_of_them(smollm2: Session, real: Vocabulary) -> None:
    """They are the model's own distribution, over all tokens."""
    grammar = compile_grammar(Constraint("regex", "(yes|no)"), real)
    prompt, greedy = np.array(real.encode("Is ice cold? ")), SamplingParams(temperature=0)
    steps = list(generate(smollm2, prompt, greedy, max_tokens=4, grammar=grammar.start(), top_logprobs=3))
    assert {type(step.ids) for step in steps if isinstance(step, Forward)} == {type(None)}
    assert all(step.logprobs and len(step.logprobs.top) == 3 for step in steps if isinstance(step, Token))
