"""One route table: path, who may, handler. Everything else is refused.

    ROUTES = [Route("GET", "/healthz", None, healthz), Route("POST", "/v1/completions", Role.CLIENT, complete)]
    app = assemble(ROUTES)

The table is the whole policy of a daemon's door: a request that matches no row is a 404, a caller without the row's
role a 403, before the handler sees a byte of the body.
"""

import logging
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as StarletteRoute
from starlette.types import Lifespan

from appliance.api.caller import Caller, Role
from appliance.api.errors import error_response
from appliance.errors import InternalError, MethodNotAllowed, NotFound, PermissionDenied, SkerryError

log = logging.getLogger("skerry.api")

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Route:
    """A row of the table.

    Attributes:
        method: GET or POST.
        path: with `{name}` for parameters.
        role: what the caller must hold; None: whoever the socket's own permissions let connect.
        handler: of the request.
    """

    method: str
    path: str
    role: Role | None
    handler: Handler


def caller_of(request: Request) -> Caller:
    """The caller of a request, by the kernel's word."""
    caller = request.scope["skerry.caller"]
    assert isinstance(caller, Caller)  # noqa: S101  our own protocol put it there
    return caller


def assemble(routes: Sequence[Route], lifespan: Lifespan[Starlette] | None = None) -> Starlette:
    """Make an application of a table."""
    app = Starlette(
        routes=[StarletteRoute(r.path, _guarded(r), methods=[r.method]) for r in routes],
        exception_handlers={HTTPException: _http_exception},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # a path that is no row is a 404, not a hint at another host
    return app


def _guarded(route: Route) -> Handler:
    async def endpoint(request: Request) -> Response:
        try:
            caller = caller_of(request)
            if route.role is not None and route.role not in caller.roles:
                raise PermissionDenied(
                    f"cannot {route.method} {route.path}: uid {caller.uid} does not hold the role {route.role}",
                    hint=f"an administrator adds the user to the group skerry-{route.role}",
                )
            return await route.handler(request)
        except SkerryError as e:
            return error_response(e)
        except Exception as e:  # noqa: BLE001  the door: a defect must not take the daemon down
            log_defect(f"{route.method} {route.path}", e)
            return error_response(
                InternalError("the daemon failed at this request", hint="the journal of skerry-inferenced says where")
            )

    return endpoint


def log_defect(what: str, error: BaseException) -> None:
    """Log where a defect showed, by type and place only: its message could quote a prompt."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    log.error("defect in %s: %s\n%s", what, type(error).__name__, frames)


async def _http_exception(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException) and error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        response = error_response(
            MethodNotAllowed(f"cannot {request.method} this path: expected {allowed or 'another method'}")
        )
        response.headers["Allow"] = allowed
        return response
    return error_response(
        NotFound(f"cannot {request.method} this path: there is no such route", hint="docs/reference/api.md lists them")
    )
