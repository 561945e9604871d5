"""Loops are found whatever their form, early, and text that only resembles itself is left alone."""

import random
from collections.abc import Callable, Iterator

import pytest

from appliance.decoding.loops import LONGEST_PERIOD, MIN_SPAN, Loop, LoopFinder, TokenKinds

# Ten digits, a hundred signs and two more, then words.
SIGNS, COMMA, DOT, LINE_END, WORDS = 10, 109, 110, 111, 112
VOCABULARY = (
    [b"%d" % d for d in range(10)]
    + [b"<%d>" % n for n in range(99)]
    + [b",", b". ", b"\n"]
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
    suspected = first(after_lead(chance(period), exact(chance(period), period)), count, certain=False)
    assert suspected
    assert suspected[1] == count


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


def test_the_onset_of_a_counter_is_a_token() -> None:
    """Where numbers have several, places and periods count each of them."""
    text = [token for number in range(10, 40) for token in (*digits(number), *range(WORDS, WORDS + 8))]
    found = first(iter([*words(chance(3), LEAD), *text]), LEAD + 400)
    assert found
    loop, count = found
    assert (loop.kind, loop.onset, loop.period) == ("counter", LEAD + 10, 10)
    assert loop.copies == pytest.approx((count - LEAD) / 10, abs=0.2)


@pytest.mark.parametrize("period", [6, 8, 12, 16, 24, 40, 80, 200])
def test_a_drifting_loop_is_found_nine_times_in_ten(period: int) -> None:
    """A word that is another in half of the copies hides it seldom."""
    found = [first(after_lead(rng, drift(rng, period)), LEAD + 30 * period) for rng in map(chance, range(40))]
    assert sum(loop is not None for loop in found) >= 36


def test_a_copy_with_a_slip_belongs_to_the_loop_that_follows() -> None:
    """The loop is certain when it was clean for as long as another; it began with the second copy all the same."""
    copy = words(chance(6), 40)
    slip = [*copy[:10], WORDS, *copy[11:]]
    found = first(iter([*words(chance(7), LEAD), *copy * 2, *slip, *copy * 6]), LEAD + 400)
    assert found
    loop, count = found
    # The copy after the slip differs from it in the same place.
    assert (loop.kind, loop.onset, count) == ("exact", LEAD + 40, LEAD + 3 * 40 + 11 + 3 * 40)


def test_a_text_that_only_resembled_itself_is_no_part_of_the_loop_that_follows() -> None:
    """Where more than a tenth differed, it begins where it became clean."""
    rng = chance(8)
    copy = words(rng, 5)
    text = [*words(rng, LEAD), *copy * 3]
    for _ in range(30):
        text += [*copy[:4], *words(rng, 1)]
    clean = len(text)
    finder = LoopFinder(KINDS)
    loops = [finder.push(token) for token in [*text, *copy * 25]]
    assert loops[-1]
    assert (loops[-1].kind, loops[-1].onset) == ("exact", clean + 5)
    assert not any(loop and loop.certain for loop in loops[:clean])


def test_a_repetition_that_was_given_up_begins_anew() -> None:
    """At a score of nothing: what came before does not count for what comes after."""
    rng = chance(9)
    copy = words(rng, 10)
    text = [*words(rng, LEAD), *copy, *copy[:6], *words(rng, 1), *copy[7:], *copy * 12]
    found = first(iter(text), len(text))
    assert found
    assert found[0].onset == LEAD + 10 + 7


def test_a_repetition_that_ends_is_forgotten_soon() -> None:
    """However long it was: four tokens that differ are enough."""
    rng = chance(10)
    finder = LoopFinder(KINDS)
    for token in words(rng, 20) * 10:
        finder.push(token)
    assert finder.held_from == 20
    for token in words(rng, 4):
        finder.push(token)
    assert finder.held_from == len(finder.tokens) == 204


HELD = {
    # text | where the repetitions begin that are under way at its end
    "nothing": (list(range(WORDS, WORDS + 40)), 40),
    "a second copy": (list(range(WORDS, WORDS + 20)) * 2, 20),
    "one inside of another": ([*range(WORDS, WORDS + 30), *range(WORDS + 20, WORDS + 30)] * 2, 40),
    "after a number": ([1, *range(WORDS, WORDS + 20), 2, *range(WORDS, WORDS + 10)], 21),
    "after a long number": ([1, 0, *range(WORDS, WORDS + 20), 1, 1, *range(WORDS, WORDS + 10)], 22),
    "digits alone": ([1, 2, 3, 4, 5, 6, 7, 8] * 2, 8),
    "digits inside of others": ([*digits(27182818284590), *digits(314159) * 2] * 2, 26),
}


@pytest.mark.parametrize("name", HELD)
def test_what_may_become_a_loop_is_known_from_its_beginning(name: str) -> None:
    """The earliest of what repeats now, in either reading."""
    text, held_from = HELD[name]
    finder = LoopFinder(KINDS)
    for token in text:
        finder.push(token)
    assert finder.held_from == held_from


def test_a_long_repetition_is_not_lost_for_short_ones() -> None:
    """Of more distances than are followed, the weakest is given up."""
    rng = chance(11)
    copy = words(rng, 20)
    for run in (20, 17, 23, 15, 26, 19, 22):
        copy += [*[SIGNS] * run, COMMA]
    finder = LoopFinder(KINDS)
    for token in [*words(rng, LEAD), *copy * 5]:
        loop = finder.push(token)
    assert loop
    assert (loop.kind, loop.period, loop.onset) == ("exact", len(copy), LEAD + len(copy))


def test_a_template_that_is_filled_in_is_no_loop() -> None:
    """Every copy has another word; where one version comes back, in five copies of twelve, it is one."""
    rng = chance(12)
    copy = words(rng, 20)

    def version(word: int) -> list[int]:
        return [*copy[:10], word, *copy[11:]]

    template = [token for word in words(rng, 60) for token in version(word)]
    assert first(iter(template), len(template)) is None
    again = [token for word in words(rng, 5) for token in (*version(WORDS), *version(word))]
    found = first(iter([*template, *again]), len(template) + len(again))
    assert found
    loop, count = found
    fifth = len(template) + 8 * 20 + 10
    assert loop.kind == "drift"
    assert fifth < count <= fifth + 20


WORD = list(range(WORDS, WORDS + 9))
JUDGED = {
    # copy | tokens until it is certain
    "words": (WORD, MIN_SPAN),
    "one word, unevenly": ([WORD[0], COMMA, WORD[0], WORD[0]], 192),
    "words and a long number": ([*WORD[:3], *[7] * 12], MIN_SPAN),
    "words and empty lines": ([*WORD[:3], *[LINE_END] * 9], MIN_SPAN),
    "a few numbers of many": ([0, COMMA, 0, COMMA, 0, COMMA, 0, COMMA, SIGNS], None),
    "items of signs": ([1, DOT, SIGNS, SIGNS + 1, SIGNS + 2, LINE_END], 12 * 6),
}


@pytest.mark.parametrize("name", JUDGED)
def test_a_copy_is_seen_as_it_is(name: str) -> None:
    """A number of many digits and space are no words and hide none; a word that is said again is no other."""
    copy, tokens = JUDGED[name]
    found = first(iter([*words(chance(13), LEAD), *copy * 500]), LEAD + 2000)
    assert (found and found[1]) == (tokens and LEAD + max(tokens, MIN_SPAN))


def test_numbers_that_say_something_take_longer() -> None:
    """A sentence in which one number counts is a loop at its sixth copy; with other numbers at its twenty-fourth."""

    def sentences(*, counting: bool) -> Iterator[int]:
        for number in range(1, 60):
            yield from [*digits(number if counting else 70 * number), *range(WORDS, WORDS + 24)]

    counts = []
    for counting in (True, False):
        found = first(sentences(counting=counting), 3000)
        assert found
        counts.append(found[0].copies)
    assert counts == pytest.approx([6, 24], abs=1)


def test_where_the_text_is_matters() -> None:
    """In a block of code numbers may count for ever."""
    finder = LoopFinder(KINDS)
    text = counter(chance(15), 24)
    found = [finder.push(next(text), "code") for _ in range(2000)]
    assert found[-1]
    assert not any(loop and loop.certain for loop in found)


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


STALE_TEXT = {
    # numbers of the rows | certain
    "the same codes again": ([*range(100, 110), *range(100, 110)], True),
    "a new code in each": (list(range(100, 120)), False),
    "numbers that count": (list(range(20, 40)), True),
}


@pytest.mark.parametrize("name", STALE_TEXT)
def test_who_is_wary_sees_what_brings_nothing_new(name: str) -> None:
    """Forms that are filled in with what was said already; whoever is not wary lets them pass."""
    numbers, certain = STALE_TEXT[name]
    rng = chance(21)
    heads = [words(rng, 2) for _ in range(5)]
    lines = [[*heads[n * n % 5], *digits(number), *range(WORDS + 50, WORDS + 60), LINE_END]
             for n, number in enumerate(numbers)]  # fmt: skip
    for wary in (False, True):
        finder = LoopFinder(KINDS)
        finder.wary = wary
        found = [finder.push(token) for line in lines for token in line]
        assert any(loop and loop.certain for loop in found) == (wary and certain)


def test_a_symbol_that_differs_may_be_the_end_of_it() -> None:
    """What was enough before is not certain at a token that has no part in it; nor is what follows judged by it."""
    finder, rng = LoopFinder(KINDS), chance(22)
    rows = [token for _ in range(400) for token in (*digits(rng.randrange(10, 100)), SIGNS + 1, SIGNS + 2)]
    found = [finder.push(token) for token in (*rows, *words(rng, 3), DOT, LINE_END, *words(rng, 3), DOT, LINE_END)]
    assert any(found)
    assert not any(loop and loop.certain for loop in found)


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
    text = [*words(rng, 50), *([*words(rng, 17), 1, 2, 3] * 8)]
    rewound = LoopFinder(KINDS)
    for token in text:
        rewound.push(token)
    rewound.truncate(70)
    fresh = LoopFinder(KINDS)
    for token in text[:70]:
        fresh.push(token)
    follow = [token for number in range(400, 420) for token in (*text[50:67], *digits(number))]
    assert [rewound.push(token) for token in follow] == [fresh.push(token) for token in follow]
    assert rewound.held_from == fresh.held_from == 70
    with pytest.raises(ValueError, match="cannot truncate"):
        rewound.truncate(10_000)


def test_kinds_of_tokens() -> None:
    """Digits are numbers, letters are words, spaces are nothing; half a character is none of them."""
    kinds = TokenKinds.of([b"7", b" 42", b" the", b"I", b"x", b"\n", b"--", b"\xc3", " été".encode()])
    assert list(kinds.number) == [1, 1, 0, 0, 0, 0, 0, 0, 0]
    assert list(kinds.word) == [0, 0, 1, 1, 0, 0, 0, 0, 1]
    assert list(kinds.blank) == [0, 0, 0, 0, 0, 1, 0, 0, 0]
