"""Bounds of JSON beside those of its schema, so that a grammar is no place to loop for ever.

A model that is lost may write white space, digits, letters, items or brackets without end, all of them legal. `Place`
follows an answer's bytes through JSON; `JsonBounds.narrow` takes away the tokens that would pass a bound, so that what
remains closes what is open. When nothing would remain, because the schema insists, the bound gives way.

A map whose names are few (`patternProperties`) comes to an end of them: `names_used_up` looks ahead, so that no comma
and no beginning of a name is written after which only a name could follow that the object has already.

The defaults are far beyond what an answer on a small model needs and may be changed for a test. `Bounds.total` is what
makes every answer end: 1,024 items of 1,024 items would be within each other bound.

What this does NOT do: check that the bytes are JSON; the grammar has.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from appliance.decoding.text import TokenBytes

Bits = NDArray[np.uint8]
Look = Callable[[list[int]], Bits]
"""What a grammar allows after some more tokens."""

OUTSIDE, STRING, ESCAPE, NUMBER, EXPONENT, IDLE = range(6)
FIRST, NEXT = 1, 2
_MEASURES = ("blanks", "characters", "after_escape", "digits", "exponent")
"""By mode, which of a token's shapes is measured against the room that is left."""
_NUMERIC = frozenset(b"0123456789.eE+-")
_BEGINS = {0x22: (STRING, 0)} | dict.fromkeys(b"-0123456789", (NUMBER, 1))
_BLANK = frozenset(b" \t\r\n")
_STRUCTURE = re.compile(rb"[\[\]{},]")
_ESCAPE = re.compile(rb"\\(?:u[0-9A-Fa-f]{4}|.)", re.DOTALL)
MOST_LOOKS = 256
"""Positions that are looked at to find a name that is new; beyond them it is taken for granted."""
FEW_TOKENS = 64
"""As many tokens are followed from where a name begins; where more are allowed, there are names enough."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much of each thing there may be in an answer.

    Args:
        whitespace: characters of white space in a row, outside strings.
        digits: characters of a number before its exponent.
        exponent: digits of an exponent; with two of them, a number fits a double.
        string: characters of a string, as written.
        items: items of an array, members of an object.
        depth: arrays and objects within each other.
        total: bytes of the whole, after which everything open is closed.
    """

    whitespace: int = 1
    digits: int = 20
    exponent: int = 2
    string: int = 4_096
    items: int = 1_024
    depth: int = 32
    total: int = 65_536

    def raised(self, string: int, items: int) -> "Bounds":
        """Make room for what a schema demands: its longest `minLength` and its largest `minItems`."""
        if string <= self.string and items <= self.items:
            return self
        needed = self.total + string + 4 * items
        return replace(self, string=max(self.string, string), items=max(self.items, items), total=needed)


DEFAULT_BOUNDS = Bounds()
EMBEDDED_BOUNDS = Bounds(whitespace=64)
"""For JSON within other text, which may be indented."""


class Frame(NamedTuple):
    """An open array or object."""

    outer: "Frame | None"
    items: int
    fullest: int
    """The most items of any open one, this one included."""
    keys: frozenset[bytes] | None
    """What an object's members are called, as written; None for an array."""


class Place(NamedTuple):
    """Where an answer is in its JSON; never changed, so keeping an old one is the snapshot."""

    mode: int
    run: int
    """Characters of the string, number, exponent or white space so far."""
    frame: Frame | None
    depth: int
    awaits: int
    """FIRST or NEXT if an item or a key comes next, else 0."""
    key: bytes | None
    """What has been written of a key, while it is being written."""
    repeats: bool
    """Whether an object has two members of one name."""
    total: int
    embedded: bool
    """Whether the JSON stands within other text; before and after it the mode is IDLE."""
    overruns: int
    """Tokens in a row that came although a bound forbade them; beyond the total, all of them."""


START = Place(OUTSIDE, 0, None, 0, 0, None, False, 0, False, 0)
START_OF_TEXT = START._replace(mode=IDLE, embedded=True)
"""Where JSON begins with the first `{"`."""
_BEGUN = Place(STRING, 0, Frame(None, 1, 1, frozenset()), 1, 0, b"", False, 2, True, 0)


