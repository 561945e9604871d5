"""A session that says what a test wants: chosen tokens, chosen logits, and a count of its steps."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from appliance.decoding.sampling import Logits


class ScriptedSession:
    """Stands in for `Session`: step by step, the next token of the script has by far the highest logit."""

    def __init__(self, script: Sequence[int], vocabulary_size: int = 300, stop: tuple[int, ...] = ()) -> None:
        self.script = list(script)
        self.vocabulary_size = vocabulary_size
        self.card = SimpleNamespace(tokens=SimpleNamespace(stop=stop), name="scripted", context_length=10_000)
        self.forwards: list[int] = []
        self.said = 0

    def new_cache(self, capacity: int) -> Any:
        return SimpleNamespace(length=0, capacity=capacity)

    def forward(self, cache: Any, tokens: Any, rows: Any = None) -> Logits:
        self.forwards.append(len(tokens))
        cache.length += len(tokens)
        logits = np.zeros((1, self.vocabulary_size), np.float32)
        if len(tokens) == 1:
            logits[0, self.script[self.said]] = 50
            self.said += 1
        return logits
