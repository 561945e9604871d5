"""A model that is ready to compute: an onnxruntime session over a verified package, and caches in place.

Only a `VerifiedModel` opens a session, so no unsigned byte is ever run. The graph is taken from the verified mapping,
and so are the weights: every external tensor is handed to onnxruntime as a view of the mapping that was hashed.
Nothing is opened a second time by name; onnxruntime still looks whether the weights' name exists, in the directory
that was verified.

    with Session(model) as session:
        cache = session.new_cache(capacity=1024)
        logits = session.forward(cache, np.array([1, 2, 3]))

The key/value caches of all sequences lie in one buffer a layer (see `cache`), which is both the graph's past and its
present input and output: a step appends a row and copies nothing. `cache.rewind` goes back, exactly. One pass may
append to several caches, each by its own number of tokens; the graph's inputs are described in `forge.layers`. What a
graph with convolutions needs beside them: `convolution`.

What this does NOT protect against: a session is not locked, so one thread at a time may call `forward`. And the same
tokens in chunks of another size have slightly different logits, as the attention adds in another order and 8-bit
activations round the difference up; the same chunks always have the same logits.

Source: onnxruntime's contrib operators (GroupQueryAttention, MatMulNBits, GatherBlockQuantized) and its IOBinding.
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from appliance.decoding.sampling import Logits
from appliance.engine.cache import Arena, Cache
from appliance.engine.convolution import Convolutions, Span, convolutions_of
from appliance.engine.head import Head
from appliance.engine.memory import require_memory
from appliance.engine.prefixes import Prefixes
from appliance.errors import CardMismatch, ContextTooLong, InternalError, OutOfMemory
from appliance.models.card import Card
from appliance.models.onnx_external import ExternalTensor, initializers
from appliance.models.package import DATA_FILE, MODEL_FILE, VerifiedModel
from appliance.system.host import cpu_flags, return_memory, usable_cpus

CACHE_GRAIN = 128
"""Caches are promised memory in steps of this many tokens."""

SLOTS = 8
"""Sequences that a session can hold at once, if nothing else is said."""

FOUR_BITS = 4
"""onnxruntime's kernel for so many adds in another order for one row than for several, and takes as long for two rows
as for one. So a token that is alone in its pass is computed twice: its logits are then those that it has with others.
That was measured on processors with AVX2 and without VNNI, and is done only there."""
VNNI = frozenset({"avx512_vnni", "avx_vnni"})
"""Names of the instructions that multiply 8-bit numbers; the kernels for them are others."""

LONG = 32
"""Tokens of one sequence from which on they are a part of a prompt. A pass with one gives back the memory that it
computed in, onnxruntime to the C library and the C library to the kernel: both would keep as much for ever as the
longest part ever took. Single tokens and guesses keep their little. After so many tokens, whatever they are, the file's
pages are let go, of which each token's embedding maps some: sixteen, or with the large pages of a new kernel 512."""

_INPUTS = {"input_ids", "query_seqlens", "seqlens_k", "total_sequence_length", "padded_rows", "flat_rows"}
_INPUTS |= {"logit_rows", "hidden_rows"}
_NO_ROWS = np.empty(0, np.int64)
_DTYPES = {1: np.float32, 2: np.uint8, 3: np.int8, 6: np.int32, 7: np.int64, 10: np.float16}


class Wanted(NamedTuple):
    """What a pass is to append to one cache, and what is asked for of it.

    Attributes:
        cache: of the session.
        tokens: int64, shape (n,), n >= 1.
        rows: int64, shape (r,): the positions in `tokens` whose logits are wanted.
        ids: shape (m,): the tokens whose logits are wanted, where r is 1; None: all.
    """

    cache: Cache
    tokens: NDArray[np.int64]
    rows: NDArray[np.int64]
    ids: NDArray[np.intp] | None = None


