"""The routes that infer: a request in, jobs through the scheduler, an answer out, whole or as a stream.

An answer is computed only as long as somebody waits for it: when the caller hangs up, its jobs are cancelled and not
one more step is computed.
"""

import asyncio
import collections
import concurrent.futures
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from appliance.api.body import read_json
from appliance.api.errors import error_body
from appliance.api.routes import caller_of
from appliance.config import Limits
from appliance.engine.completion import CompletionRequest, Delta, complete
from appliance.engine.generate import Prefilled
from appliance.engine.scheduler import Job, Scheduler
from appliance.errors import Cancelled, SkerryError, TooManyRequests
from appliance.inferenced.metrics import Metrics
from appliance.inferenced.models import Loaded, ModelHost
from appliance.inferenced.requests import ChatRequest, TextRequest, chat_jobs, text_jobs
from appliance.inferenced.responses import DONE, Answer, Shape, event, timings

T = TypeVar("T")
B = TypeVar("B", ChatRequest, TextRequest)

TIMINGS_HEADER = "x-skerry-timings"


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
                raise step
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

    def __init__(self, host: ModelHost, scheduler: Scheduler, limits: Limits, metrics: Metrics) -> None:
        self._host = host
        self._scheduler = scheduler
        self._limits = limits
        self._metrics = metrics
        # One thread of its own: long prompts must not keep models from loading. And one caller's must not pile up.
        self._tokenizing = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="tokenize")
        self._preparing: collections.Counter[int] = collections.Counter()

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        body = await self._read(request, ChatRequest)
        loaded = await self._host.get(body.model, chat=True)
        wanted = await self._prepare(request, chat_jobs, body, loaded)
        return await self._answer(request, body, loaded, wanted, Shape(loaded, chat=True, logprobs=bool(body.logprobs)))

    async def text(self, request: Request) -> Response:
        """POST /v1/completions."""
        body = await self._read(request, TextRequest)
        loaded = await self._host.get(body.model)
        wanted = await self._prepare(request, text_jobs, body, loaded)
        shape = Shape(loaded, chat=False, logprobs=body.logprobs is not None)
        return await self._answer(request, body, loaded, wanted, shape)

    async def _prepare(
        self, request: Request, make: Callable[[B, Loaded], list[CompletionRequest]], body: B, loaded: Loaded
    ) -> list[CompletionRequest]:
        """Tokenize a request in turn, within the caller's limit."""
        uid = caller_of(request).uid
        if self._preparing[uid] >= self._limits.per_caller:
            raise TooManyRequests(
                f"cannot take one more: uid {uid} has {self._preparing[uid]} prompts being read", retry_after_s=1
            )
        self._preparing[uid] += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._tokenizing, make, body, loaded)
        finally:
            self._preparing[uid] -= 1
            if not self._preparing[uid]:
                del self._preparing[uid]

    async def _read(self, request: Request, to: type[T]) -> T:
        limits = self._limits
        return await read_json(request, to, limit_bytes=limits.body_bytes, timeout_s=limits.body_timeout_s)

    async def _answer(
        self,
        request: Request,
        body: ChatRequest | TextRequest,
        loaded: Loaded,
        wanted: list[CompletionRequest],
        shape: Shape,
    ) -> Response:
        run = self._start(loaded, wanted, caller_of(request).uid)
        try:
            if not body.stream:
                await _while_connected(request, _drain(run))
                self._metrics.completed(run)
                return JSONResponse(shape.whole(run.answers, run.timings))
            # The first step comes before the headers, so that what fails early still has a status of its own.
            first = await _while_connected(request, run.next())
        except BaseException:
            run.cancel()
            raise
        include_usage = body.stream_options is not None and body.stream_options.include_usage
        closing = include_usage or request.headers.get(TIMINGS_HEADER) == "1"
        chunks = self._stream(run, shape, first, {"usage": None} if include_usage else {}, closing)
        return StreamingResponse(chunks, media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    def _start(self, loaded: Loaded, wanted: list[CompletionRequest], uid: int) -> Run:
        loop, steps = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Delta | SkerryError | None]]()

        def emitter(index: int) -> Callable[[Delta | Prefilled | SkerryError | None], None]:
            def emit(step: Delta | Prefilled | SkerryError | None) -> None:
                if isinstance(step, Prefilled):
                    return
                if not isinstance(step, Delta):
                    loaded.release()
                    self._metrics.ended(loaded.name, step)
                with contextlib.suppress(RuntimeError):  # the loop has ended before the engine's thread
                    loop.call_soon_threadsafe(steps.put_nowait, (index, step))

            return emit

        jobs = [
            Job(uid, complete(loaded.session, loaded.tokenizer, one), emitter(index))
            for index, one in enumerate(wanted)
        ]
        for _ in jobs:
            loaded.retain()
        try:
            self._scheduler.submit(jobs)
        except SkerryError:
            for _ in jobs:
                loaded.release()
            raise
        loaded.requests += 1
        return Run(loaded, jobs, [Answer() for _ in jobs], steps, len(jobs))

    async def _stream(
        self, run: Run, shape: Shape, first: tuple[int, Delta] | None, usage: dict[str, None], closing: bool
    ) -> AsyncIterator[bytes]:
        try:
            for index in range(len(run.jobs)):
                for chunk in shape.opening(index, usage):
                    yield event(chunk)
            step = first
            while step is not None:
                for chunk in shape.piece(*step, usage):
                    yield event(chunk)
                step = await run.next()
            self._metrics.completed(run)
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
