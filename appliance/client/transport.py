"""HTTP/1.1 over the daemon's Unix socket, blocking and asynchronous, and what can go wrong on the way.

The two transports differ in nothing but `await`. Proxies of the environment are ignored: no byte leaves the machine.
Importing httpx2 takes longer than all the rest of the client, so this module is imported when a client is made.
"""

import errno
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2

from appliance.client.protocol import MAX_REPLY_BYTES, NOT_THE_DAEMON, QUICK_S, Call, Reply
from appliance.errors import DaemonTimeout, DaemonUnreachable, PermissionDenied, SkerryError

CONNECT_S = 5.0
MAX_SOCKET_PATH_BYTES = 107  # sockaddr_un.sun_path without its final zero
BASE_URL = "http://localhost"  # only the Host header shows it
HEADERS = {"user-agent": "skerry-client", "accept-encoding": "identity"}


class Transport:
    """Blocking requests to one socket."""

    def __init__(self, socket: Path, timeout_s: float) -> None:
        self.socket, self.timeout_s = _checked(socket), timeout_s
        pool = httpx2.HTTPTransport(uds=str(socket), verify=False)  # no TLS here: skip its set-up
        self._http = httpx2.Client(transport=pool, base_url=BASE_URL, headers=HEADERS, trust_env=False)

    def send(self, call: Call[Any]) -> Reply:
        """Send a request and read its whole reply."""
        with Body(self, call) as body:
            chunks, size = [], 0
            for chunk in body:
                chunks.append(chunk)
                size = _limited(size + len(chunk))
            return Reply(body.status, body.headers, b"".join(chunks))

    def open(self, call: Call[Any]) -> httpx2.Response:
        """Send a request and read its reply's head."""
        with _Explained(self.socket, silence_s(call, self.timeout_s)):
            return self._http.send(_request(self._http, call, self.timeout_s), stream=True)

    def close(self) -> None:
        """Close all connections."""
        self._http.close()


class Body:
    """A reply whose body is read as it comes; leaving the block closes the connection, which cancels the request."""

    def __init__(self, transport: Transport, call: Call[Any]) -> None:
        self._response = transport.open(call)
        self._explained = _Explained(transport.socket, silence_s(call, transport.timeout_s))
        self.status = self._response.status_code
        self.headers = dict(self._response.headers)
        self._chunks = self._response.iter_raw()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        with self._explained:
            return next(self._chunks)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading."""
        self._response.close()


class AsyncTransport:
    """Requests to one socket from a coroutine."""

    def __init__(self, socket: Path, timeout_s: float) -> None:
        self.socket, self.timeout_s = _checked(socket), timeout_s
        pool = httpx2.AsyncHTTPTransport(uds=str(socket), verify=False)  # no TLS here: skip its set-up
        self._http = httpx2.AsyncClient(transport=pool, base_url=BASE_URL, headers=HEADERS, trust_env=False)

    async def send(self, call: Call[Any]) -> Reply:
        """Send a request and read its whole reply."""
        async with AsyncBody(self, call, await self.open(call)) as body:
            chunks, size = [], 0
            async for chunk in body:
                chunks.append(chunk)
                size = _limited(size + len(chunk))
            return Reply(body.status, body.headers, b"".join(chunks))

    async def open(self, call: Call[Any]) -> httpx2.Response:
        """Send a request and read its reply's head."""
        with _Explained(self.socket, silence_s(call, self.timeout_s)):
            return await self._http.send(_request(self._http, call, self.timeout_s), stream=True)

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()


