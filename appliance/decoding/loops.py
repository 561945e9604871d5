"""Find out that a text has begun to repeat itself without end: a search through its tail, some microseconds a token.

    kinds = TokenKinds.of(token_bytes)          # once a model
    finder = LoopFinder(kinds)
    for token in answer:
        if (loop := finder.push(token)) and loop.certain:
            finder.truncate(loop.onset)

Two readings of the text are searched alike. The first is the tokens themselves. In the second every number is one
symbol, however many tokens and whatever digits it has, so that "Step 9: stir. Step 10: stir." repeats there too. In
each reading a few distances are followed at which the text repeats at the moment. One begins where a few symbols recur
together; a symbol that equals the one a distance before adds to its score, another one takes more away, and at zero the
distance is given up. So a copy in which a token differs does not end the search, and text that only resembles does.

Whether a repetition is a loop for certain is judged by what its copies look like: see `loop_shapes`. Until then the
finder only suspects.

What this does NOT find: paraphrase, or a loop whose copies share no six symbols in a row.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from appliance.decoding.loop_shapes import SHORT, SHOWN, Copies, Kind, Place, copies_needed
from appliance.decoding.text import TokenBytes

LONGEST_PERIOD = 1024
ANCHOR = 6
"""Symbols that recur together before their distance is followed."""
FOLLOWED = 4
"""Distances that are followed at a time, in each reading."""
MISS, MISS_SHORT = 12.0, 0.6
"""What a symbol that differs takes off a score: the first, or of short distances the second for each symbol of the
distance, if that is less; one that is equal adds 1, up to HIGHEST."""
HIGHEST = 48.0

MIN_SPAN = 96
"""Tokens that a loop covers before it is one, its first copy included."""
MIN_COPIES = 4
WARY_SPAN, WARY_COPIES, WARY_MOST = 48, 3, 24
"""The same for a wary finder. Half of the copies that are needed otherwise make it certain, and so many in any case."""
STALE_COPIES, STALE = 6, 4
"""A wary finder is certain of prose that resembles itself for so many copies, the last of which bring nothing new."""
CODE_DIGITS = 3
"""A number of so many digits that was not there before is something new; shorter ones count."""
JUDGED_EVERY = 16
"""Tokens at least between two judgements of what a repetition looks like."""

_NUMBER_SYMBOL = -1


@dataclass(frozen=True, slots=True)
class Loop:
    """A text that repeats itself up to its last token.

    Attributes:
        kind: `exact`: token for token; `counter`: only numbers differ; `drift`: some tokens differ; `list`: items that
            were all said before, see `list_loops`.
        onset: index of the first token of the second copy, which is what a rewind goes back to.
        period: length of the last copy, in tokens.
        copies: how many there are, the first one included; the last may be cut.
        likeness: share of the symbols that equal the ones a copy before, up to 1.
        certain: sure enough to act on; else only worth a warning.
    """

    kind: Kind
    onset: int
    period: int
    copies: float
    likeness: float
    certain: bool


@dataclass(frozen=True, slots=True)
class TokenKinds:
    """What the finder knows of a vocabulary.

    Attributes:
        token_bytes: of each token.
        number: for each id 1 if the token is digits, else 0.
        word: 1 if it is a word or a part of one.
        blank: 1 if it is nothing but space.
    """

    token_bytes: TokenBytes
    number: bytes
    word: bytes
    blank: bytes

    @classmethod
    def of(cls, token_bytes: TokenBytes) -> Self:
        """Read the kinds off the tokens' bytes."""
        texts = [data.decode(errors="replace").strip() for data in token_bytes]
        return cls(
            token_bytes,
            bytes(text.isdecimal() for text in texts),
            bytes(bool(re.fullmatch(r"[^\W\d_]{2,}|[aI]", text)) for text in texts),
            bytes(not text for text in texts),
        )


