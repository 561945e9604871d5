"""Requests to bytes, answers to values: all that the two clients share, without a socket.

A `Call` is a request with the function that reads its reply. `StreamReader` takes the bytes of a streamed answer, cut
anywhere, and yields pieces. Both are pure, so a test feeds them by hand.

What this does NOT protect against: a process other than the daemon behind the socket can answer anything that is well
formed. Access to the socket's folder is what keeps others out.

Source: OpenAI's API reference (chat completions, completions); WHATWG HTML, server-sent events, section 9.2.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NoReturn, TypeVar
from urllib.parse import quote

import msgspec

from appliance import typed
from appliance.client.types import (
    Answer,
    CallLoop,
    Choice,
    Health,
    Loop,
    LoopBreak,
    Message,
    ModelInfo,
    Options,
    Piece,
    Status,
    Structure,
    TaskList,
    TaskResult,
    Timings,
    ToolCall,
    Usage,
)
from appliance.errors import DaemonUnreachable, InvalidRequest, TaskNotFound, error_class

T = TypeVar("T")
Messages = str | Sequence[Message | Mapping[str, Any]]
"""A conversation, or the text of its only, user's, turn."""

MAX_REPLY_BYTES = 64 << 20
MAX_EVENT_BYTES = 8 << 20
QUICK_S = 30.0
NOT_THE_DAEMON = "check which process listens there, and that client and daemon are of the same release"


@dataclass(frozen=True)
class Reply:
    """One whole HTTP answer; header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request, and how to read its reply."""

    method: str
    path: str
    read: Callable[[Reply], T]
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    quick: bool = False
    """The daemon answers this from memory: more than `QUICK_S` of silence is a fault, whatever the client's limit."""


# --- requests ---------------------------------------------------------------------------------------------------------


def chat(messages: Messages, model: str | None, options: Options, *, stream: bool = False) -> Call[Answer]:
    """Ask for the next turn of a conversation."""
    turns = [Message("user", messages)] if isinstance(messages, str) else list(messages)
    return _generate("/v1/chat/completions", {"messages": turns}, model, options, stream)


def complete(prompt: str, model: str | None, options: Options, *, stream: bool = False) -> Call[Answer]:
    """Ask for the continuation of a text, without a chat template."""
    return _generate("/v1/completions", {"prompt": prompt}, model, options, stream)


def _generate(path: str, body: dict[str, Any], model: str | None, options: Options, stream: bool) -> Call[Answer]:
    if model is not None:
        body["model"] = model
    body |= options
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    headers = {"content-type": "application/json", "x-skerry-timings": "1"}
    return Call("POST", path, read_answer, _encode(body), headers)


def _encode(body: dict[str, Any]) -> bytes:
    for name, value in body.items():
        if isinstance(value, float) and not math.isfinite(
            value
        ):  # JSON would carry it as null, which means the default
            raise InvalidRequest(f"cannot send the request: {name} is {value}, expected a finite number", param=name)
    try:
        return msgspec.json.encode(body)
    except UnicodeEncodeError as e:  # half of a surrogate pair: what Python makes of bytes that are not UTF-8
        raise InvalidRequest(
            "cannot send the request: the text has characters that UTF-8 cannot carry",
            hint="is the input really text in UTF-8?",
        ) from e


def status() -> Call[Status]:
    """Ask for the daemon at a glance."""
    return Call("GET", "/skerry/v1/status", _reader(Status), quick=True)


def health() -> Call[Health]:
    """Ask whether the daemon takes requests; draining is an answer, not an error."""
    return Call("GET", "/healthz", _read_health, quick=True)


def metrics() -> Call[str]:
    """Ask for the counters in Prometheus' text format."""
    return Call("GET", "/metrics", _read_text, quick=True)


def models() -> Call[tuple[ModelInfo, ...]]:
    """Ask for all installed models, refused ones included."""
    return Call("GET", "/skerry/v1/models", lambda reply: _reader(_Models)(reply).models, quick=True)


def model_ids() -> Call[tuple[str, ...]]:
    """Ask for the names that requests may use; every client's role suffices."""
    return Call("GET", "/v1/models", lambda reply: tuple(m.id for m in _reader(_ModelIds)(reply).data), quick=True)


def model(name: str) -> Call[ModelInfo]:
    """Ask for one installed model."""
    return Call("GET", _model_path(name), _reader(ModelInfo), quick=True)


def task_list() -> Call[TaskList]:
    """Ask for all installed tasks, and for the files that hold none."""
    return Call("GET", "/skerry/v1/tasks", _reader(TaskList), quick=True)


def run_task(name: str, text: str, sources: Sequence[str], model: str | None) -> Call[TaskResult]:
    """Ask for the result of a task."""
    if name in ("", ".", "..") or "/" in name:  # another path than a task's, whatever quotes it
        raise TaskNotFound(
            f"cannot run task {name!r}: it is not installed",
            hint="list the tasks with: skerry task list",
            param="task",
        )
    body: dict[str, Any] = {"input": text}
    body |= {"sources": sources} if sources else {}
    body |= {"model": model} if model is not None else {}
    headers = {"content-type": "application/json"}
    return Call("POST", f"/skerry/v1/tasks/{quote(name, safe='')}", _reader(TaskResult), _encode(body), headers)


