"""The second opinion on a finished answer: does it have the form that was asked for?

    if (reason := conforms(constraint, text, vocabulary)) is not None:
        ...

JSON is parsed strictly (no second key of the same name, no NaN, no number beyond a double, no half character, nothing
after the end) and validated by the `jsonschema` package, formats included as far as it can check them without further
packages. Regular expressions are matched by Python's `re` where they can be matched quickly, else replayed through an
automaton: a backtracking matcher could be made to run for years, and it would stop the whole daemon. Lark grammars have
one implementation, so they are replayed, byte by byte.

A reason names a keyword and a place, never the text: reasons reach logs, answers must not.

What this does NOT do: check formats that need other packages (`uri`, `hostname` by all its rules); the grammar enforces
their syntax.
"""

import base64
import datetime
import functools
import itertools
import json
import math
import re
from collections.abc import Iterator
from typing import Any, NoReturn

import jsonschema
from jsonschema import validators
from referencing.exceptions import Unresolvable

from appliance.decoding import json_schema
from appliance.decoding.grammar import Constraint, Vocabulary, compile_grammar
from appliance.errors import InvalidRequest

MOST_REFERENCES = 20_000
"""References followed in one validation: a schema can make them multiply without end."""
MOST_STEPS = 1_000_000
"""Steps that a backtracking matcher may need at worst before an automaton is used instead."""

_STOP_TOKEN = 256


def conforms(constraint: Constraint, text: str, vocabulary: Vocabulary | None = None) -> str | None:
    """Judge a finished answer.

    Args:
        constraint: what was asked for; it has been compiled before.
        text: the answer. Control tokens that a Lark grammar names stand in it by their names.
        vocabulary: the model's, for the names of control tokens.
    Returns:
        None if it conforms, else the reason, without a word of the text.
    """
    if constraint.kind == "json_object":
        value, reason = read_json(text)
        return reason or (None if isinstance(value, dict) else "the text is JSON but no object")
    if constraint.kind == "json_schema":
        value, reason = read_json(text)
        return reason or _violation(_validator(constraint.source), value)
    if constraint.kind == "regex" and (quick := _quick(constraint.source, len(text), searching=False)):
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
def _validator(source: str) -> Any:
    schema = json_schema.parse(source)
    base = json_schema.validator_class(schema)
    known = base.VALIDATORS
    replaced: dict[str, Any] = {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
    }
    counter = _Counter()
    if base is jsonschema.Draft7Validator:  # the one dialect in which these two may do more than describe
        known = known | {"contentEncoding": None, "contentMediaType": None}
        replaced |= {"contentEncoding": _content_encoding, "contentMediaType": _content_type}
    replaced |= {k: counter.counted(known[k]) for k in ("$ref", "$dynamicRef", "$recursiveRef") if k in known}
    made = validators.extend(base, {k: v for k, v in replaced.items() if k in known})
    # An own registry: the package's default one would fetch what it does not know.
    validator = made(schema, registry=json_schema.registry(), format_checker=_formats(base.FORMAT_CHECKER))
    return validator, counter


def _violation(judge: tuple[Any, "_Counter"], value: Any) -> str | None:
    validator, counter = judge
    counter.restart()
    try:
        error = next(validator.iter_errors(value), None)
    except (_TooMuchWork, RecursionError):
        return "the schema takes too long to validate against"
    except (Unresolvable, InvalidRequest, OverflowError, ArithmeticError) as e:
        return f"the schema cannot be validated against ({type(e).__name__})"
    if error is None:
        return None
    return f"{json_schema.pointer(tuple(error.absolute_path))} breaks {error.validator}"


class _TooMuchWork(Exception):
    """A validation follows too many references."""


class _Counter:
    """Counts the references that one validation follows."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin another validation."""
        self._followed = itertools.count()

    def counted(self, check: Any) -> Any:
        """Wrap a keyword's check."""

        def checked(validator: Any, wanted: Any, instance: Any, schema: Any) -> Iterator[Any]:
            if next(self._followed) >= MOST_REFERENCES:
                raise _TooMuchWork
            yield from check(validator, wanted, instance, schema) or ()

        return checked


# The package's own checks of these three match by backtracking; what they mean is the same.


def _pattern(validator: Any, pattern: str, instance: Any, _: Any) -> Iterator[jsonschema.ValidationError]:
    if validator.is_type(instance, "string") and not _found(pattern, instance):
        yield jsonschema.ValidationError("does not match")


