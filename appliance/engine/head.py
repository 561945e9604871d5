"""Logits of a few tokens: the rows of the head that a form allows, and no other.

The head is the largest matrix of a small model, and where a form leaves a choice among a few dozen tokens nearly all of
it is read for nothing. The graph gives the hidden state before the head (see `forge.layers`), and this module
multiplies it by the rows that are wanted, read from the same verified mapping:

    head.logits(hidden, ids)        # float32, shape (ids,)

Activations are not rounded here, as the graph's own head rounds them: with 8 bits the logits differ by about that
rounding, and are the closer ones. The same hidden state and tokens always give the same logits, whatever else is
computed in the same pass.

Source: the layouts of onnxruntime's MatMulNBits (8 bits, symmetric, blocks of 32).
"""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from appliance.decoding.sampling import Logits

_MIDDLE = np.float32(128)
_SHARE = 48
"""One row in so many is the most that is cheaper to take out than the whole head to compute."""

_TOGETHER = 256
"""Rows that are unpacked at once: as floats they stay in the processor's cache."""


class Head:
    """The matrix between the last hidden state and the logits, as it lies in the file.

    Args:
        values: uint8, shape (vocabulary, blocks, block size); or float32, shape (vocabulary, hidden).
        scales: float32, shape (vocabulary, blocks); None if the values are float32.
    """

    def __init__(self, values: NDArray[Any], scales: NDArray[np.float32] | None) -> None:
        self._values, self._scales = values, scales
        self.most_ids = len(values) // _SHARE
        """Up to how many tokens it pays to ask for."""

    @classmethod
    def of(cls, tensors: Mapping[str, NDArray[Any]]) -> Self | None:
        """Find it among a graph's tensors, under the names that `forge.layers` gives; None: it is not among them."""
        for name in ("output.weight", "token_embd.weight"):
            if f"{name}.q" in tensors and tensors[f"{name}.q"].ndim == 3:  # in blocks, not a table of rows
                scales = tensors.get(f"{name}.scale")  # what is very small stands in the graph itself
                return None if scales is None else cls(tensors[f"{name}.q"], scales.reshape(len(scales), -1))
            if name in tensors:
                return cls(tensors[name], None)
        return None

    def logits(self, hidden: NDArray[np.float32], ids: NDArray[np.intp]) -> Logits:
        """Multiply a hidden state by some rows.

        Args:
            hidden: float32, shape (hidden,).
            ids: tokens, shape (n,).
        Returns:
            float32, shape (n,).
        """
        parts = [self._part(hidden, ids[at : at + _TOGETHER]) for at in range(0, len(ids), _TOGETHER)]
        return np.concatenate(parts) if parts else np.empty(0, np.float32)

    def _part(self, hidden: NDArray[np.float32], ids: NDArray[np.intp]) -> Logits:
        if self._scales is None:
            return np.asarray(self._values[ids] @ hidden)
        rows = self._values[ids].astype(np.float32)
        rows -= _MIDDLE
        # The sum of each block first, then its scale: one multiplication a block instead of one a weight.
        sums = np.matmul(rows.transpose(1, 0, 2), hidden.reshape(rows.shape[1], rows.shape[2], 1))[..., 0]
        return np.asarray((sums * self._scales[ids].T).sum(0))
