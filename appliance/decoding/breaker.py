"""Break a loop and go on: what is done about a text that repeats itself, rung by rung.

    breaker = Breaker(words)
    breaker.push(token)              # after each token of the answer
    if (step := breaker.step):       # a loop, and what to do about it
        breaker.rewind()             # cut the answer to step.length, append step.append if it is not empty
    ...                              # and draw on, with breaker.process among the processors

The rungs, from the mildest: draw the first repeated token again, another one, with chance (`resample`); begin the
answer anew if nobody has seen any of it (`restart`), at once where the loop began with the answer; go back again, and
make what would lead back into the loop less likely for a while (`penalize`); inside a thinking block, end it
(`end_thinking`); inside a grammar, complete the structure as briefly as it allows (`complete`); cut the answer before
the repetition (`stop`). A loop that comes back where one was broken meets the next rung; one that begins far from there
begins anew, so a long answer may have several mended places, up to MOST_BREAKS.

An answer that has looped once is likely to loop again. From the first rewind on the finder is wary, and words that
would repeat the answer are less likely (`repeated_words`); the marks between them are not, so lists and tables go on.

A rewind can only take back what nobody has seen. So a token is settled, and shown, once it is not a part of a
repetition under way: ANCHOR tokens later than it was drawn when nothing repeats, at most HELD tokens later when
something does. When a loop is found, nearly always all of it but its first copy is still held. Of an answer that is not
streamed nobody sees anything before its end, and all of it can be taken back.

Nothing here changes an answer in which no loop is found for certain: `process` then returns its input, and the
request's own source of chance is never drawn from.

What this does NOT do: compute. The engine rewinds its cache and asks; a test needs no model.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from appliance.decoding.asked import NOTHING, Asked
from appliance.decoding.list_loops import CERTAIN, WARY, ListItems
from appliance.decoding.loop_shapes import Kind, Place
from appliance.decoding.loops import ANCHOR, Loop, LoopFinder, TokenKinds
from appliance.decoding.penalties import repeated_words, sequence_breakers, window_penalty
from appliance.decoding.sampling import Logits, Tokens, logprobs
from appliance.decoding.text import TokenBytes

Mode = Literal["break", "stop", "warn", "off"]
"""Break loops; end the answer at the first; only say so; do not look for them."""
Rung = Literal["warn", "resample", "penalize", "restart", "end_thinking", "complete", "stop"]

HELD = 256
"""Tokens of a streamed answer that are held back at most; what repeats for longer before it is certain stays shown."""
EARLY = 64
"""A loop whose onset lies before this came with the answer's first words: there is little to keep."""
NEAR = 192
"""A loop whose onset lies fewer tokens than this behind a mended place is the same trouble again."""
MOST_BREAKS = 8
TEMPERATURE, MIN_P = 0.8, 0.1
"""For the draws after a rewind: enough chance to leave, not enough for nonsense."""
RESAMPLED = 24
"""Tokens that are drawn so before the request's own settings rule again."""
MOST_RESTARTS = 2
PENALTY, PENALIZED, HALF_LIFE = 4.0, 256, 64
"""Logits taken off at first, tokens for which the penalty lasts, and in which it halves."""
KEPT_PERIODS = 3
"""Of what was taken back, this much is kept for the record."""
ALTERNATIVES = 8


