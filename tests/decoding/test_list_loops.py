"""A list that says nothing new is seen, whatever the order of its items; lists that have reason to repeat are not."""

import pytest

from appliance.decoding.list_loops import CERTAIN, ListItems


def feed(text: str, size: int = 3) -> tuple[ListItems, list[bytes]]:
    """Push a text in tokens of some bytes."""
    data, items = text.encode(), ListItems()
    tokens = [data[i : i + size] for i in range(0, len(data), size)]
    for index, token in enumerate(tokens):
        items.push(index, token)
    return items, tokens


CITIES = ("Rome", "Venice", "Barcelona", "Rome", "Venice", "Rome", "Barcelona", "Venice", "Venice", "Rome", "Barcelona")


@pytest.mark.parametrize("marker", ["{}. ", "{}) ", "- ", "* ", "\u2022 "])
@pytest.mark.parametrize("size", [1, 3, 50])
def test_items_that_were_said_before_are_counted(marker: str, size: int) -> None:
    """Three new ones, then eight that are not, however the text is cut into tokens."""
    text = "".join(f"{marker.format(n)}{city}\n" for n, city in enumerate(CITIES, 1))
    items, _ = feed(text, size)
    assert items.repeats == CERTAIN == len(CITIES) - 3


def test_the_onset_is_where_the_first_of_them_says_something() -> None:
    """After its number, so that the list goes on; later ones where the first can no longer be taken back."""
    text = "".join(f"{n}. {city}\n" for n, city in enumerate(CITIES, 1))
    items, tokens = feed(text, 1)
    first, period = items.loop(0, len(tokens))
    assert b"".join(tokens[:first]).endswith(b"\n4.")
    assert period == (len(tokens) - first) // CERTAIN
    assert items.held_from == first == items.loop(first, len(tokens))[0]
    later, _ = items.loop(first + 1, len(tokens))
    assert b"".join(tokens[:later]).endswith(b"\n5.")
    assert items.loop(10_000, 10_001) == (10_000, 1)


COUNTED = {
    "lines between": ("".join(f"- The old town of {city}\n\n" for city in CITIES), CERTAIN),
    "short ones": ("1. ez\n2. ez\n3. f\n4. ez\n5. f\n", 2),
    "other case, other signs": ("- Rome is old now\n- rome IS old now\n- **Rome** is old, now!\n", 2),
    "its own number": ("".join(f"{n}. Red: {n}\n" for n in range(1, 6)), 4),
    "a number behind them": ("- Rome is old now\n" * 5 + "- 12\n", 0),
    "a number among them": ("- Rome is old now\n" * 5 + "- 12\n" + "- Rome is old now\n" * 2, 2),
}


@pytest.mark.parametrize("name", COUNTED)
def test_what_counts_as_the_same_and_in_a_row(name: str) -> None:
    """Words and numbers are compared, nothing else of an item; an item without words ends the row, not the list."""
    text, repeats = COUNTED[name]
    assert feed(text)[0].repeats == repeats


def test_it_is_told_when_an_item_is_whole() -> None:
    """At the token with its line's end, whatever else that holds; other lines are none."""
    items = ListItems()
    tokens = [b"- Rome", b"\n\n", b"It is so.\n", b"- Oslo\nSo", b" it is.", b"\n"]
    assert [items.push(index, token) for index, token in enumerate(tokens)] == [False, True, False, True, False, False]


SPARED = {
    "a new item": "".join(f"{n}. {city}\n" for n, city in enumerate((*CITIES, "Oslo"), 1)),
    "numbers alone": "".join(f"{n}. {n % 3}\n" for n in range(30)),
    "yaml": "- port: 22\n" * 20,
    "yaml with a tag": "- !sum [1, 2]\n" * 20,
    "yaml in one line": "- {port: 22, pump: on}\n" * 20,
    "contents": "".join(f"{n}. Notes ........ {7 * n}\n" for n in range(1, 20)),
    "contents of one page": "".join(f"{n}. Notes ........ 7\n" for n in range(1, 20)),
    "prose": "It is so.\n" * 20,
    "a second list": "".join(f"- {c}\n" for c in CITIES[:3]) + "And again:\n" + "".join(f"- {c}\n" for c in CITIES[:3]),
    "a table": "| 1. a | b |\n" * 20,
}


@pytest.mark.parametrize("name", SPARED)
def test_what_is_no_list_or_has_something_new_is_spared(name: str) -> None:
    """Only items in a row count, and only lists of words."""
    assert feed(SPARED[name])[0].repeats == 0
