"""The LFM2 architecture (dense): most layers are short gated convolutions, a few attend; SwiGLU behind each.

A convolution layer makes two gates and values of every token, B, C and x, and gives C * conv(B * x). The kernel goes
over each channel by itself and over the last few tokens only (three in the published models). An attention layer is
Qwen3's: grouped heads with an RMS norm on every head of Q and K.

Source: LFM2 technical report (Liquid AI 2025); the transformers library's Lfm2; llama.cpp's names for the tensors.
"""

from appliance.forge import llama, qwen3
from appliance.forge.layers import Layers
from appliance.forge.weights import Hyperparameters

Shape = tuple[int, ...]
optional_shapes = llama.optional_shapes


def tensor_shapes(h: Hyperparameters, vocabulary: int) -> dict[str, Shape]:
    """Name and shape of every tensor that must be there; the norm before a convolution has an attention's name."""
    shapes: dict[str, Shape] = {"token_embd.weight": (vocabulary, h.hidden), "output_norm.weight": (h.hidden,)}
    for i in range(h.layers):
        attending = llama.attention_shapes(h, i) | qwen3.head_norm_shapes(h, i)
        shapes |= _convolution_shapes(h, i) if i in h.conv_layers else attending
        shapes |= llama.feed_forward_shapes(h, i)
    return shapes


def write(layers: Layers) -> None:
    """Write the whole graph."""

    def mix(i: int, x: str) -> str:
        block = f"blk.{i}."
        if i in layers.hyperparameters.conv_layers:
            convolved = layers.short_convolution(i, layers.linear(x, block + "shortconv.in_proj"))
            return layers.linear(convolved, block + "shortconv.out_proj")
        return layers.linear(layers.normed_attention(i, x), block + "attn_output")

    layers.stack(mix)


def _convolution_shapes(h: Hyperparameters, layer: int) -> dict[str, Shape]:
    return {
        f"blk.{layer}.shortconv.in_proj.weight": (3 * h.hidden, h.hidden),
        f"blk.{layer}.shortconv.conv.weight": (h.hidden, h.conv_kernel),
        f"blk.{layer}.shortconv.out_proj.weight": (h.hidden, h.hidden),
    }
