"""Quantization: error bounds, layouts, and what the operators compute from them."""

import numpy as np
import pytest

from appliance.forge.quantize import BITS, SCHEMES, Scheme, dequantize, quantize
from appliance.forge.weights import BLOCK

QUANTIZING: list[Scheme] = [s for s in SCHEMES if s not in ("f32", "w8a8", "q4x")]


def matrix(rows: int = 24, columns: int = 96, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


@pytest.mark.parametrize(("scheme", "bound"), [("q8", 0.006), ("q4", 0.08), ("q4s", 0.09)])
def test_error_is_what_the_bits_allow(scheme: Scheme, bound: float) -> None:
    """Relative error of normally distributed weights."""
    w = matrix(200, 320)
    error = np.linalg.norm(dequantize(quantize(w, scheme), scheme) - w) / np.linalg.norm(w)
    assert error < bound


@pytest.mark.parametrize("scheme", QUANTIZING)
def test_layout_is_that_of_the_operators(scheme: Scheme) -> None:
    """Values in (rows, blocks, bytes), scales in (rows, blocks), 4-bit zero points two a byte, the odd one padded."""
    q = quantize(matrix(), scheme)
    assert q.packed.shape == (24, 3, BLOCK * BITS[scheme] // 8)
    assert q.scales.shape == (24, 3)
    assert q.scales.dtype == np.float32
    assert (q.zero_points is None) == (scheme != "q4")
    assert q.zero_points is None or q.zero_points.shape == (24, 2)


@pytest.mark.parametrize("scheme", QUANTIZING)
def test_zeros_and_constants_survive(scheme: Scheme) -> None:
    """A block without spread neither divides by zero nor loses its value."""
    w = np.zeros((3, 64), np.float32)
    w[1] = 0.25
    w[2] = -3.0
    assert np.abs(dequantize(quantize(w, scheme), scheme) - w).max() < 0.02


def test_8_bits_give_back_what_had_8_bits() -> None:
    """Values that lie on an 8-bit grid already (as a Q8_0 source's do) come back exactly."""
    q = np.random.default_rng(0).integers(-127, 128, (8, 64)).astype(np.float32)
    q[:, ::BLOCK] = 127
    w = q * np.float32(2**-7)
    assert (dequantize(quantize(w, "q8"), "q8") == w).all()


def test_ragged_columns_are_the_callers_bug() -> None:
    """Whole blocks only."""
    with pytest.raises(ValueError, match="whole blocks"):
        quantize(np.zeros((2, 33), np.float32), "q8")
