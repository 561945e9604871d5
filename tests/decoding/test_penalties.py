"""Penalties on repetition do what their papers say: compared with slow, plain readings of the same words."""

import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from appliance.decoding import penalties
from appliance.decoding.sampling import SamplingParams, apply, choose, processors
from appliance.errors import InvalidRequest

VOCABULARY = 6
# Long texts of few tokens repeat themselves all the time; short ones of more show what stays alone.
tokens = st.lists(st.integers(0, 2), min_size=15, max_size=60) | st.lists(st.integers(0, VOCABULARY - 1), max_size=60)
rows = arrays(np.float32, VOCABULARY, elements=st.floats(-20, 20, width=32))


# --- plain readings ---------------------------------------------------------------------------------------------------


def common_end(a, b, breakers=()):
    """How many tokens at the end of two texts are the same, up to the first breaker."""
    n = 0
    while n < min(len(a), len(b), penalties.LONGEST_MATCH) and a[-1 - n] == b[-1 - n] and a[-1 - n] not in breakers:
        n += 1
    return n


def plain_ngram(logits, size, text):
    out = [float(x) for x in logits]
    for token in range(len(logits)):
        candidate = [*text, token][-size:]
        grams = [text[i : i + size] for i in range(len(text) - size + 1)]
        if len(candidate) == size and candidate in grams:
            out[token] = float(np.float32(out[token]) - np.float32(penalties.BAN))
    return out


def plain_dry(logits, multiplier, text, base, allowed, breakers):
    worst = {}
    for j in range(1, len(text)):
        n = common_end(text[:j], text, breakers)
        if n >= allowed and text[j] not in breakers:
            worst[text[j]] = max(worst.get(text[j], 0.0), multiplier * base ** (n - allowed))
    return [
        float(np.float32(x) - np.float32(min(worst.get(i, 0.0), penalties.LARGEST_PENALTY)))
        for i, x in enumerate(logits)
    ]


def plain_lz(logits, strength, text):
    """Bits saved by the compressor, token by token."""
    lengths = {j: min(common_end(text[:j], text), penalties.LZ_BUFFER - 1) for j in range(len(text))}
    longest = max(lengths.values(), default=0)
    literal = math.log(max(2, len(logits)))
    out = []
    for token, x in enumerate(logits):
        costs = [literal]
        places = [j for j in range(len(text)) if text[j] == token]
        if len(text) > 1:
            costs += [math.log(len(text) - j) for j in places if len(text) - j > penalties.LZ_BUFFER]
            longer = [j for j in places if lengths[j] == longest]
            if longest and longer:
                before = math.log(longest) + math.log(min(len(text) - j for j in lengths if lengths[j] == longest))
                after = math.log(longest + 1) + math.log(len(text) - max(longer))
                costs.append(max(0.0, after - before))
        out.append(float(x) - strength * (literal - min(costs)))
    return out


def plain_window(logits, loop, strength, text):
    worst = {}
    for j in range(1, len(loop)):
        if n := common_end(loop[:j], text):
            worst[loop[j]] = max(worst.get(loop[j], 0.0), strength * penalties.LOOP_BASE ** (n - 1))
    return [float(x) - min(worst.get(i, 0.0), penalties.LARGEST_PENALTY) for i, x in enumerate(logits)]


# --- agreement --------------------------------------------------------------------------------------------------------


@given(x=rows, text=tokens, size=st.integers(1, 5))
def test_ngram_is_as_read_plainly(x, text, size):
    """A token is banned exactly if it would end an n-gram that the text holds."""
    assert penalties.no_repeat_ngram(x, size, text).tolist() == plain_ngram(x, size, text)


@given(
    x=rows,
    text=tokens,
    multiplier=st.floats(0.1, 3),
    base=st.floats(1, 3),
    allowed=st.integers(1, 4),
    breakers=st.frozensets(st.integers(0, 2), max_size=2),
)
def test_dry_is_as_read_plainly(x, text, multiplier, base, allowed, breakers):
    """The longest repetition before a token sets its penalty; breakers end repetitions and are spared."""
    found = penalties.dry(x, multiplier, text, base, allowed, breakers)
    assert found.tolist() == pytest.approx(plain_dry(x, multiplier, text, base, allowed, breakers), rel=1e-5, abs=1e-4)


@given(x=rows, text=tokens, strength=st.floats(0.05, 2))
def test_lz_is_as_read_plainly(x, text, strength):
    """What the compressor saves is taken off."""
    assert penalties.lz(x, strength, text).tolist() == pytest.approx(plain_lz(x, strength, text), rel=1e-4, abs=1e-4)


