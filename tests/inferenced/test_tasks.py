"""Tasks: an input in, the best verified answer out."""

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from appliance.agent.installed import InstalledTasks
from appliance.agent.task import load_task
from appliance.client import Client
from appliance.config import Config, Preferences
from appliance.engine.generate import Prefilled, prefill
from appliance.engine.prefixes import Prefixes
from appliance.errors import ConfigError, InvalidRequest, TaskNotFound
from appliance.inferenced.main import Daemon
from appliance.inferenced.models import Loaded
from appliance.inferenced.tasks import _beginnings, _requests
from tests.fakes import built_models
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
    with running(folder, preferences=Preferences(enabled=True)) as box:
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
    assert [(v.verifier, v.passed) for v in result.verdicts] == [("form", True), ("schema", True), ("brief", True)]
    assert (result.candidates, result.chosen, result.version) == (1, 0, "2")


def test_what_nobody_passes_is_said_to_be_so(box: Box) -> None:
    """All candidates are computed, the best one comes, and it is not called verified."""
    install(box, "brief", PLACE.replace("MAX", "5"))
    with Client(box.socket) as client:
        result = client.run_task("brief", TEXT)
    assert not result.verified
    assert result.candidates == 3
    assert {v.verifier: v.passed for v in result.verdicts} == {"form": True, "schema": True, "brief": False}


def test_the_same_input_gives_the_same_answer(box: Box) -> None:
    """A task's chances are its own, and fixed."""
    install(box, "brief", PLACE.replace("MAX", "5"))
    answers = [box.post("/skerry/v1/tasks/brief", {"input": TEXT}).json["output"] for _ in range(2)]
    assert answers[0] == answers[1]


FORMED = """\
format: 1
name: place
version: "1"
prompt: {form: text, template: "The serial number of {input} is as follows.\\n"}
output: OUTPUT
max_tokens: TOKENS
"""
NUMBER = "{type: object, properties: {serial: {type: integer}}, required: [serial], additionalProperties: false}"
# the form | longest answer | what the other judges say of its beginning
CUT = [
    ("lines", f"{{kind: json_schema, written: lines, schema: {NUMBER}}}", 5, {"schema": False}),
    ("a regex", '{kind: regex, pattern: "P-[0-9]{30}"}', 6, {}),
    ("a regex that could have ended", '{kind: regex, pattern: "P-[0-9]+"}', 6, {}),
    ("a grammar", """{kind: lark, grammar: 'start: "P-" /[0-9]{30}/'}""", 6, {}),
    (
        "JSON that is a number",
        "{kind: json_schema, schema: {type: integer, minimum: 100000000000}}",
        6,
        {"schema": False},
    ),
]


@pytest.mark.parametrize(("output", "tokens", "others"), [c[1:] for c in CUT], ids=[c[0] for c in CUT])
def test_an_answer_that_was_cut_is_not_verified(box: Box, output: str, tokens: int, others: dict[str, bool]) -> None:
    """What came before the longest answer ended may look like an answer; it fails the form."""
    install(box, "cut", FORMED.replace("OUTPUT", output).replace("TOKENS", str(tokens)))
    result = box.post("/skerry/v1/tasks/cut", {"input": "the pump"}).json
    assert result["finish_reason"] == "length"
    assert {v["verifier"]: v["passed"] for v in result["verdicts"]} == {"form": False} | others
    assert result["verified"] is False


def test_an_answer_that_came_to_its_forms_end_is_verified(box: Box) -> None:
    """With room for all of it, the same forms pass."""
    install(box, "cut", FORMED.replace("OUTPUT", '{kind: regex, pattern: "P-[0-9]{3}"}').replace("TOKENS", "20"))
    result = box.post("/skerry/v1/tasks/cut", {"input": "the pump"}).json
    assert (result["verified"], [v["verifier"] for v in result["verdicts"]]) == (True, ["form"])


