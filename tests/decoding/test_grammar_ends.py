"""Every grammar ends: whatever the model prefers, and wherever the answer is cut."""

import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from appliance.decoding.conformity import conforms
from appliance.decoding.grammar import Constraint, Grammar, GrammarState, Vocabulary, compile_grammar, json_rule
from appliance.decoding.json_bounds import DEFAULT_BOUNDS, Bounds
from appliance.decoding.sampling import Logits
from tests.fakes.grammars import (
    CONTROL,
    OBJECT,
    SMALL,
    STOP,
    TINY,
    TREE,
    allowed,
    chance,
    feed,
    noise,
    said,
    schema_grammar,
    walk,
)

# --- it always ends ---------------------------------------------------------------------------------------------------

DAYS = {
    "type": "object",
    "patternProperties": {"^(mon|tue|wed|thu|fri)$": {"type": "integer"}},
    "additionalProperties": False,
}
LETTERS = DAYS | {"patternProperties": {"^[ab]{1,2}$": {"enum": ["a, b", [1], {}]}}}
ENDLESS: dict[str, Any] = {
    "anything": {},
    "object": {"type": "object"},
    "array": {"type": "array"},
    "string": {"type": "string"},
    "number": {"type": "number"},
    "multiple": {"type": "integer", "multipleOf": 7},
    "tree": TREE,
    "map of maps": {"type": "object", "additionalProperties": {"$ref": "#"}},
    "demanding": {"type": "string", "minLength": 120},
    "pattern": {"type": "object", "properties": {"a": {"type": "string", "pattern": "^.*END$"}}, "required": ["a"]},
    "required": OBJECT | {"required": ["name", "n", "tags"]},
    "days": DAYS,
    "map of few names": LETTERS,
    "maps of days": LETTERS | {"patternProperties": {"^[ab]$": DAYS | {"minProperties": 5}}},
    "names of a union": {"anyOf": [LETTERS | {"minProperties": 2}, {"type": "array", "items": DAYS, "minItems": 1}]},
}
TASTES = {
    "blanks": lambda d: not d.strip(),
    "digits": lambda d: not d.strip(b"0123456789"),
    "letters": lambda d: d[:1].isalpha(),
    "items": lambda d: b"," in d,
    "depth": lambda d: b"[" in d or b"{" in d,
    "quotes": lambda d: b'"' in d,
    "escapes": lambda d: b"\\" in d,
    "short": lambda d: len(d) == 1,
    "beyond ascii": lambda d: d[0] > 0x7F,
    "signs": lambda d: d[:1] in (b"-", b".", b"e", b"E", b"+"),
}


def adversaries(vocabulary: Vocabulary) -> dict[str, Logits]:
    """Logits that always prefer one thing, and never to stop."""
    rows = {}
    for name, taste in TASTES.items():
        row = np.zeros(len(vocabulary), np.float32)
        for token, data in enumerate(vocabulary.token_bytes):
            if data and taste(data):
                row[token] = 10 - 0.05 * len(data)
        row[list(vocabulary.stop)] = -100
        rows[name] = row
    return rows


def ends(grammar: Grammar, rows: list[Logits], rng: np.random.Generator, budget: int) -> int:
    """Let an adversary speak; the tokens that it took to a complete and conforming answer."""
    state, tokens = grammar.start(), list[int]()
    spread = noise(rng, grammar.vocabulary) * np.float32(0.3)
    while not state.ended:
        assert len(tokens) < budget, said(state, tokens[-60:])
        row = rows[int(rng.integers(len(rows)))] + spread
        tokens.append(int(state.mask(row).argmax()))
        state.advance(tokens[-1])
        if tokens[-1] in grammar.vocabulary.stop:
            tokens.pop()
            break
    assert state.complete
    assert conforms(grammar.constraint, said(state, tokens)) is None, said(state, tokens)
    return len(tokens)


@pytest.mark.parametrize("name", ENDLESS)
def test_no_grammar_is_a_place_to_loop(name: str) -> None:
    """110 answers of adversaries that want one thing only: all end by themselves, complete and valid."""
    grammar = schema_grammar(ENDLESS[name], bounds=SMALL)
    for seed, row in enumerate(adversaries(TINY).values()):
        ends(grammar, [row], chance(seed), budget=SMALL.total + 200)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENDLESS)
