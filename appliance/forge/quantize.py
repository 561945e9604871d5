"""Block quantization of weight matrices, in the layouts that onnxruntime's MatMulNBits and GatherBlockQuantized read.

A matrix of shape (rows, columns) is cut into blocks of `BLOCK` neighbouring columns; each block has one float32 scale
and, in the asymmetric form, one zero point:  w = (q - zero_point) * scale.

    q8   8 bits, symmetric: q in 1..255 around 128
    q4   4 bits, asymmetric: q in 0..15 around a zero point of its own
    q4s  4 bits, symmetric: q in 0..15 around 8
    q4x  4 bits, asymmetric, as the source has them: no value is rounded anew
    w8a8 8 bits, symmetric, one scale for a whole row; inputs are rounded to 8 bits too, one scale for a whole token

**q4x.** Published 4-bit weights are scale * q + offset, with any offset; MatMulNBits knows scale * (q - zero point),
with a whole number. What is left, offset + scale * zero point, is the same for a block of weights: its part of the
product is the sum of the block's inputs, times it. So the sums of all blocks of x are appended to x, and what is left
to the matrix, as more blocks of 4 bits. They are at most half a step, unless all weights of a block are far on one
side of zero, and rounding them to a fifteenth of that costs less than rounding the weights to 8 bits. A matrix with
more than a few such blocks (`keeps_4`), or that the source holds in another form, gets 8 bits.

**w8a8.** An input of 8 bits times a weight of 8 bits is an integer, and so is their sum, whatever the order: the result
of a token does not depend on what else is in the pass. One scale for all weights of an output and one for all inputs of
a token can be multiplied afterwards. What makes one scale do: `smooth`, and where other channels stand out in every
token, a rotation: each block of 32 inputs by a Hadamard matrix, and the weights as well. MatMulIntegerToFloat takes it.

What this does NOT do: look at a text (no calibration data is needed, and none can leak into a package).

Source: the operators' definitions in onnxruntime's contrib operator documentation, domain com.microsoft. The search for
4-bit scales is the usual alternation of rounding and least squares. Rotations: Ashkboos et al. 2024 (QuaRot).
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from appliance.forge.weights import BLOCK, Affine4

Scheme = Literal["f32", "q8", "w8a8", "q4", "q4s", "q4x"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
DESCRIPTIONS: dict[Scheme, str] = {
    "f32": "float32, not quantized",
    "w8a8": "8 bits, symmetric, one float32 scale for an output; inputs 8 bits, one scale for a token, smoothed and "
    "rotated; embedding and head 8 bits, one float32 scale for 32 weights",
    "q8": "8 bits, symmetric, one float32 scale for 32 weights",
    "q4": "4 bits, asymmetric, one float32 scale and one zero point for 32 weights; embedding and head 8 bits",
    "q4s": "4 bits, symmetric, one float32 scale for 32 weights; embedding and head 8 bits",
    "q4x": "the source's own 4 bits with one float32 scale, one zero point and one correction for 32 weights; "
    "all that is not 4 bits in the source 8 bits",
}
BITS: dict[Scheme, int] = {"f32": 32, "w8a8": 8, "q8": 8, "q4": 4, "q4s": 4, "q4x": 4}

_TINY = np.float32(1e-8)  # the scale of a block of zeros: any positive number does, a zero would divide

_FEW = 0.001

MIDDLE = 128
"""What stands for zero where 8 bits have no sign."""

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Quantized:
    """Some rows of a quantized matrix.

    Attributes:
        packed: uint8, shape (rows, blocks, BLOCK * bits / 8); two 4-bit values a byte, the first one in the low half.
        scales: float32, shape (rows, blocks).
        zero_points: uint8, shape (rows, ceil(blocks / 2)), packed as above; None if symmetric.
    """

    packed: Bytes
    scales: Floats
    zero_points: Bytes | None


def quantize(weights: Floats, scheme: Scheme) -> Quantized:
    """Quantize rows of a matrix.

    Args:
        weights: float32, shape (rows, columns); columns a multiple of BLOCK.
        scheme: any but "f32".
    Raises:
        ValueError: the columns are not whole blocks, or the scheme does not quantize.
    """
    rows, columns = weights.shape
    if columns % BLOCK:
        raise ValueError(f"{columns} columns are not whole blocks of {BLOCK}")
    blocks = weights.reshape(rows, columns // BLOCK, BLOCK)
    if scheme == "q8":
        return _symmetric_8(blocks)
    if scheme == "q4":
        return _asymmetric_4(blocks)
    if scheme == "q4s":
        return _symmetric_4(blocks)
    raise ValueError(f"{scheme} does not quantize")


def quantize_outputs(weights: Floats) -> tuple[Bytes, Floats]:
    """Round each row of a matrix to 8 bits with one scale.

    Args:
        weights: float32, shape (rows, columns).
    Returns:
        uint8 in 1..255, shape (rows, columns), and float32, shape (rows,): w = (q - MIDDLE) * scale.
    """
    rounded = _symmetric_8(weights)
    return rounded.packed, rounded.scales


def rotate(values: Floats) -> Floats:
    """Multiply each block of columns by the Hadamard matrix: lengths and products stay, and what stood out is spread.

    Args:
        values: float32, shape (rows, columns); columns a multiple of BLOCK. Twice gives them back.
    """
    turned: Floats = (values.reshape(-1, BLOCK) @ _hadamard(BLOCK)).reshape(values.shape)
    return turned


def _hadamard(size: int) -> Floats:
    """Sylvester's, orthonormal and symmetric; `size` is a power of two."""
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    orthonormal: Floats = (matrix / np.sqrt(size)).astype(np.float32)
    return orthonormal


