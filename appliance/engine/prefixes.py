"""Beginnings of prompts that were computed before: a caller's system prompt, its tools, its document.

    prefixes = Prefixes(max_bytes=256 << 20)
    prefixes.restore(cache, prompt, owner)      # before the prompt is computed
    prefixes.keep(cache, prompt, owner)         # after each part of it

What is kept are pages: the keys and values of PAGE tokens, in the place of a tree whose branches are the prompts that
begin alike. A page's name is the digest of its owner and of every token up to its end, so a page is found only by who
asks for the very same beginning. Pages end where the parts end in which prompts are computed, so a cache that was
filled from pages holds, to the bit, what computing would have put there. The page that nobody asked for longest goes
first, and its branch is never left without its trunk.

An owner is a caller: another caller's prompt takes as long as if nothing were kept, for the time to the first token
would tell what others ask. A site may let all callers have one owner.

What this does NOT hold: anything on disk, or what an answer added.

Source: pages and their chained digests are the form of vLLM's automatic prefix caching (Kwon et al. 2023,
"Efficient Memory Management for Large Language Model Serving with PagedAttention").
"""

import collections
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from appliance.engine.session import Cache

PAGE = 256
"""Tokens; also the parts in which prompts are computed."""


@dataclass(frozen=True)
class Held:
    """What is kept, and how often it helped."""

    pages: int
    size_bytes: int
    restored_tokens: int
    evicted: int


class Prefixes:
    """The pages of one model. One thread at a time may use it."""

    def __init__(self, max_bytes: int) -> None:
        """Hold nothing yet.

        Args:
            max_bytes: of all pages; 0 keeps none.
        """
        self._max_bytes = max_bytes
        self._pages: collections.OrderedDict[bytes, list[NDArray[np.float32]]] = collections.OrderedDict()
        self._size = self._restored = self._evicted = 0

    @property
    def held(self) -> Held:
        """How much there is; may be read by any thread."""
        return Held(len(self._pages), self._size, self._restored, self._evicted)

    def restore(self, cache: "Cache", prompt: NDArray[np.int64], owner: str) -> int:
        """Fill an empty cache with the longest beginning of the prompt that is kept.

        Returns:
            Tokens that need not be computed: a multiple of PAGE, fewer than the prompt has.
        """
        names = []
        for name in _names(prompt, owner):
            if name not in self._pages:
                break
            names.append(name)
        for number, name in enumerate(names):
            cache.write(number * PAGE, self._pages[name])
        for name in reversed(names):  # the trunk is asked for later than its branch
            self._pages.move_to_end(name)
        self._restored += len(names) * PAGE
        return len(names) * PAGE

    def keep(self, cache: "Cache", prompt: NDArray[np.int64], owner: str) -> None:
        """Keep the last page of a cache that holds a beginning of the prompt, if it is whole and not kept yet."""
        if cache.length % PAGE or not cache.length or not self._max_bytes:
            return
        names = _names(prompt[: cache.length + 1], owner)
        if names[-1] in self._pages or any(name not in self._pages for name in names[:-1]):
            return
        page = cache.read(cache.length - PAGE, cache.length)
        size = sum(part.nbytes for part in page)
        if size * len(names) > self._max_bytes:
            return
        self._pages[names[-1]] = page
        for name in reversed(names):
            self._pages.move_to_end(name)
        self._size += size
        self.shrink(self._max_bytes)

    def shrink(self, max_bytes: int = 0) -> None:
        """Give back pages, those first that were asked for longest ago, until they take no more than that."""
        while self._size > max_bytes:
            _, page = self._pages.popitem(last=False)
            self._size -= sum(part.nbytes for part in page)
            self._evicted += 1


def _names(prompt: NDArray[np.int64], owner: str) -> list[bytes]:
    """Name every whole page before the prompt's last token, which is computed in any case."""
    hasher = hashlib.sha256(owner.encode() + b"\0")
    names = []
    for end in range(PAGE, len(prompt), PAGE):
        hasher.update(np.ascontiguousarray(prompt[end - PAGE : end], "<i8").tobytes())
        names.append(hasher.copy().digest())
    return names
