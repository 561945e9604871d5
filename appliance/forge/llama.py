"""The llama architecture: RMS norm, rotary attention with grouped heads, SwiGLU; SmolLM2 and its relatives.

The tensors that it knows, in canonical names (see `weights`), are all in the two tables of shapes; a source with
others, or without one of these, is refused, because a graph that ignores a bias or a norm still answers, only worse.

Source: Touvron et al. 2023 (LLaMA), Shazeer 2020 (GLU variants), Su et al. 2021 (RoPE); Ainslie et al. 2023 (GQA).
"""

from appliance.forge.layers import Layers
from appliance.forge.weights import Hyperparameters

Shape = tuple[int, ...]


def tensor_shapes(h: Hyperparameters, vocabulary: int) -> dict[str, Shape]:
    """Name and shape of every tensor that must be there."""
    shapes: dict[str, Shape] = {"token_embd.weight": (vocabulary, h.hidden), "output_norm.weight": (h.hidden,)}
    for i in range(h.layers):
        shapes |= attention_shapes(h, i) | feed_forward_shapes(h, i)
    return shapes


def attention_shapes(h: Hyperparameters, layer: int) -> dict[str, Shape]:
    """Of one layer: the projections."""
    q, kv = h.heads * h.head_dim, h.kv_heads * h.head_dim
    return {
        f"blk.{layer}.attn_q.weight": (q, h.hidden),
        f"blk.{layer}.attn_k.weight": (kv, h.hidden),
        f"blk.{layer}.attn_v.weight": (kv, h.hidden),
        f"blk.{layer}.attn_output.weight": (h.hidden, q),
    }


def feed_forward_shapes(h: Hyperparameters, layer: int) -> dict[str, Shape]:
    """Of one layer: both norms and the gated network."""
    return {
        f"blk.{layer}.attn_norm.weight": (h.hidden,),
        f"blk.{layer}.ffn_norm.weight": (h.hidden,),
        f"blk.{layer}.ffn_gate.weight": (h.feed_forward, h.hidden),
        f"blk.{layer}.ffn_up.weight": (h.feed_forward, h.hidden),
        f"blk.{layer}.ffn_down.weight": (h.hidden, h.feed_forward),
    }


def optional_shapes(h: Hyperparameters, vocabulary: int) -> dict[str, Shape]:
    """Tensors that may be missing: a head of its own, where it is not tied to the embedding."""
    return {"output.weight": (vocabulary, h.hidden)}


def write(layers: Layers) -> None:
    """Write the whole graph."""

    def attend(i: int, x: str) -> str:
        block = f"blk.{i}."
        qkv = layers.linear(x, block + "attn_q", block + "attn_k", block + "attn_v")
        return layers.linear(layers.attention(i, qkv), block + "attn_output")

    layers.stack(attend)
