"""Loops that are planted behind real text, to see how many are found and how long that takes.

- **exact**: a passage of real text of some tokens, again and again.
- **counter**: sentences in which a number goes up; the rest stays.
- **drift**: as exact, but in a randomly chosen half of the copies one token is another one.

The delay is counted from the end of the second copy: before that there is no loop. A loop counts as found if the
breaker acts within COPIES copies, or LEAST tokens where these are fewer, and not before the loop begins.
"""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from appliance.decoding.breaker import Words
from appliance.models.tokenizer import Tokenizer
from bench.loops.replay import first_step
from bench.loops.sources import REPORTS

Kind = Literal["exact", "counter", "drift"]
CLASSES: dict[str, tuple[int, int]] = {
    "1 to 3": (1, 3),
    "4 to 15": (4, 15),
    "16 to 63": (16, 63),
    "64 to 255": (64, 255),
    "256 to 1,024": (256, 1024),
}
SHORTEST: dict[Kind, int] = {"exact": 1, "counter": 4, "drift": 4}
"""A counter needs room for its number, a drift for something that stays."""
COPIES, LEAST = 12, 600
BEFORE = 120
"""Tokens of real text before the loop."""

_STEPS = (
    "check the pressure", "write down the level", "open the valve by a quarter turn", "call the control room",
    "wait until the light is green", "count the instruments", "wipe the sensor", "press the button", "read the meter",
    "tell the nurse in charge", "close the door", "look for leaks around the flange and tighten the bolts",
)  # fmt: skip


@dataclass(frozen=True)
class Planted:
    """One planted loop and what was found of it; `delay` in tokens after the second copy, None if it was not found."""

    kind: Kind
    periods: str
    period: int
    delay: int | None

    @property
    def delay_copies(self) -> float | None:
        """The delay in copies."""
        return None if self.delay is None else self.delay / self.period


def plant(tokenizer: Tokenizer, words: Words, each: int = 40) -> Iterator[Planted]:
    """Plant `each` loops of every kind and class of periods, and look for them."""
    makers: dict[Kind, Callable[[Tokenizer, int, random.Random], list[list[int]]]] = {
        "exact": _exact,
        "counter": _counter,
        "drift": _drift,
    }
    for kind, make in makers.items():
        for name, (low, high) in CLASSES.items():
            low = max(low, SHORTEST[kind])
            for number in range(each if low <= high else 0):
                rng = random.Random(f"{kind} {name} {number}")  # noqa: S311  varies loops, hides nothing
                # Every length of a class, evenly on a logarithmic scale, so that short ones are not the exception.
                period = round(low * (high / low) ** (number / max(1, each - 1)))
                copies = make(tokenizer, period, rng)
                yield _look(kind, name, copies, tokenizer, words, rng)


def _look(
    kind: Kind, name: str, copies: list[list[int]], tokenizer: Tokenizer, words: Words, rng: random.Random
) -> Planted:
    before = _passage(tokenizer, BEFORE, rng)
    second = len(before) + len(copies[0]) + len(copies[1])
    acted = first_step(words, [*before, *(token for copy in copies for token in copy)])
    period = round(sum(map(len, copies)) / len(copies))
    found = acted is not None and acted.at > len(before) + len(copies[0])
    return Planted(kind, name, period, acted.at - second if acted and found else None)


def _passage(tokenizer: Tokenizer, length: int, rng: random.Random) -> list[int]:
    """Take a passage of real text, sentences in another order each time, so that it repeats nothing itself."""
    sentences = [s for report in REPORTS for s in re.split(r"(?<=\.) ", report)]
    text = " ".join(rng.sample(sentences, min(len(sentences), 8 + length // 10)))
    tokens = tokenizer.encode(text, bos=False)
    start = rng.randrange(max(1, len(tokens) - length + 1))
    return tokens[start : start + length]


def _count(period: int) -> int:
    return max(COPIES, -(-LEAST // period))


def _exact(tokenizer: Tokenizer, period: int, rng: random.Random) -> list[list[int]]:
    return [_passage(tokenizer, period, rng)] * _count(period)


def _drift(tokenizer: Tokenizer, period: int, rng: random.Random) -> list[list[int]]:
    copy = _passage(tokenizer, period, rng)
    others = _passage(tokenizer, 200, rng)
    count = _count(period)
    changed = set(rng.sample(range(count), count // 2))
    return [_change(copy, others, rng) if n in changed else copy for n in range(count)]


def _change(copy: Sequence[int], others: Sequence[int], rng: random.Random) -> list[int]:
    at = rng.randrange(len(copy))
    another = rng.choice([token for token in others if token != copy[at]])
    return [*copy[:at], another, *copy[at + 1 :]]


def _counter(tokenizer: Tokenizer, period: int, rng: random.Random) -> list[list[int]]:
    """Make copies of about `period` tokens: what is said is the same, the number goes up."""
    form = rng.choice(("{n}. {text}.\n", "Step {n}: {text}.\n", "On day {n} we {text}. ", "{text} ({n}), then "))
    first = rng.choice((1, 1, 7, 98, 2019))
    steps = rng.sample(_STEPS, len(_STEPS))
    text = steps[0]
    for more in [*steps[1:], *(s for r in rng.sample(REPORTS, len(REPORTS)) for s in r.rstrip(".").split(". "))]:
        if len(tokenizer.encode(form.format(n=first, text=text), bos=False)) >= period:
            break
        text += f", {more}"
    words = text.split(" ")
    while len(words) > 1 and len(tokenizer.encode(form.format(n=first, text=" ".join(words)), bos=False)) > period:
        words.pop()
    text = " ".join(words)
    return [tokenizer.encode(form.format(n=first + n, text=text), bos=False) for n in range(_count(period))]
