"""The second opinion ends soon whatever the pattern, is as strict as JSON Schema, and never quotes the answer."""

import json
import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.decoding import conformity
from appliance.decoding.conformity import NO_SUCH_TIME, conforms
from appliance.decoding.grammar import Constraint, Vocabulary, compile_grammar
from appliance.decoding.verifiers import Regex


@pytest.fixture
def deadline() -> Iterator[None]:
    """End a test that backtracks for ever: `re` looks for signals on its way."""

    def late(*_: object) -> None:
        raise TimeoutError("a matcher runs for ever")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def judged(schema: Any, text: str) -> str | None:
    return conforms(Constraint("json_schema", json.dumps(schema)), text)


# --- patterns that backtrack ------------------------------------------------------------------------------------------

HOSTILE = {
    "alternatives": "(a|aa)" * 40 + "b",
    "alternatives in alternatives": "((a|aa)(aa|a))" * 20 + "b",
    "alternatives of one group": ("(" + "a|" * 30 + "aa)") * 12 + "b",
    "repeated alternatives": "(a|aa)*b",
    "repeated repetitions": "(a+)+b",
    "repetitions of a group with a repetition": "(x*a*){30}b",
    "repetitions in a row": "a*" * 12 + "b",
    "lazy repetitions in a row": "a*?" * 12 + "b",
    "optional letters": "a?" * 40 + "a" * 40 + "b",
    "optional groups": "(a?){40}a{40}b",
    "optional groups in a row": "(a)?" * 40 + "a" * 40 + "b",
    "counted repetitions": "a{0,9}" * 12 + "b",
    "classes in a row": "[ab]*[a-c]*[^b]*[ad]*[a]*[ae]*[af]*b",
    "any character": ".*" * 12 + "b",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_pattern_backtracks_for_ever(name: str, deadline: None) -> None:
    """Alternatives, repetitions and options on 60 letters, as a whole answer and in each place of a schema."""
    pattern, text = HOSTILE[name], "a" * 60
    assert conforms(Constraint("regex", pattern), text) is not None
    assert judged({"type": "string", "pattern": f"^{pattern}$"}, json.dumps(text)) == "# breaks pattern"
    assert judged({"patternProperties": {f"^{pattern}$": False}}, json.dumps({text: 1})) is None
    assert not Regex(pattern=pattern).check(text).passed


@pytest.mark.parametrize("pattern", ["a*" + "a" * 30_000 + "b", "^a{0,30000}a{30000}b$"])
def test_long_patterns_do_not_either(pattern: str, deadline: None) -> None:
    """Few ways, but each of them long."""
    assert judged({"type": "string", "pattern": pattern}, json.dumps("a" * 60_000)) is not None


def test_many_patterns_on_many_keys_end(monkeypatch: pytest.MonkeyPatch, deadline: None) -> None:
    """Each match is short, and all of them together have a bound too."""
    monkeypatch.setattr(conformity, "MOST_SECONDS", 0.2)
    schema = {"patternProperties": {f"(a|aa)*{i}b": {} for i in range(900)}}
    found = judged(schema, json.dumps({f"{'a' * 60}{i}": 1 for i in range(900)}))
    assert found == "the schema takes too long to validate against"


def test_many_values_of_many_items_end(monkeypatch: pytest.MonkeyPatch, deadline: None) -> None:
    """What is not a pattern has the same bound."""
    monkeypatch.setattr(conformity, "MOST_SECONDS", 0.2)
    schema = {"items": {"enum": [{"a": i} for i in range(6_000)]}}
    text = json.dumps([{"a": 5_999}] * 3_000)
    assert judged(schema, text) == "the schema takes too long to validate against"


def test_usual_patterns_have_a_second_opinion() -> None:
    """Alternatives of words, numbers and addresses are matched by `re`."""
    for pattern in ("^(yes|no|maybe)$", "P-[0-9]{3}", "[a-z]+@[a-z]+\\.(com|org)", "^[A-Z]{2}[0-9]{2,4}$"):
        assert conformity._quick(pattern, "a" * 40, conformity._SPACE_CLASS, searching=True) is not None, pattern


def test_unlike_items_are_compared_quickly(deadline: None) -> None:
    """Thousands that cannot be sorted, in an answer."""
    items = [{"a": i} if i % 2 else i for i in range(9_000)]
    assert judged({"uniqueItems": True}, json.dumps(items)) is None
    assert judged({"uniqueItems": True}, json.dumps([*items, {"a": 1}])) == "# breaks uniqueItems"


@pytest.mark.parametrize(
    ("items", "good"),
    [
        ([1, True, "1", [1], {"1": 1}, None, False, 0, "", [], {}], True),
        ([1, 1.0], False),
        ([[1, {"a": 2, "b": 3}], [1.0, {"b": 3, "a": 2}]], False),
        ([[1], [True]], True),
        ([{"a": 0}, {"a": False}], True),
        ([["a", "b"], {"a": "b"}], True),
    ],
)
def test_equal_items_are_those_of_json(items: list[Any], good: bool) -> None:
    """1 is 1.0 and not true, at any depth."""
    assert (judged({"uniqueItems": True}, json.dumps(items)) is None) == good


def test_doubling_references_are_followed_once(deadline: None) -> None:
    """2**40 ways lead to one schema and one value; each is judged once, whether it holds or not."""
    for keyword in ("allOf", "anyOf", "oneOf"):
        parts: dict[str, Any] = {f"a{i}": {keyword: [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(40)}
        schema = {"$defs": parts | {"a40": {"type": "string"}}, "$ref": "#/$defs/a0"}
        assert (judged(schema, '"x"') is None) == (keyword != "oneOf")
        assert (judged(schema, "1") or "").startswith("# breaks")


# --- as strict as JSON Schema, and no stricter ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "text", "good"),
    [
        ({"pattern": "^a$"}, '"a"', True),
        ({"pattern": "^a$"}, '"a\\n"', False),
        ({"pattern": "^(a|b$)"}, '"b\\n"', False),
        ({"pattern": "^[$]\\$$"}, '"$$"', True),
        ({"pattern": "^\\d$"}, '"7"', True),
        ({"pattern": "^\\d$"}, '"\u0663"', False),
        ({"pattern": "^[\\d]$"}, '"\u0663"', False),
        ({"pattern": "^\\D$"}, '"\u0663"', True),
        ({"pattern": "^\\w$"}, '"\u00e9"', False),
        ({"pattern": "^\\W$"}, '"\u00e9"', True),
        ({"pattern": "^\\s$"}, '"\u00a0"', True),
        ({"pattern": "^\\s$"}, '"\ufeff"', True),
        ({"pattern": "^\\s$"}, '"\\u001f"', False),
        ({"pattern": "^\\S$"}, '"\u00a0"', False),
        ({"pattern": "^[a[b]]$"}, '"a"', True),
        ({"patternProperties": {"^a$": False}}, '{"a\\n": 1}', True),
        ({"properties": {}, "patternProperties": {"^a$": {}}, "additionalProperties": False}, '{"a\\n": 1}', False),
        *(({"multipleOf": 0.01}, text, True) for text in ("19.99", "4.35", "0.29", "1.15", "0", "-0.07", "3", "1e2")),
        *(({"multipleOf": 0.01}, text, False) for text in ("19.995", "0.001", "1e-9")),
        ({"multipleOf": 0.03}, "123456789012345678.03", True),
        ({"multipleOf": 7}, "10000000000000000000000000004", False),
        ({"multipleOf": 7}, "70000000000000000000000000007", True),
        ({"multipleOf": 7}, "14.0", True),
        ({"multipleOf": 7}, "14.5", False),
        ({"multipleOf": 0.1234}, "1e308", False),
        ({"multipleOf": 1e-8}, "12391239123", True),
        ({"multipleOf": 1e-308}, "1e308", True),
        ({"multipleOf": 7}, "true", True),
    ],
)
def test_keywords_mean_what_json_schema_says(schema: dict[str, Any], text: str, good: bool) -> None:
    """Classes of ASCII, `$` at the very end, white space of ECMA 262, and multiples by their decimal digits."""
    assert (judged(schema, text) is None) == good


@pytest.mark.parametrize(
    ("pattern", "text", "good"),
    [
        ("a$", "a", True),
        ("a$", "a\n", False),
        (r"\d+", "\u0663", True),
        (r"\w+", "caf\u00e9", True),
        (r"\w+", "e\u0301", True),
        (r"\s", "\u00a0", True),
        (r"\s", "\x1f", False),
        ("[a[b]]", "b", True),
    ],
)
def test_expressions_mean_what_rust_says(pattern: str, text: str, good: bool) -> None:
    """Their classes are those of Unicode, as the grammar has them."""
    assert (conforms(Constraint("regex", pattern), text) is None) == good


BYTES = Vocabulary([*(bytes([b]) for b in range(256)), b""], {"<end>": 256}, [256], lambda text: list(text.encode()))
FORMATS = ("date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dialect", ["draft-04/schema#", "draft-06/schema#", "draft-07/schema#", None])
def test_every_format_that_the_grammar_allows_conforms(name: str, dialect: str | None) -> None:
    """Random answers of each format, in each dialect: none is complete and wrong."""
    schema: dict[str, Any] = {"type": "string", "format": name}
    if dialect is not None:
        schema["$schema"] = f"http://json-schema.org/{dialect}"
    grammar = compile_grammar(Constraint("json_schema", json.dumps(schema)), BYTES)
    rng = np.random.default_rng(5)
    for _ in range(30):
        state, said = grammar.start(), bytearray()
        while not state.ended:
            token = int(state.mask(rng.standard_normal(257).astype(np.float32)).argmax())
            state.advance(token)
            said += BYTES.token_bytes[token]
        assert conforms(grammar.constraint, said.decode()) in (None, NO_SUCH_TIME), said


@pytest.mark.parametrize(
    ("name", "text", "good"),
    [
        ("date", "2024-02-29", True),
        ("date", "0000-02-29", True),
        ("date", "0000-01-01", True),
        ("date", "2023-02-30", False),
        ("date", "2023-04-31", False),
        ("date", "2023-13-01", False),
        ("date", "2023-01-01\n", False),
        ("date", "20230101", False),
        ("time", "23:59:60Z", True),
        ("time", "15:59:60-08:00", True),
        ("time", "00:29:60+00:30", True),
        ("time", "12:00:61Z", False),
        ("time", "24:00:00Z", False),
        ("time", "12:00:00", False),
        ("date-time", "2024-02-29T23:59:60Z", True),
        ("date-time", "2023-02-30T12:00:00Z", False),
        ("date-time", "2023-01-01 12:00:00Z", False),
    ],
)
def test_dates_and_times_are_judged_by_their_syntax(name: str, text: str, good: bool) -> None:
    """As the grammar does, which knows no leap years and no leap seconds."""
    found = judged({"format": name}, json.dumps(text))
    assert (found is None) == good
    assert found != NO_SUCH_TIME


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("date", "2023-02-29"),
        ("date", "1900-02-29"),
        ("time", "12:00:60Z"),
        ("time", "23:59:60+01:00"),
        ("time", "23:58:60.5Z"),
        ("date-time", "2023-02-29T12:00:00Z"),
        ("date-time", "2024-02-29T12:00:60Z"),
    ],
)
def test_what_no_calendar_has_is_told_apart(name: str, text: str) -> None:
    """A grammar cannot know it, so it is not valid, and no defect; with another fault it is one."""
    assert judged({"format": name}, json.dumps(text)) == NO_SUCH_TIME
    assert judged({"anyOf": [{"type": "null"}, {"format": name}]}, json.dumps(text)) == NO_SUCH_TIME
    assert judged({"format": name, "maxLength": 3}, json.dumps(text)) not in (None, NO_SUCH_TIME)


