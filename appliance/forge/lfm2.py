"""The LFM2 architecture (dense): most layers are short gated convolutions, a few attend; SwiGLU behind each.

A convolution layer makes two gates and values of every token, B, C and x, and gives C * conv(B * x). The kernel goes
over each channel by itself and over the last few tokens only (three in the published models). An attention layer is
Qwen3's: grouped heads with an RMS norm on every head of Q and K.

Source: LFM2 technical report (Liquid AI 2025); the transformers library's Lfm2; llama.cpp's names for the tensors.
"""

from appliance.forge.layers import Layers
from appliance.forge.weights import Hyperparameters

Shape = tuple[int, ...]


def tensor_shapes(h: Hyperparameters, vocabulary: int) -> dict[str, Shape]:
    """Name and shape of every tensor that must be there."""
    shapes: dict[str, Shape] = {"token_embd.weight": (vocabulary, h.hidden), "output_norm.weight": (h.hidden,)}
    for i in range(h.layers):
        shapes |= _convolution_shapes(h, i) if i in h.conv_layers else _attention_shapes(h, i)
        shapes |= {
            f"blk.{i}.attn_norm.weight": (h.hidden,),  # before a convolution too
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
        if i in h.conv_layers:
            convolved = layers.short_convolution(i, layers.linear(x, block + "shortconv.in_proj"))
            mixed = layers.linear(convolved, block + "shortconv.out_proj")
        else:
            mixed = layers.linear(layers.normed_attention(i, x), block + "attn_output")
        x, residual = layers.add_norm(mixed, residual, block + "ffn_norm")
        following = f"blk.{i + 1}.attn_norm" if i + 1 < h.layers else "output_norm"
        x, residual = layers.add_norm(layers.swiglu(x, block), residual, following)
    layers.head(x)


def _convolution_shapes(h: Hyperparameters, layer: int) -> dict[str, Shape]:
    return {
        f"blk.{layer}.shortconv.in_proj.weight": (3 * h.hidden, h.hidden),
        f"blk.{layer}.shortconv.conv.weight": (h.hidden, h.conv_kernel),
        f"blk.{layer}.shortconv.out_proj.weight": (h.hidden, h.hidden),
    }


def _attention_shapes(h: Hyperparameters, layer: int) -> dict[str, Shape]:
    q, kv = h.heads * h.head_dim, h.kv_heads * h.head_dim
    return {
        f"blk.{layer}.attn_q.weight": (q, h.hidden),
        f"blk.{layer}.attn_k.weight": (kv, h.hidden),
        f"blk.{layer}.attn_v.weight": (kv, h.hidden),
        f"blk.{layer}.attn_q_norm.weight": (h.head_dim,),
        f"blk.{layer}.attn_k_norm.weight": (h.head_dim,),
        f"blk.{layer}.attn_output.weight": (h.hidden, q),
    }
