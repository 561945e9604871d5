"""Answers in an asked-for form: which tokens may come next, and how to reach an end.

    vocabulary = Vocabulary(tokenizer.token_bytes, tokenizer.control, card.tokens.stop, encode)   # once a model
    grammar = compile_grammar(Constraint("json_schema", schema_text), vocabulary)                 # once a request
    state = grammar.start()                                                                       # once an answer
    while not state.ended:
        for token in state.forced() or [choose(state.mask(logits))]:
            state.advance(token)

llguidance does the parsing; this module is its only home. `json_bounds` narrows what it allows, so that no grammar is a
place where a model can loop for ever; `completion_search` finds the shortest end from anywhere.

JSON is written as Python's `json.dumps` writes it by default: one line, one space after a comma and a colon. A model
that may choose its white space sometimes writes nothing else; `SEPARATORS` says why it is this form.

A grammar may be shared by threads; a state belongs to one answer and one thread at a time.

What this does NOT do: make an answer true, or valid in every detail. A grammar knows nothing of two equal keys, for
one; `conformity.conforms` judges the finished text a second time.

Source: the documentation of llguidance 1.9, json_schema.md and syntax.md.
"""

import functools
import itertools
import json
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import llguidance
import numpy as np
from numpy.typing import NDArray

from appliance.decoding import json_schema, lark
from appliance.decoding.completion_search import Candidates, find_completion
from appliance.decoding.json_bounds import (
    DEFAULT_BOUNDS,
    EMBEDDED_BOUNDS,
    START_OF_TEXT,
    Bounds,
    JsonBounds,
    Place,
    TokenShapes,
)
from appliance.decoding.text import TokenBytes
from appliance.decoding.weights import Logits
from appliance.errors import InternalError, InvalidRequest

SEPARATORS = (", ", ": ")
"""Between items, and between a key and its value. Measured on SmolLM2, as the probability of the right answer to six
prompts for extraction: 92 nats in this form, 111 without spaces; indented 84, but in 181 tokens instead of 139."""
LONGEST_SOURCE = 65_536
"""Characters of a regular expression or a Lark grammar. A schema's limits are in `json_schema`."""
MOST_FORCED = 4_096
"""Tokens before an answer's first choice."""
OVERRUN = 64
"""Tokens in a row that the grammar insists on although a bound is passed; after them the answer is led out by the
shortest way that is found."""

FEW_WORDS = 48
"""Words of 64 tokens with a legal one, up to which single logits are copied: that is faster than to mask the row."""

_PARAM = "response_format"
_LIMITS: dict[str, Any] = {
    "max_items_in_row": 2_000,
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_lexer_states": 50_000,  # llguidance's own default is five times that: up to half a gigabyte
    "max_grammar_size": 200_000,
}

Kind = Literal["json_schema", "json_object", "regex", "lark"]
Bits = NDArray[np.uint8]
"""One bit a token, the lowest first."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """The form that an answer must have.

    Args:
        kind: what `source` is.
        source: the schema as JSON text, the regular expression, or the Lark grammar; empty for `json_object`.
    """

    kind: Kind
    source: str = ""


class Vocabulary:
    """llguidance's view of one model's tokens, built when it is first needed; safe to share between threads.

    Args:
        token_bytes: for each token id its bytes; empty for control tokens and padding.
        control: name of each control token, and its id. Only a Lark grammar that names one as `<name>` can yield it.
        stop: tokens that end an answer, at least one.
        encode: text to tokens, without control tokens, as the model expects them.
    """

    def __init__(
        self,
        token_bytes: TokenBytes,
        control: Mapping[str, int],
        stop: Sequence[int],
        encode: Callable[[str], list[int]],
    ) -> None:
        if not stop:
            raise ValueError("a vocabulary needs at least one stop token")
        self.token_bytes = token_bytes
        self.control = dict(control)
        self.stop = tuple(stop)
        self.encode = encode
        self._lock = threading.RLock()
        self._tokenizer: llguidance.LLTokenizer | None = None

    def __len__(self) -> int:
        return len(self.token_bytes)

    @property
    def tokenizer(self) -> llguidance.LLTokenizer:
        """llguidance's tokenizer: a tenth of a second for 49,000 tokens, once."""
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = llguidance.LLTokenizer(
                    _Tokens(self),
                    n_vocab=len(self),
                    eos_token=list(self.stop),
                    slices=llguidance.LLTokenizer.json_slices(),
                )
            return self._tokenizer

    @functools.cached_property
    def shapes(self) -> TokenShapes:
        """What tokens do to JSON, for the bounds."""
        return TokenShapes.of(self.token_bytes)

    @functools.cached_property
    def candidates(self) -> Candidates:
        """What the search for an end tries first."""
        return Candidates.of(self.token_bytes)


