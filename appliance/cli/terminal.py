"""What the terminal can take, and text made safe for it.

Models, cards and error texts can hold anything, and a terminal obeys what it is sent: an escape sequence in an answer
may retitle the window, hide text or type on the operator's behalf. `safe` makes every such character visible instead.
It looks at single characters, so text may come in pieces cut anywhere.

What this does NOT protect against: text that lies in plain letters, and look-alike characters.
"""

import os
import shutil
import sys
import unicodedata
from typing import TextIO

_KEPT = "\t\n"
_C0_C1 = [c for c in (*range(0x20), *range(0x7F, 0xA0)) if chr(c) not in _KEPT]
# Line and paragraph separators, and the characters that reorder what stands beside them.
_INVISIBLE = [0x061C, 0x200E, 0x200F, 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_ESCAPES: dict[int, str | None] = {
    **{c: f"\\x{c:02x}" for c in _C0_C1},
    **{c: f"\\u{c:04x}" for c in _INVISIBLE},
}
# A carriage return alone would overwrite the line; before a line feed it says nothing.
_ESCAPES[0x0D] = None
_JSON_ESCAPES = {c: f"\\u{c:04x}" for c in (*_C0_C1, *_INVISIBLE)}


def safe(text: str) -> str:
    """Make control and reordering characters visible; line feeds and tabs stay."""
    return text.translate(_ESCAPES)


def safe_json(text: str) -> str:
    """As `safe`, for JSON: the same characters as JSON escapes, so that the value stays the same."""
    return text.translate(_JSON_ESCAPES)


_far = False


def assume_far_terminal() -> None:
    """From now on every stream may end at a terminal: behind ssh, a pipe does."""
    global _far
    _far = True


def for_stream(text: str, stream: TextIO) -> str:
    """Make text safe if it goes to a terminal; into files and pipes it goes as it is."""
    return safe(text) if _far or stream.isatty() else text


def columns() -> int:
    """The terminal's width, 80 where there is none."""
    return max(40, shutil.get_terminal_size((80, 24)).columns)


def is_dumb() -> bool:
    """Whether the terminal only prints lines: no cursor movement, not even a carriage return."""
    return os.environ.get("TERM", "dumb") in ("", "dumb")


def has_unicode(stream: TextIO | None = None) -> bool:
    """Whether block characters may be drawn."""
    encoding = ((stream or sys.stdout).encoding or "").lower().replace("-", "")
    return encoding == "utf8" and not is_dumb() and os.environ.get("LC_ALL") not in ("C", "POSIX")


def width(text: str) -> int:
    """Columns that a text takes: East Asian wide characters two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
