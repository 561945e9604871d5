"""Errors as they go over the wire: OpenAI's shape, with Skerry's stable kind and the next step.

Source: the error object of OpenAI's API reference.
"""

import math
from typing import Any

from starlette.responses import JSONResponse

from appliance.errors import SkerryError

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


def error_body(error: SkerryError) -> dict[str, Any]:
    """Describe an error for programs and for people."""
    status = error.http_status
    return {
        "error": {
            "message": error.message,
            "type": _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error"),
            "param": error.param,
            "code": error.kind,
            "kind": error.kind,
            "hint": error.hint,
        }
    }


def error_headers(error: SkerryError) -> dict[str, str]:
    """Say when to try again, in whole seconds, where that is known."""
    return {} if error.retry_after_s is None else {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}


def error_response(error: SkerryError) -> JSONResponse:
    """Answer a request with an error."""
    return JSONResponse(error_body(error), error.http_status, error_headers(error))
