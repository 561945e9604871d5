"""What a request says of repetition."""

import pytest

from appliance.decoding.asked import Asked


@pytest.mark.parametrize(
    ("request_text", "copies"),
    [
        ("Say hello 50 times, please.", 50),
        ("Write the line 'I am late' 300 times", 300),
        ("Repeat it until I say stop.", 100),
        ("List all wards. Do not repeat yourself.", 0),
        ("Say what songs.txt holds.", 0),
        ("The file songs.txt was made by the player. List its lines.", 0),
        ("Write the menu without repeating a dish, then never say it again and again.", 0),
        ("Lead me through 8 rounds of box breathing.", 8),
        ("Write it over and over.", 100),
        ("Say it 9 times. " + "The pump runs. " * 2000 + "What does it do?", 9),
        ("List it. " + "Say it 9 times. " * 4000 + "What does it do?", 9),
        ("Write out the lyrics of the song with every chorus.", 100),
        ("Print a hundred copies. No: print the page a hundred times.", 100),
        ("Print it 50 times. Then say it 5 times more.", 50),
        ("What does error E42 mean?", 0),
        ("Make a table of pumps with 20 rows.", 0),
        ('Write the line "The valve is closed." 75 times, one a line.', 75),
        ("Write what she takes: 10 mg of Ramipril, 2 times a day.", 0),
        ("She takes 10 mg 2 times a day. List what she takes.", 0),
        ("List 40 items, one a line.", 0),
    ],
)
def test_requests_for_repetition_are_told_from_others(request_text: str, copies: int) -> None:
    """A number of times, or a word that means repetition; rows, doses and long lists are none."""
    assert Asked.of(request_text).copies == copies


@pytest.mark.parametrize(
    ("request_text", "number"),
    [
        ("Count.", 0),
        ("Count from 7 to 300, please.", 300),
        ("Nombres de 1 à 1 000", 1000),
        ("Up to 1,000 and 10.", 1000),
        ("All numbers below one thousand", 1000),
        ("A table of 12 months.", 12),
        ("Article 4006381333931", 0),
        ("1" + " 000" * 1900, 0),
        ("A. 1, 2, 3, 4", 4),
        ("A. 1, 2, 3, 4, 5", 0),
    ],
)
def test_the_largest_number_bounds_a_row_of_numbers(request_text: str, number: int) -> None:
    """In whatever language; a document's numbers, and what has more digits, tell things apart."""
    assert Asked.of(request_text).number == number
