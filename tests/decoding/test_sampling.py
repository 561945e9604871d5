"""Processors do what their definitions say, and the draw is the distribution's, the same everywhere."""

import hashlib
import math
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from appliance.decoding import sampling, weights
from appliance.decoding.sampling import SamplingParams, apply, choose, logprobs, processors
from appliance.errors import InternalError, InvalidRequest

INF = float("inf")


def row(*values: float) -> sampling.Logits:
    return np.array(values, np.float32)


def scattered(size: int, spread: float = 8.0) -> sampling.Logits:
    """Logits in no order, the same on every platform: Knuth's multiplicative hash."""
    hashed = np.arange(size, dtype=np.uint64) * np.uint64(2654435761) % np.uint64(2**32)
    return (hashed.astype(np.float64) / 2**32 * spread).astype(np.float32)


def kept(logits: sampling.Logits) -> list[int]:
    return np.flatnonzero(logits > -INF).tolist()


def probabilities(logits: sampling.Logits) -> list[float]:
    exponentials = [math.exp(float(x) - float(logits.max())) for x in logits]
    total = math.fsum(exponentials)
    return [e / total for e in exponentials]


def by_likelihood(logits: sampling.Logits) -> list[int]:
    return sorted(range(len(logits)), key=lambda i: (-logits[i], i))


class Bits:
    """A source of chance that gives chosen bits."""

    def __init__(self, *bits: int) -> None:
        self._bits = list(bits)
        self.bit_generator = self

    def random_raw(self) -> int:
        return self._bits.pop(0)


# Few values give many ties; masked tokens are common, but never all of them.
values = st.one_of(st.floats(-30, 30, width=32), st.sampled_from([-INF, -5.0, 0.0, 0.5, 1.0, 3.0]))
rows = arrays(np.float32, st.integers(1, 60), elements=values).filter(lambda a: bool((a > -INF).any()))
fractions = st.floats(0, 1)
tokens = st.lists(st.integers(0, 4), max_size=12)


# --- bias and penalties -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("bias", lambda x: sampling.logit_bias(x, {0: 2.5, 3: -100.0}), [4.5, -2, 0, -99.0]),
        ("repetition", lambda x: sampling.repetition_penalty(x, 2.0, [0, 1, 2]), [1, -4, 0, 1]),
        ("repetition counts once", lambda x: sampling.repetition_penalty(x, 2.0, [0, 0, 1, 1]), [1, -4, 0, 1]),
        ("repetition below one encourages", lambda x: sampling.repetition_penalty(x, 0.5, [0, 1]), [4, -1, 0, 1]),
        ("frequency counts each time", lambda x: sampling.frequency_penalty(x, 0.5, [0, 0, 1]), [1, -2.5, 0, 1]),
        ("frequency below zero encourages", lambda x: sampling.frequency_penalty(x, -0.5, [0, 0]), [3, -2, 0, 1]),
        ("presence counts once", lambda x: sampling.presence_penalty(x, 0.5, [0, 0, 1]), [1.5, -2.5, 0, 1]),
        ("repetition of nothing", lambda x: sampling.repetition_penalty(x, 2.0, []), [2, -2, 0, 1]),
        ("frequency of nothing", lambda x: sampling.frequency_penalty(x, 2.0, []), [2, -2, 0, 1]),
        ("presence of nothing", lambda x: sampling.presence_penalty(x, 2.0, []), [2, -2, 0, 1]),
    ],
)
def test_logits_are_moved_as_defined(name, change, expected):
    """Bias and penalties follow their published formulas, and leave their input alone."""
    logits = row(2, -2, 0, 1)
    assert change(logits).tolist() == pytest.approx(expected)
    assert logits.tolist() == [2, -2, 0, 1]


def test_token_buffers_are_tokens_too():
    """A view of an int64 buffer penalizes like a list."""
    buffer = np.array([0, 1, 1, 3, 3], np.int64)
    params = SamplingParams(temperature=1, repetition_penalty=1.5, frequency_penalty=0.5, presence_penalty=0.25)
    chain = processors(params, prompt_length=2)
    x = row(2, -2, 0, 1)
    assert apply(chain, buffer[:4], x).tolist() == apply(chain, [0, 1, 1, 3], x).tolist()


