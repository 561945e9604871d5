"""The report: tables that hold the figures, targets that are met or missed, JSON that can be read again."""

import json
from typing import Any

from appliance.decoding.breaker import Step
from appliance.decoding.loops import Loop
from bench.loops.corpus import Document
from bench.loops.figures import Judged, judge_rows
from bench.loops.prompts import PROMPTS
from bench.loops.replay import Acted, Replayed
from bench.loops.report import Report, Run, markdown, plain, verdicts
from bench.loops.synthetic import Planted

LIST = next(p for p in PROMPTS if p.family == "enumeration")
LOOP = "1. The lamp is red. " * 40
WORDS = ("oak", "ash", "elm", "fir", "pine", "beech", "birch", "maple", "larch", "alder", "yew", "box", "holly", "ivy")
GOOD = "\n".join(f"{n}. {word}" for n, word in enumerate(WORDS, 1))
BREAK = {"rung": "resample", "kind": "exact", "onset": 40, "period": 10, "at": 80}


def answers(*texts: str, broken: bool = False) -> list[Judged]:
    rows: list[dict[str, Any]] = [
        {"text": t, "tokens": [1] * len(t.split()), "finish": "stop", "decode_s": 1.0, "breaks": [BREAK] * broken}
        for t in texts
    ]
    return judge_rows([LIST] * len(rows), rows)


def report(off: list[Judged], on: list[Judged], acted: int = 0) -> Report:
    loop = Loop("exact", 40, 10, 4.0, 1.0, True)
    documents = [
        Replayed(
            Document(f"log {n}", "log", "all is well"), 3, Acted(80, Step("resample", 40, loop)) if n < acted else None
        )
        for n in range(1000)
    ]
    planted = [Planted("exact", "16 to 63", 20, 40), Planted("counter", "16 to 63", 20, None)]
    return Report(
        "a machine", "skerry", [Run("smollm2", 0.0, off, on)], {"smollm2": {"defaults, greedy": off}},
        {"smollm2": documents}, {"smollm2": planted}, ["gemma (its terms)"],
    )  # fmt: skip


def test_what_is_reached_is_said_to_be_met() -> None:
    """Loops, usable answers, documents, planted loops: a line each."""
    lines = verdicts(report(answers(*[LOOP] * 60, *[GOOD] * 140), answers(*[GOOD] * 200, broken=True)))

    assert [line.rsplit("; ", 1)[1].split(" ")[0] for line in lines] == ["met", "met", "met", "met", "MISSED"]
    assert "0 of 200 (0.0 %), upper bound 1.9 %" in lines[0]


def test_what_is_missed_is_said_to_be_missed() -> None:
    """One loop too many for the interval, no usable answer, two documents too many."""
    lines = verdicts(report(answers(*[LOOP] * 60), answers(*["Oak."] * 58, LOOP, LOOP, broken=True), acted=2))

    assert [line.rsplit("; ", 1)[1].split(" ")[0] for line in lines] == ["MISSED", "MISSED", "MISSED", "met", "MISSED"]


def test_the_upper_bound_must_be_low_too() -> None:
    """Two of 200 are 1 %, but may be 3.6 %."""
    line = verdicts(report(answers(*[LOOP] * 60, *[GOOD] * 140), answers(*[GOOD] * 198, LOOP, LOOP)))[0]

    assert "2 of 200 (1.0 %), upper bound 3.6 %; MISSED" in line


def test_few_loops_without_the_breaker_are_not_judged() -> None:
    """Where there is little to break nothing is claimed."""
    (line, *_) = verdicts(report(answers(LOOP, *[GOOD] * 9), answers(*[GOOD] * 10)))

    assert line.endswith("not judged")


def test_the_tables_hold_all_parts() -> None:
    """Every part has its heading and its figures; every document that was acted on is named."""
    text = markdown(report(answers(LOOP, GOOD), answers(GOOD, GOOD, broken=True), acted=1))

    for part in ("### Answers", "### Legitimate documents", "### Planted loops", "### Targets", "Not run: gemma"):
        assert part in text
    assert "- log 0: exact, period 10, 4.0 copies, at token 80" in text
    assert "smollm2, llama-server, defaults, greedy" in text
    for line in text.splitlines():
        assert line.startswith("|") == line.endswith("|")


def test_json_keeps_every_prompt() -> None:
    """What it holds can be read again, and counts the same."""
    found = json.loads(json.dumps(plain(report(answers(LOOP, GOOD), answers(GOOD, GOOD, broken=True)))))

    assert [p["off"]["loop"] is not None for p in found["runs"][0]["prompts"]] == [True, False]
    assert found["runs"][0]["loops_off"]["count"] == 1
    assert len(found["documents"]["smollm2"]) == 1000


def test_unseen_documents_stand_apart() -> None:
    """A table and lines of their own; files and routines each have a rate."""
    loop = Loop("exact", 40, 10, 4.0, 1.0, True)
    acted = Acted(80, Step("resample", 40, loop))
    files = [Replayed(Document(f"yaml, a/b:{n}", "yaml", "x"), 3, None) for n in range(10)]
    made = [Replayed(Document(f"knitting {n}", "knitting", "x"), 3, acted if n == 0 else None) for n in range(10)]
    one = Report("a machine", "skerry", drawn={"smollm2": files + made}, unseen={"smollm2": files})

    assert verdicts(one) == [
        "smollm2: acted on 0 of 10 (0.0 %) documents drawn before, all files; met (at most 0.1 %)",
        "smollm2: acted on 1 of 10 (10.0 %) documents drawn before, all routines; MISSED (at most 0.1 %)",
        "smollm2: acted on 0 of 10 (0.0 %) documents unseen, all files; met (at most 0.1 %)",
    ]
    text = markdown(one)
    assert text.index("### Legitimate documents, drawn before") < text.index("### Legitimate documents, unseen")
    assert "### Legitimate documents\n" not in text
    assert "- knitting 0: exact, period 10, 4.0 copies, at token 80" in text
    assert [d["acted_at"] for d in plain(one)["drawn"]["smollm2"][9:11]] == [None, 80]
