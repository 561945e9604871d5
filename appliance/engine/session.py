"""A model that is ready to compute: an onnxruntime session over a verified package, and caches in place.

Only a `VerifiedModel` opens a session, so no unsigned byte is ever run. The graph is taken from the verified mapping,
and so are the weights: every external tensor is handed to onnxruntime as a view of the mapping that was hashed.
Nothing is opened a second time by name; onnxruntime still looks whether the weights' name exists, in the directory
that was verified.

    with Session(model) as session:
        cache = session.new_cache(capacity=1024)
        logits = session.forward(cache, np.array([1, 2, 3]))

The key/value cache is one buffer a layer that is both the graph's past and its present input and output: a step
appends a row and copies nothing. `cache.rewind` goes back, exactly.

What this does NOT protect against: a session is not locked, so one thread at a time may call `forward`. And int8
kernels give slightly different logits for the same tokens in chunks of another size; the same chunks always give the
same logits.

Source: onnxruntime's contrib operators (GroupQueryAttention, MatMulNBits, GatherBlockQuantized) and its IOBinding.
"""

import weakref
from types import TracebackType
from typing import Any, Self

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from appliance.decoding.sampling import Logits
from appliance.engine.prefixes import Prefixes
from appliance.errors import CardMismatch, ContextTooLong, InternalError, OutOfMemory
from appliance.models.card import Card
from appliance.models.onnx_external import ExternalTensor, initializers
from appliance.models.package import DATA_FILE, MODEL_FILE, VerifiedModel
from appliance.system.host import available_memory_bytes, usable_cpus

CACHE_GRAIN = 128
"""Caches are allocated in steps of this many tokens."""

MEMORY_RESERVE_BYTES = 64 << 20
"""Memory that an allocation must leave to the rest of the box."""

_DTYPES = {1: np.float32, 2: np.uint8, 3: np.int8, 6: np.int32, 7: np.int64, 10: np.float16}


_CACHES: "weakref.WeakSet[Cache]" = weakref.WeakSet()
"""Caches that are in use."""