class AsyncBody:
    """As `Body`, for coroutines."""

    def __init__(self, transport: AsyncTransport, call: Call[Any], response: httpx2.Response) -> None:
        self._response = response
        self._explained = _Explained(transport.socket, silence_s(call, transport.timeout_s))
        self.status = response.status_code
        self.headers = dict(response.headers)
        self._chunks = response.aiter_raw()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        with self._explained:
            return await anext(self._chunks)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop reading."""
        await self._response.aclose()


def silence_s(call: Call[Any], timeout_s: float) -> float:
    """The longest silence to bear for a call."""
    return min(timeout_s, QUICK_S) if call.quick else timeout_s


def _request(http: httpx2.Client | httpx2.AsyncClient, call: Call[Any], timeout_s: float) -> httpx2.Request:
    timeout = httpx2.Timeout(silence_s(call, timeout_s), connect=min(CONNECT_S, timeout_s))
    return http.build_request(call.method, call.path, content=call.body, headers=dict(call.headers), timeout=timeout)


def _checked(socket: Path) -> Path:
    # The kernel's own message for this names neither the limit nor the path.
    if len(os.fsencode(socket)) > MAX_SOCKET_PATH_BYTES:
        raise DaemonUnreachable(
            f"cannot use the socket {socket}: its path has {len(os.fsencode(socket))} bytes, "
            f"expected at most {MAX_SOCKET_PATH_BYTES}",
            hint="use a shorter state directory",
        )
    return socket


def _limited(size: int) -> int:
    if size > MAX_REPLY_BYTES:
        raise DaemonUnreachable(
            f"cannot read the answer: more than {MAX_REPLY_BYTES} bytes, expected fewer", hint=NOT_THE_DAEMON
        )
    return size


# --- what went wrong --------------------------------------------------------------------------------------------------


class _Explained:
    """Turns what the HTTP library raises inside the block into errors that tell the operator what to do."""

    def __init__(self, socket: Path, silence_s: float) -> None:
        self._socket, self._silence_s = socket, silence_s

    def __enter__(self) -> None: ...

    def __exit__(self, _: type[BaseException] | None, e: BaseException | None, __: TracebackType | None) -> None:
        if isinstance(e, httpx2.ConnectTimeout):
            raise _not_reached(self._socket, None) from e
        if isinstance(e, httpx2.TimeoutException):
            raise DaemonTimeout(
                f"cannot get an answer from the daemon: it was silent for {self._silence_s:g} s",
                hint="look at the load with: skerry status; or allow more time",
            ) from e
        if isinstance(e, httpx2.ConnectError):
            raise _not_reached(self._socket, _errno(e)) from e
        if isinstance(e, httpx2.HTTPError):
            raise _broken(self._socket, e) from e


def _not_reached(socket: Path, code: int | None) -> SkerryError:
    what = f"cannot reach the daemon at {socket}"
    if code in (errno.ENOENT, errno.ENOTDIR):
        return DaemonUnreachable(f"{what}: there is no such socket", hint=start_hint(socket))
    if code == errno.ECONNREFUSED:
        return DaemonUnreachable(f"{what}: the socket is there, but nothing listens", hint=start_hint(socket))
    if code in (errno.EACCES, errno.EPERM):
        return PermissionDenied(
            f"{what}: permission denied",
            hint="ask an administrator to add you to the group skerry-client; log in again",
        )
    if code in (errno.EAGAIN, None):
        return DaemonUnreachable(f"{what}: it accepts no connection now", hint="wait a little, then try again")
    return DaemonUnreachable(f"{what}: {os.strerror(code)}", hint=start_hint(socket))


def start_hint(socket: Path) -> str:
    """Say how to start the daemon of a socket."""
    if socket.parts[-2:] == ("run", "inference.sock") and socket.parts[:2] != ("/", "run"):
        return f"start it with: skerry --state-dir {socket.parent.parent} serve"
    return "start it with: systemctl start skerry-inferenced"


def _broken(socket: Path, e: httpx2.HTTPError) -> SkerryError:
    text = str(e)
    # h11 and httpcore2 have one class for both cases, and say which one it is in words only.
    if isinstance(e, httpx2.NetworkError) or "disconnected" in text or "closed" in text:
        return DaemonUnreachable(
            f"cannot finish with the daemon at {socket}: it closed the connection before the end of its answer",
            hint="look for the reason with: journalctl -u skerry-inferenced; then try again",
        )
    return DaemonUnreachable(
        f"cannot talk to the daemon at {socket}: what answers is not HTTP ({text})", hint=NOT_THE_DAEMON
    )


def _errno(e: BaseException | None) -> int | None:
    """Find the system's error number below the libraries' wrappers."""
    while e is not None:
        if isinstance(e, OSError) and e.errno is not None:
            return e.errno
        if isinstance(e, ExceptionGroup):
            return _errno(e.exceptions[0])
        e = e.__cause__ or e.__context__
    return None
