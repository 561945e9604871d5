"""Serving an application on Unix sockets: caller, head timeout, connection limit, readiness, watchdog, drain.

uvicorn does the HTTP (with h11, which refuses what is ambiguous); this module adds what it leaves out. SIGTERM and
SIGINT drain: listening ends, requests under way are answered, and the application is told, so that it can end what
lasts too long.

What this does NOT protect against: a person with many uids. Limits per caller are the application's.
"""

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h11
import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from appliance.api.caller import Caller, identify
from appliance.api.errors import error_body, error_response
from appliance.config import Limits
from appliance.errors import FileProblem, InvalidRequest, RequestTimeout, RequestTooLarge, SkerryError, TooManyRequests
from appliance.system.notify import notify, passed_sockets, watchdog_interval_s

log = logging.getLogger("skerry.api")

MAX_HEAD_BYTES = 16 << 10
BACKLOG = 128


@dataclass(frozen=True)
class Listener:
    """A listening socket.

    Attributes:
        socket: to serve.
        path: where this process made it; None if the service manager did.
    """

    socket: socket.socket
    path: Path | None

    def close(self) -> None:
        """Stop listening, and take away the name that this process made."""
        self.socket.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def listen(path: Path, mode: int = 0o666) -> Listener:
    """Take the socket that the service manager passed, or make one at `path`.

    The mode lets everybody connect; who may do what is decided by the route table, and who may reach the path by its
    folder.

    Raises:
        FileProblem: another daemon listens there, something else than a socket lies there, or the folder refuses.
    """
    passed = passed_sockets()
    if passed:
        return Listener(passed[0], None)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path)
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        server.bind(str(path))
        path.chmod(mode)
        server.listen(BACKLOG)
    except OSError as e:
        reason = "the path is too long for a Unix socket" if "too long" in str(e) else (e.strerror or str(e))
        raise FileProblem(
            f"cannot listen on {path}: {reason}", hint="choose another --socket, or end what is there"
        ) from e
    return Listener(server, path)


def _remove_stale(path: Path) -> None:
    """Unlink a socket on which nobody listens any more, and nothing else."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(errno.EEXIST, "something else than a socket is there")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise OSError(errno.EADDRINUSE, "another daemon listens there")


def serve(
    app: Starlette,
    listener: Listener,
    limits: Limits,
    on_drain: Callable[[], None],
    beat: Callable[[], object] = lambda: notify("WATCHDOG=1"),
) -> None:
    """Serve until a signal says to end, then drain. Blocks; to be called from the main thread.

    Args:
        app: its lifespan ends when it is ready to answer.
        listener: from `listen`.
        limits: of time, size and number.
        on_drain: called once when the drain begins.
        beat: called while the event loop turns, as often as the service manager's watchdog wants to hear of it.
    """
    watchdog_s = watchdog_interval_s()

    async def alive() -> None:
        beat()

    config = uvicorn.Config(
        app,
        http=_protocol(limits),
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        timeout_keep_alive=max(1, int(limits.header_timeout_s)),
        # The application ends what is left at drain_timeout_s, with an error that says so; this is the last resort.
        timeout_graceful_shutdown=int(limits.drain_timeout_s) + 3,
        callback_notify=alive if watchdog_s else None,
        timeout_notify=max(1, int(watchdog_s)) if watchdog_s else 30,
    )
    _Server(config, on_drain).run(sockets=[listener.socket])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_drain: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_drain = on_drain

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        notify("READY=1", "STATUS=ready")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        notify("STOPPING=1", "STATUS=draining")
        self._on_drain()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # Unlike uvicorn's own: the signal is not raised again afterwards, so that the exit is clean.
        before = {s: signal.signal(s, self.handle_exit) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _protocol(limits: Limits) -> type[H11Protocol]:
    class Protocol(_Protocol):
        _limits = limits

    return Protocol


class _Protocol(H11Protocol):
    """uvicorn's h11 protocol, with the caller's identity, a time limit on heads, and a limit on connections."""

    _limits: Limits
    _head_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _uid: int | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        try:
            caller = identify(transport.get_extra_info("socket"))
        except OSError:
            transport.abort()  # no identity, no conversation
            return
        self._uid = caller.uid
        self.app = _with_caller(self.app, caller)
        if self._crowded(caller):
            self._refuse(TooManyRequests("too many open connections", retry_after_s=1))
            return
        self._await_head()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete and self.conn.their_state is h11.DONE:
            # uvicorn would stop reading here, and never see that this caller has hung up.
            self.transport.abort()
            return
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._await_head()
        else:
            self._head_arrived()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._head_arrived()  # the keep-alive timer runs from here on

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_arrived()
        self._written()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(self._limits.body_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        self._written()
        super().resume_writing()

    def _written(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _crowded(self, caller: Caller) -> bool:
        """A caller gets a quarter of the connections, and the last quarter is root's and the daemon's own user's."""
        limit = self._limits.connections
        if caller.uid in (0, os.geteuid()):
            return len(self.connections) > limit
        own = sum(getattr(c, "_uid", None) == caller.uid for c in self.connections)
        return own > max(1, limit // 4) or len(self.connections) > max(1, limit * 3 // 4)

    def send_400_response(self, msg: str) -> None:
        self._refuse(
            InvalidRequest("cannot read the request: not HTTP/1.1, or a head of more than 16 KiB", hint="is this curl?")
        )

    def _await_head(self) -> None:
        if self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(self._limits.header_timeout_s, self._head_late)

    def _head_arrived(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_late(self) -> None:
        self._head_timer = None
        self._refuse(RequestTimeout(f"no request arrived within {self._limits.header_timeout_s:g} s"))

    def _refuse(self, error: SkerryError) -> None:
        """Answer outside of any request, if the state of the conversation still allows it, and hang up."""
        if not self.transport.is_closing() and self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = msgspec.json.encode(error_body(error))
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            with contextlib.suppress(h11.LocalProtocolError):
                for event in (
                    h11.Response(status_code=error.http_status, headers=headers, reason=b""),
                    h11.Data(data=body),
                    h11.EndOfMessage(),
                ):
                    self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def _head_too_large() -> RequestTooLarge:
    return RequestTooLarge(f"cannot read the request: its head has more than {MAX_HEAD_BYTES} bytes")


def _with_caller(app: Any, caller: object) -> ASGIApp:
    async def called(scope: Scope, receive: Receive, send: Send) -> None:
        scope["skerry.caller"] = caller
        # h11 bounds a head that is still coming; one that came in a single piece is measured here.
        if sum(len(k) + len(v) for k, v in scope["headers"]) + len(scope["raw_path"]) > MAX_HEAD_BYTES:
            await error_response(_head_too_large())(scope, receive, send)
        else:
            await app(scope, receive, send)

    return called
