"""Damaged, foreign and hostile weights are refused with the reason, before anything is allocated or left behind."""

import contextlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance.errors import BuildError, SkerryError
from appliance.forge.build import build
from appliance.forge.weights import open_weights
from tests.fakes import tiny_gguf
from tests.fakes.built_models import Architecture, tiny_config, tiny_recipe, tiny_tensors, write_tiny


def refused(tmp_path: Path, weights: Path, words: str, **recipe: Any) -> None:
    out = tmp_path / "out"
    with pytest.raises(SkerryError, match=words) as caught:
        build(tiny_recipe(tmp_path / "recipe", **recipe), out, weights=weights, evaluate=False)
    assert caught.value.message.startswith("cannot ")
    assert not out.exists() or not list(out.iterdir())


def patch(at: int, data: bytes) -> Callable[[bytes], bytes]:
    return lambda whole: whole[:at] + data + whole[at + len(data) :]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda b: b"", "tiny.gguf"),
        (lambda b: b[:3], "in the middle of its header"),
        (lambda b: b[:100], "in the middle of its header"),
        (lambda b: b[: len(b) // 2], "tensor .* ends at"),
        (lambda b: b[:-100], "tensor .* ends at"),
        (patch(0, b"GGML"), "not a GGUF file"),
        (patch(4, struct.pack("<I", 2)), "GGUF version 2, expected 3"),
        (patch(8, struct.pack("<Q", 1 << 60)), "claims .* tensors"),
        (patch(16, struct.pack("<Q", 1 << 60)), "claims .* fields"),
        (patch(24, struct.pack("<Q", 1 << 62)), "in the middle of its header"),
        (patch(32, b"\xff\xfe"), "not UTF-8"),
        (lambda b: b.replace(b"llama.block_count", b"llama.block_cxunt"), "block_count: it is missing"),
    ],
)
def test_damaged_gguf_is_refused(tmp_path: Path, spoil: Callable[[bytes], bytes], words: str) -> None:
    """Truncation anywhere, absurd counts, wrong magic: a BuildError, and nothing left behind."""
    path = tiny_gguf.write(tmp_path / "tiny.gguf")
    path.write_bytes(spoil(path.read_bytes()))
    refused(tmp_path, path, words)


def test_every_truncation_of_a_gguf_is_a_clean_error(tmp_path: Path) -> None:
    """No length of the file makes the reader fail in another way."""
    whole = tiny_gguf.write(tmp_path / "whole.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    for size in [*range(0, 2000, 97), *range(2000, len(whole), 7919)]:
        path.write_bytes(whole[:size])
        with pytest.raises(BuildError):
            open_weights(path)


def test_every_flipped_header_byte_of_a_gguf_is_an_error_or_harmless(tmp_path: Path) -> None:
    """A header byte that is changed never gets past the reader as another exception than ours."""
    whole = tiny_gguf.write(tmp_path / "whole.gguf").read_bytes()
    path = tmp_path / "flipped.gguf"
    rng = np.random.default_rng(5)
    for at in rng.integers(0, 6000, 300):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ int(rng.integers(1, 256))]) + whole[at + 1 :])
        with contextlib.suppress(BuildError):
            open_weights(path).close()


def header(entries: dict[str, Any], size: int | None = None) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text


def entry(shape: list[int], start: int, stop: int, dtype: str = "F32") -> dict[str, Any]:
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "0 bytes"),
        (b"123", "3 bytes"),
        (header({}, 1 << 63), "its header claims 9223372036854775808 bytes"),
        (header({}, 3), "its header claims 3 bytes"),
        (struct.pack("<Q", 4) + b"[[[[", "its header is not"),
        (struct.pack("<Q", 100_000) + b'{"a":' + b"[" * 99_995, "its header is not"),
        (header(entry([4], 0, 16)) + b"\0" * 15, "lies at 0 to 16"),
        (header(entry([4], 0, 12)) + b"\0" * 16, "expected 16 bytes"),
        (header(entry([4], -16, 0)) + b"\0" * 16, "lies at -16"),
        (header(entry([1 << 33, 1 << 33], 0, 0)), "lies at 0 to 0"),
        (header(entry([-1], 0, 16)) + b"\0" * 16, "shape"),
        (header(entry([4], 0, 4, "I8")) + b"\0" * 4, "is I8, expected F32"),
        (header({"w": {"dtype": "F32", "shape": [1]}}), "its header is not"),
        (header({"w": 1}), "its header is not"),
    ],
)
def test_damaged_safetensors_are_refused(tmp_path: Path, data: bytes, words: str) -> None:
    """Lengths that do not fit, headers that lie, JSON that nests without end."""
    source = write_tiny(tmp_path / "source")
    (source / "model.safetensors").write_bytes(data)
    refused(tmp_path, source, words)


