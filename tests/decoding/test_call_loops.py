"""Loops of tool calls: which are found, which are certain, and what is no loop."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.decoding.call_loops import CallLoop, Invocation, canonical, find_call_loop

A, B, C = ("read", '{"tank": 4}'), ("ping", '{"host": "plc-1"}'), ("read", '{"tank": 5}')


def said(*calls: tuple[str, str], results: str | None = None) -> list[Invocation]:
    """Calls with a result of one letter each; "-" is not known."""
    return [
        Invocation(name, arguments, None if results is None or results[i] == "-" else results[i])
        for i, (name, arguments) in enumerate(calls)
    ]


# name | calls | results | what is found: kind, onset, copies, certain
TABLE = [
    ("nothing", [], None, None),
    ("one call", [A], "x", None),
    ("twice", [A, A], "xx", None),
    ("three times", [A, A, A], "xxx", ("same_call", 0, 3, True)),
    ("three times, the last not answered", [A, A, A], "xx-", ("same_call", 0, 3, True)),
    ("waiting for something", [A, A, A, A], "xyzz", ("same_call", 0, 4, False)),
    ("no answers known", [A, A, A], None, ("same_call", 0, 3, False)),
    ("after other calls", [B, C, A, A, A, A], "abxxxx", ("same_call", 2, 4, True)),
    ("a loop that was left", [A, A, A, B], "xxxy", None),
    ("ping-pong", [A, B, A, B, A, B], "xyxyxy", ("ping_pong", 0, 3, True)),
    ("ping-pong of two rounds", [A, B, A, B], "xyxy", None),
    ("ping-pong after others", [C, A, B, A, B, A, B], "cxyxyxy", ("ping_pong", 1, 3, True)),
    ("ping-pong with news", [A, B, A, B, A, B], "xyxyxz", ("ping_pong", 0, 3, False)),
    ("ping-pong in the middle of a round", [A, B, A, B, A, B, A], "xyxyxyx", ("ping_pong", 1, 3, True)),
    ("ping-pong, not answered at the end", [A, B, A, B, A, B], "xyxyx-", ("ping_pong", 0, 3, True)),
    ("three in turn", [A, B, C, A, B, C, A, B, C], "xyzxyzxyz", None),
    ("other names, same arguments", [A, ("write", A[1]), A, ("write", A[1])], "abcd", None),
    ("same result", [A, B, C, ("ping", "{}")], "xxxx", ("same_result", 0, 4, False)),
    ("same result, one more under way", [A, B, C, ("ping", "{}"), ("a", "{}")], "xxxx-", ("same_result", 0, 4, False)),
    ("same result three times", [A, B, C], "xxx", None),
    ("not JSON", [("read", "{"), ("read", "{"), ("read", "{")], "xxx", ("same_call", 0, 3, True)),
]


@pytest.mark.parametrize(("calls", "results", "expected"), [t[1:] for t in TABLE], ids=[t[0] for t in TABLE])
def test_loops_of_calls(calls, results, expected):
    """Every row is found as it says, or not at all."""
    found = find_call_loop(said(*calls, results=results))
    assert found == (None if expected is None else CallLoop(*expected))


SAME = [
    ('{"a": 1, "b": 2}', '{"b":2,"a":1}'),
    ('{"a": 1.0}', '{"a": 1}'),
    ('{"a": [1.0, {"y": 0, "x": 2e1}]}', '{"a":[1,{"x":20,"y":-0.0}]}'),
    ('{"a": "\\u00fc"}', '{"a": "ü"}'),
]
OTHER = [('{"a": 1}', '{"a": "1"}'), ('{"a": true}', '{"a": 1}'), ('{"a": [1, 2]}', '{"a": [2, 1]}'), ("{}", "[]")]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_what_is_the_same_call(one, other):
    """Order of keys, white space, escapes and the form of a number do not make another call."""
    assert canonical(one) == canonical(other)


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_what_is_another_call(one, other):
    """A value of another type, or another order of a list, does."""
    assert canonical(one) != canonical(other)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=3), JSON, max_size=4))
def test_canonical_form_keeps_the_value_and_is_stable(arguments):
    """The canonical form is JSON of an equal value, and its own canonical form."""
    text = canonical(json.dumps(arguments))
    assert json.loads(text) == arguments
    assert canonical(text) == text


@given(st.lists(st.sampled_from([A, B, C]), max_size=12), st.data())
def test_what_is_found_is_there(calls, data):
    """A reported loop reaches the end, has the copies that it says, and began no later than it could."""
    results = "".join(data.draw(st.sampled_from("xy-")) for _ in calls)
    listed = said(*calls, results=results)
    found = find_call_loop(listed)
    if found is None:
        return
    part = calls[found.onset :]
    if found.kind == "same_call":
        assert len(part) == found.copies
        assert len(set(part)) == 1
        assert found.onset == 0 or calls[found.onset - 1] != part[0]
    elif found.kind == "ping_pong":
        assert len(part) == 2 * found.copies
        assert part == part[:2] * found.copies
    else:
        known = [c.result for c in listed[found.onset :] if c.result is not None]
        assert known == known[:1] * found.copies


def test_a_nest_of_brackets_is_no_crash():
    """Arguments nested past the stack are compared as they stand."""
    deep = "[" * 100_000
    assert find_call_loop([Invocation("a", deep)] * 3) == CallLoop("same_call", 0, 3, certain=False)
