"""The routes that infer: a request in, jobs through the scheduler, an answer out, whole or as a stream.

An answer is computed only as long as somebody waits for it: when the caller hangs up, its jobs are cancelled and not
one more step is computed.
"""

import asyncio
import collections
import concurrent.futures
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from appliance.api.body import read_json
from appliance.api.errors import error_body
from appliance.api.routes import caller_of
from appliance.config import Limits
from appliance.engine.completion import CompletionRequest, Delta, complete
from appliance.engine.forward import Forward
from appliance.engine.generate import Prefilled
from appliance.engine.scheduler import Job, Scheduler
from appliance.errors import Cancelled, InternalError, SkerryError, TooManyRequests
from appliance.inferenced.metrics import Metrics
from appliance.inferenced.models import Loaded, ModelHost
from appliance.inferenced.preferences import PreferenceStore, keep_breaks
from appliance.inferenced.requests import ChatRequest, TextRequest, prepare_chat, prepare_text, prompt_of
from appliance.inferenced.responses import DONE, Answer, Shape, event, timings

log = logging.getLogger("skerry.inferenced")

T = TypeVar("T")

TIMINGS_HEADER = "x-skerry-timings"
NOBODY = -1
"""The caller of what the daemon does by itself; no user has this number."""


@dataclass
class Run:
    """The jobs of one request, and what has come of them."""

    loaded: Loaded
    jobs: list[Job[Delta | Prefilled]]
    answers: list[Answer]
    steps: "asyncio.Queue[tuple[int, Delta | SkerryError | None]]"
    open: int

    async def next(self) -> tuple[int, Delta] | None:
        """Wait for the next step of any answer; None when all are complete.

        Raises:
            SkerryError: what ended a job.
        """
        while self.open:
            index, step = await self.steps.get()
            if isinstance(step, SkerryError):
                try:
                    raise step
                finally:
                    del step  # the error holds this frame, and would be held by it
            if step is None:
                self.open -= 1
                continue
            self.answers[index].add(step)
            return index, step
        return None

    def cancel(self) -> None:
        """Compute not one step more."""
        for job in self.jobs:
            job.cancelled.set()

    @property
    def queue_s(self) -> float:
        """How long the first job waited for its turn."""
        job = self.jobs[0]
        return (job.started or time.monotonic()) - job.submitted

    @property
    def timings(self) -> dict[str, Any]:
        """What it took."""
        return timings(self.answers, self.queue_s)


