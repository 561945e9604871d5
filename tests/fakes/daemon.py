"""A small inference daemon on a Unix socket that says what a test wants.

    with FakeDaemon(tmp_path / "s.sock") as daemon:
        daemon.says("POST", "/v1/chat/completions", chat_body("hello"))
        ...
        assert daemon.requests[-1].json["seed"] == 7

Every route of the real daemon has a plain answer already. It is real HTTP over a real socket, one thread a connection;
it checks nothing, and what it says is the wire format written out by hand, so that client and daemon cannot drift apart
together.
"""

import contextlib
import http.server
import json
import select
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TIMINGS = {
    "queue_s": 0.001,
    "prompt_s": 0.2,
    "first_token_s": 0.21,
    "decode_s": 0.5,
    "prompt_tokens": 31,
    "completion_tokens": 42,
    "decode_tokens_per_s": 84.0,
    "prompt_tokens_per_s": 155.0,
}
USAGE = {"prompt_tokens": 31, "completion_tokens": 42, "total_tokens": 73}


@dataclass(frozen=True)
class Seen:
    """A request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Says:
    """An answer: a whole body, or the chunks of a stream."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    chunks: tuple[bytes | float, ...] | None = None
    """Bytes to send, or seconds to be silent; overrides `body`."""
    raw: bytes | None = None
    """Sent in place of HTTP; then the connection closes."""
    delay_s: float = 0.0
    hang: bool = False
    """After the chunks, wait for the client to go away instead of ending the body."""


def model_body(name: str = "tiny", **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "state": "loaded",
        "problem": None,
        "version": "1",
        "architecture": "llama",
        "summary": "a model for tests",
        "quantization": "q8",
        "context_length": 8192,
        "chat": True,
        "size_bytes": 145_752_064,
        "parameters": {"total": 134_515_008, "embedding": 28_311_552, "effective": 106_203_456},
        "licence": "Apache-2.0",
        "key_id": "ab" * 32,
        "loaded_at": "2026-11-22T18:00:00Z",
        "load_s": 0.4,
        "requests": 212,
    } | changes


def status_body(**changes: Any) -> dict[str, Any]:
    return {
        "version": "0.1.0",
        "state": "ready",
        "started_at": "2026-11-22T15:00:00Z",
        "uptime_s": 11_520.0,
        "pid": 4242,
        "socket": "/run/skerry/inference.sock",
        "caller": {"uid": 1000, "gid": 1000, "pid": 77, "unit": None, "roles": ["client", "operator"]},
        "memory": {"resident_bytes": 327_155_712},
        "threads": 2,
        "limits": {"running": 4, "queued": 32, "per_caller": 8},
        "requests": {"running": 1, "queued": 0, "total": 212, "rejected": 3, "cancelled": 1},
        "tokens": {"prompt": 18_204, "generated": 9_911},
        "models": [model_body()],
    } | changes


def chat_body(text: str, **changes: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_795_000_000,
        "model": "tiny",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": USAGE,
        "skerry": {"timings": TIMINGS},
    } | changes


def completion_body(text: str) -> dict[str, Any]:
    return {
        "id": "cmpl-1",
        "object": "text_completion",
        "model": "tiny",
        "choices": [{"index": 0, "text": text, "finish_reason": "length", "logprobs": None}],
        "usage": USAGE,
        "skerry": {"timings": TIMINGS},
    }