class Session:
    """One loaded model. Closing it gives the memory back."""

    def __init__(
        self,
        model: VerifiedModel,
        threads: int | None = None,
        *,
        slots: int = SLOTS,
        prefix_bytes: int = 0,
        draft_tokens: int = 0,
    ) -> None:
        """Load a verified package.

        Args:
            model: stays open as long as the session; the session closes it.
            threads: of the matrix kernels; None: as many as this process may use processors.
            slots: how many sequences there may be at once.
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
        self._session, self._weights, self._head = _open_session(model, self.threads)
        model.recheck()
        model.release_pages()
        shapes, self._convolutions = _cache_shapes(self._session, model.card)
        self._cached = list(shapes)  # names of inputs and outputs that are the arena's own memory
        kept = self._convolutions.shapes if self._convolutions else {}
        self._arena = Arena(shapes | kept, slots, model.card.context_length)
        self._bindings: dict[tuple[int, int], Any] = {}
        self._gives_back = ort.RunOptions()
        self._gives_back.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._in_pairs = _computes_in_pairs(model.card)
        self._since_release = 0  # tokens
        self._vocabulary_size = model.card.vocabulary_size
        self._hidden_size = next(int(o.shape[-1]) for o in self._session.get_outputs() if o.name == "hidden")
        self._step_logits = np.zeros((slots, self._vocabulary_size), np.float32)

    @property
    def card(self) -> Card:
        """The card of the package that runs here."""
        return self._model.card

    @property
    def model(self) -> VerifiedModel:
        """The verified package that runs here."""
        return self._model

    @property
    def most_ids(self) -> int:
        """Of how many tokens at most it pays to ask for the logits alone."""
        return self._head.most_ids if self._head else 0

    def cache_bytes(self, capacity: int) -> int:
        """Memory that a cache of `capacity` tokens takes."""
        return self._arena.token_bytes * capacity

    def new_cache(self, capacity: int) -> Cache:
        """Promise memory for up to `capacity` tokens, rounded up, and take a slot for them.

        Raises:
            ContextTooLong: more tokens than the model's context.
            OutOfMemory: the box cannot give the memory, or every slot is in use.
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
        return Cache(self._arena, capacity)

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
        return self.forward_together([Wanted(cache, tokens, np.array([len(tokens) - 1]) if rows is None else rows)])[0]

    def forward_together(self, wanted: Sequence[Wanted]) -> list[Logits]:
        """Append tokens to several caches in one pass.

        Args:
            wanted: what for each cache; each cache once.
        Returns:
            The logits of each, float32, shape (rows, vocabulary), minus infinity where they were not wanted; those of
            single tokens are valid until the next call.
        Raises:
            ContextTooLong: a cache has no room; nothing was computed.
            InternalError: a logit of a few is not a number.
        """
        for cache, tokens, *_ in wanted:
            if cache.length + len(tokens) > cache.capacity:
                raise ContextTooLong(f"cannot append {len(tokens)} tokens: {cache.length} of {cache.capacity} are used")
        first, end, spans, inputs = _lay_out(wanted)
        binding, kept = self._binding(first, end), None
        if self._convolutions is not None:
            inputs |= self._convolutions.states(self._arena, spans)
        if self._in_pairs and len(inputs["input_ids"]) == 1:
            inputs |= _twice(inputs)
        if self._convolutions is not None:
            kept = self._convolutions.bind(binding, len(inputs["input_ids"]))
        for name, value in inputs.items():
            binding.bind_cpu_input(name, value)
        whole, few = len(inputs["logit_rows"]), len(inputs["hidden_rows"])
        # Rows of single tokens are read before the next step and need no memory of their own each time.
        reused = inputs["padded_rows"].shape[1] == 1 and whole + few <= len(self._step_logits)
        logits = self._step_logits if reused else np.empty((whole + few, self._vocabulary_size), np.float32)
        hidden = np.empty((few, self._hidden_size), np.float32)
        binding.bind_ortvalue_output("logits", ort.OrtValue.ortvalue_from_numpy(logits[:whole]))
        binding.bind_ortvalue_output("hidden", ort.OrtValue.ortvalue_from_numpy(hidden))
        is_long = inputs["padded_rows"].shape[1] >= LONG
        self._session.run_with_iobinding(binding, self._gives_back if is_long else None)
        if is_long:
            return_memory()
        self._since_release += len(inputs["input_ids"])
        if self._since_release >= LONG:
            self._model.release_pages()
            self._since_release = 0
        if self._convolutions is not None and kept is not None:
            self._convolutions.keep(self._arena, spans, kept)
        found = self._split(wanted, logits, hidden, whole)
        for cache, tokens, *_ in wanted:  # last: a pass that fails leaves its caches as they are
            cache.length += len(tokens)
        return found

    def _split(self, wanted: Sequence[Wanted], logits: Logits, hidden: NDArray[np.float32], whole: int) -> list[Logits]:
        """Give each its rows: those of all tokens stand first in `logits`, and behind them go those of a few."""
        found, at = [], 0
        states = iter(zip(hidden, logits[whole:], strict=False))
        for _, _, rows, ids in wanted:
            if ids is None:
                found.append(logits[at : at + len(rows)])
                at += len(rows)
                continue
            state, row = next(states)
            assert self._head is not None  # noqa: S101  `most_ids` would be 0
            few = self._head.logits(state, ids)
            if not np.isfinite(few).all():
                raise InternalError(
                    f"cannot go on: {np.count_nonzero(~np.isfinite(few))} of {len(ids)} logits are not finite",
                    hint="verify the model package; if it is sound, report a defect",
                )
            row.fill(-np.inf)
            row[ids] = few
            found.append(row[None])
        return found

    def _binding(self, first: int, end: int) -> Any:
        """Bind the slots from `first` to `end`; made once for each pair."""
        if (first, end) not in self._bindings:
            binding = self._session.io_binding()
            for name in self._cached:
                value = ort.OrtValue.ortvalue_from_numpy(self._arena.buffers[name][first:end])
                binding.bind_ortvalue_input(name, value)
                binding.bind_ortvalue_output(name.replace("past_key_values", "present"), value)
            self._bindings[first, end] = binding
        return self._bindings[first, end]

    def close(self) -> None:
        """Give the weights back. Caches of this session must not be used any more."""
        self._session = None
        self._bindings.clear()
        self.prefixes.shrink()
        self._head = None
        self._weights.clear()
        self._model.close()
        return_memory()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _lay_out(wanted: Sequence[Wanted]) -> tuple[int, int, list[Span], dict[str, NDArray[Any]]]:
    """Say which slots a pass is about, where each sequence stands in it, and the graph's inputs.

    Returns:
        The first slot and the end; a span for each of `wanted`; the inputs that every graph has, by name.
    """
    # 1. which slots take part: a slot between them that has no tokens is left as it is
    slots = [cache.slot for cache, *_ in wanted]
    first, end = min(slots), max(slots) + 1
    counts, totals = np.zeros(end - first, np.int32), np.ones(end - first, np.int32)
    starts = np.cumsum([0] + [len(tokens) for _, tokens, *_ in wanted])
    spans = [
        Span(cache.slot, cache.length, int(start), int(start) + len(tokens))
        for (cache, tokens, *_), start in zip(wanted, starts, strict=False)
    ]
    for span in spans:
        counts[span.slot - first] = span.end - span.start
        totals[span.slot - first] = span.length + span.end - span.start
    # 2. where each token stands in the padded rows that the attention sees
    longest = int(counts.max())
    padded = np.zeros((end - first, longest), np.int64)
    for span in spans:
        padded[span.slot - first, : span.end - span.start] = np.arange(span.start, span.end)
    rows_of = [(span.slot - first) * longest + np.arange(span.end - span.start) for span in spans]
    # 3. which rows go through the whole head, and which do not
    asked = [(w.rows + span.start, w.ids is None) for w, span in zip(wanted, spans, strict=True)]
    inputs: dict[str, NDArray[Any]] = {
        "input_ids": np.concatenate([tokens for _, tokens, *_ in wanted], dtype=np.int64),
        "query_seqlens": counts,
        "seqlens_k": totals - 1,
        "total_sequence_length": np.array(totals.max(), np.int32),
        "padded_rows": padded,
        "flat_rows": np.concatenate(rows_of, dtype=np.int64),
        "logit_rows": np.concatenate([_NO_ROWS, *(rows for rows, whole in asked if whole)]),
        "hidden_rows": np.concatenate([_NO_ROWS, *(rows for rows, whole in asked if not whole)]),
    }
    return first, end, spans, inputs


