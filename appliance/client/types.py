"""What the daemon says, as frozen values.

Unknown fields are ignored and missing ones have defaults, so that an old client understands a newer daemon and a new
client an older one. Nothing here is proof of anything: the values are what the process behind the socket chose to send.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

import msgspec


class FunctionCall(msgspec.Struct, frozen=True):
    """Which function a model calls, and with what."""

    name: str = ""
    arguments: str = ""
    """The JSON of an object, which follows the schema of the function's parameters."""


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call that a model made."""

    id: str = ""
    type: str = "function"
    function: FunctionCall = FunctionCall()


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One turn of a conversation."""

    role: str
    """`system`, `user`, `assistant` or `tool`."""
    content: str | None
    """None for an assistant who only called."""
    tool_calls: tuple[ToolCall, ...] | None = None
    """An assistant's, as they came."""
    tool_call_id: str | None = None
    """Of a tool's turn: the call whose result the content is."""


class Options(TypedDict, total=False):
    """What a request may ask for; a field that is left out takes the default of the model's card."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    no_repeat_ngram: int
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    lz_penalty: float
    logit_bias: Mapping[str, float]
    seed: int
    stop: str | list[str]
    n: int
    logprobs: bool | int
    """True for chats, the number of alternatives for completions: as the OpenAI API has it."""
    top_logprobs: int
    response_format: Mapping[str, Any]
    """The form of the answer: `{"type": "json_schema", "json_schema": {"name": ..., "schema": ...}}`, for one."""
    tools: Sequence[Mapping[str, Any]]
    tool_choice: str | Mapping[str, Any]
    parallel_tool_calls: bool
    loop_breaker: Literal["break", "stop", "warn", "off"]


class PromptTokens(msgspec.Struct, frozen=True):
    """Of a prompt's tokens, those that had been computed for an earlier one."""

    cached_tokens: int = 0


class Usage(msgspec.Struct, frozen=True):
    """Tokens that a request took."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: PromptTokens = PromptTokens()


class Timings(msgspec.Struct, frozen=True, kw_only=True):
    """Where a request's time went, measured by the daemon."""

    queue_s: float | None = None
    prompt_s: float | None = None
    first_token_s: float | None = None
    decode_s: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    guessed_tokens: int | None = None
    decode_tokens_per_s: float | None = None
    prompt_tokens_per_s: float | None = None


class LoopBreak(msgspec.Struct, frozen=True, kw_only=True):
    """What was done about one loop; positions and lengths count tokens of the answer."""

    rung: str = ""
    kind: str = ""
    onset: int = 0
    period: int = 0
    copies: float = 0.0
    at: int = 0
    rewound: int = 0


class CallLoop(msgspec.Struct, frozen=True, kw_only=True):
    """Calls of the conversation that repeat, this answer's included."""

    kind: str = ""
    """`same_call`, `ping_pong` or `same_result`."""
    onset: int = 0
    copies: int = 0
    certain: bool = False


class Loop(msgspec.Struct, frozen=True, kw_only=True):
    """Loops that were found in an answer, and what was done."""

    breaks: tuple[LoopBreak, ...] = ()
    stopped: bool = False
    """Whether the answer was ended because of one."""
    calls: CallLoop | None = None


class Structure(msgspec.Struct, frozen=True, kw_only=True):
    """Whether an answer has the form that was asked for."""

    valid: bool = False
    reason: str = ""
    """Why it has not: it ended too early."""


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """One of the `n` texts that were asked for."""

    index: int = 0
    text: str = ""
    finish_reason: str | None = None
    """`stop`, `length`, `tool_calls`, `loop` or another reason of the daemon's; None while it is not complete."""
    logprobs: dict[str, Any] | None = None
    """As the OpenAI API has it; None unless asked for."""
    tool_calls: tuple[ToolCall, ...] = ()
    loop: Loop | None = None
    """None if no loop was found."""
    structure: Structure | None = None
    """None if no form was asked for, and while the answer is not complete."""

    @property
    def message(self) -> Message:
        """The choice as the assistant's turn of a conversation that goes on."""
        return Message("assistant", self.text or (None if self.tool_calls else ""), self.tool_calls or None)


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a model said."""

    choices: tuple[Choice, ...]
    model: str = ""
    id: str = ""
    usage: Usage | None = None
    timings: Timings | None = None

    @property
    def text(self) -> str:
        """The first choice's text."""
        return self.choices[0].text

    @property
    def finish_reason(self) -> str | None:
        """Why the first choice ended; None if it did not."""
        return self.choices[0].finish_reason

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """What the first choice calls."""
        return self.choices[0].tool_calls


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """A part of an answer, as it arrives."""

    text: str = ""
    finish_reason: str | None = None
    index: int = 0
    logprobs: dict[str, Any] | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    """Calls that are complete with this piece."""
    loop: Loop | None = None
    """What was done about a loop just now."""
    structure: Structure | None = None
    """With the last piece of an answer that was asked for in some form."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What one verifier of a task says."""

    verifier: str = ""
    passed: bool = False
    reason: str = ""


