"""Plans of answers: what a request's form and tools come to, before a model is asked."""

import json
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from appliance.decoding.call_loops import Invocation
from appliance.decoding.grammar import Constraint
from appliance.errors import InvalidRequest
from appliance.inferenced.structure import (
    LARGEST,
    LONGEST_STRING,
    MOST_ITEMS,
    Plan,
    ResponseFormat,
    ToolChoice,
    Tools,
    _bounded,
    form_of,
    grammar_of,
    plan_of,
)
from appliance.models.tool_styles import HERMES, LFM2, PLAIN, Tool

TEMPLATE: Any = SimpleNamespace(source="", control={}, uses_tools=False)
NAMES = ("open", "close", "ring")
TOOLS = [{"type": "function", "function": {"name": n, "description": f"To {n}"}} for n in NAMES]
ONE = {"type": "function", "function": {"name": "close"}}
SCHEMA = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "integer"}}, "required": ["b", "a"]}


def plan(tools: Any = TOOLS, choice: Any = None, **fields: Any) -> Plan:
    """The plan of a request with tools."""
    settings = {"form": None, "parallel": None, "history": (), "template": TEMPLATE} | fields
    return plan_of(
        tools=tools and msgspec.convert(tools, Tools), choice=choice and msgspec.convert(choice, ToolChoice), **settings
    )


# choice | tools that may be called | whether one must be
CHOICES = [
    (None, NAMES, False),
    ("auto", NAMES, False),
    ("required", NAMES, True),
    ("none", (), False),
    (ONE, ("close",), True),
]


@pytest.mark.parametrize(("choice", "names", "must_call"), CHOICES, ids=[str(c[0]) for c in CHOICES])
def test_choice(choice: Any, names: tuple[str, ...], must_call: bool) -> None:
    """What may be called, and whether something has to be."""
    made = plan(choice=choice)
    assert tuple(tool.name for tool in made.tools) == names
    assert made.must_call is must_call
    assert (made.style is None) == (not names)


def test_tools_are_as_they_were_described() -> None:
    """Without parameters, a tool has none."""
    (first, *_) = plan().tools
    assert first == Tool("open", "To open", {"type": "object", "properties": {}})
    given = [{"type": "function", "function": {"name": "a", "parameters": {"required": []}}}]
    assert plan(given).tools[0].parameters == {"type": "object", "required": []}


@pytest.mark.parametrize(("given", "parallel"), [(None, True), (True, True), (False, False)])
def test_several_calls_at_once_are_allowed_unless_they_are_not(given: bool | None, parallel: bool) -> None:
    """Only `false` forbids them, and the grammar too."""
    made = plan(parallel=given)
    assert made.parallel is parallel
    constraint = made.constraint({})
    assert constraint
    assert ("{0," in constraint.source) is parallel


def test_a_conversation_with_calls_keeps_its_style() -> None:
    """Although nothing may be called now; a conversation without tools has none."""
    history = [Invocation("open", "{}")]
    made = plan(choice="none", history=history)
    assert (made.style, made.tools, made.history) == (HERMES, (), tuple(history))
    assert made.constraint({}) is None
    assert (plan(None).style, plan(None).must_call) == (None, False)


# choice | parallel | field that is refused
WITHOUT = [
    ("none", None, None),
    ("auto", None, "tool_choice"),
    ("required", None, "tool_choice"),
    (ONE, None, "tool_choice"),
    (None, False, "parallel_tool_calls"),
    (None, True, "parallel_tool_calls"),
]


@pytest.mark.parametrize(("choice", "parallel", "param"), WITHOUT)
def test_what_is_said_about_tools_needs_some(choice: Any, parallel: bool | None, param: str | None) -> None:
    """But for `none`, which is true then."""
    if param is None:
        assert plan(None, choice, parallel=parallel).tools == ()
        return
    with pytest.raises(InvalidRequest) as refused:
        plan(None, choice, parallel=parallel)
    assert refused.value.param == param


# --- forms ------------------------------------------------------------------------------------------------------------


def wanted(**fields: Any) -> Constraint | None:
    return form_of(msgspec.convert(fields, ResponseFormat))


def test_forms() -> None:
    """Text is none; properties stay in the order in which they were written."""
    assert form_of(None) is wanted(type="text") is None
    assert wanted(type="json_object") == Constraint("json_object")
    assert wanted(type="regex", regex="a+") == Constraint("regex", "a+")
    made = wanted(type="json_schema", json_schema={"name": "x", "schema": SCHEMA})
    assert made
    assert (made.kind, made.source) == ("json_schema", json.dumps(SCHEMA))


# form | choice | what an answer without calls must be, of a model whose calls have a mark; an error for one without
CONTENT = [
    (None, "auto", None),
    (Constraint("json_object"), "auto", {"type": "object"}),
    (
        Constraint("json_schema", json.dumps({"type": "string"})),
        "auto",
        {"type": "string", "maxLength": LONGEST_STRING},
    ),
    (Constraint("regex", "a+"), "auto", InvalidRequest),
    (Constraint("lark", "start: 'a'"), "auto", InvalidRequest),
    (Constraint("regex", "a+"), "required", None),
]


@pytest.mark.parametrize(("form", "choice", "content"), CONTENT)
def test_an_answer_beside_calls_has_its_form(
    monkeypatch: pytest.MonkeyPatch, form: Constraint | None, choice: str, content: Any
) -> None:
    """Where both can be told apart; where a call has to be made, the form does not matter."""
    told: list[dict[str, Any]] = []
    monkeypatch.setattr("appliance.inferenced.structure.write_grammar", lambda *a, **k: told.append(k) or "start: ")
    made = plan(choice=choice, form=form)
    if content is InvalidRequest:
        with pytest.raises(InvalidRequest) as refused:
            made.constraint({})
        assert refused.value.param == "response_format"
        return
    assert made.constraint({}) == Constraint("lark", "start: ")
    assert [call["content"] for call in told] == [content]
    plain = Plan(form, PLAIN, made.tools, must_call=choice == "required")
    if form and choice == "auto":
        with pytest.raises(InvalidRequest):
            plain.constraint({})


