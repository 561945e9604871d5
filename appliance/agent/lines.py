"""A flat object as lines: `Label: value`, one a property. How small models write what a schema binds.

    pattern(schema)                      # the regular expression that holds a model to it
    write(schema, {"about": "pump"})     # "About: pump"
    read(schema, "About: pump")          # {"about": "pump"}

The label is the property's `title`, or its name with a capital. All properties are written, in the schema's order, so
all must be required; a value is a word of an enum, text of one line, a number, or true or false.

What this does NOT do: hold every keyword of the schema. What a line cannot express (`pattern`, `minimum`) is judged
afterwards, on the JSON.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

LONGEST_LINE = 200
"""Characters of a text whose schema has no smaller `maxLength`."""

_TYPES = ("string", "integer", "number", "boolean")
_INTEGER = r"-?(0|[1-9][0-9]{0,14})"
_BOOLEAN = {"true": True, "false": False}


def check(schema: Mapping[str, Any]) -> None:
    """Refuse a schema that lines cannot express.

    Raises:
        ValueError: why.
    """
    properties = schema.get("properties")
    if schema.get("type") != "object" or not isinstance(properties, dict) or not properties:
        raise ValueError("lines need a schema with type: object and properties")
    if sorted(schema.get("required", ())) != sorted(properties):
        raise ValueError("lines need every property in required, and no other")
    labels = set()
    for name, part in properties.items():
        if not isinstance(part, dict) or not ("enum" in part or part.get("type") in _TYPES):
            raise ValueError(f"lines cannot express {name}: expected an enum, or one of the types {', '.join(_TYPES)}")
        if any(not isinstance(v, str) or not _is_line(v) for v in part.get("enum", ())):
            raise ValueError(f"lines cannot express {name}: expected an enum of texts of one line each")
        _check_values(name, part)
        label = _label(name, part)
        if not _is_line(label) or ":" in label or label in labels:
            raise ValueError(f"lines cannot express {name}: its title is empty, taken, or has a colon")
        labels.add(label)


def _check_values(name: str, part: Mapping[str, Any]) -> None:
    """Refuse a property that no line can have a value for."""
    if part.get("enum") == []:
        raise ValueError(f"lines cannot express {name}: its enum is empty, expected at least one text")
    if "enum" in part or part["type"] != "string":
        return
    least, most = int(part.get("minLength", 0)), min(int(part.get("maxLength", LONGEST_LINE)), LONGEST_LINE)
    if most < 1:
        raise ValueError(f"lines cannot express {name}: its maxLength is {most}, expected at least 1")
    if least > most:
        raise ValueError(f"lines cannot express {name}: its minLength is {least}, expected at most {most}")


def pattern(schema: Mapping[str, Any]) -> str:
    """The regular expression that these lines match; they end with a line break if the last value has no end."""
    rows = [f"{re.escape(_label(name, part))}: {_values(part)}" for name, part in schema["properties"].items()]
    last = list(schema["properties"].values())[-1]
    return "\\n".join(rows) + ("" if "enum" in last or last.get("type") == "boolean" else "\\n")


def write(schema: Mapping[str, Any], value: Mapping[str, Any]) -> str:
    """Write an object that the schema accepts."""
    rows = []
    for name, part in schema["properties"].items():
        said = value[name]
        text = said if isinstance(said, str) else json.dumps(said)
        rows.append(f"{_label(name, part)}: {' '.join(text.split())}")
    return "\n".join(rows)


def read(schema: Mapping[str, Any], text: str) -> dict[str, Any] | None:
    """Read an object; None if the lines are not those of the schema."""
    rows = text.strip().split("\n")
    if len(rows) != len(schema["properties"]):
        return None
    value: dict[str, Any] = {}
    for row, (name, part) in zip(rows, schema["properties"].items(), strict=True):
        label, _, said = row.partition(": ")
        if label != _label(name, part):
            return None
        try:
            value[name] = _value(part, said.strip())
        except (ValueError, KeyError):
            return None
    return value


def _value(part: Mapping[str, Any], said: str) -> Any:
    if "enum" in part or part["type"] == "string":
        if not said:
            raise ValueError("an empty value")
        return said
    if part["type"] == "boolean":
        return _BOOLEAN[said]
    return int(said[:32]) if part["type"] == "integer" else float(said[:64])


def _values(part: Mapping[str, Any]) -> str:
    if "enum" in part:
        return f"({'|'.join(re.escape(v) for v in part['enum'])})"
    if part["type"] == "boolean":
        return "(true|false)"
    if part["type"] == "string":
        longest = min(int(part.get("maxLength", LONGEST_LINE)), LONGEST_LINE)
        return rf"[^\s][^\n]{{0,{max(longest - 1, 0)}}}"
    return _INTEGER if part["type"] == "integer" else rf"{_INTEGER}(\.[0-9]{{1,15}})?"


def _label(name: str, part: Mapping[str, Any]) -> str:
    title = part.get("title")
    return title if isinstance(title, str) else name.replace("_", " ").capitalize()


def _is_line(text: str) -> bool:
    return text == text.strip() != "" and text.isprintable()
