"""How a console session ends when nobody ends it: a hang-up, a signal, or nobody there any more."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from appliance.cli.output import note

WARN_S = 60.0


class Leave(BaseException):
    """The session is over, whatever a command is doing; no command may catch it.

    Args:
        code: the session's exit code.
    """

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@contextlib.contextmanager
def session_signals() -> Iterator[None]:
    """A hang-up ends the session and not just a command; no key stops it into the background or dumps it."""

    def leave(number: int, _: FrameType | None) -> None:
        raise Leave(128 + number)

    handlers: dict[signal.Signals, Any] = {
        signal.SIGHUP: leave,
        signal.SIGTERM: leave,
        signal.SIGQUIT: signal.SIG_IGN,
        signal.SIGTSTP: signal.SIG_IGN,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Idle:
    """Decides when nobody is there any more, from marks that change with every key and every output.

    Args:
        limit_s: the longest time without a change.
        warn_s: how long before that to warn.
        now: a monotonic clock's time.
    """

    def __init__(self, limit_s: float, warn_s: float, now: float) -> None:
        self._limit_s, self._warn_s = limit_s, warn_s
        self._since, self._marks, self._warned = now, None, False

    def look(self, now: float, marks: Any) -> str:
        """What to do now: `stay`, `warn` (once) or `leave`."""
        if marks != self._marks:
            self._since, self._marks, self._warned = now, marks, False
        idle_s = now - self._since
        if idle_s >= self._limit_s:
            return "leave"
        if idle_s >= self._limit_s - self._warn_s and not self._warned:
            self._warned = True
            return "warn"
        return "stay"

    def warned(self, marks: Any) -> None:
        """The warning itself is no sign of life."""
        self._marks = marks


@contextlib.contextmanager
def idle_limit(limit_s: float) -> Iterator[None]:
    """Watch the terminal, whatever runs on it: at the prompt, in a chat, in a command that hangs.

    A thread watches, and sends one signal at the end. A timer's signals would meet Ctrl-C at the prompt, where Python
    runs the one's handler with the other's exception set.
    """
    if not limit_s or not sys.stdin.isatty():
        yield
        return
    over, session = threading.Event(), threading.get_ident()

    def marks() -> tuple[int, int]:
        info = os.fstat(0)  # the kernel sets a terminal's times with its input and output
        return info.st_atime_ns, info.st_mtime_ns

    def watch() -> None:
        if nobody_there(limit_s, marks, lambda: over.wait(min(5.0, limit_s / 12))):
            signal.pthread_kill(session, signal.SIGUSR1)

    def leave(_: int, __: FrameType | None) -> None:
        raise Leave(0)

    before = signal.signal(signal.SIGUSR1, leave)
    threading.Thread(target=watch, name="idle", daemon=True).start()
    try:
        yield
    finally:
        over.set()
        signal.signal(signal.SIGUSR1, before)


def nobody_there(
    limit_s: float, marks: Callable[[], object], wait: Callable[[], bool], clock: Callable[[], float] = time.monotonic
) -> bool:
    """Warn, and return when nobody has been there for too long; false if the session ended before.

    Args:
        limit_s: how long is too long.
        marks: of the terminal, see `Idle`.
        wait: for a moment; whether the session is over.
        clock: monotonic seconds.
    """
    warn_s = min(WARN_S, limit_s / 3)
    idle = Idle(limit_s, warn_s, clock())
    while not wait():
        match idle.look(clock(), marks()):
            case "leave":
                note("\nno input for too long: goodbye")
                return True
            case "warn":
                note(f"\nno input: this session ends in {warn_s:.0f} s; press Enter to stay")
                idle.warned(marks())
    return False
