"""240 prompts in seven families, each with the verifier of its answers. Deterministic.

    for prompt in sample(PROMPTS, 40): ...

A chat model is asked through its own template; a base model, which has none, gets "Question: ... Answer:" and stops
where it would ask itself the next question.
"""

import random
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.loops import answers
from bench.loops.sources import REPORTS, SUMMARY_REQUESTS
from bench.loops.subjects import ARITHMETIC, CODE, ENUMERATIONS, RECALL, TABLES

FAMILIES = ("enumeration", "arithmetic", "recall", "extraction", "table", "code", "summary")
PLAIN_STOP = ("\nQuestion:",)
"""Where a base model's answer ends if it does not end it with its stop token."""


@dataclass(frozen=True)
class Prompt:
    """One thing to ask.

    Attributes:
        id: family and number.
        family: one of FAMILIES.
        text: what the user says.
        verify: says whether an answer is usable and right.
        counts: whether a sequence of numbers is what was asked for.
    """

    id: str
    family: str
    text: str
    verify: answers.Verify = field(compare=False)
    counts: bool = False

    @property
    def plain(self) -> str:
        """The prompt for a base model."""
        return f"Question: {self.text}\nAnswer:"

    @property
    def source(self) -> str:
        """The document that it comes with; empty if there is none."""
        return self.text.partition("\n\n")[2]

    @property
    def seal(self) -> int:
        """Of the words: an answer belongs to a prompt only if this is the same."""
        return zlib.crc32(self.text.encode())

    @property
    def seed(self) -> int:
        """Of the chances at a temperature; its own, and always the same."""
        return zlib.crc32(self.id.encode())


