"""How many copies make a loop certain: a table of what copies may look like."""

import math
import re

import pytest

from appliance.decoding.loop_shapes import NEVER, Copies, Kind, Place, copies_needed


def look(kind: Kind, place: Place, before: str, text: str, modal_share: float, run: str = "") -> tuple[Copies, int]:
    """Two copies as the finder describes them, and the period; a token is a word, a number, a sign or a line's end."""
    tokens = re.findall(r"\d+|[^\W\d_]+|[^\w ]|_", text)
    words = [token for token in tokens if re.fullmatch(r"[^\W\d_]{2,}|[aI]", token)]
    visible = [token for token in tokens if token.strip()]
    counts = (len(visible), len(words), len(set(words)), len(set(tokens)))
    return Copies(kind, text, before, *counts, modal_share, place, run), len(tokens)


# name | place | text of each copy | copies, or tokens that all of them must cover
EXACT = [
    ("a sentence", "prose", "The pump is hot. ", 4, None),
    ("a sentence in code", "code", "The pump is hot. ", 4, None),
    ("a sentence in a grammar", "grammar", "The pump is hot. ", 8, None),
    ("a refrain of two words", "prose", "la la la la di, la la la la di, ", 4, None),
    ("one word", "prose", "very ", None, 192),
    ("one word, with signs", "prose", "pump , , , , , , , , , , , , , , , , , , , , , , , ", 8, None),
    ("words among many more signs", "prose", "pump , , , , valve , , , , ", None, 192),
    ("a word that fills files", "prose", "null, ", None, 2400),
    ("two of them", "prose", "true, false, ", None, 2400),
    ("one of them in a sentence", "prose", "The pump is ok. ", 4, None),
    ("zeros", "prose", "0, ", None, 2400),
    ("digits in one line", "prose", "12:00 ", None, 192),
    ("a sum in one line", "prose", "= 120 + 100 ", None, 192),
    ("a sum a line", "prose", "= 120 + 100\n", None, 2400),
    ("a row of numbers", "prose", "1, 2, 3, 4, 5, 6, 7; ", None, 256),
    ("a short row of numbers", "prose", "1, 2, 3, ", None, 2400),
    ("a line of numbers", "prose", "1, 2, 3, 4, 5, 6, 7\n", None, 2400),
    ("a long line of numbers", "prose", "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12\n", None, 256),
    ("a row of numbers in code", "code", "1, 2, 3, 4, 5, 6, 7; ", None, 256),
    ("a line of numbers in code", "code", "1, 2, 3, 4, 5, 6, 7;\n", None, 2400),
    ("a row of signs in code", "code", "*, ", None, 2400),
    ("lines of markup", "prose", "<br/>\n", None, 2400),
    ("lines of markup, long ones", "prose", "<a b='{c}'/> " * 30 + "\n", 12, None),
    ("one line of markup", "prose", "<br/> ", None, 400),
    ("one line of data", "prose", '{"a": null}, ', None, 2400),
    ("columns", "prose", "the pump\tis hot\n", None, 2400),
    ("columns apart", "prose", "the pump     is hot\n", None, 2400),
    ("columns cut in the gap", "prose", "   is hot\nthe pump  ", None, 2400),
    ("a gap that is none", "prose", "the pump   is hot\n", 4, None),
    ("a row of data", "prose", "0,1.0,alluvial_fan_soil\n", None, 2400),
    ("a row with spaces", "prose", "pump, valve, lamp\n", 4, None),
    ("a record", "prose", '{"act": "out", "test": "pump is hot"}\n', None, 2400),
    ("settings", "prose", "Reply from pump: bytes=32 time=1 is so\n", None, 2400),
    ("one setting", "prose", "Reply from pump: bytes=32 is so\n", 4, None),
    ("code that says something", "code", "open(valve); ", 4, None),
    ("empty rows", "table", "| | |\n", None, 256),
    ("empty rows elsewhere", "code", "| | |\n", None, 256),
    ("rows of zeros", "table", "| 0 | 0 |\n", None, 256),
    ("a frame", "table", "+---+---+\n", None, 2400),
]