class _Tokens(llguidance.TokenizerWrapper):
    """What llguidance asks of a tokenizer."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        # Not the parent's constructor: that one probes a tokenizer of another kind.
        self.is_tokenizer_wrapper = True
        self.eos_token_id = vocabulary.stop[0]
        self.bos_token_id = None
        self.tokens = list(vocabulary.token_bytes)
        self.special_token_ids = sorted({*vocabulary.control.values(), *vocabulary.stop})
        for token in self.special_token_ids:
            self.tokens[token] = b"<stop-%d>" % token
        for name, token in vocabulary.control.items():
            self.tokens[token] = name.encode()
        self._encode = vocabulary.encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)


# --- a grammar --------------------------------------------------------------------------------------------------------


def compile_grammar(constraint: Constraint, vocabulary: Vocabulary, bounds: Bounds = DEFAULT_BOUNDS) -> "Grammar":
    """Make a constraint ready for use: a millisecond or two; some tens for large schemas.

    Args:
        constraint: what is asked for.
        vocabulary: the model's.
        bounds: limits of JSON beside the schema's own; a Lark grammar's `%json` has EMBEDDED_BOUNDS.
    Raises:
        InvalidRequest: it is no schema, expression or grammar, llguidance does not support it, or it is too large.
    """
    if constraint.kind in ("json_schema", "json_object"):
        schema = json_schema.parse(constraint.source) if constraint.kind == "json_schema" else {"type": "object"}
        make = functools.partial(_json_matcher, schema, vocabulary)
        raised = bounds.raised(*json_schema.least_sizes(schema))
        return Grammar(constraint, vocabulary, make, JsonBounds(vocabulary.shapes, raised))
    make = functools.partial(_text_matcher, constraint, vocabulary)
    embedded = constraint.kind == "lark" and "%json" in constraint.source
    return Grammar(
        constraint,
        vocabulary,
        make,
        JsonBounds(vocabulary.shapes, EMBEDDED_BOUNDS, START_OF_TEXT) if embedded else None,
    )


def json_rule(schema: Any) -> str:
    """Write a schema as a rule's body for a Lark grammar, with the separators of this module.

    Args:
        schema: as Python objects; `json_schema.check` has seen it.
    """
    return f"%json {_for_llguidance(schema)}"


def _text_matcher(constraint: Constraint, vocabulary: Vocabulary) -> llguidance.LLMatcher:
    if len(constraint.source) > LONGEST_SOURCE:
        raise InvalidRequest(
            f"cannot use this {_NAMES[constraint.kind]}: {len(constraint.source)} characters, "
            f"expected at most {LONGEST_SOURCE}",
            hint="simplify it",
            param=_PARAM,
        )
    if not constraint.source.isascii() and any("\ud800" <= c <= "\udfff" for c in constraint.source):
        raise InvalidRequest(
            f"cannot use this {_NAMES[constraint.kind]}: it holds half a character", hint="send UTF-8", param=_PARAM
        )
    if constraint.kind == "lark" and (found := lark.levels(constraint.source)) > lark.MOST_LEVELS:
        raise InvalidRequest(
            f"cannot use this Lark grammar: {found} definitions and brackets, expected at most {lark.MOST_LEVELS}",
            hint="simplify it",
            param=_PARAM,
        )
    make = llguidance.LLMatcher.grammar_from_regex if constraint.kind == "regex" else _lark
    matcher = _matcher(make(constraint.source), vocabulary)
    if error := _first_error(matcher):
        raise InvalidRequest(
            f"cannot use this {_NAMES[constraint.kind]}: {_in_one_line(error)}", hint=_hint(error), param=_PARAM
        )
    return matcher


_NAMES = {"regex": "regular expression", "lark": "Lark grammar"}


def _lark(source: str) -> str:
    return llguidance.LLMatcher.grammar_from_lark(source)


def _json_matcher(schema: Any, vocabulary: Vocabulary) -> llguidance.LLMatcher:
    matcher = _try_schema(schema, vocabulary)
    if error := _first_error(matcher):
        where = json_schema.locate(schema, error, lambda part: _first_error(_try_schema(part, vocabulary)))
        raise json_schema.refusal(error, where)
    return matcher


def _try_schema(schema: Any, vocabulary: Vocabulary) -> llguidance.LLMatcher:
    try:
        grammar = llguidance.LLMatcher.grammar_from_json_schema(_for_llguidance(schema))
    except ValueError as e:  # JSON for Python, but not for it: half characters, numbers without end
        raise json_schema.refusal(str(e), ((), {})) from e
    return _matcher(grammar, vocabulary)


def _for_llguidance(schema: Any) -> str:
    # x-guidance is llguidance's own keyword and could undo what is promised here.
    options = {"whitespace_flexible": False, "item_separator": SEPARATORS[0], "key_separator": SEPARATORS[1]}
    return json.dumps(json_schema.compilable(schema) | {"x-guidance": options})


def _matcher(grammar: str, vocabulary: Vocabulary) -> llguidance.LLMatcher:
    limits = llguidance.LLParserLimits(**_LIMITS, verbose_errors=False)  # verbose ones quote the answer
    return llguidance.LLMatcher(vocabulary.tokenizer, grammar, log_level=0, limits=limits)


def _first_error(matcher: llguidance.LLMatcher) -> str:
    """Say why a grammar cannot be used; what passes the compiler may still fail before the first choice."""
    if matcher.is_error():
        return matcher.get_error()
    trial, tokens = matcher.deep_copy(), 0
    trial.compute_bitmask()
    while not trial.is_error() and (forced := trial.compute_ff_tokens()):
        tokens += len(forced)
        if tokens > MOST_FORCED:
            return f"too many tokens ({tokens}) before the first choice: it may never end"
        trial.consume_tokens(forced)
    return trial.get_error()


def _in_one_line(error: str) -> str:
    words = json_schema.words_of(error)
    return words if len(words) <= 300 else words[:297] + "..."


def _hint(error: str) -> str:
    if json_schema.is_too_much(error):
        return "make the numbers of its repetitions smaller; see that every recursion can end"
    if "special token" in error:
        return "name one of the model's control tokens"
    return "the syntax is that of llguidance: Rust's regular expressions, and Lark without look-around"


class Grammar:
    """A constraint, compiled for one model. `start` is cheap and safe to call from any thread."""

    def __init__(
        self,
        constraint: Constraint,
        vocabulary: Vocabulary,
        make: Callable[[], llguidance.LLMatcher],
        bounds: JsonBounds | None,
    ) -> None:
        self.constraint = constraint
        self.vocabulary = vocabulary
        self._make = make
        self._matcher: llguidance.LLMatcher | None = make()
        self._bounds = bounds
        self._lock = threading.Lock()
        self.names_may_end = "patternProperties" in constraint.source
        """Whether an object may have used all names that it can have; nothing else makes them few."""

    def start(self) -> "GrammarState":
        """Begin an answer."""
        with self._lock:
            self._matcher = matcher = self._matcher or self._make()
            return GrammarState(self, matcher.deep_copy(), self._bounds)

    def forget(self) -> None:
        """Let go of an automaton that has grown until it failed: whoever keeps the grammar must not keep that too."""
        with self._lock:
            self._matcher = None

    @functools.cached_property
    def hints(self) -> tuple[int, ...]:
        """Tokens that the source itself mentions, for the search for an end."""
        return json_schema.hint_tokens(self.constraint.source, self.vocabulary.encode)


# --- where an answer is in its grammar --------------------------------------------------------------------------------


@functools.cache
def _ceilings() -> Logits:
    """For each byte of bits eight ceilings: infinity where a token is allowed, else minus infinity."""
    allowed = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").astype(bool)
    return np.where(allowed, np.float32(np.inf), np.float32(-np.inf)).astype(np.float32)


class GrammarState:
    """Where one answer is in its grammar."""

    def __init__(self, grammar: Grammar, matcher: llguidance.LLMatcher, bounds: JsonBounds | None) -> None:
        self.grammar = grammar
        self._matcher = matcher
        self._bounds = bounds
        self._tokens: list[int] = []
        self._places: list[Place] = [] if bounds is None else [bounds.start]
        """One more than tokens."""
        self._stop = frozenset(grammar.vocabulary.stop)
        self._stopped = False
        self._lifted = False
        self._way_out: list[int] = []
        size = len(grammar.vocabulary)
        self._bits: Bits = np.zeros(-(-size // 64) * 8, np.uint8)
        self._pointer = self._bits.ctypes.data  # numpy takes a microsecond to say it
        self._mask_bytes = -(-size // 32) * 4
        self._ceiling = np.empty((self._bits.size, 8), np.float32)
        self._row: Logits = np.empty(0, np.float32)
        self._written: NDArray[np.intp] | None = None
        """Where the row is not minus infinity, if that is known."""
        self._next: Bits | None = None
        """What may come next, once that was computed."""

    @property
    def mixes_text(self) -> bool:
        """Whether free text and structure may take turns, as where tools may be called."""
        return self.grammar.constraint.kind == "lark"

    @property
    def complete(self) -> bool:
        """Whether the text so far satisfies the grammar, and no object in it has two members of one name."""
        return self._satisfied and not (self._places and self._places[-1].repeats)

    @property
    def _satisfied(self) -> bool:
        return self._stopped or bool(self._matcher.is_accepting())

    @property
    def ended(self) -> bool:
        """Whether it does and nothing more can come but a stop token, or has come."""
        return self._stopped or (bool(self._matcher.is_stopped()) and not self._matcher.is_error())

    def allows(self, token: int) -> bool:
        """Whether a token may come next; the bounds, which only prefer, are not asked."""
        if self._stopped:
            return False
        if token in self._stop:
            return self._satisfied
        return 0 <= token < len(self.grammar.vocabulary) and self._matcher.validate_tokens([token]) == 1

    def accepts(self, tokens: Sequence[int]) -> int:
        """Count how many of some tokens, from the first on, the form allows one after the other; no stop token."""
        size = len(self.grammar.vocabulary)
        text = list(itertools.takewhile(lambda token: token not in self._stop and 0 <= token < size, tokens))
        return int(self._matcher.validate_tokens(text)) if text and not self._stopped else 0

    def mask(self, logits: Logits, banned: Collection[int] = ()) -> Logits:
        """Put every token that may not come to minus infinity; stop tokens may come if the text is complete.

        Args:
            logits: float32, one row; not changed. What is beyond the vocabulary is masked.
            banned: tokens to mask too, as far as another one remains.
        Returns:
            A row that is valid until the next call.
        Raises:
            InvalidRequest: the grammar has become too complex for llguidance.
        """
        bits = self._allowed(banned)
        if self._row.size != logits.size:
            self._row, self._written = np.full(logits.size, -np.inf, np.float32), np.empty(0, np.intp)
        known = min(logits.size, len(self.grammar.vocabulary))
        words = np.flatnonzero(bits.view(np.uint64))
        if words.size <= FEW_WORDS:
            tokens = _tokens(bits, words)
            self._pick(tokens[tokens < known], logits)
        else:
            _ceilings().take(bits, axis=0, out=self._ceiling, mode="clip")
            np.minimum(logits[:known], self._ceiling.ravel()[:known], out=self._row[:known])
            self._written = None
        return self._row

    def few(self, most: int) -> NDArray[np.intp] | None:
        """List the tokens that may come next; None if there are more than `most`.

        Raises:
            InvalidRequest: the grammar has become too complex for llguidance.
        """
        words = self._allowed(()).view(np.uint64)
        if np.bitwise_count(words).sum() > most:
            return None
        tokens = _tokens(words.view(np.uint8), np.flatnonzero(words))
        return tokens[tokens < len(self.grammar.vocabulary)]

    def _pick(self, tokens: NDArray[np.intp], logits: Logits) -> None:
        """Copy single logits."""
        if self._written is None:
            self._row.fill(-np.inf)
        else:
            self._row[self._written] = -np.inf
        self._row[tokens] = logits[tokens]
        self._written = tokens

    def _allowed(self, banned: Collection[int]) -> Bits:
        if self._next is None:
            self._next = self._compute()
        return _without(self._next, banned) if banned else self._next

    def _compute(self) -> Bits:
        self._lifted = False
        if self._stopped:
            raise InternalError("cannot go on with an answer: it has ended", hint="report this as a defect")
        self._matcher.unsafe_compute_mask_ptr(self._pointer, self._mask_bytes)
        self._refuse_errors()
        return self._bits if self._bounds is None else self._bounded(self._bounds, self._bits)

    def _bounded(self, bounds: JsonBounds, bits: Bits) -> Bits:
        place = self._places[-1]
        kept = bounds.narrow(place, bits, self._look if self.grammar.names_may_end else None)
        if kept is None or kept.any():
            return bits if kept is None else kept
        self._lifted = True
        if place.overruns < OVERRUN:
            return bits
        self._way_out = self._way_out or self.shortest_completion() or []
        if not self._way_out:
            return bits
        kept[self._way_out[0] >> 3] = 1 << (self._way_out[0] & 7)
        return kept

    def _look(self, tokens: list[int]) -> Bits:
        matcher = self._matcher.deep_copy()
        matcher.consume_tokens(tokens)
        bits = np.zeros_like(self._bits)
        found = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        bits[: found.size] = found[: bits.size]  # it may be a word longer
        return bits

    def advance(self, token: int) -> None:
        """Add a token.

        Raises:
            InternalError: it may not come here; the state is as before.
            InvalidRequest: the grammar has become too complex for llguidance.
        """
        if not self.allows(token):
            self._refuse_errors()
            raise InternalError(
                f"cannot take token {token}: the grammar forbids it at {len(self._tokens)}",
                hint="report this as a defect",
            )
        if token in self._stop:
            self._stopped = True  # llguidance never sees it: its rollback counts stop tokens in two ways
        else:
            self._matcher.consume_token(token)
            self._refuse_errors()
        self._tokens.append(token)
        if self._bounds is not None:
            self._places.append(self._bounds.step(self._places[-1], token, lifted=self._lifted))
        self._way_out = self._way_out[1:] if self._way_out[:1] == [token] else []
        self._lifted, self._next = False, None

    def forced(self) -> list[int]:
        """List the tokens that must come next, if the next bytes are certain; give each to `advance`."""
        return [] if self._stopped else list(self._matcher.compute_ff_tokens())

    def rollback(self, count: int) -> None:
        """Take the last tokens back: all is as before they came.

        Raises:
            ValueError: there are not so many.
        """
        if not 0 <= count <= len(self._tokens):
            raise ValueError(f"cannot take back {count} of {len(self._tokens)} tokens")
        if not count:
            return
        known = count - self._stopped
        if known and not self._matcher.rollback(known):
            raise InternalError("cannot rewind the grammar", hint="report this as a defect")
        del self._tokens[-count:]
        if self._bounds is not None:
            del self._places[-count:]
        self._stopped, self._lifted, self._way_out, self._next = False, False, [], None

    def shortest_completion(self) -> list[int] | None:
        """Find tokens that make the text complete, as few as a bounded search finds.

        Returns:
            Nothing to add if it is complete already; None if no end was found.
        """
        if self._satisfied:
            return []
        vocabulary = self.grammar.vocabulary
        place = None if self._bounds is None else self._places[-1]
        found = find_completion(self._matcher, place, vocabulary.candidates, self.grammar.hints, self._stop)
        return found if found is None else self._as_the_model_writes(found)

    def _as_the_model_writes(self, tokens: list[int]) -> list[int]:
        """Tokenize the same text again, canonically, if that is legal and no longer."""
        pieces = [self.grammar.vocabulary.token_bytes[token] for token in tokens]
        if not all(pieces):  # a control token has no text
            return tokens
        again = self.grammar.vocabulary.encode(b"".join(pieces).decode("utf-8", "replace"))
        trial = self._matcher.deep_copy()
        legal = len(again) <= len(tokens) and trial.consume_tokens(again) and trial.is_accepting()
        return again if legal else tokens

    def _refuse_errors(self) -> None:
        if self._matcher.is_error():
            error = self._matcher.get_error()
            self.grammar.forget()
            kind = self.grammar.constraint.kind
            raise InvalidRequest(
                f"cannot go on with this {_NAMES.get(kind, 'JSON schema')}: {_in_one_line(error)}",
                hint=_hint(error) if kind in _NAMES else json_schema.TOO_MUCH,
                param=_PARAM,
            )


def _tokens(bits: Bits, words: NDArray[np.intp]) -> NDArray[np.intp]:
    """List the tokens that are allowed in some words of 64."""
    places = np.flatnonzero(np.unpackbits(bits.reshape(-1, 8)[words].ravel(), bitorder="little"))
    return np.asarray(words[places >> 6] * 64 + (places & 63))


def _without(bits: Bits, banned: Collection[int]) -> Bits:
    """Clear some tokens' bits, unless none would be left."""
    kept = bits.copy()
    for token in banned:
        if 0 <= token < 8 * kept.size:
            kept[token >> 3] &= 0xFF ^ (1 << (token & 7))
    return kept if kept.any() else bits