@pytest.mark.parametrize("bounds", [SMALL, DEFAULT_BOUNDS], ids=["small", "default"])
def test_no_runaway_in_a_thousand_answers(name: str, bounds: Bounds, real: Vocabulary) -> None:
    """1,100 of them on the real vocabulary, mixed tastes too, and the default bounds as well."""
    grammar = schema_grammar(ENDLESS[name], real, bounds)
    rows = list(adversaries(real).values())
    runs = 100 if bounds is SMALL else 2
    for seed in range(runs):
        wanted = [rows[seed % len(rows)]] if seed % 3 else rows
        ends(grammar, wanted, chance(seed), budget=bounds.total + 300)


def test_a_bound_gives_way_to_the_schema() -> None:
    """Where only what passes a bound is legal, the answer goes on and is led out."""
    long = schema_grammar({"type": "string", "pattern": "^[a-z]{60}$"}, bounds=SMALL)
    ends(long, [adversaries(TINY)["letters"]], chance(1), budget=200)
    short = feed(schema_grammar({"type": "object"}, bounds=SMALL).start(), '{"' + "a" * 40)
    assert {TINY.token_bytes[t] for t in allowed(short)} <= {b'"', b'":', b'": '}


def test_an_object_closes_when_its_names_are_used_up() -> None:
    """No comma leads to where only a name could follow that is there already, and no letter leads into one."""
    grammar = schema_grammar(DAYS)
    four = '{"mon": 1, "tue": 2, "wed": 3, "thu": 4'
    assert {b",", b", ", b"}"} <= {TINY.token_bytes[t] for t in allowed(feed(grammar.start(), four))}
    all_five = {TINY.token_bytes[t] for t in allowed(feed(grammar.start(), four + ', "fri": 5'))}
    assert b"}" in all_five
    assert not any(b"," in data for data in all_five)
    assert {TINY.token_bytes[t] for t in allowed(feed(grammar.start(), '{"mon": 1, "'))} == {b"t", b"w", b"f"}
    assert {TINY.token_bytes[t] for t in allowed(feed(grammar.start(), '{"mon": 1, "tue": 2, "t'))} == {b"h"}
    nested = schema_grammar({"type": "array", "items": DAYS})
    assert {b", ", b"]"} <= {TINY.token_bytes[t] for t in allowed(feed(nested.start(), "[" + four + ', "fri": 5}'))}


def test_an_object_that_needs_more_names_than_there_are_ends_all_the_same() -> None:
    """It is not complete, however well it is written: the verdict says so, and no defect is reported."""
    grammar = schema_grammar(LETTERS | {"minProperties": 9})
    for seed, row in enumerate(adversaries(TINY).values()):
        state, rng = grammar.start(), chance(seed)
        said_so_far = walk_to_the_end(state, row, rng)
        assert state.ended
        assert not state.complete
        assert "two members" in (conforms(grammar.constraint, said_so_far) or "")


@pytest.mark.parametrize("schema", [DAYS, LETTERS], ids=["days", "letters"])
def test_names_are_used_up_on_a_real_vocabulary_too(schema: Any, real: Vocabulary) -> None:
    """Where one token is a comma, a blank and the beginning of a name, and the engine writes what is forced."""
    grammar = schema_grammar(schema, real)
    for seed, row in enumerate(adversaries(real).values()):
        state, rng, tokens = grammar.start(), chance(seed), list[int]()
        while not state.ended:
            choice = int(state.mask(row + noise(rng, real) * np.float32(0.3)).argmax())
            for token in [choice] if state.ended else [choice, *forced_after(state, choice)]:
                state.advance(token)
                tokens.append(token)
        text = said(state, [token for token in tokens if token not in real.stop])
        assert conforms(grammar.constraint, text) is None, text


def forced_after(state: GrammarState, token: int) -> list[int]:
    state.advance(token)
    found = [] if state.ended else state.forced()
    state.rollback(1)
    return found


def walk_to_the_end(state: GrammarState, row: Logits, rng: np.random.Generator) -> str:
    tokens: list[int] = []
    while not state.ended:
        assert len(tokens) < 300, said(state, tokens)
        tokens.append(int(state.mask(row + noise(rng) * np.float32(0.3)).argmax()))
        state.advance(tokens[-1])
    return said(state, [token for token in tokens if token not in STOP])


def test_the_same_name_in_other_letters_is_the_same() -> None:
    """Escapes may be written with capitals; JSON does not tell them apart."""
    state = feed(schema_grammar({"type": "object"}).start(), '{"\\u001f": 1, "\\u001F": 2}')
    assert state.ended
    assert not state.complete