class TaskInfo(msgspec.Struct, frozen=True, kw_only=True):
    """An installed task."""

    name: str
    version: str = ""
    description: str = ""
    model: str | None = None
    candidates: int = 1


class BrokenTask(msgspec.Struct, frozen=True, kw_only=True):
    """A task's file that cannot be used, and why."""

    name: str
    error: str = ""


class TaskList(msgspec.Struct, frozen=True, kw_only=True):
    """What lies in the tasks' directory."""

    tasks: tuple[TaskInfo, ...]
    broken: tuple[BrokenTask, ...] = ()


class TaskResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a task."""

    task: str = ""
    version: str = ""
    model: str = ""
    output: str = ""
    """The best candidate: text, or JSON of the task's schema."""
    verified: bool = False
    """Whether every verifier passed it; never without one."""
    verdicts: tuple[Verdict, ...] = ()
    finish_reason: str | None = None
    candidates: int = 0
    """How many were computed."""
    chosen: int = 0
    loop: Loop | None = None
    usage: Usage | None = None


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Why the daemon will not use a model."""

    kind: str = "error"
    message: str = ""
    hint: str | None = None


class ParameterCounts(msgspec.Struct, frozen=True, kw_only=True):
    """A model's size in parameters; effective is what is left without the embedding table."""

    total: int = 0
    embedding: int = 0
    effective: int = 0


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One installed model. What only a verified card can tell is None until the daemon has verified it."""

    name: str
    state: str = "installed"
    """`loaded`, `installed` (not verified yet) or `refused` (see `problem`)."""
    problem: Problem | None = None
    version: str | None = None
    architecture: str | None = None
    summary: str | None = None
    quantization: str | None = None
    context_length: int | None = None
    chat: bool | None = None
    size_bytes: int | None = None
    parameters: ParameterCounts | None = None
    licence: str | None = None
    key_id: str | None = None
    root_digest: str | None = None
    loaded_at: str | None = None
    load_s: float | None = None
    requests: int | None = None
    verified: bool | None = None
    """True in the answer to `verify`."""


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who the daemon takes this client for, from the kernel's peer credentials."""

    uid: int | None = None
    gid: int | None = None
    pid: int | None = None
    unit: str | None = None
    roles: tuple[str, ...] = ()


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """The daemon's memory."""

    resident_bytes: int | None = None


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that the daemon admits at the same time."""

    running: int | None = None
    queued: int | None = None
    per_caller: int | None = None


class RequestCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Requests now, and since the daemon started."""

    running: int = 0
    queued: int = 0
    total: int = 0
    rejected: int = 0
    cancelled: int = 0


class TokenCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens read and written since the daemon started."""

    prompt: int = 0
    generated: int = 0


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The daemon at a glance."""

    version: str = "?"
    state: str = "?"
    """`ready` or `draining`."""
    started_at: str | None = None
    uptime_s: float | None = None
    pid: int | None = None
    socket: str | None = None
    caller: Caller = Caller()
    memory: Memory = Memory()
    threads: int | None = None
    limits: Limits = Limits()
    requests: RequestCounts = RequestCounts()
    tokens: TokenCounts = TokenCounts()
    models: tuple[ModelInfo, ...] = ()


class Health(msgspec.Struct, frozen=True):
    """Whether the daemon takes requests."""

    status: str
    """`ok` or `draining`."""
