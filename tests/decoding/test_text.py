"""Text comes out in whole characters, and the same however its bytes are cut."""

import copy
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.decoding.text import TextStream

REPLACED = "\N{REPLACEMENT CHARACTER}"


def decode(pieces: list[bytes]) -> list[str]:
    stream = TextStream()
    return [*[stream.push(piece) for piece in pieces], stream.finish()]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    borders = sorted({0, len(data), *(p % (len(data) + 1) for p in places)})
    return [data[a:b] for a, b in itertools.pairwise(borders)]


# Lead bytes, continuations and both edges of every range: random bytes seldom make nearly-valid characters.
awkward = st.lists(
    st.sampled_from([0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC1, 0xC2, 0xE0, 0xE2, 0xED, 0xF0, 0xF4, 0xF5])
).map(bytes)
any_bytes = st.one_of(st.binary(), awkward, st.text().map(str.encode))
places = st.lists(st.integers(0, 10_000), max_size=12)


@pytest.mark.parametrize(
    ("name", "pieces", "expected"),
    [
        ("ascii is not held", [b"a", b"b"], ["a", "b", ""]),
        ("two bytes", [b"\xc3", b"\xa9"], ["", "é", ""]),
        ("three bytes, one at a time", [b"\xe2", b"\x82", b"\xac"], ["", "", "€", ""]),
        ("four bytes, one at a time", [b"\xf0", b"\x9f", b"\x99", b"\x82"], ["", "", "", "🙂", ""]),
        ("text before half a character goes out", [b"ok \xe2\x82", b"\xac!"], ["ok ", "€!", ""]),
        ("an empty token keeps the half", [b"\xe2\x82", b"", b"\xac"], ["", "", "€", ""]),
        ("never completed", [b"a\xf0\x9f\x99"], ["a", REPLACED]),
        ("cut short by a letter", [b"\xe2\x82", b"A"], ["", REPLACED + "A", ""]),
        ("cut short by another lead byte", [b"\xf0\x9f", b"\xc3", b"\xa9"], ["", REPLACED, "é", ""]),
        ("lone continuation", [b"\x82\x82"], [REPLACED * 2, ""]),
        ("surrogate", [b"\xed", b"\xa0", b"\x80"], ["", REPLACED * 2, REPLACED, ""]),
        ("overlong", [b"\xc0\xaf"], [REPLACED * 2, ""]),
        ("beyond Unicode", [b"\xf4", b"\x90"], ["", REPLACED * 2, ""]),
        # Table 3-8 of the standard's chapter 3.
        ("maximal subparts", [b"\x61\xf1\x80\x80\xe1\x80\xc2\x62\x80\x63\x80\xbf\x64"], ["a���b�c��d", ""]),
        ("byte order mark stays", ["\ufeffa".encode()], ["\ufeffa", ""]),
    ],
)
def test_pieces_give_text(name, pieces, expected):
    """Each token gives exactly the text that has become certain with it."""
    assert decode(pieces) == expected


@given(data=any_bytes, places=places)
def test_text_does_not_depend_on_the_cuts(data, places):
    """Any split of the same bytes gives the text of the whole."""
    assert "".join(decode(cut(data, places))) == data.decode("utf-8", "replace")


@given(text=st.text(), places=places)
def test_whole_characters_are_never_replaced(text, places):
    """Valid text comes back as it was, whatever the borders of its tokens."""
    pieces = decode(cut(text.encode(), places))
    assert "".join(pieces) == text
    assert pieces[-1] == ""


@given(data=any_bytes)
def test_nothing_is_held_that_is_certain(data):
    """What is held back after any byte is always the beginning of a real character."""
    stream = TextStream()
    shown = ""
    for i in range(len(data)):
        shown += stream.push(data[i : i + 1])
        rest = copy.copy(stream).finish()
        assert shown + rest == data[: i + 1].decode("utf-8", "replace")
        # A held beginning is one maximal subpart, so it would be replaced by one sign only.
        assert rest in ("", REPLACED)


def test_a_snapshot_rewinds():
    """A copy goes its own way: pushing to one does not change the other."""
    stream = TextStream()
    stream.push(b"\xe2\x82")
    before = copy.copy(stream)
    assert stream.push(b"\xac") == "€"
    assert before.push(b"\xa1") == "₡"


def test_a_finished_stream_starts_afresh():
    """Nothing of an incomplete character survives the end of its text."""
    stream = TextStream()
    stream.push(b"\xe2\x82")
    assert stream.finish() == REPLACED
    assert stream.finish() == ""
    assert stream.push(b"a") == "a"
