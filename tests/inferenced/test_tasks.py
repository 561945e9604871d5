"""Tasks: an input in, the best verified answer out."""

import json
from collections.abc import Iterator

import pytest

from appliance.client import Client
from tests.fakes.box import Box, running
from tests.fakes.built_models import smollm2

PLACE = """\
format: 1
name: place
version: "2"
prompt: {system: "Extract the place."}
output:
  kind: json_schema
  schema:
    type: object
    properties: {place: {type: string, maxLength: 30}, urgent: {type: boolean}}
    required: [place, urgent]
    additionalProperties: false
verifiers:
  - {kind: length, name: brief, max_chars: MAX}
candidates: 3
max_tokens: 60
"""
TEXT = "The pump in the boiler room is leaking."


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    folder = tmp_path_factory.mktemp("tasks") / "b"
    smollm2().copy_to(folder)
    (folder / "tasks").mkdir()
    with running(folder) as box:
        yield box
        assert box.process.poll() is None


def install(box: Box, name: str, text: str) -> None:
    (box.state_dir / "tasks" / f"{name}.yaml").write_text(text.replace("name: place", f"name: {name}"))


def test_answer_has_the_form_and_says_who_passed_it(box: Box) -> None:
    """One candidate is enough when it passes; output, verifiers, count and version stand in the answer."""
    install(box, "place", PLACE.replace("MAX", "200"))
    with Client(box.socket) as client:
        result = client.run_task("place", TEXT)
        assert [task.name for task in client.tasks()] == ["place"]
    assert set(json.loads(result.output)) == {"place", "urgent"}
    assert result.verified
    assert [(v.verifier, v.passed) for v in result.verdicts] == [("schema", True), ("brief", True)]
    assert (result.candidates, result.chosen, result.version) == (1, 0, "2")


def test_what_nobody_passes_is_said_to_be_so(box: Box) -> None:
    """All candidates are computed, the best one comes, and it is not called verified."""
    install(box, "brief", PLACE.replace("MAX", "5"))
    with Client(box.socket) as client:
        result = client.run_task("brief", TEXT)
    assert not result.verified
    assert result.candidates == 3
    assert {v.verifier: v.passed for v in result.verdicts} == {"schema": True, "brief": False}


def test_the_same_input_gives_the_same_answer(box: Box) -> None:
    """A task's chances are its own, and fixed."""
    install(box, "brief", PLACE.replace("MAX", "5"))
    answers = [box.post("/skerry/v1/tasks/brief", {"input": TEXT}).json["output"] for _ in range(2)]
    assert answers[0] == answers[1]


REFUSED = [
    ("no such task", "none", {"input": "x"}, 404, "task_not_found"),
    ("a path", "..%2fplace", {"input": "x"}, 404, None),
    ("no input", "place", {}, 400, "invalid_request"),
    ("empty input", "place", {"input": ""}, 400, "invalid_request"),
    ("unknown field", "place", {"input": "x", "temperature": 1}, 400, "invalid_request"),
    ("unknown model", "place", {"input": "x", "model": "gpt-7"}, 404, "model_not_found"),
    ("too long", "place", {"input": "word " * 9000}, 400, "context_length_exceeded"),
    ("broken file", "broken", {"input": "x"}, 500, "bad_config"),
]


@pytest.mark.parametrize(("name", "task", "body", "status", "kind"), REFUSED, ids=[r[0] for r in REFUSED])
def test_refusals(box: Box, name: str, task: str, body: object, status: int, kind: str | None) -> None:
    """What cannot be done is refused in words, and the daemon goes on."""
    install(box, "place", PLACE.replace("MAX", "200"))
    (box.state_dir / "tasks" / "broken.yaml").write_text("format: 9\n")
    reply = box.post(f"/skerry/v1/tasks/{task}", body)
    (box.state_dir / "tasks" / "broken.yaml").unlink()
    assert reply.status == status
    assert kind is None or reply.kind == kind
