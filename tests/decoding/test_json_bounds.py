"""The place in JSON is followed exactly, and what passes a bound is taken away as long as something remains."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.decoding.json_bounds import (
    ESCAPE,
    EXPONENT,
    FIRST,
    IDLE,
    NEXT,
    NUMBER,
    OUTSIDE,
    START,
    START_OF_TEXT,
    STRING,
    Bounds,
    JsonBounds,
    Place,
    TokenShapes,
    step,
)

PIECES = [bytes([b]) for b in range(256)] + [
    b"", b'","', b'": ', b"[[", b'"]}', b"  ", b"1234", b"12e345", b"abcdef", b'{"', b"], [", b'\\"', b'""',
    "é".encode(), b"e99", b", 1", b'a": ',
]  # fmt: skip
SHAPES = TokenShapes.of(PIECES)
SMALL = Bounds(whitespace=1, digits=4, exponent=2, string=6, items=3, depth=3, total=60)

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


def at(text: str | bytes, start: Place = START) -> Place:
    """The place after a text."""
    return step(start, text.encode() if isinstance(text, str) else text)


def kept(bounds: Bounds, place: Place, *pieces: bytes) -> list[bytes] | None:
    """Which of some tokens remain; None if no bound is near."""
    bits = np.zeros(len(PIECES), np.uint8)
    bits[[PIECES.index(p) for p in pieces]] = 1
    left = JsonBounds(SHAPES, bounds).narrow(place, np.packbits(bits, bitorder="little"))
    if left is None:
        return None
    return [p for p in pieces if left[PIECES.index(p) >> 3] >> (PIECES.index(p) & 7) & 1]


@pytest.mark.parametrize(
    ("text", "mode", "run", "depth", "awaits"),
    [
        ("", OUTSIDE, 0, 0, 0),
        ("[", OUTSIDE, 0, 1, FIRST),
        ("[1,", OUTSIDE, 0, 1, NEXT),
        ("[1, ", OUTSIDE, 1, 1, NEXT),
        ("[12", NUMBER, 2, 1, 0),
        ("[-1.5", NUMBER, 4, 1, 0),
        ('{"a', STRING, 1, 1, 0),
        ('{"a\\', ESCAPE, 2, 1, 0),
        ('{"a\\"', STRING, 3, 1, 0),
        ('{"é', STRING, 1, 1, 0),
        ('{"a": {"b": [', OUTSIDE, 0, 3, FIRST),
        ('{"a": {"b": []}', OUTSIDE, 0, 1, 0),
        ('"[[[[', STRING, 4, 0, 0),
    ],
)
def test_place_is_followed(text: str, mode: int, run: int, depth: int, awaits: int) -> None:
    """Strings, escapes, numbers, white space and nesting, byte by byte."""
    place = at(text)
    assert (place.mode, place.run, place.depth, place.awaits) == (mode, run, depth, awaits)


@given(values, st.lists(st.integers(0, 200), max_size=12))
def test_place_does_not_depend_on_how_the_text_is_cut(value: object, cuts: list[int]) -> None:
    """Tokens may begin and end anywhere; whole JSON always ends outside of everything."""
    data = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
    place, begin = START, 0
    for cut in sorted(c for c in cuts if c < len(data)):
        place, begin = step(place, data[begin:cut]), cut
    place = step(place, data[begin:])
    assert place == at(data)
    assert place.depth == 0
    assert place.frame is None
    assert place.mode in (OUTSIDE, NUMBER, EXPONENT)
    assert not place.repeats


def test_far_from_every_bound_nothing_is_looked_at() -> None:
    """The usual case costs nothing: no mask is made."""
    assert kept(Bounds(), at('{"a'), b"b", b'"') is None
    assert kept(Bounds(), at("[1, [2, 3", START_OF_TEXT), b"4", b"]") is None


@pytest.mark.parametrize(
    ("before", "offered", "remaining"),
    [
        ("[1, ", [b" ", b"  ", b"1"], [b"1"]),
        ("[1,", [b" ", b"  ", b"1"], [b" ", b"1"]),
        ("[123", [b"1234", b"1", b"]"], [b"1", b"]"]),
        ("[1234", [b"1", b"]", b", 1"], [b"]", b", 1"]),
        ("[1e1", [b"1", b"1234", b"]"], [b"1", b"]"]),
        ("[1e-12", [b"1", b"]"], [b"]"]),
        ("[1", [b"e99", b"12e345"], [b"e99"]),
        ('["abcd', [b"abcdef", b"a", b'"', b'\\"'], [b"a", b'"', b'\\"']),
        ('["abcdef', [b"a", b'"', b'"]}'], [b'"', b'"]}']),
        ('["abcdef\\', [b'"', b"abcdef"], [b'"']),
        ("[1, 2, 3", [b",", b"]", b", 1"], [b"]"]),
        ("[[1, 2, 3], 2, 3", [b",", b"]"], [b"]"]),
        ("[1, 2, [3", [b",", b"], [", b"]"], [b",", b"]"]),
        ("[[[", [b"[", b"[[", b"]", b"1"], [b"]", b"1"]),
        ("[[", [b"[", b"[[", b"]"], [b"[", b"]"]),
        ('{"a": 1, "', [b'a": ', b"a", b"b", b'""'], [b"a", b"b", b'""']),
        ('{"a": 1, "a', [b'"', b'": ', b"b"], [b"b"]),
        ('{"a": {"', [b'a": '], [b'a": ']),
        ('{"": 1, ', [b'""', b'"'], [b'"']),
        ('{"\\"": 1, "\\', [b'"', b'""'], [b'"']),
    ],
)
def test_bound_takes_away_what_would_pass_it(before: str, offered: list[bytes], remaining: list[bytes]) -> None:
    """White space, digits, exponents, strings, items, depth and names that an object has already."""
    left = kept(SMALL, at(before), *offered)
    assert (offered if left is None else left) == remaining


def test_beyond_the_total_only_what_closes_remains() -> None:
    """Strings and numbers end, nothing opens, no item begins."""
    long = '["abcde", "abcde", ["abcde", "abcde", "abcde"], ["abcde", "abcde"'
    assert kept(SMALL, at(long), b",", b"]", b", 1") == [b"]"]
    assert kept(SMALL, at(long + ', "a'), b"a", b'"', b'","') == [b'"']
    assert kept(SMALL, at(long + ", ["), b"1", b"]", b'"') == [b"]"]
    assert kept(SMALL, at(long + ", 1"), b"1", b"]") == [b"]"]


def test_nothing_may_remain() -> None:
    """The caller then lifts the bound: a schema may insist."""
    assert kept(SMALL, at('["abcdef'), b"a", b"b") == []


def test_tokens_in_a_row_that_passed_a_bound_are_counted() -> None:
    """Back within the bounds the count begins again, unless the whole is too long already."""
    bounds = JsonBounds(SHAPES, SMALL)
    letter = PIECES.index(b"a")
    once = bounds.step(at('["abcdef'), letter, lifted=True)
    twice = bounds.step(once, letter, lifted=True)
    assert (once.overruns, twice.overruns, bounds.step(twice, letter).overruns) == (1, 2, 2)
    assert bounds.step(twice, PIECES.index(b'"')).overruns == 0
    far = twice._replace(total=SMALL.total)
    assert bounds.step(far, letter).overruns == 2


def test_json_within_text_is_found_and_left_again() -> None:
    """It begins with the first {" and ends with its own end; text around it has no bounds."""
    before = at('I say: [[[[ 1234567 { "no" {', START_OF_TEXT)
    assert before.mode == IDLE
    inside = step(before, b'"a')
    assert (inside.mode, inside.depth, inside.key) == (STRING, 1, b"a")
    assert step(inside, b'": [1, 2').frame is not None
    after = step(inside, b'": [1, {"b": 2}]} and')
    assert (after.mode, after.depth) == (IDLE, 0)
    again = step(after, b' {"c": 1')
    assert (again.mode, again.depth) == (NUMBER, 1)


def test_schema_raises_what_it_demands() -> None:
    """A minLength beyond the bound is not cut off."""
    raised = Bounds().raised(5_000, 2_000)
    assert (raised.string, raised.items) == (5_000, 2_000)
    assert raised.total > 5_000 + 65_536
    assert Bounds().raised(10, 10) == Bounds()
