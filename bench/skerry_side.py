"""Skerry's engine under measurement: the same verified package and session that the daemon uses, without the daemon."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.engine.prefixes import PART
from appliance.engine.session import Session
from appliance.models.package import open_verified
from appliance.models.tokenizer import Tokenizer
from appliance.trust.keys import KeySet
from bench.side import serve

_NONE = np.empty(0, np.int64)


class SkerryEngine:
    """A session and one cache, as `bench.side.Engine`."""

    def __init__(self, path: str, keys: str, threads: int, capacity: int) -> None:
        model = open_verified(Path(path), KeySet.from_directory(Path(keys)))
        self._size_bytes = model.size_bytes
        self._session = Session(model, threads)
        self._cache = self._session.new_cache(capacity)

    def reset(self) -> None:
        """Forget all tokens."""
        self._cache.rewind(0)

    def append(self, tokens: NDArray[np.int64]) -> int:
        """Add tokens, in parts as the daemon does; give the greedy next one."""
        *parts, last = (tokens[start : start + PART] for start in range(0, len(tokens), PART))
        for part in parts:
            self._session.forward(self._cache, part, _NONE)
        return int(np.argmax(self._session.forward(self._cache, last)[-1]))

    def score(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Add tokens; give the logits of each."""
        return self._session.forward(self._cache, tokens, np.arange(len(tokens), dtype=np.int64))

    def facts(self) -> dict[str, Any]:
        """Sizes, and what the card says of the model."""
        card = self._session.card
        return {
            "package_bytes": self._size_bytes,
            "kv_bytes": self._session.cache_bytes(self._cache.capacity),
            "scheme": card.quantization.scheme,
            "vocabulary": card.vocabulary_size,
        }

    def close(self) -> None:
        """Give the weights back."""
        self._session.close()


def tokenize(path: str, keys: str, text: str) -> dict[str, Any]:
    """Give the ids of a text, without the first token, and that token if the model wants it."""
    with open_verified(Path(path), KeySet.from_directory(Path(keys))) as model:
        tokens = model.card.tokens
        ids = Tokenizer(bytes(model.files["tokenizer.json"])).encode(text, bos=False)
        return {"ids": ids, "bos": tokens.bos if tokens.add_bos else None}


def versions() -> dict[str, str]:
    """Name the software under measurement."""
    import onnxruntime

    import appliance

    return {"skerry": appliance.__version__, "onnxruntime": onnxruntime.__version__}


if __name__ == "__main__":
    serve(SkerryEngine, tokenize=tokenize, versions=versions)
