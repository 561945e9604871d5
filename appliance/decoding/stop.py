"""Stop strings, wherever the borders of tokens fall.

The text before a stop string is shown, the stop string and all after it are not. Text that may turn out to be the
beginning of a stop string is held back until that is decided, and not a character more.

    stops = StopStrings(["\\n\\n", "User:"])
    for piece in pieces:
        emit, hit = stops.push(piece)
        show(emit)
        if hit is not None:
            break
    else:
        show(stops.finish())

The match that begins first wins, and of those the longest, as if the whole text were searched at once. A stop string
that begins another one is thus decided only when the next character has come; if none comes, `finish` decides and `hit`
tells.

What this does NOT do: count tokens, or keep the model from computing the token that completes a stop string.
"""

from collections.abc import Sequence

from appliance.errors import InvalidRequest


class StopStrings:
    """The search through one answer; `copy.copy` takes a snapshot to rewind to.

    Args:
        stops: any number of strings, in any order.
    Raises:
        InvalidRequest: one is empty: it would stop before the first character.
    """

    __slots__ = ("_held", "_hit", "_stops")

    def __init__(self, stops: Sequence[str] = ()) -> None:
        if any(not stop for stop in stops):
            raise InvalidRequest(
                "cannot stop at an empty string: expected at least one character",
                hint="leave stop out to go on to the model's own end",
                param="stop",
            )
        # Longest first: of the matches at one place, the first found is the one that wins.
        self._stops = tuple(sorted(set(stops), key=lambda stop: (-len(stop), stop)))
        self._held = ""
        self._hit: str | None = None

    @property
    def hit(self) -> str | None:
        """The stop string that ended the text, if one did."""
        return self._hit

    def push(self, text: str) -> tuple[str, str | None]:
        """Add text.

        Returns:
            What may be shown now, and the stop string that was hit; after a hit always nothing, and the same hit.
        """
        return self._search(text, more=True), self._hit

    def finish(self) -> str:
        """End the text.

        Returns:
            What was held back, up to a stop string if it holds one: `hit` tells.
        """
        return self._search("", more=False)

    def _search(self, text: str, *, more: bool) -> str:
        if self._hit is not None:
            return ""
        text = self._held + text
        self._held = ""
        for start in range(len(text)):
            for stop in self._stops:
                if text.startswith(stop, start):
                    self._hit = stop
                    return text[:start]
                if more and len(text) - start < len(stop) and stop.startswith(text[start:]):
                    self._held = text[start:]
                    return text[:start]
        return text
