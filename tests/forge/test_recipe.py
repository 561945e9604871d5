"""Recipes are parsed strictly."""

import json
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import ConfigError, FileProblem
from appliance.forge import recipe
from tests.fakes import built_models


@pytest.mark.parametrize("name", [p.stem for p in (built_models.ROOT / "models").glob("*.yaml")])
def test_shipped_recipes_load(name: str) -> None:
    """All, under their own names, and the text to measure on lies beside them."""
    loaded = recipe.load(built_models.ROOT / "models" / f"{name}.yaml")
    assert loaded.name == name
    assert loaded.evaluation_path.is_file()
    assert loaded.licence.must_accept == (name in ("gemma-3-270m", "lfm2-350m"))
    assert (loaded.source is None) == (name in ("qwen3-0.6b", "lfm2-350m"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 2}, "format 2, expected 1"),
        ({"colour": "blue"}, "colour"),
        ({"architecture": "mamba"}, "architecture"),
        ({"quantization": "q3"}, "quantization"),
        ({"name": "Upper Case"}, "name"),
        ({"context_length": 0}, "context_length"),
        ({"tokens": {"bos": None, "add_bos": False, "stop": []}}, "stop"),
        ({"source": {"file": "../x", "size_bytes": 1, "sha256": "0" * 64, "pieces": []}}, "source"),
    ],
)
def test_wrong_recipes_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    """Unknown keys, unknown values and paths that leave: the message names the place."""
    with pytest.raises(ConfigError, match=words):
        built_models.tiny_recipe(tmp_path, **changes)


def test_package_name_cannot_become_an_option_of_pip(tmp_path: Path) -> None:
    """A recipe's package name is an argument of a command."""
    path = Path(built_models.tiny_recipe(tmp_path).path)
    content = json.loads(path.read_text())
    content["source"]["pieces"][0]["package"] = "--index-url=x"
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="package"):
        recipe.load(path)


def test_pieces_must_add_up(tmp_path: Path) -> None:
    """A recipe that contradicts itself is refused before anything is fetched."""
    path = Path(built_models.tiny_recipe(tmp_path).path)
    content = json.loads(path.read_text())
    content["source"]["size_bytes"] = 2
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="1 bytes together, expected size_bytes, 2"):
        recipe.load(path)


def test_missing_recipe_is_named(tmp_path: Path) -> None:
    """The path stands in the message."""
    with pytest.raises(FileProblem, match=r"nothing\.yaml"):
        recipe.load(tmp_path / "nothing.yaml")
