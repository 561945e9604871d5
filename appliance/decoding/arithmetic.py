"""Arithmetic as people write it, worked out exactly: what a numeric answer is compared with.

    evaluate("12 * (3 + 4) / 8")                       # Fraction(21, 2)
    find_expression("What is 17 * 23 + 4, please?")    # "17 * 23 + 4"
    last_number("That makes 1,250.5 litres.")          # Fraction(2501, 2)

Numbers, + - * / % and powers (** or ^), brackets, and the signs of typesetting for minus, times and divided by. Nothing
is ever evaluated as code, and everything is bounded: length, depth, the size of a power.

What this does NOT do: functions, units, roots. A power is a whole number.
"""

import contextlib
import re
from fractions import Fraction

from appliance.errors import InvalidRequest

LONGEST = 1000
"""Characters of an expression."""
SEARCHED = 8_000
"""Characters of a text in which an expression is looked for."""
STARTS = 500
"""Places at which one may begin."""
DEEPEST = 40
"""Brackets and signs within each other."""
LARGEST_BITS = 20_000
"""Of a numerator or denominator; more than any answer has."""

_SIGNS = str.maketrans({"\u2212": "-", "\u2013": "-", "\u00d7": "*", "\u00b7": "*", "\u00f7": "/"})
# A number does not begin with a superfluous zero: 2026-04-05 is a date and not a difference.
_NUMBER = re.compile(r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[1-9][0-9]*|0)(?:\.[0-9]+)?(?![0-9])|\.[0-9]+")
_BLANK = re.compile(r"[ \t]*")
_START = re.compile(r"[0-9(.]")
_ANSWER = re.compile(
    r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3}(?![0-9]))?"
)


def evaluate(expression: str) -> Fraction:
    """Work out an expression.

    Raises:
        InvalidRequest: it is none, it divides by zero, or it is too long, too deep or too large.
    """
    if len(expression) > LONGEST:
        raise _refused(f"{len(expression)} characters, expected at most {LONGEST}")
    reader = _Reader(expression.translate(_SIGNS), 0)
    value = reader.sum(0)
    if not reader.at_end():
        raise _refused(f"no operator at character {reader.at + 1}")
    return value


def find_expression(text: str) -> str | None:
    """Find the expression with the most operators, the first of equals, near the beginning of a text."""
    text = text[:SEARCHED].translate(_SIGNS)
    best, most, at = None, 0, 0
    for _ in range(STARTS):
        start = _START.search(text, at)
        if start is None:
            break
        reader = _Reader(text[start.start() : start.start() + LONGEST], 0)
        with contextlib.suppress(InvalidRequest):
            reader.sum(0)
        # Before an error too there may be an expression: "3 + 4 (see below" holds one.
        length, operators = reader.whole
        if operators > most:
            best, most = text[start.start() : start.start() + length].strip(), operators
        at = start.start() + max(length, 1)
        while at < len(text) and text[at - 1].isdecimal() and text[at].isdecimal():  # not to begin within a number
            at += 1
    return best


def last_number(text: str) -> Fraction | None:
    """Find the last number of a text; a minus sign counts where it does not stand between two numbers."""
    text = text.translate(_SIGNS)
    found = None
    for found in _ANSWER.finditer(text):  # noqa: B007  the last one is wanted
        pass
    if found is None or found.end() - found.start() > LONGEST:
        return None
    value = Fraction(found[0].replace(",", ""))
    before = text[: found.start()]
    negative = before.endswith("-") and not re.search(r"[0-9)]\s*\Z", before[-20:-1])
    return -value if negative else value


class _Reader:
    """Recursive descent over one expression.

    Attributes:
        at: the next character.
        whole: where the longest complete expression so far ends, and how many operators it has.
    """

    def __init__(self, text: str, at: int) -> None:
        self.at = at
        self.whole = (at, 0)
        self._text = text
        self._operators = 0

    def at_end(self) -> bool:
        self._skip()
        return self.at == len(self._text)

    def sum(self, depth: int) -> Fraction:
        value = self._product(depth)
        self._complete(depth)
        while operator := self._take("+", "-"):
            other = self._product(depth)
            value = _bounded(value + other if operator == "+" else value - other)
            self._complete(depth)
        return value

    def _product(self, depth: int) -> Fraction:
        value = self._signed(depth)
        self._complete(depth)
        while operator := self._take("*", "/", "%"):
            other = self._signed(depth)
            if operator != "*" and not other:
                raise _refused("it divides by zero")
            value = _bounded(value * other if operator == "*" else value / other if operator == "/" else value % other)
            self._complete(depth)
        return value

    def _signed(self, depth: int) -> Fraction:
        if depth > DEEPEST:
            raise _refused(f"deeper than {DEEPEST} levels")
        self._skip()
        sign = self._text[self.at : self.at + 1]
        if sign not in ("+", "-"):
            return self._power(depth)
        self.at += 1
        value = self._signed(depth + 1)
        return -value if sign == "-" else value

    def _power(self, depth: int) -> Fraction:
        base = self._atom(depth)
        self._complete(depth)
        if not self._take("**", "^"):
            return base
        # -2 ** 2 is -4, and 2 ** 3 ** 2 is 2 ** 9: as in mathematics.
        exponent = self._signed(depth + 1)
        if exponent.denominator != 1:
            raise _refused("a power is not a whole number")
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if base not in (0, 1, -1) and bits * abs(exponent) > LARGEST_BITS:
            raise _refused("it is too large")
        if not base and exponent < 0:
            raise _refused("it divides by zero")
        if base in (0, 1, -1):
            return base if exponent.numerator % 2 or (exponent and not base) else Fraction(1)
        return _bounded(Fraction(base**exponent.numerator))

    def _atom(self, depth: int) -> Fraction:
        self._skip()
        if self._text[self.at : self.at + 1] == "(":
            self.at += 1
            value = self.sum(depth + 1)
            if not self._take(")"):
                raise _refused(f"no closing bracket at character {self.at + 1}")
            return value
        number = _NUMBER.match(self._text, self.at)
        if number is None:
            raise _refused(f"no number at character {self.at + 1}")
        self.at = number.end()
        return Fraction(number[0].replace(",", ""))

    def _take(self, *operators: str) -> str | None:
        self._skip()
        for operator in operators:
            if self._text.startswith(operator, self.at) and not (
                operator == "*" and self._text.startswith("**", self.at)
            ):
                self.at += len(operator)
                self._operators += operator != ")"
                return operator
        return None

    def _complete(self, depth: int) -> None:
        if not depth:
            self.whole = (self.at, self._operators)

    def _skip(self) -> None:
        blank = _BLANK.match(self._text, self.at)
        self.at = blank.end() if blank else self.at


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > LARGEST_BITS:
        raise _refused("it is too large")
    return value


def _refused(found: str) -> InvalidRequest:
    return InvalidRequest(f"cannot work out this expression: {found}", hint="use numbers, + - * / % ** and brackets")
