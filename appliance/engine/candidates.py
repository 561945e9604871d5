"""Several answers to one request, one after the other, until one is good enough.

The candidates share one cache: what their prompts have in common goes through the model once, and each candidate
rewinds to there. The first one is computed exactly as if it were alone.

What this does NOT do: compute them side by side, or judge them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from appliance.decoding.breaker import Break, Words
from appliance.engine.completion import CompletionRequest, Delta, FinishReason, Usage, complete
from appliance.engine.forward import Forward
from appliance.engine.generate import Prefilled
from appliance.engine.prefixes import common
from appliance.engine.session import Session


@dataclass(frozen=True)
class Finished:
    """One candidate.

    Attributes:
        index: its place in the row.
        text: the whole answer.
        finish_reason: why it ended.
        usage: what it took; `prompt_tokens` counts those that an earlier candidate has computed too.
        breaks: what was done about loops.
        complete: whether it came to its grammar's end; None without one.
    """

    index: int
    text: str
    finish_reason: FinishReason
    usage: Usage
    breaks: tuple[Break, ...]
    complete: bool | None = None


def complete_until(
    session: Session, words: Words, requests: Sequence[CompletionRequest], enough: Callable[[Finished], bool]
) -> Iterator[Delta | Forward | Prefilled]:
    """Compute candidates step by step.

    Args:
        session: the model.
        words: of its tokenizer.
        requests: one for each candidate, at least one.
        enough: is told of each candidate, and says whether no further one is needed.
    Raises:
        ContextTooLong, OutOfMemory, InternalError: as `generate`.
    """
    cache = session.new_cache(max(len(r.prompt) + r.max_tokens for r in requests))
    before: tuple[int, ...] = ()
    for index, request in enumerate(requests):
        cache.rewind(min(cache.length, common(before, request.prompt), len(request.prompt) - 1))
        before = request.prompt
        text: list[str] = []
        breaks: list[Break] = []
        for step in complete(session, words, request, cache):
            yield step
            if isinstance(step, Forward | Prefilled):
                continue
            text.append(step.text)
            breaks += step.breaks
            if step.finish_reason is None or step.usage is None:
                continue
            usage, done = step.usage, tuple(breaks)
            if enough(Finished(index, "".join(text), step.finish_reason, usage, done, step.complete)):
                return
