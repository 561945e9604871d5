"""Who computes next: a few jobs side by side, in one pass where that can be, callers served in turn.

One thread owns all sessions, so no session is entered twice. A job is an iterator of steps; `running` jobs are active.
Each goes on until it waits for a `Forward`; when all of them do, their forwards are computed together, a token or a
guess of each answer, and of the parts of prompts one: the longest that anybody waits for another's prompt is a part of
it a token. Which one is the caller's turn whose last one is longest ago; of one caller's prompts the first is finished
first. So jobs join and leave between two passes, and a short answer never waits for a long one.

Waiting jobs are admitted caller by caller, not first come first served, so that nobody's pile delays another's single
question. What does not fit is refused at once with an honest time to try again.

The thread keeps a heartbeat: `silent_s` says how long it has had work and finished no step.
"""

import collections
import contextlib
import logging
import math
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from appliance.engine.forward import Forward, compute
from appliance.errors import Cancelled, InternalError, ShuttingDown, SkerryError, TooManyRequests
from appliance.system.watchdog import Heartbeat

log = logging.getLogger("skerry.engine")

Step = TypeVar("Step")

_TYPICAL_S = 5.0
"""Guess of a job's time before there is any measurement."""


@dataclass(eq=False)
class Job(Generic[Step]):
    """An answer that is being computed.

    Attributes:
        caller: whose it is, for fairness and limits.
        steps: each `next` goes one step; a `Forward` among them is computed before the next one, with others.
        emit: called in the scheduler's thread with every other step, then once with None (done) or with the error that
            ended it.
        cancelled: set it, and not one more step is computed.
        asked: whether somebody asked for it; what nobody asked for is not counted.
    """

    caller: int
    steps: Iterator[Forward | Step]
    emit: Callable[[Step | SkerryError | None], None]
    cancelled: threading.Event = field(default_factory=threading.Event)
    asked: bool = True
    submitted: float = field(default_factory=time.monotonic)
    started: float | None = None
    forward: Forward | None = None


@dataclass(frozen=True)
class Load:
    """How busy a scheduler is."""

    running: int
    queued: int
    rejected: int
    cancelled: int
    finished: int


