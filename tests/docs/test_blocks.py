"""The commands and programs that the documentation shows, run as a reader would run them."""

import datetime
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.forge import source
from appliance.receipt import folder as receipts
from appliance.trust.keys import generate
from tests.docs.blocks import ROOT, RUN, SHOWN, blocks, pages, run
from tests.fakes.box import Box, running
from tests.fakes.built_models import smollm2, tiny_recipe, write_tiny
from tests.receipt.test_receipt_statement import STATE

ON_A_BOX = (
    "README.md",
    "docs/how-to/get-json.md",
    "docs/how-to/use-curl.md",
    "docs/how-to/use-the-openai-sdk.md",
)
BY_HAND = ("docs/tutorial/first-answer.md", "docs/how-to/rotate-a-model-key.md")
ON_A_STATION = ("docs/how-to/bring-your-own-weights.md",)
WITH_A_RECEIPT = ("docs/reference/receipt.md",)


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    built = smollm2()
    with running(built.copy_to(tmp_path_factory.mktemp("real") / "b").state_dir) as box:
        yield box


@pytest.mark.parametrize("page", ON_A_BOX)
def test_pages_for_callers_work_against_the_real_model(page: str, box: Box, tmp_path: Path) -> None:
    """What README and the how-tos for callers show works with SmolLM2 behind the socket."""
    run([ROOT / page], tmp_path, {"SKERRY_SOCKET": str(box.socket)})


def test_tutorial_leads_to_an_answer_and_to_a_new_key(public_path: Path) -> None:
    """The tutorial, from the recipe to an answer and a refusal, and then the how-to that goes on from its folders."""
    smollm2()  # skips if the weights cannot be had, and leaves them in the cache
    (public_path / "models").symlink_to(ROOT / "models")
    (public_path / "examples").symlink_to(ROOT / "examples")
    cache = source.cache_directory().parents[1]
    run([ROOT / page for page in BY_HAND], public_path, {"XDG_CACHE_HOME": str(cache)})  # a socket's path is short


@pytest.mark.parametrize("page", ON_A_STATION)
def test_own_weights_become_a_package(page: str, tmp_path: Path) -> None:
    """A folder of safetensors and a recipe of the operator's: built, measured and inspected."""
    tiny_recipe(tmp_path / "models", name="my-model", quantization="w8a8")
    (tmp_path / "models" / "tiny-llama.yaml").rename(tmp_path / "models" / "my-model.yaml")
    shutil.copy(ROOT / "models" / "evaluation.txt", tmp_path / "models")
    write_tiny(tmp_path / "my-weights")
    run([ROOT / page], tmp_path, {})


@pytest.mark.parametrize("page", WITH_A_RECEIPT)
def test_receipt_is_verified_with_other_tools(page: str, tmp_path: Path) -> None:
    """What the page shows verifies a real receipt with jq and openssl, and refuses one of another key."""
    if shutil.which("jq") is None:
        pytest.skip("not run: jq is not installed")
    key = generate()
    done = receipts.write(tmp_path, STATE, key, datetime.datetime(2026, 11, 22, tzinfo=datetime.UTC))
    run([ROOT / page], tmp_path, {"RECEIPT": done.path.name})
    generate().public().save(tmp_path / "box.pub")
    with pytest.raises(AssertionError, match="failed"):
        run([ROOT / page], tmp_path, {"RECEIPT": done.path.name})


def test_no_block_that_runs_is_forgotten() -> None:
    """Every page with a block that can run is in one of the lists above, and every block's language is a known one."""
    listed = {*ON_A_BOX, *BY_HAND, *ON_A_STATION, *WITH_A_RECEIPT}
    for page in pages():
        for block in blocks(page):
            assert block.language in RUN | SHOWN, f"{block.where}: {block.language!r} is neither run nor only shown"
            if block.language in RUN:
                assert block.page in listed, f"{block.where} runs nowhere"


def test_block_that_fails_or_prints_something_else_fails_its_test(tmp_path: Path) -> None:
    """The harness itself: a failing command, a wrong output, a missing expectation are each an error."""
    cases = {
        "fails": ("<!-- expect: one -->\n```sh\necho one\nfalse\n```\n", "failed"),
        "differs": ("<!-- expect: two -->\n```python\nprint('one')\n```\n", "expected two"),
        "prints": ("<!-- expect nothing -->\n```sh\necho one\n```\n", "expected nothing"),
        "silent": ("```sh\necho one\n```\n", "does not say"),
        "in a pipe": ("<!-- expect nothing -->\n```sh\nfalse | true\n```\n", "failed"),
    }
    for name, (text, message) in cases.items():
        page = ROOT / "build" / "blocks" / f"{name}.md"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(text)
        with pytest.raises(AssertionError, match=message):
            run([page], tmp_path, {})
        page.unlink()
