"""The second opinion on a finished answer: does it have the form that was asked for?

    if (reason := conforms(constraint, text, vocabulary)) is not None:
        ...

JSON is parsed strictly (no second key of the same name, no NaN, no number beyond a double, no half character, nothing
after the end) and validated by the `jsonschema` package, formats included as far as it can check them without further
packages. Regular expressions are matched by Python's `re` where they can be matched quickly, else replayed through an
automaton: a backtracking matcher could be made to run for years, and it would stop the whole daemon. Lark grammars have
one implementation, so they are replayed, byte by byte.

A reason names a keyword and a place, never the text: reasons reach logs, answers must not. Of a place, what the schema
does not name is the answer's own and stands there as `*`.

What this does NOT do: check formats that need other packages (`uri`, `hostname` by all its rules); the grammar enforces
their syntax. Of dates and times it checks the syntax only, as the grammar does: 29 February is one of every year.
"""

import base64
import functools
import itertools
import json
import math
import re
import threading
import time
from calendar import isleap as leap_year
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any, NoReturn

import jsonschema
from jsonschema import validators
from referencing.exceptions import Unresolvable

from appliance.decoding import json_schema
from appliance.decoding.grammar import Constraint, Vocabulary, compile_grammar
from appliance.errors import InternalError, InvalidRequest

MOST_REFERENCES = 20_000
"""References followed in one validation: a schema can make them multiply without end."""
MOST_SECONDS = 5.0
"""Of processor time for one validation: many patterns times many keys add up, and many values times many items."""
MOST_STEPS = 10_000_000
"""Characters that a backtracking matcher may look at, at worst, before an automaton is used instead."""

NO_SUCH_TIME = "a day or a second in it is not in the calendar"
"""The one thing that a grammar cannot know of an answer: the reason why it is not valid, and no defect."""

_STOP_TOKEN = 256


def conforms(constraint: Constraint, text: str, vocabulary: Vocabulary | None = None) -> str | None:
    """Judge a finished answer.

    Args:
        constraint: what was asked for; it has been compiled before.
        text: the answer. Control tokens that a Lark grammar names stand in it by their names.
        vocabulary: the model's, for the names of control tokens.
    Returns:
        None if it conforms, else the reason, without a word of the text; NO_SUCH_TIME if that is all.
    """
    if constraint.kind == "json_object":
        value, reason = read_json(text)
        return reason or (None if isinstance(value, dict) else "the text is JSON but no object")
    if constraint.kind == "json_schema":
        value, reason = read_json(text)
        wrong = reason or _violation(_validator(constraint.source), value)
        if wrong and not reason and '"format"' in constraint.source:
            by_syntax = _violation(_validator(constraint.source, calendar=False), value)
            return NO_SUCH_TIME if by_syntax is None else wrong
        return wrong
    if constraint.kind == "regex" and (quick := _quick(constraint.source, text, _RUST_CLASS)):
        return None if quick.fullmatch(text) else "the text does not match the regular expression"
    return _replayed(constraint, text, vocabulary)


# --- JSON -------------------------------------------------------------------------------------------------------------


class _NotStrict(ValueError):
    """JSON that `json` reads and Skerry does not."""


def read_json(text: str) -> tuple[Any, str | None]:
    """Read JSON as strictly as the module says.

    Returns:
        the value and None; or None and why it cannot be read, without a word of the text.
    """
    try:
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite, parse_int=_finite_integer
        )
        text.encode()  # characters outside escapes
        json.dumps(value, ensure_ascii=False).encode()  # and those that escapes make
    except _NotStrict as e:
        return None, str(e)
    except json.JSONDecodeError as e:
        trailing = e.msg == "Extra data"
        return None, f"there is text after the JSON's end, at {e.pos}" if trailing else f"not JSON, at {e.pos}"
    except UnicodeEncodeError:
        return None, "a string holds half a character"
    except (ValueError, RecursionError):
        return None, "not JSON that can be read: nested too deeply, or a number too long"
    return value, None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _NotStrict("an object has two members of the same name")
    return found


