"""The door: what is not a request is refused with a reason, and the daemon lives on."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.door import BIG
from tests.fakes.wire import Reply, connect, exchange, get, post, read_reply


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("door") / "s.sock"
    process = start(path)
    yield path
    assert process.poll() is None, "the daemon did not survive the module's requests"
    process.terminate()
    assert process.wait(10) == 0


def start(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.fakes.door", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for _ in range(200):
        try:
            connect(path).close()
            return process
        except OSError:
            time.sleep(0.05)
    raise AssertionError("the door did not open")


DEEP = b'{"text": "a", "anything": ' + b"[" * 1500 + b"]" * 1500 + b"}"

# name | raw bytes | status | kind
REQUESTS = [
    ("well-formed", post("/echo", b'{"text": "a", "count": 3}'), 200, None),
    ("empty body", post("/echo", b""), 400, "invalid_request"),
    ("not JSON", post("/echo", b"text=a"), 400, "invalid_request"),
    ("cut-off JSON", post("/echo", b'{"text": "a'), 400, "invalid_request"),
    ("two values", post("/echo", b'{"text":"a"}{}'), 400, "invalid_request"),
    ("an array", post("/echo", b"[1]"), 400, "invalid_request"),
    ("not UTF-8", post("/echo", b'{"text": "\xff\xfe"}'), 400, "invalid_request"),
    ("overlong UTF-8", post("/echo", b'{"text": "\xc0\xaf"}'), 400, "invalid_request"),
    ("lone surrogate", post("/echo", b'{"text": "\\ud800"}'), 400, "invalid_request"),
    ("NaN", post("/echo", b'{"text": "a", "count": NaN}'), 400, "invalid_request"),
    ("wrong type", post("/echo", b'{"text": 1}'), 400, "invalid_request"),
    ("number as text", post("/echo", b'{"text": "a", "count": "3"}'), 400, "invalid_request"),
    ("boolean as number", post("/echo", b'{"text": "a", "count": true}'), 400, "invalid_request"),
    ("huge number", post("/echo", b'{"text": "a", "count": 1' + b"0" * 400 + b"}"), 400, "invalid_request"),
    ("missing field", post("/echo", b"{}"), 400, "invalid_request"),
    ("unknown field", post("/echo", b'{"text": "a", "tools": []}'), 400, "invalid_request"),
    ("nested deep", post("/echo", DEEP), 400, "invalid_request"),
    ("other type of content", post("/echo", b'{"text":"a"}', "text/plain"), 415, "unsupported_media_type"),
    ("oversized, declared", post("/echo", b'{"text": "' + b"a" * 5000 + b'"}'), 413, "request_too_large"),
    (
        "oversized, chunked",
        b"POST /echo HTTP/1.1\r\nHost: s\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        + (b"400\r\n" + b"a" * 1024 + b"\r\n") * 8
        + b"0\r\n\r\n",
        413,
        "request_too_large",
    ),
    (
        "absurd content-length",
        b"POST /echo HTTP/1.1\r\nHost: s\r\nContent-Type: application/json\r\nContent-Length: 99999999999999\r\n\r\n",
        413,
        "request_too_large",
    ),
    (
        "negative content-length",
        b"POST /echo HTTP/1.1\r\nHost: s\r\nContent-Length: -1\r\n\r\n",
        400,
        "invalid_request",
    ),
    (
        "two lengths",
        b"POST /echo HTTP/1.1\r\nHost: s\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        400,
        "invalid_request",
    ),
    ("not HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "invalid_request"),
    ("bare line feeds in a name", b"GET /who HTTP/1.1\r\nHo st: x\r\n\r\n", 400, "invalid_request"),
    ("no host", b"GET /who HTTP/1.1\r\n\r\n", 400, "invalid_request"),
    ("head too large", b"GET /who HTTP/1.1\r\nHost: s\r\nX: " + b"a" * 40000 + b"\r\n\r\n", 413, "request_too_large"),
    ("endless head", b"GET /who HTTP/1.1\r\nHost: s\r\nX: " + b"a" * 400000, 400, "invalid_request"),
    ("no such route", get("/v2/echo"), 404, "not_found"),
    ("path tricks", get("/echo/../who"), 404, "not_found"),
    ("trailing slash", get("/who/"), 404, "not_found"),
    ("other method", get("/echo"), 405, "method_not_allowed"),
    ("unknown method", get("/who", "BREW"), 405, "method_not_allowed"),
    ("a defect behind the door", get("/broken"), 500, "internal_error"),
]


@pytest.mark.parametrize(("raw", "status", "kind"), [r[1:] for r in REQUESTS], ids=[r[0] for r in REQUESTS])
def test_each_malformed_request_gets_its_status_and_the_door_stays_open(
    door: Path, raw: bytes, status: int, kind: str | None
) -> None:
    """Every row is answered with its own 4xx and kind, and a sound request works right after."""
    reply = exchange(door, raw)
    assert (reply.status, reply.kind) == (status, kind), reply.body[:300]
    if kind:
        error = reply.json["error"]
        assert error["code"] == kind
        assert error["message"]
    assert exchange(door, post("/echo", b'{"text": "alive"}')).json == {"text": "alive"}


def test_wrong_field_is_named(door: Path) -> None:
    """`param` says which field of the request is at fault."""
    assert exchange(door, post("/echo", b'{"text": "a", "count": "3"}')).json["error"]["param"] == "count"
    assert exchange(door, post("/echo", b'{"text": "a", "tools": []}')).json["error"]["param"] == "tools"
    assert exchange(door, post("/echo", b"{}")).json["error"]["param"] == "text"


def test_slow_head_is_hung_up(door: Path) -> None:
    """A head that trickles in is answered with 408 when its time is over, however busy it keeps the line."""
    with connect(door) as s:
        started = time.monotonic()
        for byte in b"GET /who HTTP/1.1\r\nHost: skerry\r\nX-Slow: " + b"a" * 200:
            try:
                s.send(bytes([byte]))
            except BrokenPipeError:
                break
            time.sleep(0.05)
        reply = read_reply(s)
    assert (reply.status, reply.kind) == (408, "request_timeout")
    assert 0.9 < time.monotonic() - started < 5


def test_silent_connection_is_hung_up(door: Path) -> None:
    """A connection that says nothing does not stay."""
    with connect(door) as s:
        assert read_reply(s).status == 408


def test_slow_second_head_is_hung_up(door: Path) -> None:
    """The limit holds for every request of a kept connection, not only for the first."""
    with connect(door) as s:
        s.sendall(b"GET /who HTTP/1.1\r\nHost: skerry\r\n\r\n")
        assert read_reply(s).status == 200
        s.sendall(b"GET /who HTTP/1.1\r\n")
        assert read_reply(s).status == 408


def test_slow_body_is_hung_up(door: Path) -> None:
    """A body that does not come is a 408."""
    with connect(door) as s:
        s.sendall(post("/echo", b'{"text": "abc"}')[:-5])
        reply = read_reply(s)
    assert (reply.status, reply.kind) == (408, "request_timeout")


def test_too_many_connections_are_refused(door: Path) -> None:
    """Connections beyond the limit are answered with 429, and the door opens again when they are gone."""
    held = [connect(door) for _ in range(40)]
    time.sleep(0.3)
    replies = [read_reply(s).status for s in held[-5:]]
    for s in held:
        s.close()
    assert replies == [429] * 5
    time.sleep(0.2)
    assert exchange(door, get("/who")).status == 200


def test_reader_that_does_not_read_is_hung_up(door: Path) -> None:
    """A connection whose answers are never taken is closed, so that it cannot hold its place for ever."""
    with connect(door, timeout_s=15) as s:
        s.sendall(get("/big"))
        time.sleep(2.5)  # more than the limit of a second
        received = 0
        with contextlib.suppress(ConnectionResetError):
            while chunk := s.recv(1 << 20):
                received += len(chunk)
    assert received < BIG
    with connect(door, timeout_s=15) as s:  # and who reads gets all
        s.sendall(get("/big"))
        assert len(read_reply(s).body) == BIG


def test_pipelining_is_hung_up(door: Path) -> None:
    """Bytes after a request that is still being answered end the connection: a leaving caller could not be seen."""
    with connect(door) as s:
        s.sendall(b"GET /slow HTTP/1.1\r\nHost: skerry\r\n\r\n")
        time.sleep(0.2)
        s.sendall(b"G")
        assert read_reply(s).status is None


def test_what_was_sent_is_not_sent_back(door: Path) -> None:
    """An error names the field, shortened and cleaned, and never repeats long or odd text of the caller's."""
    for body in (
        b'{"text": "a", "' + b"patient <b>" * 90 + b'": 1}',
        b'{"text": "a", "mood": "' + b"patient" * 90 + b'"}',
    ):
        reply = exchange(door, post("/echo", body))
        assert reply.status == 400
        assert len(reply.body) < 600
        assert b"<b>" not in reply.body
        assert b"patientpatient" not in reply.body