def sample(prompts: Sequence[Prompt], count: int | None) -> list[Prompt]:
    """Take `count` prompts evenly from all families, always the same; all if None."""
    if count is None or count >= len(prompts):
        return list(prompts)
    return [prompts[i * len(prompts) // count] for i in range(count)]


def _enumerations() -> list[tuple[str, answers.Verify]]:
    forms = ("List {} {}, one a line, with numbers.", "Name {} {}.", "Please write a numbered list of {} {}.")
    return [
        (forms[n % len(forms)].format(count, what), answers.enumeration(count))
        for n, (count, what) in enumerate(ENUMERATIONS)
    ]


def _recall() -> list[tuple[str, answers.Verify]]:
    known = {
        "prime numbers": (["2", "3", "5", "7", "11", "13", "17", "19", "23", "29"], 30),
        "Fibonacci": (["1", "1", "2", "3", "5", "8", "13", "21"], 15),
        "powers of two": (["2", "4", "8", "16", "32", "64"], 15),
        "Count backwards": (["300", "293", "286", "279", "272"], 20),
        "leap year": (["1600", "1604", "1608", "1612"], 20),
    }
    found = []
    for text in RECALL:
        right = next((terms for word, terms in known.items() if word in text), None)
        found.append((text, answers.sequence(*right) if right else answers.recall(numbers=_counts(text))))
    return found


def _counts(text: str) -> bool:
    """Whether the answer is numbers in a row."""
    return bool(
        re.search(
            r"\b(prime numbers|Fibonacci|the numbers|digits|decimal|powers|leap year|steps of|table from|bottles)\b"
            r"|\bfrom 1\b",
            text,
        )
    )


def _arithmetic() -> list[tuple[str, answers.Verify]]:
    how = " Show every step, then give the result in the last line."
    return [(text + how, answers.arithmetic(result)) for text, result in ARITHMETIC]


def _code() -> list[tuple[str, answers.Verify]]:
    return [(f"Write a Python function {name} {what}.", answers.code(name)) for name, what in CODE]


def _tables() -> list[tuple[str, answers.Verify]]:
    return [
        (
            f"Make a Markdown table of {what} with {rows} rows and the columns {columns}. Invent what you do not know.",
            answers.table(rows, columns.count(",") + 1),
        )
        for rows, what, columns in TABLES
    ]


def _summaries() -> list[tuple[str, answers.Verify]]:
    return [(f"{request}\n\n{report}", answers.summary(report)) for report in REPORTS for request in SUMMARY_REQUESTS]


# --- documents to extract from ----------------------------------------------------------------------------------------

PEOPLE = (
    "Anna Berg", "Tomas Lind", "Mei Tanaka", "Joel Okafor", "Rita Salas", "Ivo Novak", "Clara Weiss", "Omar Haddad",
    "Lena Fischer", "Paul Moreau", "Nadia Rossi", "Erik Dahl", "Sofia Costa", "Jan Kowal", "Maya Patel", "Hugo Marin",
    "Ida Holm", "Karl Brandt", "Elif Demir", "Sean Walsh", "Vera Popov", "Luis Ortega", "Greta Lang", "Amir Nasser",
)  # fmt: skip
_DRUGS = ("Amoxicillin", "Ramipril", "Metformin", "Bisoprolol", "Ibuprofen", "Furosemide", "Simvastatin", "Heparin")
_PARTS = ("coupling", "bearing", "gasket", "filter", "impeller", "valve seat", "belt", "fuse", "relay", "sensor")
_PLACES = ("Mill Street", "Harbour Road", "Station Square", "Church Lane", "West Gate", "Bridge Street")


def _document(kind: int, count: int, rng: random.Random) -> tuple[str, str, list[str]]:
    """Write a document of `count` records; gives the request, the document, and what has to be found."""
    people = rng.sample(PEOPLE, count)
    numbers = rng.sample(range(1000, 9999), count)
    amounts = [f"{rng.randrange(20, 4000)}.{rng.randrange(100):02d}" for _ in people]
    days = [f"2026-{rng.randrange(1, 13):02d}-{rng.randrange(1, 29):02d}" for _ in people]
    rows = list(zip(people, numbers, amounts, days, strict=True))
    if kind == 0:
        lines = [f"{p} was admitted on {d} to bed {n} and was seen by the doctor the same day." for p, n, _, d in rows]
        return "List every patient with the date of admission, one a line.", "\n".join(lines), [*people, *days]
    if kind == 1:
        lines = [f"{d}  transfer to {p}, reference {n}, {a} EUR" for p, n, a, d in rows]
        return "Extract every transfer as JSON with the fields name, reference and amount.", "\n".join(lines), people
    if kind == 2:
        lines = [f"P-{n}: the {rng.choice(_PARTS)} was changed by {p} on {d}." for p, n, _, d in rows]
        wanted = [f"P-{n}" for n in numbers]
        return "List all pumps of this log and the part that was changed.", " ".join(lines), wanted
    if kind == 3:
        lines = [f"{p}: {rng.choice(_DRUGS)} {rng.choice((5, 10, 50, 500))} mg, {rng.choice((1, 2, 3))} times a day"
                 for p in people]  # fmt: skip
        return (
            "Write each patient's medicine and dose as one line of the form name; drug; dose.",
            "\n".join(lines),
            people,
        )
    if kind == 4:
        lines = [f"{p} lives in {rng.choice(_PLACES)} {n % 200} and can be called under 0{n} {n * 7 % 10000:04d}."
                 for p, n, _, _ in rows]  # fmt: skip
        wanted = [f"0{n} {n * 7 % 10000:04d}" for n in numbers]
        return "Extract all telephone numbers with the names they belong to.", " ".join(lines), wanted
    if kind == 5:
        lines = [f"Invoice {n} of {d} to {p}: {a} EUR, due in 30 days." for p, n, a, d in rows]
        return "List the numbers and the amounts of all invoices.", "\n".join(lines), [*map(str, numbers), *amounts]
    if kind == 6:
        lines = [f"{d} {n % 24:02d}:{n % 60:02d} ALARM TI-{n} high, acknowledged by {p}" for p, n, _, d in rows]
        wanted = [f"TI-{n}" for n in numbers]
        return "List every alarm with its tag and who acknowledged it, as a table.", "\n".join(lines), wanted
    lines = [f"{p} asked about account {n}. The clerk promised an answer by {d}." for p, n, _, d in rows]
    return "Who asked what? Give name, account and the promised date of each.", "\n".join(lines), [*people, *days]


def _extractions() -> list[tuple[str, answers.Verify]]:
    rng = random.Random(4)  # noqa: S311  chooses names, not secrets
    found = []
    for count in (5, 9, 14, 20):
        for kind in range(8):
            request, document, wanted = _document(kind, count, rng)
            found.append((f"{request}\n\n{document}", answers.extraction(wanted)))
    return found


def _all() -> tuple[Prompt, ...]:
    families = {
        "enumeration": _enumerations(),
        "arithmetic": _arithmetic(),
        "recall": _recall(),
        "extraction": _extractions(),
        "table": _tables(),
        "code": _code(),
        "summary": _summaries(),
    }
    return tuple(
        Prompt(f"{family}-{number:02d}", family, text, verify, family == "recall" and _counts(text))
        for family in FAMILIES
        for number, (text, verify) in enumerate(families[family], 1)
    )


PROMPTS = _all()
