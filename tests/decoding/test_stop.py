"""Stop strings are found as if the whole text were searched, and hold back no more than they must."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.decoding.stop import StopStrings
from appliance.errors import InvalidRequest


def run(stops: list[str], pieces: list[str]) -> tuple[list[str], str | None]:
    search = StopStrings(stops)
    shown = []
    for piece in pieces:
        emit, hit = search.push(piece)
        shown.append(emit)
        if hit is not None:
            return shown, hit
    return [*shown, search.finish()], search.hit


def search_whole(stops: list[str], text: str) -> tuple[str, str | None]:
    found = [(text.find(stop), -len(stop), stop) for stop in stops if stop in text]
    if not found:
        return text, None
    start, _, stop = min(found)
    return text[:start], stop


@pytest.mark.parametrize(
    ("name", "stops", "pieces", "shown", "hit"),
    [
        ("no stops", [], ["a", "b"], ["a", "b", ""], None),
        ("in one piece", ["STOP"], ["ab STOP cd"], ["ab "], "STOP"),
        ("across pieces", ["STOP"], ["ab S", "TO", "P cd"], ["ab ", "", ""], "STOP"),
        ("first piece", ["a"], ["abc"], [""], "a"),
        ("false alarm", ["STOP"], ["ab STO", "RE"], ["ab ", "STORE", ""], None),
        ("false alarm at the end", ["STOP"], ["ab STO"], ["ab ", "STO"], None),
        ("a false alarm that begins anew", ["aab"], ["aa", "aa", "b"], ["", "aa", ""], "aab"),
        ("only the longest beginning is held", ["\n\nUser"], ["hi\n", "\n"], ["hi", "", "\n\n"], None),
        ("earliest wins over longest", ["bcdef", "ab"], ["abcdef"], [""], "ab"),
        ("longest at the same place wins", ["ab", "abc"], ["xabcx"], ["x"], "abc"),
        ("longest at the same place is awaited", ["ab", "abc"], ["xab", "c"], ["x", ""], "abc"),
        ("the shorter, when the longer fails", ["ab", "abc"], ["xab", "d"], ["x", ""], "ab"),
        ("the shorter, when the text ends", ["ab", "abc"], ["xab"], ["x", ""], "ab"),
        ("one inside a longer one that fails", ["abcd", "bc"], ["xabc", "e"], ["x", "a"], "bc"),
        ("one inside a longer one that succeeds", ["abcd", "bc"], ["xabc", "d"], ["x", ""], "abcd"),
        ("one inside a longer one, text ends", ["abcd", "bc"], ["xabc"], ["x", "a"], "bc"),
        ("beyond ASCII", ["🙂é"], ["a🙂", "é"], ["a", ""], "🙂é"),
        ("given twice", ["x", "x"], ["yx"], ["y"], "x"),
    ],
)
def test_pieces_stop(name, stops, pieces, shown, hit):
    """Each piece shows exactly the text that no stop string can claim any more."""
    assert run(stops, pieces) == (shown, hit)


small = st.text("ab", min_size=1, max_size=5)


@given(stops=st.lists(small, max_size=4), pieces=st.lists(st.text("abc", max_size=5), max_size=12))
def test_result_is_that_of_a_search_through_the_whole(stops, pieces):
    """Text and hit do not depend on the borders: the first match in the text wins, then the longest."""
    shown, hit = run(stops, pieces)
    assert ("".join(shown), hit) == search_whole(stops, "".join(pieces))


@given(stops=st.lists(small, min_size=1, max_size=4), pieces=st.lists(st.text("abc", max_size=5), max_size=12))
def test_nothing_more_is_held_than_may_become_a_stop(stops, pieces):
    """What is held back is the longest end of the text that begins a stop string, or a match that may still grow."""
    search = StopStrings(stops)
    text = shown = ""
    for piece in pieces:
        text += piece
        emit, hit = search.push(piece)
        shown += emit
        if hit is not None:
            return
        held = [n for n in range(1, len(text) + 1) if any(len(s) > n and s.startswith(text[-n:]) for s in stops)]
        assert shown == text[: len(text) - max(held, default=0)]


def test_nothing_comes_after_a_hit():
    """A search that has hit shows nothing more and keeps its hit."""
    search = StopStrings(["b"])
    assert search.push("abc") == ("a", "b")
    assert search.push("abc") == ("", "b")
    assert search.finish() == ""
    assert search.hit == "b"


def test_a_snapshot_rewinds():
    """A copy goes its own way: pushing to one does not change the other."""
    search = StopStrings(["ab"])
    search.push("a")
    before = copy.copy(search)
    assert search.push("b") == ("", "ab")
    assert before.push("c") == ("ac", None)


def test_empty_stop_string_is_refused():
    """An empty stop string is the request's fault, and the error names the field."""
    with pytest.raises(InvalidRequest) as error:
        StopStrings(["a", ""])
    assert error.value.param == "stop"
