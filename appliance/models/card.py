"""The model card: what a package holds, where it came from, on what terms, and how good its quantization measured.

`card.yaml` is signed with the weights, so what it says is as trustworthy as the signer, no more: the figures are the
station's, not the box's. `parse` accepts exactly this version of the format; a field it does not know is an error,
because an old box that ignores a new restriction would be worse than one that asks for an update.

What this does NOT protect against: a card that is honestly signed and wrong. Only the name, the chat template's
presence and the sums are checked against something else.
"""

import math
import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from appliance.config import convert, dump_yaml, load_yaml
from appliance.errors import ConfigError

FORMAT = 1
# \Z, not $: a dollar also matches before a final line feed.
NAME_PATTERN = r"\A[a-z0-9][a-z0-9._-]{0,63}\Z"
_NAME = re.compile(NAME_PATTERN)

ModelName = Annotated[str, Meta(pattern=NAME_PATTERN)]
Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Line = Annotated[str, Meta(max_length=400, pattern=r"\A[^\x00-\x1f\x7f-\x9f\u2028\u2029]*\Z")]
"""Text for one line of a terminal: no control characters, so that a card cannot drive the operator's screen."""
Count = Annotated[int, Meta(ge=0, le=1 << 50)]
Positive = Annotated[int, Meta(ge=1, le=1 << 50)]
TokenId = Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]


def is_legal_name(name: str) -> bool:
    """Whether a model may have this name: it is a folder, a part of a URL and an argument on a command line."""
    return _NAME.match(name) is not None


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of the card: frozen, every field named, none unknown."""

    def __post_init__(self) -> None:
        # YAML has .nan and .inf; no figure of a card may be one.
        for field in self.__struct_fields__:
            value = getattr(self, field)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{field} is {value}, expected a finite number")


class ParameterParts(_Part, frozen=True, kw_only=True):
    """Parameters by what they do."""

    embedding: Count
    attention: Count
    feed_forward: Count
    norms: Count


class Parameters(_Part, frozen=True, kw_only=True):
    """Parameters counted once each: a tied embedding is not counted again as the output head."""

    total: Positive
    embedding: Count
    effective: Count
    """All but the embedding table: the part that computes."""
    parts: ParameterParts

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.effective != self.total - self.embedding:
            raise ValueError(f"effective is {self.effective}, expected total - embedding")
        if self.parts.embedding != self.embedding:
            raise ValueError(f"parts.embedding is {self.parts.embedding}, expected {self.embedding}")
        parts = self.parts.embedding + self.parts.attention + self.parts.feed_forward + self.parts.norms
        if parts != self.total:
            raise ValueError(f"the parts sum to {parts}, expected the total, {self.total}")

    @property
    def embedding_share(self) -> float:
        """The embedding's fraction of all parameters, from 0 to 1."""
        return self.embedding / self.total


class Quantization(_Part, frozen=True, kw_only=True):
    """How the weights are stored."""

    scheme: Line
    """f32, q8, q4, ..."""
    bits: Annotated[int, Meta(ge=1, le=64)]
    block_size: Count
    """Weights that share a scale; 0 where there are no blocks."""
    description: Line


class Tokens(_Part, frozen=True, kw_only=True):
    """Token ids with a meaning for the engine."""

    bos: TokenId | None
    """The token that begins a text, if the model has one."""
    add_bos: bool
    """Whether a prompt begins with it."""
    stop: tuple[TokenId, ...]
    """Any of these ends an answer."""

    def __post_init__(self) -> None:
        if self.add_bos and self.bos is None:
            raise ValueError("add_bos is true, but bos is null")


class Generation(_Part, frozen=True, kw_only=True):
    """What a request that says nothing gets."""

    temperature: Annotated[float, Meta(ge=0, le=100)]
    top_p: Annotated[float, Meta(ge=0, le=1)]
    top_k: Count
    min_p: Annotated[float, Meta(ge=0, le=1)]
    repetition_penalty: Annotated[float, Meta(gt=0, le=100)]
    max_tokens: Positive


class Licence(_Part, frozen=True, kw_only=True):
    """On what terms the weights may be used."""

    id: Line
    """An SPDX identifier, or a name where there is none."""
    name: Line
    terms: Line | None
    """Where the terms stand."""
    accepted: bool
    """Whether the operator of the station accepted them when building."""


class Source(_Part, frozen=True, kw_only=True):
    """One file that the weights came from."""

    package: Line | None
    version: Line | None
    file: Line
    size_bytes: Count
    sha256: Sha256


class Provenance(_Part, frozen=True, kw_only=True):
    """From what, and by what, the package was built."""

    recipe: Line
    recipe_sha256: Sha256
    sources: tuple[Source, ...]
    source_sha256: Sha256
    """Of the weights that were read, after the parts were put together."""
    builder: Line


class Figures(_Part, frozen=True, kw_only=True):
    """The quantization measured against the float32 reference, on one text."""

    text: Line
    text_sha256: Sha256
    tokens: Positive
    perplexity: float
    reference_perplexity: float
    kl_divergence: float
    """Mean KL(reference || model) a token, in nats."""
    top1_agreement: Annotated[float, Meta(ge=0, le=1)]


class Card(_Part, frozen=True, kw_only=True):
    """The whole of `card.yaml`."""

    format: Literal[1]
    name: ModelName
    """The package's directory, and the model's id in the API."""
    version: Line
    summary: Line
    architecture: Line
    parameters: Parameters
    quantization: Quantization
    context_length: Positive
    vocabulary_size: Positive
    tokens: Tokens
    chat: bool
    """Whether the package has a chat template."""
    generation: Generation
    licence: Licence
    provenance: Provenance
    figures: Figures | None = None

    def __post_init__(self) -> None:
        beyond = [token for token in (self.tokens.bos, *self.tokens.stop) if token is not None]
        if any(token >= self.vocabulary_size for token in beyond):
            raise ValueError(f"a token id of {max(beyond)}, expected less than vocabulary_size, {self.vocabulary_size}")


def parse(data: bytes) -> Card:
    """Read a card.

    Raises:
        ConfigError: not YAML, another version of the format, or not a card; the message names the path.
    """
    value = load_yaml(data, "card.yaml")
    # Before all else: a newer card would only be called "unknown field" otherwise. `True == 1`, hence the type.
    if (
        isinstance(value, dict)
        and "format" in value
        and not (value["format"] == FORMAT and value["format"] is not True)
    ):
        raise ConfigError(
            f"cannot use card.yaml: format {str(value['format'])[:20]!r}, expected {FORMAT}",
            hint="the package is for another version of Skerry: update this one, or build the package again",
        )
    if isinstance(value, dict) and "format" not in value:
        raise ConfigError(f"cannot use card.yaml: no format, expected `format: {FORMAT}`")
    return convert(value, Card, "card.yaml")


def dump(card: Card) -> bytes:
    """Write a card as YAML; the same card always gives the same bytes, and `parse` gives the card back.

    Raises:
        ConfigError: the card is one that `parse` would refuse.
    """
    # A constructor checks no types, and an int in a float field would be written in another way than it is read back.
    return dump_yaml(convert(msgspec.to_builtins(card), Card, "card.yaml"))
