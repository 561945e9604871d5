"""What is wanted and what was seen, as one table. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bench.markdown import markdown_table


@dataclass(frozen=True)
class Verdict:
    """One target.

    Attributes:
        what: is measured.
        wanted: the target, in words.
        seen: the figure.
        against: what it is compared with, and both figures; empty if it stands alone.
        met: None: it is not judged.
    """

    what: str
    wanted: str
    seen: str
    against: str
    met: bool | None

    @property
    def word(self) -> str:
        """What to make of it; a miss is written large."""
        return {True: "met", False: "MISSED", None: "not judged"}[self.met]


def times(value: float, *, least: bool = True) -> str:
    """Write a ratio, rounded to the side that meets no target.

    Args:
        value: the ratio.
        least: whether the target is the least that it may be, or the most.
    """
    rounded = math.floor(100 * value) if least else math.ceil(100 * value)
    return f"{rounded / 100:.2f}x"


def table(verdicts: Sequence[Verdict]) -> str:
    """Set targets as a Markdown table."""
    rows = [["target", "wanted", "seen", "", "against"]]
    rows += [[v.what, v.wanted, v.seen, v.word, v.against] for v in verdicts]
    return markdown_table(rows)
