"""Tokens' bytes to text, a whole character at a time.

A token may end in the middle of a character. `TextStream` keeps such a beginning until its rest arrives, so that what a
reader sees never changes afterwards: half a character is neither shown nor replaced while it can still become whole.

    stream = TextStream()
    for token in tokens:
        show(stream.push(token_bytes[token]))
    show(stream.finish())

What this does NOT do: clean the text. Control characters and escape sequences of a model pass through; whoever writes
to a terminal removes them.
"""

import codecs
from collections.abc import Sequence

TokenBytes = Sequence[bytes]
"""Token id -> the bytes that it adds to the text."""


class TextStream:
    """Incremental UTF-8 of one answer; `copy.copy` takes a snapshot to rewind to.

    The same bytes give the same text however they are cut. Bytes that no continuation can save become U+FFFD, one for
    each maximal subpart.

    Source: The Unicode Standard 15.0, section 3.9, "U+FFFD Substitution of Maximal Subparts".
    """

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def push(self, token_bytes: bytes) -> str:
        """Add a token's bytes.

        Returns:
            The text that is now certain; empty while a character is incomplete.
        """
        data = self._rest + token_bytes
        text, used = codecs.utf_8_decode(data, "replace", False)
        self._rest = data[used:]
        # Python waits for the third byte of a surrogate, for the sake of other error handlers. No byte can save it.
        return text + self.finish() if self._rest[:1] == b"\xed" and self._rest[1:2] >= b"\xa0" else text

    def finish(self) -> str:
        """End the text.

        Returns:
            U+FFFD if a character was left incomplete, else nothing.
        """
        text, _ = codecs.utf_8_decode(self._rest, "replace", True)
        self._rest = b""
        return text
