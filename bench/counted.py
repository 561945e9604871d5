"""The daemon, and what it has allocated, whenever it gets SIGUSR1: `python -m bench.counted FILE serve ...`.

Resident memory also holds what was freed but lies between what was not, and that depends on chance; what is allocated
does not. FILE is written anew as JSON, in one step: `{"malloc_bytes": ..., "python_blocks": ...}`.

CPython's table of interned names doubles once, after so many names have come and gone (in 3.11, with what the daemon
imports, some 14,000): a step of 1 MB, an hour into its work, that is no leak. It is taken before anything is counted.
"""

import ctypes
import gc
import json
import signal
import sys
from pathlib import Path
from typing import TypedDict

from appliance.cli.main import run

NAMES = 1 << 18
"""That come and go before anything is counted."""


class Allocated(TypedDict):
    """What a process has allocated and not freed."""

    malloc_bytes: int
    """By the C library: numpy, onnxruntime, the tokenizer."""
    python_blocks: int
    """By Python's own allocator, for small objects."""


class _Mallinfo2(ctypes.Structure):
    """What mallinfo2(3) of glibc gives, in bytes."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


def allocated() -> Allocated:
    """Of this process, after what nobody refers to has gone."""
    for number in range(NAMES):
        sys.intern(f"name {number}")
    gc.collect()
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _Mallinfo2
    info = mallinfo2()
    return {"malloc_bytes": info.uordblks + info.hblkhd, "python_blocks": sys.getallocatedblocks()}


def count_into(file: Path) -> None:
    """Write what this process has allocated into `file` at each SIGUSR1."""

    def write(*_: object) -> None:
        new = file.with_suffix(".new")
        new.write_text(json.dumps(allocated()))
        new.replace(file)

    signal.signal(signal.SIGUSR1, write)


def main() -> int:
    """Run `skerry` with the words behind FILE."""
    file, *arguments = sys.argv[1:]
    count_into(Path(file))
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