def test_prompt_counts_for_repetition_only():
    """Frequency and presence look at the answer; repetition at prompt and answer."""
    x = row(3, 3, 3)
    prompt_and_answer = [0, 1]
    spared = apply(processors(SamplingParams(temperature=1, presence_penalty=1, frequency_penalty=1), 1), [0, 1], x)
    assert spared.tolist() == [3, 1, 3]
    seen = apply(processors(SamplingParams(temperature=1, repetition_penalty=3), 1), prompt_and_answer, x)
    assert seen.tolist() == [1, 1, 3]


# --- temperature and truncation ---------------------------------------------------------------------------------------


@given(x=rows, t=st.floats(0.05, 2))
def test_temperature_divides(x, t):
    """Differences of logits are divided by the temperature."""
    out = sampling.temperature(x, t)
    assert out == pytest.approx((x - x.max()) / t, rel=1e-5)


@pytest.mark.parametrize("t", [0, 1e-9])
def test_no_temperature_keeps_the_best_only(t):
    """At temperature zero, and where dividing by it would overflow, one token is left: of equals the lowest id."""
    assert kept(sampling.temperature(row(1, 3, 2, 3), t)) == [1]


def test_large_logits_survive_a_low_temperature():
    """Large logits over a small temperature do not overflow."""
    assert sampling.temperature(row(3e35, 0), 2e-5).tolist() == [0, -INF]


@given(x=rows, k=st.integers(1, 70))
def test_top_k_keeps_the_k_best(x, k):
    """Exactly the k likeliest stay, untouched; of equal ones the lowest ids."""
    out = sampling.top_k(x, k)
    best = sorted(i for i in by_likelihood(x)[:k] if x[i] > -INF)
    assert kept(out) == best
    assert out[best].tolist() == x[best].tolist()


@given(x=rows, p=fractions)
def test_top_p_keeps_the_smallest_nucleus(x, p):
    """Exactly the shortest prefix, by likelihood, that reaches p stays, untouched; of equal ones the lowest ids."""
    probability = probabilities(x)
    order = by_likelihood(x)
    sums = [math.fsum(probability[i] for i in order[: n + 1]) for n in range(len(x))]
    assume(all(abs(s - p) > 1e-5 for s in sums[:-1]))
    needed = 1 + sum(s < p for s in sums[:-1])
    nucleus = sorted(i for i in order[:needed] if x[i] > -INF)
    out = sampling.top_p(x, p)
    assert out[nucleus].tolist() == x[nucleus].tolist()
    extra = set(kept(out)) - set(nucleus)
    # p = 1 keeps even what is too unlikely to be drawn.
    assert not extra or p == 1 or all(probability[i] < 1e-10 for i in extra)


@pytest.mark.parametrize("spread", [0.0, 1e-4, 0.01, 1.0, 8.0, 40.0])
@pytest.mark.parametrize("p", [0.0, 1e-9, 0.1, 0.5, 0.9, 0.95, 0.999, 1 - 1e-12])
def test_top_p_of_a_large_vocabulary_is_that_of_a_full_sort(spread, p):
    """Without sorting the vocabulary the nucleus is to the token the one that sorting gives."""
    x = scattered(100_000, spread)
    weight = weights.weigh(x.max() - x)[1]
    order = np.argsort(-x, kind="stable")
    sums = np.cumsum(weight[order])
    needed = 1 + int(np.searchsorted(sums, max(1, p * sums[-1])))
    assert kept(sampling.top_p(x, p)) == np.sort(order[:needed]).tolist()


@pytest.mark.parametrize("k", [1, 2, 50, 512, 513, 20_000, 99_999, 100_000, 200_000])
@pytest.mark.parametrize("spread", [0.0, 1e-4, 8.0])
def test_top_k_of_a_large_vocabulary_is_that_of_a_full_sort(spread, k):
    """Without sorting the vocabulary the k best are to the token those that sorting gives."""
    x = scattered(100_000, spread)
    assert kept(sampling.top_k(x, k)) == np.sort(np.argsort(-x, kind="stable")[:k]).tolist()


