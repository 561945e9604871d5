"""tasks.md tells what a task file may hold: its tables are the structs, its example and its figures hold."""

import re
from typing import Any, get_args

import msgspec
import pytest

from appliance.agent.task import Output, Prompt, Sampling, Task
from appliance.client import TaskResult
from appliance.config import convert, load_yaml
from appliance.decoding.verifiers import Verifier
from appliance.inferenced.tasks import TaskRequest
from tests.docs.blocks import blocks
from tests.docs.test_reference import REFERENCE, assert_same, table


@pytest.mark.parametrize(("heading", "struct"), [("Fields", Task), ("prompt", Prompt), ("sampling", Sampling)])
def test_every_field_is_documented(heading: str, struct: type[msgspec.Struct]) -> None:
    """Names, and of plain defaults the value."""
    rows = {row[0]: row[1] for row in table("tasks.md", heading)}
    assert_same(list(rows), list(struct.__struct_fields__), heading)
    for field in msgspec.structs.fields(struct):
        if field.default is msgspec.NODEFAULT and field.default_factory is msgspec.NODEFAULT:
            assert rows[field.name] == "required"
        elif isinstance(field.default, bool):
            assert rows[field.name] == str(field.default).lower()
        elif isinstance(field.default, int | float):
            assert float(rows[field.name]) == field.default


@pytest.mark.parametrize(("heading", "union"), [("output", Output), ("verifiers", Verifier)])
def test_every_kind_is_documented_with_its_fields(heading: str, union: Any) -> None:
    """Kinds and fields of the two unions; all verifiers have a name."""
    found = [(kind, set(re.findall(r"\w+", fields)) - {"name"}) for kind, fields, _ in table("tasks.md", heading)]
    expected = [(s.__struct_config__.tag, set(s.__struct_fields__) - {"name"}) for s in get_args(union)]
    assert_same(found, expected, heading)


def test_body_and_answer_are_documented() -> None:
    """What the route of a task takes, and all that it gives."""
    rows = {row[0]: row[1] for row in table("tasks.md", "Over the API")}
    assert_same(list(rows), list(TaskRequest.__struct_fields__), "body")
    page = (REFERENCE / "tasks.md").read_text(encoding="utf-8")
    answer = page.partition("| field of the answer |")[2].partition("\n\n")[0]
    named = [name for row in answer.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert_same(named, [*TaskResult.__struct_fields__, "timings"], "answer")


def test_example_is_a_task() -> None:
    """What the page shows can be used as it is."""
    example = next(b for b in blocks(REFERENCE / "tasks.md") if b.language == "yaml")
    assert convert(load_yaml(example.code.encode(), "tasks.md"), Task, "tasks.md").name == "triage"
