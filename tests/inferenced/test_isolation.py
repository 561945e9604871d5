"""The daemon's own boundaries: no network, no vendor telemetry, no other user."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.box import running

NAME = "tiny-llama-q8"
ASK = {"model": NAME, "prompt": "hello", "max_tokens": 4}


def test_no_socket_but_unix_ones(tiny_state: Path, tmp_path: Path) -> None:
    """Watched by strace from start to end of a whole conversation, no thread asks for any other socket family."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("not run: strace is not installed")
    shutil.copytree(tiny_state, tmp_path / "b")
    trace = tmp_path / "trace"
    with running(tmp_path / "b", prefix=(strace, "-f", "-o", str(trace), "-e", "trace=%net")) as box:
        assert box.post("/v1/completions", ASK).status == 200
        assert box.get("/metrics").status == 200
    lines = trace.read_text().splitlines()
    sockets = [line for line in lines if "socket(" in line or "socketpair(" in line]
    assert sockets, "strace saw nothing"
    foreign = [line for line in sockets if "AF_UNIX" not in line]
    assert foreign == []
    connects = [line for line in lines if "connect(" in line and "AF_UNIX" not in line]
    assert connects == []


def test_network_is_denied_to_the_whole_process() -> None:
    """After `deny_network`, every family but Unix is refused, in threads too, and Unix sockets still work."""
    code = """
import errno, socket, threading
from appliance.system.confine import deny_network
assert deny_network()
def refused(family):
    try:
        socket.socket(family, socket.SOCK_DGRAM)
    except OSError as e:
        return e.errno == errno.EAFNOSUPPORT
    return False
results = []
families = [socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_PACKET]
thread = threading.Thread(target=lambda: results.extend(map(refused, families)))
thread.start()
thread.join()
results.extend(map(refused, families))
socket.socketpair()
socket.socket(socket.AF_UNIX)
print(results)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == str([True] * 8)


def test_daemon_has_denied_itself_the_network(tiny_state: Path, tmp_path: Path) -> None:
    """Every thread of the running daemon is under a seccomp filter and cannot gain privileges."""
    shutil.copytree(tiny_state, tmp_path / "b")
    with running(tmp_path / "b") as box:
        assert box.post("/v1/completions", ASK).status == 200  # all its threads are there
        tasks = [p.read_text() for p in Path(f"/proc/{box.process.pid}/task").glob("*/status")]
    assert len(tasks) > 1
    assert all("Seccomp:\t2" in t and "NoNewPrivs:\t1" in t for t in tasks)


def test_answers_without_any_network(tiny_state: Path, tmp_path: Path) -> None:
    """In a network namespace of its own, without even a loopback, the daemon starts and answers."""
    probe = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("not run: network namespaces need root here")
    shutil.copytree(tiny_state, tmp_path / "b")
    with running(tmp_path / "b", prefix=("unshare", "--net")) as box:
        assert box.post("/v1/completions", ASK).status == 200


def test_vendor_telemetry_leaves_no_file(tiny_state: Path, tmp_path: Path) -> None:
    """onnxruntime's telemetry wants a database in the home; after a run with an empty home there is nothing of it."""
    shutil.copytree(tiny_state, tmp_path / "b")
    home = tmp_path / "home"
    home.mkdir()
    old = {name: os.environ.get(name) for name in ("HOME", "XDG_CACHE_HOME")}
    os.environ["HOME"] = str(home)
    os.environ.pop("XDG_CACHE_HOME", None)
    try:
        with running(tmp_path / "b") as box:
            assert box.post("/v1/completions", ASK).status == 200
    finally:
        for name, value in old.items():
            if value is not None:
                os.environ[name] = value
    left = [str(p.relative_to(home)) for p in home.rglob("*") if p.is_file()]
    assert left == []


@pytest.mark.skipif(os.getuid() != 0, reason="not run: needs root to become another user")
def test_other_user_may_not_infer(tiny_state: Path, public_path: Path) -> None:
    """A user without the group skerry-client sees the daemon's health and nothing else."""
    shutil.copytree(tiny_state, public_path / "b")
    code = (
        "import sys, os; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "from pathlib import Path; from tests.fakes.wire import exchange, get, post\n"
        "s = Path(sys.argv[1])\n"
        "for raw in (get('/healthz'), get('/v1/models'), post('/v1/completions', b'{}'), get('/skerry/v1/status'),\n"
        "            post('/skerry/v1/models/x/load', b''), get('/metrics')):\n"
        "    r = exchange(s, raw); print(r.status, r.kind)\n"
    )
    with running(public_path / "b") as box:
        # Imported as root, before the change of user: the interpreter's own files may be out of nobody's reach.
        code = "import tests.fakes.wire, msgspec, json\n" + code
        run = subprocess.run([sys.executable, "-c", code, str(box.socket)], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["200 None"] + ["403 permission_denied"] * 5