def step(place: Place, data: bytes) -> Place:
    """Follow some bytes."""
    mode, run, frame, depth, awaits, key, repeats, total, embedded, overruns = place
    total += len(data)
    if mode == STRING and b'"' not in data and b"\\" not in data:
        key = key if key is None else key + data
        return Place(STRING, run + _characters(data), frame, depth, awaits, key, repeats, total, embedded, overruns)
    for at, byte in enumerate(data):
        if mode == IDLE:
            if run and byte == 0x22:
                return step(_BEGUN, data[at + 1 :])
            run = int(byte == 0x7B)
        elif mode in (STRING, ESCAPE):
            mode, run = _in_string(mode, run, byte)
            if key is not None and mode == OUTSIDE and frame:
                name = _ESCAPE.sub(lambda escape: escape[0].lower(), key) if b"\\" in key else key
                repeats = repeats or name in (frame.keys or ())
                frame, key = frame._replace(keys=(frame.keys or frozenset()) | {name}), None
            elif key is not None:
                key += bytes((byte,))
        elif mode >= NUMBER and byte in _NUMERIC:
            mode, run = (EXPONENT, 0) if byte in b"eE" else (mode, run + (mode == NUMBER or byte not in b"+-"))
        elif byte in _BLANK:
            mode, run = OUTSIDE, run + 1 if mode == OUTSIDE else 1
        else:
            key = b"" if byte == 0x22 and awaits and frame and frame.keys is not None else None
            mode, run = _BEGINS.get(byte, (OUTSIDE, 0))
            frame, depth, awaits = _nest(frame, depth, byte)
            mode = IDLE if embedded and not depth else mode
    return Place(mode, run, frame, depth, awaits, key, repeats, total, embedded, overruns)


def _in_string(mode: int, run: int, byte: int) -> tuple[int, int]:
    if mode == ESCAPE:
        return STRING, run + 1
    if byte == 0x22:
        return OUTSIDE, 0
    return (ESCAPE, run + 1) if byte == 0x5C else (STRING, run + (byte & 0xC0 != 0x80))


def _nest(frame: Frame | None, depth: int, byte: int) -> tuple[Frame | None, int, int]:
    if byte in b"[{":
        keys: frozenset[bytes] | None = frozenset() if byte == 0x7B else None
        return Frame(frame, 1, max(1, frame.fullest if frame else 0), keys), depth + 1, FIRST
    if frame is None:
        return None, 0, 0
    if byte == 0x2C:
        items = frame.items + 1
        return Frame(frame.outer, items, max(frame.fullest, items), frame.keys), depth, NEXT
    return (frame.outer, depth - 1, 0) if byte in b"]}" else (frame, depth, 0)


def _characters(data: bytes) -> int:
    return len(data) if data.isascii() else sum(byte & 0xC0 != 0x80 for byte in data)


