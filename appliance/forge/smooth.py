"""Move what is hard to round from the inputs of matrices into the matrices, where it is easy.

    smoothed = smooth(weights)      # other numbers, the same model

Inputs are rounded to 8 bits with one scale for a whole token (`quantize`, scheme w8a8), and a few channels of them are
often a hundred times as large as the rest, which then keep no digits. But a channel j may be divided by any factor if
the matrix that reads it is multiplied: s_j = max|x_j|^a / max|w_j|^(1 - a). Here |x_j| is taken relative to the largest
channel of its token and |w_j| to the largest weight of its output, as each has a scale of its own. The division costs
nothing, as it goes into what made the channel: a norm, the rows of V, of the up projection, or of a convolution's gate.

How large the channels become is seen from a run of the float32 reference over tokens drawn by lot. No text is needed,
and none can get into a package.

What this does NOT do: round anything, or change what the model computes.

Source: Xiao et al. 2023 (SmoothQuant).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from appliance.files import Progress, no_progress
from appliance.forge import reference
from appliance.forge.weights import Floats, Hyperparameters, Weights

_STRENGTH = 0.6
_TOKENS = 2048
_LEAST = np.float32(1e-5)  # a channel that is always zero has no size of its own
_TINY = np.float32(1e-30)


@dataclass(frozen=True)
class _Place:
    """Channels that matrices read, and what makes them.

    Attributes:
        readers: matrices that read the channels, each in a column.
        maker: tensor whose rows make them.
        first: the first of its rows that does.
        copies, width: channels lie as (any, copies, width), and all copies are made by the same rows.
    """

    readers: tuple[str, ...]
    maker: str
    first: int = 0
    copies: int = 1
    width: int = 1


@dataclass
class _Factors:
    """By the tensor's name: what its rows, and its columns, are multiplied with."""

    rows: dict[str, Floats] = field(default_factory=dict)
    columns: dict[str, Floats] = field(default_factory=dict)


class _Smoothed(Weights):
    """Weights whose rows and columns are multiplied as they are read."""

    def __init__(self, weights: Weights, factors: _Factors) -> None:
        self.path, self.files = weights.path, weights.files
        self.hyperparameters, self.tokenizer = weights.hyperparameters, weights.tokenizer
        self._weights, self._factors = weights, factors

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self._weights.shapes

    def rows(self, name: str, start: int, stop: int) -> Floats:
        values = self._weights.rows(name, start, stop)
        if (rows := self._factors.rows.get(name)) is not None:
            values = (values.T * rows[start:stop]).T
        if (columns := self._factors.columns.get(name)) is not None:
            values = values * columns
        return values

    def close(self) -> None:
        self._weights.close()


def smooth(weights: Weights, progress: Progress = no_progress) -> Weights:
    """Give weights that compute the same from inputs that are easier to round; the same weights give the same.

    Args:
        weights: of any architecture; closed with what is returned.
        progress: told about the run over the tokens.
    """
    places = list(_places(weights.hyperparameters))
    observed = {place.readers[0] for place in places}  # the others of a place read the same
    largest: dict[str, Floats] = {}

    def observe(name: str, x: Floats) -> None:
        if name in observed:
            largest[name] = _relative_maxima(x)

    vocabulary = weights.shapes["token_embd.weight"][0]
    count = min(_TOKENS, weights.hyperparameters.context_length)
    reference.hidden_states(weights, np.random.default_rng(0).integers(0, vocabulary, count), progress, observe)
    factors = _Factors()
    for place in places:
        inputs = largest[place.readers[0]]
        columns = np.max([_relative_maxima(c) for name in place.readers for c in weights.chunks(name)], axis=0)
        shape = (-1, place.copies, place.width)
        inputs, columns = (v.reshape(shape).max(1, keepdims=True) for v in (inputs, columns))
        factor = np.maximum(inputs, _LEAST) ** _STRENGTH / np.maximum(columns, _LEAST) ** (1 - _STRENGTH)
        factor /= np.exp(np.log(factor).mean())
        for name in place.readers:
            factors.columns[name] = np.repeat(factor, place.copies, 1).reshape(-1)
        made = np.ones(weights.shapes[place.maker][0], np.float32)
        made[place.first : place.first + factor.size] /= factor.reshape(-1)
        factors.rows[place.maker] = made
    return _Smoothed(weights, factors)


def _places(h: Hyperparameters) -> Iterator[_Place]:
    """Every input of a matrix in the layers, by canonical names."""
    for i in range(h.layers):
        block = f"blk.{i}."

        def named(*parts: str, block: str = block) -> tuple[str, ...]:
            return tuple(f"{block}{part}.weight" for part in parts)

        mixing_norm, feeding_norm, v, up = named("attn_norm", "ffn_norm", "attn_v", "ffn_up")
        if i in h.conv_layers:
            (taken,) = named("shortconv.in_proj")
            yield _Place((taken,), mixing_norm)
            yield _Place(named("shortconv.out_proj"), taken, first=h.hidden)  # the gate behind the convolution
        else:
            yield _Place(named("attn_q", "attn_k", "attn_v"), mixing_norm)
            yield _Place(named("attn_output"), v, copies=h.heads // h.kv_heads, width=h.head_dim)
        yield _Place(named("ffn_gate", "ffn_up"), feeding_norm)
        yield _Place(named("ffn_down"), up)


def _relative_maxima(values: Floats) -> Floats:
    """How large each column becomes, as a part of the largest value of its row."""
    absolute = np.abs(values)
    maxima: Floats = (absolute / np.maximum(absolute.max(1, keepdims=True), _TINY)).max(0)
    return maxima
