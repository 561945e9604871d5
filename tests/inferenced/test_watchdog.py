"""The daemon's watchdog covers the engine's thread, not only the event loop."""

import shutil
import socket
import sys
import threading
import time
from pathlib import Path

from tests.fakes.box import running

NAME = "tiny-llama-q8"
# The daemon as it is, but for a model that hangs while a file is there, and a bound that a test can wait for.
HUNG = """
import sys, time
from pathlib import Path
from appliance.engine.session import Session
from appliance.inferenced import main
forward = Session.forward_together
def hang(self, *args, **kwargs):
    while Path({file!r}).exists():
        time.sleep(0.01)
    return forward(self, *args, **kwargs)
Session.forward_together = hang
main.STALL_S = 2.0
from appliance.cli.main import main as command
sys.argv[1:] = sys.argv[2:]
command()
"""


def beats(manager: socket.socket, during_s: float) -> int:
    """How often the watchdog was fed in this time."""
    end, count = time.monotonic() + during_s, 0
    while (left := end - time.monotonic()) > 0:
        manager.settimeout(left)
        try:
            count += b"WATCHDOG=1" in manager.recv(4096)
        except TimeoutError:
            break
    return count


def test_hung_model_stops_the_watchdog_though_the_loop_turns(tiny_state: Path, tmp_path: Path, monkeypatch) -> None:
    """While a step hangs longer than the bound, health still answers and nothing feeds the watchdog."""
    shutil.copytree(tiny_state, tmp_path / "b")
    hang, program = tmp_path / "hang", tmp_path / "daemon.py"
    program.write_text(HUNG.format(file=str(hang)))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "1000000")
        with running(tmp_path / "b", prefix=(sys.executable, str(program))) as box:
            assert box.post("/v1/completions", {"model": NAME, "prompt": "hello", "max_tokens": 2}).status == 200
            assert beats(manager, 4) >= 2, "fed while there is nothing to do"
            hang.touch()
            answers = []
            ask = {"model": NAME, "prompt": "hello", "max_tokens": 2}
            asking = threading.Thread(target=lambda: answers.append(box.post("/v1/completions", ask).status))
            asking.start()
            time.sleep(4)
            beats(manager, 0.1)  # what came before the bound
            assert beats(manager, 4) == 0
            assert box.get("/healthz").status == 200
            log = box.log.read_text()
            assert log.count("the watchdog is not fed any more") == 1
            hang.unlink()
            asking.join(20)
            assert answers == [200]
            assert beats(manager, 4) >= 2
            assert box.log.read_text().count("the watchdog is fed again") == 1
