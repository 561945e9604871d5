"""w8a8: smoothing changes no answer, makes inputs easier to round, and the rounded model is close to the source's."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from appliance.engine.session import Session
from appliance.forge import reference
from appliance.forge.quantize import MIDDLE, quantize_outputs, rotate
from appliance.forge.smooth import smooth
from appliance.forge.weights import Floats, Weights, open_weights
from tests.fakes import built_models
from tests.fakes.built_models import ARCHITECTURES, Architecture

TOKENS = np.random.default_rng(5).integers(0, 256, 60)


def logits(weights: Weights) -> Floats:
    """Of the reference, for every position."""
    return np.concatenate(list(reference.logits(weights, reference.hidden_states(weights, TOKENS), 64)))


LARGE = np.float32(50)
READERS = ("q_proj", "k_proj", "v_proj", "conv.in_proj", "gate_proj", "up_proj", "w1", "w3")
MADE_BY_ROWS = {"v_proj": 3, "up_proj": 3, "w3": 3, "conv.in_proj": 64 + 3}  # of the gate behind the convolution


def uneven(architecture: Architecture) -> dict[str, np.ndarray]:
    """Weights of a model with a channel that is much larger than the others, wherever a matrix reads."""
    tensors, config = built_models.tiny_tensors(architecture), built_models.tiny_config(architecture)
    copies = config["num_attention_heads"] // config["num_key_value_heads"]
    width = config.get("head_dim", 16)
    for name, value in tensors.items():
        part = name.removesuffix(".weight")
        if part.endswith(("input_layernorm", "operator_norm", "pre_feedforward_layernorm", "ffn_norm")) or (
            architecture != "gemma3" and part.endswith("post_attention_layernorm")
        ):
            value[5] = LARGE
        if part.endswith(READERS):
            value[:, 5] /= LARGE
        for maker, row in MADE_BY_ROWS.items():
            if part.endswith(maker):
                value[row] *= LARGE
        if part.endswith(("conv.out_proj", "down_proj", "w2")):
            value[:, 3] /= LARGE
        if part.endswith(("o_proj", "self_attn.out_proj")):  # every head that reads the first head of V
            value[:, 3 : copies * width : width] /= LARGE
    return tensors


def inputs(weights: Weights) -> dict[str, Floats]:
    """What goes into each matrix of the layers."""
    seen: dict[str, Floats] = {}
    reference.hidden_states(weights, TOKENS, observe=lambda name, x: seen.update({name: x.copy()}))
    return seen


def spread(x: Floats) -> float:
    """How much larger the largest channel becomes than the one in the middle."""
    channels = np.abs(x).max(0)
    return float(channels.max() / np.median(channels))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_smoothed_weights_are_the_same_model(architecture: Architecture, tmp_path: Path) -> None:
    """Other numbers, the same logits."""
    with open_weights(built_models.write_tiny(tmp_path, architecture, tensors=uneven(architecture))) as weights:
        smoothed, before = smooth(weights), logits(weights)
        np.testing.assert_allclose(logits(smoothed), before, rtol=0, atol=2e-3 * np.abs(before).max())
        norm = "blk.1.attn_norm.weight"
        assert not np.allclose(smoothed.read(norm), weights.read(norm), rtol=0.1)
        assert smoothed.shapes == weights.shapes


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_large_channels_become_smaller(architecture: Architecture, tmp_path: Path) -> None:
    """At every matrix of every layer; nothing is left out, whatever the layer is made of."""
    with open_weights(built_models.write_tiny(tmp_path, architecture, tensors=uneven(architecture))) as weights:
        before, after = inputs(weights), inputs(smooth(weights))
        assert before.keys() == after.keys()
        for name in before:
            if spread(before[name]) > LARGE / 2:
                assert spread(after[name]) < 0.5 * spread(before[name]), name


def test_pieces_and_wholes_are_smoothed_alike(tmp_path: Path) -> None:
    """The forge reads a few rows at a time."""
    with open_weights(built_models.write_tiny(tmp_path)) as weights:
        smoothed = smooth(weights)
        for name in ("blk.0.attn_v.weight", "blk.1.ffn_down.weight", "blk.0.ffn_norm.weight"):
            pieces = [smoothed.rows(name, i, i + 1) for i in range(smoothed.shapes[name][0])]
            np.testing.assert_array_equal(np.concatenate(pieces), smoothed.read(name))


def test_rows_are_rounded_by_their_largest_weight() -> None:
    """Half a step at most, and every row has a step of its own."""
    w = np.random.default_rng(1).standard_normal((7, 50)).astype(np.float32) * np.arange(7)[:, None]
    values, scales = quantize_outputs(w)
    assert values.dtype == np.uint8
    assert values.min() >= 1
    back = (values.astype(np.float32) - MIDDLE) * scales[:, None]
    assert (np.abs(back - w) <= 0.5001 * np.abs(w).max(1, keepdims=True) / 127 + 1e-8).all()


def test_rotation_keeps_products_and_spreads_what_stands_out() -> None:
    """Inputs and weights rotated alike give the same product; one large input of a block becomes 32 equal ones."""
    rng = np.random.default_rng(2)
    x, w = (rng.standard_normal((9, 96)).astype(np.float32) for _ in range(2))
    np.testing.assert_allclose(rotate(x) @ rotate(w).T, x @ w.T, atol=1e-4)
    np.testing.assert_allclose(rotate(rotate(x)), x, atol=1e-6)
    alone = np.zeros((1, 64), np.float32)
    alone[0, 40] = 32
    np.testing.assert_allclose(np.abs(rotate(alone)), [[0] * 32 + [32 / np.sqrt(32)] * 32], rtol=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rounded_model_is_close_to_its_source(architecture: Architecture, tmp_path: Path) -> None:
    """Of a model with uneven channels: as close as blocks of 8 bits, within a half."""
    logits_of = {
        scheme: _logits(architecture, scheme, tmp_path / scheme, uneven(architecture))
        for scheme in ("f32", "q8", "w8a8")
    }
    error = {s: float(np.linalg.norm(v - logits_of["f32"])) for s, v in logits_of.items()}
    assert 0 < error["w8a8"] < 1.5 * error["q8"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_down_projection_is_rotated_and_nothing_else(architecture: Architecture, tmp_path: Path) -> None:
    """What is stored is the smoothed matrix, turned where other channels stand out in every token, then rounded."""
    built = built_models.tiny(tmp_path, architecture, "w8a8")
    graph = onnx.load(built.path / "model.onnx").graph
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    with open_weights(tmp_path / "source") as weights:
        smoothed = smooth(weights)
        down, output = smoothed.read("blk.1.ffn_down.weight"), smoothed.read("blk.1.attn_output.weight")
    np.testing.assert_array_equal(stored["blk.1.ffn_down.weight.q"].T, quantize_outputs(rotate(down))[0])
    np.testing.assert_array_equal(stored["blk.1.attn_output.weight.q"].T, quantize_outputs(output)[0])


def test_tokens_of_zeros_are_numbers(tmp_path: Path) -> None:
    """A token whose inputs are all zero has no largest value to divide by; its outputs are zero, not "not a number"."""
    tensors = built_models.tiny_tensors("llama")
    tensors["model.embed_tokens.weight"][7] = 0
    tensors["model.layers.0.self_attn.v_proj.weight"][:] = 0
    found = _logits("llama", "w8a8", tmp_path, tensors, np.array([7, 7, 9], np.int64))
    assert np.isfinite(found).all()
    assert np.abs(found[2]).max() > 0


def test_the_same_source_gives_the_same_package(tmp_path: Path) -> None:
    """The tokens that are drawn by lot are always the same."""
    first, second = (built_models.tiny(tmp_path / folder, "llama", "w8a8") for folder in "ab")
    for file in ("model.onnx", "model.onnx.data"):
        assert (first.path / file).read_bytes() == (second.path / file).read_bytes()


def _logits(
    architecture: Architecture,
    scheme: str,
    folder: Path,
    tensors: dict[str, np.ndarray],
    tokens: np.ndarray = TOKENS,
) -> Floats:
    """Of a package that is built of the tensors, for every position."""
    built = built_models.tiny(folder, architecture, scheme, tensors=tensors)
    with Session(built.open(), 1) as session:
        return session.forward(session.new_cache(64), tokens, np.arange(len(tokens))).copy()
