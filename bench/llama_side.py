"""llama.cpp under measurement, through the C interface of PyPI's `llama-cpp-python`, in that package's own interpreter.

The package's high-level class copies logits and keeps token lists; the C functions are called directly, so that what is
timed is llama.cpp. Defaults of llama.cpp are kept except: threads, the size of the context, flash attention on or off,
and a sliding-window cache of the window's size (as llama.cpp's own programs have it).
"""

import ctypes
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llama_cpp as llama  # type: ignore[import-not-found]  # only in the peer's interpreter
import numpy as np
from numpy.typing import NDArray

from bench.side import CHUNK, serve


@llama.llama_log_callback  # type: ignore[untyped-decorator]
def _silent(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
    """Drop llama.cpp's log lines."""


llama.llama_log_set(_silent, ctypes.c_void_p(0))
llama.llama_backend_init()


class LlamaEngine:
    """A model, its context and a batch, as `bench.side.Engine`."""

    def __init__(self, path: str, threads: int, capacity: int, flash: bool) -> None:
        self._path = path
        self._model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
        if not self._model:
            raise ValueError(f"llama.cpp cannot load {Path(path).name}")
        self._vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model))
        wanted = llama.llama_context_default_params()
        wanted.n_ctx = capacity
        wanted.n_batch = wanted.n_ubatch = CHUNK
        wanted.n_threads = wanted.n_threads_batch = threads
        wanted.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash else llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        wanted.swa_full = False
        self._context = llama.llama_init_from_model(self._model, wanted)
        if not self._context:
            raise ValueError(f"llama.cpp cannot make a context for {Path(path).name}")
        self._batch = llama.llama_batch_init(CHUNK, 0, 1)
        self._length = 0

    def reset(self) -> None:
        """Forget all tokens."""
        llama.llama_memory_clear(llama.llama_get_memory(self._context), False)
        self._length = 0

    def append(self, tokens: NDArray[np.int64]) -> int:
        """Add tokens; give the greedy next one."""
        self._decode(tokens, every=False)
        return int(np.argmax(self._row(len(tokens) - 1)))

    def score(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Add tokens; give the logits of each."""
        self._decode(tokens, every=True)
        return np.stack([self._row(i) for i in range(len(tokens))])

    def facts(self) -> dict[str, Any]:
        """Sizes, and llama.cpp's own name of the model's type."""
        text = ctypes.create_string_buffer(256)
        llama.llama_model_desc(self._model, text, len(text))
        return {
            "package_bytes": Path(self._path).stat().st_size,
            "kv_bytes": None,
            "scheme": text.value.decode("utf-8", "replace"),
            "vocabulary": self._vocabulary,
        }

    def close(self) -> None:
        """Give everything back."""
        llama.llama_batch_free(self._batch)
        llama.llama_free(self._context)
        llama.llama_model_free(self._model)

    def _decode(self, tokens: NDArray[np.int64], *, every: bool) -> None:
        batch, count = self._batch, len(tokens)
        batch.n_tokens = count
        for i, token in enumerate(tokens.tolist()):
            batch.token[i] = token
            batch.pos[i] = self._length + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = every or i == count - 1
        code = llama.llama_decode(self._context, batch)
        if code:
            raise ValueError(f"llama_decode returned {code} for {count} tokens after {self._length}")
        self._length += count

    def _row(self, index: int) -> NDArray[np.float32]:
        return np.ctypeslib.as_array(llama.llama_get_logits_ith(self._context, index), (self._vocabulary,))


def tokenize(path: str, text: str) -> list[int]:
    """Give llama.cpp's own ids of a text, without the first token, to compare with ours."""
    only = llama.llama_model_default_params()
    only.vocab_only = True
    model = llama.llama_model_load_from_file(path.encode(), only)
    if not model:
        raise ValueError(f"llama.cpp cannot load {Path(path).name}")
    raw = text.encode()
    ids = (llama.llama_token * (len(raw) + 8))()
    count = llama.llama_tokenize(llama.llama_model_get_vocab(model), raw, len(raw), ids, len(ids), False, False)
    llama.llama_model_free(model)
    if count < 0:
        raise ValueError(f"llama_tokenize returned {count}")
    return list(ids[:count])


def quantize(source: str, target: str, form: str, threads: int) -> None:
    """Make a GGUF of another type (Q8_0, Q4_0, ...) from one that is quantized already."""
    wanted = llama.llama_model_quantize_default_params()
    wanted.ftype = getattr(llama, f"LLAMA_FTYPE_MOSTLY_{form}")
    wanted.nthread = threads
    wanted.allow_requantize = True
    partial = target + ".partial"
    code = llama.llama_model_quantize(source.encode(), partial.encode(), ctypes.byref(wanted))
    if code:
        Path(partial).unlink(missing_ok=True)
        raise ValueError(f"llama_model_quantize returned {code} for {form}")
    Path(partial).replace(target)


def versions() -> dict[str, str]:
    """Name the software under measurement, and the instructions that llama.cpp was built for."""
    built_for = llama.llama_print_system_info().decode()
    return {"llama-cpp-python": version("llama-cpp-python"), "llama.cpp built for": built_for.strip(" |")}


if __name__ == "__main__":
    serve(LlamaEngine, tokenize=tokenize, quantize=quantize, versions=versions)
