"""The blocking client.

    with Client() as skerry:
        print(skerry.chat("Which pump feeds tank 4?").text)
        with skerry.stream_chat("And which valve?") as stream:
            for piece in stream:
                print(piece.text, end="")
        print(stream.answer.timings)

A stream sends its request when its block is entered or its first piece is asked for; leaving the block early stops the
model. A client may be shared by threads; a stream may not.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from appliance.client import protocol
from appliance.client.protocol import Call, Messages
from appliance.client.types import Answer, Health, ModelInfo, Options, Piece, Status, TaskInfo, TaskList, TaskResult

if TYPE_CHECKING:
    from appliance.client.transport import Body, Transport

T = TypeVar("T")
DEFAULT_SOCKET = Path("/run/skerry/inference.sock")
DEFAULT_TIMEOUT_S = 600.0


def default_socket() -> Path:
    """The socket that `SKERRY_SOCKET` names, or the box's own."""
    return Path(os.environ.get("SKERRY_SOCKET") or DEFAULT_SOCKET)


class Client:
    """Talks to the inference daemon of this machine.

    Args:
        socket: the Unix socket; None takes `default_socket()`.
        timeout_s: the longest silence to bear. A streamed answer may take longer in all, while it keeps coming; one
            that is not streamed is silent until it is complete.
    Raises:
        SkerryError: every method raises the daemon's error as the class of its kind; `DaemonUnreachable` and
            `DaemonTimeout` are the client's own.
    """

    def __init__(self, socket: Path | None = None, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        from appliance.client.transport import Transport  # see there why not at the top

        self._transport = Transport(Path(socket or default_socket()), timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; requests under way are cancelled."""
        self._transport.close()

    def chat(self, messages: Messages, model: str | None = None, **options: Unpack[Options]) -> Answer:
        """Ask for the next turn of a conversation; without a model, the only one that can chat."""
        return self._do(protocol.chat(messages, model, options))

    def complete(self, prompt: str, model: str | None = None, **options: Unpack[Options]) -> Answer:
        """Ask for the continuation of a text, without a chat template."""
        return self._do(protocol.complete(prompt, model, options))

    def stream_chat(self, messages: Messages, model: str | None = None, **options: Unpack[Options]) -> "Stream":
        """As `chat`, piece by piece."""
        return Stream(self._transport, protocol.chat(messages, model, options, stream=True))

    def stream(self, prompt: str, model: str | None = None, **options: Unpack[Options]) -> "Stream":
        """As `complete`, piece by piece."""
        return Stream(self._transport, protocol.complete(prompt, model, options, stream=True))

    def models(self) -> tuple[ModelInfo, ...]:
        """All installed models, refused ones with the reason."""
        return self._do(protocol.models())

    def model(self, name: str) -> ModelInfo:
        """One installed model."""
        return self._do(protocol.model(name))

    def model_ids(self) -> tuple[str, ...]:
        """The names that requests may use."""
        return self._do(protocol.model_ids())

    def load(self, name: str) -> ModelInfo:
        """Verify a model and load it; returns when it is ready."""
        return self._do(protocol.act_on_model(name, "load"))

    def unload(self, name: str) -> ModelInfo:
        """Take a model out of memory."""
        return self._do(protocol.act_on_model(name, "unload"))

    def verify(self, name: str) -> ModelInfo:
        """Have the daemon verify the files of a model, without loading it."""
        return self._do(protocol.act_on_model(name, "verify"))

    def task_list(self) -> TaskList:
        """All installed tasks, and the files that hold none."""
        return self._do(protocol.task_list())

    def tasks(self) -> tuple[TaskInfo, ...]:
        """All installed tasks."""
        return self.task_list().tasks

    def run_task(self, name: str, text: str, *, sources: Sequence[str] = (), model: str | None = None) -> TaskResult:
        """Give a task an input; the result says which verifiers it passed."""
        return self._do(protocol.run_task(name, text, sources, model))

    def status(self) -> Status:
        """The daemon at a glance."""
        return self._do(protocol.status())

    def health(self) -> Health:
        """Whether the daemon takes requests."""
        return self._do(protocol.health())

    def metrics(self) -> str:
        """The daemon's counters, in Prometheus' text format."""
        return self._do(protocol.metrics())

    def _do(self, call: Call[T]) -> T:
        return call.read(self._transport.send(call))


class Stream:
    """An answer that arrives in pieces. `answer` is what has arrived so far, and after the last piece the whole."""

    def __init__(self, transport: "Transport", call: Call[Any]) -> None:
        self._transport, self._call = transport, call
        self._reader = protocol.StreamReader()
        self._body: Body | None = None
        self._closed = False

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Piece:
        try:
            while (piece := self._reader.next_piece()) is None:
                if self._reader.done or self._closed:
                    raise StopIteration
                chunk = next(self._open(), None)
                if chunk is None:
                    self._reader.end()
                else:
                    self._reader.push(chunk)
        except BaseException:
            self.close()
            raise
        return piece

    @property
    def answer(self) -> Answer:
        """The text, the counts and the times that have arrived."""
        return self._reader.answer

    def close(self) -> None:
        """Stop the model, if it is not done."""
        self._closed = True
        if self._body is not None:
            self._body.close()

    def _open(self) -> "Body":
        from appliance.client.transport import Body

        if self._body is None:
            self._body = Body(self._transport, self._call)
            if self._body.status != 200:
                with self._body as body:
                    protocol.raise_error(protocol.Reply(body.status, body.headers, b"".join(body)))
        return self._body
