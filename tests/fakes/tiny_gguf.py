"""Small GGUF files, written with the `gguf` package, of the tiny models of `built_models`."""

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter
from gguf.quants import quantize

from appliance.forge import build as forge
from tests.fakes.built_models import (
    TINY_TEMPLATE,
    TINY_VOCABULARY,
    Architecture,
    BuiltModel,
    sign,
    tiny_config,
    tiny_recipe,
    tiny_tensors,
    tiny_tokenizer,
)

_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    # LFM2's own words
    "operator_norm": "attn_norm",
    "self_attn.out_proj": "attn_output",
    "self_attn.q_layernorm": "attn_q_norm",
    "self_attn.k_layernorm": "attn_k_norm",
    "conv.in_proj": "shortconv.in_proj",
    "conv.conv": "shortconv.conv",
    "conv.out_proj": "shortconv.out_proj",
    "ffn_norm": "ffn_norm",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w3": "ffn_up",
    "feed_forward.w2": "ffn_down",
}
_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "model.embedding_norm.weight": "token_embd_norm.weight",
    "lm_head.weight": "output.weight",
}


def built(folder: Path, architecture: Architecture, quantization: str) -> BuiltModel:
    """A tiny model whose source holds 4-bit numbers."""
    folder.mkdir()
    source = write(folder / "tiny.gguf", architecture, kind=GGMLQuantizationType.Q4_1)
    recipe = tiny_recipe(folder, architecture)
    forge.build(recipe, folder / "models", weights=source, quantization=quantization, evaluate=False)
    name = f"{recipe.name}-{quantization}"
    return BuiltModel(folder, name, sign(folder, name, folder / "private.pem"))


def write(
    path: Path,
    architecture: Architecture = "llama",
    *,
    leave_out: str = "",
    extra: dict[str, np.ndarray] | None = None,
    name: str | None = None,
    kind: GGMLQuantizationType | None = None,
    raw: dict[str, tuple[np.ndarray, GGMLQuantizationType]] | None = None,
    fields: dict[str, Any] | None = None,
) -> Path:
    """Write a complete GGUF file.

    Args:
        path: of the file.
        architecture: of the tiny model.
        leave_out: names a tensor to forget.
        extra: tensors to add or replace.
        name: of the architecture, as the file has it.
        kind: of the layers' matrices, but for kernels of convolutions; none: float32.
        raw: tensors to add as bytes, uint8 of shape (rows, bytes), with their kind.
        fields: settings of the architecture to add or replace, without its name before them.
    """
    c = tiny_config(architecture)
    w = GGUFWriter(path, name or architecture)
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    w.add_block_count(c["num_hidden_layers"])
    w.add_head_count(c["num_attention_heads"])
    w.add_rope_freq_base(c["rope_theta"])
    if architecture == "lfm2":
        w.add_feed_forward_length(128)
        w.add_head_count_kv([c["num_key_value_heads"] * (i in c["full_attn_idxs"]) for i in range(6)])
        w.add_layer_norm_rms_eps(c["norm_eps"])
        w.add_shortconv_l_cache(c["conv_L_cache"])
    else:
        w.add_feed_forward_length(c["intermediate_size"])
        w.add_head_count_kv(c["num_key_value_heads"])
        w.add_key_length(c["head_dim"])
        w.add_value_length(c["head_dim"])
        w.add_layer_norm_rms_eps(c["rms_norm_eps"])
    if architecture == "gemma3":
        w.add_sliding_window(c["sliding_window"])
    for key, value in (fields or {}).items():
        w.kv_data[0].pop(full := f"{architecture}.{key}", None)
        kinds = {bool: GGUFValueType.BOOL, str: GGUFValueType.STRING, list: GGUFValueType.ARRAY}
        w.add_key_value(full, value, kinds.get(type(value), GGUFValueType.INT32))
    vocabulary = tiny_tokenizer().get_vocab(with_added_tokens=True)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("smollm")
    # GGUF has no empty lists, so there is one merge and its token.
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    w.add_token_list([*tokens[:-1], "ab"])
    w.add_token_types([1] * 256 + [3, 3] + [4] * (TINY_VOCABULARY - 259) + [1])
    w.add_token_merges(["a b"])
    w.add_bos_token_id(256)
    w.add_eos_token_id(257)
    w.add_chat_template(TINY_TEMPLATE)
    tensors = dict(_translated(architecture)) | (extra or {})
    for tensor, value in tensors.items():
        if tensor == leave_out:
            continue
        if kind is not None and tensor.startswith("blk.") and value.ndim == 2 and "conv.conv" not in tensor:
            w.add_tensor(tensor, quantize(value, kind), raw_dtype=kind)
        else:
            w.add_tensor(tensor, value)
    for tensor, (packed, of) in (raw or {}).items():
        w.add_tensor(tensor, packed, raw_dtype=of)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


def _translated(architecture: Architecture) -> dict[str, np.ndarray]:
    result = {}
    for published, value in tiny_tensors(architecture).items():
        result[_name(published, architecture)] = _value(published, value, architecture)
    return result


def _name(published: str, architecture: Architecture) -> str:
    if published in _NAMES:
        return _NAMES[published]
    layer, _, rest = published.removeprefix("model.layers.").partition(".")
    after = "post_attention_norm" if architecture == "gemma3" else "ffn_norm"
    names = _BLOCK | {"post_attention_layernorm": after}
    return f"blk.{layer}.{names[rest.removesuffix('.weight')]}.weight"


def _value(published: str, value: np.ndarray, architecture: Architecture) -> np.ndarray:
    if architecture == "gemma3":
        return value + 1 if "norm" in published else value
    if ".conv.conv." in published:
        return np.ascontiguousarray(value[:, 0])
    if architecture == "llama" and (".q_proj." in published or ".k_proj." in published):
        # llama.cpp's converter puts the two values of a rotary pair side by side.
        head_dim = tiny_config(architecture)["head_dim"]
        halves = value.reshape(-1, 2, head_dim // 2, value.shape[1])
        return np.ascontiguousarray(halves.transpose(0, 2, 1, 3).reshape(value.shape))
    return value
