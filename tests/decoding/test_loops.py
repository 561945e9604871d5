"""Loops are found whatever their form, early, and text that only resembles itself is left alone."""

import random
from collections.abc import Callable, Iterator

import pytest

from appliance.decoding.loops import LONGEST_PERIOD, MIN_SPAN, Loop, LoopFinder, TokenKinds

# Ten digits, a hundred signs, then words.
SIGNS, COMMA, WORDS = 10, 109, 110
VOCABULARY = (
    [b"%d" % d for d in range(10)]
    + [b"<%d>" % n for n in range(99)]
    + [b","]
    + [b" " + bytes(97 + (n // 26**k) % 26 for k in range(3)) for n in range(4000)]
)
KINDS = TokenKinds.of(VOCABULARY)
LEAD = 200


def chance(seed: int) -> random.Random:
    """Chance that is the same in every run."""
    return random.Random(seed)  # noqa: S311 (a test's texts, no secrets)


def words(rng: random.Random, count: int) -> list[int]:
    """So many words, seldom the same."""
    return [rng.randrange(WORDS, len(VOCABULARY)) for _ in range(count)]


def digits(number: int) -> list[int]:
    """A number's tokens: one a digit."""
    return [int(digit) for digit in str(number)]


def exact(rng: random.Random, period: int) -> Iterator[int]:
    """The same words for ever."""
    copy = words(rng, period)
    while True:
        yield from copy


def counter(rng: random.Random, period: int) -> Iterator[int]:
    """The same words for ever, and a number that grows and gains digits."""
    copy, number = words(rng, period - 1), 7
    while True:
        yield from digits(number)
        yield from copy
        number += 1


def drift(rng: random.Random, period: int) -> Iterator[int]:
    """The same words for ever, but that one of them is another in half of the copies."""
    copy = words(rng, period)
    while True:
        changed = list(copy)
        if rng.random() < 0.5:
            changed[rng.randrange(period)] = words(rng, 1)[0]
        yield from changed


def first(text: Iterator[int], limit: int, *, certain: bool = True) -> tuple[Loop, int] | None:
    """The first loop that is found, and after how many tokens."""
    finder = LoopFinder(KINDS)
    for count, token in zip(range(1, limit + 1), text, strict=False):
        loop = finder.push(token)
        if loop and (loop.certain or not certain):
            return loop, count
    return None


def after_lead(rng: random.Random, loop: Iterator[int]) -> Iterator[int]:
    """A text that was sound before."""
    yield from words(rng, LEAD)
    yield from loop


@pytest.mark.parametrize("period", [2, 3, 5, 7, 16, 40, 133, 512, LONGEST_PERIOD])
def test_an_exact_loop_is_found_in_its_fourth_copy(period: int) -> None:
    """Of any length: at its fourth copy, or when it covers enough tokens; its onset is where the second copy begins."""
    rng = chance(period)
    found = first(after_lead(rng, exact(rng, period)), LEAD + 5 * period + 200)
    assert found
    loop, count = found
    assert (loop.kind, loop.period, loop.likeness) == ("exact", period, 1.0)
    assert loop.onset == LEAD + period
    assert count == LEAD + max(4 * period, MIN_SPAN)


@pytest.mark.parametrize("period", [5, 8, 24, 80, 300])
def test_a_counter_loop_is_found(period: int) -> None:
    """Numbers may differ and gain digits: the sixth copy is certain."""
    rng = chance(period)
    found = first(after_lead(rng, counter(rng, period)), LEAD + 8 * period + 300)
    assert found
    loop, count = found
    assert loop.kind == "counter"
    assert count <= LEAD + max(7 * (period + 2), MIN_SPAN + 40)
    assert LEAD + period - 2 <= loop.onset <= LEAD + period + 2


@pytest.mark.parametrize("period", [12, 16, 24, 40, 80, 200])
def test_a_drifting_loop_is_found_nine_times_in_ten(period: int) -> None:
    """A word that is another in half of the copies hides it seldom."""
    found = [first(after_lead(rng, drift(rng, period)), LEAD + 30 * period) for rng in map(chance, range(40))]
    assert sum(loop is not None for loop in found) >= 36


def rows(rng: random.Random) -> Iterator[int]:
    """A table: the same signs in each row, other words, other numbers."""
    while True:
        for column in range(4):
            yield SIGNS + column
            yield from words(rng, 1) if column % 2 else digits(rng.randrange(1000))


def zeros(rng: random.Random) -> Iterator[int]:
    """An array of zeros."""
    while True:
        yield from (0, COMMA)


def prose(rng: random.Random) -> Iterator[int]:
    """Words of which some are far more frequent than others, as in a language."""
    common = words(rng, 60)
    while True:
        yield rng.choice(common) if rng.random() < 0.6 else words(rng, 1)[0]


@pytest.mark.parametrize(("text", "limit"), [(rows, 4000), (prose, 20_000), (zeros, 1500)])
def test_text_that_only_resembles_itself_is_left_alone(
    text: Callable[[random.Random], Iterator[int]], limit: int
) -> None:
    """Rows of a table, words of a language and a moderate array are no loop for certain."""
    assert first(text(chance(1)), limit) is None


def test_an_endless_array_is_a_loop_at_last() -> None:
    """What has no word in it is certain when it has gone on for long."""
    found = first(zeros(chance(1)), 3000)
    assert found
    assert 2400 <= found[1] < 2430


def test_a_suspicion_comes_before_certainty() -> None:
    """A growing list of code is worth a warning and no more."""

    def code(rng: random.Random) -> Iterator[int]:
        number = 1
        while True:
            yield from [SIGNS + 1, WORDS + 5, SIGNS + 2, SIGNS + 3, *digits(number), SIGNS + 4, SIGNS + 5, WORDS + 6]
            number += 1

    assert first(code(chance(1)), 2000) is None
    assert first(code(chance(1)), 2000, certain=False)


def test_after_a_rewind_it_is_as_if_the_rest_had_never_come() -> None:
    """Truncated, the finder says of what follows what a new one says."""
    rng = chance(4)
    text = [*words(rng, 50), *(words(rng, 20) * 8)]
    rewound = LoopFinder(KINDS)
    for token in text:
        rewound.push(token)
    rewound.truncate(70)
    fresh = LoopFinder(KINDS)
    for token in text[:70]:
        fresh.push(token)
    follow = [*text[50:70]] * 6
    assert [rewound.push(token) for token in follow] == [fresh.push(token) for token in follow]
    with pytest.raises(ValueError, match="cannot truncate"):
        rewound.truncate(10_000)


def test_kinds_of_tokens() -> None:
    """Digits are numbers, letters are words, spaces are nothing; half a character is none of them."""
    kinds = TokenKinds.of([b"7", b" 42", b" the", b"I", b"x", b"\n", b"--", b"\xc3", " été".encode()])
    assert list(kinds.number) == [1, 1, 0, 0, 0, 0, 0, 0, 0]
    assert list(kinds.word) == [0, 0, 1, 1, 0, 0, 0, 0, 1]
    assert list(kinds.blank) == [0, 0, 0, 0, 0, 1, 0, 0, 0]
