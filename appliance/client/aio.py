"""The asynchronous client: the same names as `appliance.client.client.Client`, to be awaited.

async with AsyncClient() as skerry:
    async with skerry.stream_chat("Which pump feeds tank 4?") as stream:
        async for piece in stream:
            print(piece.text, end="")
"""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from appliance.client import protocol
from appliance.client.client import DEFAULT_TIMEOUT_S, default_socket
from appliance.client.protocol import Call, Messages
from appliance.client.types import Answer, Health, ModelInfo, Options, Piece, Status, TaskInfo, TaskList, TaskResult

if TYPE_CHECKING:
    from appliance.client.transport import AsyncBody, AsyncTransport

T = TypeVar("T")


class AsyncClient:
    """Talks to the inference daemon of this machine, from a coroutine. Arguments and errors: as `Client`."""

    def __init__(self, socket: Path | None = None, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        from appliance.client.transport import AsyncTransport  # see there why not at the top

        self._transport = AsyncTransport(Path(socket or default_socket()), timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections; requests under way are cancelled."""
        await self._transport.close()

    async def chat(self, messages: Messages, model: str | None = None, **options: Unpack[Options]) -> Answer:
        """Ask for the next turn of a conversation; without a model, the only one that can chat."""
        return await self._do(protocol.chat(messages, model, options))

    async def complete(self, prompt: str, model: str | None = None, **options: Unpack[Options]) -> Answer:
        """Ask for the continuation of a text, without a chat template."""
        return await self._do(protocol.complete(prompt, model, options))

    def stream_chat(self, messages: Messages, model: str | None = None, **options: Unpack[Options]) -> "AsyncStream":
        """As `chat`, piece by piece."""
        return AsyncStream(self._transport, protocol.chat(messages, model, options, stream=True))

    def stream(self, prompt: str, model: str | None = None, **options: Unpack[Options]) -> "AsyncStream":
        """As `complete`, piece by piece."""
        return AsyncStream(self._transport, protocol.complete(prompt, model, options, stream=True))

    async def models(self) -> tuple[ModelInfo, ...]:
        """All installed models, refused ones with the reason."""
        return await self._do(protocol.models())

    async def model(self, name: str) -> ModelInfo:
        """One installed model."""
        return await self._do(protocol.model(name))

    async def model_ids(self) -> tuple[str, ...]:
        """The names that requests may use."""
        return await self._do(protocol.model_ids())

    async def load(self, name: str) -> ModelInfo:
        """Verify a model and load it; returns when it is ready."""
        return await self._do(protocol.act_on_model(name, "load"))

    async def unload(self, name: str) -> ModelInfo:
        """Take a model out of memory."""
        return await self._do(protocol.act_on_model(name, "unload"))

    async def verify(self, name: str) -> ModelInfo:
        """Have the daemon verify the files of a model, without loading it."""
        return await self._do(protocol.act_on_model(name, "verify"))

    async def task_list(self) -> TaskList:
        """All installed tasks, and the files that hold none."""
        return await self._do(protocol.task_list())

    async def tasks(self) -> tuple[TaskInfo, ...]:
        """All installed tasks."""
        return (await self.task_list()).tasks

    async def run_task(
        self, name: str, text: str, *, sources: Sequence[str] = (), model: str | None = None
    ) -> TaskResult:
        """Give a task an input; the result says which verifiers it passed."""
        return await self._do(protocol.run_task(name, text, sources, model))

    async def status(self) -> Status:
        """The daemon at a glance."""
        return await self._do(protocol.status())

    async def health(self) -> Health:
        """Whether the daemon takes requests."""
        return await self._do(protocol.health())

    async def metrics(self) -> str:
        """The daemon's counters, in Prometheus' text format."""
        return await self._do(protocol.metrics())

    async def _do(self, call: Call[T]) -> T:
        return call.read(await self._transport.send(call))


class AsyncStream:
    """An answer that arrives in pieces. `answer` is what has arrived so far, and after the last piece the whole."""

    def __init__(self, transport: "AsyncTransport", call: Call[Any]) -> None:
        self._transport, self._call = transport, call
        self._reader = protocol.StreamReader()
        self._body: AsyncBody | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        await self._open()
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        await self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Piece:
        try:
            while (piece := self._reader.next_piece()) is None:
                if self._reader.done or self._closed:
                    raise StopAsyncIteration
                chunk = await anext(await self._open(), None)
                if chunk is None:
                    self._reader.end()
                else:
                    self._reader.push(chunk)
        except BaseException:
            await self.close()
            raise
        return piece

    @property
    def answer(self) -> Answer:
        """The text, the counts and the times that have arrived."""
        return self._reader.answer

    async def close(self) -> None:
        """Stop the model, if it is not done."""
        self._closed = True
        if self._body is not None:
            await self._body.close()

    async def _open(self) -> "AsyncBody":
        from appliance.client.transport import AsyncBody

        if self._body is None:
            self._body = AsyncBody(self._transport, self._call, await self._transport.open(self._call))
            if self._body.status != 200:
                async with self._body as body:
                    data = b"".join([chunk async for chunk in body])
                    protocol.raise_error(protocol.Reply(body.status, body.headers, data))
        return self._body
