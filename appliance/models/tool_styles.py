"""How each model family is shown tools, and how it writes calls of them.

    style = for_tools(find_style(template.source, template.control, template.uses_tools), tools)
    messages, shown = render(style, turns, tools)
    prompt = template.encode(messages, tools=shown)

Families: `hermes` (Qwen, and every model without a form of its own), `smollm2`, `lfm2`, `gemma`, `plain` (Llama 3). A
template that shows tools in the family's form does it itself (`native`); for all others Skerry writes a system text.
`tool_calls` is about the way back.

In a conversation with tools no caller's text can end a tool's result or begin a call: control tokens are the
template's business (see `template`), and of a family's plain markers the first character is written as a JSON escape
(`\\u003ctool_call>`) wherever a caller wrote them, results and descriptions included.

What this does NOT do: keep a model from calling a tool because a text that it read told it to.

Source: the model cards and chat templates of Qwen3, SmolLM2-1.7B-Instruct, LFM2 (docs.liquid.ai, tool use), Llama 3.1;
for Gemma, ai.google.dev's guide to function calling.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from appliance.models.template import Content, Control

MARK = "\ue000"
"""Stands before a control token's name in an answer's text, where free text cannot have it."""


_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call.

    Attributes:
        name: letters, digits, `_` and `-`.
        parameters: a JSON schema of an object.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]

    def described(self) -> dict[str, Any]:
        """The function as models know it from their training."""
        about = {"description": self.description} if self.description else {}
        return {"name": self.name, **about, "parameters": dict(self.parameters)}


@dataclass(frozen=True, slots=True)
class Call:
    """A call that a model made; `arguments` is the JSON of an object."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One turn of a conversation, before it takes a family's form.

    Attributes:
        calls: what an assistant called, after its content.
        name: of a tool's turn, the function whose result the content is.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    calls: tuple[Call, ...] = ()
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How a family writes calls: begin, open, call, between, call, close, end.

    Attributes:
        name: of the family.
        native: whether the template shows tools and renders calls by itself.
        controlled: whether begin and end are control tokens.
        pythonic: `name(key=value)` rather than a JSON object.
        key: what holds the arguments in the JSON object.
        single: whether the family knows one call a turn only.
        result: what stands around a tool's result.
        markers: words of the family that are plain text.
    """

    name: Literal["hermes", "smollm2", "lfm2", "gemma", "plain"]
    native: bool = False
    begin: str
    open: str
    between: str
    close: str
    end: str
    controlled: bool = False
    pythonic: bool = False
    key: str = "arguments"
    single: bool = False
    result: tuple[str, str] = ("", "")
    markers: tuple[str, ...] = ()

    @property
    def trigger(self) -> str:
        """What begins calls in the text of an answer; empty if the first character of the answer decides."""
        return MARK + self.begin if self.controlled else self.begin

    @property
    def ending(self) -> str:
        """What ends them there."""
        return MARK + self.end if self.controlled else self.end

    def spoken(self, control: Mapping[str, int]) -> dict[int, bytes]:
        """Control tokens that must leave a trace in the answer's text, and the bytes that they leave."""
        return {control[w]: (MARK + w).encode() for w in (self.begin, self.end)} if self.controlled else {}


_TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<tools>", "</tools>")
HERMES = Style(
    name="hermes",
    begin="<tool_call>",
    open="\n",
    between="\n</tool_call>\n<tool_call>\n",
    close="\n",
    end="</tool_call>",
    result=("<tool_response>\n", "\n</tool_response>"),
    markers=_TAGS,
)
SMOLLM2 = Style(
    name="smollm2",
    begin="<tool_call>",
    open="[",
    between=", ",
    close="]",
    end="</tool_call>",
    result=("<tool_response>\n", "\n</tool_response>"),
    markers=_TAGS,
)
LFM2 = Style(
    name="lfm2",
    begin="<|tool_call_start|>",
    open="[",
    between=", ",
    close="]",
    end="<|tool_call_end|>",
    controlled=True,
    pythonic=True,
)
GEMMA = Style(
    name="gemma",
    begin="```tool_code",
    open="\n",
    between="\n",
    close="\n",
    end="```",
    pythonic=True,
    result=("```tool_output\n", "\n```"),
    markers=("```tool_code", "```tool_output"),
)
PLAIN = Style(name="plain", native=True, begin="", open="", between="", close="", end="", key="parameters", single=True)
STYLES = (HERMES, SMOLLM2, LFM2, GEMMA, PLAIN)


