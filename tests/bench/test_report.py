"""The table and the lines under it."""

import json

from bench.figures import MEASURES, TITLES, Figures, Speed
from bench.machine import read_bandwidth
from bench.report import bounds, doubts, plain, table, verdicts
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
    assert lines[0] == "decode at 128: 0.90x of llama.cpp Q8_0 (90.0 against 100.0 tok/s); MISSED (at least 1.15x)"
    assert [line.split(":")[0] for line in lines if "MISSED" in line] == [TITLES[m] for m in MEASURES]
    assert "150 MB resident" in lines[5]
    assert "1.00x of llama.cpp Q8_0; met (at most 1.1x)" in lines[5]
    slow = figures("Skerry", "q8", 21.0, 80.0, default=True)
    missed = [line for line in verdicts([slow, SOURCE, EIGHT], rounds=5) if "MISSED" in line]
    assert len(missed) == 5
    assert "perplexity: +5.00 % of the source's; MISSED (at most +1 %)" in missed


def test_speeds_of_one_round_are_not_judged() -> None:
    """A quick run never says that a speed target was met, or missed; what does not vary is judged all the same."""
    lines = verdicts([OURS, SOURCE, EIGHT], rounds=1)
    assert [line.endswith("; not judged") for line in lines] == [True] * 4 + [False] * 3


def test_verdicts_without_the_peer_keep_our_own_targets() -> None:
    """Time to ready needs nobody to compare with."""
    assert [line.split(":")[0] for line in verdicts([OURS], rounds=5)] == ["load to ready"]


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
