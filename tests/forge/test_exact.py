"""q4x: the source's own 4-bit numbers, in the operators' form, at no loss that 8 bits would not have too."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from appliance.engine.session import Session
from appliance.errors import BuildError
from appliance.forge import build as forge
from appliance.forge.quantize import dequantize, exact_4, keeps_4, quantize
from appliance.forge.weights import BLOCK, Affine4, Floats, open_weights
from tests.fakes import built_models, tiny_gguf
from tests.fakes.built_models import Architecture

KINDS = {
    "Q4_0": GGMLQuantizationType.Q4_0,
    "Q4_1": GGMLQuantizationType.Q4_1,
    "Q4_K": GGMLQuantizationType.Q4_K,
}
BYTES = {"Q4_0": 18, "Q4_1": 20, "Q4_K": 144}
VALUES = {"Q4_0": 32, "Q4_1": 32, "Q4_K": 256}
rng = np.random.default_rng(8)


def raw(kind: str, rows: int = 6, columns: int = 512) -> np.ndarray:
    """Random blocks, their 16-bit factors small numbers."""
    blocks = rng.integers(0, 256, (rows, columns // VALUES[kind], BYTES[kind]), np.uint8)
    for at in range(0, 2 if kind == "Q4_0" else 4, 2):
        factors = rng.uniform(-2, 2, blocks.shape[:2]).astype(np.float16)
        blocks[..., at : at + 2] = factors[..., None].view(np.uint8)
    return blocks.reshape(rows, -1)


def values(found: Affine4) -> Floats:
    return (found.q * found.scale[..., None] + found.offset[..., None]).reshape(len(found.q), -1)


def effective(matrix: Affine4) -> Floats:
    """What the operators make of it: the first columns, and what they multiply each block's sum by."""
    packed = dequantize(exact_4(matrix), "q4x")
    rows, blocks, _ = matrix.q.shape
    columns = blocks * BLOCK
    left = packed[:, columns : columns + blocks]
    assert not packed[:, columns + blocks :].any() or np.abs(packed[:, columns + blocks :]).max() < 1e-6
    return (packed[:, :columns].reshape(rows, blocks, BLOCK) + left[..., None]).reshape(rows, -1)


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_those_that_the_library_decodes(kind: str, tmp_path: Path) -> None:
    """Every block format, against the gguf package's own arithmetic."""
    path = tiny_gguf.write(tmp_path / "tiny.gguf", raw={"odd.weight": (raw(kind), KINDS[kind])})
    with open_weights(path) as weights:
        found = weights.affine4("odd.weight")
        assert found is not None
        assert found.q.shape == (6, 16, BLOCK)
        assert found.q.max() == 15
        np.testing.assert_allclose(values(found), weights.read("odd.weight"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1"])
def test_rotary_rows_are_put_apart(kind: str, tmp_path: Path) -> None:
    """Q and K of ggml's llama: the numbers in the same order as the values."""
    with open_weights(tiny_gguf.write(tmp_path / "tiny.gguf", kind=KINDS[kind])) as weights:
        for name in ("attn_q", "attn_k", "attn_v", "ffn_down"):
            found = weights.affine4(f"blk.1.{name}.weight")
            assert found is not None
            np.testing.assert_allclose(values(found), weights.read(f"blk.1.{name}.weight"), atol=1e-6)


def test_what_is_not_4_bits_has_none(tmp_path: Path) -> None:
    """Floats, 8 bits, vectors, and safetensors."""
    with open_weights(tiny_gguf.write(tmp_path / "tiny.gguf", kind=GGMLQuantizationType.Q8_0)) as weights:
        assert [n for n in weights.shapes if weights.affine4(n) is not None] == []
    with open_weights(built_models.write_tiny(tmp_path / "source")) as weights:
        assert weights.affine4("blk.0.attn_q.weight") is None


@pytest.mark.parametrize("blocks", [1, 2, 18, 31, 32, 33, 48, 64])
def test_matrix_is_closer_than_8_bits(blocks: int) -> None:
    """Whatever the number of blocks, odd or more than fit into one block of corrections."""
    w = rng.standard_normal((40, blocks, BLOCK)).astype(np.float32)
    low, high = w.min(-1), w.max(-1)
    scale = ((high - low) / 15).astype(np.float32)
    q = np.clip(np.rint((w - low[..., None]) / scale[..., None]), 0, 15).astype(np.uint8)
    matrix = Affine4(q, scale, low)
    exact = values(matrix)
    error = np.linalg.norm(effective(matrix) - exact)
    assert error <= 1.05 * np.linalg.norm(dequantize(quantize(exact, "q8"), "q8") - exact)
    assert error < 0.2 * np.linalg.norm(exact - (q * scale[..., None] - scale[..., None] * 8).reshape(40, -1))


def test_blocks_on_one_side_of_zero_and_blocks_without_spread() -> None:
    """Their zero point lies outside of 0 to 15: the correction takes all of the offset; nothing is divided by zero."""
    q = rng.integers(0, 16, (4, 3, BLOCK)).astype(np.uint8)
    scale = np.array([[0.1, 0.1, 0.1], [0.1, 0.2, 0.0], [0, 0, 0], [-0.1, 0.1, 0.1]], np.float32)
    offset = np.array([[1, -4, 0.5], [3, -0.1, 0.7], [0.25, 0, -3], [0.3, 1, -1]], np.float32)
    matrix = Affine4(q, scale, offset)
    assert np.isfinite(effective(matrix)).all()
    spread = np.abs(offset).max(1, keepdims=True)
    assert (np.abs(effective(matrix) - values(matrix)) <= spread / 15).all()


@pytest.mark.parametrize("architecture", built_models.ARCHITECTURES)
def test_graph_computes_with_the_sources_numbers(architecture: Architecture, tmp_path: Path) -> None:
    """As close to float32 as 8 bits are, where 4 bits that were rounded anew are far off."""
    tokens, logits = rng.integers(3, 300, 60), {}
    for scheme in ("f32", "q8", "q4x", "q4s"):
        with Session(tiny_gguf.built(tmp_path / scheme, architecture, scheme).open(), 1) as session:
            logits[scheme] = session.forward(session.new_cache(64), tokens, np.arange(60)).copy()
    error = {s: np.abs(found - logits["f32"]).mean() for s, found in logits.items()}
    assert error["q4x"] < 1.5 * error["q8"]
    assert error["q4x"] < 0.5 * error["q4s"]


def test_source_without_4_bits_is_refused(tmp_path: Path) -> None:
    """A package that calls itself q4x and has 8 bits everywhere would be a lie; nothing is left behind."""
    source = built_models.write_tiny(tmp_path / "source")
    with pytest.raises(BuildError, match="holds no 4-bit numbers"):
        forge.build(
            built_models.tiny_recipe(tmp_path), tmp_path / "out", weights=source, quantization="q4x", evaluate=False
        )
    assert not (tmp_path / "out" / "tiny-llama-q4x").exists()


def test_same_source_gives_the_same_bytes(tmp_path: Path) -> None:
    """Two builds of one source."""
    first, second = (tiny_gguf.built(tmp_path / folder, "llama", "q4x") for folder in "ab")
    for name in ("model.onnx", "model.onnx.data"):
        assert (first.path / name).read_bytes() == (second.path / name).read_bytes()


def test_a_matrix_of_blocks_on_one_side_gets_8_bits(tmp_path: Path) -> None:
    """One such block in 32 would spoil the corrections of its neighbours."""
    q = rng.integers(0, 16, (40, 32, BLOCK)).astype(np.uint8)
    scale, offset = np.full((40, 32), 0.1, np.float32), np.full((40, 32), -0.73, np.float32)
    assert keeps_4(Affine4(q, scale, offset))
    offset[:, 7] = 1.0
    assert not keeps_4(Affine4(q, scale, offset))
    assert keeps_4(Affine4(q, -scale, -np.full((40, 32), -0.73, np.float32)))