def act_on_model(name: str, verb: str) -> Call[ModelInfo]:
    """Load, unload or verify a model."""
    return Call("POST", f"{_model_path(name)}/{verb}", _reader(ModelInfo))


def _model_path(name: str) -> str:
    if name in ("", ".", ".."):
        raise InvalidRequest(f"cannot use model {name!r}: expected the name of an installed model", param="model")
    return f"/skerry/v1/models/{quote(name, safe='')}"


# --- replies ----------------------------------------------------------------------------------------------------------


# RecursionError: JSON nested deeper than Python's stack.
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _WireError(msgspec.Struct, frozen=True):
    message: str = ""
    kind: str | None = None
    code: str | int | None = None
    hint: str | None = None
    param: str | None = None


class _WireMessage(msgspec.Struct, frozen=True):
    content: str | None = None
    tool_calls: tuple[ToolCall, ...] | None = None


class _WireVerdict(msgspec.Struct, frozen=True):
    structure: Structure | None = None


class _WireChoice(msgspec.Struct, frozen=True):
    index: int = 0
    text: str | None = None
    message: _WireMessage | None = None
    delta: _WireMessage | None = None
    finish_reason: str | None = None
    logprobs: dict[str, Any] | None = None
    loop: Loop | None = None
    skerry: _WireVerdict | None = None

    def piece(self) -> Piece:
        said = self.message or self.delta
        return Piece(
            text=(said.content if said else self.text) or "",
            finish_reason=self.finish_reason,
            index=self.index,
            logprobs=self.logprobs,
            tool_calls=(said.tool_calls if said else None) or (),
            loop=self.loop,
            structure=self.skerry.structure if self.skerry else None,
        )


class _WireExtra(msgspec.Struct, frozen=True):
    timings: Timings | None = None


class _Wire(msgspec.Struct, frozen=True):
    """Chat or completion, whole or a chunk, or an error: the fields never clash."""

    id: str = ""
    model: str = ""
    choices: tuple[_WireChoice, ...] = ()
    usage: Usage | None = None
    skerry: _WireExtra | None = None
    error: _WireError | None = None


class _Models(msgspec.Struct, frozen=True):
    models: tuple[ModelInfo, ...]


class _ModelId(msgspec.Struct, frozen=True):
    id: str


class _ModelIds(msgspec.Struct, frozen=True):
    data: tuple[_ModelId, ...]


class _WireErrorBody(msgspec.Struct, frozen=True):
    error: _WireError


def read_answer(reply: Reply) -> Answer:
    """Read a whole chat or completion."""
    wire = _reader(_Wire)(reply)
    if not wire.choices:
        raise DaemonUnreachable("cannot read the answer: it has no choices, expected at least one", hint=NOT_THE_DAEMON)
    return Answer(
        choices=tuple(_choice(c.piece()) for c in sorted(wire.choices, key=lambda c: c.index)),
        model=wire.model,
        id=wire.id,
        usage=wire.usage,
        timings=wire.skerry.timings if wire.skerry else None,
    )


def _choice(piece: Piece) -> Choice:
    return Choice(**{name: getattr(piece, name) for name in piece.__struct_fields__})


def _reader(kind: type[T]) -> Callable[[Reply], T]:
    return lambda reply: _decode(_checked(reply).body, kind)


def _read_text(reply: Reply) -> str:
    return _checked(reply).body.decode("utf-8", "replace")


def _read_health(reply: Reply) -> Health:
    if reply.status == 503:
        try:
            return typed.decode(reply.body, Health)
        except _UNREADABLE:
            pass
    return _decode(_checked(reply).body, Health)


def _decode(data: bytes, kind: type[T]) -> T:
    try:
        return typed.decode(data, kind)
    except _UNREADABLE as e:
        raise DaemonUnreachable(f"cannot understand the answer on the socket: {e}", hint=NOT_THE_DAEMON) from e


def _checked(reply: Reply) -> Reply:
    if not 200 <= reply.status < 300:
        raise_error(reply)
    return reply


def raise_error(reply: Reply) -> NoReturn:
    """Raise the error that a reply carries, as the class of its kind."""
    try:
        error = typed.decode(reply.body, _WireErrorBody).error
    except _UNREADABLE:
        raise DaemonUnreachable(
            f"cannot talk to the daemon: what answers is not Skerry (HTTP {reply.status} without an error of its kind)",
            hint=NOT_THE_DAEMON,
        ) from None
    _raise(error, _seconds(reply.headers.get("retry-after")))


def _raise(error: _WireError, retry_after_s: float | None = None) -> NoReturn:
    kind = error.kind or str(error.code or "error")
    raise error_class(kind)(
        error.message or f"the daemon reports: {kind}",
        hint=error.hint,
        param=error.param,
        retry_after_s=retry_after_s,
    )


