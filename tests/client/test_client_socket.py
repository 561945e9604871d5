"""Both clients over a real Unix socket, against a daemon that says what the test wants."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from appliance import errors
from appliance.client import AsyncClient, Client, Message
from tests.fakes.daemon import (
    FakeDaemon,
    Says,
    chat_events,
    error_body,
    event,
    raw_listener,
    says_json,
    stream,
)

CHAT = "/v1/chat/completions"


@pytest.fixture
def daemon(tmp_path):
    with FakeDaemon(tmp_path / "s.sock") as running:
        yield running


class Blocking:
    """The asynchronous client in the clothes of the blocking one, so that one test drives both."""

    def __init__(self, *args, **kwargs):
        self._client = AsyncClient(*args, **kwargs)
        self._loop = asyncio.new_event_loop()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._loop.run_until_complete(self._client.close())
        self._loop.close()

    def __getattr__(self, name):
        method = getattr(self._client, name)
        if not name.startswith("stream"):
            return lambda *a, **k: self._loop.run_until_complete(method(*a, **k))
        return lambda *a, **k: BlockingStream(self._loop, method(*a, **k))


class BlockingStream:
    def __init__(self, loop, stream):
        self._loop, self._stream = loop, stream

    def __enter__(self):
        self._loop.run_until_complete(self._stream.__aenter__())
        return self

    def __exit__(self, *exc):
        self._loop.run_until_complete(self._stream.__aexit__(*exc))

    def __iter__(self):
        return self

    def __next__(self):
        try:
            return self._loop.run_until_complete(self._stream.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    @property
    def answer(self):
        return self._stream.answer

    def close(self):
        self._loop.run_until_complete(self._stream.close())


@pytest.fixture(params=[Client, Blocking], ids=["sync", "async"])
def make(request):
    return request.param


@pytest.fixture
def client(make, daemon):
    with make(daemon.path, timeout_s=5) as c:
        yield c


def test_chat(client, daemon):
    """A chat sends its options and gives text, usage and times."""
    answer = client.chat(
        [Message("system", "be short"), {"role": "user", "content": "hi"}], "tiny", seed=7, stop=["\n"]
    )
    assert (answer.text, answer.finish_reason, answer.model) == ("Hello", "stop", "tiny")
    assert answer.usage.completion_tokens == 42
    assert answer.timings.first_token_s == 0.21
    seen = daemon.requests[-1]
    assert seen.json["messages"][1] == {"role": "user", "content": "hi"}
    assert (seen.json["model"], seen.json["seed"], seen.json["stop"]) == ("tiny", 7, ["\n"])
    assert seen.headers["x-skerry-timings"] == "1"


def test_streamed_chat(client, daemon):
    """A streamed chat gives pieces in order, then the whole with usage and times."""
    with client.stream_chat("hi") as s:
        assert [p.text for p in s] == ["Hel", "lo", ""]
    assert (s.answer.text, s.answer.finish_reason) == ("Hello", "stop")
    assert s.answer.timings.decode_tokens_per_s == 84.0
    assert "model" not in daemon.requests[-1].json


def test_completions(client):
    """Completions, whole and streamed."""
    assert client.complete("once").text == " upon"
    with client.stream("once") as s:
        assert "".join(p.text for p in s) == s.answer.text == " upon"


def test_reads_and_actions(client, daemon):
    """Each method asks its route and gives its type."""
    assert client.status().requests.total == 212
    assert client.health().status == "ok"
    assert "skerry_requests_total 3.0" in client.metrics()
    assert client.model_ids() == ("tiny",)
    assert client.models()[0].parameters.embedding == 28_311_552
    assert client.model("tiny").chat is True
    assert client.load("a").state == "loaded"
    assert client.unload("a").state == "installed"
    assert client.verify("a").verified is True
    assert [r.path for r in daemon.requests[-3:]] == [f"/skerry/v1/models/a/{v}" for v in ("load", "unload", "verify")]


def test_a_missing_model_is_its_own_error(client, daemon):
    """Asking for a model that is not installed raises ModelNotFound with the daemon's words."""
    daemon.says("GET", "/skerry/v1/models/c", says_json(error_body("model_not_found", "no c", hint="try a"), 404))
    with pytest.raises(errors.ModelNotFound, match="no c") as raised:
        client.model("c")
    assert raised.value.hint == "try a"


