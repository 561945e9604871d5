"""Verifiers judge as they are declared, never quote the text, and never take long."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.config import convert, load_yaml
from appliance.decoding.verifiers import Context, Verdict, Verifier, canonical, judge
from appliance.errors import ConfigError

PROPERTIES = "properties: {a: {type: integer, minimum: 3}}, additionalProperties: false"
SCHEMA = "{kind: schema, schema: {type: object, required: [a], " + PROPERTIES + "}}"
SOURCES = ("The pump P-204 must be greased every\n  six months.", "Valve 7 is closed at night.")


def verifier(text: str) -> Verifier:
    return convert(load_yaml(text.encode(), "test"), Verifier, "test")


# declaration | input | text | passes
TABLE = [
    (SCHEMA, "", '{"a": 3}', True),
    (SCHEMA, "", ' {"a": 3} \n', True),
    (SCHEMA, "", '{"a": 2}', False),
    (SCHEMA, "", '{"a": 3, "b": 1}', False),
    (SCHEMA, "", '{"a": 1, "a": 3}', False),
    ("{kind: schema, schema: {}}", "", "NaN", False),
    ("{kind: schema, schema: {}}", "", "[1, 2] and more", False),
    ("{kind: schema, schema: {}}", "", "1e999", False),
    ("{kind: schema, schema: {}}", "", '{"a": "\\ud800"}', False),
    ("{kind: schema, schema: {}}", "", "[" * 10_000, False),
    ("{kind: schema, schema: {}}", "", "", False),
    ("{kind: json_keys, keys: [a, b.c]}", "", '{"a": null, "b": {"c": ""}}', True),
    ("{kind: json_keys, keys: [a, b.c], filled: true}", "", '{"a": 0, "b": {"c": " "}}', False),
    ("{kind: json_keys, keys: [a, b.c], filled: true}", "", '{"a": 0, "b": {"c": false}}', True),
    ("{kind: json_keys, keys: [a]}", "", '{"b": 1}', False),
    ("{kind: json_keys, keys: [a.1]}", "", '{"a": [5, 6]}', True),
    ("{kind: json_keys, keys: [a.2]}", "", '{"a": [5, 6]}', False),
    ("{kind: json_keys, keys: [a]}", "", "a", False),
    ("{kind: one_of, values: [yes, no]}".replace("yes, no", '"yes", "no"'), "", " yes\n", True),
    ("{kind: one_of, values: [pump]}", "", "Pump", False),
    ("{kind: one_of, values: [pump], ignore_case: true}", "", "PUMP", True),
    ("{kind: one_of, field: a, values: ['3']}", "", '{"a": 3}', True),
    ("{kind: one_of, field: a, values: ['true']}", "", '{"a": true}', False),
    ("{kind: regex, pattern: '[A-Z]-[0-9]{3}'}", "", "P-204", True),
    ("{kind: regex, pattern: '[A-Z]-[0-9]{3}'}", "", "see P-204", False),
    ("{kind: regex, pattern: '[A-Z]-[0-9]{3}', search: true}", "", "see P-204\nplease", True),
    ("{kind: regex, pattern: '[A-Z]-[0-9]{3}', search: true}", "", "see p-204", False),
    ("{kind: regex, pattern: 'a|b', search: true}", "", "xbx", True),
    ("{kind: regex, pattern: 'P', field: a}", "", '{"a": "P"}', True),
    ("{kind: number, expression: '12 * 7'}", "", "12 * 7 = 84.", True),
    ("{kind: number, expression: '12 * 7'}", "", "It is 85.", False),
    ("{kind: number, expression: '1 / 3', tolerance: 0.001}", "", "0.3333", True),
    ("{kind: number, expression: '1 / 3'}", "", "0.33", False),
    ("{kind: number}", "What is 17 * 23 + 4?", "That is 395", True),
    ("{kind: number}", "What is 17 * 23 + 4?", "That is 391", False),
    ("{kind: number}", "What is it?", "3", False),
    ("{kind: number}", "What is 1 / 0 + 2?", "3", False),
    ("{kind: number, field: a}", "2 + 2", '{"a": 4, "b": 5}', True),
    ("{kind: number}", "2 + 2", "four", False),
    ("{kind: citations}", "", 'It says: "must be greased every six months".', True),
    ("{kind: citations}", "", "It says: \u201cmust be greased every six\nmonths\u201d.", True),
    ("{kind: citations}", "", 'It says: "must be oiled every six months".', False),
    ("{kind: citations}", "", "It says nothing.", False),
    ("{kind: citations, at_least: 0}", "", 'The "big pump".', True),
    ("{kind: citations, at_least: 2}", "", '"is closed at night" and "every six months"', True),
    ("{kind: citations, field: q}", "", '{"q": ["Valve 7 is closed", "greased every six"]}', True),
    ("{kind: citations, field: q}", "", '{"q": ["Valve 8 is closed"]}', False),
    ("{kind: citations, field: q}", "", '{"q": 3}', False),
    ("{kind: citations, required: [closed at night]}", "", '"Valve 7 is closed at night"', True),
    ("{kind: citations, required: [six months]}", "", '"Valve 7 is closed at night"', False),
    ("{kind: length, max_words: 3}", "", "one two three", True),
    ("{kind: length, max_words: 3}", "", "one two three four", False),
    ("{kind: length, min_chars: 5}", "", " abc  ", False),
    ("{kind: length, max_chars: 2, field: a}", "", '{"a": "abc"}', False),
]


@pytest.mark.parametrize(("declared", "asked", "text", "passes"), TABLE, ids=range(len(TABLE)))
def test_verdict(declared, asked, text, passes):
    """Every row: one verifier, one text; a failure has a reason that quotes nothing of it."""
    found = verifier(declared).check(text, Context(input=asked, sources=SOURCES))
    assert found.passed is passes
    assert bool(found.reason) is not passes
    assert not any(word in found.reason for word in ("oiled", "P-204", "85", "four", "big pump"))


def test_citations_without_sources_are_of_the_input():
    """A task that brings its page in the input needs no other source."""
    judged = verifier("{kind: citations}")
    assert judged.check('"opens at eight o\'clock"', Context(input="The gate opens at eight o\u2019clock.")).passed
    assert not judged.check('"opens at nine o\'clock"', Context(input="The gate opens at eight o\u2019clock.")).passed


def test_agreement_counts_the_same_answers():
    """Case, blanks and the form of JSON do not count; a field can be what must agree; one alone agrees with nobody."""
    judged = verifier("{kind: agreement, share: 0.6}")
    assert judged.needs_others
    three = ("The Pump.", "the  pump", "a valve")
    assert judged.check("the pump", Context(candidates=three)).passed
    assert not judged.check("a valve", Context(candidates=three)).passed
    assert not judged.check("the pump", Context(candidates=("the pump",))).passed
    field = verifier("{kind: agreement, field: a}")
    texts = ('{"a": "X", "b": 1}', '{"b": 2, "a": "x"}', "no JSON")
    assert field.check(texts[0], Context(candidates=texts)).passed
    assert not field.check("no JSON", Context(candidates=(*texts, "no more JSON"))).passed


def test_names_are_kinds_unless_given():
    """Verdicts are called by the verifier's name."""
    both = convert([{"kind": "length", "name": "short", "max_words": 1}, {"kind": "length"}], tuple[Verifier, ...], "x")
    assert judge(both, "two words") == (
        Verdict(False, "short", "2 words, expected at most 1"),
        Verdict(True, "length"),
    )