# --- what tokens do ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenShapes:
    """What each token of a vocabulary does to JSON, by where it begins; every array has one element a token.

    Attributes:
        token_bytes: the vocabulary.
        characters: of a string, up to its end, if the token begins in one.
        after_escape: the same if it begins after a backslash.
        digits: characters of a number, up to its end or exponent, if it begins in one.
        exponent: digits of an exponent, if it begins in one.
        long_exponent: digits of an exponent that begins in the token, if the token begins in a number.
        blanks: white space at the beginning.
        closes: whether the token begins with a closing bracket, after at most white space.
        structural: whether it has a bracket or a comma, which matter outside strings.
        ends_string: whether it has those and a quotation mark: it may leave a string before it reaches them.
        enders: what stands before a quotation mark -> the tokens in which it does.
        whole: tokens with two quotation marks: they may hold a whole key.
        texts: bytes -> the tokens that are just these.
        longest: bytes of the longest token.
        openers: the most opening brackets in a token.
        commas: the most commas in a token.
        packed: what has been packed into bits, kept for the next time.
    """

    token_bytes: TokenBytes
    characters: NDArray[np.uint16]
    after_escape: NDArray[np.uint16]
    digits: NDArray[np.uint16]
    exponent: NDArray[np.uint16]
    long_exponent: NDArray[np.uint16]
    blanks: NDArray[np.uint16]
    closes: NDArray[np.bool_]
    structural: NDArray[np.bool_]
    ends_string: NDArray[np.bool_]
    enders: dict[bytes, list[int]]
    whole: NDArray[np.bool_]
    texts: dict[bytes, list[int]]
    longest: int
    openers: int
    commas: int
    packed: dict[tuple[str, int, int, int], Bits] = field(default_factory=dict)

    @classmethod
    def of(cls, token_bytes: TokenBytes) -> "TokenShapes":
        """Look at every token once: 0.3 s for 49,000 of them."""
        lengths = np.minimum(np.array([_lengths(data) for data in token_bytes], np.int64), 65_535).astype(np.uint16)
        structural = np.array([_STRUCTURE.search(data) is not None for data in token_bytes])
        return cls(
            token_bytes=token_bytes,
            characters=lengths[:, 0].copy(),
            after_escape=lengths[:, 1].copy(),
            digits=lengths[:, 2].copy(),
            exponent=lengths[:, 3].copy(),
            long_exponent=lengths[:, 4].copy(),
            blanks=lengths[:, 5].copy(),
            closes=np.array([data.lstrip()[:1] in (b"]", b"}") for data in token_bytes]),
            structural=structural,
            ends_string=structural & np.array([b'"' in data for data in token_bytes]),
            enders=_enders(token_bytes),
            whole=np.array([data.count(b'"') > 1 for data in token_bytes]),
            texts=_texts(token_bytes),
            longest=max(map(len, token_bytes)),
            openers=max(data.count(b"[") + data.count(b"{") for data in token_bytes),
            commas=max(data.count(b",") for data in token_bytes),
        )


def _lengths(data: bytes) -> tuple[int, ...]:
    rest = data.lstrip(b"0123456789.+-")
    mantissa = len(data) - len(rest)
    exponent = rest[1:].lstrip(b"+-") if rest[:1] in (b"e", b"E") else b""
    return (
        _string_characters(data),
        1 + _string_characters(data[1:]) if data else 0,
        mantissa,
        _digits(data.lstrip(b"+-")),
        _digits(exponent),
        len(data) - len(data.lstrip(b" \t\r\n")),
    )


def _digits(data: bytes) -> int:
    return len(data) - len(data.lstrip(b"0123456789"))


def _enders(token_bytes: TokenBytes) -> dict[bytes, list[int]]:
    found: dict[bytes, list[int]] = {}
    for token, data in enumerate(token_bytes):
        at = data.find(b'"')
        while at >= 0:
            found.setdefault(data[:at], []).append(token)
            at = data.find(b'"', at + 1)
    return found


def _texts(token_bytes: TokenBytes) -> dict[bytes, list[int]]:
    found: dict[bytes, list[int]] = {}
    for token, data in enumerate(token_bytes):
        if data:
            found.setdefault(data, []).append(token)
    return found


def _string_characters(data: bytes) -> int:
    return _characters(data[: _string_end(data)])


def _string_end(data: bytes) -> int:
    """Find the first unescaped quotation mark; the end if there is none."""
    at = 0
    while at < len(data) and data[at] != 0x22:
        at += 2 if data[at] == 0x5C else 1
    return min(at, len(data))


# --- what is taken away -----------------------------------------------------------------------------------------------


