"""Lists that have run out of things to say: item after item was there before, in whatever order.

    items = ListItems()
    items.push(index, token_bytes)          # after each token of the answer
    if items.repeats >= CERTAIN: ...        # the list says nothing new any more, since items.onset(...)

"Rome, Venice, Rome, Barcelona, Venice, ..." has no period, so the search through the tail does not see it. Here each
line that begins with a number or a bullet is an item, and how many items in a row were said before is counted. Items
are compared by their words and numbers alone, their own number aside ("7. Item 7").

What this does NOT do: judge lines that are no list, items that say the same in other words, or labels: "1. positive, 2.
negative, 3. positive, ..." is work. Where that has a period, the search through the tail sees it.
"""

import re

CERTAIN, WARY = 8, 4
"""Items in a row that were all said before; and where the answer has looped before."""
LABELS, LABEL_WORDS = 6, 3
"""A list whose items are so few different ones, of so few words, gives each thing its label."""

_MARKER = re.compile(rb"\s*(?:\d+[.)]|[*\x95-]|\xe2\x80\xa2)\s+")
_NO_SIGNS = re.compile(r"[\W_]+")
_KEY = re.compile(rb"\s*[*-]\s+(?:[\w.-]+:(?:\s|$)|[!&{\[])")
"""A bullet and a key or a sign: YAML, whose lists repeat."""
_COLUMNS = re.compile(rb"[._]{4}|\t|\|")
"""A table of contents, or another sort of columns."""


class ListItems:
    """The items of the list that an answer is in."""

    __slots__ = ("_line", "_seen", "_starts", "_tokens")

    def __init__(self) -> None:
        self._line = b""
        self._tokens: list[tuple[int, int]] = []  # index and length of each token of the line
        self._seen: set[str] = set()
        self._starts: list[int] = []  # of the items in a row that were said before

    @property
    def repeats(self) -> int:
        """How many items in a row, up to the last whole one, were said before."""
        return len(self._starts)

    @property
    def may_be_labels(self) -> bool:
        """Whether the list is right to say the same few words in whatever order."""
        return len(self._seen) <= LABELS and all(len(item.split()) <= LABEL_WORDS for item in self._seen)

    @property
    def held_from(self) -> int | None:
        """Where the first of them begins to say something; None if there is none."""
        return self._starts[0] if self._starts else None

    def loop(self, settled: int, end: int) -> tuple[int, int]:
        """Where the first of them begins that can still be taken back, and the tokens of an item from there on.

        Args:
            settled: tokens that cannot be taken back.
            end: tokens of the answer.
        """
        free = [start for start in self._starts if start >= settled]
        onset = free[0] if free else settled
        return onset, max(1, (end - onset) // max(1, len(free)))

    def push(self, index: int, data: bytes) -> bool:
        """Add a token's bytes; tells whether an item was completed."""
        self._line += data
        self._tokens.append((index, len(data)))
        if b"\n" not in data:
            return False
        *lines, rest = self._line.split(b"\n")
        found = False
        for line in lines:
            found = self._take(line) or found
            self._tokens = [(index, len(data))]
        self._line = rest
        self._tokens = [(index, len(rest))] if rest else []
        return found

    def _take(self, line: bytes) -> bool:
        marker = _MARKER.match(line)
        if marker is None or _KEY.match(line) or _COLUMNS.search(line):
            if line.strip():  # another paragraph: another list
                self._seen, self._starts = set(), []
            return False
        own = _NO_SIGNS.sub(" ", marker[0].decode(errors="replace")).strip()
        words = _NO_SIGNS.sub(" ", line[marker.end() :].decode(errors="replace").lower()).split()
        item = " ".join(word for word in words if word != own)
        if not any(map(str.isalpha, item)):
            self._starts = []
            return False
        if item in self._seen:
            self._starts.append(self._index_of(len(marker[0].rstrip())))
        else:
            self._starts = []
            self._seen.add(item)
        return True

    def _index_of(self, offset: int) -> int:
        """Find the token of the line that holds the byte after `offset`."""
        for index, length in self._tokens:
            offset -= length
            if offset < 0:
                return index
        return self._tokens[-1][0]