def test_an_answer_that_nobody_judged_is_not_verified(box: Box) -> None:
    """Free text without verifiers: nothing speaks for it, and one candidate is all that is computed."""
    install(box, "free", FORMED.replace("OUTPUT", "{kind: text}").replace("TOKENS", "8") + "candidates: 3\n")
    result = box.post("/skerry/v1/tasks/free", {"input": "the pump"}).json
    assert (result["verified"], result["verdicts"], result["candidates"]) == (False, [], 1)


RAN_IN_CIRCLES = """\
format: 1
name: place
version: "1"
prompt: {form: text, template: "{input}\\n", system: "The nurses of the ward are:"}
output: {kind: regex, pattern: "((Emily Carter|John Smith), Ward 3\\n){90,99}end"}
max_tokens: 900
"""


def test_an_answer_that_the_breaker_closed_is_not_verified(box: Box) -> None:
    """The form is whole, but not by the model's doing: the answer is told as one that ran in circles."""
    install(box, "circles", RAN_IN_CIRCLES)
    result = box.post("/skerry/v1/tasks/circles", {"input": "Emily Carter, Ward 3\nJohn Smith, Ward 3\n" * 5}).json
    assert [done["rung"] for done in result["loop"]["breaks"]][-1] == "complete"
    assert (result["finish_reason"], result["loop"]["stopped"], result["verified"]) == ("loop", True, False)
    assert result["output"].endswith("end")


SPLIT = """\
format: 1
name: place
version: "1"
prompt: {form: text, template: "{input}\\n"}
output: {kind: regex, pattern: "[a-z]{1,3}"}
verifiers:
  - {kind: regex, name: first, pattern: "[a-m].*"}
  - {kind: regex, name: second, pattern: "[a-m].*", search: true}
candidates: 8
sampling: {temperature: 2, seed: 3}
max_tokens: 8
"""


def pairs(box: Box) -> list[dict[str, object]]:
    folder = box.state_dir / "preferences"
    files = sorted(folder.glob("*.jsonl")) if folder.exists() else []
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_a_caller_can_keep_a_request_out_of_the_pairs(box: Box) -> None:
    """`store: false` leaves nothing; without it, what a verifier did not pass is a pair."""
    install(box, "split", SPLIT)
    for number in range(40):
        asked = {"input": f"Zebra number {number}: z"}
        before = len(pairs(box))
        first = box.post("/skerry/v1/tasks/split", {**asked, "store": False})
        assert first.status == 200, first.body
        assert len(pairs(box)) == before
        second = box.post("/skerry/v1/tasks/split", asked)
        assert second.json["output"] == first.json["output"]
        if second.json["verified"] and second.json["candidates"] > 1:
            assert len(pairs(box)) == before + 1
            return
    pytest.fail("of forty inputs, none had a candidate that failed before one that passed")


def test_a_bad_file_is_listed_beside_the_good_ones(box: Box, tmp_path: Path) -> None:
    """Its name and where its error is; nothing of a file that a link leads to reaches a caller."""
    secret = tmp_path / "shadow"
    secret.write_text("root: $6$secret\n")
    folder = box.state_dir / "tasks"
    install(box, "place", PLACE.replace("MAX", "200"))
    (folder / "linked.yaml").symlink_to(secret)
    (folder / "broken.yaml").write_text("format: 9\n")
    (folder / os.fsdecode(b"\xff.yaml")).write_text("format: 9\n")
    reply = box.get("/skerry/v1/tasks")
    with Client(box.socket) as client:
        found = client.task_list()
    run = box.post("/skerry/v1/tasks/linked", {"input": "x"})
    for name in ("linked.yaml", "broken.yaml", os.fsdecode(b"\xff.yaml")):
        (folder / name).unlink()
    assert reply.status == 200
    assert "place" in [task.name for task in found.tasks]
    errors = {one.name: one.error for one in found.broken}
    assert errors.keys() == {"linked", "broken", "\\udcff"}
    assert "at `$.format`" in errors["broken"]
    assert b"secret" not in reply.body + run.body
    assert (run.status, run.kind) == (500, "bad_config")