def _no_constant(_: str) -> NoReturn:
    raise _NotStrict("NaN and Infinity are no JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _NotStrict("a number is beyond what a double can hold")
    return value


def _finite_integer(digits: str) -> int:
    _finite(digits)
    return int(digits)


@functools.lru_cache(maxsize=64)
def _validator(source: str, *, calendar: bool = True) -> Any:
    schema = json_schema.parse(source)
    base = json_schema.validator_class(schema)
    known = base.VALIDATORS
    work = _Work()
    replaced: dict[str, Any] = {
        "pattern": functools.partial(_pattern, work),
        "patternProperties": functools.partial(_pattern_properties, work),
        "additionalProperties": functools.partial(_additional_properties, work),
        "multipleOf": _multiple_of,
        "uniqueItems": json_schema.unique_items,
    }
    if base is jsonschema.Draft7Validator:  # the one dialect in which these two may do more than describe
        known = known | {"contentEncoding": None, "contentMediaType": None}
        replaced |= {"contentEncoding": _content_encoding, "contentMediaType": _content_type}
    # What these two lead to depends on the way there, so nothing can be kept.
    kept = "$dynamicRef" not in source and "$recursiveRef" not in source
    references = ("$ref", "$dynamicRef", "$recursiveRef")
    replaced |= {k: work.counted(known[k], kept=kept) for k in references if k in known}
    checks = {k: replaced.get(k, check) for k, check in known.items()}
    made = validators.extend(base, {k: work.timed(check) for k, check in checks.items() if check})
    # An own registry: the package's default one would fetch what it does not know.
    validator = made(schema, registry=json_schema.registry(), format_checker=_formats(base.FORMAT_CHECKER, calendar))
    return validator, work


def _violation(judge: tuple[Any, "_Work"], value: Any) -> str | None:
    validator, work = judge
    try:
        with work.lock:  # the validator is shared, and its work is that of one validation
            work.restart()
            error = next(validator.iter_errors(value), None)
    except (_TooMuchWork, RecursionError):
        return "the schema takes too long to validate against"
    except (Unresolvable, InvalidRequest, OverflowError, ArithmeticError) as e:
        return f"the schema cannot be validated against ({type(e).__name__})"
    if error is None:
        return None
    named = json_schema.names(validator.schema)
    place = tuple(key if isinstance(key, int) or key in named else "*" for key in error.absolute_path)
    return f"{json_schema.pointer(place)} breaks {error.validator}"


class _TooMuchWork(Exception):
    """A validation follows too many references, or takes too long."""


class _Work:
    """Counts the references that one validation follows, and the time that it takes."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.restart()

    def restart(self) -> None:
        """Begin another validation."""
        self._followed = itertools.count()
        self._late = time.thread_time() + MOST_SECONDS
        self._broken: dict[tuple[int, int], tuple[Any, tuple[str | int, ...]] | None] = {}
        """By reference and value: the keyword that is broken, and where; None if none is."""

    def found(self, pattern: str, text: str) -> bool:
        """Whether a schema's pattern is found in a string, if there is time left to look."""
        self._refuse_when_late()
        return _found(pattern, text)

    def timed(self, check: Any) -> Any:
        """Wrap a keyword's check: it is made if there is time left for it."""

        def checked(validator: Any, wanted: Any, instance: Any, schema: Any) -> Any:
            self._refuse_when_late()
            return check(validator, wanted, instance, schema)

        return checked

    def _refuse_when_late(self) -> None:
        if time.thread_time() > self._late:
            raise _TooMuchWork

    def counted(self, check: Any, *, kept: bool) -> Any:
        """Wrap a reference's check; if its verdict is kept, it is followed once for each value."""

        def checked(validator: Any, wanted: Any, instance: Any, schema: Any) -> Iterator[Any]:
            both = (id(schema), id(instance))  # parts of the schema and of the answer, which outlive the validation
            if not kept or both not in self._broken:
                if next(self._followed) >= MOST_REFERENCES:
                    raise _TooMuchWork
                error = next(iter(check(validator, wanted, instance, schema) or ()), None)
                self._broken[both] = error and (error.validator, tuple(error.relative_path))
            if broken := self._broken[both]:
                yield jsonschema.ValidationError("is broken", validator=broken[0], path=broken[1])

        return checked


# The package's own checks of the first three match by backtracking, and that of multiples divides doubles.


def _pattern(work: _Work, validator: Any, pattern: str, instance: Any, _: Any) -> Iterator[Any]:
    if validator.is_type(instance, "string") and not work.found(pattern, instance):
        yield jsonschema.ValidationError("does not match")


def _pattern_properties(work: _Work, validator: Any, parts: dict[str, Any], instance: Any, _: Any) -> Iterator[Any]:
    if validator.is_type(instance, "object"):
        for (pattern, part), (key, value) in itertools.product(parts.items(), instance.items()):
            if work.found(pattern, key):
                yield from validator.descend(value, part, path=key, schema_path=pattern)


def _additional_properties(
    work: _Work, validator: Any, part: Any, instance: Any, schema: dict[str, Any]
) -> Iterator[Any]:
    if not validator.is_type(instance, "object"):
        return
    named, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    for key, value in instance.items():
        if key in named or any(work.found(pattern, key) for pattern in patterns):
            continue
        if part is False:
            yield jsonschema.ValidationError("has a member too many")
        else:
            yield from validator.descend(value, part, path=key)


def _multiple_of(validator: Any, unit: float, instance: Any, _: Any) -> Iterator[jsonschema.ValidationError]:
    if validator.is_type(instance, "number") and not _is_multiple(instance, unit):
        yield jsonschema.ValidationError("is no multiple")


def _is_multiple(value: float, unit: float) -> bool:
    """Whether a number is a multiple of another by their decimal digits: in binary 19.99 is none of 0.01."""
    exact = _exact(unit)
    quotient = _exact(value) / exact
    if quotient.denominator == 1:
        return True
    # Of more than 15 digits a double does not know all: it may have been a multiple that was written.
    vague = isinstance(value, float) and len(Decimal(repr(value)).as_tuple().digits) > 15
    return vague and float(round(quotient) * exact) == value


def _exact(value: float) -> Fraction:
    return Fraction(repr(value)) if isinstance(value, float) else Fraction(value)


def _content_encoding(validator: Any, encoding: Any, instance: Any, _: Any) -> Iterator[jsonschema.ValidationError]:
    if validator.is_type(instance, "string") and encoding == "base64" and _decoded(instance) is None:
        yield jsonschema.ValidationError("is not encoded so")


def _content_type(validator: Any, kind: Any, instance: Any, schema: dict[str, Any]) -> Iterator[Any]:
    if not validator.is_type(instance, "string") or kind != "application/json":
        return
    data = _decoded(instance) if schema.get("contentEncoding") == "base64" else instance.encode()
    if data is not None and read_json(data.decode("utf-8", "replace"))[1] is not None:
        yield jsonschema.ValidationError("is not of this type")


def _decoded(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return None


# --- formats ----------------------------------------------------------------------------------------------------------

_DAY = (
    r"(?:02-(?:0[1-9]|[12][0-9])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01]))"
)
_DATE = f"[0-9]{{4}}-{_DAY}"
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:(?:[0-5][0-9]|60)(?:\.[0-9]+)?(?:[zZ]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_SYNTAX = {
    "date": re.compile(_DATE),
    "time": re.compile(_TIME),
    "date-time": re.compile(f"{_DATE}[tT]{_TIME}"),
}
"""RFC 3339's, without what a grammar cannot know: leap years and leap seconds."""
_LEAP_DAY = re.compile(r"([0-9]{4})-02-29")
_LEAP_SECOND = re.compile(r"([0-9]{2}):([0-9]{2}):60(?:\.[0-9]+)?(?:[zZ]|([+-])([0-9]{2}):([0-9]{2}))$")
_LAST_MINUTE, _MINUTES = 24 * 60 - 1, 24 * 60


def _formats(known: jsonschema.FormatChecker, calendar: bool) -> jsonschema.FormatChecker:
    check = _is_in_calendar if calendar else _has_syntax
    made = jsonschema.FormatChecker(())
    made.checkers = known.checkers | {name: (functools.partial(check, name), ()) for name in _SYNTAX}
    return made


def _is_in_calendar(name: str, value: object) -> bool:
    """Whether a date or time is one: 29 February in a leap year only, second 60 at the end of a day of UTC only."""
    if not isinstance(value, str):
        return True
    day, second = _LEAP_DAY.match(value), _LEAP_SECOND.search(value)
    if day is not None and not leap_year(int(day[1])):
        return False
    if second is not None and name != "date":
        ahead = int(f"{second[3]}1") * (60 * int(second[4]) + int(second[5])) if second[3] else 0
        if (60 * int(second[1]) + int(second[2]) - ahead) % _MINUTES != _LAST_MINUTE:
            return False
    return _has_syntax(name, value)


def _has_syntax(name: str, value: object) -> bool:
    return not isinstance(value, str) or _SYNTAX[name].fullmatch(value) is not None


# --- regular expressions and grammars ---------------------------------------------------------------------------------

_MULTIPLYING = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|(\)(?!\|))?([*+?|]|\{(\d*)(,?)(\d*)\})", re.DOTALL)
_NOT_SHARED = re.compile(r"\[[^\]]*\[|&&|--|~~|\\[pPzZAGRbBhHvVKXx]|\(\?|\[\^?\]|\\[0-9]|[*+?}][*+?]|\{[\d,]{9}")
_SPACE_CLASS, _RUST_CLASS = re.compile(r"\\[sS]"), re.compile(r"\\[dDsSwW]")
"""What `re`, told to keep to ASCII, knows of ASCII text only: in a schema's patterns and in Rust's."""
_END = re.compile(r"(\\.|\[(?:\\.|[^\]\\])*\])|\$", re.DOTALL)


def _quick(
    pattern: str, text: str, not_ascii: "re.Pattern[str]", *, searching: bool = False
) -> "re.Pattern[str] | None":
    """Compile a pattern for `re` if it means the same there and cannot take long on a text.

    Each way to match is at most as long as text and pattern; repetitions, options and alternatives multiply the ways.
    """
    if _NOT_SHARED.search(pattern) or (not text.isascii() and not_ascii.search(pattern)):
        return None
    size = len(text) + 1
    anchored = pattern.startswith("^") and "|" not in pattern
    steps = (size + len(pattern)) * (size if searching and not anchored else 1)
    for part in _MULTIPLYING.finditer(pattern):
        group, mark, least, comma, most = part.groups()
        if mark is None:
            continue
        if group:
            return None  # what is repeated may hold repetitions: that can be exponential
        if mark in ("*", "+") or (comma and not most):
            steps *= size
        elif mark in ("?", "|"):
            steps *= 2
        elif comma:
            steps *= int(most) - int(least or 0) + 1
        if steps > MOST_STEPS:
            return None
    return _compiled(pattern) if steps <= MOST_STEPS else None


@functools.lru_cache(maxsize=256)
def _compiled(pattern: str) -> "re.Pattern[str] | None":
    try:
        return re.compile(_END.sub(lambda found: found[1] or r"\Z", pattern), re.ASCII)
    except (re.error, OverflowError, RecursionError):
        return None


def _found(pattern: str, text: str) -> bool:
    """Whether a schema's pattern is found in a string."""
    if r"\s" in pattern.lower():
        text = text.replace("\ufeff", "\u00a0")  # white space for JSON Schema's dialect of patterns, but not for `re`
    quick = _quick(pattern, text, _SPACE_CLASS, searching=True)
    if quick is not None:
        return quick.search(text) is not None
    schema = Constraint("json_schema", json.dumps({"type": "string", "pattern": pattern}))
    # The grammar of strings wants this one character escaped, which json.dumps does not do.
    return _replayed(schema, json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f"), None) is None


def _replayed(constraint: Constraint, text: str, vocabulary: Vocabulary | None) -> str | None:
    names = vocabulary.control if vocabulary is not None and constraint.kind == "lark" else {}
    named = tuple(sorted(name for name in names if name in constraint.source))
    state = _byte_grammar(constraint, named).start()
    pieces = re.split("(" + "|".join(map(re.escape, named)) + ")", text) if named else [text]
    at = 0
    for piece in pieces:
        tokens = [_STOP_TOKEN + 1 + named.index(piece)] if piece in named else list(piece.encode("utf-8", "replace"))
        for token in tokens:
            if not state.allows(token):
                return f"the text leaves the grammar at byte {at}"
            try:
                state.advance(token)
            except (InvalidRequest, InternalError):  # llguidance's limits
                return f"the grammar becomes too complex at byte {at}"
            at += 1
    return None if state.complete else "the text ends before the grammar does"


@functools.lru_cache(maxsize=64)
def _byte_grammar(constraint: Constraint, named: tuple[str, ...]) -> Any:
    return compile_grammar(constraint, byte_vocabulary(named))


@functools.lru_cache(maxsize=16)
def byte_vocabulary(named: tuple[str, ...]) -> Vocabulary:
    """One token a byte, a stop token, and the control tokens that a grammar names."""
    token_bytes = [bytes([byte]) for byte in range(256)] + [b""] * (1 + len(named))
    control = {name: _STOP_TOKEN + 1 + i for i, name in enumerate(named)}
    return Vocabulary(token_bytes, control, [_STOP_TOKEN], lambda text: list(text.encode()))
