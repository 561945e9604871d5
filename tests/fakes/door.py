"""A daemon's door without a daemon behind it: `python -m tests.fakes.door SOCKET` has short limits."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from appliance.api.body import read_json
from appliance.api.caller import Role
from appliance.api.routes import Route, assemble, caller_of
from appliance.api.server import listen, serve
from appliance.config import Limits

BIG = 8 << 20

LIMITS = Limits(body_bytes=4096, header_timeout_s=1.0, body_timeout_s=1.0, drain_timeout_s=5.0, connections=16)


class Letter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    text: str
    anything: Any = None
    mood: Literal["good", "bad"] = "good"
    count: Annotated[int, msgspec.Meta(ge=1, le=9)] = 1


async def echo(request: Request) -> Response:
    letter = await read_json(request, Letter, limit_bytes=LIMITS.body_bytes, timeout_s=LIMITS.body_timeout_s)
    return JSONResponse({"text": letter.text * letter.count})


async def who(request: Request) -> Response:
    caller = caller_of(request)
    return JSONResponse({"uid": caller.uid, "gid": caller.gid, "pid": caller.pid, "groups": sorted(caller.groups)})


async def admin(request: Request) -> Response:
    return JSONResponse({})


async def broken(request: Request) -> Response:
    raise RuntimeError(request.url.query)


async def big(request: Request) -> Response:
    return Response(b"x" * BIG)


async def slow(request: Request) -> Response:
    await asyncio.sleep(1.5)
    return JSONResponse({"slept": True})


if __name__ == "__main__":
    routes = [
        Route("POST", "/echo", None, echo),
        Route("GET", "/who", None, who),
        Route("GET", "/admin", Role.ADMIN, admin),
        Route("GET", "/broken", None, broken),
        Route("GET", "/slow", None, slow),
        Route("GET", "/big", None, big),
    ]
    listener = listen(Path(sys.argv[1]))
    try:
        serve(assemble(routes), listener, LIMITS, lambda: print("draining", flush=True))
    finally:
        listener.close()
    print("ended", os.getpid(), flush=True)
