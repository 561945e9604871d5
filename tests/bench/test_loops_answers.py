"""Verifiers of answers take the good and refuse the bad; the prompts are what they should be."""

from collections import Counter

import pytest

from bench.loops import answers
from bench.loops.answers import Answer, Verify
from bench.loops.prompts import FAMILIES, PROMPTS, sample
from bench.loops.subjects import ARITHMETIC

TREES = ["oak", "ash", "elm", "fir", "pine", "beech", "birch", "maple", "larch", "alder"]
NUMBERED = "\n".join(f"{n}. {tree}" for n, tree in enumerate(TREES, 1))
HEAD = "| a | b |\n|---|---|\n"
REPORT = "At night the feed pump tripped on high vibration, and the operator started the standby pump within minutes."
TABLE = "| bed | name |\n|---|---|\n" + "".join(f"| {n} | {tree} |\n" for n, tree in enumerate(TREES, 1))
CODE = "Here it is:\n```python\ndef dose(weight):\n    return weight * 2\n```\nIt doubles the weight."

# family and case | verifier | answer | usable | right
CASES: dict[str, tuple[Verify, Answer, bool, bool | None]] = {
    "enumeration, all": (answers.enumeration(10), Answer(NUMBERED), True, True),
    "enumeration, bullets": (
        answers.enumeration(30),
        Answer("Trees:\n" + "\n".join(f"- {t}" for t in TREES)),
        True,
        False,
    ),
    "enumeration, commas": (answers.enumeration(10), Answer(", ".join(TREES) + "."), True, True),
    "enumeration, cut": (answers.enumeration(20), Answer("\n".join(TREES) + "\nwil", "length"), True, False),
    "enumeration, few": (answers.enumeration(110), Answer(NUMBERED), False, False),
    "enumeration, one again": (answers.enumeration(9), Answer("\n".join([*TREES, "oak", "oak"])), False, False),
    "enumeration, numbered": (
        answers.enumeration(9),
        Answer("\n".join(f"- Tree number {n}" for n in range(12))),
        False,
        False,
    ),
    "recall, honest": (answers.recall(), Answer("I do not have access to the names of your employees."), True, None),
    "recall, items": (answers.recall(), Answer(NUMBERED), True, None),
    "recall, numbers": (
        answers.recall(numbers=True),
        Answer("\n".join(f"The root of {n}: {n / 7:.3f}" for n in range(9))),
        True,
        None,
    ),
    "recall, empty": (answers.recall(), Answer(""), False, None),
    "recall, one line": (answers.recall(), Answer("The names are not here"), False, None),
    "recall, again": (
        answers.recall(),
        Answer("I cannot say it. " + "The plant has a lot of pumps. " * 3),
        False,
        None,
    ),
    "sequence, right": (answers.sequence(["2", "3", "5"], 5), Answer("They are 2, 3, 5, 7, 11, 13."), True, True),
    "sequence, wrong": (answers.sequence(["2", "3", "5"], 5), Answer("They are 1, 2, 3, 5, 7, 11, 13."), True, False),
    "sequence, numbered": (answers.sequence(["2", "3", "5"], 3), Answer("1. 2\n2. 3\n3. 5\n4. 7\n"), True, True),
    "sequence, again": (answers.sequence(["2"], 3), Answer("2, 3, 101, 103, 101, 103, 101, 103"), False, False),
    "arithmetic, right": (answers.arithmetic(97.2), Answer("72 * 0.15 = 10.8\n10.8 * 9 = 97.2"), True, True),
    "arithmetic, thousands": (answers.arithmetic(22050), Answer("We get 22,050."), True, True),
    "arithmetic, wrong": (answers.arithmetic(97.2), Answer("The answer is 4."), True, False),
    "arithmetic, cut": (answers.arithmetic(97.2), Answer("The answer is 97.2", "length"), False, False),
    "arithmetic, a loop cut off": (answers.arithmetic(97.2), Answer("The answer is 97.2.", "loop"), False, False),
    "arithmetic, no number": (answers.arithmetic(3), Answer("I would multiply the doses."), False, False),
    "extraction, all": (answers.extraction(["TI-1", "TI-2"]), Answer("TI-1 by Berg\nTI-2 by Lind"), True, True),
    "extraction, half": (answers.extraction(["TI-1", "TI-2"]), Answer("only ti-1 was found"), True, False),
    "extraction, none": (answers.extraction(["TI-1", "TI-2"]), Answer("There are no alarms."), False, False),
    "extraction, again": (answers.extraction(["TI-1"]), Answer("TI-1 by Berg\n" * 3), False, False),
    "table, all": (answers.table(10, 2), Answer(TABLE), True, True),
    "table, cut": (answers.table(20, 2), Answer(TABLE + "| 11 | wi", "length"), True, False),
    "table, no header": (answers.table(10, 2), Answer(TABLE.split("\n", 2)[2]), False, False),
    "table, ragged": (answers.table(10, 2), Answer(TABLE + "| 11 |\n"), False, False),
    "table, the same": (answers.table(9, 2), Answer(HEAD + "| 1 | x |\n" * 9), False, False),
    "table, only the number": (
        answers.table(9, 2),
        Answer(HEAD + "".join(f"| {n} | x |\n" for n in range(9))),
        False,
        False,
    ),
    "table, squares": (
        answers.table(9, 2),
        Answer(HEAD + "".join(f"| {n} | {n * n} |\n" for n in range(9))),
        True,
        True,
    ),
    "code, right": (answers.code("dose"), Answer(CODE), True, True),
    "code, another name": (answers.code("amount"), Answer(CODE), True, False),
    "code, bare": (answers.code("dose"), Answer("def dose(weight):\n    return weight * 2\n"), True, True),
    "code, broken": (answers.code("dose"), Answer("```python\ndef dose(weight:\n```"), False, False),
    "code, cut": (answers.code("dose"), Answer(CODE, "length"), False, False),
    "code, again": (answers.code("dose"), Answer("def dose(a):\n" + "    if a == 1 then return\n" * 9), False, False),
    "summary": (
        answers.summary(REPORT),
        Answer("The feed pump tripped at night on vibration. The operator started another."),
        True,
        None,
    ),
    "summary, of something else": (
        answers.summary(REPORT),
        Answer("The bank was closed on Sunday for a meeting."),
        False,
        None,
    ),
    "summary, cut": (answers.summary(REPORT), Answer(REPORT, "length"), False, None),
    "summary, a loop cut off": (answers.summary(REPORT), Answer(REPORT, "loop"), True, None),
    "summary, again": (answers.summary(REPORT), Answer(f"{REPORT} {REPORT}"), False, None),
    "summary, too long": (
        answers.summary(REPORT),
        Answer(" ".join(f"Point {n}: {REPORT}" for n in range(12))),
        False,
        None,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_verifier_takes_the_good_and_refuses_the_bad(name: str) -> None:
    """Usable and right, as the table says."""
    verify, answer, usable, right = CASES[name]

    verdict = verify(answer)

    assert (verdict.usable, verdict.right) == (usable, right)
    assert verdict.usable or verdict.reason


def test_an_answer_without_an_end_loses_its_cut_line() -> None:
    """The last line of an answer that ran out of tokens is not judged; after a break it is whole."""
    assert Answer("one\ntwo\nthr", "length").whole_lines() == ["one", "two"]
    assert Answer("one\ntwo", "loop").whole_lines() == ["one", "two"]


def test_there_are_240_prompts_in_seven_families() -> None:
    """At least 25 of each family, none twice, each with a seed of its own."""
    families = Counter(p.family for p in PROMPTS)

    assert len(PROMPTS) == 240
    assert set(families) == set(FAMILIES)
    assert min(families.values()) >= 25
    assert len({p.text for p in PROMPTS}) == len({p.id for p in PROMPTS}) == len({p.seed for p in PROMPTS}) == 240


def test_a_sample_is_even_and_always_the_same() -> None:
    """Every family is in a sample in its proportion."""
    some = sample(PROMPTS, 48)

    assert some == sample(PROMPTS, 48)
    assert len(some) == len({p.id for p in some}) == 48
    assert all(6 <= count <= 9 for count in Counter(p.family for p in some).values())
    assert sample(PROMPTS, None) == sample(PROMPTS, 1000) == list(PROMPTS)


def test_the_documents_hold_what_has_to_be_found() -> None:
    """A prompt's own text passes the verifier of extraction as right: every field is in it."""
    for prompt in PROMPTS:
        if prompt.family == "extraction":
            assert prompt.verify(Answer(prompt.text)).right, prompt.id


def test_results_are_right_where_they_can_be_computed() -> None:
    """The results that follow from one line of arithmetic; the others were worked out by hand."""
    results = {text[:24]: result for text, result in ARITHMETIC}
    steps, n = 0, 27
    while n != 1:
        steps, n = steps + 1, n // 2 if n % 2 == 0 else 3 * n + 1

    assert results["Compute 48371 * 9276 ste"] == 48371 * 9276
    assert results["Follow the Collatz seque"] == steps
    assert results["Divide 987654 by 37 with"] == 987654 % 37
    assert results["Convert 54321 to binary "] == (54321).bit_count()
    assert results["An account holds 4250.00"] == pytest.approx(4250 * 1.03**2, abs=0.01)
    assert results["A customer changes 850 e"] == pytest.approx(850 * 1.084 * 0.985, abs=0.01)
