"""What a request says of repetition: who asks for the same fifty times, or for a row of numbers, gets it.

    asked = Asked.of(user_text)
    asked.copies        # of the same
    asked.number        # up to which a row of numbers may go

Read by patterns of English; the numbers in whatever language. What this does NOT find: a request in other words. The
client then says so itself, by the breaker's mode.
"""

import re
from dataclasses import dataclass
from typing import Self

_NUMBERED = re.compile(
    r"\b(?:say|write|repeat|print|output|type|sing|copy|recite|put)\b[^\n]{0,300}?"
    r"\b(?P<n>\d{1,5}|hundred|thousand)\s+(?:times|copies|repetitions)\b(?!\s+(?:an?|per|each|every)\b)"
    r"|\b(?P<rounds>\d{1,5}|hundred|thousand)\s+(?:rounds|cycles|laps|reps|repetitions)\s+of\b",
    re.IGNORECASE,
)
_UNNUMBERED = re.compile(
    r"(?:^|[.!?:,;\n]\s*|\b(?:please|and|then|you|to)\s+)"
    r"(?:(?:repeat|copy)\s+(?:this|it|that|these|the|after|\"|')"
    r"|(?:say|write|repeat|print|output|type|sing|recite|give|show|fill|make|compose)\b[^.!?\n]{0,120}"
    r"\b(?:over and over|again and again|with (?:spaces|dashes)"
    r"|(?:chorus|refrain|lyrics|verses?|songs?|zeros?)(?!\.\w))\b)",
    re.IGNORECASE,
)
_REFUSED = re.compile(r"(?:\bnot|n't|\bnever|\bwithout|\bavoid|\bno)\b[^.!?\n]{0,40}$", re.IGNORECASE)
_IN_WORDS = {"hundred": 100, "thousand": 1000}
_ASKED_WITHOUT_NUMBER = 100
_ENDS = 4_000
"""Characters that are read from a request's beginning and its end: what to do stands there, a document in between."""
MOST_NUMBERS = 4
"""A request that asks for a row of numbers has few itself; one with more comes with a document."""
_NUMBER = re.compile(r"(?<!\d)(?:\d{1,3}(?:[ ,.']\d{3}){1,3}|\d{1,5})(?!\d)|\b(?:hundred|thousand)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Asked:
    """What there is to repeat.

    Attributes:
        copies: of the same that are asked for: 0 if none are, a guess if no number is given.
        number: the largest of the few numbers that are mentioned, 0 if there is none.
    """

    copies: int = 0
    number: int = 0

    @classmethod
    def of(cls, text: str) -> Self:
        """Read a request."""
        text = text if len(text) <= 2 * _ENDS else text[:_ENDS] + "\n" + text[-_ENDS:]
        copies = 0
        for found in _NUMBERED.finditer(text):
            copies = max(copies, _value(found["n"] or found["rounds"]))
        if any(not _REFUSED.search(text, 0, found.end()) for found in _UNNUMBERED.finditer(text)):
            copies = max(copies, _ASKED_WITHOUT_NUMBER)
        numbers = [_value(number) for number in _NUMBER.findall(text)]
        return cls(copies, max(numbers, default=0) if len(numbers) <= MOST_NUMBERS else 0)


NOTHING = Asked()


def _value(number: str) -> int:
    return _IN_WORDS.get(number.lower()) or int(re.sub(r"\D", "", number))