class Cache:
    """Keys and values of the tokens seen so far, for one sequence.

    Attributes:
        length: tokens that are in the cache; lower it with `rewind`.
        capacity: tokens that fit.
    """

    def __init__(self, binding: Any, buffers: dict[str, NDArray[np.float32]], capacity: int) -> None:
        self.length = 0
        self.capacity = capacity
        self._binding = binding
        self._buffers = buffers
        _CACHES.add(self)

    @property
    def size_bytes(self) -> int:
        """Memory that the buffers take when every token is used."""
        return sum(b.nbytes for b in self._buffers.values())

    @property
    def promised_bytes(self) -> int:
        """Memory that was promised and is not taken yet: pages count for the kernel only once they are written."""
        return self.size_bytes - self.bytes_of(self.length)

    def addresses(self) -> dict[str, int]:
        """Say where each buffer lies in memory; a step must not move it."""
        return {name: b.ctypes.data for name, b in self._buffers.items()}

    def bytes_of(self, tokens: int) -> int:
        """Memory that the keys and values of so many tokens take."""
        return self.size_bytes * tokens // self.capacity

    def read(self, start: int, stop: int) -> list[NDArray[np.float32]]:
        """Copy the keys and values of some tokens.

        Raises:
            ValueError: not all of them are in the cache.
        """
        if not 0 <= start <= stop <= self.length:
            raise ValueError(f"cannot read tokens {start} to {stop} of a cache of {self.length}")
        return [buffer[:, :, start:stop].copy() for buffer in self._buffers.values()]

    def write(self, start: int, parts: list[NDArray[np.float32]]) -> None:
        """Append the keys and values of some tokens, which `read` gave.

        Args:
            start: the number of tokens in the cache.
            parts: as `read` has them, from a cache of the same session.
        Raises:
            ValueError: they do not begin at the cache's end, or do not fit.
        """
        stop = start + parts[0].shape[2]
        if start != self.length or stop > self.capacity:
            raise ValueError(f"cannot write tokens {start} to {stop} of a cache of {self.length} of {self.capacity}")
        for buffer, part in zip(self._buffers.values(), parts, strict=True):
            buffer[:, :, start:stop] = part
        self.length = stop

    def rewind(self, length: int) -> int:
        """Forget every token from `length` on, exactly: the next logits are those of a cache that never held them.

        Returns:
            How many tokens are left. Keys and values go back to any length; a cache with recurrent state, which can
            only go back to a snapshot, would be left with fewer.
        Raises:
            ValueError: `length` is not in [0, self.length].
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot rewind a cache of {self.length} tokens to {length}")
        self.length = length
        return length


class Session:
    """One loaded model. Closing it gives the memory back."""

    def __init__(
        self, model: VerifiedModel, threads: int | None = None, *, prefix_bytes: int = 0, draft_tokens: int = 0
    ) -> None:
        """Load a verified package.

        Args:
            model: stays open as long as the session; the session closes it.
            threads: of the matrix kernels; None: as many as this process may use processors.
            prefix_bytes: what beginnings of prompts may take that are kept for the next ones.
            draft_tokens: how many tokens may be guessed and computed at once; 0 guesses none.
        Raises:
            OutOfMemory: the weights would not fit.
            CardMismatch: the graph is not the one that the card describes, or onnxruntime refuses it.
            DigestMismatch: a file changed while it was loaded.
        """
        self.threads = threads or usable_cpus()
        self.prefixes = Prefixes(prefix_bytes)
        self.draft_tokens = draft_tokens
        self._model = model
        require_memory(model.size_bytes, f"load {model.name}")
        self._session, self._weights = _open_session(model, self.threads)
        model.recheck()
        model.release_pages()
        self._caches = _cache_shapes(self._session, model.card)
        self._vocabulary_size = model.card.vocabulary_size
        self._one_row = np.zeros((1, self._vocabulary_size), np.float32)
        self._one_row_value = ort.OrtValue.ortvalue_from_numpy(self._one_row)

    @property
    def card(self) -> Card:
        """The card of the package that runs here."""
        return self._model.card

    @property
    def model(self) -> VerifiedModel:
        """The verified package that runs here."""
        return self._model

    def cache_bytes(self, capacity: int) -> int:
        """Memory that a cache of `capacity` tokens takes."""
        return sum(4 * heads * capacity * dim for heads, dim in self._caches.values())

    def new_cache(self, capacity: int) -> Cache:
        """Allocate an empty cache for up to `capacity` tokens, rounded up.

        Raises:
            ContextTooLong: more tokens than the model's context.
            OutOfMemory: the box cannot give the memory.
        """
        limit = self.card.context_length
        if capacity > limit:
            raise ContextTooLong(f"cannot hold {capacity} tokens: the context of {self.card.name} is {limit}")
        capacity = min(limit, -(-capacity // CACHE_GRAIN) * CACHE_GRAIN)
        needed, what = self.cache_bytes(capacity), f"hold {capacity} tokens of {self.card.name}"
        try:
            require_memory(needed, what)
        except OutOfMemory:
            self.prefixes.shrink()  # what may be needed again goes before what is needed now
            require_memory(needed, what)
        binding = self._session.io_binding()
        buffers = {}
        for name, (heads, dim) in self._caches.items():
            # Zeroed pages cost nothing until a token is written to them.
            buffer = np.zeros((1, heads, capacity, dim), np.float32)
            value = ort.OrtValue.ortvalue_from_numpy(buffer)
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), value)
            buffers[name] = buffer
        return Cache(binding, buffers, capacity)

    def forward(self, cache: Cache, tokens: NDArray[np.int64], rows: NDArray[np.int64] | None = None) -> Logits:
        """Append tokens to a cache and compute logits.

        Args:
            cache: of this session.
            tokens: int64, shape (n,), n >= 1.
            rows: int64, shape (r,): the positions in `tokens` whose logits are wanted; None: the last one.
        Returns:
            float32, shape (r, vocabulary); valid until the next call.
        Raises:
            ContextTooLong: the cache has no room for n more tokens.
        """
        count = len(tokens)
        total = cache.length + count
        if total > cache.capacity:
            raise ContextTooLong(f"cannot append {count} tokens: {cache.length} of {cache.capacity} are used")
        binding = cache._binding
        binding.bind_cpu_input("input_ids", np.ascontiguousarray(tokens, np.int64).reshape(1, count))
        binding.bind_cpu_input("seqlens_k", np.array([total - 1], np.int32))
        binding.bind_cpu_input("total_sequence_length", np.array(total, np.int32))
        wanted = np.array([count - 1], np.int64) if rows is None else np.ascontiguousarray(rows, np.int64)
        binding.bind_cpu_input("logit_rows", wanted)
        if len(wanted) == 1:
            logits, value = self._one_row, self._one_row_value
        else:
            logits = np.empty((len(wanted), self._vocabulary_size), np.float32)
            value = ort.OrtValue.ortvalue_from_numpy(logits)
        binding.bind_ortvalue_output("logits", value)
        self._session.run_with_iobinding(binding)
        cache.length = total
        return logits

    def close(self) -> None:
        """Give the weights back. Caches of this session must not be used any more."""
        self._session = None
        self.prefixes.shrink()
        self._weights.clear()
        self._model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def require_memory(size_bytes: int, what: str) -> None:
    """Refuse in words what the kernel would refuse with a kill.

    Raises:
        OutOfMemory: less than `size_bytes` and a reserve are available.
    """
    available = available_memory_bytes()
    promised = sum(cache.promised_bytes for cache in list(_CACHES))
    if available is not None and size_bytes + promised + MEMORY_RESERVE_BYTES > available:
        raise OutOfMemory(
            f"cannot {what}: it needs {size_bytes >> 20} MiB, {available >> 20} MiB are available"
            + (f" and {promised >> 20} MiB of them promised" if promised else ""),
            hint="unload another model, ask for fewer tokens, or add memory",
        )


def _open_session(model: VerifiedModel, threads: int) -> tuple[Any, dict[str, Any]]:
    """Open the session, and the views of the weights that it goes on to read: they must live as long as it does."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Spin within a run, where it saves wake-ups, and not between runs, where it would burn an idle box.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Only looked at for existence, never read: each tensor below stands in for its part of the file.
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", f"/proc/self/fd/{model.directory_fd}"
    )
    graph, weights = bytes(model.files[MODEL_FILE]), model.files[DATA_FILE]
    try:
        values = {t.name: ort.OrtValue.ortvalue_from_numpy(_view(weights, t)) for t in initializers(graph)}
        for name, value in values.items():
            options.add_initializer(name, value)
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"]), values
    except (ValueError, KeyError, RuntimeError) as e:  # onnxruntime's own errors are RuntimeErrors
        raise CardMismatch(
            f"cannot load {model.name}: onnxruntime refuses the graph ({str(e).splitlines()[0][:200]})",
            hint="build the package again with this version of Skerry",
        ) from e