def without(name: str) -> dict[str, np.ndarray]:
    return {n: t for n, t in tiny_tensors("llama").items() if n != name}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (without("model.layers.1.mlp.up_proj.weight"), "lacks tensors: blk.1.ffn_up.weight"),
        (without("model.embed_tokens.weight"), "no embedding table"),
        (tiny_tensors("llama") | {"model.layers.0.self_attn.q_proj.bias": np.zeros(64, np.float32)}, "unknown tensors"),
        (tiny_tensors("llama") | {"model.norm.weight": np.zeros(32, np.float32)}, "has the shape"),
        (
            tiny_tensors("llama") | {"model.layers.2.mlp.up_proj.weight": np.zeros((1, 1), np.float32)},
            "unknown tensors",
        ),
    ],
)
def test_other_tensors_than_the_architectures_are_refused(
    tmp_path: Path, tensors: dict[str, np.ndarray], words: str
) -> None:
    """A missing, an additional or a misshapen tensor: the model would still answer, only worse."""
    refused(tmp_path, write_tiny(tmp_path / "source", tensors=tensors), words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "mamba"}, "architecture is 'mamba', expected llama"),
        ({"model_type": None}, "model_type: it is missing"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "scaled"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"num_key_value_heads": 3}, "expected a multiple"),
        ({"hidden_size": "64"}, "hidden_size: it is '64'"),
        ({"num_hidden_layers": -1}, "layers is -1"),
        ({"max_position_embeddings": 128}, "context is 256 tokens, expected at most 128"),
        ({"model_type": "gemma3_text"}, "hidden_activation|expected llama|query"),
    ],
)
def test_other_configurations_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    """Settings that would change the computation, and numbers that make no sense."""
    source = write_tiny(tmp_path / "source")
    (source / "config.json").write_text(json.dumps(tiny_config("llama") | changes))
    refused(tmp_path, source, words)


# architecture | changes of its configuration | words of the refusal
OTHER_SETTINGS: list[tuple[Architecture, dict[str, Any], str]] = [
    ("qwen3", {"attention_bias": True}, "attention_bias is True"),
    ("qwen3", {"use_sliding_window": True}, "use_sliding_window is True"),
    ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "other kinds than full_attention"),
    ("qwen3", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "scaled"),
    ("qwen3", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ("lfm2", {"conv_bias": True}, "conv_bias is True"),
    ("lfm2", {"rope_scaling": {"rope_type": "linear", "factor": 2}}, "scaled"),
    ("lfm2", {"conv_L_cache": 1}, "see 1 tokens, expected 2 to 64"),
    ("lfm2", {"conv_L_cache": 1 << 40}, "expected 2 to 64"),
    ("lfm2", {"conv_L_cache": 4}, "shortconv.conv.weight has the shape"),
    ("lfm2", {"full_attn_idxs": [1, 6]}, "full_attn_idxs names layers that are not there, of 6"),
    ("lfm2", {"full_attn_idxs": [1, "4"]}, "full_attn_idxs names layers"),
    ("lfm2", {"full_attn_idxs": []}, "none of its layers attends"),
    ("lfm2", {"full_attn_idxs": [0, 4]}, "lacks tensors: blk.0.attn_q.weight"),
    ("lfm2", {"full_attn_idxs": None}, "layer_types must name conv or full_attention for each of the 6 layers"),
    ("lfm2", {"layer_types": ["conv"] * 5 + ["full_attention"] * 2}, "for each of the 6 layers"),
    ("lfm2", {"layer_types": ["conv"] * 5 + ["mamba"]}, "for each of the 6 layers"),
    ("lfm2", {"num_hidden_layers": 1 << 50, "full_attn_idxs": [0]}, "for each of the"),
    ("lfm2", {"block_multiple_of": 0}, "expected positive numbers"),
    ("lfm2", {"block_ffn_dim_multiplier": 1e300}, "expected positive numbers"),
    ("lfm2", {"block_ffn_dim_multiplier": float("nan")}, "config.json"),
    ("lfm2", {"block_auto_adjust_ff_dim": False}, "ffn_gate.weight has the shape .* expected .160, 64."),
]


@pytest.mark.parametrize(("architecture", "changes", "words"), OTHER_SETTINGS)
def test_other_settings_of_an_architecture_are_refused(
    tmp_path: Path, architecture: Architecture, changes: dict[str, Any], words: str
) -> None:
    """Those that only one architecture has, and those that its reader could overlook."""
    source = write_tiny(tmp_path / "source", architecture)
    (source / "config.json").write_text(json.dumps(tiny_config(architecture) | changes))
    refused(tmp_path, source, words, architecture=architecture)


