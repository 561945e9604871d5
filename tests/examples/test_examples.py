"""The example files are what their README says, and the demo's pure parts do what they say."""

import re
from collections import Counter
from pathlib import Path

import pytest

from tests.fakes.programs import load

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"

demo = load(EXAMPLES / "demo.py")
TICKETS = demo.read_lines(EXAMPLES / "tickets.jsonl", demo.Ticket)
QUESTIONS = demo.read_lines(EXAMPLES / "questions.jsonl", demo.Question)
PAGES = sorted((EXAMPLES / "handbook").glob("*.md"))


def test_tickets_are_as_the_readme_says() -> None:
    """Twenty, in order of arrival, each id once, bodies of 40 to 160 words, every label used and known."""
    assert len(TICKETS) == 20
    assert [t.received for t in TICKETS] == sorted(t.received for t in TICKETS)
    assert all(re.fullmatch(r"2026-\d\d-\d\dT\d\d:\d\d", t.received) for t in TICKETS)
    assert len({t.id for t in TICKETS}) == 20
    assert {t.id: n for t in TICKETS if not 40 <= (n := len(t.body.split())) <= 160} == {}
    assert {t.category for t in TICKETS} == set(demo.CATEGORIES)
    assert {t.priority for t in TICKETS} == {"urgent", "normal", "low"}
    assert max(Counter(t.category for t in TICKETS).values()) <= 6, "no label is right most of the time"


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda q: q.id)
def test_expected_answer_is_accepted_and_a_wrong_one_is_not(question: "demo.Question") -> None:
    """The pattern finds the answer in words, and neither the question's own words nor an evasion."""
    assert (EXAMPLES / "handbook" / question.page).is_file()
    assert question.is_right(question.answer)
    assert question.is_right(question.answer.upper())
    assert not question.is_right(question.question)
    assert not question.is_right("The page does not say.")


def test_every_page_is_asked_about_and_fits_a_prompt() -> None:
    """Each page but the overview has a question, and is short."""
    named = {p.name for p in PAGES} - {"README.md"}
    assert {q.page for q in QUESTIONS} == named
    assert max(len(p.read_text().split()) for p in PAGES) <= 200
    assert all(f"]({name})" in (EXAMPLES / "handbook" / "README.md").read_text() for name in named)


@pytest.mark.parametrize(
    "path", [*PAGES, *EXAMPLES.glob("*.jsonl"), ROOT / "models" / "evaluation.txt"], ids=lambda p: p.name
)
def test_files_are_plain_ascii_and_end_with_a_newline(path: Path) -> None:
    """Any tool on any box can show them."""
    data = path.read_bytes()
    assert data.isascii()
    assert data.endswith(b"\n")
    assert b"\r" not in data
    assert b"\n\n\n" not in data


def test_question_comes_after_its_page() -> None:
    """The conversation shows one answered question, on another page, and ends with the page and the question."""
    messages = demo.question_messages(QUESTIONS[0], "the page\n")
    assert [m.role for m in messages] == ["system", "user", "assistant", "user"]
    assert messages[-1].content == f"Page:\nthe page\n\nQuestion: {QUESTIONS[0].question}"


def test_an_unknown_field_in_a_ticket_is_refused(tmp_path: Path) -> None:
    """A misspelt label cannot go unnoticed."""
    (tmp_path / "t.jsonl").write_text('{"id": "1", "catgory": "building"}\n')
    with pytest.raises(Exception, match="catgory"):
        demo.read_lines(tmp_path / "t.jsonl", demo.Ticket)
