"""Loops are broken: the answer goes back, goes on, and what was shown stays; without a loop nothing is different."""

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.decoding.asked import Asked
from appliance.decoding.breaker import HELD, MOST_BREAKS, RESAMPLED, Break, Mode, Words
from appliance.decoding.loops import LoopFinder
from appliance.decoding.penalties import repeated_words
from appliance.decoding.sampling import SamplingParams
from appliance.engine.completion import CompletionRequest, Delta, complete
from appliance.engine.session import Session
from appliance.models.tokenizer import Tokenizer
from tests.fakes.built_models import ARCHITECTURES, BuiltModel, smollm2, tiny
from tests.fakes.scripted import RuledSession

END, THINK, ANSWER = 290, 291, 292
WORDS = [b" " + bytes(97 + (n // 26**k) % 26 for k in range(3)) for n in range(290)] + [b""] * 10
VOCABULARY = Words.of(WORDS, {"<think>": THINK, "</think>": ANSWER})
GREEDY = SamplingParams(temperature=0)
LEAD, PERIOD = list(range(100, 130)), 12


def looping(prompt: int, *, exits: bool = True, lead: Sequence[int] = LEAD, period: int = PERIOD) -> RuledSession:
    """A model that says `lead`, then a sentence again and again; a token that is not the sentence's leads it out."""
    sentence = list(range(period))

    def rule(seen: Sequence[int]) -> dict[int, float]:
        said = list(seen[prompt:])
        if len(said) < len(lead):
            return {lead[len(said)]: 50}
        rest = said[len(lead) :]
        left = next((i for i, token in enumerate(rest) if token != sentence[i % period]), None)
        if left is not None and exits:
            after = len(rest) - left
            return {END if after > 10 else 200 + after: 50}
        if left is not None:  # back into the sentence after one other token
            return {sentence[(len(rest) - left - 1) % period]: 50}
        return {sentence[len(rest) % period]: 50, 250: 48.5, 251: 48}

    return RuledSession(rule, stop=(END,))


def run(
    session: RuledSession, mode: Mode = "break", *, prompt: int = 3, max_tokens: int = 2000, **request: object
) -> tuple[list[Delta], list[Break]]:
    wanted = CompletionRequest(
        prompt=(299,) * prompt,
        sampling=GREEDY,
        max_tokens=max_tokens,
        breaker=mode,
        **request,  # type: ignore[arg-type]
    )
    deltas = [s for s in complete(session, VOCABULARY, wanted) if isinstance(s, Delta)]  # type: ignore[arg-type]
    return deltas, [done for d in deltas for done in d.breaks]


def tokens_of(deltas: list[Delta]) -> list[int]:
    return [token for d in deltas for token in d.tokens]


def test_loop_is_taken_back_and_left() -> None:
    """The first copy stays, the second goes, another token is drawn in its place, and the answer goes on to its end."""
    deltas, breaks = run(looping(3))
    assert [done.rung for done in breaks] == ["resample"]
    done = breaks[0]
    assert (done.kind, done.onset, done.period, done.length) == (
        "exact",
        len(LEAD) + PERIOD,
        PERIOD,
        len(LEAD) + PERIOD,
    )
    assert done.at - done.length == done.rewound
    assert done.rejected == (*range(PERIOD),) * 3
    assert done.alternatives[0][0] == 0
    assert {token for token, _ in done.alternatives[1:3]} == {250, 251}
    assert done.replacement in (250, 251)
    assert tokens_of(deltas)[: len(LEAD) + PERIOD + 1] == [*LEAD, *range(PERIOD), done.replacement]
    assert deltas[-1].finish_reason == "stop"
    assert "".join(d.text for d in deltas) == b"".join(WORDS[t] for t in tokens_of(deltas)).decode()


def test_usage_tells_what_was_taken_back() -> None:
    """The answer's tokens are counted, and those that were computed in vain beside them."""
    deltas, breaks = run(looping(3))
    usage = deltas[-1].usage
    assert usage
    assert usage.completion_tokens == len(tokens_of(deltas)) + 1  # the one that ends it
    assert usage.rewound_tokens == breaks[0].rewound


def test_a_loop_that_comes_back_meets_the_next_rung_and_at_last_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """First chance, then penalties, then the answer is cut before the repetition, with a reason of its own."""
    monkeypatch.setattr("appliance.decoding.breaker.PENALTY", 0.0)  # a model that nothing impresses
    deltas, breaks = run(looping(3, exits=False))
    rungs = [done.rung for done in breaks]
    assert rungs[:2] == ["resample", "penalize"]
    assert rungs[-1] == "stop"
    assert len(rungs) <= MOST_BREAKS + 1
    assert deltas[-1].finish_reason == "loop"
    assert len(tokens_of(deltas)) == breaks[-1].length


def test_penalties_keep_the_loop_from_coming_back() -> None:
    """What would go on as the loop did costs more the longer it does, so that even this model does not come back."""
    _, breaks = run(looping(3, exits=False), max_tokens=300)
    assert [done.rung for done in breaks] == ["resample", "penalize"]


def test_an_answer_that_nobody_has_seen_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not streamed, a loop that comes back costs the whole answer twice, before penalties and the end."""
    monkeypatch.setattr("appliance.decoding.breaker.PENALTY", 0.0)
    monkeypatch.setattr("appliance.decoding.breaker.EARLY", 0)
    deltas, breaks = run(looping(3, exits=False), streamed=False)
    assert [done.rung for done in breaks][:3] == ["resample", "restart", "restart"]
    assert [done.length for done in breaks if done.rung == "restart"] == [0, 0]
    assert [done.rung for done in breaks][-1] == "stop"
    assert deltas[-1].usage
    assert deltas[-1].usage.rewound_tokens == sum(done.rewound for done in breaks)
    _, streamed = run(looping(3, exits=False))
    assert "restart" not in [done.rung for done in streamed]


def test_stop_mode_ends_at_the_first_loop() -> None:
    """`stop`: nothing is drawn anew, the answer is what came before the repetition."""
    deltas, breaks = run(looping(3), "stop")
    assert [done.rung for done in breaks] == ["stop"]
    assert deltas[-1].finish_reason == "loop"
    assert tokens_of(deltas) == [*LEAD, *range(PERIOD)][: breaks[0].length]


@pytest.mark.parametrize("mode", ["warn", "off"])
def test_who_only_wants_to_know_gets_the_loop(mode: Mode) -> None:
    """`warn` changes nothing and says so once; `off` says nothing."""
    deltas, breaks = run(looping(3), mode, max_tokens=400)
    assert deltas[-1].finish_reason == "length"
    assert len(tokens_of(deltas)) == 400
    assert [done.rung for done in breaks] == (["warn"] if mode == "warn" else [])


def test_who_asks_for_repetition_gets_it() -> None:
    """A request for fifty copies is not cut at four; but neither does it go on for ever."""
    _, breaks = run(looping(3), asked=Asked(50))
    assert breaks[0].copies >= 50


def test_thinking_is_ended_when_it_loops_again() -> None:
    """Inside a thinking block the second rung closes it, and the model has to answer."""
    session = looping(1, exits=False, lead=[THINK, *LEAD])
    inner = session.rule

    def rule(seen: Sequence[int]) -> dict[int, float]:
        if ANSWER in seen:
            after = len(seen) - list(seen).index(ANSWER)
            return {END if after > 5 else 210 + after: 50}
        return inner(seen)

    session.rule = rule
    deltas, breaks = run(session, prompt=1)
    assert [done.rung for done in breaks] == ["resample", "end_thinking"]
    said = tokens_of(deltas)
    assert said[said.index(ANSWER) + 1 :] == [211, 212, 213, 214, 215]
    assert deltas[-1].finish_reason == "stop"


@pytest.mark.parametrize("period", [1, 12, 60, 100, 300])
def test_what_was_shown_is_never_taken_back(period: int) -> None:
    """At no moment is text shown that the final answer does not begin with, and no more than HELD tokens are held."""
    session = looping(3, exits=False, period=min(period, 99), lead=LEAD)
    wanted = CompletionRequest(prompt=(299,) * 3, sampling=GREEDY, max_tokens=1500)
    shown, counts = [], []
    computed = 0
    for step in complete(session, VOCABULARY, wanted):  # type: ignore[arg-type]
        if isinstance(step, Delta):
            shown.append(step.text)
            computed = max(computed, len(session.seen) - 3)
            counts.append((len(session.seen) - 3, sum(map(bool, shown))))
    final = "".join(shown)
    assert all(final.startswith("".join(shown[:n])) for n in range(0, len(shown), 50))
    assert max(seen - given for seen, given in counts) <= HELD + MOST_BREAKS


def test_short_answers_are_not_held_for_long() -> None:
    """Text that repeats nothing is shown a few tokens after it was drawn."""
    lead = random.Random(5).sample(range(280), 200)  # noqa: S311 (a test's text, no secret)
    session = looping(3, lead=lead)
    wanted = CompletionRequest(prompt=(299,) * 3, sampling=GREEDY, max_tokens=200)
    given = 0
    for step in complete(session, VOCABULARY, wanted):  # type: ignore[arg-type]
        if not isinstance(step, Delta):
            continue
        given += len(step.tokens)
        if step.finish_reason is None:
            assert len(session.seen) - 2 - given <= 7


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32), temperature=st.sampled_from([0.0, 0.7, 1.3]), few=st.sampled_from([2, 12, 280]))
def test_without_a_break_all_is_the_same(seed: int, temperature: float, few: int) -> None:
    """Unless a loop is broken, the answer is the same to the byte with the breaker and without: text, tokens, all.

    `few` likely tokens make texts that repeat themselves much, and now and then for ever.
    """
    rng = random.Random(seed)  # noqa: S311 (a test's model, no secret)
    table = [[rng.randrange(few) for _ in range(3)] for _ in range(300)]

    def rule(seen: Sequence[int]) -> dict[int, float]:
        likely = table[(seen[-1] * 7 + len(seen) // 5) % 300]
        return {likely[0]: 9, likely[1]: 8.5, likely[2]: 8} | ({END: 8} if len(seen) > 250 else {})

    answers = {}
    for mode in ("off", "break", "warn"):
        wanted = CompletionRequest(
            prompt=(1, 2, 3),
            sampling=SamplingParams(temperature=temperature, seed=seed),
            max_tokens=300,
            stop=(WORDS[5].decode() * 3,),
            top_logprobs=2,
            breaker=mode,  # type: ignore[arg-type]
        )
        steps = complete(RuledSession(rule, stop=(END,)), VOCABULARY, wanted)  # type: ignore[arg-type]
        deltas = [s for s in steps if isinstance(s, Delta)]
        broken = [done for d in deltas for done in d.breaks if done.rung != "warn"]
        usage = deltas[-1].usage
        assert usage
        answers[mode] = (
            "".join(d.text for d in deltas),
            tokens_of(deltas),
            [d.logprobs for d in deltas if d.logprobs],
            deltas[-1].finish_reason,
            usage.completion_tokens,
        )
        if broken:
            assert mode == "break"
            return
    assert answers["off"] == answers["break"] == answers["warn"]


# --- a real graph -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=ARCHITECTURES)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BuiltModel:
    return tiny(tmp_path_factory.mktemp(request.param), request.param, "q8")


def test_after_a_rewind_the_logits_are_those_of_a_fresh_run(built: BuiltModel) -> None:
    """Rewinding is exact: to the bit, step by step, the logits equal those of a cache that never held what was cut."""
    with Session(built.open(), 1) as session:
        prompt = np.arange(40, 60)

        def feed(cache: object, tokens: Sequence[int]) -> list[np.ndarray]:
            return [session.forward(cache, np.array([t]))[0].copy() for t in tokens]  # type: ignore[arg-type]

        rewound, fresh = session.new_cache(128), session.new_cache(128)
        for cache in (rewound, fresh):
            session.forward(cache, prompt)
        kept, cut, other = list(range(10)), list(range(30, 70)), list(range(100, 120))
        feed(rewound, kept)
        feed(rewound, cut)
        assert rewound.rewind(len(prompt) + len(kept) - 1) == len(prompt) + len(kept) - 1
        feed(fresh, kept[:-1])
        after = zip(feed(rewound, [kept[-1], *other]), feed(fresh, [kept[-1], *other]), strict=True)
        assert all(np.array_equal(a, b) for a, b in after)


def test_a_broken_answer_is_what_a_fresh_run_would_say() -> None:
    """SmolLM2 loops, is taken back and leaves; beside the draws by chance all is greedy, as in a fresh run."""
    model = smollm2().open()
    tokenizer = Tokenizer(bytes(model.files["tokenizer.json"]))
    with Session(model, 2) as session:
        prompt = tuple(
            tokenizer.encode("The nurses of the ward are:\n\nEmily Carter, Ward 3\nJohn Smith, Ward 3\n" * 2)
        )
        wanted = CompletionRequest(prompt=prompt, sampling=GREEDY, max_tokens=220)
        words = Words.of(tokenizer.token_bytes)
        deltas = [s for s in complete(session, words, wanted) if isinstance(s, Delta)]
        breaks, said = [done for d in deltas for done in d.breaks], tokens_of(deltas)
        assert [done.rung for done in breaks][:1] == ["resample"]
        cache = session.new_cache(512)
        session.forward(cache, np.array(prompt[:-1]))
        rows = [session.forward(cache, np.array([t]))[0].copy() for t in (prompt[-1], *said)]
    # After the break words that repeat are less likely: what is said is the likeliest of the rest.
    finder, greedy = LoopFinder(words.kinds), []
    for n, row in enumerate(rows):
        broken = n >= breaks[0].length
        greedy.append(int((repeated_words(row, finder.symbols, words.is_word) if broken else row).argmax()))
        if n < len(said):
            finder.push(said[n])
    by_chance = {n for done in breaks for n in range(done.length, done.length + RESAMPLED)}
    assert {done.rung for done in breaks} == {"resample"}
    assert [n for n, token in enumerate(said) if token != greedy[n] and n not in by_chance] == []
    assert int(rows[breaks[0].length].argmax()) != said[breaks[0].length] == breaks[0].replacement
