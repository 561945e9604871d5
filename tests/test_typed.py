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

decode = lambda kind: typed.decode(b'{"parts": [{"name": "a"}]}', kind)
convert = lambda kind: typed.convert({"parts": [{"name": "a"}]}, kind)

def use(call, kind):
    meet.wait()
    call(kind)

for number in range(300):
    call = (decode, convert)[number % 2]
    fields = [(f"f{i}", "dict[str, int] | None", None) for i in range(20)]
    part = msgspec.defstruct("Part", [("name", str), *fields])
    kinds = [msgspec.defstruct(f"Kind{i}", [("parts", tuple[part, ...])]) for i in range(3)]
    meet = threading.Barrier(6)
    threads = [threading.Thread(target=use, args=(call, kinds[i % 3])) for i in range(6)]
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
    """Of three types with a part in common that no thread has used before, by six threads."""
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
