"""Models that the forge's tests share; see tests/fakes/built_models.py."""

from pathlib import Path

import pytest

from tests.fakes import built_models
from tests.fakes.built_models import BuiltModel


@pytest.fixture(scope="session")
def smollm2() -> BuiltModel:
    return built_models.smollm2()


@pytest.fixture(params=built_models.ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> built_models.Architecture:
    return request.param


@pytest.fixture
def tiny_source(tmp_path: Path, architecture: built_models.Architecture) -> Path:
    return built_models.write_tiny(tmp_path / "source", architecture)
