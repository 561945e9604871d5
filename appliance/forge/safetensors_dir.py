"""Reader of a directory of safetensors: config.json, tokenizer.json, *.safetensors.

Parsed here and not with the library, for two reasons: the weights are mostly bfloat16, which numpy does not have, and
every length in the header comes from outside and is checked before anything is allocated.

What this does NOT do: quantized checkpoints, adapters, pickled weights.

Source: the safetensors format specification; the configuration keys are those of the transformers library.
"""

import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec
import numpy as np

from appliance.errors import BuildError
from appliance.files import read_limited
from appliance.forge.weights import Floats, Hyperparameters, SourceTokenizer, Weights, require_finite

_MAX_HEADER_BYTES = 16 << 20
_MAX_CONFIG_BYTES, _MAX_TOKENIZER_BYTES = 1 << 20, 64 << 20
_MAX_TENSORS = 100_000
_DAMAGED = "the file is damaged or not complete: fetch it again"
_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
_ARCHITECTURES = {"llama": "llama", "gemma3_text": "gemma3", "qwen3": "qwen3", "lfm2": "lfm2"}

_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "model.embedding_norm.weight": "output_norm.weight",  # LFM2's, after the last layer in spite of its name
    "lm_head.weight": "output.weight",
}
_BLOCK_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# The same name means the norm before the feed-forward in llama and Qwen3, and the one after the attention in Gemma 3.
_LLAMA_NAMES = _BLOCK_NAMES | {"post_attention_layernorm": "ffn_norm"}
_GEMMA_NAMES = _BLOCK_NAMES | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_LFM2_NAMES = {
    "operator_norm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_output",
    "self_attn.q_layernorm": "attn_q_norm",
    "self_attn.k_layernorm": "attn_k_norm",
    "conv.in_proj": "shortconv.in_proj",
    "conv.conv": "shortconv.conv",
    "conv.out_proj": "shortconv.out_proj",
    "ffn_norm": "ffn_norm",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w3": "ffn_up",
    "feed_forward.w2": "ffn_down",
}
_LAYER_NAMES = {"llama": _LLAMA_NAMES, "gemma3": _GEMMA_NAMES, "qwen3": _LLAMA_NAMES, "lfm2": _LFM2_NAMES}

T = TypeVar("T")


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor in a safetensors header."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class _Tensor(msgspec.Struct, frozen=True):
    """Where a tensor lies."""

    file: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int


