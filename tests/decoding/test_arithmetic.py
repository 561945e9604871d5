"""Arithmetic is worked out exactly, nothing is run as code, and nothing takes long."""

import contextlib
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.decoding.arithmetic import evaluate, find_expression, last_number
from appliance.errors import InvalidRequest

RIGHT = [
    ("12 * (3 + 4) / 8", Fraction(21, 2)),
    ("-2 ** 2", -4),
    ("2 ** 3 ** 2", 512),
    ("(-1) ** 3", -1),
    ("2 ** -1", Fraction(1, 2)),
    ("2^10", 1024),
    ("0 ** 0", 1),
    ("7 % 4", 3),
    ("10 - 3 - 2", 5),
    ("100 / 10 / 5", 2),
    ("1,234.5 * 2", 2469),
    ("--3", 3),
    ("\u22123 \u00d7 4 \u00f7 2", -6),
    (".5 + .25", Fraction(3, 4)),
    ("0.1 + 0.2", Fraction(3, 10)),
]


@pytest.mark.parametrize(("expression", "value"), RIGHT)
def test_expression_has_its_value(expression, value):
    """Precedence and signs as in mathematics, fractions exactly."""
    assert evaluate(expression) == value


# What is refused, and a word of the reason.
WRONG = [
    ("", "no number"),
    ("1 +", "no number"),
    ("1 2", "no operator"),
    ("(1", "no closing bracket"),
    ("1 / 0", "divides by zero"),
    ("0 ** -1", "divides by zero"),
    ("1 % (2 - 2)", "divides by zero"),
    ("2 ** 0.5", "whole number"),
    ("2 ** 9999999", "too large"),
    ("9 ** 9 ** 9", "too large"),
    ("01 + 1", "no number"),
    ("__import__('os')", "no number"),
    ("1 if 1 else 2", "no operator"),
    ("(" * 500 + "1" + ")" * 500, "characters|levels"),
    ("-" * 500 + "1", "levels"),
    ("1+" * 600 + "1", "characters"),
]


@pytest.mark.parametrize(("expression", "reason"), WRONG, ids=range(len(WRONG)))
def test_what_is_no_expression_is_refused(expression, reason):
    """In words, never by a traceback."""
    with pytest.raises(InvalidRequest, match=reason):
        evaluate(expression)


operators = st.sampled_from(["+", "-", "*"])
sums = st.recursive(
    st.integers(0, 99).map(str),
    lambda inner: st.tuples(inner, operators, inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
    max_leaves=12,
)


@given(sums)
def test_python_agrees(expression):
    """On sums, differences and products of whole numbers with brackets."""
    assert evaluate(expression) == eval(expression)  # noqa: S307  of text that this test made


@given(st.text(alphabet="0123456789+-*/%()^., \n", max_size=80))
def test_any_text_is_a_value_or_a_refusal(text):
    """Nothing else happens, and what is found can be worked out or says why not."""
    for candidate in (text, find_expression(text) or "1"):
        with contextlib.suppress(InvalidRequest):
            assert isinstance(evaluate(candidate), Fraction)
    found = last_number(text)
    assert found is None or isinstance(found, Fraction)


FOUND = [
    ("What is 17 * 23 + 4, please?", "17 * 23 + 4"),
    ("On 2026-04-05 pay 3 + 4 (see below", "3 + 4"),
    ("1+2 and 3+4+5", "3+4+5"),
    ("(2+3)*4 = ?", "(2+3)*4"),
    ("5 % of 20", None),
    ("no number", None),
    ("42", None),
]


@pytest.mark.parametrize(("text", "expression"), FOUND)
def test_expression_is_found_in_a_question(text, expression):
    """The one with the most operators; a date is none."""
    assert find_expression(text) == expression


NUMBERS = [
    ("That makes 1,250.5 litres.", Fraction(2501, 2)),
    ("x = -4", -4),
    ("5-3", 3),
    ("3 - 3 = -2.", -2),
    ("(5)-3", 3),
    ("1e3", 1000),
    ("\\boxed{42}", 42),
    ("first 1, then 2", 2),
    ("none", None),
]


@pytest.mark.parametrize(("text", "number"), NUMBERS)
def test_last_number_is_the_answer(text, number):
    """With its thousands separators and its sign, where a minus is one."""
    assert last_number(text) == number


@pytest.mark.parametrize("piece", ["(1+", "1 ", "1+", "9", "(", "-1", "1,", "1.", "(-"])
def test_no_text_takes_long(piece):
    """A hundred thousand characters of anything: a few seconds at worst on a busy machine."""
    start = time.perf_counter()
    find_expression(piece * 50_000)
    last_number(piece * 50_000)
    assert time.perf_counter() - start < 5
