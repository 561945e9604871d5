"""Types are filled from any thread."""

import subprocess
import sys

import msgspec
import pytest

from appliance import typed

FIRST_USES = """
import sys, threading
import msgspec
from appliance import typed

sys.setswitchinterval(1e-6)

def parse(kind):
    meet.wait()
    typed.decode(b'{"parts": [{"name": "a"}]}', kind)
    typed.convert({"parts": [{"name": "a"}]}, kind)

for number in range(300):
    fields = [(f"f{i}", "dict[str, int] | None", None) for i in range(20)]
    part = msgspec.defstruct("Part", [("name", str), *fields])
    kind = msgspec.defstruct("Kind", [("parts", tuple[part, ...])])
    meet = threading.Barrier(6)
    threads = [threading.Thread(target=parse, args=(kind,)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
print("alive")
"""


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A type."""

    name: str
    sizes: tuple[int, ...] = ()


def test_first_uses_at_once_do_not_end_the_process() -> None:
    """Of types that no thread has used before, by six threads."""
    done = subprocess.run([sys.executable, "-c", FIRST_USES], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


def test_values_and_json_give_the_same() -> None:
    """With the error of msgspec where they do not fit."""
    assert typed.decode(b'{"name": "a", "sizes": [1]}', Strict) == Strict("a", (1,))
    assert typed.convert({"name": "a", "sizes": [1]}, Strict) == Strict("a", (1,))
    with pytest.raises(msgspec.ValidationError, match="unknown field `other`"):
        typed.decode(b'{"name": "a", "other": 1}', Strict)
    with pytest.raises(msgspec.ValidationError, match="unknown field `other`"):
        typed.convert({"name": "a", "other": 1}, Strict)
    with pytest.raises(msgspec.DecodeError):
        typed.decode(b"{", Strict)
