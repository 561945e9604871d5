"""Reader of GGUF files (version 3, little endian), the format of llama.cpp.

The header is parsed here, because it comes from outside: every count and length is checked against the size of the file
before anything is read or allocated. Only the arithmetic of the block formats is taken from the `gguf` package.

What this does NOT do: big-endian files, versions 1 and 2, split files.

Source: GGUF specification in the ggml repository (docs/gguf.md).
"""

import mmap
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from appliance.errors import BuildError
from appliance.forge.weights import Affine4, Floats, Hyperparameters, SourceTokenizer, Weights, apart, require_finite

_MAGIC, _VERSION = b"GGUF", 3
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MAX_TENSORS, _MAX_FIELDS, _MAX_DIMENSIONS = 100_000, 10_000, 4
_ARCHITECTURES = ("llama", "gemma3", "qwen3", "lfm2")
_NAMES = {"lfm2": {"token_embd_norm.weight": "output_norm.weight"}}  # after the last layer in spite of its name
_HINT = "the file is damaged or not complete: fetch it again"

T = TypeVar("T")


class _Cursor:
    """Reads the header front to back and never past the end."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data = data
        self._path = path
        self.at = 0

    def fail(self, why: str) -> BuildError:
        return BuildError(f"cannot read {self._path.name}: {why}", hint=_HINT)

    def take(self, size: int) -> bytes:
        if size > len(self._data) - self.at:
            raise self.fail(f"it ends after {len(self._data)} bytes, in the middle of its header")
        piece = self._data[self.at : self.at + size]
        self.at += size
        return piece

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def count(self, limit: int, what: str) -> int:
        n: int = self.number("<Q")
        if n > limit:
            raise self.fail(f"its header claims {n} {what}, expected at most {limit}")
        return n

    def string(self) -> str:
        raw = self.take(self.number("<Q"))
        try:
            return raw.decode()
        except UnicodeDecodeError as e:
            raise self.fail("a string in its header is not UTF-8") from e

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array()
        raise self.fail(f"unknown kind of value {kind} in its header")

    def array(self) -> list[Any]:
        kind = self.number("<I")
        # Each item needs a byte or more, so the file's own size bounds the count.
        n = self.count(len(self._data), "items")
        if kind == _STRING:
            return [self.string() for _ in range(n)]
        if kind not in _SCALARS:
            raise self.fail(f"unknown kind of array {kind} in its header")
        form = _SCALARS[kind]
        raw = self.take(n * struct.calcsize(form))
        return list(struct.unpack(f"<{n}{form[1]}", raw))


class _Tensor:
    """Where a tensor lies and in which block format."""

    def __init__(self, kind: GGMLQuantizationType, shape: tuple[int, ...], offset: int) -> None:
        self.kind = kind
        self.shape = shape
        self.offset = offset
        values, size = GGML_QUANT_SIZES[kind]
        self.row_bytes = shape[-1] // values * size
        self.bytes = self.row_bytes * int(np.prod(shape[:-1], dtype=np.int64))


class GgufWeights(Weights):
    """The weights, hyperparameters and tokenizer of one GGUF file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = (path,)
        try:
            with path.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
                self._fields, self._tensors = _parse(data, path)
        except (OSError, ValueError) as e:
            raise BuildError(f"cannot read {path.name}: {e}", hint=_HINT) from e
        self.hyperparameters = self._hyperparameters()
        for found, name in _NAMES.get(self.hyperparameters.architecture, {}).items():
            if found in self._tensors and name not in self._tensors:
                self._tensors[name] = self._tensors.pop(found)
        self.tokenizer = self._tokenizer()
        # Tensors are read and not mapped: mapped pages stay and count as memory of the process.
        self._file = path.open("rb", buffering=0)
        self._shapes = {name: t.shape for name, t in self._tensors.items()}

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor, by its canonical name."""
        return self._shapes

    def rows(self, name: str, start: int, stop: int) -> Floats:
        """Read some rows as float32."""
        t = self._tensors[name]
        heads = self._interleaved_heads(name)
        if heads and (start, stop) != (0, t.shape[0]):
            return self.rows(name, 0, t.shape[0])[start:stop]
        if len(t.shape) == 1:  # vectors are one row in the file
            values = self._decode(t, 0, t.row_bytes).reshape(-1)[start:stop]
            return require_finite(np.ascontiguousarray(values), name)
        values = self._decode(t, start * t.row_bytes, stop * t.row_bytes).reshape(stop - start, *t.shape[1:])
        require_finite(values, name)
        return apart(values, heads) if heads else values

    def affine4(self, name: str) -> Affine4 | None:
        """Read a matrix of Q4_0, Q4_1 or Q4_K as its 4-bit numbers."""
        t = self._tensors[name]
        if t.kind not in _AFFINE or len(t.shape) != 2:
            return None
        raw = np.frombuffer(self._read(t, 0, t.bytes), np.uint8).reshape(t.shape[0], -1)
        found = _AFFINE[t.kind](raw)
        require_finite(found.scale, name)
        require_finite(found.offset, name)
        heads = self._interleaved_heads(name)
        if not heads:
            return found
        order = apart(np.arange(t.shape[0], dtype=np.float32)[:, None], heads)[:, 0].astype(np.int64)
        return Affine4(found.q[order], found.scale[order], found.offset[order])

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read(self, t: _Tensor, start: int, stop: int) -> bytes:
        data = os.pread(self._file.fileno(), stop - start, t.offset + start)
        if len(data) != stop - start:
            raise BuildError(f"cannot read {self.path.name}: it became shorter while it was read", hint=_HINT)
        return data

    def _decode(self, t: _Tensor, start: int, stop: int) -> Floats:
        raw = np.frombuffer(self._read(t, start, stop), np.uint8)
        # One long row: the package works on 16 rows at a time, whatever their length, and blocks never cross rows.
        raw = raw.reshape(1, -1)
        if t.kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
            raw = raw.view(np.float32 if t.kind == GGMLQuantizationType.F32 else np.float16)
        return np.ascontiguousarray(dequantize(raw, t.kind), np.float32)

    def _interleaved_heads(self, name: str) -> int:
        """Heads of a tensor whose rotary pairs are neighbours; 0 for all others. Only ggml's llama has them."""
        if self.hyperparameters.architecture != "llama":
            return 0
        if name.endswith("attn_q.weight"):
            return self.hyperparameters.heads
        return self.hyperparameters.kv_heads if name.endswith("attn_k.weight") else 0

    def _field(self, key: str, kind: type[T], default: T | None = None) -> T:
        value = self._fields.get(key, default)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            found = "it is missing" if value is None else f"it is {type(value).__name__}"
            raise BuildError(f"cannot read {self.path.name}: {key}: {found}, expected {kind.__name__}", hint=_HINT)
        return value

    def _hyperparameters(self) -> Hyperparameters:
        name = self._field("general.architecture", str)
        if name not in _ARCHITECTURES:
            raise BuildError(
                f"cannot build {self.path.name}: its architecture is {name!r}, expected {' or '.join(_ARCHITECTURES)}",
                hint="Skerry builds only architectures that it has tested",
            )
        self._refuse_unsupported(name)
        hidden = self._field(f"{name}.embedding_length", int)
        heads = self._field(f"{name}.attention.head_count", int)
        if heads <= 0:
            raise BuildError(f"cannot read {self.path.name}: {heads} attention heads", hint=_HINT)
        head_dim = self._field(f"{name}.attention.key_length", int, hidden // heads)
        for key in (f"{name}.attention.value_length", f"{name}.rope.dimension_count"):
            if self._field(key, int, head_dim) != head_dim:
                raise BuildError(f"cannot build {self.path.name}: {key} is not {head_dim}, the width of a head")
        gemma = name == "gemma3"
        layers = self._field(f"{name}.block_count", int)
        kv_heads, conv_layers = self._kv_heads(name, layers, heads)
        return Hyperparameters(
            architecture=name,
            layers=layers,
            hidden=hidden,
            feed_forward=self._field(f"{name}.feed_forward_length", int),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            context_length=self._field(f"{name}.context_length", int),
            norm_epsilon=self._field(f"{name}.attention.layer_norm_rms_epsilon", float),
            rope_theta=self._field(f"{name}.rope.freq_base", float, 1e6 if gemma else 1e4),
            # GGUF does not carry the next two for Gemma 3: they are constants of the architecture.
            rope_theta_local=10_000.0 if gemma else None,
            sliding_window=self._field(f"{name}.attention.sliding_window", int) if gemma else None,
            global_layer_every=6 if gemma else 1,
            conv_layers=conv_layers,
            conv_kernel=self._field(f"{name}.shortconv.l_cache", int) if name == "lfm2" else 0,
        )

    def _refuse_unsupported(self, name: str) -> None:
        """Settings that would change the computation and that no test here covers."""
        unsupported = ["rope.scaling.type", "expert_count", "attn_logit_softcapping", "final_logit_softcapping"]
        if name in ("qwen3", "lfm2"):
            unsupported.append("attention.sliding_window")
        for key in unsupported:
            if self._fields.get(f"{name}.{key}", "none") not in ("none", 0, 0.0):
                raise BuildError(f"cannot build {self.path.name}: {name}.{key} is set, expected a model without")
        if not self._field(f"{name}.attention.causal", bool, True):
            raise BuildError(f"cannot build {self.path.name}: {name}.attention.causal is false, expected true")

    def _kv_heads(self, name: str, layers: int, heads: int) -> tuple[int, frozenset[int]]:
        """Key heads, and the layers that convolve: LFM2 has a list with no heads for those."""
        key = f"{name}.attention.head_count_kv"
        if name != "lfm2":
            return self._field(key, int, heads), frozenset()
        listed = self._field(key, list)
        if len(listed) != layers or not all(type(n) is int for n in listed) or len(set(listed) - {0}) != 1:
            raise BuildError(
                f"cannot build {self.path.name}: {key} is irregular, expected 0 or the same number for each layer"
            )
        return max(listed), frozenset(i for i, n in enumerate(listed) if n == 0)

    def _tokenizer(self) -> SourceTokenizer:
        key = "tokenizer.ggml."
        tokens = self._strings(key + "tokens")
        kind = self._field(key + "model", str)
        types = self._field(key + "token_type", list, [1] * len(tokens))
        scores = self._field(key + "scores", list, [0.0] * len(tokens))
        if not len(tokens) == len(types) == len(scores):
            raise BuildError(f"cannot read {self.path.name}: its tokenizer's lists differ in length", hint=_HINT)
        eos = self._token(key + "eos_token_id", len(tokens))
        return SourceTokenizer(
            kind=kind,
            pre=self._field(key + "pre", str, "default"),
            tokens=tokens,
            types=types,
            scores=scores,
            merges=self._strings(key + "merges") if kind == "gpt2" else [],
            bos=self._token(key + "bos_token_id", len(tokens)),
            eos=() if eos is None else (eos,),
            unknown=self._token(key + "unknown_token_id", len(tokens)),
            add_bos=self._field(key + "add_bos_token", bool, kind == "llama"),
            chat_template=self._field("tokenizer.chat_template", str, "") or None,
        )

    def _strings(self, key: str) -> list[str]:
        values = self._field(key, list)
        if not all(isinstance(v, str) for v in values):
            raise BuildError(f"cannot read {self.path.name}: {key} is not a list of strings", hint=_HINT)
        return values

    def _token(self, key: str, vocabulary: int) -> int | None:
        if key not in self._fields:
            return None
        token = self._field(key, int)
        if not 0 <= token < vocabulary:
            raise BuildError(f"cannot read {self.path.name}: {key} is {token}, expected below {vocabulary}", hint=_HINT)
        return token


def _halves(raw: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Part bytes into their low and high 4 bits: the low ones come first."""
    return np.concatenate([raw & np.uint8(15), raw >> np.uint8(4)], -1)


def _float16(raw: NDArray[np.uint8]) -> Floats:
    return np.ascontiguousarray(raw).view(np.float16)[..., 0].astype(np.float32)


def _affine_q4_0(raw: NDArray[np.uint8]) -> Affine4:
    blocks = raw.reshape(len(raw), -1, 18)
    scale = _float16(blocks[..., :2])
    return Affine4(_halves(blocks[..., 2:]), scale, scale * np.float32(-8))


def _affine_q4_1(raw: NDArray[np.uint8]) -> Affine4:
    blocks = raw.reshape(len(raw), -1, 20)
    return Affine4(_halves(blocks[..., 4:]), _float16(blocks[..., :2]), _float16(blocks[..., 2:4]))


def _affine_q4_k(raw: NDArray[np.uint8]) -> Affine4:
    """Super-blocks of 256: eight blocks, whose scales and minima have 6 bits each in 12 bytes."""
    rows = len(raw)
    blocks = raw.reshape(rows, -1, 144)
    a, b, c = (blocks[..., at : at + 4] for at in (4, 8, 12))
    scales = np.concatenate([a & np.uint8(63), (c & np.uint8(15)) | ((a >> np.uint8(6)) << np.uint8(4))], -1)
    minima = np.concatenate([b & np.uint8(63), (c >> np.uint8(4)) | ((b >> np.uint8(6)) << np.uint8(4))], -1)
    scale = _float16(blocks[..., :2])[..., None] * scales
    offset = _float16(blocks[..., 2:4])[..., None] * minima
    # Each 32 bytes hold two blocks of 32 weights: one in the low halves, the next in the high ones.
    q = _halves(blocks[..., 16:].reshape(rows, -1, 4, 32)).reshape(rows, -1, 32)
    return Affine4(q, scale.reshape(rows, -1), -offset.reshape(rows, -1))


_AFFINE = {
    GGMLQuantizationType.Q4_0: _affine_q4_0,
    GGMLQuantizationType.Q4_1: _affine_q4_1,
    GGMLQuantizationType.Q4_K: _affine_q4_k,
}


def _parse(data: mmap.mmap, path: Path) -> tuple[dict[str, Any], dict[str, _Tensor]]:
    cursor = _Cursor(data, path)
    if cursor.take(4) != _MAGIC:
        raise BuildError(f"cannot read {path.name}: it is not a GGUF file", hint="give a .gguf file")
    version = cursor.number("<I")
    if version != _VERSION:
        raise BuildError(f"cannot read {path.name}: GGUF version {version}, expected {_VERSION}")
    tensor_count = cursor.count(_MAX_TENSORS, "tensors")
    fields: dict[str, Any] = {}
    for _ in range(cursor.count(_MAX_FIELDS, "fields")):
        key = cursor.string()
        if key in fields:
            raise cursor.fail(f"{key} stands twice in its header")
        fields[key] = cursor.value(cursor.number("<I"))
    described = [_describe(cursor) for _ in range(tensor_count)]
    alignment = fields.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment <= 0:
        raise cursor.fail(f"its alignment is {alignment}")
    start = -(-cursor.at // alignment) * alignment
    tensors: dict[str, _Tensor] = {}
    for name, kind, shape, offset in described:
        tensor = _Tensor(kind, shape, start + offset)
        if tensor.offset + tensor.bytes > len(data):
            raise cursor.fail(f"it has {len(data)} bytes, tensor {name} ends at {tensor.offset + tensor.bytes}")
        if name in tensors:
            raise cursor.fail(f"tensor {name} stands twice in it")
        tensors[name] = tensor
    return fields, tensors


def _describe(cursor: _Cursor) -> tuple[str, GGMLQuantizationType, tuple[int, ...], int]:
    name = cursor.string()
    dimensions = cursor.number("<I")
    if not 0 < dimensions <= _MAX_DIMENSIONS:
        raise cursor.fail(f"tensor {name} has {dimensions} dimensions")
    # GGUF writes the fastest axis first.
    shape = tuple(cursor.number("<Q") for _ in range(dimensions))[::-1]
    code, offset = cursor.number("<I"), cursor.number("<Q")
    try:
        kind = GGMLQuantizationType(code)
    except ValueError as e:
        raise cursor.fail(f"tensor {name} has the unknown type {code}") from e
    values, _ = GGML_QUANT_SIZES[kind]
    if any(not 0 < n < 1 << 40 for n in shape) or shape[-1] % values:
        raise cursor.fail(f"tensor {name} has the shape {shape}, expected whole blocks of {values}")
    return name, kind, shape, offset