class JsonBounds:
    """The bounds for one vocabulary.

    Args:
        shapes: the vocabulary's.
        bounds: the limits.
        start: where an answer begins: START if all of it is JSON, START_OF_TEXT if JSON stands within it.
    """

    def __init__(self, shapes: TokenShapes, bounds: Bounds = DEFAULT_BOUNDS, start: Place = START) -> None:
        self.shapes = shapes
        self.bounds = bounds
        self.start = start
        self._limits = (bounds.whitespace, bounds.string, bounds.string, bounds.digits, bounds.exponent)

    def step(self, place: Place, token: int, *, lifted: bool = False) -> Place:
        """Follow a token; `lifted` says that it passed a bound because nothing else was left."""
        after = step(place, self.shapes.token_bytes[token])
        if lifted:
            return after._replace(overruns=after.overruns + 1)
        within = after.total < self.bounds.total and (after.mode == IDLE or after.run <= self._limits[after.mode])
        return after._replace(overruns=0) if after.overruns and within else after

    def narrow(self, place: Place, allowed: Bits, look: Look | None = None) -> Bits | None:
        """Take away the tokens that would pass a bound.

        Args:
            place: where the answer is.
            allowed: what the grammar allows, one bit a token, the lowest first; not changed.
            look: what it allows after some more tokens; given where the names of an object may be used up.
        Returns:
            The bits that remain, perhaps none; None if no bound is near, which is nearly always and costs nothing.
        """
        if place.mode == IDLE:
            return None
        repeating = self._repeating(place, allowed)
        if look is not None:
            repeating += self.names_used_up(place, allowed, look)
        unique = _cleared(allowed, repeating) if repeating else allowed
        kept = self._within(place, unique)
        if repeating and (kept is None or not kept.any()):
            return unique  # a name that is new is worth another character
        return kept

    def _within(self, place: Place, allowed: Bits) -> Bits | None:
        closing = place.total >= self.bounds.total or place.repeats  # what is invalid for good ends soon
        fitting = self._fitting(place, allowed.size, closing)
        kept = None if fitting is None else allowed & fitting
        if closing and place.awaits == FIRST:
            return (allowed if kept is None else kept) & self._packed("closes", allowed.size)
        if closing or self._is_near(place):
            kept = allowed if kept is None else kept
            return _cleared(kept, self._too_deep(place, kept, closing))
        return kept

    def _repeating(self, place: Place, allowed: Bits) -> list[int]:
        """Find the tokens that would give a member a name that the object has already."""
        keys = place.frame.keys if place.frame else None
        if not keys:
            return []
        if place.key is not None:
            size, enders = len(place.key), self.shapes.enders  # a known key is whole: a mark after it is no escaped one
            return [t for known in keys if known.startswith(place.key) for t in enders.get(known[size:], ())]
        if not place.awaits:
            return []
        text = self.shapes.token_bytes
        return [t for t in self._those("whole", allowed) if step(place, text[t]).repeats]

    def names_used_up(self, place: Place, allowed: Bits, look: Look) -> list[int]:
        """Find the tokens after which an object could only have a member whose name it has already."""
        if place.key is not None:
            tokens = _among(self._within_names(place), allowed)
        elif place.awaits:
            tokens = self._few(allowed)
        else:
            closing = self._those("ends_string" if place.mode in (STRING, ESCAPE) else "structural", allowed)
            tokens = [token for token in closing if b"," in self.shapes.token_bytes[token]]
        search = _NameSearch(self, look)
        after = ((token, step(place, self.shapes.token_bytes[token])) for token in tokens)
        return [token for token, then in after if _begins_name(then) and not search.finds_new(then, [token])]

    def _within_names(self, place: Place) -> list[int]:
        """Find the tokens with which a name goes on as one does that the object has already."""
        keys = (place.frame and place.frame.keys) or ()
        written = place.key or b""
        rests = (known[len(written) :] for known in keys if known.startswith(written))
        begun = {rest[:size] for rest in rests for size in range(1, len(rest) + 1)}
        return [token for text in begun for token in self.shapes.texts.get(text, ())]

    def _few(self, allowed: Bits) -> list[int]:
        """List the tokens that are allowed, if they are few."""
        found = np.flatnonzero(np.unpackbits(allowed, bitorder="little"))
        return found.tolist() if found.size <= FEW_TOKENS else []

    def _fitting(self, place: Place, size: int, closing: bool) -> Bits | None:
        """Find the tokens that do not make a string, number or white space too long."""
        limit = self._limits[place.mode]
        room = 0 if closing and place.mode != OUTSIDE else max(limit - place.run, 0)
        if place.mode == ESCAPE:
            room = max(room, 1)  # what is escaped belongs to the backslash
        if room >= self.shapes.longest and place.mode != NUMBER:
            return None
        return self._packed(_MEASURES[place.mode], size, room)

    def _packed(self, measure: str, size: int, room: int = 0) -> Bits:
        """Pack the tokens whose measure is within the room, one bit a token; once for each room."""
        packed = self.shapes.packed.get((measure, size, room, self.bounds.exponent))
        if packed is None:
            values = getattr(self.shapes, measure)
            fits = values if values.dtype == np.bool_ else values <= min(room, 65_535)
            if measure == "digits":
                fits = fits & (self.shapes.long_exponent <= self.bounds.exponent)
            packed = np.zeros(size, np.uint8)
            bits = np.packbits(fits, bitorder="little")
            packed[: bits.size] = bits
            self.shapes.packed[measure, size, room, self.bounds.exponent] = packed
        return packed

    def _is_near(self, place: Place) -> bool:
        fullest = place.frame.fullest if place.frame else 0
        return fullest + self.shapes.commas > self.bounds.items or place.depth + self.shapes.openers > self.bounds.depth

    def _too_deep(self, place: Place, allowed: Bits, closing: bool) -> list[int]:
        """Find the tokens after which there would be too many items, or too many things open."""
        relevant = self._those("ends_string" if place.mode in (STRING, ESCAPE) else "structural", allowed)
        after = ((token, step(place, self.shapes.token_bytes[token])) for token in relevant)
        return [token for token, then in after if (_grows(place, then) if closing else self._passes(place, then))]

    def _those(self, flag: str, among: Bits) -> list[int]:
        """List the tokens of which a flag of the shapes is true."""
        found = among & self._packed(flag, among.size)
        octets = np.flatnonzero(found)
        places = np.flatnonzero(np.unpackbits(found[octets], bitorder="little"))
        tokens: list[int] = (octets[places >> 3] * 8 + (places & 7)).tolist()
        return tokens

    def _passes(self, before: Place, after: Place) -> bool:
        """Whether a token opens too much or begins one item too many; what passed before is not held against it."""
        if after.depth > max(self.bounds.depth, before.depth):
            return True
        known = before.frame.fullest if before.frame else 0
        return after.frame is not None and after.frame.fullest > max(self.bounds.items, known)