class Scheduler:
    """Runs jobs in one thread until it is closed."""

    def __init__(self, *, running: int, queued: int, per_caller: int) -> None:
        """Start the thread.

        Args:
            running: jobs that are active at once.
            queued: jobs of all callers that may wait.
            per_caller: jobs of one caller, active and waiting.
        """
        self._limits = (running, queued, per_caller)
        self._lock = threading.Condition()
        self._active: list[Job[Any]] = []
        self._waiting: collections.OrderedDict[int, collections.deque[Job[Any]]] = collections.OrderedDict()
        self._served: dict[int, int] = {}  # callers with active jobs: the pass of the last part of a prompt of theirs
        self._passes = 0
        self._closing = False
        self._rejected = self._cancelled = self._finished = 0
        self._typical_s = _TYPICAL_S
        self._heartbeat = Heartbeat()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, jobs: list[Job[Any]]) -> None:
        """Queue the jobs of one request, all or none.

        Raises:
            TooManyRequests: a limit is reached; `retry_after_s` is an estimate from the times measured so far.
            ShuttingDown: the scheduler is closing.
        """
        running, queued, per_caller = self._limits
        caller = jobs[0].caller
        with self._lock:
            if self._closing:
                raise ShuttingDown("cannot take the request: the daemon is shutting down", retry_after_s=5)
            self._purge()
            waiting = self._queued()
            own = sum(j.caller == caller for j in self._active) + len(self._waiting.get(caller, ()))
            if own + len(jobs) > per_caller:
                self._rejected += 1
                raise TooManyRequests(
                    f"cannot take {len(jobs)} more: uid {caller} has {own} under way, the limit is {per_caller}",
                    hint="wait for one to end, or ask for a higher limits.per_caller",
                    retry_after_s=self._typical_s * max(1, own) / running,
                )
            if waiting + len(jobs) > queued:
                self._rejected += 1
                raise TooManyRequests(
                    f"cannot take {len(jobs)} more: {waiting} answers are waiting, the limit is {queued}",
                    hint="try again later",
                    retry_after_s=self._typical_s * (waiting + 1) / running,
                )
            self._waiting.setdefault(caller, collections.deque()).extend(jobs)
            self._lock.notify()

    def load(self) -> Load:
        """Tell how busy it is."""
        with self._lock:
            return Load(len(self._active), self._queued(), self._rejected, self._cancelled, self._finished)

    def silent_s(self) -> float:
        """Seconds since the last finished step while there is work; infinite if the thread died."""
        if not self._thread.is_alive() and not self._closing:
            return math.inf
        return self._heartbeat.silent_s()

    def close(self) -> None:
        """End the thread; jobs that are still there end with `ShuttingDown`."""
        with self._lock:
            self._closing = True
            self._lock.notify()
        self._thread.join()

    def _purge(self) -> None:
        """Forget waiting jobs whose callers left: they must not keep others out."""
        for caller, queue in list(self._waiting.items()):
            for job in [j for j in queue if j.cancelled.is_set()]:
                queue.remove(job)
                self._count(job, cancelled=True)
                _emit(job, Cancelled("the caller left"))
            if not queue:
                del self._waiting[caller]

    def _count(self, job: Job[Any], *, cancelled: bool) -> None:
        self._finished += job.asked
        self._cancelled += job.asked and cancelled

    def _queued(self) -> int:
        return sum(len(q) for q in self._waiting.values())

    def _run(self) -> None:
        while True:
            with self._lock:
                while not self._closing and not self._active and not self._waiting:
                    self._heartbeat.rest()
                    self._lock.wait()
                self._heartbeat.start()
                if self._closing:
                    left = self._active + [j for q in self._waiting.values() for j in q]
                    self._active, self._waiting = [], collections.OrderedDict()
                    break
                self._admit()
                active = list(self._active)
            self._go_on(active)
            del active  # while there is no work, nothing may hold the last job, and through it a model
        for job in left:
            _emit(job, ShuttingDown("the daemon shut down before the answer was complete"))

    def _go_on(self, active: list[Job[Any]]) -> None:
        """Let jobs that wait for no pass take a step; if there are none, compute what the others wait for."""
        ready = [job for job in active if job.forward is None or job.cancelled.is_set()]
        for job in ready:
            self._step(job)
            self._heartbeat.step()
        if not ready:
            self._compute(active)
            self._heartbeat.step()

    def _admit(self) -> None:
        """Move waiting jobs to active ones, one of each caller in turn."""
        while len(self._active) < self._limits[0] and self._waiting:
            caller, queue = self._waiting.popitem(last=False)
            job = queue.popleft()
            job.started = time.monotonic()
            self._active.append(job)
            if queue:
                self._waiting[caller] = queue  # at the end: the others come first

    def _compute(self, jobs: list[Job[Any]]) -> None:
        """Compute what the jobs wait for; of the parts of prompts one."""
        forwards = {job: job.forward for job in jobs if job.forward is not None}
        prompts = [job for job, forward in forwards.items() if forward.is_long]
        if prompts:
            # Who comes anew stands behind those who wait already, or a long prompt would wait for every newcomer.
            self._served = {job.caller: self._served.get(job.caller, self._passes) for job in jobs}
            chosen = min(prompts, key=lambda job: self._served[job.caller])
            self._passes += 1
            self._served[chosen.caller] = self._passes
            for job in prompts:
                if job is not chosen:
                    del forwards[job]
        compute(forwards.values())
        for job in forwards:
            job.forward = None

    def _step(self, job: Job[Any]) -> None:
        if job.cancelled.is_set():
            self._end(job, Cancelled("the caller left"))
            return
        try:
            step = next(job.steps)
        except StopIteration:
            self._end(job, None)
        except SkerryError as e:
            # Its traceback would keep the answer's frames, and with them its cache, until the garbage is collected.
            e.__traceback__ = e.__context__ = e.__cause__ = None
            self._end(job, e)
        except BaseException as e:  # noqa: BLE001  one job's defect, a panic in Rust too, must not end the others
            # Type and place only: the message could quote a prompt.
            log.error("defect in a job: %s\n%s", type(e).__name__, "".join(traceback.format_tb(e.__traceback__)))
            self._end(job, InternalError("the engine failed at this request", hint="the journal says where"))
        else:
            if isinstance(step, Forward):
                job.forward = step
            else:
                _emit(job, step)

    def _end(self, job: Job[Any], outcome: SkerryError | None) -> None:
        # Frees the cache now, not when the garbage is collected, or whoever waits for the answer has gone.
        steps, job.steps, job.forward = job.steps, iter(()), None
        with contextlib.suppress(Exception):
            getattr(steps, "close", lambda: None)()
        del steps
        with self._lock:
            self._active.remove(job)
            self._count(job, cancelled=isinstance(outcome, Cancelled))
            if outcome is None and job.asked and job.started is not None:
                self._typical_s += 0.2 * (time.monotonic() - job.started - self._typical_s)
        _emit(job, outcome)


def _emit(job: Job[Any], step: Any) -> None:
    try:
        job.emit(step)
    except Exception as e:  # noqa: BLE001  the receiver may be gone; the worker must go on
        log.warning("a receiver failed: %s", type(e).__name__)
        job.cancelled.set()