def test_json_in_a_tool_grammar_is_bounded_too() -> None:
    """Text before a call is free; within its JSON a string, a number and a list end."""
    source = "start: /[a-z ]*/ <call> " + json_rule({"type": "object"}) + " </call>"
    state = compile_grammar(Constraint("lark", source), TINY).start()
    feed(state, "let me call this ")
    state.advance(CONTROL["<call>"])
    feed(state, '{"a": 12345678901234567890')
    assert not any(TINY.token_bytes[t][:1].isdigit() for t in allowed(state))
    feed(state, ', "b": "x"}')
    state.advance(CONTROL["</call>"])
    assert state.ended


# --- the shortest end -------------------------------------------------------------------------------------------------

STRING, INTEGER = {"type": "string"}, {"type": "integer"}
CUT: dict[str, tuple[Any, Any]] = {
    "flat": (OBJECT, {"name": "Ada Lovelace", "n": 36, "tags": ["a", None, {"b": [1, 2]}]}),
    "tree": (TREE, {"v": "root", "c": [{"v": "leaf", "c": []}, {"v": "branch", "c": [{"v": "", "c": []}]}]}),
    "enum": ({"enum": ["alpha", "alphabet", "beta", 17, None, True]}, "alphabet"),
    "const": ({"const": {"a": [1, 2, {"b": "c"}]}}, {"a": [1, 2, {"b": "c"}]}),
    "min length": ({"type": "string", "minLength": 30}, "x" * 40),
    "max length": ({"type": "string", "minLength": 3, "maxLength": 5}, "abcd"),
    "pattern": ({"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"}, "AB-1234"),
    "open pattern": ({"type": "string", "pattern": "^[a-z]+@[a-z]+\\.(com|org)$"}, "someone@example.org"),
    "suffix": ({"type": "string", "pattern": "^.*END$"}, "the END"),
    "date": ({"type": "string", "format": "date"}, "2024-02-29"),
    "date-time": ({"type": "string", "format": "date-time"}, "2024-02-29T12:30:00Z"),
    "uuid": ({"type": "string", "format": "uuid"}, "123e4567-e89b-12d3-a456-426614174000"),
    "email": ({"type": "string", "format": "email"}, "a.b@example.com"),
    "ipv4": ({"type": "string", "format": "ipv4"}, "192.168.0.1"),
    "integer": ({"type": "integer", "minimum": 100, "maximum": 99_999}, 4711),
    "negative": ({"type": "integer", "maximum": -5}, -123),
    "number": ({"type": "number"}, -12.5e-3),
    "range": ({"type": "number", "minimum": 0.25, "maximum": 0.75}, 0.5),
    "multiple": ({"type": "integer", "multipleOf": 7}, 49),
    "boolean": ({"type": "boolean"}, False),
    "null": ({"type": "null"}, None),
    "items": ({"type": "array", "items": INTEGER, "minItems": 3, "maxItems": 6}, [1, 22, 333, 4444]),
    "tuple": ({"type": "array", "prefixItems": [STRING, INTEGER], "items": False, "minItems": 2}, ["a", 1]),
    "objects": ({"type": "array", "minItems": 2, "items": OBJECT}, [{"name": "a", "n": 1}, {"name": "b", "n": 2}]),
    "map": ({"type": "object", "additionalProperties": INTEGER}, {"a": 1, "b": 22}),
    "min properties": ({"type": "object", "minProperties": 2, "additionalProperties": INTEGER}, {"a": 1, "b": 2}),
    "pattern properties": (
        {"type": "object", "patternProperties": {"^x_[0-9]+$": STRING}, "additionalProperties": False},
        {"x_1": "a", "x_22": "b"},
    ),
    "any of": ({"anyOf": [OBJECT, {"type": "array", "items": STRING}, INTEGER]}, ["a", "b"]),
    "one of": ({"oneOf": [{"type": "string"}, {"type": "integer"}]}, 12),
    "all of": ({"allOf": [{"type": "object", "required": ["name"]}, OBJECT]}, {"name": "x", "n": 1}),
    "optional": ({"type": "object", "properties": dict.fromkeys("abcdef", INTEGER)}, {"a": 1, "c": 2, "f": 3}),
    "nested required": (
        {"type": "object", "properties": {"a": OBJECT, "b": {"type": "array", "items": OBJECT, "minItems": 1}}}
        | {"required": ["a", "b"]},
        {"a": {"name": "q", "n": 0}, "b": [{"name": "", "n": -1, "tags": []}]},
    ),
    "nullable": ({"type": ["string", "null"]}, "maybe"),
    "unicode": (
        {"type": "object", "properties": {"schlüssel": STRING}, "required": ["schlüssel"]},
        {"schlüssel": "日本é"},
    ),
    "escapes": (STRING, 'a"b\\c\nd\te\x01'),
    "anything": ({}, [{"a": "b"}, [], {}, "c", -1.5e10, None, True]),
}