def keeps_4(source: Affine4) -> bool:
    """Whether `exact_4` is as close as 8 bits: hardly a block's zero point lies outside of what 4 bits can say."""
    zero = -source.offset / np.where(source.scale == 0, _TINY, source.scale)
    return bool(((zero < -0.5) | (zero > 15.5)).mean() <= _FEW)


def exact_4(source: Affine4) -> Quantized:
    """Take the source's 4-bit numbers as they are, and append what is left of its offsets as more columns.

    Returns:
        A matrix of BLOCK * (blocks + extra) columns, extra = ceil(blocks / BLOCK): column i of the appended ones is for
        the sum of the inputs of block i.
    """
    rows, blocks, _ = source.q.shape
    scale = np.where(source.scale == 0, _TINY, source.scale)
    zero = np.clip(np.rint(-source.offset / scale), 0, 15)
    left = source.offset + scale * zero
    extra = -(-blocks // BLOCK)
    padded = np.zeros((rows, extra * BLOCK), np.float32)
    padded[:, :blocks] = left
    rest = _asymmetric_4(padded.reshape(rows, extra, BLOCK))
    assert rest.zero_points is not None  # noqa: S101  it is asymmetric
    zeros = np.concatenate([zero, _unpack(rest.zero_points)[:, :extra]], 1)
    return Quantized(
        np.concatenate([_pack(source.q.astype(np.float32)), rest.packed], 1),
        np.concatenate([scale, rest.scales], 1),
        _pack(zeros),
    )


def dequantize(quantized: Quantized, scheme: Scheme) -> Floats:
    """Give back what the operators will compute with: float32, shape (rows, columns)."""
    rows, blocks, _ = quantized.packed.shape
    if scheme == "q8":
        q = quantized.packed.astype(np.float32)
        zero: Floats = np.float32(MIDDLE) * np.ones((rows, blocks), np.float32)
    else:
        q = _unpack(quantized.packed).astype(np.float32)
        zero = np.full((rows, blocks), 8, np.float32)
        if quantized.zero_points is not None:
            zero = _unpack(quantized.zero_points)[:, :blocks].astype(np.float32)
    return ((q - zero[..., None]) * quantized.scales[..., None]).reshape(rows, -1)


def _symmetric_8(blocks: Floats) -> Quantized:
    scales = np.maximum(np.abs(blocks).max(-1) / np.float32(MIDDLE - 1), _TINY)
    q = np.rint(blocks / scales[..., None]) + np.float32(MIDDLE)
    return Quantized(q.astype(np.uint8), scales, None)


def _symmetric_4(blocks: Floats) -> Quantized:
    """Try several ranges a block and keep the one with the least squared error.

    The extreme value goes to -8, the end of the range that has one step more; hence its sign goes into the scale.
    """
    at = np.abs(blocks).argmax(-1)[..., None]
    extreme = np.take_along_axis(blocks, at, -1)[..., 0]
    zero = np.full(extreme.shape, 8, np.float32)
    best: _Fit | None = None
    for steps in (8.0, 7.5, 7.0, 8.5):
        scales = -extreme / np.float32(steps)
        best = _better(best, _fit(blocks, np.where(scales == 0, _TINY, scales), zero))
    assert best is not None  # noqa: S101 - the loop ran
    return Quantized(_pack(best.q), best.scales, None)


def _asymmetric_4(blocks: Floats) -> Quantized:
    """Try several ranges and both neighbouring zero points a block, and keep the one with the least squared error."""
    low = np.minimum(blocks.min(-1), 0)
    high = np.maximum(blocks.max(-1), 0)
    best: _Fit | None = None
    for shrink in (1.0, 0.95, 0.9):
        scales = np.maximum((high - low) * np.float32(shrink / 15), _TINY)
        ideal = -low * np.float32(shrink) / scales
        for zero in (np.floor(ideal), np.ceil(ideal)):
            best = _better(best, _fit(blocks, scales, np.clip(zero, 0, 15)))
    assert best is not None  # noqa: S101 - the loop ran
    return Quantized(_pack(best.q), best.scales, _pack(best.zero))


@dataclass(frozen=True)
class _Fit:
    """One candidate for all blocks: values, scales, zero points and the squared error of each block."""

    q: Floats
    scales: Floats
    zero: Floats
    error: Floats


def _fit(blocks: Floats, scales: Floats, zero: Floats) -> _Fit:
    """Round, then choose the scale that is best for the rounded values (least squares)."""
    q = np.clip(np.rint(blocks / scales[..., None]) + zero[..., None], 0, 15)
    centred = q - zero[..., None]
    refined = (blocks * centred).sum(-1) / np.maximum((centred * centred).sum(-1), _TINY)
    refined = np.where(refined == 0, _TINY, refined).astype(np.float32)
    error = np.square(blocks - centred * refined[..., None]).sum(-1)
    return _Fit(q, refined, zero, error)


def _better(one: _Fit | None, other: _Fit) -> _Fit:
    if one is None:
        return other
    take = other.error < one.error
    return _Fit(
        np.where(take[..., None], other.q, one.q),
        np.where(take, other.scales, one.scales),
        np.where(take, other.zero, one.zero),
        np.where(take, other.error, one.error),
    )


def _pack(values: Floats) -> Bytes:
    """Two values of 0..15 a byte along the last axis, the first in the low half; an odd tail is filled with 0."""
    q = values.astype(np.uint8)
    if q.shape[-1] % 2:
        q = np.concatenate([q, np.zeros((*q.shape[:-1], 1), np.uint8)], -1)
    return q[..., 0::2] | (q[..., 1::2] << np.uint8(4))


def _unpack(packed: Bytes) -> Bytes:
    both = np.stack([packed & np.uint8(15), packed >> np.uint8(4)], -1)
    return both.reshape(*packed.shape[:-1], -1)
