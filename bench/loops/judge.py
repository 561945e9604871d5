"""Say of a finished text whether it is a loop. Slow, offline, and made otherwise than the finder that it judges.

The finder sees tokens, one at a time, and must decide early. The judge sees the whole text at once, as words, numbers
and marks, and compares everything with everything: every distance at which the text could repeat (with numpy), and
every line or sentence with those before it (by alignment, so copies may differ in length).

A text is a loop if at least 4 copies in a row resemble the one before them by 0.8 or more, cover at least 96 words and
marks, and either reach the end of the text or make up 40 % of it; unless the copies carry something new:

- **new words**: most copies bring words that no copy before them had: rows of a table, lines of code, a list's items;
  or, where the request came with a document, numbers of it, as the right answer to "list all pumps" does;
- **new numbers**: the copies are data rather than prose (at most half of what they say are words), and their numbers
  do more than count up;
- **counting**: where the request asked for a sequence of numbers, copies without any word whose numbers change are
  what it asked for; where it asked for a table, rows of this kind are.

What it cannot tell: a log that says the same every minute, a column of constant cells, a ruler, a refrain, "say it 50
times" are repetition without news, and right. It calls them loops; `bench.loops.report` prints how many.
"""

import difflib
import itertools
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

LIKENESS = 0.8
MIN_COPIES = 4
MIN_SYMBOLS = 96
MOST_OF_TEXT = 0.4
WINDOW = 12
"""Symbols at least over which the likeness of two copies is taken: one odd symbol must not end a short period's run."""
NEW_COPIES, NEW_WORDS = 0.6, 0.08
"""Share of the copies that must bring new words, and how many of all words these must be."""
SOURCE_DIGITS = 3
"""Of a number that tells a document's records apart."""
LONGEST_UNIT = 6
"""Lines or sentences that a copy may have where copies are aligned."""

Kind = Literal["exact", "counter", "counting", "drift"]
_SYMBOL = re.compile(r"\w*\d[\w,.]*(?<![.,])|[^\W\d_]+|\n|[^\w\s]|_")
_NUMBER = "#"
_ORDER: tuple[Kind, ...] = ("exact", "counter", "counting", "drift")


@dataclass(frozen=True)
class Found:
    """A loop in a text; places and lengths in symbols: words, numbers, marks and line ends.

    Attributes:
        kind: `exact`; `counter`: only numbers change; `counting`: the same, and there are no words; `drift`.
        copy: the last whole copy, for people.
        at: index of the first character of the run in the text.
    """

    kind: Kind
    start: int
    end: int
    period: float
    copies: float
    likeness: float
    at: int
    copy: str


@dataclass(frozen=True)
class _Run:
    start: int
    end: int
    period: float
    likeness: float
    borders: tuple[int, ...]


class _Text:
    """A text as symbols: once as they are, once with every number the same."""

    def __init__(self, text: str) -> None:
        matches = list(_SYMBOL.finditer(text))
        self.raw: list[str] = []
        self.at: list[int] = []
        for match in matches:
            # A run of digits is as many symbols: a thousand zeros are not one number.
            pieces = list(match[0]) if len(match[0]) > 16 else [match[0].casefold()]
            self.raw += pieces
            self.at += [match.start() + (i if len(pieces) > 1 else 0) for i in range(len(pieces))]
        self.masked = [_NUMBER if any(c.isdigit() for c in s) else s for s in self.raw]
        self.text = text

    def slice(self, start: int, end: int) -> str:
        """The characters of some symbols."""
        stop = self.at[end] if end < len(self.at) else len(self.text)
        return self.text[self.at[start] : stop].strip()


def judge(text: str, *, counts: bool = False, table: bool = False, source: str = "") -> Found | None:
    """Find the loop that a text ends in or mostly is; None if there is none.

    Args:
        text: whole.
        counts: whether a sequence of numbers was asked for.
        table: whether a Markdown table was.
        source: the document that the request came with.
    """
    seen = _Text(text)
    numbers = frozenset(s for s in _Text(source).raw if len(s) >= SOURCE_DIGITS and s[0].isdigit())
    runs = [*_periodic(seen.raw), *_periodic(seen.masked), *_aligned(seen)]
    found = []
    for run in runs:
        length = run.end - run.start
        reaches_end = run.end >= len(seen.raw) - max(run.period, 24)
        if length < MIN_SYMBOLS or not (reaches_end or length >= MOST_OF_TEXT * len(seen.raw)):
            continue
        kind = _kind(seen, run)
        if _brings_words(seen, run, numbers) or (kind != "exact" and _brings_numbers(seen, run)):
            continue
        if kind != "exact" and _is_data_asked_for(seen, run, counts=counts, table=table):
            continue
        found.append((run, kind))
    if not found:
        return None
    # Of the readings that cover about the same, the one that says most: the plainest kind, the shortest copy.
    most = max(run.end - run.start for run, _ in found)
    wide = [(run, kind) for run, kind in found if run.end - run.start >= 0.9 * most]
    run, kind = min(wide, key=lambda f: (_ORDER.index(f[1]), f[0].period, f[0].start))
    copies = len(run.borders) - 1
    start, end = run.borders[-2:]
    copy = seen.slice(start, end)
    return Found(kind, run.start, run.end, run.period, copies, run.likeness, seen.at[run.start], copy)


# --- runs -------------------------------------------------------------------------------------------------------------