def find_style(source: str, control: Collection[str], uses_tools: bool) -> Style:
    """Tell a model's family from its template.

    Args:
        source: of the chat template.
        control: names of the model's control tokens.
        uses_tools: whether the template shows tools by itself.
    """
    if {LFM2.begin, LFM2.end} <= set(control):
        return replace(LFM2, native=uses_tools)
    # Qwen's later coders have the same tag around another form, which is not known here.
    if uses_tools and HERMES.begin in source and "<function=" not in source:
        return replace(HERMES, native=True)
    if "<start_of_turn>" in control:
        return GEMMA
    if uses_tools and '"parameters"' in source and HERMES.begin not in source:
        return PLAIN
    if "SmolLM" in source and HERMES.begin not in source:
        return SMOLLM2
    return HERMES


def for_tools(style: Style, tools: Sequence[Tool]) -> Style:
    """Let a family that writes Python write JSON for tools that keyword arguments cannot express."""
    if style.pythonic and not all(_has_keywords(tool.parameters) for tool in tools):
        return replace(style, pythonic=False)
    return style


_PLAIN_KEYWORDS = frozenset(
    {
        "type",
        "properties",
        "required",
        "additionalProperties",
        "title",
        "description",
        "$schema",
        "$defs",
        "definitions",
    }
)


def _has_keywords(parameters: Mapping[str, Any]) -> bool:
    """Whether an object is described by its properties alone, and each can stand by itself."""
    properties = parameters.get("properties", {})
    return (
        _PLAIN_KEYWORDS.issuperset(parameters)
        and isinstance(properties, Mapping)
        and all(_IDENTIFIER.fullmatch(name) for name in properties)
        and set(parameters.get("required", ())) <= set(properties)
        and all(ref.startswith(("#/$defs/", "#/definitions/")) for ref in _references(parameters))
    )


def _references(schema: Any) -> list[str]:
    if isinstance(schema, Mapping):
        own = [v for k, v in schema.items() if k in ("$ref", "$dynamicRef", "$recursiveRef") and isinstance(v, str)]
        return own + [ref for value in schema.values() for ref in _references(value)]
    return [ref for value in schema for ref in _references(value)] if isinstance(schema, list) else []


# --- to the model -----------------------------------------------------------------------------------------------------