class SafetensorsWeights(Weights):
    """The weights, hyperparameters and tokenizer of one directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        shards = sorted(p for p in path.glob("*.safetensors") if p.is_file())
        if not shards:
            raise BuildError(
                f"cannot read weights from {path}: it has no *.safetensors",
                hint="give a folder with config.json, tokenizer.json and *.safetensors, or a .gguf file",
            )
        config = _json(path / "config.json")
        self.hyperparameters = _hyperparameters(config, path.name)
        self.tokenizer = _tokenizer(path)
        self.files = (*shards, path / "config.json", path / "tokenizer.json")
        self._open: list[IO[bytes]] = []
        self._tensors: dict[str, _Tensor] = {}
        try:
            for shard in shards:
                self._add(shard)
        except BaseException:
            self.close()
            raise
        if _is_tied(config, self.hyperparameters.architecture):
            self._tensors.pop("output.weight", None)  # a copy of the embedding, which some tools write out
        self._shapes = {name: t.shape for name, t in self._tensors.items()}

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor, by its canonical name."""
        return self._shapes

    def rows(self, name: str, start: int, stop: int) -> Floats:
        """Read some rows as float32."""
        t = self._tensors[name]
        width = int(np.prod(t.shape[1:], dtype=np.int64))
        row_bytes = width * t.dtype.itemsize
        size = (stop - start) * row_bytes
        # Read and not mapped: mapped pages stay and count as memory of the process.
        data = os.pread(self._open[t.file].fileno(), size, t.offset + start * row_bytes)
        if len(data) != size:
            raise BuildError(f"cannot read {self.path.name}: a file became shorter while it was read", hint=_DAMAGED)
        raw = np.frombuffer(data, t.dtype)
        if t.dtype == _DTYPES["BF16"]:  # the upper half of a float32
            values: Floats = (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
        else:
            values = raw.astype(np.float32)
        if self.hyperparameters.architecture == "gemma3" and name.endswith("_norm.weight"):
            values = values + np.float32(1)  # published as the difference from one
        return require_finite(values, name).reshape(stop - start, *t.shape[1:])

    def close(self) -> None:
        """Close the files."""
        for file in self._open:
            file.close()

    def _add(self, shard: Path) -> None:
        try:
            file = shard.open("rb", buffering=0)
        except OSError as e:
            raise BuildError(f"cannot read {shard.name}: {e.strerror}", hint="check its permissions") from e
        self._open.append(file)
        start, entries = _header(file, shard.name)
        index = len(self._open) - 1
        for published, entry in entries.items():
            name = _canonical(published, self.hyperparameters)
            if name in self._tensors:
                raise BuildError(f"cannot read {shard.name}: tensor {published} stands twice in the folder")
            shape = entry.shape
            if name.endswith(".shortconv.conv.weight") and len(shape) == 3 and shape[1] == 1:
                shape = (shape[0], shape[2])  # a channel hears itself only
            self._tensors[name] = _Tensor(index, _DTYPES[entry.dtype], shape, start + entry.data_offsets[0])


def _header(file: IO[bytes], name: str) -> tuple[int, dict[str, _Entry]]:
    """Parse and check a header: where the tensors' bytes begin, and the tensors."""
    length = os.fstat(file.fileno()).st_size
    if length < 8:
        raise BuildError(f"cannot read {name}: {length} bytes are no safetensors file", hint=_DAMAGED)
    (size,) = struct.unpack("<Q", file.read(8))
    if size > min(_MAX_HEADER_BYTES, length - 8):
        raise BuildError(
            f"cannot read {name}: its header claims {size} bytes, expected at most "
            f"{min(_MAX_HEADER_BYTES, length - 8)}",
            hint=_DAMAGED,
        )
    try:
        raw = msgspec.json.decode(os.pread(file.fileno(), size, 8), type=dict[str, msgspec.Raw])
        raw.pop("__metadata__", None)
        entries = {n: msgspec.json.decode(r, type=_Entry) for n, r in raw.items()}
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as e:
        raise BuildError(f"cannot read {name}: its header is not that of safetensors ({e})", hint=_DAMAGED) from e
    if len(entries) > _MAX_TENSORS:
        raise BuildError(f"cannot read {name}: {len(entries)} tensors, expected at most {_MAX_TENSORS}")
    available = length - 8 - size
    for tensor, entry in entries.items():
        _check_entry(tensor, entry, available, name)
    return 8 + size, entries


def _check_entry(tensor: str, entry: _Entry, available: int, file: str) -> None:
    if entry.dtype not in _DTYPES:
        raise BuildError(
            f"cannot read {file}: tensor {tensor} is {entry.dtype}, expected {', '.join(_DTYPES)}",
            hint="bring weights that are not quantized",
        )
    if not 0 < len(entry.shape) <= 4 or any(not 0 < n < 1 << 40 for n in entry.shape):
        raise BuildError(f"cannot read {file}: tensor {tensor} has the shape {entry.shape}", hint=_DAMAGED)
    size = _DTYPES[entry.dtype].itemsize
    for n in entry.shape:  # Python's integers: a product that overflows 64 bits must not look small
        size *= n
    start, stop = entry.data_offsets
    if not 0 <= start <= stop <= available or stop - start != size:
        raise BuildError(
            f"cannot read {file}: tensor {tensor} lies at {start} to {stop}, expected {size} bytes within {available}",
            hint=_DAMAGED,
        )


def _canonical(published: str, h: Hyperparameters) -> str:
    """Translate a tensor's name; names that are not known stay, and the architecture refuses them."""
    if published in _NAMES:
        return _NAMES[published]
    names = _LAYER_NAMES[h.architecture]
    before, _, rest = published.removeprefix("model.layers.").partition(".")
    middle = rest.removesuffix(".weight")
    if published.startswith("model.layers.") and before.isdecimal() and rest.endswith(".weight") and middle in names:
        return f"blk.{int(before)}.{names[middle]}.weight"
    return published


def _json(path: Path, limit_bytes: int = _MAX_CONFIG_BYTES) -> dict[str, Any]:
    try:
        return msgspec.json.decode(read_limited(path, limit_bytes), type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise BuildError(f"cannot read {path.name}: {e}, expected a JSON object", hint=_DAMAGED) from e


def _get(config: Mapping[str, Any], key: str, kind: type[T], default: T | None = None) -> T:
    value = config.get(key)
    value = default if value is None else value
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        found = "it is missing" if value is None else f"it is {value!r:.60}"
        raise BuildError(f"cannot read config.json: {key}: {found}, expected {kind.__name__}", hint=_DAMAGED)
    return value


def _hyperparameters(config: Mapping[str, Any], source: str) -> Hyperparameters:
    published = _get(config, "model_type", str)
    if published not in _ARCHITECTURES:
        raise BuildError(
            f"cannot build {source}: its architecture is {published!r}, expected {' or '.join(_ARCHITECTURES)}",
            hint="Skerry builds only architectures that it has tested",
        )
    architecture = _ARCHITECTURES[published]
    gemma, lfm2 = architecture == "gemma3", architecture == "lfm2"
    _refuse_unsupported(config, source, architecture)
    heads = _get(config, "num_attention_heads", int)
    hidden = _get(config, "hidden_size", int)
    layers = _get(config, "num_hidden_layers", int)
    if heads <= 0:
        raise BuildError(f"cannot read config.json: num_attention_heads is {heads}", hint=_DAMAGED)
    theta, local_theta = _rope(config, source, architecture)
    scalar = _get(config, "query_pre_attn_scalar", float, 256.0) if gemma else None
    if scalar is not None and scalar <= 0:
        raise BuildError(f"cannot read config.json: query_pre_attn_scalar is {scalar}", hint=_DAMAGED)
    return Hyperparameters(
        architecture=architecture,
        layers=layers,
        hidden=hidden,
        feed_forward=_lfm2_feed_forward(config) if lfm2 else _get(config, "intermediate_size", int),
        heads=heads,
        kv_heads=_get(config, "num_key_value_heads", int, heads),
        head_dim=_get(config, "head_dim", int, {"gemma3": 256, "qwen3": 128}.get(architecture, hidden // heads)),
        context_length=_get(config, "max_position_embeddings", int),
        norm_epsilon=_get(config, "norm_eps", float, 1e-5) if lfm2 else _get(config, "rms_norm_eps", float, 1e-6),
        rope_theta=theta,
        rope_theta_local=local_theta,
        sliding_window=_get(config, "sliding_window", int, 4096) if gemma else None,
        global_layer_every=_global_every(config, source) if gemma else 1,
        attention_scale=scalar**-0.5 if scalar else None,
        conv_layers=_conv_layers(config, source, layers) if lfm2 else frozenset(),
        conv_kernel=_get(config, "conv_L_cache", int, 3) if lfm2 else 0,
    )


def _is_tied(config: Mapping[str, Any], architecture: str) -> bool:
    """Whether the head is the embedding; what is meant where nothing is said differs."""
    if architecture == "lfm2" and "tie_embedding" in config:  # its older name, which wins
        return bool(config["tie_embedding"])
    return bool(config.get("tie_word_embeddings", architecture in ("gemma3", "lfm2")))


def _refuse_unsupported(config: Mapping[str, Any], source: str, architecture: str) -> None:
    """Settings that would change the computation and that no test here covers."""
    gemma = architecture == "gemma3"
    activation = "hidden_activation" if gemma else "hidden_act"
    expected = {
        activation: "gelu_pytorch_tanh" if gemma else "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "conv_bias": False,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "use_bidirectional_attention": False,
    }
    if architecture == "qwen3":
        expected["use_sliding_window"] = False
    for key, value in expected.items():
        if config.get(key, value) not in (value, None):
            raise BuildError(f"cannot build {source}: {key} is {config[key]!r:.60}, expected {value!r}")
    if architecture == "qwen3" and any(kind != "full_attention" for kind in _get(config, "layer_types", list, [])):
        raise BuildError(f"cannot build {source}: layer_types has other kinds than full_attention, expected that only")


def _lfm2_feed_forward(config: Mapping[str, Any]) -> int:
    """Width of the feed-forward network: what is published is, as a rule, that of one without a gate."""
    width = _get(config, "block_ff_dim", int, _get(config, "intermediate_size", int, 12288))
    if not _get(config, "block_auto_adjust_ff_dim", bool, True):
        return width
    width = 2 * width // 3
    if "block_ffn_dim_multiplier" in config and config["block_ffn_dim_multiplier"] is None:
        return width
    multiple = _get(config, "block_multiple_of", int, 256)
    factor = _get(config, "block_ffn_dim_multiplier", float, 1.0)
    if multiple <= 0 or not 0 < factor < 1 << 16:
        raise BuildError(
            f"cannot read config.json: block_multiple_of is {multiple} and block_ffn_dim_multiplier {factor}, "
            "expected positive numbers",
            hint=_DAMAGED,
        )
    return multiple * -(-int(factor * width) // multiple)


def _conv_layers(config: Mapping[str, Any], source: str, layers: int) -> frozenset[int]:
    """The layers that convolve: from the list of layers, or from the older list of those that attend."""
    kinds, attending = config.get("layer_types"), config.get("full_attn_idxs")
    if kinds is None and attending is not None:
        if not isinstance(attending, list) or not all(type(i) is int and 0 <= i < layers for i in attending):
            raise BuildError(f"cannot build {source}: full_attn_idxs names layers that are not there, of {layers}")
        chosen = set(attending)
        kinds = ["full_attention" if i in chosen else "conv" for i in range(min(layers, _MAX_TENSORS))]
    known = ("conv", "full_attention")
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in known for kind in kinds):
        raise BuildError(
            f"cannot build {source}: layer_types must name {' or '.join(known)} for each of the {layers} layers"
        )
    return frozenset(i for i, kind in enumerate(kinds) if kind == "conv")


def _rope(config: Mapping[str, Any], source: str, architecture: str) -> tuple[float, float | None]:
    """Bases of the rotary embedding (global, local), from the older or the newer form of the configuration."""
    gemma = architecture == "gemma3"
    newer = _get(config, "rope_parameters", dict, {})
    both: dict[str, Any] = newer if gemma and newer else {"full_attention": newer}
    for part in (*both.values(), config.get("rope_scaling") or {}):
        kind = part.get("rope_type", part.get("type", "default")) if isinstance(part, dict) else part
        if kind != "default":
            raise BuildError(f"cannot build {source}: its rotary embedding is scaled ({kind!r:.60}), expected none")
    theta = _get(both.get("full_attention", {}), "rope_theta", float, 0.0)
    theta = theta or _get(config, "rope_theta", float, 1e6 if architecture in ("gemma3", "lfm2") else 1e4)
    local = _get(both.get("sliding_attention", {}), "rope_theta", float, 0.0)
    return theta, (local or _get(config, "rope_local_base_freq", float, 1e4)) if gemma else None


def _global_every(config: Mapping[str, Any], source: str) -> int:
    """Every n-th layer is global: from the pattern's length, or from the list of layers."""
    kinds = config.get("layer_types")
    if kinds is None:
        return max(1, _get(config, "sliding_window_pattern", int, 6))
    known = {"sliding_attention", "full_attention"}
    if not isinstance(kinds, list) or not all(isinstance(k, str) and k in known for k in kinds):
        raise BuildError(
            f"cannot build {source}: layer_types holds unknown kinds, expected {' or '.join(sorted(known))}"
        )
    every = kinds.index("full_attention") + 1 if "full_attention" in kinds else len(kinds) + 1
    regular = ["full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(len(kinds))]
    if kinds != regular:
        raise BuildError(f"cannot build {source}: layer_types is irregular, expected one global layer every so many")
    return every


def _tokenizer(path: Path) -> SourceTokenizer:
    template = path / "chat_template.jinja"
    text: str | None = None
    if template.is_file():
        text = _text(template)
    elif (path / "tokenizer_config.json").is_file():
        settings = _json(path / "tokenizer_config.json", _MAX_TOKENIZER_BYTES)
        text = _get(settings, "chat_template", str, "") or None
    return SourceTokenizer(json=read_limited(path / "tokenizer.json", _MAX_TOKENIZER_BYTES), chat_template=text)


def _text(path: Path) -> str:
    try:
        return read_limited(path, _MAX_CONFIG_BYTES).decode()
    except UnicodeDecodeError as e:
        raise BuildError(f"cannot read {path.name}: it is not UTF-8", hint=_DAMAGED) from e
