"""What several tests of the engine need."""

import itertools
from collections.abc import Iterator

import pytest

from appliance.engine.session import Session
from tests.fakes import built_models, tiny_gguf


@pytest.fixture(
    scope="module", params=itertools.product(built_models.ARCHITECTURES, ("f32", "q8", "w8a8", "q4x")), ids="-".join
)
def session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """A tiny model of every architecture, in float32, 8 bits in both forms, and 4 of its source."""
    architecture, scheme = request.param
    make = tiny_gguf.built if scheme == "q4x" else built_models.tiny
    built = make(tmp_path_factory.mktemp("tiny") / "box", architecture, scheme)
    with Session(built.open(), 1, slots=16) as session:
        yield session