def _grows(before: Place, after: Place) -> bool:
    """Whether a token opened something or began an item."""
    if after.depth > before.depth or after.awaits:
        return True
    outer = before.frame
    for _ in range(before.depth - after.depth):
        outer = outer.outer if outer else None
    return after.frame is not None and outer is not None and after.frame.items > outer.items


class _NameSearch:
    """Looks for a name that an object has not."""

    def __init__(self, bounds: JsonBounds, look: Look) -> None:
        self._bounds, self._look = bounds, look
        self._looks = 0
        self._known: dict[tuple[bytes | None, int, Frame | None], bool] = {}

    def finds_new(self, place: Place, tokens: list[int]) -> bool:
        """Whether a name can follow that is new, after tokens that lead to a place."""
        at = (place.key, place.awaits, place.frame)  # however its bytes are cut into tokens
        if at not in self._known:
            self._known[at] = self._finds_new(place, tokens)
        return self._known[at]

    def _finds_new(self, place: Place, tokens: list[int]) -> bool:
        self._looks += 1
        if self._looks > MOST_LOOKS:
            return True
        allowed, bounds = self._look(tokens), self._bounds
        if place.key is None:
            further = bounds._few(allowed)
            if not further:
                return True
        else:
            further = _among(bounds._within_names(place), allowed)
            if _cleared(allowed, further + bounds._repeating(place, allowed)).any():
                return True
        text = bounds.shapes.token_bytes
        after = ((token, step(place, text[token])) for token in further)
        return any(
            self.finds_new(then, [*tokens, token]) if _begins_name(then) else not then.repeats for token, then in after
        )


def _begins_name(place: Place) -> bool:
    """Whether a name comes next or is being written, in an object that has members already."""
    begun = place.awaits or place.key is not None
    return bool(begun and place.frame and place.frame.keys)


def _among(tokens: list[int], allowed: Bits) -> list[int]:
    return [token for token in tokens if allowed[token >> 3] >> (token & 7) & 1]


def _cleared(bits: Bits, tokens: list[int]) -> Bits:
    kept = bits.copy()
    for token in tokens:
        kept[token >> 3] &= 0xFF ^ (1 << (token & 7))
    return kept