# --- reasons ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "value", "reason"),
    [
        ({"additionalProperties": {"type": "integer"}}, {"Jane Doe hunter2": "x"}, "#/* breaks type"),
        ({"patternProperties": {"^J": {"type": "integer"}}}, {"Jane Doe hunter2": "x"}, "#/* breaks type"),
        ({"properties": {"a": {"items": {"type": "integer"}}}}, {"a": [1, "x"]}, "#/a/1 breaks type"),
        ({"properties": {"*": {"type": "integer"}}}, {"*": "x"}, "#/* breaks type"),
        (
            {"additionalProperties": {"properties": {"n": {"type": "integer"}}}},
            {"Jane Doe hunter2": {"n": "x"}},
            "#/*/n breaks type",
        ),
    ],
)
def test_reasons_name_only_what_the_schema_names(schema: Any, value: Any, reason: str) -> None:
    """A key that the answer invented may be anything, a name or a password."""
    assert judged(schema, json.dumps(value)) == reason


@given(st.dictionaries(st.text(min_size=3), st.integers(), min_size=1))
def test_no_reason_quotes_a_key(value: dict[str, int]) -> None:
    """Whatever the keys are."""
    assert judged({"additionalProperties": {"type": "string"}}, json.dumps(value)) == "#/* breaks type"


def test_deadline_of_one_validation_is_not_of_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """A validator is kept, its clock is not."""
    monkeypatch.setattr(conformity, "MOST_SECONDS", 0.2)
    assert judged({"pattern": "^a$"}, '"a"') is None
    end = time.thread_time() + 0.3
    while time.thread_time() < end:
        pass
    assert judged({"pattern": "^a$"}, '"a"') is None
