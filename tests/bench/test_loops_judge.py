"""The offline judge: texts that are loops, and texts that only look like some."""

import random
import re

import pytest

from bench.loops.judge import judge
from bench.loops.prompts import PROMPTS, Prompt
from bench.loops.sources import REPORTS

PROSE = (
    "The pump was taken out of service in the morning, because its bearing had become too warm."
    " A second one ran at once. "
)
WORDS = re.findall(
    r"\w+",
    "alder beech cedar dogwood elm fir ginkgo hazel ivy juniper larch maple oak pine rowan spruce teak willow",
)
NAMES = re.findall(
    r"\w+",
    "Berg Lind Tanaka Okafor Salas Novak Weiss Haddad Fischer Moreau Rossi Dahl Costa Kowal Patel Marin",
)


def drift(unit: str, copies: int) -> str:
    """Change a word in every other copy."""
    rng = random.Random(1)  # noqa: S311  varies texts, hides nothing
    parts = []
    for n in range(copies):
        words = unit.split()
        if n % 2:
            words[rng.randrange(len(words))] = rng.choice(WORDS)
        parts.append(" ".join(words))
    return " ".join(parts)


LOOPS = {
    "a sentence": (PROSE + "We check the valve and we check the pump again. " * 14, "exact"),
    "one word": (PROSE + "again " * 120, "exact"),
    "zeros in one number": ("1. " + "0" * 400, "exact"),
    "numbered lines": (PROSE + "".join(f"\n{n}. The other two beds are taken." for n in range(1, 20)), "counter"),
    "steps": ("".join(f"Step {n}: add the salt and stir. " for n in range(1, 22)), "counter"),
    "a table whose numbers count up": ("".join(f"| {n} | Sarah | Patient {n} |\n" for n in range(1, 30)), "counter"),
    "bare counting": (PROSE + " ".join(f"{n}." for n in range(1, 80)), "counting"),
    "some words change": (drift("the operator opens the valve and waits until the level is below four", 14), "drift"),
    "copies of different lengths": (
        "".join(
            f"{n}. A bank cannot limit the {'amount and the ' * (n * n % 3 % 2 + n % 2)}types of cards that it takes.\n"
            for n in range(1, 14)
        ),
        "drift",
    ),
    "mostly a loop, then an end": ("The same thing again and again. " * 24 + REPORTS[0], "exact"),
    "four long copies": ((PROSE * 2).replace("morning", "evening") * 4, "exact"),
}

OTHERS = {
    "prose": PROSE,
    "an empty text": "",
    "a short loop": "Yes, yes, yes. No, no, no. " * 3,
    "three copies": (REPORTS[0] + " ") * 3,
    "a list of names": "".join(f"{n}. {name}\n" for n, name in enumerate(NAMES, 1)),
    "a table with news": "".join(f"| {n} | {name} | Surgery | checked |\n" for n, name in enumerate(NAMES, 1)),
    "rows of numbers": "".join(f"| {n} | {n * n} | {n**3} |\n" for n in range(1, 41)),
    "arguments": "".join(f'parser.add_argument("--{w}", type=int, default=0)\n' for w in WORDS),
    "a loop long before the end": "It is late. " * 40 + " ".join(f"{a} meets {b}" for a in WORDS for b in NAMES),
}


@pytest.mark.parametrize("name", LOOPS)
def test_loops_are_found(name: str) -> None:
    """Each kind is found, and called by its name."""
    text, kind = LOOPS[name]

    found = judge(text)

    assert found is not None
    assert found.kind == kind
    assert found.copies >= 4


@pytest.mark.parametrize("name", OTHERS)
def test_other_texts_are_no_loops(name: str) -> None:
    """What brings something new in each copy, is short, or lies far from the end is none."""
    assert judge(OTHERS[name]) is None


def test_counting_that_was_asked_for_is_no_loop() -> None:
    """A sequence of numbers is what a request for one should get; words that repeat between them are not."""
    counted = ", ".join(str(n) for n in range(300, 0, -7)) + ", " + ", ".join(str(n) for n in range(300, 0, -7))

    assert judge(", ".join(map(str, range(1, 100))), counts=True) is None
    assert judge(", ".join(map(str, range(1, 100)))) is not None
    assert judge("".join(f"{n}. The pump runs. " for n in range(1, 40)), counts=True) is not None
    assert judge(", ".join([counted] * 5), counts=True) is not None


def _right_answers(prompt: Prompt) -> list[str]:
    """What the best model could answer to an extraction: every record, in some form."""
    document = prompt.source
    records = document.splitlines() if "\n" in document else re.split(r"(?<=\.) (?=P-|[A-Z]\w+ [A-Z])", document)
    numbered = [f"{n}. {record}" for n, record in enumerate(records, 1)]
    short = [re.sub(r" by [A-Z]\w+ [A-Z]\w+", "", record) for record in numbered]
    return ["\n".join(records), "\n".join(numbered), "\n".join(short), " ".join(records)]


@pytest.mark.parametrize("prompt", [p for p in PROMPTS if p.family == "extraction"], ids=lambda p: p.id)
def test_the_right_answer_is_no_loop(prompt: Prompt) -> None:
    """However alike the records are: each brings a number or a name of the document."""
    assert prompt.source
    for text in _right_answers(prompt):
        assert judge(text, source=prompt.source) is None


def test_a_documents_numbers_are_new_once() -> None:
    """Rows that bring none, or the same ones, are a loop as ever; and without the document the numbers say nothing."""
    rows = [f"P-{n}: the sensor was changed.\n" for n in (4821, 5998, 5254, 1708, 6571, 3183, 8100, 2352, 3910, 5675)]
    source = "".join(rows)

    assert judge("".join(rows), source=source) is None
    assert judge("".join(rows)) is not None
    assert judge("".join(rows[:2] * 5), source=source) is not None
    assert judge("".join(f"{n}. The sensor was changed.\n" for n in range(1, 15)), source=source) is not None


def test_the_place_of_a_loop_is_told() -> None:
    """Where a loop begins in the text, its copy, and how many there are."""
    before = "It was a quiet night in the control room of the plant. "

    found = judge(before + "The lamp is red. " * 30)

    assert found is not None
    assert abs(found.at - len(before)) <= 20
    assert found.period == 5
    assert found.copies == pytest.approx(30, abs=1)
    assert "lamp" in found.copy