def _computes_in_pairs(card: Card) -> bool:
    """Whether a token that is alone in its pass is computed twice, see FOUR_BITS."""
    flags = cpu_flags()
    return card.quantization.bits == FOUR_BITS and "avx2" in flags and not flags & VNNI


def _twice(inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Have the only token of a pass computed a second time, as a sequence that nobody asks for and no cache keeps."""
    again = {name: np.repeat(inputs[name], 2) for name in ("input_ids", "flat_rows")}
    if "conv_seqlens" in inputs:
        again["conv_seqlens"] = np.array([0, 1, 2], np.int32)
        again |= {name: np.repeat(value, 2, axis=0) for name, value in inputs.items() if name.startswith("conv_states")}
    return again


def _open_session(model: VerifiedModel, threads: int) -> tuple[Any, dict[str, Any], Head | None]:
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
        views = {t.name: _view(weights, t) for t in initializers(graph)}
        values = {name: ort.OrtValue.ortvalue_from_numpy(view) for name, view in views.items()}
        for name, value in values.items():
            options.add_initializer(name, value)
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"]), values, Head.of(views)
    except Exception as e:  # onnxruntime's errors have no class in common but this one
        raise CardMismatch(
            f"cannot load {model.name}: onnxruntime refuses the graph ({str(e).splitlines()[0][:200]})",
            hint="build the package again with this version of Skerry",
        ) from e


def _view(weights: memoryview, tensor: ExternalTensor) -> NDArray[Any]:
    """See a tensor in the mapping, without copying it."""
    return (
        np.frombuffer(weights, np.uint8, tensor.length, tensor.offset).view(_DTYPES[tensor.dtype]).reshape(tensor.shape)
    )


def _cache_shapes(session: Any, card: Card) -> tuple[dict[str, tuple[int, int]], Convolutions | None]:
    """Read heads and width of every cache, and the convolutions, from the graph's own inputs and outputs."""
    inputs = {i.name: i.shape for i in session.get_inputs()}
    outputs = {o.name: o.shape for o in session.get_outputs()}
    missing = sorted(_INPUTS - inputs.keys()) + sorted({"logits", "hidden"} - outputs.keys())
    if missing:
        raise CardMismatch(
            f"cannot run {card.name}: its graph has no {', '.join(missing)}",
            hint="build the package again with this version of Skerry",
        )
    if outputs["logits"][-1] != card.vocabulary_size:
        raise CardMismatch(
            f"cannot run {card.name}: its graph gives {outputs['logits'][-1]} logits, expected {card.vocabulary_size}"
        )
    caches = {n: (int(s[1]), int(s[3])) for n, s in inputs.items() if n.startswith("past_key_values.")}
    if not caches:
        raise InternalError(f"cannot run {card.name}: its graph has no cache")
    try:
        return caches, convolutions_of(inputs, outputs)
    except ValueError as e:
        raise CardMismatch(f"cannot run {card.name}: {e}", hint="build the package again") from e
