"""A watchdog that means something: fed only while the work goes on.

The service manager restarts a daemon that falls silent (WatchdogSec=). An event loop that still turns proves little if
the thread that does the work hangs, so that thread keeps a `Heartbeat`, and the `Watchdog` withholds its message when
there has been work and no sign of life for too long.

What this does NOT notice: work that goes on for ever in many small steps, and a hang before there is any work.
"""

import logging
import time
from collections.abc import Callable

from appliance.system.notify import notify

log = logging.getLogger("skerry.watchdog")


class Heartbeat:
    """When a worker last finished a step, as long as it has work. One thread writes, any may read.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: float | None = None

    def start(self) -> None:
        """There is work; if there was before, the time of its last step counts on."""
        if self._last is None:
            self._last = self._clock()

    def step(self) -> None:
        """A step is finished."""
        self._last = self._clock()

    def rest(self) -> None:
        """There is nothing to do."""
        self._last = None

    def silent_s(self) -> float:
        """Seconds of work without a finished step; 0 at rest."""
        last = self._last
        return 0.0 if last is None else self._clock() - last


class Watchdog:
    """Feeds the service manager's watchdog while somebody shows signs of life.

    Args:
        silent_s: how long there has been work and no progress.
        bound_s: longer than the longest honest step.
        feed: tells the service manager.
    """

    def __init__(
        self,
        silent_s: Callable[[], float],
        bound_s: float,
        feed: Callable[[], object] = lambda: notify("WATCHDOG=1"),
    ) -> None:
        self._silent_s, self._bound_s, self._feed = silent_s, bound_s, feed
        self._withheld = False

    def beat(self) -> bool:
        """Feed it, or withhold that and say so once.

        Returns:
            whether it was fed.
        """
        silent_s = self._silent_s()
        if silent_s > self._bound_s:
            if not self._withheld:
                log.error(
                    "the engine has work and finished no step for %.0f s, expected one within %.0f s: "
                    "the watchdog is not fed any more, so that the service manager restarts the daemon",
                    silent_s,
                    self._bound_s,
                )
            self._withheld = True
            return False
        if self._withheld:
            log.warning("the engine goes on: the watchdog is fed again")
        self._withheld = False
        self._feed()
        return True
