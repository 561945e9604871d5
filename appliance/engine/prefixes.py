"""Beginnings of prompts that were computed before: a caller's system prompt, its tools, its document.

    parts = parts_of(prompt, boundary)          # how any prompt is computed, whatever is kept
    prefixes.restore(cache, parts, owner)       # before the prompt is computed
    prefixes.keep(cache, parts, owner)          # after each part of it

A prompt is computed in parts of PART tokens; a part also ends at its boundary, where what is asked now begins after the
system prompt, the tools and the conversation so far. What is kept are the keys and values of whole parts, in the place
of a tree whose branches are the prompts that begin alike. A part's name is the digest of its owner and of every token
and part before its end, so it is found only by who asks for the very same beginning. And as a prompt is cut in the same
way whether something of it is kept or not, a cache that was filled holds, to the bit, what computing would have put
there: kernels of 8 bits give slightly different numbers for other parts. What nobody asked for longest goes first, and
a branch is never left without its trunk.

An owner is a caller: another caller's prompt takes as long as if nothing were kept, for the time to the first token
would tell what others ask. A site may let all callers have one owner. What is nobody's secret, as the prompt of a task
that is installed, is kept for EVERYBODY.

What this does NOT hold: anything on disk, or what an answer added.

Source: chained digests of blocks are the form of vLLM's automatic prefix caching (Kwon et al. 2023, "Efficient Memory
Management for Large Language Model Serving with PagedAttention"); the boundary is Skerry's own.
"""

import collections
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from appliance.engine.memory import has_room

if TYPE_CHECKING:
    from appliance.engine.cache import Cache

PART = 256
"""Tokens of a prompt that go through the model at once: the longest that a cancel or another caller waits."""
EVERYBODY = "everybody"
"""The owner of what any caller may find."""
SHORTEST = 32
"""A boundary before so many tokens is none: keeping would cost more than it saves."""


@dataclass(frozen=True)
class Part:
    """Tokens of a prompt that go through the model at once, by what stands before them.

    Attributes:
        start, end: of them, in tokens of the prompt.
        digest: of every token up to `end`, and of how they are parted.
    """

    start: int
    end: int
    digest: bytes


def parts_of(prompt: NDArray[np.int64], boundary: int = 0) -> list[Part]:
    """Cut a prompt into the parts in which it is computed; its last token is not among them.

    Args:
        prompt: int64, shape (n,), n >= 1.
        boundary: tokens with which other prompts are likely to begin too; 0 if that is not known.
    """
    total, hasher = len(prompt) - 1, hashlib.sha256()
    parts, start = [], 0
    while start < total:
        end = min(start + PART, total)
        if boundary >= SHORTEST and start < boundary < end:
            end = boundary
        hasher.update(f"{end} ".encode() + np.ascontiguousarray(prompt[start:end], "<i8").tobytes())
        parts.append(Part(start, end, hasher.copy().digest()))
        start = end
    return parts


@dataclass(frozen=True)
class Held:
    """What is kept."""

    parts: int
    size_bytes: int
    evicted: int


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """Count the tokens that two prompts begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


class Prefixes:
    """What is kept of one model's prompts. One thread at a time may use it."""

    def __init__(self, max_bytes: int) -> None:
        """Hold nothing yet.

        Args:
            max_bytes: of all that is kept; 0 keeps nothing.
        """
        self.max_bytes = max_bytes
        self._kept: collections.OrderedDict[tuple[str, bytes], list[NDArray[np.float32]]] = collections.OrderedDict()
        self._size = self._evicted = 0

    @property
    def held(self) -> Held:
        """How much there is; may be read by any thread."""
        return Held(len(self._kept), self._size, self._evicted)

    def restore(self, cache: "Cache", parts: Sequence[Part], owner: str) -> int:
        """Fill a cache with the longest beginning of a prompt that is kept.

        Args:
            cache: empty, or ends where a part does.
            parts: all of the prompt's.
            owner: whose prompt it is.
        Returns:
            Tokens that need not be computed: the end of some part, or 0.
        """
        found = list(itertools.takewhile(lambda part: self._key(part, owner) in self._kept, parts))
        missing = [part for part in found if part.start >= cache.length]
        if not missing or missing[0].start != cache.length:
            return 0
        for part in missing:
            cache.write(part.start, self._kept[self._key(part, owner)])
        self._touch(found, owner)
        return found[-1].end

    def keep(self, cache: "Cache", parts: Sequence[Part], owner: str) -> None:
        """Keep the last part that was put into a cache, if all before it is kept and there is memory.

        Args:
            cache: holds a beginning of the prompt, up to the end of a part.
            parts: all of the prompt's.
            owner: who may find it.
        """
        if not self.max_bytes:
            return
        done = [part for part in parts if part.end <= cache.length]
        *before, last = done
        if any(self._key(part, owner) not in self._kept for part in before) or self._key(last, owner) in self._kept:
            return
        needed = cache.bytes_of(last.end - last.start)
        if cache.bytes_of(last.end) > self.max_bytes or not self._make_room(needed, before, owner):
            return
        kept = cache.read(last.start, last.end)
        self._kept[owner, last.digest] = kept
        self._size += _size(kept)
        self._touch(done, owner)
        self.shrink(self.max_bytes)

    def _make_room(self, needed: int, before: Sequence[Part], owner: str) -> bool:
        """Where memory is short, what is new takes the place of what was asked for longest ago, if that is enough."""
        if has_room(needed):
            return True
        self._touch(before, owner)
        self.shrink(max(0, self._size - needed))
        return has_room(needed) and all(self._key(part, owner) in self._kept for part in before)

    def shrink(self, max_bytes: int = 0) -> None:
        """Give back what was asked for longest ago, until no more than that is taken."""
        while self._size > max_bytes:
            _, kept = self._kept.popitem(last=False)
            self._size -= _size(kept)
            self._evicted += 1

    def _key(self, part: Part, owner: str) -> tuple[str, bytes]:
        """Where an owner finds a part: among everybody's, or else among the owner's own."""
        everybodys = (EVERYBODY, part.digest)
        return everybodys if everybodys in self._kept else (owner, part.digest)

    def _touch(self, parts: Sequence[Part], owner: str) -> None:
        for part in reversed(parts):  # the trunk stays longer than its branch
            self._kept.move_to_end(self._key(part, owner))


def _size(kept: list[NDArray[np.float32]]) -> int:
    return sum(part.nbytes for part in kept)
