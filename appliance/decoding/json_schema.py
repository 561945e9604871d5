"""A caller's JSON Schema, before anything works with it: is it one, is it small enough, does it stay at home?

`parse` refuses what is no schema, what would take long to work through, and what points to other documents: nothing is
ever fetched. What it lets pass, llguidance may still not support; `locate` then finds where in the schema, and
`refusal` says it.

What this does NOT do: bound the work of an answer's validation; `conformity` does.

Source: JSON Schema 2020-12 and the drafts before it, by the `jsonschema` package; llguidance's json_schema.md.
"""

import functools
import json
import math
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, NoReturn

import jsonschema
from jsonschema import validators
from referencing import Registry
from referencing.exceptions import Unresolvable

from appliance.errors import InvalidRequest

LONGEST = 131_072
"""Characters of a schema's text."""
DEEPEST = 48
"""Arrays and objects within each other in a schema's text."""
MOST_SCHEMAS = 1_000
"""Subschemas, the whole one included."""
MOST_VALUES = 20_000
"""Values of any kind in a schema's text."""
LONGEST_STRING = 65_536
"""Characters that a schema may demand of a string."""
MOST_ITEMS = 4_096
"""Items or members that a schema may demand."""
LARGEST_MULTIPLE = 10_000
"""Least common multiple of all `multipleOf`, without their decimal exponent: as many states has an automaton."""
LOCATED = 100
"""Subschemas that are tried to find the one that is refused."""

_PARAM = "response_format"
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_SINGLES = (
    *("additionalItems", "additionalProperties", "contains", "contentSchema", "else", "if", "items", "not"),
    *("propertyNames", "then", "unevaluatedItems", "unevaluatedProperties"),
)
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_LEFT_OVER = frozenset(("unevaluatedItems", "unevaluatedProperties"))
"""No grammar takes them, and what `jsonschema` does about them has no bound."""
_NEWEST = "https://json-schema.org/draft/2020-12/schema"
_KEYWORDS = {
    "oneOf": "oneOf",
    "Unknown format": "format",
    "regex": "pattern",
    "look-around": "pattern",
    "Pointer": "$ref",
    "min/maxProperties": "minProperties",
    "$ref": "$ref",
    "patternProperties": "patternProperties",
}
"""What a message of llguidance's mentions -> the keyword at fault; the first that fits."""
_HINTS = {
    "oneOf": "use anyOf: only alternatives that exclude each other can be told apart while writing",
    "format": "leave format out, or use pattern",
    "pattern": "write it without look-around and back-references, and with smaller repetitions",
    "minProperties": "list the properties as required instead",
    "maxProperties": "list the properties as required instead",
    "not": "say what is allowed instead of what is not",
}
TOO_MUCH = (
    "use fewer properties and smaller numbers (maxLength, maxItems, repetitions); see that every recursion can end"
)
Schema = dict[str, Any] | bool
Place = tuple[str | int, ...]
"""Keys and indexes from the root of a document."""


def parse(text: str) -> Schema:
    """Read a schema.

    Raises:
        InvalidRequest: it is not JSON, no schema, too large, or refers to another document.
    """
    if len(text) > LONGEST:
        raise _refused(f"{len(text)} characters, expected at most {LONGEST}", "make it smaller")
    if not text.isascii():
        _refuse_halves(text)
    try:
        schema = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as e:
        found = "too deeply nested" if isinstance(e, RecursionError) else str(e)
        raise _refused(f"not JSON: {found}", "send the schema as a JSON object") from e
    check(schema)
    return schema  # type: ignore[no-any-return]


def check(schema: object) -> None:
    """Refuse what `parse` refuses, of a schema that is read already.

    Raises:
        InvalidRequest: as `parse`.
    """
    if not isinstance(schema, dict | bool):
        raise _refused(f"it is {_kind(schema)}, expected an object", "send the schema as a JSON object")
    _refuse_size(schema)
    parts = list(subschemas(schema))
    if len(parts) > MOST_SCHEMAS:
        raise _refused(f"{len(parts)} subschemas, expected at most {MOST_SCHEMAS}", "make it smaller")
    for where, part in parts:
        _refuse_references(where, part)
        for keyword in _LEFT_OVER.intersection(part):
            raise _refused(f"{keyword} at {pointer(where)} is not supported", "use additionalProperties, or items")
    _refuse_demands(parts)
    dialect = validator_class(schema)
    try:
        error = next(_of_dialect(dialect).iter_errors(schema), None)
    except (re.error, RecursionError, OverflowError, Unresolvable) as e:
        raise _refused(f"the JSON Schema dialect cannot be applied ({type(e).__name__})", "simplify it") from e
    if error is not None:
        place = tuple(error.absolute_path)
        keyword = next((str(key) for key in reversed(place) if isinstance(key, str)), "type")
        raise _refused(
            f"{keyword} at {pointer(place)} breaks {error.validator} of the JSON Schema dialect",
            f"see the keyword {keyword} in JSON Schema",
        )


