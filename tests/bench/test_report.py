"""The table and the lines under it."""

import json

from bench.figures import Figures, Speed
from bench.report import doubts, plain, table, verdicts
from tests.bench.test_figures import EIGHT, LOSSY, OURS, OURS_LOSSY, SOURCE, figures


def test_table_sets_quality_beside_every_speed() -> None:
    """Each row has a perplexity, its distance to the source's, and a mark if it is too far."""
    lines = table("title", [LOSSY, SOURCE, OURS, EIGHT]).splitlines()
    assert lines[0] == "title"
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 6
    assert len({len(r) for r in rows}) == 1, "columns are aligned"
    assert [r.split("|")[1].strip() for r in rows[2:]] == [
        "Skerry q8, default",
        "llama.cpp Q4_0",
        "llama.cpp Q8_0",
        "llama.cpp Q4_1, source",
    ]
    assert "24.00 (+20.0 %)!" in rows[3]
    assert "20.10 (+0.5 %) " in rows[2]
    assert "150 (1.25x)" in rows[2]


def test_table_without_the_peer_has_no_distances() -> None:
    """Alone, a perplexity is printed as it is."""
    text = table("title", [OURS])
    assert "20.10 |" in text
    assert "%" not in text


def test_verdicts_say_what_is_reached_and_what_is_missed() -> None:
    """A line a target; a miss is written large."""
    lines = verdicts([OURS, OURS_LOSSY, SOURCE, EIGHT, LOSSY], rounds=5)
    assert lines[0] == "decode at 128: 0.90x of llama.cpp Q8_0 (90.0 against 100.0 tok/s); met (at least 0.9x)"
    assert sum("met (" in line for line in lines) == len(lines) == 6
    slow = figures("Skerry", "q8", 21.0, 80.0, default=True)
    missed = [line for line in verdicts([slow, SOURCE, EIGHT], rounds=5) if "MISSED" in line]
    assert len(missed) == 4
    assert "perplexity: +5.00 % of the source's; MISSED (at most +1 %)" in missed


def test_speeds_of_one_round_are_not_judged() -> None:
    """A quick run never says that a speed target was met, or missed; what does not vary is judged all the same."""
    lines = verdicts([OURS, SOURCE, EIGHT], rounds=1)
    assert [line.endswith("; not judged") for line in lines] == [True, True, True, False, False, False]


def test_verdicts_without_the_peer_keep_our_own_targets() -> None:
    """Memory and time to ready need nobody to compare with."""
    assert [line.split(":")[0] for line in verdicts([OURS], rounds=5)] == ["memory", "load to ready"]


def test_figures_from_a_busy_machine_are_doubted() -> None:
    """The worst measure is named; a quiet machine is not mentioned; too few rounds are no figure at all."""
    busy = Figures(**{**vars(EIGHT), "speeds": {**EIGHT.speeds, "prefill": Speed(9.0, 1.0, 0.8)}})
    assert doubts([OURS, busy], rounds=5) == [
        "the machine was not quiet: rounds differ by up to 80 % (llama.cpp Q8_0, prefill 512)"
    ]
    assert doubts([OURS, EIGHT], rounds=5) == []
    assert "not how fast" in doubts([OURS, EIGHT], rounds=1)[0]


def test_figures_can_be_written_as_json() -> None:
    """What is written with --out holds every form and every ratio."""
    value = json.loads(json.dumps(plain([OURS, SOURCE, EIGHT])))
    assert [f["form"] for f in value["forms"]] == ["q8", "Q4_1", "Q8_0"]
    assert value["ratios"][0]["ratio"] == 0.9
