"""Penalties on repetition from the literature, and the two that the loop breaker uses.

Plain functions `(logits, ..., tokens, out=None) -> logits` like those of `sampling`, each with its source. All are off
by default, the breaker's two (`window_penalty`, `repeated_words`) until it has broken a loop: measured on small models
those of the literature do not prevent long loops, and what they cost is right text that has to repeat itself. They look
at tokens, not at text, and at a bounded stretch of them, so that a token's price does not grow with the answer.

    logits = dry(logits, 0.8, tokens=answer, breakers=sequence_breakers(token_bytes))
    logits = window_penalty(logits, answer[onset - period:], 2.0, age=3, half_life=64, tokens=answer)

No function changes the array that it is given, unless it is given as `out` too; one that has nothing to do returns its
input. A token that continues no repetition keeps its logit, to the bit.

What this does NOT do: mask. Even a ban is only a very large penalty, so that a grammar that allows nothing else still
finds a token to say.
"""

import math
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from appliance.decoding.text import TokenBytes
from appliance.decoding.weights import Logits

Tokens = Sequence[int] | NDArray[np.int64]
"""Prompt and answer so far. A view of an int64 buffer is fastest: a list is converted once a penalty."""

BAN = 1e4
"""Taken off a logit that must not win while any other token may: far more than logits differ, far less than float32's
largest number."""

DRY_WINDOW = 1024
"""Tokens that `dry` and `no_repeat_ngram` look back."""
LONGEST_MATCH = 64
"""Repetitions longer than this are penalized like one of this length; the exponent is out of all proportion by then."""
LARGEST_PENALTY = 1e3
LZ_WINDOW = 512
LZ_BUFFER = 32
"""Window and buffer of the compressor that `lz` simulates: the paper's figures."""
LOOP_BASE = 1.75
WORD_PENALTY, MOST_WORD_PENALTY = 0.8, 30.0
MARKS = 16
BREAKERS = ("\n", ":", '"', "*")


def copied(logits: Logits, out: Logits | None) -> Logits:
    """The array that a processor may write into: `out` with the logits in it, or a new copy."""
    if out is None:
        return logits.copy()
    if out is not logits:
        np.copyto(out, logits)
    return out


def sequence_breakers(token_bytes: TokenBytes, texts: Collection[str] = BREAKERS) -> frozenset[int]:
    """Find the tokens that `dry` lets no repetition reach across: those whose bytes hold one of `texts`.

    Source: llama.cpp's defaults of `--dry-sequence-breaker`.
    """
    wanted = [text.encode() for text in texts]
    return frozenset(i for i, data in enumerate(token_bytes) if any(text in data for text in wanted))


def no_repeat_ngram(logits: Logits, size: int, tokens: Tokens, out: Logits | None = None) -> Logits:
    """Ban every token that would end an n-gram which the text holds already.

    Args:
        logits: float32, shape (vocabulary,).
        size: n; 0 is off, 1 allows every token once.
        tokens: the answer so far, without the prompt, which may be quoted.
    Source: Paulus et al. 2018, section 2.5, for trigrams.
    """
    if size < 1:
        return logits
    text = _tail(tokens, DRY_WINDOW)
    if len(text) < size:
        return logits
    starts = np.arange(len(text) - size + 1)
    for k in range(size - 1):
        starts = starts[text[starts + k] == text[len(text) - size + 1 + k]]
    return _lower(logits, text[starts + size - 1], BAN, out)


