"""Tool calls as models write them: the grammar of an answer that may have some, and how they are read back.

    lark = write_grammar(style, tools, "auto", parallel=True, control=template.control, rule=json_rule)
    reader = CallReader(style)
    for text in answer:
        for part in reader.push(text): ...        # a str is content, a Call is a call

The grammar holds arguments to their schema while they are written, so the reader meets no call that it cannot read.

What this does NOT do: tell a model that calls from one that quotes a call, in families whose marker is plain text. In
families whose marker is a control token only the token counts; `Style.spoken` lets it leave a trace in the text.

Source: as `tool_styles`; llguidance's syntax.md, tool calling.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from appliance.errors import InternalError
from appliance.models.tool_styles import MARK, Call, Style, Tool

MAX_CALLS = 16
"""Calls of one answer: a model that is lost would call for ever."""

# --- what the model may write -----------------------------------------------------------------------------------------


def write_grammar(
    style: Style,
    tools: Sequence[Tool],
    choice: Literal["auto", "required"],
    *,
    parallel: bool,
    control: Mapping[str, int],
    rule: Callable[[Any], str],
    content: Any = None,
) -> str:
    """Write the Lark grammar of an answer that may, or must, call tools.

    Args:
        style: made `for_tools`.
        tools: that may be called, at least one.
        choice: `auto`: text that may end in calls; `required`: calls at once.
        parallel: whether several calls are allowed.
        control: the model's control tokens.
        rule: writes a JSON schema as the body of a rule.
        content: schema that an answer without calls must follow; None for any text. Not for the style `plain`.
    """
    names = " | ".join(f"call_{i}" for i in range(len(tools)))
    begin, end = _marker(style, style.begin, control), _marker(style, style.end, control)
    # The same lexemes before the next call as at the end: the lexer would not come back from a longer one.
    close = f"{_quoted(style.close)} {end}"
    last = style.close + style.end
    repeats = bool(last) and style.between.startswith(last)
    between = f"{close} {_quoted(style.between.removeprefix(last))}" if repeats else _quoted(style.between)
    more = f"({between} call){{0,{MAX_CALLS - 1}}}" if parallel and not style.single else ""
    lines = [
        "%llguidance {}",
        *_start(style, choice, begin, rule, content),
        f"calls: {_quoted(style.open)} call {more} {close}",
        f"call: {names}",
    ]
    for index, tool in enumerate(tools):
        lines += _call_rules(style, index, tool, rule)
    return "\n".join(lines) + "\n"


def _start(style: Style, choice: str, begin: str, rule: Callable[[Any], str], content: Any) -> list[str]:
    calls = f"{begin} calls".strip()
    if choice == "required":
        return [f"start: {calls}"]
    if content is not None:
        return [f"start: content | {calls}", f"content: {rule(content)}"]
    if style.controlled:
        return [f"start: TEXT? | TEXT? {calls}", f"TEXT: /[^{MARK}]+/"]
    if not style.begin:
        return ["start: TEXT? | calls", r"TEXT: /[^{](.|\n)*/"]
    # A lazy text ends at the first marker, and what follows is then a call whatever else could be.
    return ["start: text | until calls", "text: TEXT", f"until[lazy]: TEXT {begin}", r"TEXT: /(.|\n)*/"]


def _marker(style: Style, word: str, control: Mapping[str, int]) -> str:
    return f"<[{control[word]}]>" if style.controlled else _quoted(word)


def _quoted(text: str) -> str:
    return json.dumps(text) if text else ""


def _call_rules(style: Style, index: int, tool: Tool, rule: Callable[[Any], str]) -> list[str]:
    if not style.pythonic:
        before = json.dumps(f'{{"name": {json.dumps(tool.name)}, "{style.key}": ')
        return [f'call_{index}: {before} args_{index} "}}"', f"args_{index}: {rule(_object(tool.parameters))}"]
    properties = list(tool.parameters.get("properties", {}).items())
    required = set(tool.parameters.get("required", ()))
    shared = {k: v for k, v in tool.parameters.items() if k in ("$defs", "definitions")}
    first, rest = f"first_{index}_", f"rest_{index}_"
    lines = [f'call_{index}: "{tool.name}(" {first}0 ")"']
    # Each property in its turn, optional ones or none: `first` while nothing is written yet, `rest` behind a comma.
    for at, (name, schema) in enumerate(properties):
        value = f"value_{index}_{at}"
        for this, comma in ((first, ""), (rest, ", ")):
            skip = "" if name in required else f" | {this}{at + 1}"
            lines.append(f"{this}{at}: {json.dumps(f'{comma}{name}=')} {value} {rest}{at + 1}{skip}")
        lines.append(f"{value}: {_value(schema, shared, rule)}")
    return [*lines, f'{first}{len(properties)}: ""', f'{rest}{len(properties)}: ""']


def _value(schema: Any, shared: Mapping[str, Any], rule: Callable[[Any], str]) -> str:
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    if kind == "boolean":
        return '"True" | "False"'
    if kind == "null":
        return '"None"'
    return rule({**schema, **shared} if isinstance(schema, Mapping) else schema)


def _object(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", **parameters}


# --- from the model ---------------------------------------------------------------------------------------------------


class CallReader:
    """Tells an answer's text from its calls, as it arrives and cut anywhere.

    Text that may be the beginning of calls is held back, white space before calls is dropped, and a call comes out when
    it is complete.

    Attributes:
        calling: whether calls have begun.
    """

    def __init__(self, style: Style) -> None:
        self._style = style
        self._held = ""
        self._plain = False
        self._item: list[str] = []
        self._depth, self._quoted, self._escaped = 0, False, False
        self._after = ""
        self.calling = False

    @property
    def complete(self) -> bool:
        """Whether everything that began has ended, so that no half of a call is missing."""
        return not self.calling or (not self._item and self._after.endswith(self._style.ending))

    def push(self, text: str) -> list[str | Call]:
        """Take text of the answer.

        Raises:
            InternalError: a call that no grammar of `write_grammar` allows.
        """
        if self.calling:
            return list(self._calls(text))
        said, rest = self._split(self._held + text)
        parts: list[str | Call] = [said] if said else []
        return parts + list(self._calls(rest)) if self.calling else parts

    def finish(self) -> str:
        """Give out what was held back."""
        held, self._held = self._held, ""
        return held

    def _split(self, text: str) -> tuple[str, str]:
        trigger, self._held = self._style.trigger, ""
        if not trigger:
            self.calling = not self._plain and text.startswith("{")
            self._plain = self._plain or bool(text)
            return ("", text) if self.calling else (text, "")
        before, found, rest = text.partition(trigger)
        if found:
            self.calling = True
            return before.rstrip(), rest
        held = next((n for n in range(min(len(trigger) - 1, len(text)), 0, -1) if trigger.startswith(text[-n:])), 0)
        shown = text[: len(text) - held].rstrip()
        self._held = text[len(shown) :]
        return shown, ""

    def _calls(self, text: str) -> Sequence[str | Call]:
        found: list[str | Call] = []
        for character in text:
            if not self._item and not self._begins(character):
                # Only its end is looked at, and models write no novels between calls.
                self._after = (self._after + character)[-64:]
                continue
            self._item.append(character)
            if self._ends(character):
                found.append(read_call(self._style, "".join(self._item)))
                self._item, self._after = [], ""
        return found

    def _begins(self, character: str) -> bool:
        if not self._style.pythonic:
            return character == "{"
        # Not within the name of the control token that ends the calls.
        return MARK not in self._after and (character == "_" or character.isalnum())

    def _ends(self, character: str) -> bool:
        if self._quoted:
            self._quoted = self._escaped or character != '"'
            self._escaped = not self._escaped and character == "\\"
            return False
        if character == '"':
            self._quoted = True
        elif character in "([{":
            self._depth += 1
        elif character in ")]}":
            self._depth -= 1
            return self._depth == 0
        return False


_JSON_CALL = re.compile(r'\{\s*"name"\s*:\s*"([\w.-]+)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(.*)\}', re.DOTALL)
_NAME = re.compile(r"[\w.-]+")
_KEY = re.compile(r"[\s,]*([A-Za-z_]\w*)\s*=\s*")
_CONSTANTS = {"True": "true", "False": "false", "None": "null"}


def read_call(style: Style, text: str) -> Call:
    """Read one call.

    Raises:
        InternalError: it is none.
    """
    try:
        name, arguments = _read_pythonic(text) if style.pythonic else _read_json(text)
        if isinstance(json.loads(arguments), dict):
            return Call(name, arguments)
    except (ValueError, RecursionError):
        pass
    raise InternalError(
        "cannot read the model's tool call: the grammar let something invalid through", hint="report this as a defect"
    )


def _read_json(text: str) -> tuple[str, str]:
    match = _JSON_CALL.fullmatch(text.strip())
    if match is None:
        raise ValueError
    return match[1], match[2].strip()


def _read_pythonic(text: str) -> tuple[str, str]:
    """Turn `name(a=1, b=True)` into a name and JSON; the values are JSON already, but for Python's three constants."""
    name = _NAME.match(text)
    if name is None or text[name.end() : name.end() + 1] != "(" or text[-1:] != ")":
        raise ValueError
    inner, at, members = text[name.end() + 1 : -1], 0, []
    while inner[at:].strip():
        key = _KEY.match(inner, at)
        if key is None:
            raise ValueError
        at = key.end()
        constant = next((word for word in _CONSTANTS if inner.startswith(word, at)), None)
        end = at + len(constant) if constant else json.JSONDecoder().raw_decode(inner, at)[1]
        members.append(f"{json.dumps(key[1])}: {_CONSTANTS[constant] if constant else inner[at:end]}")
        at = end
    return name[0], f"{{{', '.join(members)}}}"
