"""When the watchdog is fed, by a clock of the tests' own."""

import logging
import math

import pytest

from appliance.system.watchdog import Heartbeat, Watchdog


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_heartbeat(clock: Clock) -> None:
    """Silence is counted from the last step, or from the start of work; at rest there is none."""
    heart = Heartbeat(clock)
    clock.now += 500
    assert heart.silent_s() == 0
    heart.start()
    clock.now += 7
    assert heart.silent_s() == 7
    heart.start()  # more work came: the old silence counts on
    clock.now += 1
    assert heart.silent_s() == 8
    heart.step()
    clock.now += 2
    assert heart.silent_s() == 2
    heart.rest()
    clock.now += 500
    assert heart.silent_s() == 0
    heart.start()
    assert heart.silent_s() == 0


@pytest.mark.parametrize(
    ("silent_s", "fed"), [(0, True), (59.9, True), (60, True), (60.1, False), (1e9, False), (math.inf, False)]
)
def test_bound(silent_s: float, fed: bool) -> None:
    """Up to the bound it is fed, beyond it is not."""
    told: list[str] = []
    assert Watchdog(lambda: silent_s, 60, lambda: told.append("fed")).beat() is fed
    assert told == ["fed"] * fed


def test_one_line_each_way(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """A hang is logged once however long it lasts, and so is its end."""
    heart, told = Heartbeat(clock), []
    watchdog = Watchdog(heart.silent_s, 60, lambda: told.append(clock.now))
    heart.start()
    with caplog.at_level(logging.INFO, "skerry.watchdog"):
        for _ in range(10):
            watchdog.beat()
            clock.now += 15
        heart.step()
        watchdog.beat()
        watchdog.beat()
    assert told == [1000, 1015, 1030, 1045, 1060, 1150, 1150]
    first, second = [r.getMessage() for r in caplog.records]
    assert "finished no step for 75 s" in first
    assert "fed again" in second
