"""A real inference daemon in a process of its own, on a folder laid out like a box."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from appliance.config import Config, dump_yaml
from tests.fakes.wire import Reply, connect, exchange, get, post


class Box:
    """A running daemon."""

    def __init__(self, state_dir: Path, process: subprocess.Popen[bytes], log: Path) -> None:
        self.state_dir = state_dir
        self.process = process
        self.log = log
        self.socket = state_dir / "run" / "inference.sock"

    def get(self, path: str) -> Reply:
        return exchange(self.socket, get(path))

    def post(self, path: str, body: Any = None, *, raw: bytes | None = None) -> Reply:
        return exchange(self.socket, post(path, raw if raw is not None else msgspec.json.encode(body)), timeout_s=120)

    def status(self) -> Any:
        return self.get("/skerry/v1/status").json

    def wait_idle(self) -> Any:
        """Wait until no answer is being computed, and return the status."""
        for _ in range(300):
            status = self.status()
            if not status["requests"]["running"] and not status["requests"]["queued"]:
                return status
            time.sleep(0.02)
        raise AssertionError("the daemon did not become idle")

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextlib.contextmanager
def running(state_dir: Path, *, prefix: tuple[str, ...] = (), **changes: Any) -> Iterator[Box]:
    """Start the daemon as an operator would, wait until it answers, and end it.

    Args:
        state_dir: with models/ and keys/; run/ is made.
        prefix: a command to run the daemon under.
        changes: fields of `Config` to set.
    """
    config = msgspec.structs.replace(Config.default(state_dir), **changes)
    config_file = state_dir / "config.yaml"
    config_file.write_bytes(dump_yaml(config))
    log = state_dir / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*prefix, str(Path(sys.executable).with_name("skerry")), "serve", "--config", str(config_file)],
            stdout=out,
            stderr=out,
            env={k: v for k, v in os.environ.items() if not k.startswith("SKERRY_")},
            start_new_session=True,
        )
    box = Box(state_dir, process, log)
    try:
        _wait(box)
        yield box
    finally:
        if process.poll() is None:
            # The whole group: a prefix like strace would leave the daemon behind.
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _wait(box: Box) -> None:
    for _ in range(1200):
        with contextlib.suppress(OSError):
            connect(box.socket).close()
            return
        if box.process.poll() is not None:
            break
        time.sleep(0.05)
    raise AssertionError(f"the daemon did not start: {box.log.read_text()}")
