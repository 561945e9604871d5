"""The shortest way to an end of a grammar, from wherever an answer is.

Best first: at each position what closes something is tried first (`}`, `]`, `"`), then the comma; in a string signs and
words that the constraint's own source mentions, then what fills a string that must be longer; elsewhere the shortest
values; at last the shortest of whatever the grammar allows. What is forced is taken without a choice. A way
costs its tokens and each departure from the first choice. One pass makes tokens dear, to find a short way; the next
makes them cheap, so that one way is followed far before another is tried. Then, for long ways that lead straight on (a
`minItems` of 200), the first choice alone is followed.

Where a way is short this takes a few milliseconds, where there is none some tens. A grammar that recurses to the right
makes each step as dear as the answer is deep, so processor time is bounded too: nobody else's answer goes on meanwhile.

What this does NOT do: prove that a way is the shortest, or find one that only luck would find, like the right digits of
a checksum.
"""

import heapq
import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from appliance.decoding.json_bounds import ESCAPE, IDLE, STRING, Place, step
from appliance.decoding.text import TokenBytes

PASSES = ((0.5, 300), (0.05, 800))
"""What a token costs, where a departure from the first choice costs about 1, and how many positions are looked at."""
LONGEST = 4_096
"""Tokens of a way."""
MOST_SECONDS = 1.0
"""Of the thread's processor time, for both passes together, and once more for the first choice alone."""
_SHORTEST = 32
"""Tokens that are tried at last, of those that the grammar allows."""
_CLOSING = (b"}", b"]", b'"', b",")
_PLAIN = (b"a", b"aa", b"aaa", b"aaaa")
_FILL_SIZES = (16, 12, 8, 6, 4, 3, 2, 1)
_VALUES = (b"1", b"0", b'""', b"[]", b"{}", b"null", b"true", b"false", b'"', b"[", b"{")
_SIGNS = (b":", b" ", b".", b"-", b"@", b"/", b"(", b")", b"+", b"_")


class Matcher(Protocol):
    """What is needed of llguidance's matcher."""

    def deep_copy(self) -> "Matcher": ...  # noqa: D102
    def consume_tokens(self, tokens: list[int], /) -> bool: ...  # noqa: D102
    def validate_tokens(self, tokens: list[int], /) -> int: ...  # noqa: D102
    def compute_ff_tokens(self) -> list[int]: ...  # noqa: D102
    def compute_bitmask(self) -> bytes: ...  # noqa: D102
    def is_accepting(self) -> bool: ...  # noqa: D102
    def is_error(self) -> bool: ...  # noqa: D102


@dataclass(frozen=True)
class Candidates:
    """What a vocabulary offers for an end.

    Attributes:
        token_bytes: the vocabulary.
        closing: what closes an object, an array, a string, and the comma.
        quote: what closes a string.
        filling: tokens of letters, one of each of some lengths, the longest first.
        values: the shortest beginnings of values.
        signs: what often separates parts.
        sizes: bytes of each token.
    """

    token_bytes: TokenBytes
    closing: tuple[int, ...]
    quote: tuple[int, ...]
    filling: tuple[int, ...]
    values: tuple[int, ...]
    signs: tuple[int, ...]
    sizes: NDArray[np.int32]

    @classmethod
    def of(cls, token_bytes: TokenBytes) -> "Candidates":
        """Look through a vocabulary."""
        by_text: dict[bytes, int] = {}
        by_size: dict[int, int] = {}
        for token, data in enumerate(token_bytes):
            by_text.setdefault(data, token)
            if data.isalpha() and data.islower() and data.isascii():
                by_size.setdefault(len(data), token)
        by_size |= {len(data): by_text[data] for data in _PLAIN if data in by_text}
        return cls(
            token_bytes,
            tuple(by_text[text] for text in _CLOSING if text in by_text),
            tuple(by_text[text] for text in _CLOSING[2:3] if text in by_text),
            tuple(by_size[size] for size in _FILL_SIZES if size in by_size),
            tuple(by_text[text] for text in _VALUES if text in by_text),
            tuple(by_text[text] for text in _SIGNS if text in by_text),
            np.array([len(data) for data in token_bytes], np.int32),
        )


def find_completion(
    matcher: Matcher, place: Place | None, candidates: Candidates, hints: Sequence[int], stop: frozenset[int]
) -> list[int] | None:
    """Find tokens that satisfy the grammar.

    Args:
        matcher: where the answer is; not changed.
        place: where it is in its JSON; None if it is not JSON.
        candidates: the vocabulary's.
        hints: further tokens to try, in the order in which to try them.
        stop: tokens that are no text.
    Returns:
        None if no way was found within the bounds.
    """
    offer = _Offer(candidates, hints, stop)
    start = _Step(offer, matcher.deep_copy(), place, [], [])
    if start.satisfied:
        return start.path
    until = time.thread_time() + MOST_SECONDS
    for token_cost, expansions in PASSES:
        found = _best_first(offer, _Step(offer, matcher.deep_copy(), place, [], []), token_cost, expansions, until)
        if found is not None:
            return found
    return _straight_on(offer, start, time.thread_time() + MOST_SECONDS)