@dataclass(frozen=True)
class Words:
    """What decoding knows of one model's vocabulary; made once a model.

    Attributes:
        kinds: which tokens are words and numbers.
        token_bytes: of each token.
        think: the control tokens that begin and end a thinking block, if the model has them.
        end_thinking: tokens that end one in good form.
    """

    kinds: TokenKinds
    token_bytes: TokenBytes
    think: tuple[int, int] | None = None
    end_thinking: tuple[int, ...] = ()

    @classmethod
    def of(cls, token_bytes: TokenBytes, names: dict[str, int] | None = None, line_end: Sequence[int] = ()) -> Self:
        """Find out what there is to know.

        Args:
            token_bytes: of each token.
            names: ids of control and other added tokens by their text.
            line_end: tokens of a line's end.
        """
        names = names or {}
        marks = (("<think>", "</think>"), ("<|think_start|>", "<|think_end|>"))
        think = next(((names[b], names[e]) for b, e in marks if b in names and e in names), None)
        return cls(
            TokenKinds.of(token_bytes),
            token_bytes,
            think,
            (*line_end, think[1], *line_end) if think else (),
        )

    @functools.cached_property
    def is_word(self) -> NDArray[np.bool_]:
        """Of each id, whether it is a word or a part of one."""
        return np.frombuffer(self.kinds.word, np.uint8).astype(bool)

    @functools.cached_property
    def breakers(self) -> frozenset[int]:
        """Tokens that DRY lets no repetition reach across; found when the first request asks for it."""
        return sequence_breakers(self.token_bytes)

    def thinks_at_end_of(self, tokens: Sequence[int]) -> bool:
        """Whether a prompt ends inside a thinking block."""
        if self.think is None:
            return False
        begin, end = self.think
        return next((token for token in reversed(tokens) if token in (begin, end)), end) == begin


@dataclass(frozen=True, slots=True)
class Break:
    """One rung that was taken. Positions count the answer's tokens, as it then was.

    Attributes:
        rung: what was done.
        kind, onset, period, copies, likeness: the loop, as `Loop` has them.
        at: tokens that the answer had when it was found.
        length: tokens that were left after the rewind.
        rejected: what was taken back, cut to its first three periods.
        alternatives: (token, natural log of its probability) in the place of the first one taken back, best first.
        replacement: what was drawn there instead, if something was.
    """

    rung: Rung
    kind: Kind
    onset: int
    period: int
    copies: float
    likeness: float
    at: int
    length: int
    rejected: tuple[int, ...] = ()
    alternatives: tuple[tuple[int, float], ...] = ()
    replacement: int | None = None

    @property
    def rewound(self) -> int:
        """How many tokens were taken back."""
        return self.at - self.length


@dataclass(frozen=True, slots=True)
class Step:
    """What to do now.

    Attributes:
        rung: which of the measures.
        length: tokens of the answer to keep.
        append: tokens to append then, before the next one is drawn.
        loop: because of which.
    """

    rung: Rung
    length: int
    loop: Loop
    append: tuple[int, ...] = ()

    @property
    def redraws(self) -> bool:
        """Whether a token is drawn, with chance, in the place of the first one taken back."""
        return self.rung in ("resample", "penalize", "restart")


@dataclass(slots=True)
class _Recovery:
    """The time after a rewind."""

    start: int
    penalized: tuple[int, ...] = ()
    strength: float = 0.0


# --- what the text is -------------------------------------------------------------------------------------------------


class Markdown:
    """Where in a Markdown text its end is: in prose, in a fenced block of code, or in a table."""

    __slots__ = ("_fenced", "_line", "_table")

    def __init__(self) -> None:
        self._line = b""
        self._fenced = self._table = False

    def push(self, data: bytes) -> None:
        """Add a token's bytes."""
        if b"\n" not in data:
            if len(self._line) < 8:
                self._line += data
            return
        *lines, rest = (self._line + data).split(b"\n")
        for line in lines:
            self._take(line.strip())
        self._line = rest[:8]

    def _take(self, line: bytes) -> None:
        if line.startswith((b"```", b"~~~")):
            self._fenced = not self._fenced
        self._table = line.startswith(b"|")

    @property
    def place(self) -> Place:
        """What the text is there."""
        if self._fenced:
            return "code"
        return "table" if self._table or self._line.lstrip().startswith(b"|") else "prose"


# --- the breaker ------------------------------------------------------------------------------------------------------


