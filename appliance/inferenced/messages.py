"""Conversations as OpenAI's API has them, and their translation into turns.

A tool's turn answers a call that an assistant made before it; the arguments of that call are the JSON of an object.
Everything else about a conversation's order is the template's business.

Source: OpenAI's API reference, chat completions.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from appliance import typed
from appliance.decoding.call_loops import Invocation
from appliance.errors import InvalidRequest
from appliance.models.tool_styles import Call, Turn

MAX_TOOLS = 128
DEEPEST = 48
"""Arrays and objects within each other in a call's arguments."""

Text = Annotated[str, Meta(max_length=1 << 20)]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\Z")]
Id = Annotated[str, Meta(min_length=1, max_length=128)]


class TextPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A piece of a message; Skerry's models read text only."""

    type: Literal["text"]
    text: Text


class FunctionCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an assistant called."""

    name: Name
    arguments: Text


class ToolCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A call in a conversation, with the id by which its result names it."""

    id: Id
    type: Literal["function"]
    function: FunctionCall


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[tuple[TextPart, ...], Meta(min_length=1, max_length=64)] | None = None
    name: Annotated[str, Meta(max_length=64)] | None = None
    tool_calls: Annotated[tuple[ToolCall, ...], Meta(min_length=1, max_length=MAX_TOOLS)] | None = None
    tool_call_id: Id | None = None
    refusal: None = None
    annotations: Annotated[tuple[Any, ...], Meta(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    """Answers have these, and clients send answers back as they are, with all that was empty."""

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(p.text for p in self.content or ())


def turns_of(messages: Sequence[Message]) -> list[Turn]:
    """Translate a conversation.

    Raises:
        InvalidRequest: with the field at fault: content or an id is missing, a result answers no call, arguments are
            no JSON object.
    """
    called: dict[str, str] = {}
    answered: set[str] = set()
    turns = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        _check_fields(message, where)
        calls = tuple(_call(c, f"{where}.tool_calls[{i}]", called) for i, c in enumerate(message.tool_calls or ()))
        name = ""
        if message.role == "tool":
            name = _answers(message, where, called, answered)
        # OpenAI's newer name of the system's role is undone: templates know the older one.
        role = "system" if message.role == "developer" else message.role
        turns.append(Turn(role=role, content=message.text, calls=calls, name=name))
    return turns


def invocations_of(messages: Sequence[Message]) -> list[Invocation]:
    """List the calls of a conversation with their results, in order."""
    results = {m.tool_call_id: m.text for m in messages if m.role == "tool"}
    calls = [call for m in messages for call in m.tool_calls or ()]
    return [Invocation(c.function.name, c.function.arguments, results.get(c.id)) for c in calls]


def _check_fields(message: Message, where: str) -> None:
    if message.tool_calls and message.role != "assistant":
        raise InvalidRequest(f"cannot use {where}: the role {message.role} calls no tools", param=f"{where}.tool_calls")
    if message.tool_call_id is not None and message.role != "tool":
        raise InvalidRequest(
            f"cannot use {where}: the role {message.role} answers no call", param=f"{where}.tool_call_id"
        )
    if message.content is None and not message.tool_calls:
        raise InvalidRequest(f"cannot use {where}: content is missing", param=f"{where}.content")


def _call(call: ToolCall, where: str, called: dict[str, str]) -> Call:
    if call.id in called:
        raise InvalidRequest(f"cannot use {where}: another call has the same id", param=f"{where}.id")
    called[call.id] = call.function.name
    try:
        arguments = typed.decode(call.function.arguments, dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        arguments = None
    if arguments is None or is_deeper(arguments, DEEPEST):
        raise InvalidRequest(
            f"cannot use {where}: its arguments are not the JSON of an object",
            hint="send a model's call back as it came",
            param=f"{where}.function.arguments",
        )
    return Call(call.function.name, call.function.arguments)


def _answers(message: Message, where: str, called: dict[str, str], answered: set[str]) -> str:
    """Find the function whose result a message is."""
    if message.tool_call_id not in called:
        found = "no tool_call_id" if message.tool_call_id is None else "no call before it has its tool_call_id"
        raise InvalidRequest(
            f"cannot use {where}: {found}",
            hint="send the assistant's message with the call first",
            param=f"{where}.tool_call_id",
        )
    if message.tool_call_id in answered:
        raise InvalidRequest(f"cannot use {where}: its call has a result already", param=f"{where}.tool_call_id")
    answered.add(message.tool_call_id)
    return called[message.tool_call_id]


def is_deeper(value: Any, limit: int) -> bool:
    """Say whether arrays and objects are within each other more than `limit` times."""
    level = [value]
    for _ in range(limit + 1):
        level = [v for inner in level if isinstance(inner, dict | list) for v in _members(inner)]
    return bool(level)


def _members(value: Any) -> Sequence[Any]:
    return list(value.values()) if isinstance(value, dict) else value