@given(x=rows, loop=tokens, text=tokens, strength=st.floats(0.01, 3))
def test_window_is_as_read_plainly(x, loop, text, strength):
    """As DRY, with the loop alone as what must not be repeated."""
    found = penalties.window_penalty(x, loop, strength, 0, 64, text)
    assert found.tolist() == pytest.approx(plain_window(x, loop, strength, text), rel=1e-4, abs=1e-3)


# --- properties -------------------------------------------------------------------------------------------------------

EVERY = {
    "ngram": lambda x, text, out=None: penalties.no_repeat_ngram(x, 2, text, out),
    "dry": lambda x, text, out=None: penalties.dry(x, 1.5, text, out=out),
    "lz": lambda x, text, out=None: penalties.lz(x, 0.5, text, out),
    "window": lambda x, text, out=None: penalties.window_penalty(x, text[-12:], 1.0, 3, 16, text, out),
}
OFF = {
    "ngram": lambda x, text: penalties.no_repeat_ngram(x, 0, text),
    "dry": lambda x, text: penalties.dry(x, 0.0, text),
    "lz": lambda x, text: penalties.lz(x, 0.0, text),
    "window": lambda x, text: penalties.window_penalty(x, text, 0.0, 0, 16, text),
    "window, faded": lambda x, text: penalties.window_penalty(x, text, 5.0, 1000, 16, text),
}


@pytest.mark.parametrize("name", OFF)
@given(x=rows, text=tokens)
def test_off_is_the_same_array(name, x, text):
    """Switched off, or faded away, a penalty gives back its input itself."""
    assert OFF[name](x, text) is x


@pytest.mark.parametrize("name", EVERY)
@given(x=rows, text=tokens)
def test_input_is_left_alone_and_out_is_used(name, x, text):
    """A row is never written into, a buffer is; both ways give the same, and so does a view of an array."""
    before = x.copy()
    plain = EVERY[name](x, text)
    assert x.tobytes() == before.tobytes()
    buffer = np.full_like(x, 7)
    into = EVERY[name](x, text, buffer)
    assert into is buffer or into is x
    assert into.tobytes() == plain.tobytes() == EVERY[name](x, np.array(text, np.int64)).tobytes()
    assert EVERY[name](buffer.copy() if into is x else x.copy(), text) is not x


@pytest.mark.parametrize("name", EVERY)
@given(x=rows, text=tokens)
def test_what_is_new_is_untouched_and_nothing_is_raised(name, x, text):
    """A token that the text does not hold keeps its bits, and no logit goes up."""
    found = EVERY[name](x, text)
    for token in set(range(VOCABULARY)) - set(text):
        assert found[token] == x[token]
    assert (found <= x).all()


def test_longer_repetitions_cost_more():
    """DRY: 0.8 at two tokens, 1.4 at three, 2.45 at four; nothing at one."""
    x = np.zeros(10, np.float32)
    for text, expected in ([1, 5, 1], 0), ([1, 2, 5, 1, 2], 0.8), ([0, 1, 2, 5, 0, 1, 2], 1.4):
        assert penalties.dry(x, 0.8, text)[5] == pytest.approx(-expected)
    assert penalties.dry(x, 0.8, [3, 0, 1, 2, 5, 3, 0, 1, 2])[5] == pytest.approx(-2.45)


def test_a_text_of_one_ngram_is_enough():
    """Three times the same: a fourth would make the same trigram again."""
    x = np.zeros(4, np.float32)
    assert penalties.no_repeat_ngram(x, 3, [1, 1, 1])[1] == -penalties.BAN
    assert penalties.no_repeat_ngram(x, 3, [1, 1]) is x


def test_repetitions_are_looked_for_in_a_window():
    """What followed the last tokens before it began is forgotten; in it, to its first token, it is not."""
    x = np.zeros(5000, np.float32)

    def text(length):
        return [1, 2, 3, *range(100, 100 + length - 5), 1, 2]

    for length in (penalties.DRY_WINDOW, penalties.DRY_WINDOW + 1, penalties.DRY_WINDOW + 2):
        lowered = length < penalties.DRY_WINDOW + 2  # one of the two before it is enough to be a repetition of one
        assert (penalties.dry(x, 1.0, text(length), allowed_length=1)[3] < 0) == lowered
        assert (penalties.no_repeat_ngram(x, 3, text(length))[3] < 0) == (length == penalties.DRY_WINDOW)
    assert (penalties.DRY_WINDOW, penalties.LZ_WINDOW) == (1024, 512)
    assert penalties.lz(x, 1.0, text(penalties.LZ_WINDOW))[3] < penalties.lz(x, 1.0, text(penalties.LZ_WINDOW))[100] < 0
    assert penalties.lz(x, 1.0, text(penalties.LZ_WINDOW + 3))[3] == 0