def _periodic(symbols: Sequence[str]) -> list[_Run]:
    """Find the runs that repeat at one fixed distance: for each distance the longest one."""
    codes = {s: n for n, s in enumerate(dict.fromkeys(symbols))}
    row = np.array([codes[s] for s in symbols], np.int32)
    runs = []
    for period in range(1, len(row) // MIN_COPIES + 1):
        equal = row[period:] == row[:-period]
        window = max(period, WINDOW)
        if len(equal) < window or equal.sum() < (MIN_COPIES - 1) * period * LIKENESS:
            continue
        total = np.concatenate([[0], np.cumsum(equal)])
        good = total[window:] - total[:-window] >= LIKENESS * window
        for start, end in _stretches(good):
            # Windows that are alike; the run begins a period before the first of them. Its edges must be alike too.
            first, last = start, end - 1 + window
            while last > first and not equal[last - 1]:
                last -= 1
            while first < last and not equal[first]:
                first += 1
            length = last - first + period
            if length >= max(MIN_SYMBOLS, MIN_COPIES * period):
                likeness = float(equal[first:last].mean())
                borders = tuple(range(first, last + period + 1, period))
                runs.append(_Run(first, last + period, period, likeness, borders))
    return runs


def _stretches(good: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Give start and end of each stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], good.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _aligned(seen: _Text) -> list[_Run]:
    """Find the runs whose copies are lines or sentences that resemble each other, at whatever lengths."""
    runs = []
    for borders in (_lines(seen), _sentences(seen)):
        for unit in range(1, LONGEST_UNIT + 1):
            for phase in range(unit):
                cuts = borders[phase::unit]
                if len(cuts) > MIN_COPIES:
                    runs += _chains(seen, cuts)
    return runs


def _chains(seen: _Text, cuts: Sequence[int]) -> list[_Run]:
    """Group copies that resemble the one before."""
    pieces = [seen.masked[a:b] for a, b in itertools.pairwise(cuts)]
    alike = [_likeness(a, b) for a, b in itertools.pairwise(pieces)]
    runs = []
    for start, end in _stretches(np.array([a >= LIKENESS for a in alike])):
        if end - start + 1 >= MIN_COPIES:
            borders = tuple(cuts[start : end + 2])
            period = (borders[-1] - borders[0]) / (len(borders) - 1)
            runs.append(_Run(borders[0], borders[-1], period, float(np.mean(alike[start:end])), borders))
    return runs


def _likeness(a: Sequence[str], b: Sequence[str]) -> float:
    if not a or not b or min(len(a), len(b)) < LIKENESS * max(len(a), len(b)) / 1.5:
        return 0.0
    matcher = difflib.SequenceMatcher(None, a, b, autojunk=False)
    return matcher.ratio() if matcher.quick_ratio() >= LIKENESS else 0.0


def _lines(seen: _Text) -> list[int]:
    return [0, *(n + 1 for n, s in enumerate(seen.raw) if s == "\n" and seen.raw[n - 1 : n] != ["\n"]), len(seen.raw)]


def _sentences(seen: _Text) -> list[int]:
    return [0, *(n + 1 for n, s in enumerate(seen.raw) if s in ".!?;"), len(seen.raw)]


# --- what a run says --------------------------------------------------------------------------------------------------


def _kind(seen: _Text, run: _Run) -> Kind:
    copies = [seen.raw[a:b] for a, b in itertools.pairwise(run.borders)]
    if len({tuple(c) for c in copies}) == 1:
        return "exact"
    masked = {tuple(seen.masked[a:b]) for a, b in itertools.pairwise(run.borders)}
    if len(masked) > 1:
        return "drift"
    return "counter" if any(_is_word(s) for s in copies[0]) else "counting"


def _is_data_asked_for(seen: _Text, run: _Run, *, counts: bool, table: bool) -> bool:
    said = seen.raw[run.start : run.end]
    return not any(map(_is_word, said)) and (counts or (table and "|" in said and "\n" in said))


def _is_word(symbol: str) -> bool:
    return len(symbol) > 1 and symbol.isalpha()


def _brings_words(seen: _Text, run: _Run, numbers: Collection[str]) -> bool:
    known: set[str] = set()
    bringing, new, words = [], 0, 0
    for number, (a, b) in enumerate(itertools.pairwise(run.borders)):
        said = [s for s in seen.raw[a:b] if _is_word(s) or s in numbers]
        fresh = set(said) - known
        known |= fresh
        if number >= 2:
            bringing.append(bool(fresh))
            new += len(fresh)
            words += len(said)
    return bool(words) and float(np.mean(bringing)) >= NEW_COPIES and new >= NEW_WORDS * words


def _brings_numbers(seen: _Text, run: _Run) -> bool:
    """Whether the copies are data, and some number in them changes otherwise than by one or two fixed steps."""
    said = seen.masked[run.start : run.end]
    words, numbers = sum(map(_is_word, said)), said.count(_NUMBER)
    if numbers < words or not numbers:
        return False
    rows = [[_value(s) for s in seen.raw[a:b] if any(c.isdigit() for c in s)]
            for a, b in itertools.pairwise(run.borders)]  # fmt: skip
    width = min(map(len, rows))
    for column in range(width):
        values = [row[column] for row in rows]
        steps = [round(b - a, 6) for a, b in itertools.pairwise(values)]
        common = {s for s in steps if steps.count(s) >= max(2, len(steps) / 5)}
        if sum(s not in common for s in steps) >= 0.4 * len(steps) and len(set(values)) >= len(values) / 2:
            return True
    return False


def _value(symbol: str) -> float:
    digits = re.sub(r"[^\d.]", "", symbol.replace(",", "")).strip(".")
    try:
        return float(digits)
    except ValueError:
        return float(re.sub(r"\D", "", digits) or 0)
