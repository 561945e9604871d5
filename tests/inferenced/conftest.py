"""One box with tiny models for the tests that do not harm it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes import built_models
from tests.fakes.box import Box, running


@pytest.fixture(scope="session")
def tiny_state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a chat model and a base model, both tiny, signed and trusted."""
    folder = tmp_path_factory.mktemp("tiny") / "box"
    built_models.tiny(folder, "llama")
    key = folder / "keys" / "test.pub"
    key.rename(folder / "keys" / "first.pub")
    (folder / "private.pem").unlink()
    (folder / "source").rename(folder / "source-llama")
    built_models.tiny(folder, "gemma3")
    return folder


@pytest.fixture(scope="module")
def box(tiny_state: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A running daemon of the module's own."""
    import shutil

    folder = tmp_path_factory.mktemp("box") / "b"
    shutil.copytree(tiny_state, folder)
    with running(folder) as box:
        yield box
        assert box.process.poll() is None, box.log.read_text()
