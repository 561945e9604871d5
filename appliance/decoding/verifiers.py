"""Judges of an answer: each says whether the text passes, and why not.

    verifiers = convert(yaml["verifiers"], tuple[Verifier, ...], "triage.yaml")
    verdicts = [v.check(text, Context(input=question)) for v in verifiers]

A task declares them in YAML, by kind:

    - {kind: schema, schema: {type: object, required: [category]}}
    - {kind: one_of, field: category, values: [equipment, building]}
    - {kind: number, expression: "12 * 7"}

A `field` is the place of a value in an answer that is JSON: `category`, `lines.0.price`. Without one the whole text is
judged. A reason never quotes the text: verdicts reach logs and metrics, answers must not.

What this does NOT do: understand. A citation that is found in the sources may still not support what is said, and an
answer that passes everything may still be wrong. No verifier can hold the daemon up: texts, expressions and patterns
are bounded, and regular expressions are matched in linear time (`conformity`), never by backtracking alone.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from appliance.decoding import arithmetic, json_schema
from appliance.decoding.conformity import conforms, read_json
from appliance.decoding.grammar import Constraint
from appliance.errors import SkerryError

LONGEST_TEXT = 65_536
"""Characters of an answer that is judged; a longer one fails."""
LONGEST_PATTERN = 2_048

Field = Annotated[str, Meta(min_length=1, max_length=256)]
Words = Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=1024)], ...], Meta(min_length=1, max_length=256)]
Share = Annotated[float, Meta(gt=0, le=1)]
Count = Annotated[int, Meta(ge=0, le=1 << 20)]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one verifier says.

    Attributes:
        passed: whether the answer is as it must be.
        verifier: the verifier's name.
        reason: empty if it passed, else what is wrong, without a word of the answer.
    """

    passed: bool
    verifier: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Context:
    """What an answer is judged by, besides itself.

    Attributes:
        input: what the task was asked.
        sources: texts that may be cited; without any, the input is the source.
        candidates: texts of all candidates that may win, this one included, for `agreement`.
    """

    input: str = ""
    sources: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()


NOTHING = Context()