def test_top_p_stands_a_tail_that_rounds_up():
    """A tail of equal tokens, each of whose weights is rounded up, does not push the nucleus out of reach."""
    x = np.full(262_144, -21.68, np.float32)
    x[7] = 0
    for p in (0.9999, 0.99989, 0.99991, 0.9995, 0.99999):
        assert 7 in kept(sampling.top_p(x, p))


def test_top_p_counts_the_tail_that_it_does_not_search():
    """Tokens too unlikely for the nucleus still share in the probability that p is a fraction of."""
    x = np.full(100_010, math.log(0.35 / 100_000), np.float32)
    x[:10] = 0
    # 0.598 of 10.35 is 6.19 of the best ones' weights; of 10 alone it would be 5.98.
    assert kept(sampling.top_p(x, 0.598)) == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6, 1e30])
def test_logits_of_any_size_are_sampled(scale):
    """Far from zero floats are coarse; truncation and draw still work."""
    x = row(1, 1, 0.5, 0.25) * np.float32(scale)
    chain = processors(SamplingParams(temperature=1, top_k=3, top_p=0.9, min_p=0.1))
    assert choose(apply(chain, [], x), SamplingParams(seed=1).generator()) in (0, 1, 2)
    assert kept(sampling.top_p(x, 0.1)) == [0]


@given(x=rows, p=fractions)
def test_min_p_keeps_what_is_near_the_best(x, p):
    """A token stays, untouched, if it is at least p times as likely as the best one."""
    probability = probabilities(x)
    ratios = [q / max(probability) for q in probability]
    assume(all(abs(r - p) > 1e-5 * p for r, logit in zip(ratios, x, strict=True) if logit != x.max()))
    expected = [i for i, r in enumerate(ratios) if r >= p and x[i] > -INF]
    out = sampling.min_p(x, p)
    assert kept(out) == expected
    assert out[expected].tolist() == x[expected].tolist()


@pytest.mark.parametrize(
    "call",
    [
        lambda x: sampling.top_k(x, 0),
        lambda x: sampling.top_p(x, 1.1),
        lambda x: sampling.top_p(x, math.nan),
        lambda x: sampling.min_p(x, -0.1),
        lambda x: sampling.temperature(x, -1),
        lambda x: sampling.temperature(x, math.nan),
        lambda x: sampling.repetition_penalty(x, 0, [0]),
        lambda x: logprobs(x, 0, 3),
    ],
)
def test_misuse_is_the_callers_bug(call):
    """Values that no validated request can hold are a ValueError."""
    with pytest.raises(ValueError, match=r"must (not )?be"):
        call(row(1, 2))


# --- the chain --------------------------------------------------------------------------------------------------------

params = st.builds(
    SamplingParams,
    temperature=st.one_of(st.just(0.0), st.just(1.0), st.floats(0.1, 2)),
    top_k=st.integers(0, 6),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 0.9),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
    frequency_penalty=st.sampled_from([0.0, 0.7, -0.7]),
    presence_penalty=st.sampled_from([0.0, 0.5]),
    logit_bias=st.sampled_from([{}, {1: 3.0, 4: -100.0}]),
    seed=st.integers(-(2**63), 2**63 - 1),
)
finite_rows = arrays(np.float32, 5, elements=st.floats(-30, 30, width=32))