def test_draining_is_an_answer(client, daemon):
    """Health of a draining daemon is a value, though its status is 503."""
    daemon.says("GET", "/healthz", says_json({"status": "draining"}, 503))
    assert client.health().status == "draining"


def test_an_error_body_is_raised_by_kind(client, daemon):
    """A refusal arrives as its class, with hint and Retry-After, whole or streamed."""
    refusal = says_json(error_body("too_many_requests", "busy", hint="wait"), 429, retry_after="3")
    daemon.says("POST", CHAT, refusal)
    with pytest.raises(errors.TooManyRequests) as raised:
        client.chat("hi")
    assert (raised.value.hint, raised.value.retry_after_s) == ("wait", 3.0)
    with pytest.raises(errors.TooManyRequests), client.stream_chat("hi") as s:
        next(s)


def test_an_error_in_the_middle_of_a_stream(client, daemon):
    """An error after the headers is raised after the text before it."""
    daemon.says("POST", CHAT, stream(*chat_events("Hel")[:2], event(error_body("internal_error", "broke"))))
    got = []
    with pytest.raises(errors.InternalError, match="broke"), client.stream_chat("hi") as s:
        got.extend(p.text for p in s)
    assert s.answer.text == "Hel"


def test_a_stream_that_ends_early_is_an_error(client, daemon):
    """A body without its end mark is an incomplete answer."""
    daemon.says("POST", CHAT, stream(*chat_events("Hel")[:2]))
    with pytest.raises(errors.DaemonUnreachable, match="before its end"), client.stream_chat("hi") as s:
        list(s)


def test_leaving_a_stream_closes_the_connection(client, daemon):
    """Leaving the block early cancels the request at the daemon; what came so far is kept."""
    daemon.says("POST", CHAT, stream(*chat_events("Hel")[:2], hang=True))
    with client.stream_chat("hi") as s:
        assert next(s).text == "Hel"
    assert daemon.client_gone.wait(5)
    assert (s.answer.text, s.answer.finish_reason) == ("Hel", None)
    assert list(s) == []


def test_a_stream_that_fails_closes_its_connection_without_a_block(client, daemon):
    """Also without `with`, an error in the stream leaves no connection open."""
    daemon.says("POST", CHAT, stream(event(b"not json"), hang=True))
    s = client.stream_chat("hi")
    with pytest.raises(errors.DaemonUnreachable):
        next(s)
    assert daemon.client_gone.wait(5)


def test_nothing_is_sent_before_the_stream_is_read(client, daemon):
    """Making a stream sends nothing; closing it unread sends nothing either."""
    s = client.stream_chat("hi")
    s.close()
    assert list(s) == []
    assert daemon.requests == []


# httpcore2 leaves the socket of a failed connect to the garbage collector.
leaky = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


# --- who is there? ----------------------------------------------------------------------------------------------------


@leaky
def test_no_socket(make, tmp_path):
    """A missing socket is named, with the command that starts the daemon."""
    path = tmp_path / "run" / "inference.sock"
    with make(path) as c, pytest.raises(errors.DaemonUnreachable, match="there is no such socket") as raised:
        c.status()
    assert raised.value.hint == f"start it with: skerry --state-dir {tmp_path} serve"


@leaky
def test_nothing_listens(make, tmp_path):
    """A socket left behind by a dead daemon is told from a missing one."""
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(tmp_path / "s.sock"))
    with make(tmp_path / "s.sock") as c, pytest.raises(errors.DaemonUnreachable, match="nothing listens"):
        c.status()


@leaky
def test_a_plain_file(make, tmp_path):
    """A file in the socket's place is not a listener."""
    (tmp_path / "s.sock").touch()
    with make(tmp_path / "s.sock") as c, pytest.raises(errors.DaemonUnreachable, match="nothing listens"):
        c.status()


def test_not_http(make, tmp_path):
    """Something else behind the socket is recognised."""

    def mail(connection):
        connection.recv(1000)
        connection.sendall(b"220 ready\r\n\r\n")

    path = tmp_path / "s.sock"
    with raw_listener(path, mail), make(path) as c, pytest.raises(errors.DaemonUnreachable, match="not HTTP"):
        c.status()


def test_http_but_not_the_daemon(client, daemon):
    """A web server that is not Skerry is recognised."""
    daemon.says("GET", "/skerry/v1/status", Says(b"<h1>It works!</h1>", 404))
    with pytest.raises(errors.DaemonUnreachable, match="not Skerry"):
        client.status()


