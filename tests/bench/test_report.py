"""The table and the lines under it."""

import json

from bench.figures import MEASURES, SPEED_TARGETS, TITLES, Figures, Speed
from bench.machine import read_bandwidth
from bench.report import bounds, doubts, plain, table, verdicts
from bench.targets import Verdict
from bench.targets import table as table_of_targets
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


def judged(forms: list[Figures], rounds: int = 5) -> list[Verdict]:
    return verdicts(forms, rounds, SPEED_TARGETS)


def test_verdicts_say_what_is_reached_and_what_is_missed() -> None:
    """One for each target; a miss is written large."""
    found = judged([OURS, OURS_LOSSY, SOURCE, EIGHT, LOSSY])
    assert found[0] == Verdict(
        "decode at 128", "at least 1.15x", "0.90x", "llama.cpp Q8_0: 90.0 to 100.0 tok/s", met=False
    )
    assert [v.what for v in found if v.met is False] == [TITLES[m] for m in MEASURES]
    assert found[5] == Verdict("resident memory", "at most 1.1x", "1.00x", "llama.cpp Q8_0: 150 to 150 MB", met=True)
    slow = figures("Skerry", "q8", 21.0, 80.0, default=True)
    missed = [v for v in judged([slow, SOURCE, EIGHT]) if v.met is False]
    assert len(missed) == 5
    assert Verdict("perplexity", "at most +1 %", "+5.00 %", "the source's", met=False) in missed
    rows = table_of_targets(missed).splitlines()
    assert len(rows) == 7
    assert all("MISSED" in row for row in rows[2:])


def test_targets_may_be_a_models_own() -> None:
    """What is wanted of one model need not be wanted of another."""
    found = verdicts([OURS, SOURCE, EIGHT], 5, {**SPEED_TARGETS, "decode_128": 0.9})
    assert (found[0].wanted, found[0].met) == ("at least 0.9x", True)


def test_speeds_of_one_round_are_not_judged() -> None:
    """A quick run never says that a speed target was met, or missed, nor memory, set against whoever is fastest."""
    found = judged([OURS, SOURCE, EIGHT], rounds=1)
    assert [v.what for v in found if v.word != "not judged"] == ["perplexity", "load to ready"]
    assert len(found) == 7


def test_verdicts_without_the_peer_keep_our_own_targets() -> None:
    """Time to ready needs nobody to compare with."""
    assert [v.what for v in judged([OURS])] == ["load to ready"]


def test_figures_from_a_busy_machine_are_doubted() -> None:
    """The worst measure is named; a quiet machine is not mentioned; too few rounds are no figure at all."""
    busy = Figures(**{**vars(EIGHT), "speeds": {**EIGHT.speeds, "prefill_512": Speed(9.0, 1.0, 0.8)}})
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


def test_bars_show_how_much_of_the_bound_is_reached() -> None:
    """A bar is as long as the bound; a small file may be read more often; nothing is drawn beyond it."""
    small = Figures(**{**vars(LOSSY), "package_bytes": 50_000_000})
    lines = bounds([OURS, small], 15e9).splitlines()
    assert "15.0 GB/s" in lines[0]
    assert lines[1].endswith("90 of 150, 60%")
    assert lines[2].endswith("180 of 300, 60%")
    assert (lines[1].count("#"), lines[1].count(".")) == (11, 7)
    assert (lines[2].count("#"), lines[2].count(".")) == (22, 14 + 1), "one point is in the name"
    assert bounds([small], 1e9).splitlines()[1].count("#") == 36


def test_bandwidth_is_one_of_this_world() -> None:
    """More than a disk's, less than a cache's of any processor of today."""
    assert 1e8 < read_bandwidth(1) < 1e12
