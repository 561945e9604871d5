"""Plain values and JSON into frozen types, strictly, from any thread.

msgspec describes a type to itself when it first turns something into it, and two threads that do so at once may end the
process by a segmentation fault (seen with 0.22.0: several packages verified at once, right after the daemon began). So
a type is described here first, one at a time. The linter lets nobody but the forge, which has one thread, go past this.
"""

import threading
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

_one_at_a_time = threading.Lock()
_described: set[object] = set()


def convert(value: Any, to: type[T]) -> T:
    """Turn plain values into a type.

    Raises:
        msgspec.ValidationError: an unknown key, a missing one or a wrong type.
    """
    _describe(to)
    return msgspec.convert(value, to)


def decode(data: bytes | str, to: type[T]) -> T:
    """Parse JSON into a type.

    Raises:
        msgspec.ValidationError: as `convert`.
        msgspec.DecodeError, UnicodeDecodeError, RecursionError: not JSON in UTF-8, or nested too deeply.
    """
    _describe(to)
    return msgspec.json.decode(data, type=to)


def _describe(to: object) -> None:
    if to not in _described:
        with _one_at_a_time:
            msgspec.json.Decoder(to)
        _described.add(to)
