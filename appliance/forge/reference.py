"""The float32 reference: a plain forward pass over the source's own weights, one tensor in memory at a time.

It is what quantizations are measured against. It shares no code with the graphs and none with onnxruntime, so it is
also a second opinion on the graphs; and it needs a few megabytes where a float32 package would need gigabytes.

What this is NOT for: generating. It has no cache and computes whole texts only.

Source: as for the architectures; see `llama`, `gemma3`, `qwen3` and `lfm2`.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from appliance.files import Progress, no_progress
from appliance.forge.weights import Floats, Weights

Observe = Callable[[str, Floats], None]
"""Is told of each matrix of the layers: its tensor's name, and its inputs, shape (n, inputs)."""

_ATTENTION_ROWS = 256
_GELU_FACTOR = np.float32(np.sqrt(2 / np.pi))


def _no_one(name: str, x: Floats) -> None:
    """Observe nothing."""


def hidden_states(
    weights: Weights, tokens: NDArray[np.int64], progress: Progress = no_progress, observe: Observe = _no_one
) -> Floats:
    """Run every layer over a text.

    Args:
        tokens: shape (n,).
        progress: told about the layers.
        observe: is shown what goes into each matrix.
    Returns:
        float32, shape (n, hidden), after the last norm.
    """
    h = weights.hyperparameters
    x = np.concatenate([weights.rows("token_embd.weight", int(t), int(t) + 1) for t in tokens])
    if h.architecture == "gemma3":
        x *= np.float32(np.sqrt(h.hidden))
    for i in range(h.layers):
        progress("computing the float32 reference", i / h.layers)
        block = f"blk.{i}."
        mix = _convolution if i in h.conv_layers else _attention
        mixed = mix(weights, i, _norm(weights, x, block + "attn_norm"), observe)
        x += _norm(weights, mixed, block + "post_attention_norm")
        y = _norm(weights, x, block + "ffn_norm")
        gate = _linear(weights, y, block + "ffn_gate", observe)
        gate = _gelu(gate) if h.architecture == "gemma3" else _silu(gate)
        y = _linear(weights, gate * _linear(weights, y, block + "ffn_up", observe), block + "ffn_down", observe)
        x += _norm(weights, y, block + "post_ffw_norm")
    return _norm(weights, x, "output_norm")


def logits(weights: Weights, hidden: Floats, rows: int) -> Iterator[Floats]:
    """Multiply with the head: float32, shape (up to `rows`, vocabulary), as often as `hidden` has that many rows."""
    name = "output" if "output.weight" in weights.shapes else "token_embd"
    for start in range(0, len(hidden), rows):
        yield _linear(weights, hidden[start : start + rows], name)


def _linear(weights: Weights, x: Floats, name: str, observe: Observe = _no_one) -> Floats:
    name += ".weight"
    observe(name, x)
    y = np.empty((len(x), weights.shapes[name][0]), np.float32)
    at = 0
    for chunk in weights.chunks(name):
        np.matmul(x, chunk.T, out=y[:, at : at + len(chunk)])
        at += len(chunk)
    return y


def _norm(weights: Weights, x: Floats, name: str) -> Floats:
    """RMS norm over the last axis; an architecture that lacks this norm leaves the values alone."""
    name += ".weight"
    if name not in weights.shapes:
        return x
    mean_square = np.square(x).mean(-1, keepdims=True)
    factor = 1 / np.sqrt(mean_square + np.float32(weights.hyperparameters.norm_epsilon))
    normed: Floats = x * factor * weights.read(name)
    return normed


def _attention(weights: Weights, layer: int, x: Floats, observe: Observe) -> Floats:
    h, block, n = weights.hyperparameters, f"blk.{layer}.", len(x)
    local = h.is_local(layer)
    theta = h.rope_theta_local if local and h.rope_theta_local is not None else h.rope_theta
    q = _linear(weights, x, block + "attn_q", observe).reshape(n, h.heads, h.head_dim)
    k = _linear(weights, x, block + "attn_k", observe).reshape(n, h.kv_heads, h.head_dim)
    v = _linear(weights, x, block + "attn_v", observe).reshape(n, h.kv_heads, h.head_dim)
    q = _rotate(_norm(weights, q, block + "attn_q_norm"), theta)
    k = _rotate(_norm(weights, k, block + "attn_k_norm"), theta)
    scale = np.float32(h.attention_scale or h.head_dim**-0.5)
    attended = np.empty_like(q)
    for start in range(0, n, _ATTENTION_ROWS):
        stop = min(start + _ATTENTION_ROWS, n)
        first = max(0, start + 1 - h.sliding_window) if local and h.sliding_window is not None else 0
        distance = np.arange(start, stop)[:, None] - np.arange(first, stop)[None, :]
        unseen = distance < 0
        if local and h.sliding_window is not None:
            unseen |= distance >= h.sliding_window
        mask = np.where(unseen, np.float32(-np.inf), np.float32(0))
        for head in range(h.heads):
            group = head * h.kv_heads // h.heads
            scores = (q[start:stop, head] * scale) @ k[first:stop, group].T
            scores += mask
            scores -= scores.max(-1, keepdims=True)
            np.exp(scores, out=scores)
            attended[start:stop, head] = scores @ v[first:stop, group] / scores.sum(-1, keepdims=True)
    return _linear(weights, attended.reshape(n, -1), block + "attn_output", observe)


def _convolution(weights: Weights, layer: int, x: Floats, observe: Observe) -> Floats:
    """Gated: each channel is a sum over its last tokens, its own included; before the first one there is nothing."""
    h, block, n = weights.hyperparameters, f"blk.{layer}.shortconv.", len(x)
    before, after, values = np.split(_linear(weights, x, block + "in_proj", observe), 3, -1)
    kernel = weights.read(block + "conv.weight")
    padded = np.concatenate([np.zeros((h.conv_kernel - 1, h.hidden), np.float32), before * values])
    summed = sum(padded[k : k + n] * kernel[:, k] for k in range(h.conv_kernel))
    return _linear(weights, after * summed, block + "out_proj", observe)


def _rotate(x: Floats, theta: float) -> Floats:
    """Rotary embedding of (n, heads, head_dim), first half against second half, positions from 0."""
    half = x.shape[-1] // 2
    angle = np.arange(len(x))[:, None] * theta ** (-np.arange(half, dtype=np.float64) / half)
    cos, sin = np.cos(angle).astype(np.float32)[:, None], np.sin(angle).astype(np.float32)[:, None]
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


def _silu(x: Floats) -> Floats:
    """x * sigmoid(x), by a function that large values do not overflow."""
    activated: Floats = x * np.float32(0.5) * (1 + np.tanh(x * np.float32(0.5)))
    return activated


def _gelu(x: Floats) -> Floats:
    """The tanh form of GELU."""
    activated: Floats = np.float32(0.5) * x * (1 + np.tanh(_GELU_FACTOR * (x + np.float32(0.044715) * x * x * x)))
    return activated