def test_hanging_up_in_the_middle_harms_nobody(door: Path) -> None:
    """Clients that leave at any byte of a request leave no trace."""
    raw = post("/echo", b'{"text": "a"}')
    for cut in range(0, len(raw), 7):
        with connect(door) as s:
            s.sendall(raw[:cut])
        time.sleep(0.02)  # else these are too many connections at once
    assert exchange(door, raw).json == {"text": "a"}


def test_kernel_names_the_caller(door: Path) -> None:
    """uid, gid and pid are those of this process; nothing in the request could say otherwise."""
    me = exchange(door, get("/who")).json
    assert me["uid"] == os.getuid()
    assert me["pid"] == os.getpid()
    assert set(os.getgroups()) <= set(me["groups"])


@pytest.mark.skipif(os.getuid() != 0, reason="not run: needs root to become another user")
def test_other_user_without_a_role_is_refused(public_path: Path) -> None:
    """A caller of another uid is named as such, and does not pass a guarded route."""
    door = public_path / "s.sock"
    process = start(door)

    def as_nobody(path: str) -> Reply:
        read, write = os.pipe()
        if (child := os.fork()) == 0:
            try:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
                reply = exchange(door, get(path))
                os.write(write, f"{reply.status}\n".encode() + reply.body)
            finally:
                os._exit(0)
        os.close(write)
        os.waitpid(child, 0)
        status, _, body = os.read(read, 65536).partition(b"\n")
        os.close(read)
        return Reply(int(status), {}, body)

    assert as_nobody("/who").json["uid"] == 65534
    refused = as_nobody("/admin")
    assert (refused.status, refused.kind) == (403, "permission_denied")
    assert exchange(door, get("/admin")).status == 200
    process.terminate()
    process.communicate(timeout=10)


