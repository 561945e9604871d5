"""The Qwen3 architecture (dense): llama's, with an RMS norm on every head of Q and K.

A head's width is a setting of its own: all together may be wider than the residual stream. Qwen3 0.6B has 16 heads of
128 and a stream of 1,024.

Source: Qwen3 technical report (2025); Dehghani et al. 2023 (norms on Q and K); the transformers library's Qwen3.
"""

from appliance.forge import llama
from appliance.forge.layers import Layers
from appliance.forge.weights import Hyperparameters

Shape = tuple[int, ...]
optional_shapes = llama.optional_shapes


def tensor_shapes(h: Hyperparameters, vocabulary: int) -> dict[str, Shape]:
    """Name and shape of every tensor that must be there: those of llama, and the norms of Q and K."""
    shapes = llama.tensor_shapes(h, vocabulary)
    for i in range(h.layers):
        shapes |= head_norm_shapes(h, i)
    return shapes


def head_norm_shapes(h: Hyperparameters, layer: int) -> dict[str, Shape]:
    """Of one layer: the norms on every head of Q and K."""
    return {f"blk.{layer}.attn_q_norm.weight": (h.head_dim,), f"blk.{layer}.attn_k_norm.weight": (h.head_dim,)}


def write(layers: Layers) -> None:
    """Write the whole graph."""
    layers.stack(lambda i, x: layers.linear(layers.normed_attention(i, x), f"blk.{i}.attn_output"))