class _Verifier(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind"):
    """What all verifiers have.

    Attributes:
        name: how verdicts call it; by default its kind. A task's names must differ.
    """

    name: Annotated[str, Meta(max_length=64)] = ""

    def __post_init__(self) -> None:
        if not self.name:
            msgspec.structs.force_setattr(self, "name", str(self.__struct_config__.tag))
        try:
            self._prepare()
        except SkerryError as e:
            raise ValueError(e.message) from e  # msgspec adds the path and makes a ValidationError of it

    @property
    def needs_others(self) -> bool:
        """Whether the verdict depends on the other candidates too."""
        return False

    def check(self, text: str, context: Context = NOTHING) -> Verdict:
        """Judge an answer."""
        try:
            if len(text) > LONGEST_TEXT:
                raise _Fault(f"longer than {LONGEST_TEXT} characters")
            self._judge(text, context)
        except _Fault as fault:
            return Verdict(False, self.name, str(fault))
        return Verdict(True, self.name)

    def _prepare(self) -> None:
        """Refuse settings that cannot work; ValueError says why."""

    def _judge(self, text: str, context: Context) -> None:
        raise NotImplementedError


class _Fault(Exception):
    """What is wrong with an answer."""


class Schema(_Verifier, frozen=True, tag="schema"):
    """The answer is JSON, strictly, and valid under a JSON Schema."""

    schema: dict[str, Any]

    def _prepare(self) -> None:
        json_schema.check(self.schema)

    def _judge(self, text: str, context: Context) -> None:
        constraint = Constraint("json_schema", json.dumps(self.schema, sort_keys=True))
        if (reason := conforms(constraint, text)) is not None:
            raise _Fault(reason)


class JsonKeys(_Verifier, frozen=True, tag="json_keys"):
    """The answer is JSON and has these fields; `filled` asks that none is null, empty or blank."""

    keys: Words
    filled: bool = False

    def _judge(self, text: str, context: Context) -> None:
        value = _json(text)
        for key in self.keys:
            found = _at(value, key)
            if self.filled and (
                found is None or found in ("", [], {}) or (isinstance(found, str) and not found.strip())
            ):
                raise _Fault(f"{key} is empty")


class OneOf(_Verifier, frozen=True, tag="one_of"):
    """The answer, or a field of it, is one of a list of words."""

    values: Words
    field: Field | None = None
    ignore_case: bool = False

    def _judge(self, text: str, context: Context) -> None:
        said = _said(text, self.field).strip()
        known = self.values
        if self.ignore_case:
            said, known = said.casefold(), tuple(v.casefold() for v in known)
        if said not in known:
            raise _Fault(f"{self.field or 'the text'} is none of the {len(known)} values")


class Regex(_Verifier, frozen=True, tag="regex"):
    """The answer, or a field of it, matches a regular expression: all of it, or with `search` a part.

    The expression is one without look-around, word boundaries and back-references, as in `response_format`.
    """

    pattern: Annotated[str, Meta(min_length=1, max_length=LONGEST_PATTERN)]
    search: bool = False
    field: Field | None = None

    def _prepare(self) -> None:
        conforms(self._constraint(), "")

    def _constraint(self) -> Constraint:
        return Constraint("regex", f"(?s:.*)({self.pattern})(?s:.*)" if self.search else self.pattern)

    def _judge(self, text: str, context: Context) -> None:
        if conforms(self._constraint(), _said(text, self.field)) is not None:
            raise _Fault(f"{self.field or 'the text'} does not match the pattern")


class Number(_Verifier, frozen=True, tag="number"):
    """The last number of the answer, or of a field, is what an expression gives.

    Attributes:
        expression: such as "12 * 7"; None: the one with the most operators that the input holds.
        tolerance: how far off it may be: times the right number, or absolutely where that is below 1.
    """

    expression: Annotated[str, Meta(min_length=1, max_length=arithmetic.LONGEST)] | None = None
    field: Field | None = None
    tolerance: Annotated[float, Meta(ge=0, le=1)] = 1e-6

    def _prepare(self) -> None:
        if self.expression is not None:
            arithmetic.evaluate(self.expression)

    def _judge(self, text: str, context: Context) -> None:
        expression = self.expression or arithmetic.find_expression(context.input)
        if expression is None:
            raise _Fault("the input holds no expression to compare with")
        try:
            right = arithmetic.evaluate(expression)
        except SkerryError as e:
            raise _Fault(f"the input's expression has no value: {e.message}") from e
        said = arithmetic.last_number(_said(text, self.field))
        if said is None:
            raise _Fault(f"{self.field or 'the text'} holds no number")
        if abs(said - right) > Fraction(self.tolerance) * max(Fraction(1), abs(right)):
            raise _Fault("the number is not what the expression gives")


class Citations(_Verifier, frozen=True, tag="citations"):
    """What the answer quotes stands in the sources, word for word; white space and the form of quotes do not count.

    Attributes:
        field: a text or a list of texts that must be quotes; None: every passage between double quotes.
        at_least: so many quotes there must be.
        min_words: shorter passages are no quotes; a title or a word may stand in quotes too.
        required: texts that must be quoted.
    """

    field: Field | None = None
    at_least: Annotated[int, Meta(ge=0, le=100)] = 1
    min_words: Annotated[int, Meta(ge=1, le=100)] = 3
    required: Words | None = None

    def _judge(self, text: str, context: Context) -> None:
        sources = [_even(s) for s in context.sources or (context.input,)]
        passages = [p for p in self._passages(text) if len(p.split()) >= self.min_words]
        if len(passages) < self.at_least:
            raise _Fault(f"{len(passages)} quotes, expected at least {self.at_least}")
        missing = sum(not any(p in source for source in sources) for p in passages)
        if missing:
            raise _Fault(f"{missing} of {len(passages)} quotes are not in the sources")
        said = _even(text)
        if absent := sum(_even(r) not in said for r in self.required or ()):
            raise _Fault(f"{absent} of the required quotes are missing")

    def _passages(self, text: str) -> list[str]:
        if self.field is None:
            return [p.strip() for p in re.findall(r'"([^"]*)"', _even(text))]
        found = _at(_json(text), self.field)
        if isinstance(found, str):
            found = [found]
        if not isinstance(found, list) or not all(isinstance(p, str) for p in found):
            raise _Fault(f"{self.field} is neither a text nor a list of texts")
        return [_even(p).strip('" ') for p in found]


class Agreement(_Verifier, frozen=True, tag="agreement"):
    """Enough of the candidates give the same answer as this one.

    Attributes:
        share: of all candidates.
        votes: at least so many, this one included.
        field: what must be the same; None: the whole answer, but for case, white space and how JSON is written.
    Source: self-consistency, Wang et al. 2023.
    """

    share: Share = 0.5
    votes: Annotated[int, Meta(ge=2, le=64)] = 2
    field: Field | None = None

    @property
    def needs_others(self) -> bool:
        """Yes."""
        return True

    def _judge(self, text: str, context: Context) -> None:
        others = context.candidates or (text,)
        votes = Counter(canonical(t, self.field) for t in others)[canonical(text, self.field)]
        if votes < self.votes or votes < self.share * len(others):
            raise _Fault(f"{votes} of {len(others)} candidates agree")


class Length(_Verifier, frozen=True, tag="length"):
    """The answer, or a field, has so many characters and words."""

    min_chars: Count = 0
    max_chars: Count | None = None
    min_words: Count = 0
    max_words: Count | None = None
    field: Field | None = None

    def _judge(self, text: str, context: Context) -> None:
        said = _said(text, self.field).strip()
        for what, size, least, most in (
            ("characters", len(said), self.min_chars, self.max_chars),
            ("words", len(said.split()), self.min_words, self.max_words),
        ):
            if size < least:
                raise _Fault(f"{size} {what}, expected at least {least}")
            if most is not None and size > most:
                raise _Fault(f"{size} {what}, expected at most {most}")


Verifier = Schema | JsonKeys | OneOf | Regex | Number | Citations | Agreement | Length
"""Any of them, as YAML declares it."""


def judge(verifiers: Sequence[Verifier], text: str, context: Context = NOTHING) -> tuple[Verdict, ...]:
    """Ask all verifiers, in their order."""
    return tuple(v.check(text, context) for v in verifiers)


def canonical(text: str, field: str | None = None) -> str:
    """Write an answer, or a field of it, so that answers that say the same are the same.

    JSON is written in one way. Other text loses its case, the blanks around and between words, and a full stop at its
    end. An answer without the field is like no other but itself.
    """
    try:
        value = _json(text)
        if field is not None:
            value = _at(value, field)
    except _Fault:
        if field is not None:
            return f"\0{text}"
        return " ".join(text.casefold().split()).rstrip(".")
    if isinstance(value, str):
        return " ".join(value.casefold().split()).rstrip(".")
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


# --- details ----------------------------------------------------------------------------------------------------------


def _json(text: str) -> Any:
    value, reason = read_json(text)
    if reason is not None:
        raise _Fault(reason)
    return value


def _at(value: Any, field: str) -> Any:
    """Go to a field's place."""
    for key in field.split("."):
        if isinstance(value, dict) and key in value:
            value = value[key]
        elif isinstance(value, list) and key.isascii() and key.isdecimal() and int(key[:6]) < len(value):
            value = value[int(key[:6])]
        else:
            raise _Fault(f"there is no {field}")
    return value


def _said(text: str, field: str | None) -> str:
    """The text, or a field's value as text."""
    if field is None:
        return text
    value = _at(_json(text), field)
    if isinstance(value, bool) or value is None or isinstance(value, dict | list):
        raise _Fault(f"{field} is neither a text nor a number")
    return value if isinstance(value, str) else str(value)


_QUOTES = str.maketrans({"\u201c": '"', "\u201d": '"', "\u201e": '"', "\u00ab": '"', "\u00bb": '"', "\u2019": "'"})


def _even(text: str) -> str:
    """One kind of quotes, one blank between words."""
    return " ".join(text.translate(_QUOTES).split())