def dry(
    logits: Logits,
    multiplier: float,
    tokens: Tokens,
    base: float = 1.75,
    allowed_length: int = 2,
    breakers: Collection[int] = (),
    out: Logits | None = None,
) -> Logits:
    """Lower tokens that would continue a repetition, exponentially in its length.

    A token that followed an earlier occurrence of the text's last n tokens loses multiplier * base ** (n - allowed),
    for the largest such n, if n is at least the allowed length.

    Args:
        logits: float32, shape (vocabulary,).
        multiplier: 0 is off.
        tokens: prompt and answer.
        base: at least 1.
        allowed_length: repetitions that are shorter cost nothing; at least 1.
        breakers: ids that no repetition reaches across, and that are never lowered.
    Source: "DRY: a modern repetition penalty", text-generation-webui pull request 5677 by p-e-w, 2024; llama.cpp's
        sampler of the same name.
    """
    if multiplier == 0:
        return logits
    text = _tail(tokens, DRY_WINDOW)
    ids, lengths = _continuations(text, text, LONGEST_MATCH, breakers)
    if breakers:
        spared = np.isin(ids, np.fromiter(breakers, np.int64, len(breakers)))
        ids, lengths = ids[~spared], lengths[~spared]
    keep = lengths >= max(1, allowed_length)
    ids, lengths = ids[keep], lengths[keep]
    return _lower(logits, ids, _growing(multiplier, base, lengths - allowed_length), out)


def lz(logits: Logits, strength: float, tokens: Tokens, out: Logits | None = None) -> Logits:
    """Lower each token by what a Lempel-Ziv compressor would save on it.

    The compressor writes a match as its distance and its length, in ln(distance) + ln(length) nats, and a token that it
    does not find in ln(vocabulary). A token that makes the text's last match longer thus costs next to nothing and
    loses the most; one that only occurs in the window, before the last 32 tokens, costs its distance; one that does not
    keeps its logit.

    Args:
        logits: float32, shape (vocabulary,).
        strength: 0 is off; the paper uses 0.15.
        tokens: prompt and answer; the last 512 are the window, and a match has at most 32 of them.
    Source: Ginart et al. 2025, "LZ penalty", section 3. Simplified: the paper adds the cost of each token to its logit,
        here what is saved is taken off, which differs by a constant and therefore in nothing; and a match that goes on
        is looked for in the buffer too, so that a loop of a short period is seen at once.
    """
    if strength == 0:
        return logits
    text = _tail(tokens, LZ_WINDOW)
    if len(text) < 2:
        return logits
    ids, lengths = _continuations(text, text, LZ_BUFFER - 1, (), shortest=0)
    distances = len(text) - np.arange(len(text))  # from the token to come back to each one
    literal = math.log(max(2, logits.size))
    # A match of one token that begins here; in the buffer none begins: the same word again is no repetition yet.
    fresh = np.where(distances > LZ_BUFFER, np.log(distances), literal)
    unique, cheapest = _largest(ids, -fresh)
    cost = -cheapest
    longest = int(lengths.max(initial=0))
    if longest:
        # The match so far, at its nearest occurrence, made one token longer at the nearest occurrence of that.
        whole = lengths == longest
        before = math.log(int(distances[whole].min())) + math.log(longest)
        longer, at = _largest(ids[whole], -distances[whole])
        extended = np.log(-at) + math.log(longest + 1) - before
        places = np.searchsorted(unique, longer)
        cost[places] = np.minimum(cost[places], np.maximum(extended, 0.0))
    saved = np.maximum(literal - cost, 0.0)
    lower = saved > 0
    return _lower(logits, unique[lower], strength * saved[lower], out)


def window_penalty(
    logits: Logits,
    loop_tokens: Tokens,
    strength: float,
    age: int,
    half_life: float,
    tokens: Tokens,
    out: Logits | None = None,
) -> Logits:
    """Lower tokens that would go back into a loop that was broken, less and less.

    As `dry`, but what must not be repeated is only the loop: a token that followed, within the loop, the text's last n
    tokens loses strength * 1.75 ** (n - 1), halved every `half_life` tokens.

    Args:
        logits: float32, shape (vocabulary,).
        loop_tokens: the loop's copies, two of them or more, so that the end of one leads to the beginning of the next.
        strength: 0 is off.
        age: tokens since the loop was broken, from 0.
        half_life: in tokens, above 0.
        tokens: prompt and answer as they are now.
    Source: the form is DRY's, see `dry`; window and decay are Skerry's own.
    """
    if not half_life > 0:
        raise ValueError(f"half_life must be positive, not {half_life}")
    left = strength * 0.5 ** (age / half_life)
    if left < 1e-3:  # less than a logit's noise
        return logits
    loop = np.asarray(loop_tokens, np.int64)
    ids, lengths = _continuations(loop, _tail(tokens, LONGEST_MATCH), LONGEST_MATCH, ())
    return _lower(logits, ids, _growing(left, LOOP_BASE, lengths - 1), out)


