"""Keys and values of the sequences that are being computed: one buffer a layer, a slot in it for each sequence.

    arena = Arena({"past_key_values.0.key": (heads, width), ...}, slots=8, capacity=8192)
    cache = Cache(arena, capacity=1024)         # takes the lowest free slot; its end gives it back
    cache.rewind(length)

That the caches of a model lie side by side is what lets one forward compute several sequences without copying any.
The buffers are as long as the model's context, but memory is taken only for tokens that were written, and a slot that
becomes free gives its pages back to the kernel: what one caller asked is not left for the next.

A graph may also convolve over the last tokens; what goes into those convolutions is kept for every token just like
keys and values (see `convolution`), so any cache goes back to any length, exactly.
"""

import contextlib
import heapq
import mmap
import threading
import weakref

import numpy as np
from numpy.typing import NDArray

from appliance.errors import OutOfMemory

_MAP_NORESERVE = 0x4000  # Linux; the mmap module names it from Python 3.13 on


class _Promise:
    """What a cache may hold, and holds: by itself, so that who adds promises up keeps no cache in its slot."""

    __slots__ = ("__weakref__", "capacity", "length", "token_bytes")

    def __init__(self, capacity: int, token_bytes: int) -> None:
        self.capacity, self.length, self.token_bytes = capacity, 0, token_bytes


_PROMISES: "weakref.WeakSet[_Promise]" = weakref.WeakSet()
"""Of the caches that are in use."""

_PROMISES_LOCK = threading.Lock()


def promised_bytes() -> int:
    """Memory that caches in use may still take: pages count for the kernel only once written. Any thread may ask."""
    with _PROMISES_LOCK:
        promises = list(_PROMISES)
    return sum((promise.capacity - promise.length) * promise.token_bytes for promise in promises)


class Arena:
    """The buffers of one model.

    Attributes:
        buffers: float32, shape (slots, heads, capacity, width), by the name of the graph's input or output.
        capacity: tokens that a slot can hold.
    """

    def __init__(self, shapes: dict[str, tuple[int, int]], slots: int, capacity: int) -> None:
        """Reserve addresses; no memory is taken yet.

        Args:
            shapes: heads and width of each buffer.
            slots: how many sequences there may be at once.
            capacity: tokens that each may have.
        Raises:
            OutOfMemory: not even the addresses can be had, as where the kernel promises no more than it has.
        """
        self.capacity, self.slots = capacity, slots
        self._maps: list[tuple[mmap.mmap, int]] = []
        self.buffers: dict[str, NDArray[np.float32]] = {}
        for name, (heads, width) in shapes.items():
            slot_bytes = 4 * heads * capacity * width
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
            try:
                memory = mmap.mmap(-1, slots * slot_bytes, flags=flags)
            except OSError as e:
                raise OutOfMemory(
                    f"cannot reserve {slots * slot_bytes >> 20} MiB of addresses for the caches of {slots} answers "
                    f"({e.strerror})",
                    hint="lower limits.running, or let the kernel overcommit (vm.overcommit_memory 0 or 1)",
                ) from e
            with contextlib.suppress(OSError):  # a kernel without large pages
                # A large page for each head of each layer would take hundreds of times what was promised.
                memory.madvise(mmap.MADV_NOHUGEPAGE)
            self._maps.append((memory, slot_bytes))
            self.buffers[name] = np.frombuffer(memory, np.float32).reshape(slots, heads, capacity, width)
        self._free = list(range(slots))

    @property
    def token_bytes(self) -> int:
        """Memory that one token takes."""
        return sum(slot_bytes for _, slot_bytes in self._maps) // self.capacity

    def take(self) -> int:
        """Take the lowest free slot, so that slots in use lie close together.

        Raises:
            OutOfMemory: there is none.
        """
        if not self._free:
            raise OutOfMemory(
                f"cannot hold one more sequence: all {self.slots} are in use",
                hint="wait for an answer to end, or raise limits.running",
            )
        return heapq.heappop(self._free)

    def give_back(self, slot: int) -> None:
        """Free a slot and its memory."""
        for memory, slot_bytes in self._maps:
            start = -(-slot * slot_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
            end = (slot + 1) * slot_bytes // mmap.PAGESIZE * mmap.PAGESIZE
            if end > start:
                memory.madvise(mmap.MADV_DONTNEED, start, end - start)
        heapq.heappush(self._free, slot)


class Cache:
    """Keys and values of the tokens seen so far, for one sequence.

    Attributes:
        slot: where in the arena.
    """

    def __init__(self, arena: Arena, capacity: int) -> None:
        """Take a slot, until nobody holds the cache any more.

        Raises:
            OutOfMemory: there is no free slot.
        """
        self.slot = arena.take()
        self._promise = _Promise(capacity, arena.token_bytes)
        self._buffers = [buffer[self.slot] for buffer in arena.buffers.values()]
        weakref.finalize(self, arena.give_back, self.slot).atexit = False
        with _PROMISES_LOCK:
            _PROMISES.add(self._promise)

    @property
    def capacity(self) -> int:
        """Tokens that fit."""
        return self._promise.capacity

    @property
    def length(self) -> int:
        """Tokens that are in the cache; lower it with `rewind`."""
        return self._promise.length

    @length.setter
    def length(self, length: int) -> None:
        self._promise.length = length

    def bytes_of(self, tokens: int) -> int:
        """Memory that the keys and values of so many tokens take."""
        return self._promise.token_bytes * tokens

    def read(self, start: int, stop: int) -> list[NDArray[np.float32]]:
        """Copy the keys and values of some tokens.

        Returns:
            float32, shape (heads, stop - start, width) each.
        Raises:
            ValueError: not all of them are in the cache.
        """
        if not 0 <= start <= stop <= self.length:
            raise ValueError(f"cannot read tokens {start} to {stop} of a cache of {self.length}")
        return [buffer[:, start:stop].copy() for buffer in self._buffers]

    def write(self, start: int, parts: list[NDArray[np.float32]]) -> None:
        """Append the keys and values of some tokens, which `read` gave.

        Args:
            start: the number of tokens in the cache.
            parts: as `read` has them, from a cache of the same session.
        Raises:
            ValueError: they do not begin at the cache's end, or do not fit.
        """
        stop = start + parts[0].shape[1]
        if start != self.length or stop > self.capacity:
            raise ValueError(f"cannot write tokens {start} to {stop} of a cache of {self.length} of {self.capacity}")
        for buffer, part in zip(self._buffers, parts, strict=True):
            buffer[:, start:stop] = part
        self.length = stop

    def rewind(self, length: int) -> int:
        """Forget every token from `length` on, exactly: the next logits are those of a cache that never held them.

        Returns:
            How many tokens are left.
        Raises:
            ValueError: `length` is not in [0, self.length].
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot rewind a cache of {self.length} tokens to {length}")
        self.length = length
        return length
