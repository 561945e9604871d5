"""The example task: what is in its files, and how often it is right with the real model."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from appliance.agent.task import constraint, load_task, written
from tests.fakes.box import running
from tests.fakes.built_models import smollm2

EXAMPLES = Path(__file__).parents[2] / "examples"
TASK = load_task(EXAMPLES / "triage.yaml")
CATEGORIES = ["equipment", "building", "computer", "supplies"]


def tickets(name):
    return [json.loads(line) for line in (EXAMPLES / name).read_text().splitlines()]


def text(ticket):
    return f"{ticket['subject']}. {ticket['body']}"


def test_tickets_for_development_are_as_the_readme_says():
    """A hundred, 25 of each category, in order of arrival, with the fields of the others and none of their texts."""
    ours, others = tickets("tickets-dev.jsonl"), tickets("tickets.jsonl")
    assert len(ours) == 100
    assert Counter(t["category"] for t in ours) == dict.fromkeys(CATEGORIES, 25)
    assert {t["priority"] for t in ours} == {"urgent", "normal", "low"}
    assert [t["received"] for t in ours] == sorted(t["received"] for t in ours)
    assert len({t["id"] for t in ours} | {t["id"] for t in others}) == 120
    assert {tuple(t) for t in ours} == {tuple(others[0])}
    assert not {t["subject"] for t in ours} & {t["subject"] for t in others}
    assert not {t["site"] for t in ours} & {t["site"] for t in others}


def test_examples_of_the_task_are_no_tickets():
    """Each category has as many, none stands in a file that is counted, and each ends at once for the grammar."""
    shown = TASK.prompt.examples
    assert set(Counter(e.output["category"] for e in shown).values()) == {3}
    for name in ("tickets.jsonl", "tickets-dev.jsonl", "tickets-held-out.jsonl"):
        assert not {e.input for e in shown} & {sentence for t in tickets(name) for sentence in t["body"].split(". ")}
    assert written(TASK, shown[0].output) == "About: heating\nCategory: building"
    assert constraint(TASK).source.endswith("Category: (equipment|building|computer|supplies)")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("name", "at_least"), [("tickets.jsonl", 15), ("tickets-dev.jsonl", 88), ("tickets-held-out.jsonl", 64)]
)
def test_triage_is_right_as_often_as_the_readme_says(name, at_least, tmp_path, capsys):
    """Through the daemon: every answer passes its verifiers, and so many are right; one less is left to kernels."""
    box_dir = smollm2().copy_to(tmp_path / "box").state_dir
    (box_dir / "tasks").mkdir()
    shutil.copy(EXAMPLES / "triage.yaml", box_dir / "tasks")
    with running(box_dir) as box:
        replies = [(t, box.post("/skerry/v1/tasks/triage", {"input": text(t)}).json) for t in tickets(name)]
    assert all(reply["verified"] for _, reply in replies)
    wrong = [t["subject"] for t, reply in replies if json.loads(reply["output"])["category"] != t["category"]]
    with capsys.disabled():
        print(f"\n{name}: {len(replies) - len(wrong)} of {len(replies)} right")
    assert len(replies) - len(wrong) >= at_least, wrong
