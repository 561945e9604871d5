"""The Qwen3 architecture (dense): llama's, with an RMS norm on every head of Q and K.

A head's width is a setting of its own: all together may be wider than the residual stream. Qwen3 0.6B has 16 heads of
128 and a stream of 1,024.

Source: Qwen3 technical report (2025); Dehghani et al. 2023 (norms on Q and K); the transformers library's Qwen3.
"""

from appliance.forge import llama
from appliance.forge.layers import Layers
from appliance.forge.weights import Hyperparameters

Shape = tuple[int, ...]


def tensor_shapes(h: Hyperparameters, vocabulary: int) -> dict[str, Shape]:
    """Name and shape of every tensor that must be there: those of llama, and the norms of Q and K."""
    shapes = llama.tensor_shapes(h, vocabulary)
    for i in range(h.layers):
        shapes |= {f"blk.{i}.attn_q_norm.weight": (h.head_dim,), f"blk.{i}.attn_k_norm.weight": (h.head_dim,)}
    return shapes


def optional_shapes(h: Hyperparameters, vocabulary: int) -> dict[str, Shape]:
    """Tensors that may be missing: a head of its own, where it is not tied to the embedding."""
    return llama.optional_shapes(h, vocabulary)


def write(layers: Layers) -> None:
    """Write the whole graph."""
    h = layers.hyperparameters
    residual = layers.embedding()
    x = layers.norm(residual, "blk.0.attn_norm")
    for i in range(h.layers):
        block = f"blk.{i}."
        attended = layers.linear(layers.normed_attention(i, x), block + "attn_output")
        x, residual = layers.add_norm(attended, residual, block + "ffn_norm")
        following = f"blk.{i + 1}.attn_norm" if i + 1 < h.layers else "output_norm"
        x, residual = layers.add_norm(layers.swiglu(x, block), residual, following)
    layers.head(x)