def repeated_words(logits: Logits, symbols: Tokens, is_word: NDArray[np.bool_], out: Logits | None = None) -> Logits:
    """Lower the words that would continue a repetition, whatever numbers it is counted with.

    As `dry`, but the text is read with every number as one symbol, so that "12. Elephants" repeats "7. Elephants"; what
    is no word keeps its logit unless MARKS symbols or more are repeated, so that a list's and a table's marks, and what
    follows a number, stay free.

    Args:
        logits: float32, shape (vocabulary,).
        symbols: the answer's; a token's id, or a negative number for a number.
        is_word: of each id, shape (vocabulary,).
    Source: the form is DRY's, see `dry`; the reading is Skerry's own, see `loops`.
    """
    text = _tail(symbols, DRY_WINDOW)
    if len(text) < 2 or text[-1] < 0:
        return logits
    ids, lengths = _continuations(text, text, LONGEST_MATCH, (), shortest=2)
    ids, lengths = ids[ids >= 0], lengths[ids >= 0]
    keep = is_word[ids] | (lengths >= MARKS)
    penalties = np.minimum(_growing(WORD_PENALTY, LOOP_BASE, lengths[keep] - 2), MOST_WORD_PENALTY)
    return _lower(logits, ids[keep], penalties, out)


# --- finding repetitions ----------------------------------------------------------------------------------------------


def _tail(tokens: Tokens, count: int) -> NDArray[np.int64]:
    return np.asarray(tokens[-count:], np.int64)


def _continuations(
    pattern: NDArray[np.int64],
    text: NDArray[np.int64],
    longest: int,
    breakers: Collection[int],
    shortest: int = 1,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find the tokens of `pattern` that follow an occurrence of the end of `text` in it.

    Returns:
        the tokens, and for each the length of the occurrence before it, from `shortest` to `longest`.
    """
    lengths = np.zeros(len(pattern), np.int64)
    alive = np.arange(1, len(pattern))  # places whose match goes on
    for k in range(1, min(longest, len(text)) + 1):
        wanted = text[-k]
        if int(wanted) in breakers:
            break
        alive = alive[alive >= k]
        alive = alive[pattern[alive - k] == wanted]
        if not alive.size:
            break
        lengths[alive] = k
    keep = lengths >= shortest
    return pattern[keep], lengths[keep]


def _growing(multiplier: float, base: float, exponents: NDArray[np.int64]) -> NDArray[np.float64]:
    with np.errstate(over="ignore"):
        grown = multiplier * np.power(float(base), exponents.astype(np.float64))
    return np.clip(grown, -LARGEST_PENALTY, LARGEST_PENALTY)


def _largest(
    ids: NDArray[np.int64], values: NDArray[np.int64] | NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The largest value of each id."""
    order = np.lexsort((values, ids))
    last = np.append(ids[order][1:] != ids[order][:-1], True)[: len(ids)]
    return ids[order][last], values[order][last].astype(np.float64)


def _lower(
    logits: Logits, ids: NDArray[np.int64], penalties: NDArray[np.float64] | float, out: Logits | None
) -> Logits:
    """Take the largest of each id's penalties off its logit."""
    if not ids.size:
        return logits
    if isinstance(penalties, float):
        unique, most = np.unique(ids), np.float64(penalties)
        lowered = logits[unique] - np.float32(most)
    else:
        unique, largest = _largest(ids, penalties)
        lowered = logits[unique] - largest.astype(np.float32)
    out = copied(logits, out)
    out[unique] = lowered
    return out
