"""A session that says what a test wants: chosen tokens, chosen logits, and a count of its steps."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from appliance.decoding.sampling import Logits
from appliance.engine.prefixes import Prefixes
from appliance.engine.session import Wanted


class ScriptedCache:
    """Counts tokens as a cache does."""

    def __init__(self, capacity: int) -> None:
        self.length, self.capacity = 0, capacity

    def rewind(self, length: int) -> int:
        assert 0 <= length <= self.length
        self.length = length
        return length


class ScriptedSession:
    """Stands in for `Session`: step by step, the next token of the script has by far the highest logit."""

    def __init__(self, script: Sequence[int], vocabulary_size: int = 300, stop: tuple[int, ...] = ()) -> None:
        self.script = list(script)
        self.vocabulary_size = vocabulary_size
        self.card = SimpleNamespace(tokens=SimpleNamespace(stop=stop), name="scripted", context_length=10_000)
        self.prefixes, self.draft_tokens = Prefixes(0), 0
        self.forwards: list[int] = []
        self.said = 0
        self.most_ids = vocabulary_size // 4

    def new_cache(self, capacity: int) -> Any:
        return ScriptedCache(capacity)

    def forward_together(self, wanted: Sequence[Wanted]) -> list[Logits]:
        """One after the other; what was not asked for is minus infinity."""
        found = [self.forward(w.cache, w.tokens, w.rows) for w in wanted]
        for row, w in zip(found, wanted, strict=True):
            if w.ids is not None:
                assert len(w.rows) == 1
                row[:, np.delete(np.arange(self.vocabulary_size), w.ids)] = -np.inf
        return found

    def forward(self, cache: Any, tokens: Any, rows: Any = None) -> Logits:
        assert len(tokens), "a model needs a token"
        self.forwards.append(len(tokens))
        cache.length += len(tokens)
        assert cache.length <= cache.capacity, "a cache is as large as was asked for"
        logits = np.zeros((1, self.vocabulary_size), np.float32)
        if len(tokens) == 1:
            logits[0, self.script[self.said]] = 50
            self.said += 1
        return logits


class RuledSession(ScriptedSession):
    """A model that is a function: the logits of the next token depend on the tokens in the cache and nothing else."""

    def __init__(
        self, rule: Callable[[Sequence[int]], dict[int, float]], vocabulary_size: int = 300, stop: tuple[int, ...] = ()
    ) -> None:
        super().__init__([], vocabulary_size, stop)
        self.rule = rule
        self.seen: list[int] = []

    def forward(self, cache: Any, tokens: Any, rows: Any = None) -> Logits:
        assert len(tokens), "a model needs a token"
        self.forwards.append(len(tokens))
        before = cache.length
        self.seen = [*self.seen[:before], *map(int, tokens)]
        cache.length += len(tokens)
        assert cache.length <= cache.capacity, "a cache is as large as was asked for"
        wanted = [len(tokens) - 1] if rows is None else list(rows)
        logits = np.zeros((len(wanted), self.vocabulary_size), np.float32)
        for row, at in enumerate(wanted):
            for token, logit in self.rule(self.seen[: before + at + 1]).items():
                logits[row, token] = logit
        return logits