class _Trail:
    """A distance at which a text repeats itself at the moment."""

    __slots__ = ("clean", "distance", "judge_at", "kind", "matches", "miss", "misses", "needed", "score", "start")

    def __init__(self, distance: int, start: int) -> None:
        self.distance = distance
        self.start = start  # index of the first symbol that equals the one a distance before
        self.clean = start  # index of the first symbol after the last one that differs
        self.miss = min(MISS, max(2.0, MISS_SHORT * distance))
        self.matches = ANCHOR
        self.misses = 0
        self.score = float(ANCHOR)
        self.judge_at = 0  # tokens that there must be before it is judged again
        self.needed = math.inf  # copies that make it certain, as far as is known
        self.kind = ""  # that `needed` was found for

    @property
    def run(self) -> int:
        """Symbols from the second copy on."""
        return self.matches + self.misses


class _Reading:
    """One sequence of symbols and the distances that are followed in it."""

    __slots__ = ("_last", "symbols", "trails")

    def __init__(self) -> None:
        self.symbols: list[int] = []
        self.trails: list[_Trail] = []
        self._last: dict[tuple[int, ...], int] = {}

    def push(self, symbol: int) -> None:
        """Go on with every distance, and begin one where the last symbols have been together before."""
        symbols, trails = self.symbols, self.trails
        end = len(symbols)
        symbols.append(symbol)
        ended = False
        for trail in trails:
            if symbols[end - trail.distance] == symbol:
                trail.matches += 1
                if trail.score < HIGHEST:
                    trail.score += 1
            else:
                trail.misses += 1
                trail.clean = end + 1
                trail.score -= trail.miss
                ended = ended or trail.score <= 0
        if ended:
            self.trails = trails = [trail for trail in trails if trail.score > 0]
        anchor = tuple(symbols[-ANCHOR:])
        if len(anchor) < ANCHOR:
            return
        before = self._last.get(anchor)
        self._last[anchor] = end
        if before is None or end - before > LONGEST_PERIOD:
            return
        if any(trail.distance == end - before for trail in trails):
            return
        if len(trails) == FOLLOWED:
            trails.remove(min(trails, key=lambda trail: trail.score))
        trails.append(_Trail(end - before, end + 1 - ANCHOR))


