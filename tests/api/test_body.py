"""A body that is no JSON is called what it is."""

import msgspec
import pytest

from appliance.api.body import decode_json
from appliance.errors import InvalidRequest


class Text(msgspec.Struct):
    """A body."""

    text: str


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "it is empty$"),
        (b" \n", "it is empty$"),
        (b'{"text": "secret', "it is cut off$"),
        (b'{"text": "a"', "it is cut off$"),
        (b'{"text": "secret\\ud800"}', "half a character"),
        (b'{"text": "\\ud800 secret"}', "surrogate"),
        (b'{"text": "secret\xff"}', "not UTF-8$"),
        (b"{'text': 1}", "malformed"),
    ],
)
def test_what_is_wrong_is_said(data: bytes, words: str) -> None:
    """Empty, cut off, half a character, not UTF-8: without a word of what was sent."""
    with pytest.raises(InvalidRequest, match=words) as caught:
        decode_json(data, Text)
    assert "secret" not in caught.value.message
