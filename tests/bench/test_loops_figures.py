"""Wilson's interval, medians, and what a break is said to have saved."""

import math
from typing import Any

import pytest

from bench.loops.figures import Judged, Rate, effect, judge_rows, percentile, wilson
from bench.loops.prompts import PROMPTS, Prompt

LIST = next(p for p in PROMPTS if p.family == "enumeration")
LOOP = "1. The lamp is red. " * 40
WORDS = ("oak", "ash", "elm", "fir", "pine", "beech", "birch", "maple", "larch", "alder", "yew", "box", "holly", "ivy")
GOOD = "\n".join(f"{n}. {word}" for n, word in enumerate(WORDS, 1))


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [
        # Newcombe 1998, table I, method 3 (Wilson's score), and 0 and all of n by hand: z²/(n + z²).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson_gives_the_published_intervals(count: int, total: int, low: float, high: float) -> None:
    """Four digits, as in the paper."""
    assert wilson(count, total) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_a_rate_of_more_than_all_is_a_bug() -> None:
    """It is refused, not drawn as an interval."""
    with pytest.raises(ValueError, match="3 of 2"):
        wilson(3, 2)


def test_a_percentile_is_one_of_the_values() -> None:
    """The nearest rank; of nothing it is not a number."""
    assert percentile([5, 1, 4, 2, 3], 0.9) == 5
    assert percentile(list(range(1, 11)), 0.9) == 9
    assert percentile([7], 0.5) == 7
    assert math.isnan(percentile([], 0.9))


def row(text: str, tokens: int, *, breaks: Any = (), rewound: int = 0, finish: str = "stop") -> dict[str, Any]:
    return {"text": text, "tokens": [1] * tokens, "finish": finish, "decode_s": (tokens - 1) * 0.01,
            "rewound": rewound, "breaks": list(breaks)}  # fmt: skip


def judged(*rows: dict[str, Any]) -> list[Judged]:
    return judge_rows([LIST] * len(rows), rows)


BREAK = {"rung": "resample", "kind": "exact", "onset": 40, "period": 10, "at": 80}


def test_a_broken_loop_saves_what_it_would_have_cost() -> None:
    """Less what was taken back; the delay is counted from the end of the second copy."""
    e = effect(
        judged(row(LOOP, 512, finish="length"), row(GOOD, 100)),
        judged(row(GOOD, 150, breaks=[BREAK], rewound=42), row(GOOD, 100)),
    )

    assert (e.loops_off, e.loops_on) == (Rate(1, 2), Rate(0, 2))
    assert (e.broken_usable, e.of_loops) == (Rate(1, 1), Rate(1, 1))
    assert e.saved == (512 - 150 - 42,)
    assert e.saved_s == (pytest.approx(3.2),)
    assert e.delays == (30,)
    assert e.delays_s == (pytest.approx(0.3),)
    assert e.kept == Rate(1, 1)
    assert (e.calm_off, e.calm_on) == (Rate(1, 1), Rate(1, 1))
    assert not e.needless
    assert not e.missed
    assert not e.still


def test_what_the_breaker_does_wrong_is_named() -> None:
    """It acted on an answer in order; it did not see a loop; an answer that it did not touch is not the same."""
    e = effect(
        judged(row(GOOD, 100), row(LOOP, 512), row(GOOD, 100)),
        judged(row("Oak.", 3, breaks=[BREAK]), row(LOOP, 512), row(GOOD, 99)),
    )

    assert e.needless == (LIST.id,)
    assert e.missed == e.still == (LIST.id,)
    assert e.kept == Rate(1, 2)
    assert (e.calm_off, e.calm_on) == (Rate(2, 2), Rate(1, 2))


def test_a_loop_is_never_usable_and_a_warning_is_no_deed() -> None:
    """Whatever a verifier may say of a text that repeats itself."""
    easy = Prompt("easy", "recall", "Say something.", lambda answer: LIST.verify(type(answer)(GOOD)))
    warned = judge_rows([easy], [row(LOOP, 300, breaks=[{**BREAK, "rung": "warn"}])])[0]

    assert warned.verdict.usable
    assert not warned.usable
    assert not warned.right
    assert not warned.breaks
