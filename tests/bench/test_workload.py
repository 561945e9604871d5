"""The work of a box as a benchmark: its documents, and what is counted of an answer."""

import dataclasses
import json
from typing import Any

import jsonschema
import pytest

from bench.targets import times
from bench.workload import (
    SCHEMA,
    Done,
    Found,
    Measured,
    Server,
    Task,
    as_text,
    documents,
    fields_right,
    is_valid,
    measure,
    messages,
    questions,
)

GOOD = {
    "pump": "P-4821",
    "part": "gasket",
    "changed_by": "Anna Berg",
    "date": "2026-03-22",
    "order": "WO-123456",
    "severity": "low",
    "downtime_h": 4,
    "summary": "The gasket failed.",
}


def test_documents_are_the_same_every_time() -> None:
    """For a seed; another seed gives others, so that no round meets a document of an earlier one."""
    assert documents(1, 5) == documents(1, 5)
    assert not {t.text for t in documents(1, 20)} & {t.text for t in documents(2, 20)}


def test_a_document_holds_what_is_asked_for() -> None:
    """Each field that is checked, once, among other news; and it has the size that it should have."""
    for task in documents(3, 40):
        assert all(str(value) in task.text for value in task.wanted.values())
        assert task.text.count(task.wanted["order"]) == 1
        assert 900 < len(task.text) < 6000
        jsonschema.validate({**task.wanted, "summary": "It was changed."}, SCHEMA)
    lengths = sorted(len(task.text) for task in documents(3, 40))
    assert lengths[-1] > 3 * lengths[0]


def test_every_request_begins_alike() -> None:
    """The system prompt is shared, the document is the user's."""
    first, second = (messages(task) for task in documents(4, 2))
    assert first[0] == second[0]
    assert first[1]["content"] != second[1]["content"]


@pytest.mark.parametrize(
    ("change", "valid", "right"),
    [
        ({}, True, 7),
        ({"severity": "high"}, True, 6),
        ({"severity": "none"}, False, 6),
        ({"downtime_h": "4"}, False, 6),
        ({"more": 1}, False, 7),
        ({"summary": "short"}, False, 7),
    ],
)
def test_what_is_valid_and_right(change: dict[str, Any], valid: bool, right: int) -> None:
    """Valid by the schema, right by what the document says; the summary is nobody's to judge."""
    task = Task("", {name: value for name, value in GOOD.items() if name != "summary"})
    text = json.dumps({**GOOD, **change})
    assert is_valid(text) == valid
    assert fields_right(task, text) == right


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '"P-4821"'])
def test_what_is_no_answer(text: str) -> None:
    """Cut short, or something else: neither valid nor right."""
    assert not is_valid(text)
    assert fields_right(Task("", GOOD), text) == 0


def test_a_round_is_measured_whole() -> None:
    """Every document is asked once, after all were prepared; the row holds medians and sums."""
    seen: list[str] = []
    tasks = documents(5, 6)

    def ask(task: Task) -> Done:
        seen.append(task.text)
        return Done(json.dumps({**task.wanted, "summary": "It was changed."}), 2.0, 90)

    into = Measured([], [])
    measure(Server(ask, lambda said: 0.0, lambda tasks: seen.append(f"{len(tasks)} tasks")), tasks, 3, into)
    assert seen[0] == "6 tasks"
    assert sorted(seen[1:]) == sorted(task.text for task in tasks)
    into.minutes = [0.5, 0.2, 3.0]
    assert into.row(6) == ["12.0", "2.00", "90", "6 of 6", "42 of 42"]


def test_questions_share_all_but_the_question() -> None:
    """So that what is warm is the document; another round's is another one."""
    one, other = questions(0)
    assert one[:-1] == other[:-1]
    assert one[-1] != other[-1]
    assert len(one[1]["content"]) > 5600
    assert questions(0) == [one, other]
    assert questions(1)[0][1] != one[1]


def found(ours_s: float = 30.0, peer_s: float = 60.0, firsts: tuple[float, float] = (5.0, 0.5)) -> Found:
    """Two servers, ten documents a round; each answered in so many seconds."""
    task = documents(1, 1)[0]
    done = [(task, Done(json.dumps({**task.wanted, "summary": "It was changed."}), 3.0, 90))]

    def measured() -> dict[str, Measured]:
        return {"Skerry q4x": Measured([ours_s / 60] * 3, done), "llama-server Q8_0": Measured([peer_s / 60] * 3, done)}

    return Found({1: measured(), 8: measured()}, {"Skerry q4x": [firsts], "llama-server Q8_0": [(6.0, 1.0)]}, 10)


def test_tables_set_what_came_out_beside_the_speed() -> None:
    """A row for each server and number of callers, then the first tokens."""
    answered, first = found().tables().split("\n\n")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in answered.splitlines()]
    assert rows[2] == ["Skerry q4x, 1", "20.0", "3.00", "90", "1 of 1", "7 of 7"]
    assert [row[0] for row in rows[2:]] == [
        "Skerry q4x, 1",
        "llama-server Q8_0, 1",
        "Skerry q4x, 8",
        "llama-server Q8_0, 8",
    ]
    assert [cell.strip() for cell in first.splitlines()[2].split("|")[1:-1]] == ["Skerry q4x", "5.00", "0.500", "10.0"]


def test_the_work_is_judged_by_documents_a_minute() -> None:
    """Twice as many for one caller, one and a half times for eight; and a warm first token five times as soon."""
    assert [(v.seen, v.met) for v in found().verdicts()] == [("2.00x", True), ("2.00x", True), ("10.00x", True)]
    slower = found(ours_s=36.0, firsts=(5.0, 1.1)).verdicts()
    assert [(v.what, v.met) for v in slower] == [
        ("workload, 1 caller", False),
        ("workload, 8 callers", True),
        ("first token, warm", False),
    ]
    assert slower[0].against == "llama-server Q8_0: 16.7 to 10.0 documents a minute"


def test_few_rounds_of_work_are_not_judged() -> None:
    """A machine is busy now and then; two rounds cannot tell."""
    few = found()
    for servers in few.answered.values():
        for one in servers.values():
            one.minutes.pop()
    assert [v.met for v in few.verdicts()] == [None, None, True]


def test_fewer_documents_than_callers_are_not_judged() -> None:
    """Eight callers who have six documents are six."""
    few = dataclasses.replace(found(), documents=6)
    assert [v.met for v in few.verdicts()] == [True, None, True]


def test_a_ratio_is_never_rounded_up_to_its_target() -> None:
    """What is missed does not look as if it were met."""
    assert (times(1.996), times(2.0), times(1.1004, least=False)) == ("1.99x", "2.00x", "1.11x")


def test_a_base_model_is_asked_in_plain_text() -> None:
    """The system prompt first, so that every request begins alike; and where the answer begins is said."""
    text = as_text(messages(documents(4, 1)[0]))
    assert text.startswith(messages(documents(5, 1)[0])[0]["content"])
    assert text.endswith("\n\nJSON: ")
