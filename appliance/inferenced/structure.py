"""The form that a request asks its answers to have: `response_format`, `tools` and `tool_choice`.

`plan_of` checks them and says what the grammar of an answer is, and how the answer is to be read. Nothing is computed
yet and no model is asked.

What this does NOT do: bound what a schema of a call's arguments leaves entirely open (`{}`), nor the digits after a
decimal point; `max_tokens` and the loop breaker do.

Source: OpenAI's API reference, chat completions: response_format, tools, tool_choice. The forms `regex` and `lark` are
Skerry's own.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from appliance.decoding import json_schema
from appliance.decoding.call_loops import Invocation
from appliance.decoding.grammar import Constraint, Grammar, json_rule
from appliance.errors import InvalidRequest
from appliance.inferenced.messages import MAX_TOOLS, Name
from appliance.models.template import ChatTemplate
from appliance.models.tool_calls import write_grammar
from appliance.models.tool_styles import Style, Tool, find_style, for_tools

About = Annotated[str, Meta(max_length=16_384)]
Source = Annotated[str, Meta(min_length=1, max_length=65_536)]
LoopBreaker = Literal["break", "stop", "warn", "off"]

LONGEST_STRING, MOST_ITEMS, LARGEST = 4_096, 256, 10**18
"""In a call's arguments, where the schema does not say: characters, items of an array, and whole numbers."""

# What says nothing about what may be written; a grammar without it is smaller.
_DECIDED = ("$ref", "const", "enum", "allOf", "anyOf", "oneOf")
_ANNOTATIONS = ("$comment", "default", "deprecated", "description", "examples", "readOnly", "title", "writeOnly")