class LoopFinder:
    """The search through one answer.

    Args:
        kinds: of the model's vocabulary.

    Attributes:
        wary: whether less is enough to be certain, because the answer has looped before.
    """

    def __init__(self, kinds: TokenKinds) -> None:
        self._kinds = kinds
        self.wary = False
        self._reset()

    def _reset(self) -> None:
        self._exact, self._masked = _Reading(), _Reading()
        self._places: list[int] = []  # token index of each symbol of the masked reading
        self._in_number = False
        self._known: set[int | bytes] = set()  # words and longer numbers of the answer
        self._number = b""
        self._fresh = 0  # tokens up to the last word or longer number that was not there before

    @property
    def tokens(self) -> Sequence[int]:
        """What was pushed."""
        return self._exact.symbols

    @property
    def symbols(self) -> Sequence[int]:
        """The same with every number as one symbol, a negative one."""
        return self._masked.symbols

    @property
    def held_from(self) -> int:
        """Index of the first token of the repetitions that are followed now; the number of tokens if there is none."""
        exact = min((trail.start for trail in self._exact.trails), default=len(self.tokens))
        return min([exact, *(self._places[trail.start] for trail in self._masked.trails)])

    def push(self, token: int, place: Place = "prose") -> Loop | None:
        """Add a token.

        Args:
            token: its id.
            place: what the text is here.
        Returns:
            The loop that the text is in now, if it is in one: a certain one before others, an exact one before others.
        """
        self._append(token)
        if not (self._exact.trails or self._masked.trails):
            return None
        return self._judge(place)

    def _append(self, token: int) -> None:
        self._exact.push(token)
        self._note_fresh(token)
        if not self._kinds.number[token]:
            self._in_number = False
            self._places.append(len(self.tokens) - 1)
            self._masked.push(token)
        elif not self._in_number:
            self._in_number = True
            self._places.append(len(self.tokens) - 1)
            self._masked.push(_NUMBER_SYMBOL)

    def _note_fresh(self, token: int) -> None:
        kinds = self._kinds
        if kinds.number[token]:
            self._number += kinds.token_bytes[token].strip()
            return
        if len(self._number) >= CODE_DIGITS:
            self._note(self._number)
        self._number = b""
        if kinds.word[token]:
            self._note(token)

    def _note(self, said: int | bytes) -> None:
        if said not in self._known:
            self._known.add(said)
            self._fresh = len(self.tokens)

    def truncate(self, length: int) -> None:
        """Forget every token from `length` on.

        Raises:
            ValueError: `length` is not in [0, number of tokens].
        """
        if not 0 <= length <= len(self.tokens):
            raise ValueError(f"cannot truncate {len(self.tokens)} tokens to {length}")
        tokens = self.tokens[:length]
        self._reset()
        for token in tokens:
            self._append(token)

    def _judge(self, place: Place) -> Loop | None:
        readings: tuple[tuple[_Reading, Kind], ...] = ((self._exact, "exact"), (self._masked, "counter"))
        found = [
            self._loop(trail, reading, kind, place)
            for reading, kind in readings
            for trail in reading.trails
            if self._is_long(trail.run, trail.distance)
        ]
        order = ("exact", "counter", "drift")
        return min(found, key=lambda loop: (not loop.certain, order.index(loop.kind)), default=None)

    def _loop(self, trail: _Trail, reading: _Reading, clean_kind: Kind, place: Place) -> Loop:
        end, distance, run = len(reading.symbols), trail.distance, trail.run
        start, kind = trail.start, clean_kind
        if trail.misses:
            # What has long been clean is no drift any more; unless nearly all is, it begins where it became so.
            run = end - trail.clean
            if self._is_long(run, distance):
                start = trail.start if trail.misses <= 0.1 * trail.run else trail.clean
            else:
                run, kind = trail.run, "drift"
        places = self._places if reading is self._masked else range(len(self.tokens))
        period = len(self.tokens) - places[end - distance]
        copies = 1 + run / distance
        if len(self.tokens) >= trail.judge_at or kind != trail.kind:
            # Only copies that drift are not all the same.
            share = _modal_share(reading.symbols, distance, int(copies)) if kind == "drift" else 1.0
            trail.kind, trail.needed = kind, copies_needed(self._copies(kind, period, place, share), period)
            trail.judge_at = len(self.tokens) + max(period, JUDGED_EVERY)
        needed = trail.needed
        if self.wary:
            stale = place == "prose" and len(self.tokens) - self._fresh >= STALE * period
            needed = max(WARY_COPIES, min(needed / 2, STALE_COPIES if stale else WARY_MOST))
        certain = copies >= needed and trail.clean < end  # a symbol that differs may be the end of it
        return Loop(kind, places[start], period, copies, trail.matches / trail.run, certain)

    def _is_long(self, run: int, distance: int) -> bool:
        span, copies = (WARY_SPAN, WARY_COPIES) if self.wary else (MIN_SPAN, MIN_COPIES)
        return run + distance >= span and run >= (copies - 1) * distance

    def _copies(self, kind: Kind, period: int, place: Place, modal_share: float) -> Copies:
        kinds, tokens = self._kinds, self.tokens
        last, before = tokens[-period:], tokens[-2 * period : -period]
        run = tokens[-SHOWN * period :] if kind == "counter" and period <= SHORT else ()
        words = [token for token in last if kinds.word[token]]
        return Copies(
            kind,
            self._text(last),
            self._text(before),
            _visible(kinds, last),
            len(words),
            len(set(words)),
            len(set(last)),
            modal_share,
            place,
            self._text(run),
        )

    def _text(self, tokens: Sequence[int]) -> str:
        return b"".join(self._kinds.token_bytes[token] for token in tokens).decode(errors="replace")


def _visible(kinds: TokenKinds, tokens: Sequence[int]) -> int:
    """Count what can be seen, a number of several tokens once."""
    count, in_number = 0, False
    for token in tokens:
        number = bool(kinds.number[token])
        count += not kinds.blank[token] and not (number and in_number)
        in_number = number
    return count


def _modal_share(symbols: Sequence[int], distance: int, copies: int) -> float:
    """How many of the last copies are the same as the commonest of them."""
    end = len(symbols)
    seen = [tuple(symbols[end - distance * (n + 1) : end - distance * n]) for n in range(min(copies, 12))]
    return max(map(seen.count, seen)) / len(seen)
