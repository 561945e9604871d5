"""Medians, the choice of the peer's form, and the ratios."""

import pytest

from bench.figures import (
    MEASURES,
    Figures,
    Reference,
    Speed,
    compare,
    fastest,
    find_reference,
    rotated,
    summarize_speed,
)


def figures(
    engine: str, form: str, perplexity: float, per_s: float, *, default: bool = False, source: bool = False
) -> Figures:
    speed = Speed(per_s=per_s, cpu_ms=1.0, spread=0.0)
    return Figures(
        engine=engine,
        form=form,
        default=default,
        source=source,
        perplexity=perplexity,
        package_bytes=100_000_000,
        kv_bytes=20_000_000 if engine == "Skerry" else None,
        ready_s=0.5,
        memory={"resident": 150_000_000, "peak": 160_000_000, "anonymous": 60_000_000, "file": 90_000_000},
        speeds=dict.fromkeys(MEASURES, speed),
    )


OURS = figures("Skerry", "q8", 20.1, 90.0, default=True)
OURS_LOSSY = figures("Skerry", "q4", 25.0, 140.0)
SOURCE = figures("llama.cpp", "Q4_1", 20.0, 70.0, source=True)
EIGHT = figures("llama.cpp", "Q8_0", 20.15, 100.0)
LOSSY = figures("llama.cpp", "Q4_0", 24.0, 180.0)


def test_speed_is_the_median_of_the_rounds() -> None:
    """One slow round does not move the figure, and CPU time has a median of its own."""
    rounds = [{"wall_s": w, "cpu_s": c} for w, c in [(1.0, 3.9), (9.0, 4.0), (2.0, 40.0)]]
    speed = summarize_speed(rounds, tokens=64)
    assert speed.per_s == pytest.approx(32.0)
    assert speed.cpu_ms == pytest.approx(1000 * 4.0 / 64)
    assert speed.spread == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("perplexity", "same"),
    [(19.0, True), (20.0, True), (20.19, True), (20.2, True), (20.21, False), (24.0, False)],
)
def test_same_quality_ends_one_percent_above_the_reference(perplexity: float, same: bool) -> None:
    """Lower is always good enough; the border itself still counts."""
    for engine in ("Skerry", "llama.cpp"):
        assert Reference(20.0, 20.0).is_met(figures(engine, "q", perplexity, 1.0)) is same


def test_doubt_about_the_reference_counts_against_us() -> None:
    """The peer runs the published weights in two ways: ours is held to the better, the peer to the worse."""
    flash = figures("llama.cpp", "Q4_1 flash", 20.1, 71.0, source=True)
    reference = find_reference([SOURCE, flash, EIGHT])
    assert reference == Reference(better=20.0, worse=20.1)
    assert not reference.is_met(figures("Skerry", "q8", 20.25, 1.0))
    assert reference.is_met(figures("llama.cpp", "Q8_0", 20.25, 1.0))


def test_fastest_form_ignores_lossy_ones() -> None:
    """The fastest form is not chosen when its perplexity is worse than the source's by more than 1 %."""
    assert fastest([SOURCE, EIGHT, LOSSY], "decode_128", Reference(20.0, 20.0)) == EIGHT
    assert fastest([LOSSY], "decode_128", Reference(20.0, 20.0)) is None


def test_ratio_is_our_default_against_the_fastest_fit_form() -> None:
    """Our faster, lossy form does not stand in for the default, nor the peer's for its best."""
    ratios = compare([OURS_LOSSY, OURS, LOSSY, EIGHT, SOURCE])
    assert [r.measure for r in ratios] == list(MEASURES)
    assert {(r.peer_form, r.value) for r in ratios} == {("Q8_0", 0.9)}


def test_each_measure_has_its_own_best_peer() -> None:
    """The peer's best form for prefill need not be its best for decoding."""
    slow, fast = Speed(50.0, 1.0, 0.0), Speed(900.0, 1.0, 0.0)
    flash = figures("llama.cpp", "Q8_0 flash", 20.1, 0.0)
    flash = Figures(**{**vars(flash), "speeds": {**dict.fromkeys(MEASURES, slow), "prefill_512": fast}})
    assert [r.peer_form for r in compare([OURS, SOURCE, EIGHT, flash])] == ["Q8_0", "Q8_0", "Q8_0 flash", "Q8_0"]


def test_without_the_peer_there_are_no_ratios() -> None:
    """Our own figures alone compare with nothing."""
    assert find_reference([OURS]) is None
    assert compare([OURS]) == []


def test_without_our_default_there_are_no_ratios() -> None:
    """Another form of ours never stands in for the package that is built by default."""
    assert compare([OURS_LOSSY, SOURCE, EIGHT]) == []


def test_memory_ratio_is_over_package_and_cache() -> None:
    """Resident 150 over 100 + 20; a peer that does not state its cache has no ratio."""
    assert OURS.memory_ratio == pytest.approx(1.25)
    assert SOURCE.memory_ratio is None


def test_every_form_begins_a_round_in_turn() -> None:
    """Rotation keeps the neighbours and moves the start, and covers every start."""
    assert rotated(["a", "b", "c"], 1) == ["b", "c", "a"]
    assert {rotated(["a", "b", "c"], n)[0] for n in range(3)} == {"a", "b", "c"}
    assert rotated([], 4) == []
