"""The scheduler: turns, limits, cancelling, and defects that stay where they are."""

import gc
import math
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from appliance.engine.forward import Forward
from appliance.engine.scheduler import Job, Scheduler
from appliance.engine.session import Wanted
from appliance.errors import Cancelled, ContextTooLong, InternalError, ShuttingDown, TooManyRequests


class Collected:
    """What a job emitted, and a way to wait for its end."""

    def __init__(self) -> None:
        self.steps: list[Any] = []
        self.done = threading.Event()
        self.outcome: Any = "none yet"

    def emit(self, step: Any) -> None:
        if step is None or isinstance(step, Exception):
            self.outcome = step
            self.done.set()
        else:
            self.steps.append(step)


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    scheduler = Scheduler(running=2, queued=4, per_caller=4)
    yield scheduler
    scheduler.close()


def submit(scheduler: Scheduler, caller: int, steps: Iterator[Any]) -> tuple[Job[Any], Collected]:
    collected = Collected()
    job = Job(caller, steps, collected.emit)
    scheduler.submit([job])
    return job, collected


def blocked(gate: threading.Event) -> Iterator[int]:
    """Go on, step by step, until the gate opens."""
    while not gate.wait(0.002):
        yield 1


def wait_for(scheduler: Scheduler, *, running: int) -> None:
    for _ in range(500):
        if scheduler.load().running == running:
            return
        time.sleep(0.01)
    raise AssertionError(scheduler.load())


def test_jobs_take_turns(scheduler: Scheduler) -> None:
    """Two active jobs get a step each, round after round."""
    order: list[str] = []
    gate = threading.Event()

    def steps(name: str) -> Iterator[str]:
        gate.wait(10)
        for _ in range(3):
            order.append(name)
            yield name

    a, b = Collected(), Collected()
    scheduler.submit([Job(1, steps("a"), a.emit), Job(1, steps("b"), b.emit)])
    gate.set()
    assert a.done.wait(5)
    assert b.done.wait(5)
    assert order == ["a", "b"] * 3


def test_callers_are_admitted_in_turn(scheduler: Scheduler) -> None:
    """One caller's pile does not delay another's single question."""
    gate, order = threading.Event(), []

    def named(name: str) -> Iterator[str]:
        order.append(name)
        yield name

    holds = [submit(scheduler, 9, blocked(gate))[1] for _ in range(2)]
    wait_for(scheduler, running=2)
    piles = [submit(scheduler, 1, named(f"pile {i}"))[1] for i in range(3)]
    single = submit(scheduler, 2, named("single"))[1]
    gate.set()
    for c in [*holds, *piles, single]:
        assert c.done.wait(5)
    assert order.index("single") <= 1


def test_callers_come_in_the_order_in_which_they_asked(scheduler: Scheduler) -> None:
    """Of several waiting callers the first is served first."""
    gate, order = threading.Event(), []

    def named(caller: int) -> Iterator[int]:
        order.append(caller)
        yield caller

    holds = [submit(scheduler, 9, blocked(gate))[1] for _ in range(2)]
    wait_for(scheduler, running=2)
    waiting = [submit(scheduler, caller, named(caller))[1] for caller in (3, 1, 2)]
    gate.set()
    assert all(c.done.wait(5) for c in [*holds, *waiting])
    assert order == [3, 1, 2]


def test_limits_are_honest(scheduler: Scheduler) -> None:
    """A caller's limit and the queue's are refused with the figures and a time; others' requests still pass."""
    gate = threading.Event()
    mine = [submit(scheduler, 1, blocked(gate))[1] for _ in range(4)]
    wait_for(scheduler, running=2)
    with pytest.raises(TooManyRequests, match="uid 1 has 4 under way, the limit is 4") as refused:
        submit(scheduler, 1, iter(()))
    assert refused.value.retry_after_s is not None
    assert refused.value.retry_after_s > 0
    others = [submit(scheduler, 2, blocked(gate))[1] for _ in range(2)]
    with pytest.raises(TooManyRequests, match="4 answers are waiting"):
        submit(scheduler, 3, iter(()))
    assert scheduler.load().rejected == 2
    gate.set()
    assert all(c.done.wait(5) and c.outcome is None for c in [*mine, *others])
    submit(scheduler, 1, iter(()))