def _best_first(offer: "_Offer", start: "_Step", token_cost: float, expansions: int, until: float) -> list[int] | None:
    number = itertools.count()
    heap: list[tuple[float, int, _Step]] = [(0.0, next(number), start)]
    for _ in range(expansions):
        if not heap or time.thread_time() > until:
            return None
        cost, _, here = heapq.heappop(heap)
        token = here.next_token()
        if token is None:
            continue
        # Back it goes, for its next choice: alternatives are made only when their turn comes.
        heapq.heappush(heap, (here.cost(cost), next(number), here))
        further = _Step(offer, here.matcher.deep_copy(), here.place, here.path, [token])
        if further.satisfied:
            return further.path
        if len(further.path) <= LONGEST and not further.repeats:
            heapq.heappush(heap, (cost + token_cost, next(number), further))
    return None


def _straight_on(offer: "_Offer", here: "_Step", until: float) -> list[int] | None:
    while len(here.path) <= LONGEST and not here.repeats and time.thread_time() < until:
        if here.satisfied:
            return here.path
        token = here.next_token()
        if token is None:
            return None
        here = _Step(offer, here.matcher, here.place, here.path, [token])  # no way back, so no copy
    return None


class _Offer:
    """What a search tries, and in which order."""

    def __init__(self, candidates: Candidates, hints: Sequence[int], stop: frozenset[int]) -> None:
        self._stop = stop
        self._candidates = candidates
        text = candidates.token_bytes
        signs = [*(t for t in hints if not text[t].strip().isalnum()), *candidates.signs]
        words = [t for t in hints if text[t].strip().isalnum()]
        self.once = frozenset((*signs, *words))
        """A sign is seldom needed twice in a string, and no string is filled with words of the source."""
        self._signs = frozenset(signs)
        c = candidates
        self._outside = self._line(c.closing, c.values, words, signs, c.filling)
        # What has parts, an address or a sum, is a word and a sign in turn.
        self._in_string = (
            self._line(c.quote, signs, words, c.filling, c.values, c.closing),
            self._line(c.quote, words, c.filling, c.values, signs, c.closing),
        )
        self._in_text = (
            self._line(signs, words, c.closing, c.values[:2], c.filling, c.values),
            self._line(c.values[:2], words, c.filling, signs, c.closing, c.values),
        )

    def _line(self, *groups: Sequence[int]) -> list[int]:
        return [token for token in dict.fromkeys(itertools.chain(*groups)) if token not in self._stop]

    def order(self, place: Place | None, last: int | None) -> list[int]:
        """Say what comes first, at a place and after a token."""
        after_sign = last in self._signs
        if place is None or place.mode == IDLE:
            return self._in_text[after_sign]
        return self._in_string[after_sign] if place.mode in (STRING, ESCAPE) else self._outside

    def step(self, place: Place | None, tokens: Sequence[int]) -> Place | None:
        """Follow tokens through JSON."""
        text = self._candidates.token_bytes
        return place and step(place, b"".join(text[token] for token in tokens))

    def shortest(self, matcher: Matcher) -> list[int]:
        """List the shortest tokens that the grammar allows, beyond those that are tried anyway; the last is best."""
        sizes = self._candidates.sizes
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        allowed = np.flatnonzero(np.unpackbits(bits, bitorder="little")[: sizes.size])
        shortest = allowed[np.argsort(sizes[allowed], kind="stable")[:_SHORTEST]]
        return [int(t) for t in reversed(shortest) if int(t) not in self._stop and int(t) not in self._outside]


class _Step:
    """A position on a way, after all that is forced there, and the choices that it has left."""

    __slots__ = (
        "_base",
        "_last",
        "_next",
        "_offer",
        "_rank",
        "_tail",
        "matcher",
        "path",
        "place",
        "repeats",
        "satisfied",
    )

    def __init__(
        self, offer: _Offer, matcher: Matcher, place: Place | None, before: list[int], tokens: list[int]
    ) -> None:
        self.matcher = matcher
        added = list(tokens)
        matcher.consume_tokens(tokens)
        while not matcher.is_accepting() and not matcher.is_error() and len(before) + len(added) <= LONGEST:
            forced = matcher.compute_ff_tokens()
            if not forced:
                break
            added += forced
            matcher.consume_tokens(forced)
        self.path = [*before, *added]
        self.place = offer.step(place, added)
        self.repeats = self.place is not None and self.place.repeats and not (place and place.repeats)
        self.satisfied = matcher.is_accepting() and not matcher.is_error() and not self.repeats
        self._offer = offer
        self._next, self._rank = 0, 0
        self._base: float | None = None
        self._tail: list[int] | None = None
        in_string = self.place is not None and self.place.mode == STRING
        self._last = offer.once.intersection(self.path) if in_string else frozenset[int]()

    def next_token(self) -> int | None:
        """Choose the next best token that may come here; None when all have been chosen."""
        self._rank += 1
        order = self._offer.order(self.place, self.path[-1] if self.path else None)
        while self._next < len(order):
            token = order[self._next]
            self._next += 1
            if token not in self._last and self.matcher.validate_tokens([token]) == 1:
                return token
        if self._tail is None:
            again = [token for token in self._last if self.matcher.validate_tokens([token]) == 1]
            self._tail = self._offer.shortest(self.matcher) + sorted(again)
        return self._tail.pop() if self._tail else None

    def cost(self, now: float) -> float:
        """What this position costs when its next choice is made."""
        if self._base is None:
            self._base = now
        return self._base + math.log2(1 + self._rank)