def test_a_form_that_a_model_cannot_be_held_to_is_the_files_fault(tmp_path: Path) -> None:
    """The caller sent no form, so no field of the request is blamed."""

    def refuse(_form: object) -> None:
        raise InvalidRequest("cannot use this regular expression", param="response_format")

    file = tmp_path / "place.yaml"
    file.write_text(PLACE.replace("MAX", "200"))
    loaded: Any = SimpleNamespace(name="m", grammar=refuse)
    with pytest.raises(ConfigError, match="m cannot be held to its output") as refused:
        _requests(load_task(file), "x", loaded)
    assert refused.value.param is None


@pytest.mark.parametrize("name", ["../x", "..", "", "a/b", "none"])
def test_a_name_that_is_no_tasks_is_not_found(box: Box, name: str) -> None:
    """By the client's word or the daemon's, it is no such task, whatever path the name would make."""
    with Client(box.socket) as client, pytest.raises(TaskNotFound, match="it is not installed"):
        client.run_task(name, "x")


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


# --- what is read beforehand ------------------------------------------------------------------------------------------

SYSTEM = "Say what the report is about, in the words of the report and in no other words, however long it may be. " * 4
MINE = PLACE.replace("Extract the place.", SYSTEM).replace("MAX", "200") + "model: tiny-llama-q8\n"


def daemon_with(folder: Path, tasks: dict[str, str]) -> Daemon:
    """A daemon's parts without its socket."""
    built_models.tiny(folder, context_length=1024)
    (folder / "tasks").mkdir()
    for name, text in tasks.items():
        (folder / "tasks" / f"{name}.yaml").write_text(text.replace("name: place", f"name: {name}"))
    return Daemon(Config.default(folder))


async def held(loaded: Loaded) -> int:
    """Bytes of what is kept, once nothing is read any more."""
    for _ in range(500):
        await asyncio.sleep(0.01)
        if loaded.session.prefixes.held.parts and loaded.idle:
            break
    return loaded.session.prefixes.held.size_bytes


@pytest.mark.parametrize("preload", [True, False])
def test_a_tasks_prompt_is_read_before_anybody_asks(tmp_path: Path, preload: bool) -> None:
    """When its model is loaded, at the start or later; up to the input, whatever that will be; nobody counts it."""
    daemon = daemon_with(tmp_path / "b", {"place": MINE, "broken": "format: 9", "other": PLACE.replace("MAX", "200")})

    async def run() -> None:
        if preload:
            daemon.host.preload("tiny-llama-q8")
        async with daemon._lifespan(daemon.app()):
            loaded = await daemon.host.get("tiny-llama-q8")
            kept = await held(loaded)
            (wanted, *_) = _requests(load_task(tmp_path / "b" / "tasks" / "place.yaml"), "The pump is hot.", loaded)
            assert kept == loaded.session.cache_bytes(wanted.boundary) > 0
            cache = loaded.session.new_cache(len(wanted.prompt))
            prompt = np.array(wanted.prompt)
            steps = list(prefill(loaded.session, cache, prompt, "uid 5", wanted.boundary))
            assert sum(s.restored for s in steps if isinstance(s, Prefilled)) == wanted.boundary
            assert daemon.scheduler.load().finished == 0
            assert loaded.requests == 0

    asyncio.run(run())


def test_no_more_is_read_beforehand_than_half_of_what_may_be_kept(tmp_path: Path) -> None:
    """The rest is for what callers ask; and where nothing may be kept nothing is read."""
    many = {f"place-{n}": MINE.replace("Say", f"{n} Say") for n in range(6)}
    for name in ("a", "b"):
        daemon = daemon_with(tmp_path / name, many)
        loaded = daemon.host.preload("tiny-llama-q8")
        one = len(_requests(load_task(tmp_path / name / "tasks" / "place-0.yaml"), "x", loaded)[0].prompt)
        loaded.session.prefixes = Prefixes(loaded.session.cache_bytes(one) * 5 if name == "a" else 0)
        found = InstalledTasks(tmp_path / name / "tasks").all().tasks.values()
        assert len(_beginnings(list(found), loaded)) == (2 if name == "a" else 0)
        daemon.scheduler.close()
        daemon.host.close()
