"""Guesses of what comes next, copied from what was there before: prompt, tool results, the answer itself.

    drafts = Drafts(longest=15)
    guess = drafts.propose(tokens)              # before a step; may be empty
    ...                                         # the model computes a row for each token of the guess
    drafts.learn(len(guess), accepted)          # how many of them it agreed with

Answers of the work that a box does are full of words of the request: names out of a document, keys of a schema, a
call's arguments. Where the text's last tokens stood before, what followed them there is guessed to follow again. The
model computes several tokens of one sequence in one pass for little more than the price of one, and what it does not
agree with is taken back. No second model is needed.

How much is guessed depends on what was right before: a guess that was right in full is twice as long the next time, a
wrong one shorter, and after wrong ones there is a pause. None of that depends on a clock, so equal requests are
guessed for alike.

What this does NOT do: change the distribution of the answer. Each token is drawn by the request's own chances from the
row that follows the tokens before it, whether it was guessed or not.

Source: Saxena 2023, "Prompt Lookup Decoding"; Leviathan et al. 2023, "Fast Inference from Transformers via Speculative
Decoding", for what is exact about it.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ANCHOR = 3
"""Tokens that must have stood before."""
LOOKED_AT = 4
"""Places where they stood, the latest ones, of which the one is taken that agrees with most tokens before them."""
FIRST = 4
"""Tokens of the first guess."""
PAUSE, LONGEST_PAUSE = 4, 64
"""Tokens without a guess after one of which nothing was right; doubled each time, up to the second."""
LOOK_BACK = 32
"""Tokens that are compared at most to find the place that agrees best."""


class Drafts:
    """The guesses for one answer."""

    def __init__(self, longest: int) -> None:
        """Know nothing yet.

        Args:
            longest: tokens that are guessed at most.
        """
        self._longest = longest
        self._wanted = min(FIRST, longest)
        self._places: dict[tuple[int, ...], list[int]] = {}
        self._read = 0  # tokens whose anchors are in `_places`
        self._pause = PAUSE
        self._silent_until = 0

    def propose(self, tokens: NDArray[np.int64], room: int) -> list[int]:
        """Guess what follows.

        Args:
            tokens: prompt and answer, int64, shape (n,).
            room: how many more there may be.
        """
        if not self._longest:
            return []
        self._index(tokens)
        end = len(tokens)
        if end < self._silent_until or end <= ANCHOR:
            return []
        wanted = min(self._wanted, self._longest, room - 1)
        places = [p for p in self._places.get(_anchor(tokens, end), ()) if p < end]
        if wanted < 1 or not places:
            return []
        best = max(places, key=lambda place: (_agreement(tokens, place, end), place))
        return [int(token) for token in tokens[best : best + wanted]]

    def learn(self, end: int, guessed: int, accepted: int) -> None:
        """Take in how right a guess was.

        Args:
            end: tokens of prompt and answer, as they are now.
            guessed: tokens of the guess.
            accepted: how many of them, from the first on, were what followed.
        """
        if accepted == guessed:
            self._wanted = min(self._longest, 2 * self._wanted)
        elif accepted:
            self._wanted = max(1, accepted)
        if accepted:
            self._pause = PAUSE
            return
        self._wanted = max(1, self._wanted // 2)
        self._silent_until = end + self._pause
        self._pause = min(LONGEST_PAUSE, 2 * self._pause)

    def rewind(self, length: int) -> None:
        """Forget every token from `length` on."""
        if length < self._read:
            self._places.clear()
            self._read = 0
        self._silent_until = min(self._silent_until, length)

    def _index(self, tokens: NDArray[np.int64]) -> None:
        """Note where each anchor stood; the end itself is no place that anything follows."""
        for end in range(max(ANCHOR, self._read), len(tokens)):
            places = self._places.setdefault(_anchor(tokens, end), [])
            places.append(end)
            if len(places) > LOOKED_AT:
                del places[0]
        self._read = max(self._read, len(tokens))


def _anchor(tokens: Sequence[int] | NDArray[np.int64], end: int) -> tuple[int, ...]:
    return tuple(int(token) for token in tokens[end - ANCHOR : end])


def _agreement(tokens: NDArray[np.int64], place: int, end: int) -> int:
    """Count the tokens before two places that are the same."""
    most = min(LOOK_BACK, place)
    a, b = tokens[place - most : place][::-1], tokens[end - most : end][::-1]
    differ = np.flatnonzero(a != b)
    return int(differ[0]) if differ.size else most