class Completions:
    """Handlers of the OpenAI routes."""

    def __init__(
        self,
        host: ModelHost,
        scheduler: Scheduler,
        limits: Limits,
        metrics: Metrics,
        preferences: PreferenceStore | None = None,
        *,
        shared_prefixes: bool = False,
    ) -> None:
        self.host = host
        self.limits = limits
        self.metrics = metrics
        self.preferences = preferences
        self._shared_prefixes = shared_prefixes
        self._scheduler = scheduler
        # One thread of its own: long prompts must not keep models from loading. And one caller's must not pile up.
        self._tokenizing = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="tokenize")
        self._preparing: collections.Counter[int] = collections.Counter()

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        body = await self._read(request, ChatRequest)
        loaded = await self.host.get(body.model, chat=True)
        with loaded.in_use():
            prepared = await self.prepare(request, lambda: prepare_chat(body, loaded))
            shape = Shape(loaded, chat=True, logprobs=bool(body.logprobs), plan=prepared.plan)
            return await self._answer(request, body, loaded, prepared.jobs, shape)

    async def text(self, request: Request) -> Response:
        """POST /v1/completions."""
        body = await self._read(request, TextRequest)
        loaded = await self.host.get(body.model)
        with loaded.in_use():
            prepared = await self.prepare(request, lambda: prepare_text(body, loaded))
            shape = Shape(loaded, chat=False, logprobs=body.logprobs is not None, plan=prepared.plan)
            return await self._answer(request, body, loaded, prepared.jobs, shape)

    async def prepare(self, request: Request, make: Callable[[], T]) -> T:
        """Tokenize a request in turn, within the caller's limit.

        Args:
            request: whose.
            make: does the work, in the thread that tokenizes.
        """
        uid = caller_of(request).uid
        if self._preparing[uid] >= self.limits.per_caller:
            raise TooManyRequests(
                f"cannot take one more: uid {uid} has {self._preparing[uid]} prompts being read", retry_after_s=1
            )
        self._preparing[uid] += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._tokenizing, make)
        finally:
            self._preparing[uid] -= 1
            if not self._preparing[uid]:
                del self._preparing[uid]

    def owner(self, request: Request) -> str:
        """Whose beginnings of prompts a request may use again, and who may use this one's."""
        return "" if self._shared_prefixes else f"uid {caller_of(request).uid}"

    async def _read(self, request: Request, to: type[T]) -> T:
        limits = self.limits
        return await read_json(request, to, limit_bytes=limits.body_bytes, timeout_s=limits.body_timeout_s)

    async def _answer(
        self,
        request: Request,
        body: ChatRequest | TextRequest,
        loaded: Loaded,
        wanted: list[CompletionRequest],
        shape: Shape,
    ) -> Response:
        owner = self.owner(request)
        steps = [complete(loaded.session, loaded.words, replace(one, owner=owner)) for one in wanted]
        run = self._start(loaded, steps, caller_of(request).uid)
        try:
            if not body.stream:
                await _while_connected(request, _drain(run))
                self._completed(run, body)
                # A form is judged again here, which can take milliseconds.
                with self._judging(loaded.name):
                    answer = await asyncio.to_thread(shape.whole, run.answers, run.timings)
                return JSONResponse(answer)
            # The first step comes before the headers, so that what fails early still has a status of its own.
            first = await _while_connected(request, run.next())
        except BaseException:
            run.cancel()
            raise
        include_usage = body.stream_options is not None and body.stream_options.include_usage
        closing = include_usage or request.headers.get(TIMINGS_HEADER) == "1"
        chunks = self._stream(run, shape, first, {"usage": None} if include_usage else {}, closing, body)
        return StreamingResponse(chunks, media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    def warm(self, loaded: Loaded, steps: Iterator[Forward | Prefilled]) -> None:
        """Have steps computed that nobody waits for, in turn with what callers ask."""

        def emit(step: Prefilled | SkerryError | None) -> None:
            if isinstance(step, SkerryError):
                log.info("not all beginnings of tasks are read: %s", step.kind)
            if not isinstance(step, Prefilled):
                loaded.release()

        loaded.retain()
        try:
            self._scheduler.submit([Job(NOBODY, steps, emit, asked=False)])
        except SkerryError:
            loaded.release()

    async def compute(self, request: Request, loaded: Loaded, steps: Iterator[Delta | Forward | Prefilled]) -> float:
        """Have steps computed for as long as the caller waits.

        Returns:
            Seconds that they waited for their turn.
        """
        run = self._start(loaded, [steps], caller_of(request).uid)
        try:
            await _while_connected(request, _drain(run))
        except BaseException:
            run.cancel()
            raise
        return run.queue_s

    def _completed(self, run: Run, body: ChatRequest | TextRequest) -> None:
        """Count a complete request, and keep what its broken loops teach, if the site wants that."""
        self.metrics.completed(run.loaded.name, [a.usage for a in run.answers if a.usage], run.queue_s)
        if self.preferences is None or body.store is False or not any(a.breaks for a in run.answers):
            return
        prompt = prompt_of(body)
        if prompt is not None:
            for answer in run.answers:
                keep_breaks(self.preferences, prompt, answer, run.loaded)

    @contextlib.contextmanager
    def _judging(self, name: str) -> Iterator[None]:
        """Count an answer that turns out to be a defect when it is read; its job has ended as done."""
        try:
            yield
        except InternalError as e:
            self.metrics.ended(name, e)
            raise

    def _start(self, loaded: Loaded, steps: list[Iterator[Delta | Forward | Prefilled]], uid: int) -> Run:
        loop, said = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Delta | SkerryError | None]]()

        def emitter(index: int) -> Callable[[Delta | Prefilled | SkerryError | None], None]:
            def emit(step: Delta | Prefilled | SkerryError | None) -> None:
                if isinstance(step, Prefilled):
                    return
                for done in step.breaks if isinstance(step, Delta) else ():
                    self.metrics.broke(loaded.name, done)
                    log.info(
                        "loop in an answer of %s: %s, period %d, %.1f copies, found at token %d, %d taken back: %s",
                        *(loaded.name, done.kind, done.period, done.copies, done.at, done.rewound, done.rung),
                    )
                if not isinstance(step, Delta):
                    loaded.release()
                    self.metrics.ended(loaded.name, step)
                with contextlib.suppress(RuntimeError):  # the loop has ended before the engine's thread
                    loop.call_soon_threadsafe(said.put_nowait, (index, step))

            return emit

        jobs: list[Job[Delta | Prefilled]] = [Job(uid, one, emitter(index)) for index, one in enumerate(steps)]
        for _ in jobs:
            loaded.retain()
        try:
            self._scheduler.submit(jobs)
        except SkerryError:
            for _ in jobs:
                loaded.release()
            raise
        loaded.requests += 1
        return Run(loaded, jobs, [Answer() for _ in jobs], said, len(jobs))

    async def _stream(
        self,
        run: Run,
        shape: Shape,
        first: tuple[int, Delta] | None,
        usage: dict[str, None],
        closing: bool,
        body: ChatRequest | TextRequest,
    ) -> AsyncIterator[bytes]:
        try:
            for index in range(len(run.jobs)):
                for chunk in shape.opening(index, usage):
                    yield event(chunk)
            step = first
            while step is not None:
                with self._judging(run.loaded.name):
                    if shape.judges(step[1]):
                        chunks = await asyncio.to_thread(shape.piece, *step, usage)
                    else:
                        chunks = shape.piece(*step, usage)
                for chunk in chunks:
                    yield event(chunk)
                step = await run.next()
            self._completed(run, body)
            if closing:
                yield event(shape.closing(run.answers, run.timings))
            yield DONE
        except SkerryError as e:
            yield event(error_body(e))
        finally:
            run.cancel()


async def _drain(run: Run) -> None:
    while await run.next() is not None:
        pass


async def _while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Wait for `work`, but only as long as the caller does.

    Raises:
        Cancelled: the caller hung up first.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise Cancelled("the caller hung up")
    finally:
        for task in (working, watching):
            task.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