@dataclass
class Breaker:
    """The watch over one answer.

    Attributes:
        words: of the model.
        mode: what to do about a loop.
        asked: what the request says of repetition.
        held: tokens that are held back at most, infinity for all.
        in_grammar: whether a grammar holds the answer.
        thinking: whether the prompt ends inside a thinking block.
        breaks: what was done so far.
        step: what has to be done now; `rewind` clears it.
        settled: tokens of the answer that can no longer be taken back.
    """

    words: Words
    mode: Mode = "break"
    asked: Asked = NOTHING
    held: float = HELD
    in_grammar: bool = False
    thinking: bool = False
    breaks: list[Break] = field(default_factory=list)
    step: Step | None = None
    settled: int = 0

    def __post_init__(self) -> None:
        self._finder = LoopFinder(self.words.kinds)
        self._markdown, self._items = Markdown(), ListItems()
        self._thinking_at_start = self.thinking
        self._recovery: _Recovery | None = None
        self._bans: dict[int, set[int]] = {}

    @property
    def length(self) -> int:
        """Tokens of the answer."""
        return len(self._finder.tokens)

    def push(self, token: int) -> None:
        """Take in a token that was appended to the answer, and look where that leads; `step` tells."""
        if self.mode == "off":
            self.settled += 1
            return
        finished = self._read(self.length, token)
        loop = self._finder.push(token, "grammar" if self.in_grammar else self._markdown.place)
        end = self.length
        if self.mode == "warn":
            self.settled = end
        elif self.held < math.inf:
            repeated = self._finder.held_from
            if self._items.held_from is not None:
                repeated = min(repeated, self._items.held_from)
            self.settled = max(self.settled, min(end - ANCHOR, repeated), end - int(self.held))
        certain = loop is not None and loop.certain
        if self._is_list_loop(certain) and (certain or finished):
            onset, period = self._items.loop(0 if self.mode == "warn" else self.settled, end)
            if loop is None or not loop.certain:
                loop = Loop("list", onset, period, self._items.repeats, 1.0, certain=True)
            elif onset < loop.onset:  # the list had nothing new to say before it went round and round
                loop = replace(loop, onset=onset)
        if loop is None or not loop.certain:
            return
        if loop.copies <= 1.25 * self._copies_asked(loop):
            return
        self._decide(loop)

    def _copies_asked(self, loop: Loop) -> int:
        if loop.kind != "counter":
            return self.asked.copies
        copy, words = self._finder.tokens[-loop.period :], self.words
        in_a_row = not any(words.kinds.word[token] or b"\n" in words.token_bytes[token] for token in copy)
        return max(self.asked.copies, self.asked.number) if in_a_row else self.asked.copies

    def _is_list_loop(self, loops: bool) -> bool:
        if self._finder.wary:
            return self._items.repeats >= WARY
        return self._items.repeats >= (WARY if loops else CERTAIN) and not self._items.may_be_labels

    def _read(self, index: int, token: int) -> bool:
        data = self.words.token_bytes[token]
        self._markdown.push(data)
        if self.words.think and token in self.words.think:
            self.thinking = token == self.words.think[0]
        return self._items.push(index, data)

    def _decide(self, loop: Loop) -> None:
        if self.mode == "warn":
            if all(done.kind != loop.kind for done in self.breaks):
                self._note("warn", loop, self.length)
            return
        rung = self._rung(loop)
        length = 0 if rung == "restart" else max(loop.onset, self.settled)
        if rung in ("resample", "penalize"):
            length = self._next_item(length, loop)
        if rung == "stop":
            length = self._good_end(length, loop)
        append = self.words.end_thinking if rung == "end_thinking" else ()
        self.step = Step(rung, length, loop, append)

    def _rung(self, loop: Loop) -> Rung:
        if self.mode == "stop" or sum(done.rung != "restart" for done in self.breaks) >= MOST_BREAKS:
            return "complete" if self.in_grammar else "stop"
        since = max((n for n, done in enumerate(self.breaks, 1) if done.rung == "restart"), default=0)
        tries = sum(loop.onset - done.length < NEAR for done in self.breaks[since:]) + (since > 0)
        restarts = sum(done.rung == "restart" for done in self.breaks)
        may_restart = self.held == math.inf and restarts < MOST_RESTARTS
        held_by_form = self.in_grammar or self.thinking
        if tries == 0:
            return "restart" if may_restart and not held_by_form and loop.onset < EARLY else "resample"
        if self.in_grammar:
            return "complete"
        if self.thinking and self.words.end_thinking:
            return "end_thinking"
        if may_restart:
            return "restart"
        return "penalize" if tries <= 2 else "stop"

    def _next_item(self, length: int, loop: Loop) -> int:
        """Go on to where a line begins to say something, if one begins within the second copy.

        Lines often end alike before they are alike: what has to be another one is the next line, not this one's end.
        """
        tokens, data = self._finder.tokens, self.words.token_bytes
        end = min(len(tokens), length + loop.period)
        start = next((at for at in range(max(1, length), end) if data[tokens[at - 1]].endswith(b"\n")), end)
        return next((at for at in range(start, end) if self.words.kinds.word[tokens[at]]), length)

    def _good_end(self, length: int, loop: Loop) -> int:
        """Go back to the end of a line or sentence, as long as the first copy is not lost."""
        earliest = max(self.settled, length - loop.period + 1)
        for end in range(length, earliest - 1, -1):
            said = self.words.token_bytes[self._finder.tokens[end - 1]].rstrip(b" ") if end else b"\n"
            if said.endswith((b"\n", b".", b"!", b"?", b":")):
                return end
        return length

    # --- after a step -------------------------------------------------------------------------------------------------

    def rewind(self) -> Break:
        """Forget what `step` takes back, as the engine does.

        Returns:
            What was done, for the record; `drawn` completes it where a token is drawn anew.
        """
        step = self.step
        if step is None:
            raise ValueError("there is no step to take")
        self.step = None
        tokens = self._finder.tokens
        if step.redraws:
            self._recovery = recovery = _Recovery(step.length)
            if step.rung != "restart":
                self._bans.setdefault(step.length, set()).add(tokens[step.length])
            if step.rung == "penalize":
                recovery.penalized = tuple(tokens[-2 * step.loop.period :])
                recovery.strength = PENALTY * (1 + sum(done.rung == "penalize" for done in self.breaks))
        done = self._note(step.rung, step.loop, step.length)
        self._finder.wary = True
        self._finder.truncate(step.length)
        self._markdown, self._items, self.thinking = Markdown(), ListItems(), self._thinking_at_start
        for index, token in enumerate(self._finder.tokens):
            self._read(index, token)
        self._bans = {at: bans for at, bans in self._bans.items() if at <= step.length}
        return done

    def drawn(self, logits: Logits, token: int) -> Break | None:
        """Tell what was drawn in the place of what was taken back, before it is pushed.

        Args:
            logits: the model's own row, unprocessed.
            token: what was drawn from it.
        Returns:
            The last break, complete; None if the last rewind is no longer the last thing that happened.
        """
        recovery = self._recovery
        if recovery is None or recovery.start != self.length or self.breaks[-1].replacement is not None:
            return None
        top = logprobs(logits, token, min(ALTERNATIVES, logits.size)).top
        self.breaks[-1] = replace(self.breaks[-1], alternatives=top, replacement=token)
        return self.breaks[-1]

    def _note(self, rung: Rung, loop: Loop, length: int) -> Break:
        tokens = self._finder.tokens
        rejected = tuple(tokens[length : max(length, loop.onset) + KEPT_PERIODS * loop.period])
        done = Break(
            rung, loop.kind, loop.onset, loop.period, loop.copies, loop.likeness, len(tokens), length, rejected
        )
        self.breaks.append(done)
        return done

    @property
    def recovering(self) -> bool:
        """Whether the next token is drawn with chance because a loop was broken just before."""
        return self._recovery is not None and self.length - self._recovery.start < RESAMPLED

    def process(self, tokens: Tokens, logits: Logits) -> Logits:
        """Ban what began a loop here, and make words that would repeat the answer less likely: a processor.

        Args:
            tokens: prompt and answer; only the answer's end is looked at.
            logits: float32, shape (vocabulary,); never changed.
        """
        recovery = self._recovery
        if recovery is None:
            return logits
        age = self.length - recovery.start
        logits = repeated_words(logits, self._finder.symbols, self.words.is_word)
        if recovery.strength and age < PENALIZED:
            loop, answer = recovery.penalized, self._finder.tokens
            logits = window_penalty(logits, loop, recovery.strength, age, HALF_LIFE, answer)
        if age == 0:
            banned = [token for token in self._bans.get(recovery.start, ()) if np.isfinite(logits[token])]
            # A grammar may allow nothing else.
            if np.count_nonzero(np.isfinite(logits)) > len(banned):
                logits = logits.copy()
                logits[banned] = -np.inf
        return logits
