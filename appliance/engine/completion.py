"""From tokens to an answer in words: text, stop strings, the reason for the end.

`complete` wraps `generate`. It gives out text that is final: never half a character, never a part of a stop string.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from appliance.decoding.sampling import SamplingParams, TokenLogprobs
from appliance.decoding.stop import StopStrings
from appliance.decoding.text import TextStream
from appliance.engine.generate import Prefilled, generate
from appliance.engine.session import Session
from appliance.models.tokenizer import Tokenizer

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class CompletionRequest:
    """One answer to compute.

    Attributes:
        prompt: token ids, at least one.
        sampling: how to choose tokens.
        max_tokens: at least 1; the answer ends with reason "length" there.
        stop: texts that end the answer and are not part of it.
        top_logprobs: None for none, else rivals a token.
        index: which of the request's answers this is.
    """

    prompt: tuple[int, ...]
    sampling: SamplingParams
    max_tokens: int
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    index: int = 0


@dataclass(frozen=True)
class Delta:
    """What one step added to an answer.

    Attributes:
        text: final text, often empty or of several tokens.
        logprobs: of the step's token, if they were asked for.
        finish_reason: set in the last delta only.
        usage: set in the last delta only.
    """

    text: str
    logprobs: TokenLogprobs | None = None
    finish_reason: FinishReason | None = None
    usage: "Usage | None" = None


@dataclass(frozen=True)
class Usage:
    """What an answer took. Times in seconds of wall time."""

    prompt_tokens: int
    completion_tokens: int
    prompt_s: float
    """From the start to the first token, both ends included."""
    decode_s: float
    """From the first token to the last."""


def complete(session: Session, tokenizer: Tokenizer, request: CompletionRequest) -> Iterator[Delta | Prefilled]:
    """Compute an answer step by step.

    Raises:
        ContextTooLong, OutOfMemory, InternalError: as `generate`.
    """
    started = time.monotonic()
    first: float | None = None
    count = 0
    text, stops = TextStream(), StopStrings(request.stop)
    stop_tokens = frozenset(session.card.tokens.stop)
    prompt = np.array(request.prompt, np.int64)
    steps = generate(
        session,
        prompt,
        request.sampling,
        max_tokens=request.max_tokens,
        index=request.index,
        top_logprobs=request.top_logprobs,
    )
    for step in steps:
        if isinstance(step, Prefilled):
            yield step
            continue
        first = first or time.monotonic()
        count += 1
        ended = step.id in stop_tokens  # a control token: it has no text, and no logprobs entry of its own
        emit, hit = stops.push("" if ended else text.push(tokenizer.token_bytes[step.id]))
        if hit is None and (ended or count == request.max_tokens):
            # Nothing more will come that could complete a character or a stop string.
            tail, hit = stops.push(text.finish())
            emit += tail + stops.finish()
            hit = hit or stops.hit
        entry = None if ended else step.logprobs
        if hit is None and not ended and count < request.max_tokens:
            yield Delta(emit, entry)
            continue
        reason: FinishReason = "stop" if ended or hit else "length"
        usage = Usage(len(prompt), count, first - started, time.monotonic() - first)
        yield Delta(emit, entry, reason, usage)
        return
