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

What a loop says is judged by what repeats: tables, code, data and logs repeat their structure and are right to, so
where a copy is not mostly words the finder only suspects, unless it is the same tokens exactly; and what has hardly a
word (zeros, rulers, padding) has to go on for longer.

What this does NOT find: paraphrase, or a loop whose copies share no six symbols in a row.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

from appliance.decoding.text import TokenBytes

LONGEST_PERIOD = 1024
ANCHOR = 6
"""Symbols that recur together before their distance is followed."""
FOLLOWED = 4
"""Distances that are followed at a time, in each reading."""
MISS = 12.0
"""What a symbol that differs takes off a score; one that is equal adds 1, up to HIGHEST."""
HIGHEST = 48.0

MIN_SPAN = 96
"""Tokens that a loop covers before it is one, its first copy included."""
MIN_COPIES = 4
CERTAIN_COPIES = {"exact": 4, "counter": 6, "drift": 8}
WORDLESS_SPAN = 400
"""Tokens that must repeat exactly before what has hardly a word is a loop for certain: an array of zeros, a ruler."""
WORDY = {"exact": 0.3, "counter": 0.62, "drift": 0.62}
"""Share of a copy's visible tokens that must be words, for certainty."""

Kind = Literal["exact", "counter", "drift"]
_NUMBER_SYMBOL = -1


@dataclass(frozen=True, slots=True)
class Loop:
    """A text that repeats itself up to its last token.

    Attributes:
        kind: `exact`: token for token; `counter`: only numbers differ; `drift`: some tokens differ.
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
        number: for each id 1 if the token is digits, else 0.
        word: 1 if it is a word or a part of one.
        blank: 1 if it is nothing but space.
    """

    number: bytes
    word: bytes
    blank: bytes

    @classmethod
    def of(cls, token_bytes: TokenBytes) -> Self:
        """Read the kinds off the tokens' bytes."""
        texts = [data.decode(errors="replace").strip() for data in token_bytes]
        return cls(
            bytes(text.isdecimal() for text in texts),
            bytes(bool(re.fullmatch(r"[^\W\d_]{2,}|[aI]", text)) for text in texts),
            bytes(not text for text in texts),
        )


class _Trail:
    """A distance at which a text repeats itself at the moment."""

    __slots__ = ("certain", "distance", "judged", "matches", "misses", "score", "start")

    def __init__(self, distance: int, start: int) -> None:
        self.distance = distance
        self.start = start  # index of the first symbol that equals the one a distance before
        self.matches = ANCHOR
        self.misses = 0
        self.score = float(ANCHOR)
        self.judged = 0  # copies there were when `certain` was found out: once a copy is enough
        self.certain = False


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
                trail.score -= MISS
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
    """

    def __init__(self, kinds: TokenKinds) -> None:
        self._kinds = kinds
        self._reset()

    def _reset(self) -> None:
        self._exact, self._masked = _Reading(), _Reading()
        self._places: list[int] = []  # token index of each symbol of the masked reading
        self._in_number = False

    @property
    def tokens(self) -> Sequence[int]:
        """What was pushed."""
        return self._exact.symbols

    def push(self, token: int) -> Loop | None:
        """Add a token; gives the loop that the text is in now, if it is in one: an exact one before others."""
        self._exact.push(token)
        if not self._kinds.number[token]:
            self._in_number = False
            self._places.append(len(self.tokens) - 1)
            self._masked.push(token)
        elif not self._in_number:
            self._in_number = True
            self._places.append(len(self.tokens) - 1)
            self._masked.push(_NUMBER_SYMBOL)
        if not (self._exact.trails or self._masked.trails):
            return None
        return self._judge()

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
            self.push(token)

    def _judge(self) -> Loop | None:
        found = [
            self._loop(trail, "drift" if trail.misses else "exact", trail.start, trail.distance)
            for trail in self._exact.trails
            if _is_long(trail)
        ]
        for trail in self._masked.trails:
            if _is_long(trail):
                end = len(self._places) - trail.distance
                period = len(self.tokens) - self._places[end]
                kind: Kind = "drift" if trail.misses else "counter"
                found.append(self._loop(trail, kind, self._places[trail.start], period))
        order = ("exact", "counter", "drift")
        return min(found, key=lambda loop: (not loop.certain, order.index(loop.kind)), default=None)

    def _loop(self, trail: _Trail, kind: Kind, onset: int, period: int) -> Loop:
        run = trail.matches + trail.misses
        copies = 1 + run / trail.distance
        if trail.judged != int(copies):
            trail.judged, trail.certain = int(copies), self._is_certain(kind, period, copies)
        return Loop(kind, onset, period, copies, trail.matches / run, trail.certain)

    def _is_certain(self, kind: Kind, period: int, copies: float) -> bool:
        if kind == "exact" and period * int(copies) >= WORDLESS_SPAN:
            return True
        if copies < CERTAIN_COPIES[kind]:
            return False
        copy = self.tokens[-period:]
        words = {token for token in copy if self._kinds.word[token]}
        visible = sum(not self._kinds.blank[token] for token in copy)
        if len(words) < (2 if kind == "exact" else 3):
            return False
        return sum(self._kinds.word[token] for token in copy) >= WORDY[kind] * visible


def _is_long(trail: _Trail) -> bool:
    run = trail.matches + trail.misses
    return run + trail.distance >= MIN_SPAN and run >= (MIN_COPIES - 1) * trail.distance
