"""A real model loops behind the daemon: the answer, the metrics, the log and the pairs for training tell of it."""

import json
from collections.abc import Iterator

import pytest

from appliance.config import Preferences
from tests.fakes.box import Box, running
from tests.fakes.built_models import smollm2

WORDS = "The nurses of the ward are:\n\n" + "Emily Carter, Ward 3\nJohn Smith, Ward 3\n" * 5
"""A text with which this model, in 8 bits, goes on in the same way for ever."""


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    folder = tmp_path_factory.mktemp("breaks") / "b"
    smollm2("q8").copy_to(folder)
    with running(folder, preferences=Preferences(enabled=True)) as box:
        yield box
        assert box.process.poll() is None


def ask(box: Box, **more: object) -> dict[str, object]:
    body = {"prompt": WORDS, "temperature": 0, "max_tokens": 200, **more}
    choice: dict[str, object] = box.post("/v1/completions", body).json["choices"][0]
    return choice


def test_a_broken_loop_is_told_of_everywhere(box: Box) -> None:
    """In the answer, in the counters, in the log, and as a pair; the log holds nobody's words."""
    choice = ask(box)
    breaks = choice["loop"]["breaks"]  # type: ignore[index]
    assert breaks[0]["rung"] == "restart"  # it began with the first words
    assert breaks[0]["rewound"] > 0
    assert choice["loop"]["stopped"] == (choice["finish_reason"] == "loop")  # type: ignore[index]
    counted = box.get("/metrics").body.decode()
    kind = breaks[0]["kind"]
    assert f'skerry_loops_total{{kind="{kind}",model="smollm2-135m-instruct-q8",rung="restart"}} 1.0' in counted
    log = box.log.read_text()
    assert "loop in an answer of smollm2-135m-instruct-q8" in log
    assert not {"nurses", "Emily", "Carter", "Ward"} & set(log.replace(",", " ").split())


def test_off_is_off_and_warn_only_warns(box: Box) -> None:
    """The same tokens in both, and more of the same than anybody wants."""
    off, warned = ask(box, loop_breaker="off"), ask(box, loop_breaker="warn")
    assert "loop" not in off
    assert {done["rung"] for done in warned["loop"]["breaks"]} == {"warn"}  # type: ignore[index]
    assert off["text"] == warned["text"]
    stopped = ask(box, loop_breaker="stop")
    assert stopped["finish_reason"] == "loop"
    assert off["text"].startswith(stopped["text"])  # type: ignore[attr-defined]
    assert len(stopped["text"]) < len(off["text"])  # type: ignore[arg-type]


def test_pairs_are_kept_unless_the_caller_says_no(box: Box) -> None:
    """The loop as it ran is what is rejected; a request with `store: false` leaves nothing."""

    def pairs() -> list[dict[str, object]]:
        folder = box.state_dir / "preferences"
        files = sorted(folder.glob("*.jsonl")) if folder.exists() else []
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    before = len(pairs())
    ask(box, store=False, stop="\n\n")
    assert len(pairs()) == before
    choice = ask(box, stop="\n\n")
    if choice["finish_reason"] != "stop":
        pytest.skip("not run: on this machine the answer comes to no end of its own, and such a one is no example")
    kept = pairs()[-1]
    assert (kept["prompt"], kept["chosen"]) == (WORDS, choice["text"])
    rejected = kept["rejected"][0]  # type: ignore[index]
    assert rejected.count("Emily") == 1 + 3  # type: ignore[attr-defined]  the first copy, and three