@pytest.mark.parametrize(("place", "text", "copies", "tokens"), [r[1:] for r in EXACT], ids=[r[0] for r in EXACT])
def test_copies_that_are_the_same(place: Place, text: str, copies: float | None, tokens: int | None) -> None:
    """Few where sentences come again, many where a file may well be full of it."""
    found, period = look("exact", place, text, text, 1.0)
    assert copies_needed(found, period) == pytest.approx(copies if tokens is None else tokens / period)


# name | place | copy before | last copy | copies
COUNTER = [
    ("a numbered step", "prose", "Step 8: stir the pot.\n", "Step 9: stir the pot.\n", 6),
    ("a numbered step in a grammar", "grammar", "Step 8: stir the pot.\n", "Step 9: stir the pot.\n", 12),
    ("a step from its middle", "prose", " the pot\nStep 8: stir", " the pot\nStep 9: stir", 6),
    ("a step that says another number", "prose", "Step 8: heat to 40.\n", "Step 9: heat to 95.\n", 24),
    ("a number and nothing else", "prose", "8. \n", "9. \n", 12),
    ("a number and its dot", "prose", "8.\n", "9.\n", 12),
    ("a number and no dot", "prose", "8\n", "9\n", NEVER),
    ("a number cut at its point", "prose", "25\n8.", "37\n9.", NEVER),
    ("bullets", "prose", "- the pump 4 runs\n", "- the pump 5 runs\n", 6),
    ("bullets from their middle", "prose", " pump 4\n- the red", " pump 5\n- the red", 6),
    ("bullets among lines", "prose", "As 4:\n- one pump\nis on\n", "As 5:\n- one pump\nis on\n", NEVER),
    ("bullets of signs", "prose", "- 4 , , , ,\n", "- 5 , , , ,\n", NEVER),
    ("keys of a file", "prose", "- port: 22 for the pump\n", "- port: 23 for the pump\n", NEVER),
    ("a sentence", "prose", "In room 4 the lamp is red. ", "In room 5 the lamp is red. ", 6),
    ("a sentence in code", "code", "In room 4 the lamp is red. ", "In room 5 the lamp is red. ", NEVER),
    ("a sentence that counts down", "prose", "In room 5 the lamp is red. ", "In room 4 the lamp is red. ", 24),
    ("a sentence that leaps", "prose", "In room 5 the lamp is red. ", "In room 70 the lamp is red. ", 24),
    ("two counters", "prose", "Of 7 rooms 3 are red now. ", "Of 9 rooms 4 are red now. ", 24),
    ("one counter, twice", "prose", "Room 7 has the lamp 7 now. ", "Room 8 has the lamp 8 now. ", 6),
    ("cut at different places", "prose", "In room 5 of 9 the lamp is ", "In room 6 the lamp is red. ", 6),
    ("a clock", "prose", "At 12:05 the pump was seen. ", "At 12:06 the pump was seen. ", NEVER),
    ("an hour of the afternoon", "prose", "At 2:05 pm the pump was seen. ", "At 2:06 pm the pump was seen. ", 6),
    ("lines without sentences", "prose", "pump 4 is on\n", "pump 5 is on\n", NEVER),
    ("lines of sentences", "prose", "The pump 4 is on.\n", "The pump 5 is on.\n", 6),
    ("much punctuation", "prose", "set pump = 4; set valve = 4; ", "set pump = 5; set valve = 5; ", NEVER),
    ("too few words", "prose", "4, 4, 4, 4 red, old, big ", "5, 5, 5, 5 red, old, big ", NEVER),
    ("a row that says something", "table", "| pump four | 4 |\n", "| pump four | 5 |\n", 24),
    ("a row with a word", "table", "| 4. Earth |\n", "| 5. Earth |\n", NEVER),
    ("a plan cut in its time", "prose", ":00: take the pill\nDay 3, 20", ":00: take the pill\nDay 4, 20", NEVER),
    ("a plan", "prose", "Day 3, 20:00: take vitamin D.\n", "Day 4, 20:00: take vitamin D.\n", NEVER),
    ("a row of numbers", "table", "| 7 | 4 |\n", "| 7 | 5 |\n", NEVER),
]


