"""From a prompt to tokens: prefill, then one token a step; back again where a loop is broken.

`generate` is a generator that goes one step each time it is asked, so that a scheduler can interleave several and stop
any of them between two steps. A step that needs the model yields a `Forward` first, which the scheduler may compute
together with those of others. It knows nothing of text, sockets or threads.

Rewinding asks one thing of a cache, `rewind(length) -> length`: forget tokens from the end and say how many are left.
A cache of keys and values goes back to exactly there. One with recurrent state may go back further, to its last
snapshot; what is missing then goes through the model again.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from appliance.decoding.breaker import MIN_P, TEMPERATURE, Break, Breaker
from appliance.decoding.sampling import (
    Logits,
    Processor,
    SamplingParams,
    TokenLogprobs,
    Tokens,
    apply,
    choose,
    logprobs,
    processors,
    require_finite,
)
from appliance.engine.cache import Cache
from appliance.engine.drafts import Drafts
from appliance.engine.forward import Forward
from appliance.engine.prefixes import EVERYBODY, parts_of
from appliance.engine.session import Session

if TYPE_CHECKING:
    from appliance.decoding.grammar import GrammarState


_NO_ROWS = np.empty(0, np.int64)


@dataclass(frozen=True)
class Prefilled:
    """A part of the prompt is in the cache; there is no token yet. `restored` tokens of it were computed before."""

    done: int
    total: int
    restored: int = 0


@dataclass(frozen=True)
class Token:
    """One token was appended to the answer.

    Attributes:
        id: in the model's vocabulary.
        settled: how many tokens of the answer can no longer be taken back.
        logprobs: of the token and its rivals, if they were asked for.
        done: the break that this token replaces the onset of, or the warning that it set off.
        guessed: whether it was computed together with the token before it, because it had been guessed.
    """

    id: int
    settled: int
    logprobs: TokenLogprobs | None = None
    done: Break | None = None
    guessed: bool = False


@dataclass(frozen=True)
class Rewound:
    """The answer was cut to `length` tokens; what follows is appended there.

    `done` is set if it is complete: no token is drawn in the place of what was taken back.
    """

    length: int
    done: Break | None = None


@dataclass(frozen=True)
class Ended:
    """The answer is complete without a token that says so: its grammar ends here, or its loop was cut off."""

    reason: Literal["stop", "loop"]


Event = Forward | Prefilled | Token | Rewound | Ended


def prefill(
    session: Session, cache: Cache, prompt: NDArray[np.int64], owner: str = "", boundary: int = 0
) -> Iterator[Forward | Prefilled]:
    """Put all of the prompt but its last token into the cache: what is kept of it, then a part a step.

    The last token stays for the first decoding step, which makes that step equal to all later ones.

    Args:
        session: the model.
        cache: holds a beginning of the prompt, or nothing.
        prompt: int64, shape (n,), n >= 1.
        owner: whose prompt it is; only an owner's own beginnings are used, see `prefixes`.
        boundary: tokens with which other prompts are likely to begin too.
    """
    total, parts = len(prompt) - 1, parts_of(prompt, boundary)

    def restored() -> bool:
        return bool(session.prefixes.restore(cache, parts, owner))

    began = cache.length
    if restored():
        yield Prefilled(cache.length, total, cache.length - began)
    for part in parts:
        if part.end <= cache.length:
            continue
        # A cache of an earlier candidate may end within a part: what is computed then is no part to keep.
        began, whole = cache.length, cache.length == part.start
        # While it waits for its turn, another prompt may bring the part.
        forward = Forward(session, cache, prompt[began : part.end], _NO_ROWS, restored)
        yield forward
        skipped = forward.finish()
        if whole and not skipped:
            session.prefixes.keep(cache, parts, owner)
        yield Prefilled(cache.length, total, cache.length - began if skipped else 0)


def warm(session: Session, beginning: NDArray[np.int64]) -> Iterator[Forward | Prefilled]:
    """Compute a beginning of prompts before anybody asks, and keep it for every caller.

    Args:
        session: the model.
        beginning: int64, shape (n,), up to the boundary of the prompts.
    Raises:
        ContextTooLong, OutOfMemory: there is no room for it.
    """
    cache = session.new_cache(len(beginning) + 1)
    # The last token of a prompt stays for the first step, so that it takes one token more than what is kept.
    prompt = np.append(beginning, 0)
    yield from prefill(session, cache, prompt, EVERYBODY, len(beginning))


def generate(
    session: Session,
    prompt: NDArray[np.int64],
    sampling: SamplingParams,
    *,
    max_tokens: int,
    index: int = 0,
    top_logprobs: int | None = None,
    breaker: Breaker | None = None,
    grammar: "GrammarState | None" = None,
    sequence_breakers: Collection[int] = (),
    cache: Cache | None = None,
    owner: str = "",
    boundary: int = 0,
) -> Iterator[Event]:
    """Generate up to `max_tokens` tokens after a prompt.

    Args:
        session: the model.
        prompt: int64, shape (n,), n >= 1.
        sampling: how to choose; the same seed and request choose the same tokens.
        max_tokens: upper bound of the answer's tokens; the caller stops earlier by not asking on.
        index: which of a request's answers this is; each has chances of its own.
        top_logprobs: None for none, else how many rivals' log probabilities come with each token.
        breaker: watches for loops; none: nobody does.
        grammar: says which tokens may follow; none: all.
        sequence_breakers: tokens that no repetition reaches across, for DRY.
        cache: with room for prompt and answer, holding a beginning of the prompt; none: a new one.
        owner, boundary: as `prefill` has them.
    Raises:
        ContextTooLong: prompt and answer do not fit into the context.
        OutOfMemory: nor into memory.
        InternalError: the model gave something that is not a number.
    """
    # 1. room for everything that may come
    cache = session.new_cache(len(prompt) + max_tokens) if cache is None else cache
    # 2. the prompt
    yield from prefill(session, cache, prompt, owner, boundary)
    # 3. what changes the logits, and a source of chance
    # Who asks how likely a token was asks about all of them.
    most_ids = 0 if grammar is None or top_logprobs is not None else session.most_ids
    answer = _Answer(session, cache, prompt, max_tokens, breaker, grammar, most_ids)
    draw = _Draw(sampling, len(prompt), index, breaker, grammar, sequence_breakers)
    # 4. a forward a step, and of it as many tokens as were guessed; after each what must follow it, or a rewind
    while answer.has_room:
        forward = answer.forward()
        yield forward
        for logits in answer.rows(forward.logits):
            if forward.ids is None:
                require_finite(logits)
            token = draw(answer.tokens, logits)
            done = breaker.drawn(logits, token) if breaker else None
            entry = None if top_logprobs is None else logprobs(logits, token, top_logprobs)
            yield answer.append(token, entry, done)
            if breaker and breaker.step and not answer.ended:
                yield from answer.take(breaker)
            elif grammar and top_logprobs is None:
                yield from answer.append_forced(grammar)
            if answer.ended:
                yield Ended(answer.ended)
                return


class _Answer:
    """The tokens of prompt and answer, and what has to know of each."""

    def __init__(
        self,
        session: Session,
        cache: Cache,
        prompt: NDArray[np.int64],
        max_tokens: int,
        breaker: Breaker | None,
        grammar: "GrammarState | None",
        most_ids: int,
    ) -> None:
        self._session, self._cache, self._breaker, self._grammar = session, cache, breaker, grammar
        self._most_ids = most_ids  # up to so many tokens that the form allows are computed alone
        self._stop = frozenset(session.card.tokens.stop)
        self._drafts = Drafts(session.draft_tokens)
        self._guess: list[int] = []  # what is in the cache behind `_certain`, as far as it was not found wrong
        self._start = self._end = self._certain = len(prompt)
        self._buffer = np.empty(len(prompt) + max_tokens, np.int64)
        self._buffer[: self._end] = prompt
        self.ended: Literal["stop", "loop"] | None = None

    @property
    def tokens(self) -> NDArray[np.int64]:
        """Prompt and answer, int64, shape (n,)."""
        return self._buffer[: self._end]

    @property
    def has_room(self) -> bool:
        """Whether one more token may come."""
        return self._end < len(self._buffer)

    def forward(self) -> Forward:
        """What is not yet in the cache, and a guess of what follows, to go through the model at once."""
        cached, self._certain = self._cache.length, self._end
        recovering = self._breaker is not None and self._breaker.recovering
        self._guess = [] if recovering else self._drafts.propose(self.tokens, len(self._buffer) - self._end)
        if self._guess and self._grammar:  # what the form forbids is not worth computing
            self._guess = self._guess[: self._grammar.accepts(self._guess)]
        tokens = np.concatenate([self._buffer[cached : self._end], np.array(self._guess, np.int64)])
        rows = np.arange(self._certain - cached - 1, len(tokens))
        # What is drawn after a break is told with its rivals, so all of them are needed then.
        alone = len(rows) == 1 and self._most_ids and not recovering
        ids = self._grammar.few(self._most_ids) if alone and self._grammar else None
        return Forward(self._session, self._cache, tokens, rows, ids=ids)

    def rows(self, logits: Logits) -> Iterator[Logits]:
        """Give out the rows of a forward.

        Args:
            logits: float32, shape (1 + tokens of the guess, vocabulary).
        Yields:
            The row from which the next token is drawn, float32, shape (vocabulary,); and again, as long as the tokens
            that were appended since are those of the guess.
        """
        guess, added = self._guess, 0
        while self.has_room:
            yield logits[added]
            added = self._end - self._certain
            if not 0 < added <= len(self._guess):
                break
        if added <= 0:  # the answer was cut
            self._drafts.rewind(self._end)
        elif guess:
            self._drafts.learn(self._end, len(guess), min(added, len(self._guess)))

    def append(self, token: int, entry: TokenLogprobs | None = None, done: Break | None = None) -> Token:
        """Append a token, and tell grammar and breaker."""
        guess = self._guess[self._end - self._certain :]
        if guess and guess[0] != token:
            self._cache.rewind(self._end)
            self._guess = self._guess[: self._end - self._certain]
        self._buffer[self._end] = token
        self._end += 1
        ending = token in self._stop
        if self._grammar and not ending:
            self._grammar.advance(token)
            if self._grammar.ended:
                self.ended = "stop"
        settled = self._end - self._start
        if self._breaker and not ending:
            if self._grammar and self._grammar.mixes_text:
                # Where a free text may end, as between two calls, it is not held by the grammar.
                self._breaker.in_grammar = not self._grammar.complete
            warned = len(self._breaker.breaks)
            self._breaker.push(token)
            settled = self._breaker.settled
            if len(self._breaker.breaks) > warned:
                done = self._breaker.breaks[-1]
        return Token(token, settled, entry, done, guess[:1] == [token])

    def append_forced(self, grammar: "GrammarState") -> Iterator[Token]:
        """Append the tokens that the grammar leaves no choice about; a loop among them is the grammar's own."""
        for token in [] if self.ended else grammar.forced():
            if not self.has_room:
                return
            yield self.append(token)
            if self._breaker:
                self._breaker.step = None

    def take(self, breaker: Breaker) -> Iterator[Event]:
        """Do what the breaker wants: cut the answer, and append what it says."""
        step = breaker.step
        assert step is not None  # noqa: S101  the caller looked
        done = breaker.rewind()
        if self._grammar:
            self._grammar.rollback(self._end - self._start - step.length)
        self._end = self._start + step.length
        self._guess = []
        self.ended = None
        # The last token stays for the next forward, as after the prompt.
        if self._cache.length >= self._end:
            self._cache.rewind(self._end - 1)
        yield Rewound(step.length, None if step.redraws else done)
        append: Sequence[int] = step.append
        ended: Literal["stop", "loop"] | None = "loop" if step.rung == "stop" else None
        if step.rung == "complete" and self._grammar:
            rest = self._grammar.shortest_completion()
            append, ended = rest or (), "loop"
        for token in append:
            if not self.has_room:
                self.ended = None
                return
            yield self.append(token)
        self.ended = ended


class _Draw:
    """How the next token is drawn: as the request says, or with chance for a while after a rewind."""

    def __init__(
        self,
        sampling: SamplingParams,
        prompt_length: int,
        index: int,
        breaker: Breaker | None,
        grammar: "GrammarState | None",
        sequence_breakers: Collection[int],
    ) -> None:
        extra: list[Processor] = []
        if grammar:
            extra.append(lambda _tokens, logits: grammar.mask(logits))
        if breaker:
            extra.append(breaker.process)  # last: it bans nothing that a grammar leaves no choice about
        self._breaker = breaker
        self._usual = processors(sampling, prompt_length, extra, sequence_breakers)
        self._rng = sampling.generator(index)
        leaving = sampling.leaving(TEMPERATURE, MIN_P)
        self._leaving = processors(leaving, prompt_length, extra, sequence_breakers)
        # A stream of its own: the request's own draws are those that it would have been without a break.
        self._leaving_rng = leaving.generator(index, purpose=1)

    def __call__(self, tokens: Tokens, logits: Logits) -> int:
        if self._breaker and self._breaker.recovering:
            return choose(apply(self._leaving, tokens, logits), self._leaving_rng)
        return choose(apply(self._usual, tokens, logits), self._rng)
