"""The Gemma 3 architecture (text): four norms a layer, norms on Q and K, GeGLU, five local layers to a global one.

Local layers see a sliding window. They keep a full cache all the same, so that rewinding stays exact; the window only
limits what they attend to.

Source: Gemma 3 technical report (2025), and the configuration that Google publishes with the weights.
"""

import numpy as np

from appliance.forge import llama, qwen3
from appliance.forge.graph import MS
from appliance.forge.layers import Layers
from appliance.forge.weights import Hyperparameters

Shape = tuple[int, ...]


def tensor_shapes(h: Hyperparameters, vocabulary: int) -> dict[str, Shape]:
    """Name and shape of every tensor that must be there."""
    shapes: dict[str, Shape] = {"token_embd.weight": (vocabulary, h.hidden), "output_norm.weight": (h.hidden,)}
    for i in range(h.layers):
        shapes |= llama.attention_shapes(h, i) | qwen3.head_norm_shapes(h, i) | llama.feed_forward_shapes(h, i)
        shapes |= {f"blk.{i}.post_attention_norm.weight": (h.hidden,), f"blk.{i}.post_ffw_norm.weight": (h.hidden,)}
    return shapes


def optional_shapes(h: Hyperparameters, vocabulary: int) -> dict[str, Shape]:
    """Tensors that may be missing: none."""
    return {}


def write(layers: Layers) -> None:
    """Write the whole graph."""
    h, g = layers.hyperparameters, layers.graph
    scale = g.constant("embedding.scale", np.array(np.sqrt(h.hidden), np.float32))
    residual = g.node("Mul", [layers.embedding(), scale])
    x = layers.norm(residual, "blk.0.attn_norm")
    for i in range(h.layers):
        block = f"blk.{i}."
        attended = layers.linear(layers.normed_attention(i, x), block + "attn_output")
        attended = layers.norm(attended, block + "post_attention_norm")
        x, residual = layers.add_norm(attended, residual, block + "ffn_norm")
        gate, up = layers.gate_and_up(x, block)
        product = g.node("Mul", [g.node("FastGelu", [gate], domain=MS), up])  # the tanh form, as in training
        down = layers.linear(product, block + "ffn_down", uneven=True)
        out = layers.norm(down, block + "post_ffw_norm")
        following = f"blk.{i + 1}.attn_norm" if i + 1 < h.layers else "output_norm"
        x, residual = layers.add_norm(out, residual, following)
    layers.head(x)
