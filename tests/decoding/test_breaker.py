"""The breaker by itself: which rung is taken, where the answer goes back to, what is shown, what is less likely."""

import math
import random
from collections.abc import Iterable, Sequence

import numpy as np
import pytest

from appliance.decoding.asked import Asked
from appliance.decoding.breaker import (
    EARLY,
    HELD,
    MOST_BREAKS,
    NEAR,
    PENALIZED,
    PENALTY,
    RESAMPLED,
    Break,
    Breaker,
    Markdown,
    Rung,
    Step,
    Words,
)
from appliance.decoding.list_loops import CERTAIN, WARY
from appliance.decoding.loops import ANCHOR, MIN_SPAN, WARY_COPIES, WARY_MOST

# Words, then numbers, then signs, then the tokens of a thinking block.
COUNT, NUMBER = 2000, 1900
SIGNS = [b"\n", b".", b"-", b"```"]
LINE_END, STOP, BULLET, FENCE, THINK, ANSWER = range(COUNT, COUNT + 6)
TOKEN_BYTES = [b" " + bytes(97 + (n // 26**k) % 26 for k in range(3)) for n in range(NUMBER)]
TOKEN_BYTES += [*(b" %d" % n for n in range(COUNT - NUMBER)), *SIGNS, b"", b""]
WORDS = Words.of(TOKEN_BYTES, {"<think>": THINK, "</think>": ANSWER}, [LINE_END])

PERIOD = 12
SENTENCE, OTHER, THIRD = (range(n, n + PERIOD) for n in (0, 20, 40))
LEAD = range(100, 180)
ONSET = len(LEAD) + PERIOD
LOOP = [*LEAD, *list(SENTENCE) * 100]


def watch(**settings: object) -> Breaker:
    """A breaker of an answer that nobody reads along, unless `held` says otherwise."""
    return Breaker(WORDS, **{"held": math.inf, **settings})  # type: ignore[arg-type]


def feed(breaker: Breaker, tokens: Iterable[int]) -> Step | None:
    """Push tokens until there is something to do."""
    for token in tokens:
        breaker.push(token)
        if breaker.step:
            return breaker.step
    return None


def broken(breaker: Breaker, tokens: Iterable[int]) -> Break:
    """Push a text with a loop, and do what the breaker wants."""
    assert feed(breaker, tokens)
    done = breaker.rewind()
    assert breaker.step is None
    assert breaker.length == done.length
    return done


def logits(**changes: float) -> np.ndarray:
    return np.zeros(len(TOKEN_BYTES), np.float32)


# --- which rung -------------------------------------------------------------------------------------------------------

FAR = [*range(500, 900), *list(SENTENCE) * 9]
AT = 400 + PERIOD


def done(rung: Rung, length: int) -> Break:
    return Break(rung, "exact", length, PERIOD, 8.0, 1.0, at=length + 84, length=length)


# name | what was done | settings | rung
RUNGS = [
    ("the first", [], {}, "resample"),
    ("near", [done("resample", AT - NEAR + 1)], {"held": HELD}, "penalize"),
    ("no longer near", [done("resample", AT - NEAR)], {"held": HELD}, "resample"),
    ("near once more", [done("resample", AT), done("penalize", AT)], {"held": HELD}, "penalize"),
    ("near a third time", [done("resample", AT), done("penalize", AT), done("penalize", AT)], {"held": HELD}, "stop"),
    ("nearly too many", [done("resample", 0)] * (MOST_BREAKS - 1), {}, "resample"),
    ("too many", [done("resample", 0)] * MOST_BREAKS, {}, "stop"),
    ("unseen", [done("resample", AT)], {}, "restart"),
    ("begun anew twice", [done("resample", AT), done("restart", 0), done("restart", 0)], {}, "penalize"),
    ("anew, many", [done("resample", 0)] * (MOST_BREAKS - 1) + [done("restart", 0)] * 2, {}, "penalize"),
    ("thinking", [done("resample", AT)], {"thinking": True, "held": HELD}, "end_thinking"),
    ("thinking, the first", [], {"thinking": True}, "resample"),
    ("a grammar", [done("resample", AT)], {"in_grammar": True}, "complete"),
    ("thinking in a grammar", [done("resample", AT)], {"in_grammar": True, "thinking": True}, "complete"),
    ("a grammar, too many", [done("resample", 0)] * MOST_BREAKS, {"in_grammar": True}, "complete"),
    ("only stop", [], {"mode": "stop"}, "stop"),
    ("only stop, a grammar", [], {"mode": "stop", "in_grammar": True}, "complete"),
]


@pytest.mark.parametrize(("before", "settings", "rung"), [r[1:] for r in RUNGS], ids=[r[0] for r in RUNGS])
def test_rung(before: list[Break], settings: dict[str, object], rung: Rung) -> None:
    """By what was done near there, and by what the answer is."""
    step = feed(watch(breaks=list(before), **settings), [*FAR, *list(SENTENCE) * 9])
    assert step
    assert (step.rung, step.loop.onset) == (rung, AT)
    assert step.redraws == (rung in ("resample", "penalize", "restart"))
    assert step.append == ((LINE_END, ANSWER, LINE_END) if rung == "end_thinking" else ())


def test_what_was_broken_before_the_answer_began_anew_no_longer_counts() -> None:
    """Breaks at the same place, but of a text that is gone."""
    before = [done("resample", ONSET), done("restart", 0), done("restart", 0)]
    step = feed(watch(breaks=before), LOOP)
    assert step
    assert step.rung == "penalize"


def test_in_a_grammar_it_takes_twice_as_many_copies() -> None:
    """Structure repeats: a sentence of thirty words is a loop at its fourth copy, and there at its eighth."""
    copies = []
    for in_grammar in (False, True):
        step = feed(watch(in_grammar=in_grammar), [*LEAD, *list(range(200, 230)) * 10])
        assert step
        copies.append(step.loop.copies)
    assert copies == [4, 8]


@pytest.mark.parametrize(("asked", "copies"), [(0, 8), (8, 10), (50, 62.5)])
def test_who_asks_for_copies_gets_a_quarter_more(asked: int, copies: float) -> None:
    """And not one token more than that."""
    breaker = watch(asked=Asked(asked))
    step = feed(breaker, LOOP)
    assert step
    assert step.loop.copies == pytest.approx(copies, abs=1 / PERIOD + 1e-9)
    assert step.loop.copies > copies if asked else step.loop.copies == copies


# --- where the answer goes back to ------------------------------------------------------------------------------------


def with_stop(at: int) -> list[int]:
    """The sentence with a full stop at a place in it."""
    return [*SENTENCE[:at], STOP, *SENTENCE[at + 1 :]]


@pytest.mark.parametrize(
    ("lead", "copy", "held", "length"),
    [
        (LEAD, list(SENTENCE), math.inf, ONSET),
        (LEAD, with_stop(11), math.inf, ONSET),
        (LEAD, with_stop(8), math.inf, ONSET - 3),
        (LEAD, with_stop(0), math.inf, ONSET - 11),
        ([*LEAD[:-1], STOP], list(SENTENCE), math.inf, ONSET),  # the first copy is not given up
        (LEAD, with_stop(8), HELD, ONSET),  # up to there it is shown
    ],
    ids=["no end", "at its end", "in it", "at its beginning", "before it", "shown"],
)
def test_an_answer_is_cut_at_the_end_of_a_sentence(
    lead: Sequence[int], copy: Sequence[int], held: float, length: int
) -> None:
    """In the first copy, if there is one and nobody has read on."""
    assert broken(watch(mode="stop", held=held), [*lead, *list(copy) * 20]).length == length


def test_what_is_held_too_long_is_shown_and_stays() -> None:
    """A loop of a period so long that its second copy is shown is taken back from what is not."""
    breaker = watch(held=HELD)
    step = feed(breaker, [*LEAD, *list(range(300, 400)) * 5])
    assert step
    assert step.loop.onset == len(LEAD) + 100
    assert step.length == breaker.settled == breaker.length - HELD


def test_the_record_has_three_periods_of_what_was_taken_back() -> None:
    """Where there are more copies; `at` and `length` say how much it was."""
    done = broken(watch(asked=Asked(20)), LOOP)
    assert (done.onset, done.period, done.length) == (ONSET, PERIOD, ONSET)
    assert done.rejected == (*SENTENCE,) * 3
    assert done.at == len(LEAD) + 25 * PERIOD + 1
    assert done.rewound == done.at - ONSET
    assert (done.copies, done.likeness) == (pytest.approx(25 + 1 / PERIOD), 1.0)


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_what_is_shown_only_grows() -> None:
    """Six tokens late; up to a repetition while there is one; and never more than HELD tokens late."""
    text = [*LEAD, *SENTENCE, *range(200, 220), *SENTENCE, *range(230, 260), *range(300, 450), *range(300, 450)]
    breaker = watch(held=HELD)
    before = 0
    for count, token in enumerate(text, 1):
        breaker.push(token)
        assert before <= breaker.settled <= max(0, count - ANCHOR)
        assert breaker.settled >= count - HELD
        if count <= len(LEAD):
            assert breaker.settled == max(0, count - ANCHOR)
        before = breaker.settled


def test_of_an_answer_that_is_not_streamed_nothing_is_settled() -> None:
    """All of it can be taken back."""
    breaker = watch()
    feed(breaker, range(100, 1500))
    assert breaker.settled == 0


@pytest.mark.parametrize("mode", ["warn", "off"])
def test_where_nothing_is_taken_back_all_is_shown_at_once(mode: str) -> None:
    """A warning changes nothing about an answer, so nothing has to wait."""
    breaker = watch(mode=mode, held=HELD)
    for count, token in enumerate(LOOP[:300], 1):
        breaker.push(token)
        assert breaker.settled == count


def test_each_kind_of_loop_is_warned_of_once() -> None:
    """Two sentences in circles are one kind; a list in circles is another."""
    breaker = watch(mode="warn")
    assert feed(breaker, [*LOOP[:300], LINE_END, *cities(20), LINE_END, *range(200, 230), *list(OTHER) * 12]) is None
    assert [done.rung for done in breaker.breaks] == ["warn", "warn"]
    assert [done.kind for done in breaker.breaks] == ["exact", "list"]
    assert all(done.rewound == 0 for done in breaker.breaks)


# --- lists ------------------------------------------------------------------------------------------------------------

ROW = (0, 1, 2, 0, 1, 0, 2, 1, 1, 0, 2, 0, 2, 2, 1, 0, 1, 2, 0, 0)
ITEM = 6
"""Tokens: the bullet, four words, the line's end."""
PREFACE = [*range(100, 100 + EARLY), LINE_END]


def long(number: int, size: int) -> list[int]:
    """An item of so many tokens."""
    return [BULLET, *range(800 + 50 * number, 798 + 50 * number + size), LINE_END]


def city(number: int) -> list[int]:
    return [BULLET, *(word + number for word in (700, 710, 720, 730)), LINE_END]


def cities(count: int) -> list[int]:
    """A list that goes through three cities in no order."""
    return [token for number in ROW[:count] for token in city(number)]


def test_a_list_in_circles_goes_back_to_its_first_item_that_says_nothing_new() -> None:
    """The bullet stays, and what was said after it is banned."""
    breaker = watch()
    step = feed(breaker, [*PREFACE, *cities(20)])
    assert step
    assert breaker.length == len(PREFACE) + (3 + CERTAIN) * ITEM
    loop = step.loop
    assert (loop.kind, loop.onset, loop.copies) == ("list", len(PREFACE) + 3 * ITEM + 1, CERTAIN)
    assert loop.period in (ITEM - 1, ITEM)
    assert step.length == loop.onset
    breaker.rewind()
    assert np.flatnonzero(np.isneginf(breaker.process([], logits()))).tolist() == [700]


def test_a_list_that_was_mended_may_say_something_again() -> None:
    """What was taken back is no longer counted: it takes as many more as are enough for one who is wary."""
    breaker = watch()
    broken(breaker, [*PREFACE, *cities(20)])
    assert feed(breaker, [*city(1)[1:], *cities(WARY - 2)]) is None
    assert feed(breaker, city(0))


def test_labels_are_no_list_in_circles() -> None:
    """A few short items in any order are what somebody wanted to know of each of many things."""
    labels = [token for number in ROW * 3 for token in (BULLET, 700 + number, LINE_END)]
    breaker = watch()
    assert feed(breaker, labels) is None
    breaker = watch()
    broken(breaker, LOOP)
    step = feed(breaker, [LINE_END, *labels])
    assert step
    assert (step.loop.kind, step.loop.copies) == ("list", WARY)


def test_repeated_items_are_held_back() -> None:
    """From the first of them on; a new item shows them."""
    breaker = watch(held=HELD)
    for number in (0, 1, 2, 0, 2, 1):
        feed(breaker, long(number, 14))
    assert breaker.settled <= 3 * 14 + 1
    feed(breaker, long(3, 14))
    assert breaker.settled == breaker.length - ANCHOR


def test_a_list_is_never_taken_back_behind_what_was_shown() -> None:
    """Of the repeated items, the first that begins where nobody has read is gone back to."""
    breaker = watch(held=HELD)
    step = feed(breaker, [token for number in ROW for token in long(number, 40)])
    assert step
    assert (step.loop.kind, breaker.length) == ("list", (3 + CERTAIN) * 40)
    assert breaker.settled == breaker.length - HELD
    assert step.length == step.loop.onset == 5 * 40 + 1
    assert step.loop.period in (39, 40)


def test_a_list_of_which_nearly_all_was_shown_has_a_period() -> None:
    """Of what can be taken back, and not of nothing; a record of it holds some of it."""
    breaker = watch(held=HELD, asked=Asked(500))
    rng = random.Random(1)  # noqa: S311
    done = broken(breaker, [token for _ in range(900) for token in long(rng.randrange(12), 6)])
    assert done.kind == "list"
    assert done.period in (5, 6)
    assert len(done.rejected) == 3 * done.period


def test_a_warning_of_a_list_says_where_it_began() -> None:
    """Although all of it was shown by then."""
    breaker = watch(mode="warn", held=HELD)
    feed(breaker, cities(20))
    (done,) = breaker.breaks
    assert (done.kind, done.onset) == ("list", 3 * ITEM + 1)
    assert done.period in (ITEM - 1, ITEM)


def test_a_list_that_goes_round_in_the_end_goes_back_to_where_it_had_nothing_new() -> None:
    """The loop of tokens is found first; what the list repeated before that is no loss either."""
    order = [0, 1, 2, 0, 2, 1, *[1] * 20]
    breaker = watch()
    step = feed(breaker, [*PREFACE, *(token for number in order for token in long(number, 24))])
    assert step
    assert (step.loop.kind, step.loop.onset) == ("exact", len(PREFACE) + 3 * 24 + 1)


def test_labels_that_go_round_in_the_end_stay() -> None:
    """A few short items are right to repeat: only the loop of tokens goes."""
    order = [0, 1, 2, 0, 2, 1, 0, 0, *[1] * 200]
    breaker = watch()
    step = feed(breaker, [*PREFACE, *(token for number in order for token in (BULLET, 700 + number, LINE_END))])
    assert step
    assert step.loop.onset > len(PREFACE) + 8 * 3


# name | what is between the numbers | the request's largest number | copies, 0 for no loop
COUNTED = [
    ("nothing asked", [STOP], 0, 64),
    ("a few asked", [STOP], 12, 64),
    ("that many asked", [STOP], 100, 125),
    ("more asked", [STOP], 200, 0),
    ("a line each", [LINE_END], 100, 0),
    ("words", list(range(500, 512)), 100, 8),
]


@pytest.mark.parametrize(("between", "number", "copies"), [r[1:] for r in COUNTED], ids=[r[0] for r in COUNTED])
def test_numbers_in_a_row_may_go_as_far_as_the_request(between: list[int], number: int, copies: int) -> None:
    """A quarter more than the number it has; sentences with a number are no such row."""
    text = [token for n in range(150) for token in (*(NUMBER + 10 + int(d) for d in str(100 + n)), *between)]
    breaker = watch(asked=Asked(number=number))
    step = feed(breaker, text)
    assert (step.loop.copies if step else 0) == pytest.approx(copies, abs=2)


def test_items_in_the_same_order_are_a_loop_of_tokens() -> None:
    """Which says more of it, and comes first where both are found."""
    breaker = watch(mode="warn")
    feed(breaker, [BULLET, *range(200, 212), LINE_END, BULLET, *range(220, 232), LINE_END] * 20)
    assert [(done.kind, done.period) for done in breaker.breaks] == [("exact", 28)]


# --- after a rewind ---------------------------------------------------------------------------------------------------


def test_what_began_the_loop_is_banned_there_and_nowhere_else() -> None:
    """In the place of the first token that was taken back, and in no later one; the row itself is left alone."""
    breaker, row = watch(), logits()
    assert breaker.process([], row) is row
    broken(breaker, LOOP)
    found = breaker.process([], row)
    assert np.flatnonzero(found != row).tolist() == [SENTENCE[0]]
    assert np.isneginf(found[SENTENCE[0]])
    assert not row.any()
    breaker.push(150)
    assert breaker.process([], row) is row


def test_bans_of_one_place_add_up() -> None:
    """Two loops that begin at the same token: neither of them may."""
    breaker = watch(breaks=[done("restart", 0)] * 2)
    for loop in (LOOP, [*LEAD, *SENTENCE] * 8):
        assert broken(breaker, loop).length == ONSET
    banned = np.isneginf(breaker.process([], logits()))
    assert np.flatnonzero(banned).tolist() == [SENTENCE[0], LEAD[0]]


def test_bans_of_a_text_that_is_gone_are_gone() -> None:
    """When an answer began anew, a place in it is another place."""
    breaker = watch()
    rungs = [broken(breaker, LOOP).rung, broken(breaker, [150, *list(OTHER) * 20]).rung]
    rungs += [broken(breaker, [*LEAD, *list(THIRD) * 20]).rung for _ in range(2)]
    assert rungs == ["resample", "restart", "restart", "penalize"]
    assert np.flatnonzero(np.isneginf(breaker.process([], logits()))).tolist() == [THIRD[0]]


def test_an_answer_that_begins_anew_may_begin_as_it_did() -> None:
    """With chance from its first token on; no token is banned."""
    breaker = watch(breaks=[done("resample", ONSET)])
    assert broken(breaker, LOOP).rung == "restart"
    assert breaker.process([], logits()).tolist() == logits().tolist()
    assert breaker.recovering


def test_a_ban_leaves_what_a_grammar_needs() -> None:
    """Where nothing else may come, it comes."""
    breaker = watch()
    broken(breaker, LOOP)
    only = np.full(len(TOKEN_BYTES), -np.inf, np.float32)
    only[SENTENCE[0]] = 1
    assert breaker.process([], only).tolist() == only.tolist()
    only[150] = 0
    assert breaker.process([], only).argmax() == 150


@pytest.mark.parametrize(
    "before",
    [[], [done("resample", ONSET)], [done("resample", ONSET)] * 2],
    ids=["resample", "restart", "penalize"],
)
def test_how_long_there_is_chance(before: list[Break]) -> None:
    """For some tokens after each rewind."""
    breaker = watch(breaks=before, held=math.inf if len(before) == 1 else HELD)
    assert not breaker.recovering
    broken(breaker, LOOP)
    chances = []
    for token in range(200, 600):
        chances.append(breaker.recovering)
        breaker.push(token)
    assert chances == [True] * RESAMPLED + [False] * (400 - RESAMPLED)


def penalized(before: int) -> Breaker:
    """After a `penalize`, with so many before."""
    breaker = watch(breaks=[done("resample", ONSET), *[done("penalize", ONSET)] * before], held=HELD)
    assert broken(breaker, LOOP).rung == "penalize"
    return breaker


def test_the_loops_words_are_less_likely_for_a_while() -> None:
    """Where they would go on with it, its end and its next beginning too; by half after 64 tokens, and then no more."""
    breaker = penalized(0)
    feed(breaker, [150, SENTENCE[-1]])
    row = logits()
    lowered = breaker.process([], row)
    assert np.flatnonzero(lowered != row).tolist() == [SENTENCE[0]]
    assert lowered[SENTENCE[0]] == pytest.approx(-PENALTY * 0.5 ** (2 / 64))
    feed(breaker, [*range(200, 261), SENTENCE[4]])
    assert breaker.process([], row)[SENTENCE[5]] == pytest.approx(-PENALTY / 2)
    feed(breaker, [*range(300, 300 + PENALIZED - 66), SENTENCE[4]])
    assert breaker.length - ONSET == PENALIZED - 1
    assert breaker.process([], row)[SENTENCE[5]] < 0
    feed(breaker, [SENTENCE[7]])
    assert breaker.process([], row) is row


def test_a_second_penalty_is_stronger() -> None:
    """What was not enough is doubled."""
    rows = []
    for before in (0, 1):
        breaker = penalized(before)
        feed(breaker, [150, SENTENCE[4]])
        rows.append(breaker.process([], logits())[SENTENCE[5]])
    assert rows[1] == pytest.approx(2 * rows[0])


def test_what_was_drawn_completes_the_last_break_alone() -> None:
    """In its place and once; a break after which nothing is drawn has no replacement."""
    breaker = watch(thinking=True)
    row = logits()
    row[[5, 6]] = 3, 2
    assert breaker.drawn(row, 5) is None
    broken(breaker, LOOP)
    done = breaker.drawn(row, 150)
    assert done
    assert done.replacement == 150
    assert [token for token, _ in done.alternatives[:2]] == [5, 6]
    assert breaker.breaks == [done]
    assert broken(breaker, [150, *list(OTHER) * 20]).rung == "end_thinking"
    feed(breaker, WORDS.end_thinking)
    assert breaker.drawn(row, 7) is None
    assert [one.replacement for one in breaker.breaks] == [150, None]


def test_after_a_rewind_the_text_is_where_it_was() -> None:
    """A block of code that was open before the loop is open after it: numbers that count there are a loop later."""
    copies = []
    for fence in ([FENCE], []):
        breaker = watch()
        assert feed(breaker, [*fence, LINE_END, *LEAD, STOP]) is None
        broken(breaker, [*SENTENCE[:-1], LINE_END] * 12)
        step = feed(breaker, [token for n in range(40) for token in (*OTHER, NUMBER + n, *THIRD, STOP)])
        assert step
        copies.append(round(step.loop.copies))
    assert copies == [WARY_MOST, WARY_COPIES]


def test_where_a_loop_came_with_the_first_words_the_answer_begins_anew() -> None:
    """If nobody has seen it, and it has no form or thought that would be lost."""
    early = [*range(100, 100 + EARLY - PERIOD - 1), *list(SENTENCE) * 100]
    for settings, rung in (({}, "restart"), ({"held": HELD}, "resample"), ({"in_grammar": True}, "resample")):
        step = feed(watch(**settings), early)
        assert step
        assert (step.rung, step.loop.onset) == (rung, EARLY - 1)
    step = feed(watch(), [150, *early])
    assert step
    assert step.rung == "resample"


def test_after_a_break_words_that_would_repeat_the_answer_are_less_likely() -> None:
    """To its end, whatever number they are counted with; what follows a number, and signs, are not."""
    breaker = watch()
    feed(breaker, [*LEAD, BULLET, SENTENCE[0], SENTENCE[1], SENTENCE[2], LINE_END])
    row = logits()
    feed(breaker, [BULLET, SENTENCE[0], SENTENCE[1]])
    assert breaker.process([], row) is row
    broken(breaker, list(OTHER) * 100)
    feed(breaker, [*range(200, 300), NUMBER, SENTENCE[3], SENTENCE[4], LINE_END, NUMBER + 1, SENTENCE[3]])
    assert breaker.process([], row)[SENTENCE[4]] == pytest.approx(-0.8)
    feed(breaker, [SENTENCE[4]])
    assert breaker.process([], row)[LINE_END] == 0
    feed(breaker, [LINE_END, NUMBER + 2])
    assert breaker.process([], row) is row


def test_an_answer_that_has_looped_is_watched_with_less_patience() -> None:
    """Half of the copies are enough."""
    breaker = watch(held=HELD)
    first = feed(breaker, LOOP)
    assert first
    assert first.loop.copies == 8
    breaker.rewind()
    second = feed(breaker, [*range(300, 500), *list(OTHER) * 100])
    assert second
    assert second.loop.copies == 4


def test_after_a_rewind_thinking_is_as_it_was() -> None:
    """An answer that begins anew thinks again, though the one that was given up had come to an end of it."""
    breaker = watch(thinking=True)
    broken(breaker, [*LEAD, ANSWER, *list(SENTENCE) * 20])
    assert broken(breaker, [150, *list(OTHER) * 20]).rung == "restart"
    assert breaker.thinking
    assert broken(breaker, [*LEAD, *list(THIRD) * 20]).rung == "end_thinking"


def test_there_is_nothing_to_do_without_a_loop() -> None:
    """To rewind then is a caller's mistake."""
    with pytest.raises(ValueError, match="no step"):
        watch().rewind()


# --- what is known of a text ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", "prose"),
        ("Some text.\nMore", "prose"),
        ("```python\nx = 1\n", "code"),
        ("~~~\nx = 1", "code"),
        ("  ```\nx = 1\n", "code"),
        ("```\nx = 1\n```\n", "prose"),
        ("```\nx\n```\nSo:\n```\ny\n", "code"),
        ("See `x` and ``` in a line\nSo.", "prose"),
        ("| a | b |\n", "table"),
        ("| a", "table"),
        ("  | a", "table"),
        ("| a | b |\n\n", "prose"),
        ("| a | b |\nThat is all.\nYes.", "prose"),
        ("```\n| a | b |\n", "code"),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_place(text: str, place: str, size: int) -> None:
    """Prose, a block of code or a table, however the text is cut into tokens."""
    markdown = Markdown()
    for i in range(0, len(text), size):
        markdown.push(text[i : i + size].encode())
    assert markdown.place == place


@pytest.mark.parametrize(
    ("prompt", "thinks"),
    [([1, 2], False), ([1, THINK], True), ([THINK, 1, ANSWER, 2], False), ([THINK, ANSWER, 3, THINK, 4], True)],
)
def test_whether_a_prompt_ends_inside_a_thinking_block(prompt: list[int], thinks: bool) -> None:
    """The last mark counts."""
    assert WORDS.thinks_at_end_of(prompt) is thinks
    assert not Words.of(TOKEN_BYTES).thinks_at_end_of(prompt)


@pytest.mark.parametrize(("begin", "end"), [("<think>", "</think>"), ("<|think_start|>", "<|think_end|>")])
def test_marks_of_thinking(begin: str, end: str) -> None:
    """Both families' are known; a block is ended on a line of its own."""
    words = Words.of(TOKEN_BYTES, {begin: THINK, end: ANSWER}, [LINE_END])
    assert (words.think, words.end_thinking) == ((THINK, ANSWER), (LINE_END, ANSWER, LINE_END))
    alone = Words.of(TOKEN_BYTES, {begin: THINK}, [LINE_END])
    assert (alone.think, alone.end_thinking) == (None, ())


def test_text_that_a_loop_covers_at_least() -> None:
    """Four short copies are none yet."""
    breaker = watch()
    assert feed(breaker, LOOP[: len(LEAD) + MIN_SPAN - 1]) is None
    assert feed(breaker, [LOOP[len(LEAD) + MIN_SPAN - 1]])
