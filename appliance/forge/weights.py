"""One view of published weights, whatever file they come in.

An architecture module sees one set of names, one layout and one set of hyperparameters; the readers (`gguf_file`,
`safetensors_dir`) translate. The canonical form is:

    names    GGUF's: token_embd.weight, blk.3.attn_q.weight, output_norm.weight, ...
    layout   matrices are (outputs, inputs); Q and K have their rotary halves apart (first half, second half of each
             head); kernels of convolutions are (channels, tokens), the token's own last
    norms    the factor to multiply with (Gemma publishes factor - 1 in safetensors)
    values   float32, made on demand and a few rows at a time, so that memory stays small

What this does NOT protect against: weights that are well formed and wrong; only the recipe's hash does.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from appliance.errors import BuildError

Floats = NDArray[np.float32]
BLOCK = 32
"""Weights of a row that share a scale."""


@dataclass(frozen=True)
class Affine4:
    """A matrix whose values are 4-bit numbers in the source: w = scale * q + offset, in blocks of BLOCK columns.

    Attributes:
        q: uint8 in 0..15, shape (rows, blocks, BLOCK).
        scale, offset: float32, shape (rows, blocks).
    """

    q: NDArray[np.uint8]
    scale: Floats
    offset: Floats

    @classmethod
    def stack(cls, parts: "Sequence[Affine4]") -> "Affine4":
        """Set matrices one under the other."""
        return cls(*(np.concatenate([getattr(p, f) for p in parts]) for f in ("q", "scale", "offset")))


_MAX_CONV_KERNEL = 64  # a state is that long, for every sequence
_CHUNK_VALUES = 1 << 20  # 4 MiB of float32; the quantizer needs a few times that


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """What an architecture needs to know beside the tensors.

    Attributes:
        rope_theta_local: base of the rotary embedding in local layers, None where all layers are global.
        sliding_window: tokens that a local layer sees, itself included, None where all layers are global.
        global_layer_every: every n-th layer is global, the others local.
        conv_layers: layers that convolve over the last tokens instead of attending.
        conv_kernel: tokens that such a layer sees, its own included; 0 where there are none.
    """

    architecture: str
    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    context_length: int
    norm_epsilon: float
    rope_theta: float
    rope_theta_local: float | None = None
    sliding_window: int | None = None
    global_layer_every: int = 1
    attention_scale: float | None = None
    conv_layers: frozenset[int] = frozenset()
    conv_kernel: int = 0

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "feed_forward", "heads", "kv_heads", "head_dim", "context_length"):
            if not 0 < getattr(self, name) < 1 << 31:
                raise BuildError(f"cannot build the model: {name} is {getattr(self, name)}, expected a positive number")
        if self.heads % self.kv_heads or self.head_dim % 2:
            raise BuildError(
                f"cannot build the model: {self.heads} heads of {self.head_dim} on {self.kv_heads} key heads, "
                "expected a multiple and an even width"
            )
        for name in ("norm_epsilon", "rope_theta"):
            if not 0 < getattr(self, name) < float("inf"):
                raise BuildError(f"cannot build the model: {name} is {getattr(self, name)}, expected a positive number")
        if self.conv_layers and not 2 <= self.conv_kernel <= _MAX_CONV_KERNEL:
            raise BuildError(
                f"cannot build the model: its convolutions see {self.conv_kernel} tokens, "
                f"expected 2 to {_MAX_CONV_KERNEL}"
            )
        if not self.attention_layers:
            raise BuildError("cannot build the model: none of its layers attends, expected one that does")

    @property
    def attention_layers(self) -> list[int]:
        """The layers that have keys and values."""
        return [i for i in range(self.layers) if i not in self.conv_layers]

    def is_local(self, layer: int) -> bool:
        """Tell whether a layer attends to the sliding window only."""
        return self.sliding_window is not None and (layer + 1) % self.global_layer_every != 0


@dataclass(frozen=True, kw_only=True)
class SourceTokenizer:
    """The tokenizer as the source gives it: a finished `tokenizer.json`, or the vocabulary to make one from.

    Attributes:
        json: a complete tokenizer.json (safetensors sources), else None.
        kind: "gpt2" (byte-level BPE) or "llama" (SentencePiece-style BPE); "" beside a json.
        pre: name of the pre-tokenizer's rules, GGUF's vocabulary.
        tokens, types, scores, merges: GGUF's arrays, parallel by token id (merges: by rank).
    """

    json: bytes | None = None
    kind: str = ""
    pre: str = ""
    tokens: list[str] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    bos: int | None = None
    eos: tuple[int, ...] = ()
    unknown: int | None = None
    add_bos: bool = False
    chat_template: str | None = None


class Weights(ABC):
    """Open weights. Use as a context manager."""

    path: Path
    hyperparameters: Hyperparameters
    tokenizer: SourceTokenizer
    files: tuple[Path, ...]

    @property
    @abstractmethod
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor, by its canonical name."""

    @abstractmethod
    def rows(self, name: str, start: int, stop: int) -> Floats:
        """Read rows `start` to `stop` (along the first axis) as float32, C order.

        Raises:
            BuildError: the bytes cannot be decoded.
        """

    def affine4(self, name: str) -> Affine4 | None:
        """Read a matrix as the 4-bit numbers that it consists of; None where the source holds something else."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Close the files."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def read(self, name: str) -> Floats:
        """Read a whole tensor; for small ones."""
        return self.rows(name, 0, self.shapes[name][0])

    def chunks(self, name: str) -> Iterator[Floats]:
        """Read a matrix piece by piece: float32, shape (rows, columns) with as many rows as 4 MiB hold."""
        rows, columns = self.shapes[name]
        step = max(1, _CHUNK_VALUES // columns)
        for start in range(0, rows, step):
            yield self.rows(name, start, min(rows, start + step))


def open_weights(path: Path) -> Weights:
    """Open a GGUF file or a directory of safetensors.

    Raises:
        BuildError: neither, damaged, or of an architecture that Skerry does not know.
    """
    from appliance.forge import gguf_file, safetensors_dir  # the readers build on this module

    if path.is_dir():
        return safetensors_dir.SafetensorsWeights(path)
    if path.is_file():
        return gguf_file.GgufWeights(path)
    raise BuildError(
        f"cannot read weights from {path}: no such file or directory",
        hint="give a .gguf file, or a folder with config.json, tokenizer.json and *.safetensors",
    )


def require_finite(values: Floats, name: str) -> Floats:
    """Let numbers through.

    Raises:
        BuildError: one is infinite or none: a quantized package would hide it, and its answers would be noise.
    """
    if not np.isfinite(values).all():
        raise BuildError(
            f"cannot use tensor {name}: it has values that are not finite, expected numbers",
            hint="the weights are damaged, or were saved in the middle of a failed training",
        )
    return values


def apart(rows: NDArray[np.float32], heads: int) -> Floats:
    """Reorder the rows of Q or K from neighbouring rotary pairs (ggml's llama) to halves (first half, second half).

    Args:
        rows: shape (heads * head_dim, inputs), pair i of a head in rows 2i and 2i + 1.
    """
    outputs, inputs = rows.shape
    pairs = rows.reshape(heads, outputs // heads // 2, 2, inputs)
    return np.ascontiguousarray(pairs.transpose(0, 2, 1, 3).reshape(outputs, inputs))
