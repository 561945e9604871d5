"""Is a repetition a loop, or text that is right to repeat? A judgement by what the copies look like.

Tables, code, data and logs repeat their structure, and lists their form; songs have refrains. So how many copies make a
loop certain depends on what they say: few where sentences come again word for word, many where only numbers remain to
tell the copies apart, none where nothing but numbers ever was.

    needed = copies_needed(copies)

Every figure here was set by two measurements that pull against each other: real answers of small models that loop, and
legitimate documents that must not be touched. `make bench-loops` repeats both.
"""

import itertools
import math
import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["exact", "counter", "drift", "list"]
Place = Literal["prose", "code", "table", "grammar"]

NEVER = math.inf
SAME_WORD_TOKENS = 192
"""Tokens that one word, or digits in one line, must go on for."""
TABLE_TOKENS = 256
LINE_TOKENS = 400
COUNTED, SHOWN, SHORT = 32, 12, 24
"""Copies in one line that only count; how many of them are looked at, and the tokens of a period for which they are."""
WORDS_A_CLOCK = 20
"""Where a time of day comes more often than that, it is a log."""
FILE_TOKENS = 2_400
"""For what a file may well be full of: zeros, constant records, drawings."""

_ENUMERATED = re.compile(
    r"^\s*(?:\W{0,2}\d+[.)]\s|(?:step|question|answer|item|day|week|part|chapter|line|note|task|example)\s+\d+\W)", re.I
)
_BULLET = re.compile(r"^\s*[*•-]\s(?!\w+:(?:\s|$)|[!&{\[])")
_CLOCK = re.compile(r"\d{1,2}:\d\d(?::\d\d|\b(?!\s*[ap]m))", re.IGNORECASE)
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_QUOTED = re.compile(r"[\n\"']")
_ROW = re.compile(r"^[^\s,;]+(?:[,;][^\s,;]+){2,}$", re.MULTILINE)
_RECORD = re.compile(r"^\s*(?:- )?[{\[<].*[}\]>],?$", re.MULTILINE)
_SETTINGS = re.compile(r"\w=\w.*\w=\w")
_COLUMNS = re.compile(r"\S(?:\t+| {4,})\S")
_INTEGER = re.compile(r"\d{1,9}")
_CODE = re.compile(r"[;{}=<>|\[\]_/\\@#$&^~`]")
_FILLER = re.compile(r"\b(?:null|none|nil|nan|n/?a|true|false|undefined|ok|yes|no)\b", re.IGNORECASE)
_DIGITS = re.compile(r"[\d.:/ TZ+*=-]*\d[\d.:/ TZ+*=-]*")
_EMPTY_ROWS = re.compile(r"[|\s:-]*\|[|\s:-]*")
_SENTENCE_END = re.compile(r"[^\W\d_][\"')\]]?[.!?](?:\s|$)")


@dataclass(frozen=True, slots=True)
class Copies:
    """What there is to judge.

    Attributes:
        kind: what the copies have in common.
        text: the last whole copy.
        before: the copy before it.
        tokens: in the last copy, white space aside, and a number counted once.
        words: tokens of it that are words or parts of words.
        distinct: different ones among the words.
        symbols: different tokens of any sort.
        modal_share: share of the last copies, up to twelve, that are the same as the commonest of them.
        place: what the text is there.
        run: the last copies, up to SHOWN, where only numbers differ and a copy has at most SHORT tokens; else empty.
    """

    kind: Kind
    text: str
    before: str
    tokens: int
    words: int
    distinct: int
    symbols: int
    modal_share: float
    place: Place
    run: str = ""

    @property
    def share(self) -> float:
        """Words among the tokens."""
        return self.words / max(1, self.tokens)


def copies_needed(copies: Copies, period: int) -> float:
    """Say how many copies make the loop certain; `NEVER` if none do.

    Args:
        copies: what they look like.
        period: tokens of one.
    """
    judge = {"exact": _exact, "counter": _counter, "drift": _drift}[copies.kind]
    needed = judge(copies, period)
    # In a grammar the structure is given: only what is said between it can be a loop, and it is said again and again.
    return needed * 2 if copies.place == "grammar" else needed


