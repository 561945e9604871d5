"""From a prompt to tokens: prefill, then one token a step.

`generate` is a generator that computes one step each time it is asked, so that a scheduler can interleave several and
stop any of them between two steps. It knows nothing of text, sockets or threads.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from appliance.decoding.sampling import SamplingParams, TokenLogprobs, apply, choose, logprobs, processors
from appliance.engine.session import Cache, Session

PREFILL_CHUNK = 256
"""Tokens of a prompt that go through the model at once: the longest that a cancel or another caller waits. Always the
same, because int8 kernels give slightly different logits for other chunks, and equal requests must give equal tokens.
"""


@dataclass(frozen=True)
class Prefilled:
    """A part of the prompt went through the model; there is no token yet."""

    done: int
    total: int


@dataclass(frozen=True)
class Token:
    """One generated token.

    Attributes:
        id: in the model's vocabulary.
        logprobs: of the token and its rivals, if they were asked for.
    """

    id: int
    logprobs: TokenLogprobs | None = None


def prefill(session: Session, cache: Cache, prompt: NDArray[np.int64]) -> Iterator[Prefilled]:
    """Put all of the prompt but its last token into the cache, a chunk a step.

    The last token stays for the first decoding step, which makes that step equal to all later ones.
    """
    total = len(prompt) - 1
    while cache.length < total:
        chunk = prompt[cache.length : min(total, cache.length + PREFILL_CHUNK)]
        session.forward(cache, chunk)
        yield Prefilled(cache.length, total)


def generate(
    session: Session,
    prompt: NDArray[np.int64],
    sampling: SamplingParams,
    *,
    max_tokens: int,
    index: int = 0,
    top_logprobs: int | None = None,
) -> Iterator[Prefilled | Token]:
    """Generate up to `max_tokens` tokens after a prompt.

    Args:
        session: the model.
        prompt: int64, shape (n,), n >= 1.
        sampling: how to choose; the same seed and request choose the same tokens.
        max_tokens: upper bound of the tokens generated; the caller stops earlier by not asking on.
        index: which of a request's answers this is; each has chances of its own.
        top_logprobs: None for none, else how many rivals' log probabilities come with each token.
    Raises:
        ContextTooLong: prompt and answer do not fit into the context.
        OutOfMemory: nor into memory.
        InternalError: the model gave something that is not a number.
    """
    # 1. room for everything that may come
    length = len(prompt)
    cache = session.new_cache(length + max_tokens)
    tokens = np.empty(length + max_tokens, np.int64)
    tokens[:length] = prompt
    # 2. the prompt
    yield from prefill(session, cache, prompt)
    # 3. what changes the logits, and a source of chance
    chain = processors(sampling, prompt_length=length)
    rng = sampling.generator(index)
    # 4. one token a step
    for end in range(length, length + max_tokens):
        logits = session.forward(cache, tokens[end - 1 : end])[0]
        token = choose(apply(chain, tokens[:end], logits), rng)
        tokens[end] = token
        yield Token(token, None if top_logprobs is None else logprobs(logits, token, top_logprobs))
