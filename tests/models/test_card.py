"""The card: read strictly, written reproducibly."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from appliance.config import dump_yaml, load_yaml
from appliance.errors import ConfigError
from appliance.models.card import Card, dump, is_legal_name, parse
from tests.fakes.package import tiny_card


def test_card_survives_writing_and_reading() -> None:
    """What is dumped parses to the same card, and dumping again gives the same bytes."""
    for card in (tiny_card(), msgspec.structs.replace(tiny_card(), figures=None), tiny_card(chat=False)):
        assert parse(dump(card)) == card
        assert dump(parse(dump(card))) == dump(card)


def test_wrong_card_is_not_written() -> None:
    """What would be refused when read is refused when written; a constructor checks no types."""
    with pytest.raises(ConfigError, match="summary"):
        dump(msgspec.structs.replace(tiny_card(), summary=1))


def test_card_begins_with_its_format() -> None:
    """The first line says which version of the format follows."""
    assert dump(tiny_card()).startswith(b"format: 1\nname: tiny\n")


def test_card_is_frozen() -> None:
    """Nobody changes a card that was verified."""
    with pytest.raises(AttributeError):
        tiny_card().name = "other"  # type: ignore[misc]


def test_embedding_share() -> None:
    """The share is the embedding's part of all parameters."""
    assert tiny_card().parameters.embedding_share == 0.6


Edit = Callable[[dict[str, Any]], object]


def put(*path: str | int, to: object) -> Edit:
    def edit(value: Any) -> None:
        for step in path[:-1]:
            value = value[step]
        value[path[-1]] = to

    return edit


REFUSED: list[tuple[str, Edit, str]] = [
    ("unknown field", put("extra", to=1), "extra"),
    ("unknown field in a part", put("licence", "extra", to=1), r"\$\.licence"),
    ("unknown field in a list", put("provenance", "sources", 0, "url", to="x"), r"sources\[0\]"),
    ("missing field", lambda c: c.pop("summary"), "summary"),
    ("missing format", lambda c: c.pop("format"), "no format"),
    ("newer format", put("format", to=2), "format '2', expected 1"),
    ("format true", put("format", to=True), "format 'True'"),
    ("format as text", put("format", to="1"), "format '1'"),
    ("version not quoted", put("version", to=1), "version"),
    ("illegal name", put("name", to="../x"), "name"),
    ("name with a line feed", put("name", to="tiny\n"), "name"),
    ("name in capitals", put("name", to="Tiny"), "name"),
    ("escape sequence in the summary", put("summary", to="\x1b[2J"), "summary"),
    ("C1 control character", put("summary", to="a\u009bb"), "summary"),
    ("two lines in the licence", put("licence", "name", to="a\nb"), "licence"),
    ("line separator", put("summary", to="a\u2028b"), "summary"),
    ("digest in capitals", put("provenance", "recipe_sha256", to="A" * 64), "recipe_sha256"),
    ("digest too short", put("figures", "text_sha256", to="a" * 63), "text_sha256"),
    ("negative parameters", put("parameters", "parts", "norms", to=-1), "norms"),
    ("effective does not fit", put("parameters", "effective", to=41), "effective is 41"),
    ("embedding does not fit", put("parameters", "parts", "embedding", to=59), "parts.embedding"),
    ("parts do not sum up", put("parameters", "parts", "norms", to=6), "sum to 101"),
    ("context of 0", put("context_length", to=0), "context_length"),
    ("bool for a number", put("context_length", to=True), "context_length"),
    ("text for a number", put("context_length", to="64"), "context_length"),
    ("float for a count", put("context_length", to=64.5), "context_length"),
    ("stop token beyond the vocabulary", put("tokens", "stop", to=[256]), "256"),
    ("first token beyond the vocabulary", put("tokens", "bos", to=256), "256"),
    ("negative token", put("tokens", "stop", to=[-1]), "stop"),
    ("adds a token that there is not", put("tokens", "add_bos", to=True), "bos is null"),
    ("temperature is not a number", put("generation", "temperature", to=float("nan")), "temperature"),
    ("temperature infinite", put("generation", "temperature", to=float("inf")), "temperature"),
    ("top_p over 1", put("generation", "top_p", to=1.1), "top_p"),
    ("perplexity is not a number", put("figures", "perplexity", to=float("nan")), "perplexity"),
    ("divergence infinite", put("figures", "kl_divergence", to=float("inf")), "kl_divergence"),
    ("chat not a bool", put("chat", to=1), "chat"),
]


@pytest.mark.parametrize(("edit", "says"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_other_cards_are_refused(edit: Edit, says: str) -> None:
    """One thing that is wrong refuses the card, and the message names the place."""
    value = load_yaml(dump(tiny_card()), "card")
    edit(value)
    with pytest.raises(ConfigError, match=says):
        parse(dump_yaml(value))


@pytest.mark.parametrize("data", [b"", b"- 1", b"format", b"\xff", b"{", b"a: 1\na: 2", b"format: [1]"])
def test_what_is_no_card_is_refused(data: bytes) -> None:
    """Anything else than a mapping with the right fields ends in the same class of error."""
    with pytest.raises(ConfigError):
        parse(data)


def test_whole_numbers_stand_for_floats() -> None:
    """`top_p: 1` is as good as `top_p: 1.0`; a person writes it so."""
    value = load_yaml(dump(tiny_card()), "card")
    value["generation"]["top_p"] = 1
    card = parse(dump_yaml(value))
    assert isinstance(card, Card)
    assert isinstance(card.generation.top_p, float)


@pytest.mark.parametrize(
    ("name", "legal"),
    [
        ("smollm2-135m-instruct-w8a8", True),
        ("0", True),
        ("a" * 64, True),
        ("a..b", True),
        ("", False),
        ("a" * 65, False),
        (".", False),
        ("..", False),
        (".a", False),
        ("-a", False),
        ("_a", False),
        ("a/b", False),
        ("a\n", False),
        ("a\x00", False),
        ("A", False),
        ("\u00e9", False),
        ("\u0661", False),
    ],
)
def test_names(name: str, legal: bool) -> None:
    """A name is a folder, a URL part and an argument, so it is small and plain."""
    assert is_legal_name(name) is legal
