"""What no grammar can be made of is refused in words, and what one let through is judged again."""

import json
import socket
import time
from typing import Any

import pytest

from appliance.decoding import lark
from appliance.decoding.conformity import conforms
from appliance.decoding.grammar import Constraint, compile_grammar
from appliance.errors import InternalError, InvalidRequest
from tests.fakes.grammars import OBJECT, TINY, allowed, chance, feed, schema_grammar, walk

# --- what is refused --------------------------------------------------------------------------------------------------


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


REFUSED: list[tuple[str, Any, str]] = [
    ("not", {"properties": {"a": {"items": {"not": {"type": "string"}}}}}, "not at #/properties/a/items"),
    ("if", {"if": {"type": "string"}, "then": {"minLength": 3}}, "if, then at #"),
    ("uniqueItems", {"type": "array", "uniqueItems": True}, "uniqueItems at #"),
    ("contains", {"properties": {"a/b": {"contains": {}}}}, "contains at #/properties/a~1b"),
    ("format", {"properties": {"a": {"type": "string", "format": "color"}}}, "format at #/properties/a"),
    ("look-around", {"items": {"type": "string", "pattern": "(?=a)b"}}, "pattern at #/items"),
    ("oneOf", {"oneOf": [{"minLength": 1, "type": "string"}, {"pattern": "a", "type": "string"}]}, "oneOf at #"),
    ("minProperties", {"minProperties": 3, "properties": {"b": {}}}, "minProperties at #"),
    ("no type", {"properties": {"a": {"type": "strin"}}}, "type at #/properties/a/type"),
    ("no schema", [1], "an array, expected an object"),
    ("nothing", {"type": "integer", "minimum": 4, "maximum": 3}, "minimum at #"),
    ("ref elsewhere", {"items": {"$ref": "http://127.0.0.1:9/x.json"}}, "$ref at #/items refers to another document"),
    ("ref to a file", {"$ref": "file:///etc/passwd"}, "refers to another document"),
    ("ref to nothing", {"items": {"$ref": "#/$defs/no"}}, "$ref at #/items"),
    ("dialect", {"$schema": "http://127.0.0.1:9/schema"}, "$schema names no known dialect"),
    ("self", {"$ref": "#"}, "the schema at #"),
    ("endless", {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "may never end"),
    ("deep", nested(60), "nested deeper than"),
    ("many", {"anyOf": [{"const": i} for i in range(5_000)]}, "subschemas, expected at most"),
    ("large", {"enum": ["x" * 200] * 1_000}, "characters, expected at most"),
    ("values", {"enum": [0] * 21_000}, "more than"),
    ("long string", {"type": "string", "minLength": 10**9}, "minLength at #"),
    ("long array", {"items": {"type": "array", "minItems": 10**9}}, "minItems at #/items"),
    ("states", {"type": "integer", "multipleOf": 1_000_003}, "multipleOf at #"),
    ("states together", {"allOf": [{"multipleOf": 9_973}, {"multipleOf": 9_967}]}, "multipleOf at #/allOf/1"),
    ("product", {"allOf": [{"anyOf": [{"required": [f"{i}{c}"]} for c in "abcd"]} for i in range(12)]}, "#"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "schema", "found"), REFUSED, ids=[name for name, _, _ in REFUSED])
def test_schema_is_refused_in_words(name: str, schema: object, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The keyword and where it is; within a second or two, without a traceback and without the network."""
    monkeypatch.setattr(socket, "socket", _no_network)
    started = time.monotonic()
    with pytest.raises(InvalidRequest) as caught:
        schema_grammar(schema)
    assert found in caught.value.message
    assert caught.value.param == "response_format"
    assert caught.value.hint
    assert "\n" not in caught.value.message
    assert time.monotonic() - started < 5


def _no_network(*_: object, **__: object) -> None:
    raise AssertionError("a schema reached for the network")


@pytest.mark.parametrize("text", ["", "{", "nan", '{"const": NaN}', "1", "null", "[" * 200_000, '{"const": "\ud800"}'])
def test_what_is_no_schema_is_refused(text: str) -> None:
    """Not JSON, half characters, or no object."""
    with pytest.raises(InvalidRequest, match="cannot use this JSON schema"):
        compile_grammar(Constraint("json_schema", text), TINY)


def chain(length: int, body: str) -> str:
    """Rules of which each names the next one, at the `@`; llguidance goes down once for each."""
    first = "R" if "R@" in body else "r"
    rules = [f"{first}{i}: {body.replace('@', str(i + 1))}" for i in range(length)]
    return "\n".join([f"start: {first}0", *rules, f'{first}{length}: "a"'])


@pytest.mark.parametrize(
    ("kind", "source", "found"),
    [
        ("regex", "[", "unclosed"),
        ("regex", "(?=a)b", "look-around"),
        ("regex", "(a)\\1", "backreferences"),
        ("regex", "a{1000000}", "too many"),
        ("regex", "(" * 3_000 + "a" + ")" * 3_000, "cannot use this regular expression"),
        ("regex", "x" * 70_000, "70000 characters"),
        ("regex", "\ud800", "half a character"),
        ("lark", "start: <nope>", "unknown special token"),
        ("lark", "start: nothing", "unknown name"),
        ("lark", 'start: "a" start', "may never end"),
        ("lark", "%import .secrets.KEY\nstart: KEY", "cannot use this Lark grammar"),
        ("lark", "start: %json " + json.dumps({"not": {}}), "not"),
        ("lark", "", "cannot use this Lark grammar"),
        ("lark", chain(4_000, "r@"), "4002 definitions and brackets"),
        ("lark", chain(4_000, "R@"), "definitions and brackets"),
        ("lark", chain(300, "[" * 15 + "r@" + "]" * 15), "definitions and brackets"),
        ("lark", chain(300, "(" * 15 + "r@" + ")" * 15), "definitions and brackets"),
    ],
)
def test_expression_or_grammar_is_refused_in_words(kind: str, source: str, found: str) -> None:
    """What does not parse, cannot be done, or would take all the memory."""
    started = time.monotonic()
    with pytest.raises(InvalidRequest) as caught:
        compile_grammar(Constraint(kind, source), TINY)  # type: ignore[arg-type]
    assert found in caught.value.message
    assert caught.value.param == "response_format"
    assert "\n" not in caught.value.message
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("body", ["r@", "R@", "[" * 13 + "r@" + "]" * 13, "(" * 13 + "r@" + ")" * 13])
def test_deepest_grammar_works(body: str) -> None:
    """As deep as may be is still far from what would end the process."""
    length = (lark.MOST_LEVELS - 2) // (1 + body.count("[") + body.count("("))
    source = chain(length, body)
    assert lark.MOST_LEVELS - 14 <= lark.levels(source) <= lark.MOST_LEVELS
    state = compile_grammar(Constraint("lark", source), TINY).start()
    assert state.shortest_completion() is not None


def test_schemas_in_a_grammar_nest_by_their_own_rules() -> None:
    """Of them only what is written in their strings counts, as those could be a grammar between two texts."""
    schema = {"type": "object", "properties": {f"p{i}": {"enum": [[i], [[i]]]} for i in range(500)}}
    assert lark.levels(f"start: a\na: %json {json.dumps(schema)}\n") == 2
    assert lark.levels('start: "%json {" r: [[ "\\": 1}"') == 5
    assert lark.levels('start: %json {"a": "(b"}') == 2
    assert lark.levels("start: %json {" * 3) == 3


@pytest.mark.parametrize(
    "source",
    [
        "(a{1,999}){1,999}",
        "(.*a.{200}b.*c.{200}){3}",
        r"(\w+\s?){1,5000}",
        "(x+x+)+y",
        "[ab]*a[ab]{30}c",
        "(a|ab)*c{0,9999}",
    ],
)
def test_hostile_expressions_cost_little(source: str) -> None:
    """They work, or end in an error that says why; no step takes long."""
    started = time.monotonic()
    try:
        state = compile_grammar(Constraint("regex", source), TINY).start()
        walk(state, chance(1), 80)
        state.shortest_completion()
    except InvalidRequest as e:
        assert "too many" in e.message  # noqa: PT017 (either end is right)
    assert time.monotonic() - started < 10


def test_doubling_references_cost_little() -> None:
    """2**25 ways through a schema of 26 lines: compiled at once, and not validated for ever."""
    for keyword in ("allOf", "anyOf"):
        parts = {f"a{i}": {keyword: [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(25)}
        schema = {"$defs": parts | {"a25": {"type": "string"}}, "$ref": "#/$defs/a0"}
        started = time.monotonic()
        grammar = schema_grammar(schema)
        assert conforms(grammar.constraint, '"x"') in (None, "the schema takes too long to validate against")
        assert time.monotonic() - started < 10


MANY = {"type": "object", "properties": {f"p{i}": {"type": "boolean"} for i in range(900)}}


def test_a_schema_that_becomes_too_complex_is_told_so() -> None:
    """900 optional members: the hint is for whoever writes schemas."""
    with pytest.raises(InvalidRequest, match="cannot go on with this JSON schema") as caught:
        walk(schema_grammar(MANY).start(), chance(1), 80)
    assert "fewer properties" in (caught.value.hint or "")


def test_a_grammar_that_failed_keeps_no_memory_and_works_again() -> None:
    """What its automaton has grown to goes with it; the next answer gets a fresh one."""
    grammar = schema_grammar(MANY)
    with pytest.raises(InvalidRequest):
        walk(grammar.start(), chance(1), 80)
    assert grammar._matcher is None
    assert TINY.token_bytes.index(b"{") in allowed(grammar.start())
    assert grammar._matcher is not None


# --- the second check -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "text", "reason"),
    [
        (OBJECT, '{"name": "x", "n": 1}', None),
        (OBJECT, '  {"n": 1, "name": "x"}\n', None),
        (OBJECT, '{"name": "x", "n": 1} and more', "text after the JSON's end"),
        (OBJECT, '{"name": "x", "n": 1}{"name": "x", "n": 1}', "text after the JSON's end"),
        (OBJECT, '{"name": "x", "n": 1', "not JSON, at 20"),
        (OBJECT, "", "not JSON, at 0"),
        (OBJECT, '{"name": "x", "name": "y", "n": 1}', "two members of the same name"),
        (OBJECT, '{"name": "x", "n": 1, "tags": [{"a": 1, "a": 1}]}', "two members of the same name"),
        (OBJECT, '{"name": "x", "n": "secret"}', "#/n breaks type"),
        (OBJECT, '{"name": "secret"}', "# breaks required"),
        (OBJECT, '{"name": "x", "n": 1, "more": 1}', "# breaks additionalProperties"),
        (OBJECT, '{"name": "x", "n": 1, "tags": [NaN]}', "NaN"),
        (OBJECT, '{"name": "x", "n": 1, "tags": [-Infinity]}', "Infinity"),
        (OBJECT, '{"name": "x", "n": 1, "tags": [1e999]}', "beyond what a double can hold"),
        ({}, "9" * 5_000, "beyond what a double can hold"),
        (OBJECT, '{"name": "\\ud800", "n": 1}', "half a character"),
        ({"type": "string"}, '"\\ud800"', "half a character"),
        ({"type": "array"}, '[["\\ud800"]]', "half a character"),
        ({}, "[" * 100_000, "nested too deeply"),
        ({"type": "string", "pattern": "^a+$"}, '"secret"', "# breaks pattern"),
        ({"type": "string", "pattern": "^(a+)+$"}, '"' + "a" * 40 + '"', None),
        ({"type": "string", "pattern": "^(a+)+$"}, '"' + "a" * 40 + '!"', "# breaks pattern"),
        ({"type": "string", "pattern": "^(a|\u007f)+$"}, '"' + "a\u007f" * 40 + '"', None),
        ({"type": "string", "pattern": "^\\S$"}, '"\ufeff"', "# breaks pattern"),
        ({"patternProperties": {"^(x+)+$": {"type": "integer"}}}, '{"xxx": "secret"}', "#/* breaks type"),
        ({"patternProperties": {"^x": {}}, "additionalProperties": False}, '{"y": 1}', "# breaks additionalProperties"),
        ({"type": "string", "format": "date"}, '"2023-02-30"', "# breaks format"),
        ({"type": "string", "format": "date-time"}, '"2023-02-28T23:59:60Z"', None),
        ({"type": "string", "format": "date-time"}, '"2023-02-28T22:59:61Z"', "# breaks format"),
        ({"type": "string", "format": "time"}, '"23:59:60+24:30"', "# breaks format"),
        ({"type": "string", "format": "ipv4"}, '"999.1.1.1"', "# breaks format"),
    ],
)
def test_answer_is_judged_again(schema: object, text: str, reason: str | None) -> None:
    """By another implementation, strictly, quickly, and without a word of the text in the reason."""
    started = time.monotonic()
    found = conforms(Constraint("json_schema", json.dumps(schema)), text)
    assert (found is None) == (reason is None), found
    assert reason is None or reason in (found or "")
    assert "secret" not in (found or "")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("constraint", "text", "good"),
    [
        (Constraint("json_object"), '{"a": [1]}', True),
        (Constraint("json_object"), "[1]", False),
        (Constraint("json_object"), '{"a": 1, "a": 1}', False),
        (Constraint("regex", "[a-z]+[0-9]?"), "abc1", True),
        (Constraint("regex", "[a-z]+[0-9]?"), "abc12", False),
        (Constraint("regex", "[a-z]+[0-9]?"), "", False),
        (Constraint("regex", "(a+)+b"), "a" * 60 + "b", True),
        (Constraint("regex", "(a+)+b"), "a" * 60, False),
        (Constraint("regex", r"\p{Lu}\p{Ll}+"), "Émile", True),
        (Constraint("regex", r"\p{Lu}\p{Ll}+"), "émile", False),
        (Constraint("lark", 'start: "a" b*\nb: "(" b ")" | "x"'), "a((x))x", True),
        (Constraint("lark", 'start: "a" b*\nb: "(" b ")" | "x"'), "a((x)", False),
        (Constraint("lark", 'start: "a" b*\nb: "(" b ")" | "x"'), "ab", False),
        (Constraint("lark", 'start: <call> "x" </call>'), "<call>x</call>", True),
        (Constraint("lark", 'start: <call> "x" </call>'), "x", False),
    ],
)
def test_other_forms_are_judged_again(constraint: Constraint, text: str, good: bool) -> None:
    """Objects, expressions (those that could take for ever, by replay) and grammars with control tokens."""
    assert (conforms(constraint, text, TINY) is None) == good


def test_nothing_is_written_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    """llguidance's own warnings quote the answer; a daemon's log must not."""
    state = feed(schema_grammar(OBJECT).start(), '{"name": "secret')
    with pytest.raises(InternalError):
        state.advance(ord("\n"))
    compile_grammar(Constraint("lark", 'start: "a" | "a"'), TINY)
    conforms(Constraint("lark", 'start: "a"'), "secret")
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""
