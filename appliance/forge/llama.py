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
    q, kv = h.heads * h.head_dim, h.kv_heads * h.head_dim
    shapes: dict[str, Shape] = {"token_embd.weight": (vocabulary, h.hidden), "output_norm.weight": (h.hidden,)}
    for i in range(h.layers):
        shapes |= {
            f"blk.{i}.attn_norm.weight": (h.hidden,),
            f"blk.{i}.attn_q.weight": (q, h.hidden),
            f"blk.{i}.attn_k.weight": (kv, h.hidden),
            f"blk.{i}.attn_v.weight": (kv, h.hidden),
            f"blk.{i}.attn_output.weight": (h.hidden, q),
            f"blk.{i}.ffn_norm.weight": (h.hidden,),
            f"blk.{i}.ffn_gate.weight": (h.feed_forward, h.hidden),
            f"blk.{i}.ffn_up.weight": (h.feed_forward, h.hidden),
            f"blk.{i}.ffn_down.weight": (h.hidden, h.feed_forward),
        }
    return shapes


def optional_shapes(h: Hyperparameters, vocabulary: int) -> dict[str, Shape]:
    """Tensors that may be missing: a head of its own, where it is not tied to the embedding."""
    return {"output.weight": (vocabulary, h.hidden)}


def write(layers: Layers) -> None:
    """Write the whole graph."""
    h = layers.hyperparameters
    residual = layers.embedding()
    x = layers.norm(residual, "blk.0.attn_norm")
    for i in range(h.layers):
        block = f"blk.{i}."
        qkv = layers.linear(x, block + "attn_q", block + "attn_k", block + "attn_v")
        attended = layers.attention(i, qkv)
        x, residual = layers.add_norm(layers.linear(attended, block + "attn_output"), residual, block + "ffn_norm")
        following = f"blk.{i + 1}.attn_norm" if i + 1 < h.layers else "output_norm"
        x, residual = layers.add_norm(layers.swiglu(x, block), residual, following)
    layers.head(x)
