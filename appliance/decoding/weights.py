"""Probabilities as whole numbers, so that the same logits give the same token on every machine.

exp() differs in the last bits between processors and libraries, and a sum of floats depends on its order; either could
change a token. So a token's weight is a whole number, 2**34 for the best one, made from a table by operations that
IEEE 754 fixes to the bit. In float64 the sum of up to 2**19 such numbers is exact, in any order.

`nucleus` finds where top-p cuts, `draw` inverts the cumulative distribution; both take raw or processed logits.

What this does NOT do: tell apart what float32 logits cannot. A weight is the exponential to within 3 millionths and the
rounding; a token less than 2**-35 times as likely as the best one has none.
"""

import functools
import math
from collections.abc import Iterator
from decimal import Context, Decimal, localcontext

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
"""One row, shape (vocabulary,)."""

BLOCK = 16_384
"""Elements at a time: small enough for the caches, and nothing as large as the vocabulary is allocated."""

_BEST_WEIGHT = 2.0**34
_STEPS = 256
"""Table entries per unit of logit (all fit the first cache); between them exp(x) is 1 + x, 2e-6 too small at most."""
_SPAN = 25
"""Logits further than this below the best have weight 0: exp(-25) * 2**34 < 0.5."""
_BIN_SHIFT = 3
_BINS_PER_UNIT = _STEPS >> _BIN_SHIFT


@functools.cache
def _table() -> Logits:
    """Weight of a logit i / _STEPS below the best, over _STEPS; float32, shape ((_SPAN + 1) * _STEPS,)."""
    with localcontext(Context(prec=30)):  # Decimal's exp is correctly rounded, on every platform
        units = np.array([float(Decimal(-i).exp()) for i in range(_SPAN + 1)])
        parts = np.array([float((Decimal(-i) / _STEPS).exp()) for i in range(_STEPS)])
    table: Logits = (np.outer(units, parts).ravel() * (_BEST_WEIGHT / _STEPS)).astype(np.float32)
    return table


def blocks(size: int) -> Iterator[slice]:
    """Cut a row."""
    return (slice(start, start + BLOCK) for start in range(0, size, BLOCK))


def weigh(below: Logits) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Give logits their places in the table, rising from the best one's 0, and their weights.

    Args:
        below: how far each is below the best, float32, 0 or more; at most a block for speed.
    """
    below = below * np.float32(_STEPS)
    # An array, not a number, on the right: only that form of minimum is vectorized, and it is 4x faster.
    np.minimum(below, np.full_like(below, _SPAN * _STEPS), out=below)
    place = np.rint(below)
    index = place.astype(np.int32)
    place -= below
    place += np.float32(_STEPS)
    weight = _table().take(index, mode="clip")
    weight *= place
    np.rint(weight, out=weight)
    return index, weight.astype(np.float64)


def _in_span(logits: Logits, best: np.float32) -> NDArray[np.intp] | slice:
    """Find the tokens that have weight; all tokens if those are so many that picking them takes longer."""
    near = logits >= best - np.float32(_SPAN)
    return np.flatnonzero(near) if 4 * np.count_nonzero(near) < near.size else slice(None)


def nucleus(logits: Logits, p: float) -> tuple[np.float32, int]:
    """Find the last logit that top-p keeps, and how many that equal it are not kept.

    Args:
        logits: float32, shape (vocabulary,), not all masked.
        p: from 0 to less than 1.

    A sort of the vocabulary takes 20 times as long: here a histogram of weight finds the bin in which the sum reaches
    `p`, and only that bin is sorted.
    """
    best = logits.max()
    values = logits[_in_span(logits, best)]
    reach = _reach(logits.size, p)
    total, histogram = 0.0, np.zeros(_SPAN * _BINS_PER_UNIT + 1)
    for block in blocks(values.size):
        index, weight = weigh(best - values[block])
        total += float(weight.sum())
        near = index <= reach
        if 4 * np.count_nonzero(near) < near.size:
            ids = np.flatnonzero(near)
            index, weight = index[ids], weight[ids]
        histogram += np.bincount(index >> _BIN_SHIFT, weight, minlength=histogram.size)
    mass = np.cumsum(histogram)
    target = max(1.0, p * total)
    decisive = int(np.searchsorted(mass, target))
    members = np.sort(_in_bin(values, best, decisive))[::-1]
    running = mass[decisive] - histogram[decisive] + np.cumsum(weigh(best - members)[1])
    last = int(np.searchsorted(running, target))
    return members[last], int(np.count_nonzero(members >= members[last])) - (last + 1)


def _reach(size: int, p: float) -> int:
    """Say beyond which place in the table a logit is surely outside the nucleus.

    All tokens beyond it have together less than 1 - p of the best one's weight, even if every rounding went up.
    """
    spare = (1 - p) * _BEST_WEIGHT / size - 1
    return math.ceil(_STEPS * (min(_SPAN, math.log(_BEST_WEIGHT / spare) + 0.01) if spare > 1 else _SPAN))


def _in_bin(values: Logits, best: np.float32, number: int) -> Logits:
    """Pick the logits of one bin: by a comparison with a margin first, which is cheap, then exactly."""
    lower, upper = np.float32((number - 1) / _BINS_PER_UNIT), np.float32((number + 2) / _BINS_PER_UNIT)
    found = []
    for block in blocks(values.size):
        below = best - values[block]
        found.append(values[block][np.flatnonzero((below >= lower) & (below <= upper))])
    near = np.concatenate(found)
    inside: Logits = near[weigh(best - near)[0] >> _BIN_SHIFT == number]
    return inside


def draw(logits: Logits, bits: int) -> int:
    """Draw the token at `bits` / 2**64 of the cumulative distribution.

    Args:
        logits: float32, shape (vocabulary,), not all masked.
        bits: 64 of them; a token's share of their values is its probability to within 2**-64.
    """
    best = logits.max()
    ids = _in_span(logits, best)
    position = _invert(logits[ids], best, bits)
    return position if isinstance(ids, slice) else int(ids[position])


def _invert(values: Logits, best: np.float32, bits: int) -> int:
    totals = np.array([weigh(best - values[block])[1].sum() for block in blocks(values.size)])
    ends = np.cumsum(totals)
    point = bits * int(ends[-1]) >> 64
    which = int(np.searchsorted(ends, point, side="right"))
    block = slice(which * BLOCK, (which + 1) * BLOCK)
    running = ends[which] - totals[which] + np.cumsum(weigh(best - values[block])[1])
    return which * BLOCK + int(np.searchsorted(running, point, side="right"))