# architecture | fields to add or replace | words of the refusal
OTHER_FIELDS: list[tuple[Architecture, dict[str, Any], str]] = [
    ("qwen3", {"rope.scaling.type": "yarn"}, "qwen3.rope.scaling.type is set"),
    ("qwen3", {"attention.sliding_window": 64}, "qwen3.attention.sliding_window is set"),
    ("qwen3", {"attention.head_count_kv": [2, 2]}, "head_count_kv: it is list, expected int"),
    ("lfm2", {"attention.sliding_window": 64}, "lfm2.attention.sliding_window is set"),
    ("lfm2", {"attention.causal": False}, "lfm2.attention.causal is false"),
    ("lfm2", {"attention.head_count_kv": 2}, "head_count_kv: it is int, expected list"),
    ("lfm2", {"attention.head_count_kv": [0, 2, 0, 0, 4, 0]}, "irregular"),
    ("lfm2", {"attention.head_count_kv": [0, 2, 0, 0, 2]}, "irregular"),
    ("lfm2", {"attention.head_count_kv": [0] * 6}, "irregular"),
    ("lfm2", {"attention.head_count_kv": [0, -2, 0, 0, -2, 0]}, "kv_heads is"),
    ("lfm2", {"shortconv.l_cache": 0}, "see 0 tokens"),
]


@pytest.mark.parametrize(("architecture", "fields", "words"), OTHER_FIELDS)
def test_other_gguf_settings_are_refused(
    tmp_path: Path, architecture: Architecture, fields: dict[str, Any], words: str
) -> None:
    """The same for GGUF, whose fields have other names."""
    path = tiny_gguf.write(tmp_path / "tiny.gguf", architecture, fields=fields)
    refused(tmp_path, path, words, architecture=architecture)


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"a":' * 5000])
def test_a_config_that_is_no_object_is_refused(tmp_path: Path, content: str) -> None:
    """JSON of another kind, or none."""
    source = write_tiny(tmp_path / "source")
    (source / "config.json").write_text(content)
    refused(tmp_path, source, "config.json")


def test_gguf_of_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    """By name, with what would be accepted."""
    path = tiny_gguf.write(tmp_path / "tiny.gguf", name="mamba")
    refused(tmp_path, path, "architecture is 'mamba', expected llama or gemma3")


def test_gguf_with_a_missing_or_unknown_tensor_is_refused(tmp_path: Path) -> None:
    """The same rules for both formats."""
    refused(tmp_path, tiny_gguf.write(tmp_path / "a.gguf", leave_out="blk.0.ffn_norm.weight"), "lacks tensors")
    extra = {"rope_freqs.weight": np.ones(8, np.float32)}
    refused(tmp_path, tiny_gguf.write(tmp_path / "b.gguf", extra=extra), "unknown tensors: rope_freqs.weight")


def test_missing_weights_are_named(tmp_path: Path) -> None:
    """A path that is not there, and a folder without weights."""
    refused(tmp_path, tmp_path / "nothing", "no such file or directory")
    (tmp_path / "empty").mkdir()
    refused(tmp_path, tmp_path / "empty", r"no \*\.safetensors")


def test_recipe_of_another_architecture_is_refused(tmp_path: Path) -> None:
    """The recipe says what the weights must be."""
    refused(tmp_path, write_tiny(tmp_path / "source", "gemma3"), "it is gemma3, expected llama")


def test_token_that_the_tokenizer_lacks_is_refused(tmp_path: Path) -> None:
    """A recipe for another tokenizer would never stop."""
    tokens = {"bos": "<s>", "add_bos": True, "stop": ["<|im_end|>"]}
    refused(tmp_path, write_tiny(tmp_path / "source"), "no token '<|im_end|>'".replace("|", r"\|"), tokens=tokens)


def test_chat_model_without_a_template_is_refused(tmp_path: Path) -> None:
    """A chat model's package must be able to chat."""
    source = write_tiny(tmp_path / "source")
    (source / "chat_template.jinja").unlink()
    refused(tmp_path, source, "no chat template")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    """One NaN or infinity in a tensor is refused by the tensor's name: quantized it would only look like noise."""
    up = np.ones((128, 64), np.float32)
    up[7, 9] = value
    path = tiny_gguf.write(tmp_path / "tiny.gguf", extra={"blk.0.ffn_up.weight": up})
    refused(tmp_path, path, "blk.0.ffn_up.weight.*not finite")
