"""What is measured, for both engines by the same code.

Each engine lives in a process of its own, so that memory and CPU time are that engine's alone: `serve` answers the
requests that come in as lines of JSON, `bench.pipe.Side` sends them. A side is fed token ids, never text, so both
compute on the same input; both take the greedy token of every step, so both read their logits.

The peer's interpreter imports this module too: the standard library and numpy only.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

CHUNK = 512
"""Tokens that either engine is given in one call."""

SCORE_ROWS = 64
"""Rows of logits that are taken to double precision at a time; a vocabulary has up to 262,144 columns."""


class Engine(Protocol):
    """What an engine must be able to do to be measured."""

    def reset(self) -> None:
        """Forget all tokens."""

    def append(self, tokens: NDArray[np.int64]) -> int:
        """Add 1 to CHUNK tokens to the context; give the greedy next token."""

    def score(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Add 1 to CHUNK tokens; give the logits of each, shape (tokens, vocabulary)."""

    def facts(self) -> dict[str, Any]:
        """Describe the loaded model: package_bytes, kv_bytes (of the whole cache) and more."""

    def close(self) -> None:
        """Give everything back."""


def feed(engine: Engine, tokens: NDArray[np.int64]) -> None:
    """Append any number of tokens in chunks."""
    for start in range(0, len(tokens), CHUNK):
        engine.append(tokens[start : start + CHUNK])


def repeat(tokens: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Take the first `count` tokens of a text that is repeated as often as needed."""
    return np.resize(tokens, count)


def measure_speed(
    engine: Engine, tokens: NDArray[np.int64], *, prefills: list[int], contexts: list[int], decode: int
) -> dict[str, Any]:
    """Run one round: prefills from nothing, then decoding from each context on, contexts ascending.

    Returns:
        wall_s and cpu_s of "prefill_<length>" and "decode_<context>"; CPU time is that of all threads of the process.
    """
    result: dict[str, Any] = {}
    text = repeat(tokens, max(*prefills, contexts[-1]) + decode)
    for length in prefills:
        engine.reset()
        result[f"prefill_{length}"] = _timed(lambda end=length: feed(engine, text[:end]))
    engine.reset()
    length = 0
    for context in contexts:
        feed(engine, text[length:context])

        def steps(start: int = context) -> None:
            for i in range(start, start + decode):
                engine.append(text[i : i + 1])

        result[f"decode_{context}"] = _timed(steps)
        length = context + decode
    return result


def _timed(work: Callable[[], None]) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


def measure_loss(engine: Engine, tokens: NDArray[np.int64], *, window: int, bos: int | None) -> dict[str, Any]:
    """Sum the negative log likelihood of a text, in windows that begin from nothing.

    Args:
        engine: loaded, with room for `window` tokens.
        tokens: int64, shape (n,); the first token of a window is only context, unless `bos` stands before it.
        window: tokens in a window, `bos` included.
        bos: token to begin every window with, for models that were trained so.
    Returns:
        nats: the sum; scored: how many tokens it is over; perplexity = exp(nats / scored).
    """
    nats, scored = 0.0, 0
    head = [] if bos is None else [bos]
    step = window - len(head)
    for start in range(0, len(tokens), step):
        piece = np.array([*head, *tokens[start : start + step]], np.int64)
        engine.reset()
        for i in range(0, len(piece) - 1, CHUNK):
            known = piece[i : min(i + CHUNK, len(piece) - 1)]
            logits = engine.score(known)
            nats += negative_log_likelihood(logits, piece[i + 1 : i + 1 + len(known)])
            scored += len(known)
    return {"nats": nats, "scored": scored, "perplexity": math.exp(nats / scored)}


def negative_log_likelihood(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> float:
    """Sum -log softmax(logits)[target] over the rows, in nats and double precision.

    Args:
        logits: float32, shape (rows, vocabulary).
        targets: int64, shape (rows,).
    Raises:
        ValueError: a logit is not finite, so the figure would be worthless.
    """
    total = 0.0
    for i in range(0, len(targets), SCORE_ROWS):
        rows = logits[i : i + SCORE_ROWS].astype(np.float64)
        wanted = targets[i : i + SCORE_ROWS]
        rows -= rows.max(axis=1, keepdims=True)
        total += float(np.sum(np.log(np.exp(rows).sum(axis=1)) - rows[np.arange(len(wanted)), wanted]))
    if not math.isfinite(total):
        raise ValueError("cannot score the text: the engine's logits are not finite")
    return total


def memory() -> dict[str, int]:
    """Read this process's resident memory in bytes: all, its peak, anonymous pages and pages of files."""
    names = {"VmRSS": "resident", "VmHWM": "peak", "RssAnon": "anonymous", "RssFile": "file"}
    found = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        field, _, rest = line.partition(":")
        if field in names:
            found[names[field]] = int(rest.split()[0]) * 1024
    return found


class _Session:
    """One engine and the requests about it."""

    def __init__(self, open_engine: Callable[..., Engine], extra: Mapping[str, Callable[..., Any]]) -> None:
        self._open_engine = open_engine
        self._engine: Engine | None = None
        self.requests: dict[str, Callable[..., Any]] = {
            "open": self.open,
            "warm": self.warm,
            "speed": self.speed,
            "loss": self.loss,
            "memory": self.memory,
            **extra,
        }

    @property
    def engine(self) -> Engine:
        if self._engine is None:
            raise ValueError("cannot measure: no model is open")
        return self._engine

    def open(self, **arguments: Any) -> dict[str, Any]:
        """Load a model and compute one token; the time until then is load to ready."""
        before = memory()
        wall, cpu = time.perf_counter(), time.process_time()
        self._engine = self._open_engine(**arguments)
        self.engine.append(np.array([1], np.int64))
        times = {"ready_s": time.perf_counter() - wall, "ready_cpu_s": time.process_time() - cpu}
        return {**times, "memory_before": before, "memory_after": memory(), **self.engine.facts()}

    def warm(self, tokens: list[int]) -> None:
        """Run once, untimed: first touches, code paths, clocks."""
        self.engine.reset()
        feed(self.engine, np.array(tokens, np.int64))

    def speed(self, tokens: list[int], **arguments: Any) -> dict[str, Any]:
        return measure_speed(self.engine, np.array(tokens, np.int64), **arguments)

    def loss(self, tokens: list[int], **arguments: Any) -> dict[str, Any]:
        return measure_loss(self.engine, np.array(tokens, np.int64), **arguments)

    def memory(self, tokens: list[int], prefill: int, decode: int) -> dict[str, int]:
        """Read the memory after a prefill and some decoding, with the cache filled so far."""
        self.engine.reset()
        text = repeat(np.array(tokens, np.int64), prefill + decode)
        feed(self.engine, text[:prefill])
        for i in range(prefill, prefill + decode):
            self.engine.append(text[i : i + 1])
        return memory()


def serve(open_engine: Callable[..., Engine], **extra: Callable[..., Any]) -> None:
    """Answer requests from standard input until it ends: {"do": name, ...arguments} -> {"result"} or {"error"}."""
    # Engines print to file descriptor 1 as they like; the answers get a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    session = _Session(open_engine, extra)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"result": session.requests[request.pop("do")](**request)}
        except Exception as e:  # noqa: BLE001  whatever an engine raises is the answer; the other side reports it
            answer = {"error": f"{type(e).__name__}: {e}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