def complete_everywhere(grammar: Grammar, text: str) -> Iterator[tuple[int, int]]:
    """Cut an answer after every token, and complete it: how many tokens were left, and how many were found."""
    tokens = grammar.vocabulary.encode(text)
    for cut in range(len(tokens) + 1):
        state = grammar.start()
        for token in tokens[:cut]:
            state.advance(token)
        found = state.shortest_completion()
        assert found is not None, text[:cut]
        assert found == [] or not state.complete
        for token in found:
            state.advance(token)
        assert state.complete
        whole = said(state, [*tokens[:cut], *found])
        assert conforms(grammar.constraint, whole) is None, whole
        yield len(tokens) - cut, len(found)


@pytest.mark.parametrize("name", CUT)
def test_every_answer_can_be_completed_wherever_it_is_cut(name: str, real: Vocabulary) -> None:
    """The completion is legal, makes the answer complete and valid, and is never longer than it has to be by much."""
    schema, instance = CUT[name]
    text = json.dumps(instance, ensure_ascii=False)
    for left, found in complete_everywhere(schema_grammar(schema, real), text):
        assert found <= left + 8


def test_answers_are_completed_on_a_vocabulary_of_bytes_too() -> None:
    """Without the tokens that make it easy."""
    for name in ("flat", "tree", "pattern", "any of", "nested required", "escapes"):
        schema, instance = CUT[name]
        list(complete_everywhere(schema_grammar(schema), json.dumps(instance, ensure_ascii=False)))


@pytest.mark.parametrize(
    ("kind", "source", "text"),
    [
        ("regex", r"[a-z]+@[a-z]+\.com", "someone@example.com"),
        ("regex", "(yes|no), because .{10,40}\\.", "yes, because it is what it is."),
        ("regex", ".*END", "some words END"),
        ("lark", 'start: expr\nexpr: NUM | "(" expr "+" expr ")"\nNUM: /[0-9]+/', "((1+22)+(3+4))"),
        (
            "lark",
            "start: %json " + json.dumps(OBJECT | {"x-guidance": {"whitespace_flexible": False}}),
            '{"name":"x","n":1}',
        ),
    ],
)
def test_expressions_and_grammars_are_completed(kind: str, source: str, text: str, real: Vocabulary) -> None:
    """The search needs no JSON."""
    grammar = compile_grammar(Constraint(kind, source), real)  # type: ignore[arg-type]
    list(complete_everywhere(grammar, text))


def test_long_ways_are_found_in_bounded_time(real: Vocabulary) -> None:
    """A minLength or a minItems of hundreds."""
    started = time.monotonic()
    for schema in ({"type": "string", "minLength": 3_000}, {"type": "array", "minItems": 200, "items": OBJECT}):
        state = schema_grammar(schema, real).start()
        walk(state, chance(1), 20)
        found = state.shortest_completion()
        assert found
        for token in found:
            state.advance(token)
        assert state.complete
    assert time.monotonic() - started < 20


def test_an_end_that_only_luck_would_find_is_not_found() -> None:
    """The search gives up within its bound."""
    state = compile_grammar(Constraint("regex", "([a-z]{40}x|[a-y]{3})*qzj{700}w[0-9]{3}"), TINY).start()
    started = time.monotonic()
    state.shortest_completion()
    assert time.monotonic() - started < 10


def test_where_each_step_is_dear_the_search_gives_up_in_time() -> None:
    """Recursion to the right: whatever closes it completes thousands of rules at once, more than llguidance will."""
    state = compile_grammar(Constraint("lark", 'start: "(" start | "a"'), TINY).start()
    for _ in range(4_000):
        state.advance(ord("("))
    started = time.thread_time()
    assert state.shortest_completion() is None
    assert time.thread_time() - started < 2.5
    state.rollback(2_500)
    assert state.shortest_completion()