def test_request_of_several_jobs_is_taken_whole_or_not(scheduler: Scheduler) -> None:
    """Five answers for a limit of four: none is begun."""
    jobs = [Job(1, iter([1]), Collected().emit) for _ in range(5)]
    with pytest.raises(TooManyRequests):
        scheduler.submit(jobs)
    assert scheduler.load().running == scheduler.load().queued == 0


def test_cancel_stops_within_one_step(scheduler: Scheduler) -> None:
    """After `cancelled` is set, at most the step that is being computed still happens."""
    computed, reached, left = [], threading.Event(), threading.Event()

    def endless() -> Iterator[int]:
        while True:
            computed.append(1)
            if len(computed) == 5:
                reached.set()
                left.wait(5)  # the cancel comes in the middle of this step
            yield 1

    job, collected = submit(scheduler, 1, endless())
    assert reached.wait(5)
    job.cancelled.set()
    left.set()
    assert collected.done.wait(5)
    assert isinstance(collected.outcome, Cancelled)
    assert len(computed) == 5
    assert scheduler.load().cancelled == 1


def test_waiting_jobs_of_callers_that_left_make_room(scheduler: Scheduler) -> None:
    """A cancelled job in the queue keeps nobody out."""
    gate = threading.Event()
    for _ in range(2):
        submit(scheduler, 9, blocked(gate))
    wait_for(scheduler, running=2)
    waiting = [submit(scheduler, 1, iter(())) for _ in range(4)]
    for job, _ in waiting:
        job.cancelled.set()
    submit(scheduler, 2, iter(()))
    assert all(isinstance(c.outcome, Cancelled) for _, c in waiting)
    gate.set()


class Panic(BaseException):
    """As what Python sees of a panic in Rust."""


def test_error_ends_its_own_job_only(scheduler: Scheduler) -> None:
    """An error and a defect end the job that had them; the next job runs."""

    def failing(error: BaseException) -> Iterator[int]:
        yield 1
        raise error

    refused = submit(scheduler, 1, failing(ContextTooLong("too long")))[1]
    broken = submit(scheduler, 1, failing(ZeroDivisionError("the patient's name")))[1]
    panicked = submit(scheduler, 1, failing(Panic()))[1]
    fine = submit(scheduler, 1, iter([1, 2]))[1]
    for c in (refused, broken, panicked, fine):
        assert c.done.wait(5)
    assert isinstance(refused.outcome, ContextTooLong)
    assert isinstance(broken.outcome, InternalError)
    assert isinstance(panicked.outcome, InternalError)
    assert "patient" not in broken.outcome.message
    assert (fine.steps, fine.outcome) == ([1, 2], None)


def test_closing_ends_everything() -> None:
    """Jobs under way end with `ShuttingDown`, and no new ones are taken."""
    scheduler = Scheduler(running=1, queued=4, per_caller=4)
    active = submit(scheduler, 1, iter(lambda: time.sleep(0.01) or 1, None))[1]
    waiting = submit(scheduler, 1, iter(()))[1]
    scheduler.close()
    assert isinstance(active.outcome, ShuttingDown)
    assert isinstance(waiting.outcome, ShuttingDown)
    with pytest.raises(ShuttingDown):
        submit(scheduler, 1, iter(()))


