"""The shapes of noise are those of the published models."""

from math import prod

import pytest

from appliance.forge import recipe as recipes
from bench.pipe import ROOT
from bench.sizes import CONFIGS, tensors


@pytest.mark.parametrize(("name", "parameters"), [("lfm2-350m", 354_483_968), ("qwen3-0.6b", 596_049_920)])
def test_parameters_are_as_many_as_published(name: str, parameters: int) -> None:
    """By the model cards; each has a recipe that builds it."""
    assert sum(prod(shape) for shape in tensors(name).values()) == parameters
    assert recipes.load(ROOT / "models" / f"{name}.yaml").architecture == CONFIGS[name]["model_type"]