def unique_items(validator: Any, wanted: Any, instance: Any, _: Any) -> Iterator[jsonschema.ValidationError]:
    """Check `uniqueItems` in one pass: the package compares each pair where items cannot be sorted."""
    if wanted and validator.is_type(instance, "array") and len(set(map(_comparable, instance))) < len(instance):
        yield jsonschema.ValidationError("has equal items")


def validator_class(schema: Schema) -> Any:
    """Find the validator of the dialect that a schema declares, of 2020-12 if it declares none.

    Raises:
        InvalidRequest: nobody knows the dialect.
    """
    declared = schema.get("$schema", _NEWEST) if isinstance(schema, dict) else _NEWEST
    if declared in (
        "http://json-schema.org/schema#",
        "http://json-schema.org/schema",
        "https://json-schema.org/schema",
    ):
        declared = _NEWEST
    if not isinstance(declared, str):
        raise _refused(f"$schema is {_kind(declared)}, expected a string", "leave $schema out")
    found = validators.validator_for({"$schema": declared}, default=None)
    if found is None:
        raise _refused("$schema names no known dialect", f"leave $schema out, or use {_NEWEST}")
    if found is jsonschema.Draft3Validator:
        # There `required` is a boolean of each member, and the grammar would read it another way.
        raise _refused("$schema names a dialect older than draft-04", f"leave $schema out, or use {_NEWEST}")
    return found


def registry() -> Registry[Any]:
    """Make a registry of other documents that has none, and never fetches one."""
    return Registry()


def subschemas(schema: object, where: Place = ()) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Walk through a schema's parts that are schemas and objects, outer ones first."""
    if not isinstance(schema, dict):
        return
    yield where, schema
    for key, value in schema.items():
        if key in _MAPS and isinstance(value, dict):
            for name, part in value.items():
                yield from subschemas(part, (*where, key, name))
        elif key in _LISTS and isinstance(value, list):
            for i, part in enumerate(value):
                yield from subschemas(part, (*where, key, i))
        elif key in _SINGLES:
            yield from subschemas(value, (*where, key))


def pointer(place: Place) -> str:
    """Write a place as a JSON pointer in a URI fragment's form, cut to what a line holds."""
    parts = (str(key).replace("~", "~0").replace("/", "~1") for key in place)
    text = "#" + "".join("/" + part for part in parts)
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= 160 else "..." + text[-157:]


def names(schema: object) -> frozenset[str]:
    """List the members that a schema names."""
    maps = (part.get("properties") for _, part in subschemas(schema))
    return frozenset(name for named in maps if isinstance(named, dict) for name in named)


def least_sizes(schema: Schema) -> tuple[int, int]:
    """Find the longest string and the most items that a schema demands."""
    strings, items = [0.0], [0.0]
    for _, part in subschemas(schema):
        strings.append(_number(part.get("minLength")))
        items += [_number(part.get(keyword)) for keyword in ("minItems", "minProperties")]
        lists = (part.get(keyword) for keyword in ("required", "properties", "prefixItems"))
        items += [len(value) for value in lists if isinstance(value, list | dict)]
    return int(max(strings)), int(max(items))


def compilable(schema: Schema) -> dict[str, Any]:
    """Give a schema the form that llguidance takes: an object, without options for llguidance itself."""
    if isinstance(schema, bool):
        return {} if schema else {"enum": []}
    return {key: value for key, value in schema.items() if key != "x-guidance"}


# --- what llguidance refuses ------------------------------------------------------------------------------------------


def locate(schema: Schema, error: str, try_part: Callable[[Schema], str]) -> tuple[Place, dict[str, Any]]:
    """Find the innermost part of a schema that is refused for the same reason.

    Args:
        schema: the whole.
        error: why it was refused.
        try_part: says why a part is refused.
    """
    found: tuple[Place, dict[str, Any]] = ((), schema if isinstance(schema, dict) else {})
    for tried, (where, part) in enumerate(subschemas(schema)):
        if tried == LOCATED:
            break
        # Outer parts come first, so once inside one that is refused only its own parts matter.
        if where and where[: len(found[0])] == found[0] and try_part(part) == error:
            found = where, part
    return found


def refusal(error: str, where: tuple[Place, dict[str, Any]]) -> InvalidRequest:
    """Say what llguidance does not support, and where it is."""
    place, part = where
    words = words_of(error)
    unknown = re.match(r"Unimplemented keys: \[(.*)\]", words)
    if unknown:
        keys = [key.strip().strip('"') for key in unknown[1].split(",")]
        keyword, reason = keys[0], f"{', '.join(keys)} at {pointer(place)} is not supported"
    else:
        keyword = next((k for text, k in _KEYWORDS.items() if text in words), "")
        keyword = keyword or next((k for k in part if re.search(rf"\b{re.escape(k)}\b", words)), "")
        reason = f"{keyword or 'the schema'} at {pointer(place)}: {words[:200]}"
    hint = TOO_MUCH if is_too_much(words) else _HINTS.get(keyword, "leave it out, or express it with other keywords")
    return _refused(reason, hint)