def test_silence_is_that_of_a_step_that_hangs(scheduler: Scheduler) -> None:
    """At rest there is no silence, while steps are finished hardly any; during a step that hangs it grows."""
    gate, hang = threading.Event(), threading.Event()
    assert scheduler.silent_s() == 0

    def steps() -> Iterator[int]:
        while not hang.is_set():
            time.sleep(0.01)
            yield 1
        gate.wait(20)

    _, job = submit(scheduler, 1, steps())
    time.sleep(0.5)
    assert min(scheduler.silent_s() for _ in range(100) if not time.sleep(0.005)) < 0.3  # a busy machine stops us too
    hang.set()
    end = time.monotonic() + 10
    while scheduler.silent_s() <= 0.3:
        assert time.monotonic() < end, "a step that hangs is not silent"
        time.sleep(0.05)
    _, other = submit(scheduler, 2, iter([1]))  # a request that comes now does not hide it
    assert scheduler.silent_s() > 0.3
    gate.set()
    assert job.done.wait(5)
    assert other.done.wait(5)
    wait_for(scheduler, running=0)
    assert scheduler.silent_s() == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_dead_thread_is_silent_for_ever() -> None:
    """If the engine's thread itself ends, no work will ever be done: the silence is infinite at once."""
    scheduler = Scheduler(running=1, queued=1, per_caller=1)

    def emit(step: object) -> None:
        raise SystemExit

    scheduler.submit([Job(1, iter([1]), emit)])
    scheduler._thread.join(5)
    assert scheduler.silent_s() == math.inf
    scheduler.close()
    assert scheduler.silent_s() < math.inf


class Passes:
    """Stands in for a session: notes which caches each pass was for, and takes a moment."""

    def __init__(self) -> None:
        self.passes: list[list[str]] = []

    def forward_together(self, wanted: list[Wanted]) -> list[np.ndarray]:
        self.passes.append([str(w.cache) for w in wanted])
        return [np.zeros((len(w.rows), 3), np.float32) for w in wanted]

    def answer(self, name: str, parts: int, tokens: int, gate: threading.Event | None = None) -> Iterator[str]:
        """An answer's steps: parts of its prompt, then tokens."""
        if gate:
            gate.wait(10)
        for count in [64] * parts + [1] * tokens:
            forward = Forward(self, name, np.zeros(count, np.int64), np.array([0]))  # type: ignore[arg-type]
            yield forward  # type: ignore[misc]
            assert not forward.finish()
            yield name


def run_together(*answers: tuple[int, str, int, int]) -> tuple[Passes, list[Collected]]:
    """Run answers that begin at once: caller, name, parts of the prompt, tokens."""
    scheduler, session, gate = Scheduler(running=8, queued=8, per_caller=8), Passes(), threading.Event()
    try:
        found = []
        hold = submit(scheduler, 99, blocked(gate))[1]
        for caller, name, parts, tokens in answers:
            found.append(submit(scheduler, caller, session.answer(name, parts, tokens, gate))[1])
        gate.set()
        assert all(c.done.wait(10) for c in [*found, hold])
    finally:
        scheduler.close()
    assert [c.outcome for c in found] == [None] * len(found)
    return session, found


def test_tokens_of_several_answers_are_one_pass() -> None:
    """They join and leave between two passes, and each gets its steps."""
    session, found = run_together((1, "a", 0, 3), (1, "b", 0, 1), (2, "c", 0, 2))
    assert [sorted(one) for one in session.passes] == [["a", "b", "c"], ["a", "c"], ["a"]]
    assert [c.steps for c in found] == [["a"] * 3, ["b"], ["c"] * 2]


def test_a_pass_has_one_part_of_a_prompt() -> None:
    """Others get a token for each part of it; of one caller's prompts the first is finished first."""
    session, _ = run_together((1, "a", 0, 4), (1, "b", 2, 1), (1, "c", 2, 0))
    assert [name for one in session.passes for name in one if name != "a"] == ["b", "b", "b", "c", "c"]
    assert session.passes.count(["a"]) == 3
    assert session.passes.count(["a", "b"]) == 1, "the answer goes on as soon as its prompt is done"