# declaration | words of the error
REFUSED = [
    ("{kind: no_such}", "no_such"),
    ("{kind: length, max_word: 3}", "max_word"),
    ("{kind: schema, schema: {type: nonsense}}", "type"),
    ("{kind: schema, schema: {$ref: 'http://example.org/x'}}", "another document"),
    ("{kind: schema}", "schema"),
    ("{kind: regex, pattern: '(a'}", "regular expression|regex|unclosed"),
    ("{kind: regex, pattern: '(?=a)b'}", "look-around"),
    ("{kind: regex, pattern: '(a)\\1', search: true}", "backref|regex"),
    ("{kind: one_of, values: []}", "values"),
    ("{kind: number, expression: '1 / 0'}", "divides by zero"),
    ("{kind: number, expression: 'import os'}", "no number"),
    ("{kind: agreement, votes: 1}", "votes"),
    ("{kind: agreement, share: 1.5}", "share"),
]


@pytest.mark.parametrize(("declared", "words"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_work_is_refused_when_it_is_read(declared, words):
    """Not at the first answer, and with the place."""
    with pytest.raises(ConfigError, match=words):
        verifier(declared)


PATTERNS = ["(a+)+b", "(a|aa)*b", "(a*)*b", "(x+x+)+y", "a*a*a*a*a*a*b", "(.*a){12}"]


@pytest.mark.parametrize("search", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_no_pattern_holds_the_daemon_up(pattern, search):
    """Patterns that make backtracking matchers run for years are matched in well under a second each."""
    judged = convert({"kind": "regex", "pattern": pattern, "search": search}, Verifier, "x")
    start = time.perf_counter()
    judged.check("a" * 5000)
    assert time.perf_counter() - start < 5


def test_pattern_within_a_schema_does_not_either():
    """The schema's own patterns are matched the same way."""
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}}
    judged = convert({"kind": "schema", "schema": schema}, Verifier, "x")
    start = time.perf_counter()
    assert not judged.check(json.dumps({"a": "a" * 2000 + "b"})).passed
    assert time.perf_counter() - start < 5


def test_text_beyond_the_bound_fails():
    """Nothing is judged that nobody reads."""
    assert not verifier("{kind: length}").check("a" * 70_000).passed


EVERY = [verifier(declared) for declared in sorted({row[0] for row in TABLE})]


@given(st.text(max_size=60))
def test_any_text_gets_a_verdict(text):
    """No verifier raises, whatever is said."""
    for judged in EVERY:
        found = judged.check(text, Context(input=text, sources=(text,), candidates=(text, text)))
        assert isinstance(found, Verdict)
        assert found.passed or found.reason


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner)))
def test_json_is_the_same_however_it_is_written(value):
    """Canonical answers do not depend on white space or escapes."""
    assert canonical(json.dumps(value)) == canonical(json.dumps(value, indent=2, ensure_ascii=False))
