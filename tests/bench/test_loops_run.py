"""The queue of answers: what is computed, what is replayed, what is taken up again; with a worker that is a fake."""

import json
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import pytest

from bench.forms import Form
from bench.loops import run
from bench.loops.prompts import PROMPTS, Prompt
from bench.loops.run import Rows, Setting, measure
from bench.pipe import SideFailed

SOME = PROMPTS[:6]
FIRES = {SOME[1].text: 40, SOME[4].text: 90}


class FakeSide:
    """A worker that answers at once; the breaker fires on the prompts in FIRES."""

    asked: ClassVar[list[tuple[str, str]]] = []
    lock = threading.Lock()
    fail_on: str | None = None

    def __init__(self, python: Path, module: str) -> None:
        assert module == "bench.loops.worker"

    def __enter__(self) -> "FakeSide":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def ask(self, do: str, **arguments: Any) -> Any:
        if do == "open":
            return {"chat": True}
        if do == "breaks":
            return FIRES.get(arguments["text"])
        with self.lock:
            if arguments["text"] == self.fail_on:
                raise SideFailed("cannot measure: it died")
            self.asked.append((arguments["text"], arguments["breaker"]))
        return {"tokens": [1, 2, 3], "text": arguments["breaker"], "finish": "stop", "breaks": []}


@pytest.fixture
def side(monkeypatch: pytest.MonkeyPatch) -> type[FakeSide]:
    monkeypatch.setattr(FakeSide, "asked", [])
    monkeypatch.setattr(FakeSide, "fail_on", None)
    monkeypatch.setattr(run, "Side", FakeSide)
    return FakeSide


def setting(folder: Path) -> Setting:
    return Setting("smollm2", Form("Skerry", "q8", Path("python"), {}), True, 0.0, folder)


def silent(what: str, fraction: float) -> None:
    pass


def asked(side: type[FakeSide], breaker: str) -> set[str]:
    return {text for text, how in side.asked if how == breaker}


def test_only_where_the_breaker_acts_a_prompt_is_asked_again(side: type[FakeSide], tmp_path: Path) -> None:
    """The other rows with the breaker on are those with it off, and say so."""
    off, on = measure(setting(tmp_path), SOME, full=False, say=silent)

    assert asked(side, "off") == {p.text for p in SOME}
    assert asked(side, "break") == set(FIRES)
    assert [r["prompt"] for r in off] == [r["prompt"] for r in on] == [p.id for p in SOME]
    assert [r["computed"] for r in on] == [p.text in FIRES for p in SOME]
    assert [r["text"] for r in on] == ["break" if p.text in FIRES else "off" for p in SOME]
    assert on[1]["fired"] == 40


def test_full_asks_all_again(side: type[FakeSide], tmp_path: Path) -> None:
    """Also after a run that was not full."""
    measure(setting(tmp_path), SOME, full=False, say=silent)

    _, on = measure(setting(tmp_path), SOME, full=True, say=silent)

    assert all(r["computed"] for r in on)
    assert asked(side, "break") == {p.text for p in SOME}


def test_an_interrupted_run_goes_on(side: type[FakeSide], tmp_path: Path) -> None:
    """What was written is not computed again, half a line is; the failure is raised."""
    side.fail_on = SOME[3].text
    with pytest.raises(SideFailed):
        measure(setting(tmp_path), SOME, full=False, say=silent)
    path = setting(tmp_path).rows_path("off")
    done = {json.loads(line)["prompt"] for line in path.read_text().splitlines()}
    with path.open("a") as file:
        file.write('{"prompt": "half')
    side.fail_on, side.asked = None, []

    off, on = measure(setting(tmp_path), SOME, full=False, say=silent)

    assert len(off) == len(on) == len(SOME)
    assert SOME[3].text in asked(side, "off")
    assert not asked(side, "off") & {p.text for p in SOME if p.id in done}


def test_rows_of_another_breaker_are_not_used(
    side: type[FakeSide], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A changed breaker is asked again; the answers without it stay."""
    measure(setting(tmp_path), SOME, full=False, say=silent)
    side.asked = []
    monkeypatch.setattr(run, "policy_hash", lambda: "another")

    measure(setting(tmp_path), SOME, full=False, say=silent)

    assert asked(side, "off") == set()
    assert asked(side, "break") == set(FIRES)


def test_a_row_of_another_prompt_is_not_used(side: type[FakeSide], tmp_path: Path) -> None:
    """A prompt that was worded anew keeps its number, not its answer."""
    measure(setting(tmp_path), SOME, full=False, say=silent)
    side.asked = []
    changed = Prompt(SOME[0].id, SOME[0].family, "Name ten trees.", SOME[0].verify)

    measure(setting(tmp_path), [changed, *SOME[1:]], full=False, say=silent)

    assert asked(side, "off") == {"Name ten trees."}


def test_rows_are_kept_as_lines(tmp_path: Path) -> None:
    """One JSON object a line, readable at any moment."""
    rows = Rows(tmp_path / "a" / "rows.jsonl", "p1")

    rows.add({"prompt": "x", "asked": 1})

    assert json.loads((tmp_path / "a" / "rows.jsonl").read_text()) == {"prompt": "x", "asked": 1, "policy": "p1"}
    assert Rows(tmp_path / "a" / "rows.jsonl", "p2").rows == {}
