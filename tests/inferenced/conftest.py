"""One box with tiny models for the tests that do not harm it."""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import openai
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


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A running daemon of the module's own, with SmolLM2."""
    built = built_models.smollm2()
    with running(built.copy_to(tmp_path_factory.mktemp("real") / "b").state_dir) as box:
        yield box


@pytest.fixture
def sdk(real: Box) -> Iterator[openai.OpenAI]:
    """The official package, connected to it."""
    with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(real.socket))) as http:
        yield openai.OpenAI(base_url="http://skerry/v1", api_key="none", http_client=http, max_retries=0)