@pytest.mark.parametrize(("place", "before", "text", "copies"), [r[1:] for r in COUNTER], ids=[r[0] for r in COUNTER])
def test_copies_whose_numbers_differ(place: Place, before: str, text: str, copies: float) -> None:
    """Few where nothing but a counter changes in a list or a sentence; never in a log, data or code."""
    assert copies_needed(*look("counter", place, before, text, 1.0)) == copies


# name | place | last copy | share of the commonest copy | copies
DRIFT = [
    ("a sentence", "prose", "The pump is hot. ", 0.5, 8),
    ("a sentence in a grammar", "grammar", "The pump is hot. ", 0.5, 16),
    ("a template", "prose", "The pump is hot. ", 0.25, NEVER),
    ("too little to tell", "prose", "The pump. ", 0.5, NEVER),
    ("code", "code", "The pump is hot. ", 0.5, NEVER),
    ("a table", "table", "| The pump is hot. |\n", 0.5, NEVER),
    ("items", "prose", "3. the pump is hot\n", 0.5, 8),
    ("items in code", "code", "3. the pump is hot\n", 0.5, NEVER),
    ("lines", "prose", "the pump is hot\n", 0.5, NEVER),
    ("columns that end as sentences do", "prose", "the pump\tis hot now.\n", 0.5, NEVER),
    ("the same without columns", "prose", "the pump is hot now.\n", 0.5, 8),
    ("records in a list", "prose", "- {pump: hot, valve: open, lamp: red}\n", 0.5, NEVER),
]


@pytest.mark.parametrize(("place", "text", "share", "copies"), [r[1:] for r in DRIFT], ids=[r[0] for r in DRIFT])
def test_copies_that_are_nearly_the_same(place: Place, text: str, share: float, copies: float) -> None:
    """Only text, and only where one version comes back."""
    assert copies_needed(*look("drift", place, text, text, share)) == copies
    assert math.isinf(copies_needed(*look("drift", place, text, text, 0.33)))


# name | place | the last copies | last copy | copies, or tokens that all of them must cover
IN_A_ROW = [
    ("numbers", "prose", ", ".join(map(str, range(20, 32))), ", 31", 32, 256),
    ("even ones", "prose", ", ".join(map(str, range(20, 44, 2))), ", 42", 32, 256),
    ("one is left out", "prose", ", ".join(map(str, [*range(20, 28), *range(29, 33)])), ", 32", 32, 256),
    ("days", "prose", " ".join(f"2018-02-{n}" for n in range(10, 22)), " 2018-02-21", 32, 256),
    ("cells with a word", "table", "".join(f" {n}. Earth |" for n in range(10, 22)), " 21. Earth |", 32, 256),
    ("cells with two", "table", "".join(f" {n}. Old Earth |" for n in range(10, 22)), " 21. Old Earth |", 24, None),
    ("code", "code", ", ".join(map(str, range(20, 32))), ", 31", NEVER, None),
    ("all the same", "prose", ", ".join(["255"] * 12), ", 255", NEVER, None),
    ("the same, cut", "prose", "5, " + ", ".join(["255"] * 11) + ", 25", ", 25", NEVER, None),
    ("squares", "prose", ", ".join(str(n * n) for n in range(20, 32)), ", 961", NEVER, None),
    ("lines", "prose", "\n".join(map(str, range(20, 32))), "\n31", NEVER, None),
    ("now and then a line", "prose", ", ".join(map(str, range(20, 26))) + "\n26, 27, 28", ", 28", NEVER, None),
    ("in quotes", "prose", ", ".join(f'"3.{n}"' for n in range(20, 32)), ', "3.31"', NEVER, None),
    ("too long to look at", "prose", "", ", 31", NEVER, None),
]


@pytest.mark.parametrize(
    ("place", "run", "text", "copies", "tokens"), [r[1:] for r in IN_A_ROW], ids=[r[0] for r in IN_A_ROW]
)
def test_numbers_that_only_count_on(place: Place, run: str, text: str, copies: float, tokens: int | None) -> None:
    """In one line and by the same step a long row is a loop; what has other steps, or is quoted, is data."""
    found, period = look("counter", place, text, text, 1.0, run)
    assert copies_needed(found, period) == (max(copies, tokens / period) if tokens else copies)