def _view(weights: memoryview, tensor: ExternalTensor) -> NDArray[Any]:
    """See a tensor in the mapping, without copying it."""
    return (
        np.frombuffer(weights, np.uint8, tensor.length, tensor.offset).view(_DTYPES[tensor.dtype]).reshape(tensor.shape)
    )


def _cache_shapes(session: Any, card: Card) -> dict[str, tuple[int, int]]:
    """Read heads and width of every cache from the graph's own inputs."""
    inputs = {i.name: i.shape for i in session.get_inputs()}
    outputs = {o.name: o.shape for o in session.get_outputs()}
    missing = {"input_ids", "seqlens_k", "total_sequence_length", "logit_rows"} - inputs.keys()
    if missing or "logits" not in outputs:
        raise CardMismatch(f"cannot run {card.name}: its graph has no {', '.join(sorted(missing)) or 'logits'}")
    if outputs["logits"][-1] != card.vocabulary_size:
        raise CardMismatch(
            f"cannot run {card.name}: its graph gives {outputs['logits'][-1]} logits, expected {card.vocabulary_size}"
        )
    caches = {n: (int(s[1]), int(s[3])) for n, s in inputs.items() if n.startswith("past_key_values.")}
    if not caches:
        raise InternalError(f"cannot run {card.name}: its graph has no cache")
    return caches