def render(
    style: Style, turns: Sequence[Turn], tools: Sequence[Tool]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """Write a conversation as the family knows it.

    Args:
        style: made `for_tools`.
        turns: the conversation.
        tools: what the model may call; none if it may not call now.
    Returns:
        Messages for `ChatTemplate.encode`, and the tools for it if the template shows them.
    """
    if not tools and not any(turn.calls or turn.role == "tool" for turn in turns):
        return plain(turns), None
    turns = [replace(turn, content=_defuse(style, turn.content)) for turn in turns]
    described = [_defuse(style, tool.described()) for tool in tools]
    own = style.native and style.name != "lfm2"
    messages = [_native(style, turn) for turn in turns] if own else _rendered(style, turns)
    if style.native and described:
        # LFM2 was trained on the bare functions, the others on OpenAI's envelope.
        shown = described if style.name == "lfm2" else [{"type": "function", "function": one} for one in described]
        if style.name == "lfm2" and not style.pythonic:
            messages = _with_system(messages, _AS_JSON)
        return messages, shown
    if described:
        messages = _with_system(messages, _instructions(style, described))
    return messages, None


def plain(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Write a conversation without tools."""
    return [{"role": turn.role, "content": turn.content} for turn in turns]


_AS_JSON = "Output function calls as JSON."


def _native(style: Style, turn: Turn) -> dict[str, Any]:
    message: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.calls:
        message["tool_calls"] = [
            {"type": "function", "function": {"name": c.name, "arguments": _defuse(style, json.loads(c.arguments))}}
            for c in turn.calls
        ]
    return message | ({"name": turn.name} if turn.role == "tool" else {})


def _rendered(style: Style, turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Write calls into the assistants' contents and results into users' turns, or LFM2's own ones."""
    messages: list[dict[str, Any]] = []
    last = ""
    for turn in turns:
        content: Content = turn.content
        role: str = turn.role
        if turn.calls:
            written = _written(style, turn.calls)
            said = [f"{turn.content}\n"] if turn.content else []
            content = [*said, *written] if style.controlled else "".join([*said, *map(str, written)])
        elif role == "tool" and style.name != "lfm2":
            role, content = "user", _result(style, turn.content)
        # Templates want users and assistants in turn.
        if role == "user" and last == "tool":
            messages[-1]["content"] += f"\n{content}"
        else:
            messages.append({"role": role, "content": content})
        last = turn.role if role == "user" else role if style.name != "lfm2" else ""
    return messages


def _written(style: Style, calls: Sequence[Call]) -> list[str | Control]:
    items = style.between.join(_item(style, call) for call in calls)
    begin, end = (Control(style.begin), Control(style.end)) if style.controlled else (style.begin, style.end)
    return [begin, style.open + items + style.close, end]


def _item(style: Style, call: Call) -> str:
    arguments = _defuse(style, json.loads(call.arguments))
    if style.pythonic and all(map(_IDENTIFIER.fullmatch, arguments)):
        return f"{call.name}({', '.join(f'{key}={_literal(value)}' for key, value in arguments.items())})"
    return json.dumps({"name": call.name, style.key: arguments}, ensure_ascii=False)


def _literal(value: Any) -> str:
    return str(value) if value is None or isinstance(value, bool) else json.dumps(value, ensure_ascii=False)


def _result(style: Style, content: str) -> str:
    before, after = style.result
    if after.strip() in content:  # a fence within a fence
        content = json.dumps(content, ensure_ascii=False)
    return before + content + after


def _defuse(style: Style, value: Any) -> Any:
    """Write the family's plain markers in a caller's texts so that they are none."""
    if isinstance(value, str):
        for marker in style.markers:
            value = value.replace(marker, f"\\u{ord(marker[0]):04x}{marker[1:]}")
        return value
    if isinstance(value, Mapping):
        return {_defuse(style, key): _defuse(style, inner) for key, inner in value.items()}
    return [_defuse(style, inner) for inner in value] if isinstance(value, list | tuple) else value


def _instructions(style: Style, described: Sequence[Mapping[str, Any]]) -> str:
    """Tell a model about tools, where its template does not."""
    listed = [json.dumps(one, ensure_ascii=False) for one in described]
    if style.name == "lfm2":
        return f"List of tools: [{', '.join(listed)}]" + ("" if style.pythonic else f"\n{_AS_JSON}")
    if style.name == "gemma":
        form = "name(parameter=value)" if style.pythonic else '{"name": "...", "arguments": {...}}'
        return (
            "You have access to functions. To call one or more of them, write nothing but a block of this form, "
            f"one call a line:\n{style.begin}{style.open}{form}{style.close}{style.end}\n"
            f"Results come in a block tool_output. The functions, as JSON:\n[{', '.join(listed)}]"
        )
    one = '{"name": "function-name", "arguments": {"argument": "value"}}'
    lines = "\n".join(listed)
    return (
        "You can call functions when they help with what is asked. The functions, each with a JSON schema of its "
        f"parameters:\n<tools>\n{lines}\n</tools>\n"
        f"To call, answer in this form:\n{style.begin}{style.open}{one}{style.close}{style.end}"
    )


def _with_system(messages: Sequence[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    if messages and messages[0]["role"] == "system":
        first = messages[0]
        said = f"{first['content']}\n\n{text}" if first["content"] else text
        return [{**first, "content": said}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]
