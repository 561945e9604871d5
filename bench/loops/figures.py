"""From rows to figures: rates with their intervals, medians, what a break saved. Pure.

What the words mean:

- **loop**: `bench.loops.judge` calls the finished text one.
- **broken**: the breaker acted at least once while the answer was made.
- **usable**: the prompt's own verifier says so, and the text is not a loop; **right**: correct as well.
- **delay**: tokens between the end of a loop's second copy, before which there is none, and the break.
- **saved**: what the answer without the breaker cost, less what it cost with it, tokens taken back included.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from bench.loops.answers import Answer, Verdict
from bench.loops.judge import Found, judge
from bench.loops.prompts import Prompt

Z = 1.959963984540054
"""Of a 95 % interval."""


@dataclass(frozen=True)
class Rate:
    """How many of how many, with Wilson's 95 % interval."""

    count: int
    total: int

    @property
    def value(self) -> float:
        """The rate; 0 of nothing is 0."""
        return self.count / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper bound."""
        return wilson(self.count, self.total)


def wilson(count: int, total: int, z: float = Z) -> tuple[float, float]:
    """Give Wilson's interval of a rate; (0, 1) of nothing.

    Raises:
        ValueError: `count` is not in [0, total].
    Source: Wilson 1927, "Probable Inference, the Law of Succession, and Statistical Inference".
    """
    if not 0 <= count <= total:
        raise ValueError(f"cannot take {count} of {total}")
    if total == 0:
        return 0.0, 1.0
    rate, square = count / total, z * z
    middle = (rate + square / (2 * total)) / (1 + square / total)
    half = z / (1 + square / total) * math.sqrt(rate * (1 - rate) / total + square / (4 * total * total))
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class Judged:
    """An answer, whether it is a loop, and what its verifier says."""

    prompt: Prompt
    row: Mapping[str, Any]
    loop: Found | None
    verdict: Verdict

    @property
    def usable(self) -> bool:
        """Whether a reader can work with it."""
        return self.verdict.usable and self.loop is None

    @property
    def right(self) -> bool:
        """Whether it is correct too."""
        return self.usable and self.verdict.right is True

    @property
    def breaks(self) -> Sequence[Mapping[str, Any]]:
        """What the breaker did; a warning is not a deed."""
        return [one for one in self.row.get("breaks", []) if one["rung"] != "warn"]

    @property
    def tokens(self) -> int:
        """Tokens that were computed for it, those taken back included."""
        return len(self.row["tokens"]) + int(self.row.get("rewound", 0))


def judge_rows(prompts: Sequence[Prompt], rows: Sequence[Mapping[str, Any]]) -> list[Judged]:
    """Judge the rows of one setting, in the order of their prompts."""
    return [
        Judged(
            p,
            r,
            judge(r["text"], counts=p.counts, table=p.family == "table", source=p.source),
            p.verify(Answer(r["text"], r["finish"])),
        )
        for p, r in zip(prompts, rows, strict=True)
    ]


def rate(flags: Iterable[bool]) -> Rate:
    """Count what is true."""
    values = list(flags)
    return Rate(sum(values), len(values))


def percentile(values: Sequence[float], share: float) -> float:
    """Give the value that `share` of all are at most, the nearest that there is; NaN of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


@dataclass(frozen=True)
class Effect:
    """What the breaker did to the answers of one model at one temperature.

    Attributes:
        loops_off, loops_on: rates over all prompts.
        usable_off, usable_on, right_off, right_on: rates over all prompts.
        broken: answers in which it acted, as they ended; of those usable and right.
        of_loops: of the answers that were loops without it, those in which it acted.
        broken_ends: how the broken ones ended: stop, length, loop.
        needless: prompts in which it acted though the answer without it was no loop.
        missed: prompts that were loops without it and in which it did not act.
        still: prompts that are loops with it.
        kept: answers that are the same to the byte, of those in which it never acted.
        calm_off, calm_on: usable answers of the prompts that were no loops without it.
        calm_right_off, calm_right_on: right ones of these.
        delays: tokens of each answer's first break.
        delays_s: the same in seconds of that answer's own speed.
        saved, saved_s: tokens and seconds of each broken answer.
    """

    loops_off: Rate
    loops_on: Rate
    usable_off: Rate
    usable_on: Rate
    right_off: Rate
    right_on: Rate
    broken_usable: Rate
    broken_right: Rate
    of_loops: Rate
    broken_ends: Mapping[str, int]
    needless: tuple[str, ...]
    missed: tuple[str, ...]
    still: tuple[str, ...]
    kept: Rate
    calm_off: Rate
    calm_on: Rate
    calm_right_off: Rate
    calm_right_on: Rate
    delays: tuple[int, ...]
    delays_s: tuple[float, ...]
    saved: tuple[int, ...]
    saved_s: tuple[float, ...]


def effect(off: Sequence[Judged], on: Sequence[Judged]) -> Effect:
    """Compare the answers without and with the breaker, prompt by prompt."""
    pairs = list(zip(off, on, strict=True))
    broken = [(a, b) for a, b in pairs if b.breaks]
    calm = [(a, b) for a, b in pairs if a.loop is None]
    firsts = [(a, b.breaks[0]) for a, b in broken]
    delays = [one["at"] - one["onset"] - one["period"] for _, one in firsts]
    ends = [str(b.row["finish"]) for _, b in broken]
    return Effect(
        loops_off=rate(a.loop is not None for a in off),
        loops_on=rate(b.loop is not None for b in on),
        usable_off=rate(a.usable for a in off),
        usable_on=rate(b.usable for b in on),
        right_off=rate(a.right for a in off),
        right_on=rate(b.right for b in on),
        broken_usable=rate(b.usable for _, b in broken),
        broken_right=rate(b.right for _, b in broken),
        of_loops=rate(bool(b.breaks) for a, b in pairs if a.loop),
        broken_ends={end: ends.count(end) for end in ("stop", "length", "loop")},
        needless=tuple(b.prompt.id for a, b in broken if a.loop is None),
        missed=tuple(a.prompt.id for a, b in pairs if a.loop and not b.breaks),
        still=tuple(b.prompt.id for b in on if b.loop),
        kept=rate(a.row["tokens"] == b.row["tokens"] for a, b in pairs if not b.breaks),
        calm_off=rate(a.usable for a, _ in calm),
        calm_on=rate(b.usable for _, b in calm),
        calm_right_off=rate(a.right for a, _ in calm),
        calm_right_on=rate(b.right for _, b in calm),
        delays=tuple(delays),
        delays_s=tuple(d * _token_s(a) for d, (a, _) in zip(delays, firsts, strict=True)),
        saved=tuple(a.tokens - b.tokens for a, b in broken),
        saved_s=tuple((a.tokens - b.tokens) * _token_s(a) for a, b in broken),
    )


def _token_s(judged: Judged) -> float:
    """Seconds a token, of one answer."""
    return float(judged.row["decode_s"]) / max(1, len(judged.row["tokens"]) - 1)


def middle(values: Sequence[float]) -> float:
    """Give the median; NaN of nothing."""
    return median(values) if values else math.nan
