"""What is no schema, or would be too much work, is refused before anything works with it."""

import signal
from typing import Any

import pytest

from appliance.decoding import json_schema
from appliance.errors import InvalidRequest

HUGE = int("9" * 401)
DRAFT_3 = "http://json-schema.org/draft-03/schema#"

# name | schema | words of the error
REFUSED: list[tuple[str, Any, str]] = [
    ("a length of 401 digits", {"type": "string", "minLength": HUGE}, "beyond what a double can hold"),
    ("a count of 401 digits", {"type": "array", "minItems": HUGE}, "beyond what a double can hold"),
    ("a multiple of 401 digits", {"multipleOf": HUGE}, "beyond what a double can hold"),
    ("a bound of 401 digits", {"properties": {"a": {"maximum": -HUGE}}}, "beyond what a double can hold"),
    ("a value of 401 digits", {"enum": [{"a": [HUGE]}]}, "beyond what a double can hold"),
    ("a bound without end", {"maximum": float("inf")}, "beyond what a double can hold"),
    ("an old dialect", {"$schema": DRAFT_3, "properties": {"a": {"required": True}}}, "older than draft-04"),
    ("half a character", {"const": "\ud800"}, "half a character"),
    ("half a character as a name", {"properties": {"\udfff": {}}}, "half a character"),
    ("what is left over", {"type": "object", "unevaluatedProperties": False}, "unevaluatedProperties at #"),
    ("items left over", {"items": {"unevaluatedItems": False}}, "unevaluatedItems at #/items"),
]


@pytest.mark.parametrize(("schema", "words"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused_in_words(schema: Any, words: str) -> None:
    """Whoever sends it, a request or a task; as a 400 and not as an error of Skerry's own."""
    with pytest.raises(InvalidRequest, match=words) as caught:
        json_schema.check(schema)
    assert caught.value.hint


@pytest.mark.parametrize("draft", ["draft-04/schema#", "draft-06/schema#", "draft-07/schema#"])
def test_newer_dialects_are_known(draft: str) -> None:
    """All that came after draft-03."""
    json_schema.check({"$schema": f"http://json-schema.org/{draft}", "type": "string"})


def test_unlike_values_are_compared_quickly() -> None:
    """Thousands that cannot be sorted, in a dialect that wants them to differ."""

    def late(*_: object) -> None:
        raise TimeoutError("a schema is compared for ever")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    try:
        values = [{"a": i} if i % 2 else i for i in range(9_000)]
        json_schema.check({"$schema": "http://json-schema.org/draft-04/schema#", "enum": values})
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_half_a_character_in_text_is_called_so() -> None:
    """Not an error of some codec."""
    with pytest.raises(InvalidRequest, match="half a character"):
        json_schema.parse('{"const": "\ud800"}')


def test_names_are_those_of_members() -> None:
    """At any depth; what an answer may invent is none."""
    inner = {"additionalProperties": {"properties": {"b": {}}}, "patternProperties": {"^c": {}}}
    assert json_schema.names({"properties": {"a": inner}}) == {"a", "b"}