class JsonSchema(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A schema, as OpenAI wraps it. `strict` changes nothing: the answer follows the schema in any case."""

    name: Name
    schema: dict[str, Any]
    description: About | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The form of an answer's text; a type other than `text` and `json_object` needs the field of its name."""

    type: Literal["text", "json_object", "json_schema", "regex", "lark"]
    json_schema: JsonSchema | None = None
    regex: Source | None = None
    lark: Source | None = None


class Function(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A function that the model may call. `strict` changes nothing, as in `JsonSchema`."""

    name: Name
    description: About | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The one type of tool that there is."""

    type: Literal["function"]
    function: Function


class FunctionName(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The function of a `NamedChoice`."""

    name: Name


class NamedChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A `tool_choice` of one function, to be called."""

    type: Literal["function"]
    function: FunctionName


Tools = Annotated[tuple[FunctionTool, ...], Meta(min_length=1, max_length=MAX_TOOLS)]
ToolChoice = Literal["none", "auto", "required"] | NamedChoice


@dataclass(frozen=True, slots=True)
class Plan:
    """How the answers of a request are written and read.

    Attributes:
        form: what the text of an answer without calls must be; None for any text.
        style: of the model's family, if it may call or the conversation has calls.
        tools: that may be called.
        must_call: whether it has to.
        parallel: whether it may call several at once.
        history: calls of the conversation so far.
    """

    form: Constraint | None = None
    style: Style | None = None
    tools: tuple[Tool, ...] = ()
    must_call: bool = False
    parallel: bool = True
    history: tuple[Invocation, ...] = ()

    def spoken(self, control: Mapping[str, int]) -> dict[int, bytes]:
        """Control tokens of calls, and the bytes with which they appear in an answer's text."""
        return self.style.spoken(control) if self.style and self.tools else {}

    def constraint(self, control: Mapping[str, int]) -> Constraint | None:
        """Say what the whole of an answer must be; None for any text.

        Args:
            control: the model's control tokens.
        Raises:
            InvalidRequest: text of that form and calls cannot be told apart.
        """
        if self.style is None or not self.tools:
            return self.form
        content = None if self.must_call else self._content()
        lark = write_grammar(
            self.style,
            [Tool(t.name, "", _bounded(t.parameters)) for t in self.tools],
            "required" if self.must_call else "auto",
            parallel=self.parallel,
            control=control,
            rule=json_rule,
            content=content,
        )
        return Constraint("lark", lark)

    def _content(self) -> Any:
        if self.form is None:
            return None
        if self.form.kind in ("regex", "lark") or not self.style or not self.style.begin:
            raise InvalidRequest(
                "cannot combine this response_format with tools: a call could not be told from the text",
                hint="set tool_choice to required or none, or leave response_format out",
                param="response_format",
            )
        return _bounded(json.loads(self.form.source)) if self.form.kind == "json_schema" else {"type": "object"}


def form_of(wanted: ResponseFormat | None) -> Constraint | None:
    """Translate a `response_format`.

    Raises:
        InvalidRequest: a field is missing, or does not belong to the type.
    """
    if wanted is None:
        return None
    fields = {name: getattr(wanted, name) for name in ("json_schema", "regex", "lark")}
    for name, value in fields.items():
        if (value is not None) != (name == wanted.type):
            found = "is missing" if value is None else f"does not belong to the type {wanted.type}"
            raise InvalidRequest(f"cannot use response_format: {name} {found}", param=f"response_format.{name}")
    if wanted.json_schema is not None:
        return Constraint("json_schema", _schema_text(wanted.json_schema.schema))
    if wanted.type in ("regex", "lark"):
        return Constraint(wanted.type, fields[wanted.type])
    return Constraint("json_object") if wanted.type == "json_object" else None


def plan_of(
    *,
    form: Constraint | None,
    tools: Tools | None,
    choice: ToolChoice | None,
    parallel: bool | None,
    history: Sequence[Invocation],
    template: ChatTemplate,
) -> Plan:
    """Check what a chat request says about tools.

    Raises:
        InvalidRequest: with the field at fault.
    """
    if tools is None:
        _refuse_without_tools(choice, parallel)
    known = tuple(_tool(tool.function, f"tools[{i}].function") for i, tool in enumerate(tools or ()))
    for index, tool in enumerate(known):
        if tool.name in {other.name for other in known[:index]}:
            raise InvalidRequest(
                f"cannot use tools[{index}]: another one has the same name", param=f"tools[{index}].function.name"
            )
    usable = _chosen(known, choice)
    style = for_tools(find_style(template.source, template.control, template.uses_tools), usable)
    return Plan(
        form,
        style if usable or history else None,
        usable,
        must_call=bool(usable) and choice not in (None, "auto"),
        parallel=parallel is not False,
        history=tuple(history),
    )


def grammar_of(plan: Plan, control: Mapping[str, int], compile_: Callable[[Constraint], Grammar]) -> Grammar | None:
    """Compile what an answer must be; None for any text.

    Args:
        plan: of the request.
        control: the model's control tokens.
        compile_: makes a constraint ready for the model.
    Raises:
        InvalidRequest: with the field at fault.
    """
    constraint = plan.constraint(control)
    if constraint is None:
        return None
    try:
        return compile_(constraint)
    except InvalidRequest as e:
        if not plan.tools:
            raise
        raise _at_fault(plan, e, compile_) from e


def _at_fault(plan: Plan, error: InvalidRequest, compile_: Callable[[Constraint], Grammar]) -> InvalidRequest:
    """Find the schema because of which a grammar of calls is refused."""
    if plan.form is not None and not plan.must_call:
        compile_(plan.form)  # raises what is wrong with it
    for index, tool in enumerate(plan.tools):
        try:
            compile_(Constraint("json_schema", json.dumps(_bounded(tool.parameters))))
        except InvalidRequest as e:
            param = f"tools[{index}].function.parameters"
            return InvalidRequest(f"{e.message} (the parameters of {tool.name})", hint=e.hint, param=param)
    message = f"cannot offer these tools together: {error.message}"
    return InvalidRequest(message, hint="offer fewer tools, or simpler ones", param="tools")


def _refuse_without_tools(choice: ToolChoice | None, parallel: bool | None) -> None:
    for param, given in (("tool_choice", choice not in (None, "none")), ("parallel_tool_calls", parallel is not None)):
        if given:
            raise InvalidRequest(f"cannot use {param}: there are no tools", param=param, hint="send tools with it")


def _tool(function: Function, where: str) -> Tool:
    param = f"{where}.parameters"
    parameters = {"type": "object", **(function.parameters or {"properties": {}})}
    if parameters["type"] != "object":
        raise InvalidRequest(f"cannot use {where}: its parameters are not of type object", param=param)
    try:
        json_schema.check(parameters)
    except InvalidRequest as e:
        raise InvalidRequest(e.message, hint=e.hint, param=param) from e
    return Tool(function.name, function.description or "", parameters)


def _chosen(tools: tuple[Tool, ...], choice: ToolChoice | None) -> tuple[Tool, ...]:
    if not isinstance(choice, NamedChoice):
        return () if choice == "none" else tools
    named = tuple(tool for tool in tools if tool.name == choice.function.name)
    if not named:
        raise InvalidRequest("cannot use tool_choice: no tool has this name", param="tool_choice.function.name")
    return named


def _schema_text(schema: dict[str, Any]) -> str:
    # Not sorted: the order of properties is the order in which they are written.
    try:
        json_schema.check(schema)
    except InvalidRequest as e:
        raise InvalidRequest(e.message, hint=e.hint, param="response_format.json_schema.schema") from e
    return json.dumps(schema, ensure_ascii=False)


def _bounded(schema: Any) -> dict[str, Any]:
    """Copy a schema for a grammar of calls: without what only explains it, and with an end to what has a type.

    `json_bounds` follows the JSON of a call too, but not calls in Python's form, and its bounds are wider.
    """
    copied: dict[str, Any] = json.loads(json.dumps(schema))
    for _, part in json_schema.subschemas(copied):
        for key in _ANNOTATIONS:
            part.pop(key, None)
        if part.keys().isdisjoint(_DECIDED):
            types = part.get("type", ())
            for kind in types if isinstance(types, list) else (types,):
                _bound(part, kind)
    return copied


def _bound(part: dict[str, Any], kind: Any) -> None:
    if kind == "string" and part.keys().isdisjoint(("pattern", "format")):
        part.setdefault("maxLength", max(LONGEST_STRING, part.get("minLength", 0)))
    elif kind == "array":
        part.setdefault("maxItems", max(MOST_ITEMS, part.get("minItems", 0)))
    elif kind == "integer":
        if "exclusiveMinimum" not in part and part.get("maximum", 0) >= -LARGEST:
            part.setdefault("minimum", -LARGEST)
        if "exclusiveMaximum" not in part and part.get("minimum", 0) <= LARGEST:
            part.setdefault("maximum", LARGEST)
