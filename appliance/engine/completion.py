"""From tokens to an answer in words: text, stop strings, the reason for the end.

`complete` wraps `generate`. It gives out text that is final: never half a character, never a part of a stop string,
never what a broken loop takes back.
"""

import copy
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from appliance.decoding.asked import NOTHING, Asked
from appliance.decoding.breaker import HELD, Break, Breaker, Mode, Words
from appliance.decoding.sampling import SamplingParams, TokenLogprobs
from appliance.decoding.stop import StopStrings
from appliance.decoding.text import TextStream, TokenBytes
from appliance.engine.cache import Cache
from appliance.engine.forward import Forward
from appliance.engine.generate import Ended, Event, Prefilled, Rewound, Token, generate
from appliance.engine.session import Session

if TYPE_CHECKING:
    from appliance.decoding.grammar import Grammar, GrammarState

FinishReason: TypeAlias = Literal["stop", "length", "loop"]


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
        breaker: what to do about a loop.
        streamed: whether somebody reads along, so that little can be taken back.
        asked: what the request says of repetition.
        owner: whose prompt it is: only an owner's own beginnings of prompts are used again.
        boundary: tokens of the prompt with which other prompts are likely to begin too.
        grammar: the form that the answer must have.
        spoken: control tokens that are a part of the answer's text, and how they read there.
    """

    prompt: tuple[int, ...]
    sampling: SamplingParams
    max_tokens: int
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    index: int = 0
    breaker: Mode = "break"
    streamed: bool = True
    asked: Asked = NOTHING
    owner: str = ""
    boundary: int = 0
    grammar: "Grammar | None" = None
    spoken: Mapping[int, bytes] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Delta:
    """What one step added to an answer.

    Attributes:
        text: final text, often empty or of several tokens.
        logprobs: of one token that is now final, if they were asked for.
        finish_reason: set in the last delta only.
        usage: set in the last delta only.
        tokens: ids of the tokens that are now final.
        breaks: what was done about loops in this step.
        complete: set in the last delta only: whether the answer came to its grammar's end; None without one. An answer
            that was cut, by its length or a stop text, did only where nothing more could have come.
        at_stop_text: set in the last delta only: whether a stop text ended the answer.
    """

    text: str
    logprobs: TokenLogprobs | None = None
    finish_reason: FinishReason | None = None
    usage: "Usage | None" = None
    tokens: tuple[int, ...] = ()
    breaks: tuple[Break, ...] = ()
    complete: bool | None = None
    at_stop_text: bool = False


@dataclass(frozen=True)
class Usage:
    """What an answer took. Times in seconds of wall time."""

    prompt_tokens: int
    completion_tokens: int
    """Tokens of the answer; what was taken back is not among them."""
    prompt_s: float
    """From the start to the first token, both ends included."""
    decode_s: float
    """From the first token to the last."""
    rewound_tokens: int = 0
    """Tokens that were computed and taken back."""
    cached_tokens: int = 0
    """Tokens of the prompt that had been computed for an earlier one."""
    guessed_tokens: int = 0
    """Tokens of the answer that were guessed right, those that were taken back included."""


def complete(
    session: Session, words: Words, request: CompletionRequest, cache: Cache | None = None
) -> Iterator[Delta | Forward | Prefilled]:
    """Compute an answer step by step.

    Args:
        session: the model.
        words: of its tokenizer.
        request: what to compute.
        cache: as `generate` has it.
    Raises:
        ContextTooLong, OutOfMemory, InternalError: as `generate`.
    """
    started = time.monotonic()
    first: float | None = None
    cached = 0
    prompt = np.array(request.prompt, np.int64)
    grammar = request.grammar.start() if request.grammar else None
    breaker = None
    if request.breaker != "off":
        breaker = Breaker(
            words,
            request.breaker,
            asked=request.asked,
            held=HELD if request.streamed else math.inf,
            in_grammar=grammar is not None,
            thinking=words.thinks_at_end_of(request.prompt),
        )
    answer = _Text(words.token_bytes, request, frozenset(session.card.tokens.stop))
    events = generate(
        session,
        prompt,
        request.sampling,
        max_tokens=request.max_tokens,
        index=request.index,
        top_logprobs=request.top_logprobs,
        breaker=breaker,
        grammar=grammar,
        sequence_breakers=words.breakers if request.sampling.dry_multiplier else (),
        cache=cache,
        owner=request.owner,
        boundary=request.boundary,
    )
    for event in events:
        if isinstance(event, Forward):
            yield event
            continue
        if isinstance(event, Prefilled):
            cached += event.restored
            yield event
            continue
        first = first or time.monotonic()
        answer.take(event)
        if answer.ended:
            break
        yield from answer.settled()
    # Without a reason of its own, the answer ended because there is room for no further token.
    now = time.monotonic()
    first = first or now
    usage = Usage(len(prompt), answer.length, first - started, now - first, answer.rewound, cached, answer.guessed)
    yield from answer.finish(answer.ended or "length", usage, grammar)


class _Text:
    """An answer's text: what is final, and what is still held because it may be taken back."""

    def __init__(self, token_bytes: TokenBytes, request: CompletionRequest, stop_tokens: frozenset[int]) -> None:
        self._token_bytes, self._spoken, self._stop_tokens = token_bytes, request.spoken, stop_tokens
        # The streams as they were before the first held token, and as they are after the last one.
        self._before = (TextStream(), StopStrings(request.stop))
        self._now = (TextStream(), StopStrings(request.stop))
        self._held: list[tuple[Token, str]] = []
        self._given = 0
        self._settled = 0
        self._breaks: list[Break] = []
        self._ended: Literal["stop", "loop"] | None = None
        self._closing = False
        self.rewound = self.guessed = 0

    @property
    def length(self) -> int:
        """Tokens of the answer, a final control token included."""
        return self._given + len(self._held)

    def take(self, event: Event) -> None:
        """Go on by an event."""
        if isinstance(event, Token):
            self._held.append((event, self._say(event, self._now)))
            self._settled = event.settled
            self.guessed += event.guessed
            if event.done:
                self._breaks.append(event.done)
            if event.id in self._stop_tokens:
                self._ended = "stop"
        elif isinstance(event, Rewound):
            self.rewound += self.length - event.length
            del self._held[event.length - self._given :]
            text, stops = self._before
            self._now = (copy.copy(text), copy.copy(stops))
            self._held = [(token, self._say(token, self._now)) for token, _ in self._held]
            if event.done:
                self._breaks.append(event.done)
                self._closing = event.done.rung in ("complete", "stop")
        elif isinstance(event, Ended):
            self._ended = event.reason

    def _say(self, token: Token, streams: tuple[TextStream, StopStrings]) -> str:
        text, stops = streams
        if token.id in self._stop_tokens:  # a control token: it has no text, and no logprobs entry of its own
            return ""
        return stops.push(text.push(self._spoken.get(token.id) or self._token_bytes[token.id]))[0]

    @property
    def ended(self) -> Literal["stop", "loop"] | None:
        """Why the answer ends here; None if it goes on."""
        return "stop" if self._now[1].hit is not None else self._ended

    def settled(self) -> Iterator[Delta]:
        """Give out what is final now, a token each; at least one delta, since every step gives one."""
        ready = max(0, self._settled - self._given)
        for token, said in self._held[:ready]:
            self._say(token, self._before)
            yield self._delta(said, token)
        del self._held[:ready]
        self._given += ready
        if not ready:
            yield self._delta("")

    def finish(self, reason: FinishReason, usage: Usage, grammar: "GrammarState | None") -> Iterator[Delta]:
        """Give out all the rest."""
        text, stops = self._now
        tail = ""
        if stops.hit is None:
            # Nothing more will come that could complete a character or a stop string.
            tail = stops.push(text.finish())[0] + stops.finish()
            reason = "stop" if stops.hit is not None else reason
        if self._closing and reason == "stop":
            reason = "loop"  # a stop text came in the words that close it
        cut = reason == "length" or stops.hit is not None
        complete = None if grammar is None else grammar.ended if cut else grammar.complete
        for token, said in self._held[:-1]:
            yield self._delta(said, token)
        last = self._delta(self._held[-1][1] + tail, self._held[-1][0]) if self._held else self._delta(tail)
        at_stop_text = stops.hit is not None
        yield replace(last, finish_reason=reason, usage=usage, complete=complete, at_stop_text=at_stop_text)

    def _delta(self, said: str, token: Token | None = None) -> Delta:
        breaks, self._breaks = tuple(self._breaks), []
        if token is None or token.id in self._stop_tokens:
            return Delta(said, breaks=breaks)
        return Delta(said, token.logprobs, tokens=(token.id,), breaks=breaks)