def test_marks_of_calls_are_spoken_where_there_are_some() -> None:
    """Control tokens leave a trace in the text of an answer that may call."""
    control = {LFM2.begin: 5, LFM2.end: 6}
    tools = (Tool("a", "", {"type": "object"}),)
    assert Plan(style=LFM2, tools=tools).spoken(control).keys() == {5, 6}
    assert Plan(style=LFM2).spoken(control) == Plan().spoken(control) == {}


def refusing(word: str, tried: list[str]) -> Any:
    """Something that compiles every grammar but those with a word in it."""

    def compile_(constraint: Constraint) -> Any:
        tried.append(constraint.kind)
        if word in constraint.source:
            raise InvalidRequest("cannot use this", hint="another one", param="response_format")
        return "ready"

    return compile_


FORM = Constraint("json_schema", json.dumps({"type": "object", "properties": {"bad": {"type": "integer"}}}))
BAD_TOOL = [*TOOLS[:1], {"type": "function", "function": {"name": "a", "parameters": {"properties": {"bad": {}}}}}]
# form | tools | choice | word that is refused | param
FAULTS = [
    ("the second tool", None, BAD_TOOL, "auto", "bad", "tools[1].function.parameters"),
    ("the form", FORM, TOOLS, "auto", "bad", "response_format"),
    ("the tool: its form is not used", FORM, BAD_TOOL, "required", "bad", "tools[1].function.parameters"),
    ("all of them", None, TOOLS, "auto", "start", "tools"),
    ("the form alone", FORM, None, None, "bad", "response_format"),
]


@pytest.mark.parametrize(
    ("form", "tools", "choice", "word", "param"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS]
)
def test_who_is_at_fault(form: Constraint | None, tools: Any, choice: Any, word: str, param: str) -> None:
    """Of a grammar that is refused, the field whose schema it is because of."""
    with pytest.raises(InvalidRequest) as refused:
        grammar_of(plan(tools, choice, form=form), {}, refusing(word, []))
    assert refused.value.param == param


def test_no_form_and_no_tools_need_no_grammar() -> None:
    """Nothing is compiled then; else what the plan says, once."""
    tried: list[str] = []
    assert grammar_of(plan(None), {}, refusing("no", tried)) is None
    assert tried == []
    assert grammar_of(plan(form=FORM), {}, refusing("nothing", tried)) == "ready"
    assert tried == ["lark"]


# --- bounds of what a call may hold -----------------------------------------------------------------------------------

NUMBERS = {"minimum": -LARGEST, "maximum": LARGEST}
# schema | the same with an end
BOUNDED = [
    ({"type": "string"}, {"maxLength": LONGEST_STRING}),
    ({"type": "string", "maxLength": 9}, {}),
    ({"type": "string", "minLength": 5000}, {"maxLength": 5000}),
    ({"type": "string", "pattern": "a"}, {}),
    ({"type": "string", "format": "date"}, {}),
    ({"type": "string", "enum": ["a"]}, {}),
    ({"type": "array"}, {"maxItems": MOST_ITEMS}),
    ({"type": "array", "minItems": 300}, {"maxItems": 300}),
    ({"type": "integer"}, NUMBERS),
    ({"type": "integer", "minimum": 3}, {"maximum": LARGEST}),
    ({"type": "integer", "exclusiveMinimum": 3}, {"maximum": LARGEST}),
    ({"type": "integer", "exclusiveMaximum": 3}, {"minimum": -LARGEST}),
    ({"type": "integer", "maximum": -2 * LARGEST}, {}),
    ({"type": "integer", "minimum": 2 * LARGEST}, {}),
    ({"type": ["string", "integer"]}, {"maxLength": LONGEST_STRING, **NUMBERS}),
    ({"type": "number"}, {}),
    ({"anyOf": [{}], "type": "string"}, {}),
    ({}, {}),
]


@pytest.mark.parametrize(("schema", "more"), BOUNDED, ids=[json.dumps(b[0]) for b in BOUNDED])
def test_bounds(schema: dict[str, Any], more: dict[str, Any]) -> None:
    """What has a type and no end gets one; what was said stays; wherever in a schema it stands."""
    before = json.dumps(schema)
    properties = {"type": "object", "properties": {"p": schema}}
    assert _bounded(properties) == {"type": "object", "properties": {"p": schema | more}}
    assert json.dumps(schema) == before


def test_what_only_explains_is_left_out() -> None:
    """Of a grammar; a property of such a name stays."""
    schema = {"title": "T", "properties": {"title": {"type": "boolean", "description": "D", "default": True}}}
    assert _bounded(schema) == {"properties": {"title": {"type": "boolean"}}}


def test_the_grammar_of_calls_has_the_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tool's parameters, without words about it."""
    seen: list[Tool] = []
    monkeypatch.setattr(
        "appliance.inferenced.structure.write_grammar", lambda _, t, *a, **k: seen.extend(t) or "start: "
    )
    given = {"name": "a", "description": "D", "parameters": {"properties": {"b": {"type": "string"}}}}
    plan([{"type": "function", "function": given}]).constraint({})
    bounded = {"type": "object", "properties": {"b": {"type": "string", "maxLength": LONGEST_STRING}}}
    assert seen == [Tool("a", "", bounded)]