def test_defect_is_logged_without_its_message(tmp_path: Path) -> None:
    """A defect's place is logged; its message, which may quote a document, is not."""
    process = start(tmp_path / "s.sock")
    assert exchange(tmp_path / "s.sock", get("/broken?patient")).status == 500
    process.terminate()
    _, log = process.communicate(timeout=10)
    assert "RuntimeError" in log
    assert "patient" not in log


def test_sigterm_drains(tmp_path: Path) -> None:
    """A request under way is answered, no new one is taken, the socket's name goes away and the exit is clean."""
    path = tmp_path / "s.sock"
    process = start(path)
    with connect(path) as s:
        s.sendall(get("/slow"))
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        with pytest.raises(OSError):  # noqa: PT011  refused or gone, by the moment
            connect(path)
        assert read_reply(s).json == {"slept": True}
    out, _ = process.communicate(timeout=10)
    assert process.returncode == 0
    assert out.startswith("draining\nended")
    assert not path.exists()


def test_socket_of_a_living_daemon_is_not_taken(tmp_path: Path) -> None:
    """A second daemon on the same path ends with an error; a dead one's socket is replaced."""
    from appliance.api.server import listen
    from appliance.errors import FileProblem

    path = tmp_path / "s.sock"
    first = listen(path)
    with pytest.raises(FileProblem, match="another daemon"):
        listen(path)
    first.socket.close()  # dies without cleaning up
    listen(path).close()
    path.write_text("precious")
    with pytest.raises(FileProblem, match="something else"):
        listen(path)
    assert path.read_text() == "precious"


def test_activation_socket_is_used(tmp_path: Path) -> None:
    """A socket that the service manager passes is served, and its name is not removed at the end."""
    path = tmp_path / "passed.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as passed:
        passed.bind(str(path))
        passed.listen()
        command = (
            "import os, sys; os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1'); "
            "os.execv(sys.executable, [sys.executable, '-m', 'tests.fakes.door', '/nonexistent/s.sock'])"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", f"import os; os.dup2({passed.fileno()}, 3); {command}"],
            pass_fds=(passed.fileno(), 3) if passed.fileno() != 3 else (3,),
        )
        assert exchange(path, get("/who")).status == 200
        process.terminate()
        assert process.wait(10) == 0
    assert path.exists()


def test_ready_is_said_to_the_service_manager(tmp_path: Path) -> None:
    """With NOTIFY_SOCKET set, READY=1 comes when requests are answered and STOPPING=1 at the end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.fakes.door", str(tmp_path / "s.sock")],
            env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "2000000"},
        )
        assert b"READY=1" in manager.recv(4096)
        assert exchange(tmp_path / "s.sock", get("/who")).status == 200
        while (said := manager.recv(4096)) != b"WATCHDOG=1":
            assert b"STOPPING" not in said
        process.terminate()
        while b"STOPPING=1" not in manager.recv(4096):
            pass
        assert process.wait(10) == 0