@given(p=params, x=finite_rows, seen=tokens)
def test_a_chain_changes_nothing_but_its_result(p, x, seen):
    """The model's logits and the tokens are as they were, whatever is asked for."""
    before, tokens_before = x.copy(), list(seen)
    x.flags.writeable = False
    choose(apply(processors(p, len(seen) // 2), seen, x), p.generator())
    assert x.tolist() == before.tolist()
    assert seen == tokens_before


@given(p=params, x=finite_rows, seen=tokens, allowed=st.sets(st.integers(0, 4), min_size=1))
def test_a_masked_token_is_never_drawn(p, x, seen, allowed):
    """Whatever a grammar masks stays masked through the whole chain, and something is always left to draw."""

    def grammar(_, logits):
        out = np.full_like(logits, -INF)
        ids = sorted(allowed)
        out[ids] = logits[ids]
        return out

    assert choose(apply(processors(p, 0, [grammar]), seen, x), p.generator()) in allowed


@given(p=params, x=finite_rows, seen=tokens)
def test_order_is_the_documented_one(p, x, seen):
    """The chain is bias, repetition, frequency, presence, extra, temperature, top-k, top-p, min-p."""
    half = len(seen) // 2
    y = sampling.logit_bias(x, p.logit_bias)
    y = sampling.repetition_penalty(y, p.repetition_penalty, seen)
    y = sampling.frequency_penalty(y, p.frequency_penalty, seen[half:])
    y = sampling.presence_penalty(y, p.presence_penalty, seen[half:])
    y = y - np.float32(0.25) * np.arange(5, dtype=np.float32)
    y = sampling.temperature(y, p.temperature) if p.temperature != 1 else y
    if p.temperature:
        y = sampling.top_k(y, p.top_k) if p.top_k else y
        y = sampling.top_p(y, p.top_p)
        y = sampling.min_p(y, p.min_p)
    chain = processors(p, half, [lambda _, z: z - np.float32(0.25) * np.arange(5, dtype=np.float32)])
    assert apply(chain, seen, x).tolist() == y.tolist()


def test_top_p_is_of_what_top_k_leaves():
    """The nucleus is measured after top-k: 0.4 of the 0.7 that two tokens have is more than half."""
    x = np.log(row(0.4, 0.3, 0.2, 0.1))
    assert kept(apply(processors(SamplingParams(temperature=1, top_k=2, top_p=0.5)), [], x)) == [0]


def test_a_chain_keeps_no_state_but_its_buffer():
    """Rows do not leak into each other, nor does a row of another size."""
    chain = processors(SamplingParams(temperature=0.5, top_k=2, presence_penalty=1, logit_bias={0: 1.0}))
    first = apply(chain, [1], row(1, 2, 3)).tolist()
    apply(chain, [2], row(9, 8, 7))
    apply(chain, [2], row(9, 8, 7, 6))
    assert apply(chain, [1], row(1, 2, 3)).tolist() == first


def test_a_chain_in_its_buffer_is_the_chain_of_fresh_arrays():
    """Writing each step over the one before changes nothing, on rows of real size either."""
    x = scattered(50_000, 12.0)
    for k, p in ((50, 0.9), (40_000, 0.9), (40_000, 0.9999)):
        settings = SamplingParams(temperature=0.8, top_k=k, top_p=p, min_p=0.001, repetition_penalty=1.2)
        fresh = sampling.repetition_penalty(x, 1.2, [5, 6])
        fresh = sampling.min_p(sampling.top_p(sampling.top_k(sampling.temperature(fresh, 0.8), k), p), 0.001)
        assert np.array_equal(apply(processors(settings), [5, 6], x), fresh)


@pytest.mark.parametrize("bad", [math.nan, INF])
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_logits_that_are_not_finite_are_a_defect(bad, temperature):
    """A broken model never speaks: not even greedily, and not even if the bad logit would not be drawn."""
    x = scattered(1000)
    x[500] = bad
    with pytest.raises(InternalError, match="1 of 1000 logits are not finite"):
        apply(processors(SamplingParams(temperature=temperature)), [], x)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_logits_that_were_not_computed_are_minus_infinity(temperature):
    """Some may be; a row of nothing else is a defect."""
    x = np.full(1000, -INF, np.float32)
    x[[7, 500]] = [3, 2]
    y = apply(processors(SamplingParams(temperature=temperature)), [], x)
    assert y.argmax() == 7
    assert set(np.flatnonzero(np.isfinite(y))) <= {7, 500}
    with pytest.raises(InternalError, match="1000 of 1000 logits are not finite"):
        apply(processors(SamplingParams(temperature=temperature)), [], np.full(1000, -INF, np.float32))


@pytest.mark.parametrize("bad", [math.nan, INF])
@pytest.mark.parametrize("rng", [None, Bits(0)])
@pytest.mark.parametrize("place", [0, 500, 999])
def test_the_draw_refuses_what_a_processor_broke(bad, rng, place):
    """Not a number or infinity at the draw itself is a defect, wherever it stands."""
    x = scattered(1000)
    x[place] = bad
    with pytest.raises(InternalError, match="a logit is"):
        choose(x, rng)


@pytest.mark.parametrize("rng", [None, Bits(0)])
def test_the_draw_refuses_an_empty_choice(rng):
    """If every token is masked there is nothing to draw, and that is said."""
    with pytest.raises(InternalError, match="every token is masked"):
        choose(row(-INF, -INF), rng)


# --- the draw ---------------------------------------------------------------------------------------------------------


def test_greedy_takes_the_lowest_of_equals():
    """Without chance the best token wins, of equal ones the one with the lowest id."""
    assert choose(row(1, 3, 2, 3), None) == 1
    assert SamplingParams(temperature=0, seed=1).generator() is None
    # Even a caller that brings chance along gets the best token at temperature 0.
    chain = processors(SamplingParams(temperature=0))
    assert choose(apply(chain, [], row(1, 3, 2, 3)), SamplingParams(seed=1).generator()) == 1


@settings(max_examples=30)
@given(x=rows)
def test_draws_follow_the_probabilities(x):
    """Over an even grid of bits every token is drawn its share of times, to within one."""
    grid = 512
    drawn = Counter(choose(x, Bits(i * 2**64 // grid)) for i in range(grid))
    for token, probability in enumerate(probabilities(x)):
        assert abs(drawn[token] - grid * probability) <= 1.01


def test_draws_follow_the_probabilities_of_a_large_vocabulary():
    """Beyond one block too: over an even grid of bits the tokens are those of the cumulative distribution."""
    x = scattered(100_000)
    grid = 2000
    drawn = [choose(x, Bits((2 * i + 1) * 2**63 // grid)) for i in range(grid)]
    cumulative = np.cumsum(probabilities(x))
    assert drawn == [int(np.searchsorted(cumulative, (2 * i + 1) / 2 / grid, side="right")) for i in range(grid)]


def test_the_extremes_of_chance_are_tokens():
    """The smallest and the largest 64 bits draw the first and the last token that is not masked."""
    for size in (1, 5, 16_384, 16_385, 40_000):
        x = np.zeros(size + 2, np.float32)
        x[[0, -1]] = -INF
        assert choose(x, Bits(0)) == 1
        assert choose(x, Bits(2**64 - 1)) == size


def test_a_masked_token_at_the_border_of_blocks_is_not_drawn():
    """Bits that fall exactly between two blocks draw the first token of the second that has any probability."""
    block = weights.BLOCK
    x = np.zeros(3 * block, np.float32)
    x[block] = -INF
    border = -(-block * 2**64 // (3 * block - 1))
    assert choose(x, Bits(border - 1)) == block - 1
    assert choose(x, Bits(border)) == block + 1


def test_same_seed_gives_the_same_tokens_everywhere():
    """A seed and logits name their tokens for good: on every platform, with every numpy."""
    p = SamplingParams(temperature=0.8, top_p=0.97, min_p=0.01, seed=20261122)
    chain, rng = processors(p), p.generator()
    x = scattered(50_000, 12.0)
    assert [choose(apply(chain, [], x), rng) for _ in range(8)] == [
        24026,
        16211,
        6988,
        15614,
        44038,
        45541,
        23997,
        38700,
    ]


def test_weights_are_the_same_to_the_bit_everywhere():
    """The table and what is made from it are pinned: a platform whose arithmetic differs is found here."""
    found = weights.weigh(np.float32(30) - scattered(10_000, 30.0))[1]
    assert hashlib.sha256(found.astype("<f8").tobytes()).hexdigest()[:16] == "696480c27501cd49"


def test_weights_are_exponentials():
    """A weight is 2**34 times the exponential, within 3 millionths and the rounding to a whole number."""
    x = scattered(100_000, 30.0)
    index, weight = weights.weigh(np.float32(30) - x)
    exact = np.exp(x.astype(np.float64) - 30) * 2**34
    assert np.all(np.abs(weight - exact) <= 3e-6 * exact + 0.5)
    assert np.array_equal(weight, np.rint(weight))
    assert np.all(np.diff(index[np.argsort(-x)]) >= 0)


def test_answers_of_one_request_differ():
    """Each of n answers has its own stream, made from the one seed; without a seed nothing repeats."""
    x = scattered(1000)

    def first(seed, index):
        rng = SamplingParams(seed=seed).generator(index)
        return [choose(x, rng) for _ in range(8)]

    assert first(7, 0) == first(7, 0)
    assert len({tuple(first(seed, index)) for seed in (7, 8, -7, 2**63 - 1) for index in range(4)}) == 16
    assert first(None, 0) != first(None, 0)


# --- validation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", math.nan),
        ("temperature", INF),
        ("top_k", -1),
        ("top_p", -0.1),
        ("top_p", 1.1),
        ("top_p", math.nan),
        ("min_p", 1.1),
        ("min_p", -0.1),
        ("repetition_penalty", 0),
        ("repetition_penalty", 11),
        ("repetition_penalty", math.nan),
        ("frequency_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("presence_penalty", 2.1),
        ("presence_penalty", -INF),
        ("logit_bias", {100: 1.0}),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {1: 101.0}),
        ("logit_bias", {1: -INF}),
        ("logit_bias", {1: math.nan}),
        ("seed", 2**63),
        ("seed", -(2**63) - 1),
    ],
)
def test_what_cannot_be_meant_is_refused(field, value):
    """The error is the request's, and names the field, what was found and what was expected."""
    with pytest.raises(InvalidRequest, match="expected") as error:
        SamplingParams(**{field: value}).validate(100)
    assert error.value.param == field
    assert field in error.value.message
    assert error.value.hint


@given(p=params)
def test_what_can_be_meant_is_accepted(p):
    """Every setting within its range passes."""
    p.validate(5)


def test_params_are_values():
    """Equal settings are equal and hash alike, so that they can key a cache."""
    assert SamplingParams(logit_bias={1: 1.0}) == SamplingParams(logit_bias={1: 1.0})
    assert hash(SamplingParams(logit_bias={1: 1.0})) == hash(SamplingParams(logit_bias={1: 1.0}))


# --- logprobs ---------------------------------------------------------------------------------------------------------


@given(x=finite_rows, token=st.integers(0, 4), top=st.integers(0, 5))
def test_logprobs_are_the_models_own(x, token, top):
    """Natural logarithms of the softmax, the likeliest first, of equal ones the lowest id."""
    exact = [math.log(max(q, 1e-300)) for q in probabilities(x)]
    result = logprobs(x, token, top)
    assert result.token == token
    assert result.logprob == pytest.approx(exact[token], abs=1e-5)
    assert [i for i, _ in result.top] == by_likelihood(x)[:top]
    assert [lp for _, lp in result.top] == pytest.approx([exact[i] for i, _ in result.top], abs=1e-5)


def test_logprobs_of_a_large_vocabulary():
    """The sum runs over every block, and ties at the end of the list go to the lowest ids."""
    x = np.zeros(100_000, np.float32)
    x[[99_999, 3]] = 5
    total = 99_998 + 2 * math.exp(5)
    result = logprobs(x, 50_000, 4)
    assert result.logprob == pytest.approx(-math.log(total), abs=1e-6)
    assert [i for i, _ in result.top] == [3, 99_999, 0, 1]


@pytest.mark.parametrize("bad", [math.nan, INF, -INF])
def test_logprobs_refuse_what_is_not_finite(bad):
    """A broken distribution has no probabilities to report."""
    with pytest.raises(InternalError):
        logprobs(row(1, bad, 2), 0)


# --- speed ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit_s", "settings"),
    [
        (0.0002, {"temperature": 0}),
        (0.002, {"temperature": 1}),
        (0.002, {"top_k": 64, "top_p": 0.95, "min_p": 0.02, "repetition_penalty": 1.1, "presence_penalty": 0.2}),
    ],
)
def test_a_token_of_a_large_vocabulary_is_drawn_in_time(limit_s, settings):
    """Sampling stays a small part of a token's time with Gemma's 262,144 logits.

    Top-p without top-k is left out: over a flat row, where thousands of tokens make the nucleus, it takes longer.
    """
    logits = scattered(262_144, 30.0)
    settings = SamplingParams(seed=1, **settings)
    chain, rng = processors(settings, 500), settings.generator()
    tokens = np.arange(1000)
    times = []
    for _ in range(100):
        start = time.thread_time()
        choose(apply(chain, tokens, logits), rng)
        times.append(time.thread_time() - start)
    # The least, not the mean: this is about the work, not about what else the machine does.
    assert min(times) <= limit_s
