"""Texts that exist already, put through the breaker's policy token by token: would it have acted, and where.

No model computes here. A hard intervention is the first step that the breaker asks for: a rewind, whatever the rung.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from appliance.decoding.asked import Asked
from appliance.decoding.breaker import Breaker, Step, Words
from appliance.models.tokenizer import Tokenizer
from bench.loops.corpus import MAX_TOKENS, Document


@dataclass(frozen=True)
class Acted:
    """Where the breaker first acts on a text.

    Attributes:
        at: tokens that the text had then.
        step: what it would do.
    """

    at: int
    step: Step


@dataclass(frozen=True)
class Replayed:
    """A document and what became of it; `acted` is None where nothing was done."""

    document: Document
    tokens: int
    acted: Acted | None


def first_step(words: Words, tokens: Iterable[int], request: str | None = None) -> Acted | None:
    """Feed a text until the breaker acts.

    Args:
        words: of the tokens' vocabulary.
        tokens: of the text.
        request: what was asked, if the text is an answer.
    """
    breaker = Breaker(words, "break", asked=Asked.of(request or ""))
    for at, token in enumerate(tokens, 1):
        breaker.push(token)
        if breaker.step is not None:
            return Acted(at, breaker.step)
    return None


def replay(documents: Sequence[Document], tokenizer: Tokenizer, words: Words) -> Iterator[Replayed]:
    """Feed every document, cut to MAX_TOKENS tokens, to a breaker of its own."""
    for document in documents:
        tokens = tokenizer.encode(document.text, bos=False)[:MAX_TOKENS]
        yield Replayed(document, len(tokens), first_step(words, tokens, document.request))