def words_of(error: str) -> str:
    """Write an error of llguidance's in one line."""
    return " ".join(error.replace("<non-verbose/>", "").split())


def is_too_much(error: str) -> bool:
    """Whether llguidance refused for size, not for a meaning that it does not know."""
    words = error.lower()
    return any(
        sign in words for sign in ("too many", "row has", "too large", "limit", "fuel", "complex", "noextension")
    )


def hint_tokens(source: str, encode: Callable[[str], list[int]]) -> tuple[int, ...]:
    """Tokenize what a constraint's source mentions: signs that may have to come, words, signs of syntax."""
    source = source[:20_000]
    signs = sorted({c for c in source if not c.isalnum() and c not in '"{}[],\\ \t\r\n'})
    plain = [c for c in signs if c not in "^$*+?|()"]
    words = dict.fromkeys([*plain[:40], *re.findall(r"[^\W\d_]+", source)[:150], *signs[:60]])
    return tuple(dict.fromkeys(token for word in words for token in encode(word)))[:200]


# --- details ----------------------------------------------------------------------------------------------------------


def _refuse_size(schema: object) -> None:
    values, level, depth = 0, [schema], 0
    while level:
        values += len(level)
        for value in level:
            _refuse_value(value)
        if values > MOST_VALUES:
            raise _refused(f"more than {MOST_VALUES} values", "make it smaller")
        if depth > DEEPEST:
            raise _refused(f"nested deeper than {DEEPEST} levels", "make it flatter, with $defs and $ref")
        depth += 1
        level = [part for value in level if isinstance(value, dict | list) for part in _parts(value)]


def _refuse_value(value: object) -> None:
    if isinstance(value, int | float) and not is_double(value):
        raise _refused("a number is beyond what a double can hold", "use smaller numbers")
    for text in value if isinstance(value, dict) else (value,):
        if isinstance(text, str) and not text.isascii():
            _refuse_halves(text)


def is_double(value: float) -> bool:
    """Whether a double can hold a number: no infinity, and no integer that is too large."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _refuse_halves(text: str) -> None:
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise _refused("it holds half a character (a lone surrogate)", "send UTF-8, and both halves of an escaped pair")


@functools.lru_cache(maxsize=16)
def _of_dialect(dialect: Any) -> Any:
    """Make the validator of a dialect's schemas."""
    made = validators.extend(dialect, {"uniqueItems": unique_items})
    return made(dialect.META_SCHEMA, format_checker=dialect.FORMAT_CHECKER)


def _comparable(value: Any) -> Any:
    """Give JSON a form that can be hashed, in which 1 is 1.0 and not true."""
    if isinstance(value, dict):
        return dict, frozenset((key, _comparable(part)) for key, part in value.items())
    if isinstance(value, list):
        return list, tuple(map(_comparable, value))
    return (bool, value) if isinstance(value, bool) else value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _parts(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value


def _refuse_references(where: Place, part: dict[str, Any]) -> None:
    for keyword in _REFERENCES:
        target = part.get(keyword)
        if isinstance(target, str) and not target.startswith("#"):
            raise _refused(
                f"{keyword} at {pointer(where)} refers to another document, and none is ever fetched",
                "put the definition under $defs and refer to it as #/$defs/name",
            )


def _refuse_demands(parts: list[tuple[Place, dict[str, Any]]]) -> None:
    multiple = 1
    for where, part in parts:
        for keyword, most in (("minLength", LONGEST_STRING), ("minItems", MOST_ITEMS), ("minProperties", MOST_ITEMS)):
            if _number(part.get(keyword)) > most:
                raise _refused(f"{keyword} at {pointer(where)} is {part[keyword]}, expected at most {most}", "lower it")
        multiple = math.lcm(multiple, _coefficient(part.get("multipleOf")))
        if multiple > LARGEST_MULTIPLE:
            raise _refused(
                f"multipleOf at {pointer(where)}: {multiple} states, expected at most {LARGEST_MULTIPLE}",
                "use smaller numbers with fewer digits",
            )


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _coefficient(value: object) -> int:
    """Take the digits of a positive number, without its decimal exponent; 1 for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        return 1
    return int("".join(map(str, Decimal(repr(value)).normalize().as_tuple().digits)))


def _kind(value: object) -> str:
    names = {type(None): "null", bool: "a boolean", str: "a string", list: "an array", dict: "an object"}
    return names.get(type(value), "a number")


def _refused(found: str, hint: str) -> InvalidRequest:
    return InvalidRequest(f"cannot use this JSON schema: {found}", hint=hint, param=_PARAM)