def test_a_token_alone_costs_where_it_is_no_longer_in_the_buffer():
    """LZ: said 33 tokens ago it is a match of one token, said 32 ago it is not."""
    x = np.zeros(5000, np.float32)
    for distance, lowered in (penalties.LZ_BUFFER, False), (penalties.LZ_BUFFER + 1, True):
        assert (penalties.lz(x, 1.0, [7, *range(100, 99 + distance)])[7] < 0) == lowered


def test_a_repetition_costs_to_its_sixty_fourth_token():
    """And no more than that for a longer one."""
    x = np.zeros(200, np.float32)
    costs = [
        -penalties.dry(x, 1.0, [*range(length), 199, *range(length)], base=1.05, allowed_length=1)[199]
        for length in (40, 64, 80)
    ]
    assert costs == pytest.approx([1.05**39, 1.05**63, 1.05**63], rel=1e-5)


def test_breakers_end_repetitions_and_are_spared():
    """A token after a breaker counts from there only, and a breaker itself may come as often as it likes."""
    x = np.zeros(10, np.float32)
    assert penalties.dry(x, 1.0, [1, 2, 9, 1, 2])[9] == pytest.approx(-1.0)
    assert penalties.dry(x, 1.0, [1, 2, 9, 1, 2], breakers={9}) is x
    assert penalties.dry(x, 1.0, [1, 2, 3, 5, 1, 2, 3], breakers={2}) is x


def test_window_fades_by_half():
    """After one half-life half of the penalty is left."""
    x, loop = np.zeros(10, np.float32), [1, 2, 3] * 2
    assert penalties.window_penalty(x, loop, 2.0, 0, 8, [9, 1])[2] == pytest.approx(-2.0)
    assert penalties.window_penalty(x, loop, 2.0, 8, 8, [9, 1])[2] == pytest.approx(-1.0)
    with pytest.raises(ValueError, match="half_life"):
        penalties.window_penalty(x, loop, 2.0, 8, 0, [9, 1])


def test_ban_leaves_a_way_out_of_a_grammar():
    """If a grammar allows only what is banned, it is said all the same."""
    x = np.zeros(4, np.float32)
    banned = penalties.no_repeat_ngram(x, 1, [0, 1, 2])
    assert choose(banned, None) == 3
    mask = np.array([0, 0, -np.inf, -np.inf], np.float32)
    assert choose(banned + mask, None) == 0


def test_breakers_are_found_in_bytes():
    """A token that holds a line break or a colon among other bytes is one."""
    assert penalties.sequence_breakers([b"a", b":\n", b"x\ny", b"", b'"', b"*"]) == {1, 2, 4, 5}


def test_request_asks_for_them_by_name():
    """Each setting puts its penalty into the chain; by default there is none; the prompt may be quoted by n-grams."""
    x = np.zeros(8, np.float32)
    text = [1, 2, 3, 4, 1, 2]
    assert apply(processors(SamplingParams(temperature=1), 0), text, x).tolist() == x.tolist()
    for params in (
        SamplingParams(temperature=1, no_repeat_ngram=3),
        SamplingParams(temperature=1, dry_multiplier=1.0),
        SamplingParams(temperature=1, lz_penalty=1.0),
    ):
        params.validate(8)
        found = apply(processors(params, 0), text, x)
        assert found.argmin() == 3
        assert found[7] == 0
    assert apply(processors(SamplingParams(temperature=1, no_repeat_ngram=3), 4), text, x).tolist() == x.tolist()
    broken = processors(SamplingParams(temperature=1, dry_multiplier=1.0), 0, breakers={2})
    assert apply(broken, text, x).tolist() == x.tolist()


@pytest.mark.parametrize(
    "wrong", [{"no_repeat_ngram": -1}, {"dry_multiplier": 11.0}, {"dry_base": 0.5}, {"lz_penalty": float("nan")}]
)
def test_what_cannot_be_meant_is_refused(wrong):
    """Out of range, by the field's name."""
    with pytest.raises(InvalidRequest) as refused:
        SamplingParams(**wrong).validate(8)
    assert refused.value.param == next(iter(wrong))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("period", [1, 7, 300])
def test_a_token_costs_little_however_long_the_answer_is(name, period):
    """Under 2 ms on a busy machine for 20,000 tokens and 49,152 logits, in a loop too."""
    x = np.zeros(49_152, np.float32)
    text = np.tile(np.arange(period, dtype=np.int64), 20_000 // period)
    best = math.inf
    for _ in range(7):
        start = time.perf_counter()
        EVERY[name](x, text)
        best = min(best, time.perf_counter() - start)
    assert best < 2e-3
