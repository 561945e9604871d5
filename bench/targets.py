"""What is wanted and what was seen, as one table. Pure."""

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


def times(value: float) -> str:
    """Write a ratio."""
    return f"{value:.2f}x"


def table(verdicts: Sequence[Verdict]) -> str:
    """Set targets as a Markdown table."""
    rows = [["target", "wanted", "seen", "", "against"]]
    rows += [[v.what, v.wanted, v.seen, v.word, v.against] for v in verdicts]
    return markdown_table(rows)