def _pattern_properties(validator: Any, parts: dict[str, Any], instance: Any, _: Any) -> Iterator[Any]:
    if validator.is_type(instance, "object"):
        for (pattern, part), (key, value) in itertools.product(parts.items(), instance.items()):
            if _found(pattern, key):
                yield from validator.descend(value, part, path=key, schema_path=pattern)


def _additional_properties(validator: Any, part: Any, instance: Any, schema: dict[str, Any]) -> Iterator[Any]:
    if not validator.is_type(instance, "object"):
        return
    named, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    for key, value in instance.items():
        if key in named or any(_found(pattern, key) for pattern in patterns):
            continue
        if part is False:
            yield jsonschema.ValidationError("has a member too many")
        else:
            yield from validator.descend(value, part, path=key)


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

_TIME = re.compile(
    r"([01]\d|2[0-3]):([0-5]\d):([0-5]\d|60)(?:\.\d+)?(?:z|([+-])([01]\d|2[0-3]):([0-5]\d))", re.I | re.A
)


def _formats(known: jsonschema.FormatChecker) -> jsonschema.FormatChecker:
    """Add what the package checks only with the help of further ones."""
    made = jsonschema.FormatChecker(())
    made.checkers = {"time": (_is_time, ()), "date-time": (_is_date_time, ())} | known.checkers
    return made


def _is_time(value: object) -> bool:
    """Whether a string is RFC 3339's full-time; a second 60 exists at the end of a day of UTC only."""
    if not isinstance(value, str):
        return True
    match = _TIME.fullmatch(value)
    if match is None:
        return False
    hours, minutes, seconds, sign, offset_hours, offset_minutes = match.groups()
    offset = int(offset_hours or 0) * 60 + int(offset_minutes or 0)
    utc = int(hours) * 60 + int(minutes) - (offset if sign == "+" else -offset)
    return int(seconds) < 60 or utc % (24 * 60) == 24 * 60 - 1


def _is_date_time(value: object) -> bool:
    if not isinstance(value, str):
        return True
    try:
        datetime.date.fromisoformat(value[:10])
    except ValueError:
        return False
    return value[4:5] == value[7:8] == "-" and value[10:11] in ("T", "t") and _is_time(value[11:])


# --- regular expressions and grammars ---------------------------------------------------------------------------------

_QUANTIFIED = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|(\)?)([*+?]|\{(\d*)(,?)(\d*)\})", re.DOTALL)
_NOT_SHARED = re.compile(r"\[\[|&&|--|~~|\\[pPzZAGRbBhHvVKXx]|\(\?|\[\^?\]|\\[0-9]|[*+?}][*+?]")


def _quick(pattern: str, size: int, *, searching: bool) -> "re.Pattern[str] | None":
    """Compile a pattern for `re` if it means the same there and cannot take long on so many characters."""
    if _NOT_SHARED.search(pattern):
        return None
    anchored = pattern.startswith("^") and "|" not in pattern
    steps = size if searching and not anchored else 1
    for quantified in _QUANTIFIED.finditer(pattern):
        group, mark, least, comma, most = quantified.groups()
        if mark is None:
            continue
        if group:
            return None  # what is repeated may hold repetitions: that can be exponential
        if mark in ("*", "+") or (comma and not most):
            steps *= size + 1
        elif mark == "?":
            steps *= 2
        elif comma:
            steps *= int(most) - int(least or 0) + 1
        if steps > MOST_STEPS:
            return None
    return _compiled(pattern)


@functools.lru_cache(maxsize=256)
def _compiled(pattern: str) -> "re.Pattern[str] | None":
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        return None


def _found(pattern: str, text: str) -> bool:
    """Whether a schema's pattern is found in a string."""
    if r"\s" in pattern.lower():
        text = text.replace("\ufeff", "\u00a0")  # white space for JSON Schema's dialect of patterns, but not for `re`
    quick = _quick(pattern, len(text), searching=True)
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
            state.advance(token)
            at += 1
    return None if state.complete else "the text ends before the grammar does"


@functools.lru_cache(maxsize=64)
def _byte_grammar(constraint: Constraint, named: tuple[str, ...]) -> Any:
    return compile_grammar(constraint, _byte_vocabulary(named))


@functools.lru_cache(maxsize=16)
def _byte_vocabulary(named: tuple[str, ...]) -> Vocabulary:
    """One token a byte, a stop token, and the control tokens that a grammar names."""
    token_bytes = [bytes([byte]) for byte in range(256)] + [b""] * (1 + len(named))
    control = {name: _STOP_TOKEN + 1 + i for i, name in enumerate(named)}
    return Vocabulary(token_bytes, control, [_STOP_TOKEN], lambda text: list(text.encode()))