def error_body(kind: str, message: str = "cannot do it: no", **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": "x", "param": None, "code": kind, "kind": kind, "hint": None} | more}


def event(body: Any) -> bytes:
    return b"data: " + (body if isinstance(body, bytes) else json.dumps(body).encode()) + b"\n\n"


def chat_events(*texts: str, finish: str = "stop") -> tuple[bytes, ...]:
    """Write a streamed chat as the daemon does: role, texts, finish reason, usage and times, end mark."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "tiny"}

    def chunk(delta: dict[str, str], reason: str | None = None) -> bytes:
        return event(head | {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})

    last = head | {"choices": [], "usage": USAGE, "skerry": {"timings": TIMINGS}}
    return (
        chunk({"role": "assistant", "content": ""}),
        *(chunk({"content": t}) for t in texts),
        chunk({}, finish),
        event(last),
        event(b"[DONE]"),
    )


def stream(*chunks: bytes | float, hang: bool = False) -> Says:
    return Says(chunks=chunks, hang=hang, headers={"content-type": "text/event-stream"})


def says_json(body: Any, status: int = 200, **headers: str) -> Says:
    names = {k.replace("_", "-"): v for k, v in headers.items()}
    return Says(json.dumps(body).encode(), status, {"content-type": "application/json"} | names)


class FakeDaemon:
    """Serves until the block ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.requests: list[Seen] = []
        self.client_gone = threading.Event()
        """Set when a client left while a stream was hanging."""
        self._script: dict[tuple[str, str], list[Says]] = {}
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def says(self, method: str, path: str, *answers: Says | dict[str, Any]) -> None:
        """Set the answers of a route, in order; the last one repeats."""
        self._script[method, path] = [a if isinstance(a, Says) else says_json(a) for a in answers]

    def answer(self, seen: Seen) -> Says:
        self.requests.append(seen)
        script = self._script.get((seen.method, seen.path))
        if script:
            return script.pop(0) if len(script) > 1 else script[0]
        return _plain(seen)

    def __enter__(self) -> "FakeDaemon":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self.path.unlink(missing_ok=True)


@contextlib.contextmanager
def raw_listener(path: Path, serve: Callable[[socket.socket], None]) -> Iterator[None]:
    """Accept one connection on `path` and hand it to `serve`: for things that are no daemon at all."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def run() -> None:
            with contextlib.suppress(OSError), listener.accept()[0] as connection:
                serve(connection)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield
        thread.join(5)


def _plain(seen: Seen) -> Says:
    match seen.method, seen.path.split("/")[1:]:
        case "GET", ["healthz"]:
            return says_json({"status": "ok"})
        case "GET", ["metrics"]:
            return Says(b"# HELP skerry_requests_total n\nskerry_requests_total 3.0\n")
        case "GET", ["v1", "models"]:
            return says_json({"object": "list", "data": [{"id": "tiny", "object": "model"}]})
        case "GET", ["skerry", "v1", "status"]:
            return says_json(status_body())
        case "GET", ["skerry", "v1", "models"]:
            return says_json({"models": [model_body()]})
        case "GET", ["skerry", "v1", "models", name]:
            return says_json(model_body(name))
        case "POST", ["skerry", "v1", "models", name, verb]:
            state = "installed" if verb == "unload" else "loaded"
            return says_json(model_body(name, state=state) | ({"verified": True} if verb == "verify" else {}))
        case "POST", ["v1", "chat", "completions"]:
            return stream(*chat_events("Hel", "lo")) if seen.json.get("stream") else says_json(chat_body("Hello"))
        case "POST", ["v1", "completions"]:
            if not seen.json.get("stream"):
                return says_json(completion_body(" upon"))
            piece = {
                "id": "cmpl-1",
                "model": "tiny",
                "choices": [{"index": 0, "text": " upon", "finish_reason": "length"}],
            }
            return stream(event(piece), event(b"[DONE]"))
    return says_json(error_body("not_found", f"cannot find {seen.path}: no such route"), 404)


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 16

    def __init__(self, fake: FakeDaemon) -> None:
        super().__init__(str(fake.path), _Handler)
        self.fake = fake

    def handle_error(self, *_: object) -> None:
        """Say nothing: clients of tests leave early on purpose."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        headers = {k.lower(): v for k, v in self.headers.items()}
        says = self.server.fake.answer(Seen(self.command, self.path, headers, body))
        time.sleep(says.delay_s)
        if says.raw is not None:
            self.wfile.write(says.raw)
            self.close_connection = True
        elif says.chunks is None:
            self._head(says, {"content-length": str(len(says.body))})
            self.wfile.write(says.body)
        else:
            self._head(says, {"transfer-encoding": "chunked"})
            self._stream(says)

    def _head(self, says: Says, more: dict[str, str]) -> None:
        self.send_response(says.status)
        for name, value in (says.headers | more).items():
            self.send_header(name, value)
        self.end_headers()

    def _stream(self, says: Says) -> None:
        for chunk in says.chunks or ():
            if isinstance(chunk, float):
                time.sleep(chunk)
            else:
                self.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
        if says.hang:
            # A client that closes makes the socket readable, with nothing to read.
            if select.select([self.connection], [], [], 10)[0] and not self.connection.recv(1):
                self.server.fake.client_gone.set()
            self.close_connection = True
        else:
            self.wfile.write(b"0\r\n\r\n")

    do_GET = do_POST = _serve  # noqa: N815  the names that http.server looks for

    def log_message(self, *_: object) -> None: ...

    def address_string(self) -> str:
        return "unix"