def _seconds(text: str | None) -> float | None:
    return float(text) if text and text.isascii() and text.isdigit() and len(text) < 10 else None


# --- streams ----------------------------------------------------------------------------------------------------------


class EventParser:
    """Server-sent events out of bytes that may be cut anywhere. Only `data` matters here; the rest is skipped."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._size = 0

    def push(self, chunk: bytes) -> list[bytes]:
        """Take bytes; return the data of the events that they completed."""
        # A carriage return alone, which the standard also allows as line end, is not sent by the daemon.
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        events = [data for line in lines if (data := self._take(line.removesuffix(b"\r"))) is not None]
        if len(self._rest) + self._size > MAX_EVENT_BYTES:
            raise DaemonUnreachable(
                f"cannot read the answer: an event of more than {MAX_EVENT_BYTES} bytes", hint=NOT_THE_DAEMON
            )
        return events

    def _take(self, line: bytes) -> bytes | None:
        if line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
            self._size += len(line)
        elif not line and self._data:
            event = b"\n".join(self._data)
            self._data, self._size = [], 0
            return event
        return None


class StreamReader:
    """One streamed answer: bytes in, pieces out, and in the end the whole.

    `done` turns true at the end mark. An error that the daemon sends in the stream is raised by `next_piece`, after the
    pieces that came before it.
    """

    def __init__(self) -> None:
        self._events = EventParser()
        self._pieces: deque[Piece] = deque()
        self._choices: dict[int, _Growing] = {}
        self._error: _WireError | None = None
        self._id = self._model = ""
        self._usage: Usage | None = None
        self._timings: Timings | None = None
        self.done = False

    def push(self, chunk: bytes) -> None:
        """Take bytes of the body."""
        for data in self._events.push(chunk):
            if self.done or self._error:
                return
            if data == b"[DONE]":
                self.done = True
            else:
                self._take(_decode(data, _Wire))

    def next_piece(self) -> Piece | None:
        """Take the next piece; None if more bytes are needed or the answer is complete."""
        if self._pieces:
            return self._pieces.popleft()
        if self._error:
            _raise(self._error)
        return None

    def end(self) -> None:
        """Say that no more bytes come.

        Raises:
            DaemonUnreachable: the end mark is missing: the answer is not complete.
        """
        if not self.done:
            raise DaemonUnreachable(
                "cannot finish the answer: the daemon closed the connection before its end",
                hint="look for the reason with: journalctl -u skerry-inferenced; then ask again",
            )

    @property
    def answer(self) -> Answer:
        """What has arrived so far, as one value."""
        choices = tuple(self._choices[i].choice(i) for i in sorted(self._choices)) or (Choice(),)
        return Answer(choices=choices, model=self._model, id=self._id, usage=self._usage, timings=self._timings)

    def _take(self, wire: _Wire) -> None:
        if wire.error:
            self._error = wire.error
            return
        self._id, self._model = wire.id or self._id, wire.model or self._model
        self._usage = wire.usage or self._usage
        self._timings = (wire.skerry and wire.skerry.timings) or self._timings
        for c in wire.choices:
            piece = c.piece()
            self._choices.setdefault(c.index, _Growing()).add(piece)
            if piece.text or piece.finish_reason or piece.logprobs or piece.tool_calls or piece.loop:
                self._pieces.append(piece)


@dataclass
class _Growing:
    """A choice while its pieces come in."""

    texts: list[str] = field(default_factory=list)
    finish_reason: str | None = None
    logprobs: dict[str, list[Any]] = field(default_factory=dict)
    tool_calls: list[ToolCall] = field(default_factory=list)
    loops: list[Loop] = field(default_factory=list)
    structure: Structure | None = None

    def add(self, piece: Piece) -> None:
        self.texts.append(piece.text)
        self.finish_reason = piece.finish_reason or self.finish_reason
        self.tool_calls += piece.tool_calls
        self.loops += [piece.loop] if piece.loop else []
        self.structure = piece.structure or self.structure
        # Chats and completions name the lists differently; both mean one entry a token.
        for name, entries in (piece.logprobs or {}).items():
            self.logprobs.setdefault(name, []).extend(entries or [])

    def choice(self, index: int) -> Choice:
        return Choice(
            index=index,
            text="".join(self.texts),
            finish_reason=self.finish_reason,
            logprobs=self.logprobs or None,
            tool_calls=tuple(self.tool_calls),
            loop=_joined(self.loops),
            structure=self.structure,
        )


def _joined(loops: Sequence[Loop]) -> Loop | None:
    if not loops:
        return None
    breaks: tuple[LoopBreak, ...] = sum((loop.breaks for loop in loops), ())
    calls: CallLoop | None = next((loop.calls for loop in loops if loop.calls), None)
    return Loop(breaks=breaks, stopped=any(loop.stopped for loop in loops), calls=calls)
