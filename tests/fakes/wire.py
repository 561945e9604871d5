"""Raw bytes over a Unix socket: what a hostile or broken program would send."""

import contextlib
import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Reply:
    """What came back until the other side hung up or answered."""

    status: int | None
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def kind(self) -> str | None:
        """The error's kind, if the body is one of ours."""
        try:
            return self.json["error"]["kind"]
        except (ValueError, KeyError, TypeError):
            return None


def connect(path: Path, timeout_s: float = 30) -> socket.socket:
    s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    s.settimeout(timeout_s)
    try:
        s.connect(str(path))
    except OSError:
        s.close()
        raise
    return s


def exchange(path: Path, raw: bytes, timeout_s: float = 30) -> Reply:
    """Send bytes, and read one reply."""
    with connect(path, timeout_s) as s:
        # The daemon may answer and hang up before it has everything; its answer can still be read.
        with contextlib.suppress(BrokenPipeError):
            s.sendall(raw)
        return read_reply(s)


def read_reply(s: socket.socket) -> Reply:
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = _receive(s)
        if not chunk:
            return Reply(None, {}, data)
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
    length = int(headers["content-length"]) if "content-length" in headers else None
    while length is None or len(body) < length:
        chunk = _receive(s)
        if not chunk:
            break
        body += chunk
    return Reply(int(lines[0].split()[1]), headers, body)


def _receive(s: socket.socket) -> bytes:
    try:
        return s.recv(65536)
    except ConnectionResetError:
        return b""


def post(path: str, body: bytes, content_type: str = "application/json") -> bytes:
    """A well-formed POST of any bytes, to be hung up after."""
    return (
        f"POST {path} HTTP/1.1\r\nHost: skerry\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    ).encode() + body


def get(path: str, method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: skerry\r\nConnection: close\r\n\r\n".encode()