def test_closed_without_an_answer(client, daemon):
    """A daemon that dies under a request is reported as such, not as something else behind the socket."""
    daemon.says("GET", "/skerry/v1/status", Says(raw=b""))
    with pytest.raises(errors.DaemonUnreachable, match="closed the connection before the end"):
        client.status()


def test_closed_in_the_middle_of_an_answer(client, daemon):
    """A body shorter than promised is reported as a broken connection."""
    daemon.says("GET", "/skerry/v1/status", Says(raw=b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"))
    with pytest.raises(errors.DaemonUnreachable, match="closed the connection before the end"):
        client.status()


def test_a_silent_daemon(make, daemon):
    """A daemon that does not answer within the limit is a timeout that names the limit."""
    daemon.says("GET", "/healthz", Says(b"{}", delay_s=1.0))
    with make(daemon.path, timeout_s=0.2) as c, pytest.raises(errors.DaemonTimeout, match=r"silent for 0\.2 s"):
        c.health()


def test_a_stream_that_falls_silent(make, daemon):
    """The limit counts between pieces, not for the whole: a slow answer that keeps coming is no timeout."""
    slow = [x for e in chat_events("a", "b", "c", "d") for x in (e, 0.1)]
    daemon.says("POST", CHAT, stream(*slow), stream(*chat_events("a")[:2], 1.0))
    with make(daemon.path, timeout_s=0.4) as c:
        with c.stream_chat("hi") as s:
            assert "".join(p.text for p in s) == "abcd"
        with pytest.raises(errors.DaemonTimeout), c.stream_chat("hi") as s:
            list(s)


@leaky
@pytest.mark.skipif(
    os.geteuid() != 0 or os.uname().machine != "x86_64",
    reason="not run: needs root on x86-64, to become a user without the group",
)
def test_no_permission_for_the_socket():
    """A user outside the group is told which group, not that the daemon is down."""
    with tempfile.TemporaryDirectory() as folder, FakeDaemon(Path(folder, "s.sock")) as daemon:
        path = daemon.path
        path.chmod(0o600)
        path.parent.chmod(0o755)
        error, done = [], threading.Event()

        def as_nobody() -> None:
            # Only this thread gives up its rights: seteuid of the kernel is per thread, libc's is not.
            import ctypes

            libc = ctypes.CDLL(None, use_errno=True)
            assert libc.syscall(117, -1, 65534, -1) == 0  # setresuid
            with contextlib.suppress(Exception), Client(path) as c:
                try:
                    c.status()
                except errors.SkerryError as e:
                    error.append(e)
            done.set()

        threading.Thread(target=as_nobody, daemon=True).start()
        assert done.wait(10)
    assert isinstance(error[0], errors.PermissionDenied)
    assert "skerry-client" in error[0].hint


def test_a_path_too_long_for_a_socket(make, tmp_path):
    """The kernel's limit on the path is named before it bites."""
    with pytest.raises(errors.DaemonUnreachable, match="expected at most 107"):
        make(tmp_path / ("x" * 100) / "s.sock")


def test_an_answer_without_end_is_refused(client, daemon, monkeypatch):
    """What answers cannot fill the client's memory with a body that never ends."""
    monkeypatch.setattr("appliance.client.transport.MAX_REPLY_BYTES", 1000)
    daemon.says("GET", "/metrics", Says(b"x" * 5000))
    with pytest.raises(errors.DaemonUnreachable, match="more than 1000 bytes"):
        client.metrics()


def test_the_socket_of_the_environment(daemon, monkeypatch):
    """SKERRY_SOCKET names the socket when the caller does not."""
    monkeypatch.setenv("SKERRY_SOCKET", str(daemon.path))
    with Client() as c:
        assert c.health().status == "ok"
    monkeypatch.delenv("SKERRY_SOCKET")
    from appliance.client import default_socket

    assert default_socket() == Path("/run/skerry/inference.sock")


def test_importing_the_client_is_light():
    """The library brings no engine, no screen, no server and no HTTP library until a client is made."""
    heavy = [
        "onnxruntime",
        "numpy",
        "typer",
        "click",
        "rich",
        "textual",
        "starlette",
        "uvicorn",
        "yaml",
        "httpx2",
        "asyncio",
    ]
    code = f"import sys, appliance.client; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
    code = f"import sys, appliance.client as c; c.Client(); print([m for m in {heavy[:9]} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