def _exact(copies: Copies, period: int) -> float:
    if copies.place == "prose" and _is_markup(copies):
        one_line = _in_one_line(copies) and not _FILLER.search(copies.text)
        return max(12, (LINE_TOKENS if one_line else FILE_TOKENS) / period)
    filler = _FILLER.search(copies.text) is not None and copies.distinct <= 2
    if copies.distinct >= 2 and copies.share >= 0.3 and not filler:
        return 4
    if copies.distinct and not filler:
        return max(8, SAME_WORD_TOKENS / period)
    if _EMPTY_ROWS.fullmatch(copies.text) or (copies.place == "table" and "+-" not in copies.text):
        return TABLE_TOKENS / period  # with a plus it would be a frame drawn in characters
    digits = any(map(str.isdigit, copies.text))
    if copies.place == "prose" and digits and copies.symbols >= (12 if "\n" in copies.text else 8):
        return max(6, TABLE_TOKENS / period)  # numbers in a long and equal row: that is no array of zeros
    # Digits that run on in one line are none either.
    if _DIGITS.fullmatch(copies.text):
        return SAME_WORD_TOKENS / period
    return (TABLE_TOKENS if copies.place == "code" and digits and _in_one_line(copies) else FILE_TOKENS) / period


def _counter(copies: Copies, period: int) -> float:
    if copies.place in ("prose", "table") and copies.distinct <= 1 and _in_one_line(copies) and _counts_on(copies):
        return max(COUNTED, TABLE_TOKENS / period)
    if copies.place == "table":
        return 24 if copies.distinct >= 2 else NEVER
    steady = 1.0 if _only_counts(copies) else 4.0
    if _is_list(copies) and not _is_timed(copies):
        return (6 if copies.words else 12) * steady
    return 6 * steady if _is_prose(copies, 0.4) else NEVER


def _drift(copies: Copies, _period: int) -> float:
    # Where every copy is another, each says something new: that is a template that is being filled in.
    if copies.distinct < 3 or copies.place in ("table", "code") or copies.modal_share < 0.34 or _is_markup(copies):
        return NEVER
    return 8 if _is_list(copies) or _is_prose(copies, 0.4) else NEVER


def _is_list(copies: Copies) -> bool:
    """Whether each line begins with a number or a bullet; one in YAML, which has keys, does not count."""
    lines = [line for line in copies.text.splitlines(keepends=True) if line.strip()]
    # The last copy may begin in the middle of a line: its end has the whole of it.
    whole = lines[1:] if len(lines) > 1 else (copies.before + copies.text).splitlines(keepends=True)[-2:]
    if any(_ENUMERATED.match(line) for line in whole):
        return True
    return bool(whole) and all(_BULLET.match(line) for line in whole) and copies.share >= 0.3 and copies.distinct >= 2


def _counts_on(copies: Copies) -> bool:
    """Whether nothing happens between the last copies but that numbers grow, nearly always by the same."""
    numbers = [int(n) for n in _INTEGER.findall(copies.run.strip("0123456789"))]  # without what may be cut
    width = len(_INTEGER.findall(copies.text))
    columns = [numbers[len(numbers) % width + column :: width] for column in range(width)] if width else []
    steps = [b - a for column in columns for a, b in itertools.pairwise(column) if a != b]
    if not steps or _QUOTED.search(copies.run):
        return False
    return steps.count(max(steps, key=steps.count)) >= 0.75 * len(steps)


def _in_one_line(copies: Copies) -> bool:
    return "\n" not in copies.before + copies.text


def _is_prose(copies: Copies, share: float) -> bool:
    """Whether it reads as sentences, or as one that has no end: not code, a log or a table of data."""
    if copies.place == "code" or copies.distinct < 3 or copies.share < share:
        return False
    if _is_timed(copies):
        return False
    if "\n" in copies.before + copies.text and not _SENTENCE_END.search(copies.text):
        return False
    return len(_CODE.findall(copies.text)) <= 0.12 * copies.tokens


def _is_timed(copies: Copies) -> bool:
    """Whether times of day come often in it: a log, a plan."""
    # A copy may begin in the middle of one, two copies do so once.
    return 2 * copies.words < WORDS_A_CLOCK * len(_CLOCK.findall(copies.before + copies.text))


def _is_markup(copies: Copies) -> bool:
    """Whether it is a file's text rather than an answer's: markup, data, columns, code without a fence around it."""
    lines = "" if _in_one_line(copies) else copies.before + copies.text
    if any(shape.search(lines) for shape in (_COLUMNS, _ROW, _RECORD, _SETTINGS)):
        return True
    return len(_CODE.findall(copies.text)) > 0.25 * copies.tokens


def _only_counts(copies: Copies) -> bool:
    """Whether the numbers that differ between two copies are one and the same counter, a few further each time."""
    last, before = _NUMBER.findall(copies.text), _NUMBER.findall(copies.before)
    if len(last) != len(before):
        return True  # cut at different places: cannot be told, and sentences matter more
    steps = {float(b) - float(a) for a, b in zip(before, last, strict=True) if a != b}
    return len(steps) <= 1 and all(0 < step <= 64 for step in steps)
