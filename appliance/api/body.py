"""Request bodies: read with a limit on size and time, parsed strictly into frozen types.

A body is at most `limit_bytes` of UTF-8 JSON, arrives within `timeout_s` and has the declared fields and no others.
"""

import asyncio
import json
import re
from typing import TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from appliance import typed
from appliance.errors import Cancelled, InvalidRequest, RequestTimeout, RequestTooLarge, UnsupportedMediaType

T = TypeVar("T")

_PATH = re.compile(r" - at `\$\.?([^`]*)`$")
_FIELD = re.compile(r"field `(.*)`$", re.DOTALL)
_ODD = re.compile(r"[^A-Za-z0-9_.-]")


async def read_json(request: Request, to: type[T], *, limit_bytes: int, timeout_s: float) -> T:
    """Read the body and turn it into a frozen type.

    Raises:
        UnsupportedMediaType: it is not declared as JSON.
        RequestTooLarge: more than `limit_bytes`.
        RequestTimeout: not complete within `timeout_s`.
        InvalidRequest: not UTF-8, not JSON, nested too deep, an unknown or missing field, a wrong type; `param` is the
            path of what is wrong.
        Cancelled: the caller left in the middle of it.
    """
    declared = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if declared != "application/json":
        raise UnsupportedMediaType(
            f"cannot read the body: its type is {declared or 'not declared'!r}, expected 'application/json'",
            hint="send the header Content-Type: application/json",
        )
    return decode_json(await _read(request, limit_bytes, timeout_s), to)


async def _read(request: Request, limit_bytes: int, timeout_s: float) -> bytes:
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > limit_bytes:
        raise _too_large(limit_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit_bytes:
                    raise _too_large(limit_bytes)
    except TimeoutError as e:
        raise RequestTimeout(f"cannot read the body: it did not arrive within {timeout_s:g} s") from e
    except ClientDisconnect as e:
        raise Cancelled("cannot read the body: the caller left") from e
    return bytes(body)


def _too_large(limit_bytes: int) -> RequestTooLarge:
    return RequestTooLarge(
        f"cannot read the body: more than {limit_bytes} bytes", hint="send less text, or raise limits.body_bytes"
    )


def decode_json(data: bytes, to: type[T]) -> T:
    """Parse strict JSON into a frozen type.

    Raises:
        InvalidRequest: as `read_json`.
    """
    try:
        return typed.decode(data, to)
    except msgspec.ValidationError as e:
        text = str(e)
        path = _PATH.search(text)
        field = _FIELD.search(_PATH.sub("", text))
        name = _ODD.sub("?", field[1])[:64] if field else None
        param = ".".join(p for p in (path and path[1], name) if p) or None
        # What the caller sent must not come back in an error that somebody logs.
        found = _FIELD.sub(f"field `{name}`", _PATH.sub("", text))
        if found.startswith("Invalid enum value"):
            found = "a value that is none of the allowed ones"
        raise InvalidRequest(f"cannot use the request: {found[:300]}", param=param and param[:300]) from e
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise InvalidRequest(f"cannot parse the body as JSON: {_fault(data, e)}") from e
    except RecursionError as e:
        raise InvalidRequest("cannot parse the body as JSON: it is nested too deep") from e


def _fault(data: bytes, error: Exception) -> str:
    """Say what is wrong with a body, without the decoder's own text where it may quote what was sent."""
    if not data.strip():
        return "it is empty"
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8"
    if str(error).startswith("JSON is malformed"):
        return str(error)
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return "it is cut off"
    return "a string ends in half a character (a lone surrogate)"  # for the decoder that is an early end too
