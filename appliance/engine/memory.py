"""Whether there is memory: refused in words before the kernel refuses with a kill.

Memory that running answers were promised and have not taken yet counts as taken.
"""

from appliance.engine.cache import promised_bytes
from appliance.errors import OutOfMemory
from appliance.system.host import available_memory_bytes

RESERVE_BYTES = 64 << 20
"""Memory that an allocation must leave to the rest of the box."""


def free_bytes() -> int | None:
    """Memory that may still be taken, the reserve left out; None: nobody can say. Negative where too much is taken."""
    available = available_memory_bytes()
    return None if available is None else available - promised_bytes() - RESERVE_BYTES


def has_room(size_bytes: int) -> bool:
    """Whether so much may be taken."""
    free = free_bytes()
    return free is None or size_bytes <= free


def require_memory(size_bytes: int, what: str) -> None:
    """Refuse what does not fit.

    Args:
        size_bytes: that it takes.
        what: it is for, as in "cannot load a model".
    Raises:
        OutOfMemory: less than `size_bytes` and the reserve are available.
    """
    if has_room(size_bytes):
        return
    available, promised = available_memory_bytes() or 0, promised_bytes()
    raise OutOfMemory(
        f"cannot {what}: it needs {size_bytes >> 20} MiB, {available >> 20} MiB are available"
        + (f" and {promised >> 20} MiB of them promised" if promised else ""),
        hint="unload another model, ask for fewer tokens, or add memory",
    )