def test_callers_take_turns_with_their_prompts() -> None:
    """One caller's many prompts do not keep another's waiting."""
    session, _ = run_together((1, "a", 2, 0), (1, "b", 2, 0), (1, "c", 2, 0), (2, "d", 2, 0))
    order = [name for one in session.passes for name in one]
    assert order == ["a", "d", "a", "d", "b", "b", "c", "c"]


def test_a_prompt_that_waits_can_be_cancelled() -> None:
    """Without one part of it being computed."""
    scheduler, session, gate = Scheduler(running=8, queued=8, per_caller=8), Passes(), threading.Event()
    try:
        first = submit(scheduler, 1, session.answer("a", 3, 0, gate))[1]
        job, second = submit(scheduler, 1, session.answer("b", 3, 0))
        job.cancelled.set()
        gate.set()
        assert first.done.wait(10)
        assert second.done.wait(10)
    finally:
        scheduler.close()
    assert isinstance(second.outcome, Cancelled)
    assert session.passes == [["a"]] * 3


def test_a_long_prompt_is_not_kept_waiting_by_newcomers() -> None:
    """Callers who come one after the other with short prompts stand behind who waits already."""
    scheduler, session = Scheduler(running=8, queued=64, per_caller=8), Passes()
    try:
        gate = threading.Event()
        long = submit(scheduler, 1, session.answer("long", 8, 0, gate))[1]
        newcomers = iter(range(2, 400))

        def another(step: object = None) -> None:
            if step is None and not long.done.is_set() and (caller := next(newcomers, None)):
                scheduler.submit([Job(caller, session.answer("short", 1, 0), another)])

        for _ in range(6):
            another()
        gate.set()
        assert long.done.wait(20)
    finally:
        scheduler.close()
    order = [name for one in session.passes for name in one]
    assert order[: order.index("long") + 1 + 7 * 8].count("long") == 8, "every seventh part at least"


class Slots:
    """Counts caches that are held."""

    def __init__(self) -> None:
        self.held = 0

    def take(self) -> object:
        slots = self

        class Held:
            def __init__(self) -> None:
                slots.held += 1

            def __del__(self) -> None:
                slots.held -= 1

        return Held()


def test_a_scheduler_without_work_holds_no_job(scheduler: Scheduler) -> None:
    """A job holds whoever is told of its steps, and through them a model: an unloaded one must leave the memory."""
    job, told = submit(scheduler, 1, iter(["one", "two"]))
    assert told.done.wait(5)
    held = weakref.ref(job)
    del job, told
    for _ in range(500):
        if held() is None:
            break
        time.sleep(0.01)
    assert held() is None


def test_an_answer_that_ends_gives_its_cache_back_at_once(scheduler: Scheduler) -> None:
    """However it ends, whoever still holds the job or its error, and without the garbage collector."""
    slots, gate = Slots(), threading.Event()

    def fails() -> Iterator[str]:
        cache = slots.take()
        yield "one"
        raise ContextTooLong(f"cannot do it with {type(cache).__name__}")

    def waits() -> Iterator[Forward]:
        cache = slots.take()
        yield Forward(Passes(), cache, np.zeros(64, np.int64), np.array([0]))  # type: ignore[arg-type]
        raise AssertionError("it was cancelled")

    def holds() -> Iterator[int]:
        while not gate.wait(0.002):
            yield 1

    gc.collect()
    gc.disable()
    try:
        failed = submit(scheduler, 1, fails())[1]
        assert failed.done.wait(5)
        assert isinstance(failed.outcome, ContextTooLong)
        assert slots.held == 0
        other = submit(scheduler, 1, holds())[1]
        job, waiting = submit(scheduler, 2, waits())  # it is not computed as long as the other one goes on
        for _ in range(500):
            if job.forward is not None:
                break
            time.sleep(0.01)
        assert slots.held == 1
        job.cancelled.set()
        assert waiting.done.wait(5)
        assert slots.held == 0
        gate.set()
        assert other.done.wait(5)
    finally:
        gc.enable()
