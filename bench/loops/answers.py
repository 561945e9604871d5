"""What a reader could do with an answer: one verifier for each family of prompts.

Two levels. **Usable**: the answer has the form that was asked for, says nothing over and over, and has its end; a
reader can work with it, and may have to correct it. **Right**: it is also correct, as far as a program can tell; None
where it cannot. A model of 135 million weights is seldom right; what a loop breaker can give back is a usable answer.

An answer that ran into its limit of tokens has no end. Where the parts of an answer stand alone (the items of a list,
the rows of a table) its last, cut line is left out and the rest judged; where they do not (a calculation, code, a
summary) the answer is not usable. An answer that was cut where a loop began is judged by what is left of it; a
calculation must have come to its result by itself.

What this does NOT judge: whether a list's items are true, whether code works. Code is parsed, never run.
"""

import ast
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

MOST_REPEATS = 2
"""A sentence, an item or a row may stand this often in a usable answer."""
SENTENCE_WORDS = 4
"""Shorter sentences and lines ("Yes.", "return None") may come as often as they like."""
HONEST = re.compile(
    r"\b(I (?:can ?not|can't|do not|don't|am not able|am unable|have no)|I'm (?:sorry|not able|unable|not aware)"
    r"|as an AI|no (?:access|information|record)|not (?:available|possible|known)|unknown|impossible|unable to)\b",
    re.IGNORECASE,
)
_ITEM = re.compile(r"^\s*(?:[-*+•]|\(?\d+\s*[.):]|[a-zA-Z][.)])\s*(.+)$")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True)
class Answer:
    """What a model said, and how it ended: by itself, at its limit of tokens, or cut where a loop began."""

    text: str
    finish: Literal["stop", "length", "loop"] = "stop"

    @property
    def ended(self) -> bool:
        """Whether the model said that this is all."""
        return self.finish == "stop"

    @property
    def whole(self) -> bool:
        """Whether the last sentence is complete: a loop is cut off at the end of a line or sentence."""
        return self.finish != "length"

    def whole_lines(self) -> list[str]:
        """The lines that are complete, without empty ones."""
        lines = self.text.splitlines()
        return [line.strip() for line in (lines if self.whole else lines[:-1]) if line.strip()]


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is usable and right, and why not."""

    usable: bool
    right: bool | None = None
    reason: str = ""


Verify = Callable[[Answer], Verdict]


def enumeration(wanted: int) -> Verify:
    """Want a list of different items: a tenth of what was asked for and at least five; right are as many as were asked.

    Items that differ by a number alone are the same.
    """

    def verify(answer: Answer) -> Verdict:
        counts = Counter(map(_wordy_key, items_of(answer)))
        if wrong := _said_again(counts):
            return Verdict(False, False, wrong)
        if len(counts) < max(5, wanted // 10):
            return Verdict(False, False, f"{len(counts)} different items of {wanted}")
        return Verdict(True, len(counts) >= wanted)

    return verify


def recall(wanted: int = 5, *, numbers: bool = False) -> Verify:
    """Want different items, or an honest word that it cannot be known; nobody can check more, so nothing is right.

    Args:
        wanted: different items at least.
        numbers: whether the items are numbers by nature; else items that differ by a number alone are the same.
    """

    def verify(answer: Answer) -> Verdict:
        if not answer.text.strip():
            return Verdict(False, None, "nothing was said")
        if wrong := repeated(answer.text):
            return Verdict(False, None, wrong)
        if HONEST.search(answer.text[:400]):
            return Verdict(answer.whole, None, "" if answer.whole else "it has no end")
        counts = Counter(_key(item) if numbers else _wordy_key(item) for item in items_of(answer))
        if wrong := _said_again(counts):
            return Verdict(False, None, wrong)
        if len(counts) < wanted:
            return Verdict(False, None, f"{len(counts)} different items, and no word that it cannot be known")
        return Verdict(True)

    return verify


def sequence(right: Sequence[str], wanted: int) -> Verify:
    """Want terms in a row, split at commas, spaces or lines, that begin as they should; each longer one once."""

    def verify(answer: Answer) -> Verdict:
        if HONEST.search(answer.text[:400]) and answer.whole and not repeated(answer.text):
            return Verdict(True, False)
        terms = _NUMBER.findall(answer.text.replace(", ", " ").replace(",\n", " "))
        terms = terms if answer.whole else terms[:-1]
        # A list may be numbered: then the terms are every second number.
        if terms[0:6:2] == ["1", "2", "3"]:
            terms = terms[1::2]
        counts = Counter(t for t in terms if len(t) > 2)
        most = max(counts.values(), default=0)
        if most > MOST_REPEATS or repeated(answer.text):
            return Verdict(False, False, f"a term is said {most} times")
        if len(set(terms)) < wanted:
            return Verdict(False, False, f"{len(set(terms))} different terms, expected {wanted} at least")
        return Verdict(True, terms[: len(right)] == list(right))

    return verify


def arithmetic(result: float) -> Verify:
    """Want a calculation that ends and states a number; right if the last number is the result."""

    def verify(answer: Answer) -> Verdict:
        numbers = [float(n.replace(",", "")) for n in _NUMBER.findall(answer.text)]
        right = bool(numbers) and abs(numbers[-1] - result) <= 0.011
        if not answer.ended:
            return Verdict(False, False, "it has no end")
        if wrong := repeated(answer.text):
            return Verdict(False, False, wrong)
        return Verdict(bool(numbers), right, "" if numbers else "no number is stated")

    return verify


def extraction(fields: Collection[str]) -> Verify:
    """Want half of the fields of the document, and no line more than twice; right are all of them."""

    def verify(answer: Answer) -> Verdict:
        found = sum(field.casefold() in answer.text.casefold() for field in fields)
        lines = Counter(_key(line) for line in answer.whole_lines() if len(line.split()) >= 2)
        if wrong := _said_again(lines) or repeated(answer.text):
            return Verdict(False, False, wrong)
        if found * 2 < len(fields):
            return Verdict(False, False, f"{found} of {len(fields)} fields")
        return Verdict(answer.whole, found == len(fields), "" if answer.whole else "it has no end")

    return verify


def table(rows: int, columns: int) -> Verify:
    """Want a Markdown table with a header, a constant number of columns and a fifth of the rows, all different."""

    def verify(answer: Answer) -> Verdict:
        lines = [line for line in answer.whole_lines() if line.count("|") >= 2]
        cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
        rules = [n for n, row in enumerate(cells) if all(re.fullmatch(r":?-+:?", c) for c in row)]
        if rules[:1] != [1]:
            return Verdict(False, False, "no table with a header")
        body = [row for n, row in enumerate(cells) if n > 1 and n not in rules]
        if any(len(row) != len(cells[0]) for row in body):
            return Verdict(False, False, "rows of different numbers of columns")
        different = Counter(tuple(map(_key, row)) for row in body)
        if not body or different.most_common(1)[0][1] > MOST_REPEATS or _says_nothing_new(body):
            return Verdict(False, False, "the same row again and again")
        if len(different) < max(3, rows // 5):
            return Verdict(False, False, f"{len(different)} different rows of {rows}")
        return Verdict(True, len(different) >= rows and len(cells[0]) == columns)

    return verify


def code(name: str) -> Verify:
    """Want Python that parses and defines something; right if it defines what was asked for, by its name."""

    def verify(answer: Answer) -> Verdict:
        if not answer.whole:
            return Verdict(False, False, "it has no end")
        if wrong := repeated(answer.text, lines=True):
            return Verdict(False, False, wrong)
        blocks = re.findall(r"```\w*\n(.*?)```", answer.text, re.DOTALL) or [answer.text]
        defined: set[str] = set()
        for block in blocks:
            try:
                nodes = list(ast.walk(ast.parse(block)))
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                continue
            defined |= {n.name for n in nodes if isinstance(n, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef))}
            defined |= {t.id for n in nodes if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
        return Verdict(bool(defined), name in defined, "" if defined else "nothing that parses is defined")

    return verify


def summary(source: str) -> Verify:
    """Want one to eight sentences, none twice, that share words with the source; right cannot be told."""
    known = content_words(source)

    def verify(answer: Answer) -> Verdict:
        if not answer.whole:
            return Verdict(False, None, "it has no end")
        said = sentences(answer.text)
        if not 1 <= len(said) <= 8:
            return Verdict(False, None, f"{len(said)} sentences")
        if wrong := repeated(answer.text, most=1):
            return Verdict(False, None, wrong)
        shared = len(content_words(answer.text) & known)
        return Verdict(shared >= 5, None, "" if shared >= 5 else f"{shared} words of the source")

    return verify


# --- reading answers --------------------------------------------------------------------------------------------------


def items_of(answer: Answer) -> list[str]:
    """Give the items of a list: numbered or bulleted lines; else its lines; else what commas part."""
    lines = answer.whole_lines()
    marked = [match[1] for line in lines if (match := _ITEM.match(line))]
    if len(marked) >= 3:
        return marked
    short = [line for line in lines if len(line.split()) <= 12]
    if len(short) >= 5:
        return short
    parts = [part.strip(" .") for part in re.split(r"[,;\n]", answer.text)]
    return [part for part in (parts if answer.whole else parts[:-1]) if part and len(part.split()) <= 6]


def sentences(text: str) -> list[str]:
    """Split at the ends of sentences and of lines."""
    return [s.strip() for s in re.split(r"(?<=[.!?])\s+|\n+", text) if s.strip()]


def content_words(text: str) -> set[str]:
    """The longer words, and the numbers."""
    return set(re.findall(r"[^\W\d_]{5,}|\d+", text.casefold()))


def repeated(text: str, *, most: int = MOST_REPEATS, lines: bool = False) -> str:
    """Say what stands there too often; empty if nothing does.

    Args:
        text: the answer.
        most: how often a sentence may be said.
        lines: count whole lines (code) instead of sentences.
    """
    parts = text.splitlines() if lines else sentences(text)
    counts = Counter(_key(part) for part in parts if len(part.split()) >= SENTENCE_WORDS)
    worst, count = counts.most_common(1)[0] if counts else ("", 0)
    return f"said {count} times: {worst[:60]!r}" if count > (most + 1 if lines else most) else ""


def _said_again(counts: Counter[str]) -> str:
    """Say which item stands there too often; empty if none does, and not too many twice."""
    if not counts:
        return ""
    worst, count = counts.most_common(1)[0]
    if count > MOST_REPEATS:
        return f"said {count} times: {worst[:60]!r}"
    if sum(counts.values()) > 1.25 * len(counts):
        return f"{sum(counts.values()) - len(counts)} of {sum(counts.values())} items are repeats"
    return ""


def _says_nothing_new(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the numbers are all that changes in the last half of a table's rows, and there are eight or more."""
    last = {tuple(re.sub(r"\d+", "0", _key(cell)) for cell in row) for row in rows[len(rows) // 2 :]}
    only_numbers = all(re.search(r"\d", cell) for row in rows[len(rows) // 2 :] for cell in row)
    return len(rows) >= 8 and len(last) == 1 and not only_numbers


def _key(text: str) -> str:
    """What two items are the same by: letters and digits, in one case; numbering is left out."""
    match = _ITEM.match(text)
    return " ".join(re.findall(r"\w+", (match[1] if match else text).casefold()))


def _wordy_key(text: str) -> str:
    """The same, without numbers where there are words: "Pump 12" and "Pump 13" say the same."""
    key = _key(text)
    words = re.sub(r"\b\w*\d\w*\b", "", key).split()
    return " ".join(words) if any(len(word) > 2 for word in words) else key
