"""Speak to QEMU (QMP) and to its agent inside a guest (QGA): one JSON object a line, over a Unix socket.

Sources: QEMU's "QMP protocol specification" and "QEMU guest agent protocol reference". Both are private to the test.
"""

import contextlib
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.hosts.process import CommandTimeout, HostError


class QmpError(HostError):
    """QEMU or the agent refused a command."""


class Lines:
    """A Unix socket that carries one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        # By the folder's descriptor: a socket's path holds 107 bytes, and a checkout may lie deep.
        folder = os.open(path.parent, os.O_PATH)
        try:
            self.socket.connect(f"/proc/self/fd/{folder}/{path.name}")
        except OSError:
            self.socket.close()
            raise
        finally:
            os.close(folder)
        self._rest = b""

    def send(self, message: object, prefix: bytes = b"") -> None:
        self.socket.settimeout(30)
        self.socket.sendall(prefix + json.dumps(message).encode() + b"\n")

    def receive(self, end: float) -> dict[str, Any]:
        """Give the next object; TimeoutError if none comes until `end`, EOFError if the other side is gone."""
        while True:
            line, newline, rest = self._rest.partition(b"\n")
            if newline:
                self._rest = rest
                line = line.rpartition(b"\xff")[2].strip()  # what the agent had begun to say to somebody else
                with contextlib.suppress(ValueError):
                    found = json.loads(line)
                    if isinstance(found, dict):
                        return found
                continue
            self.socket.settimeout(max(0.01, end - time.monotonic()))
            piece = self.socket.recv(1 << 20)
            if not piece:
                raise EOFError
            self._rest += piece

    def close(self) -> None:
        self.socket.close()


class Qmp:
    """The machine monitor of one QEMU process."""

    def __init__(self, path: Path) -> None:
        self._lines = Lines(path)
        self.events: list[dict[str, Any]] = []
        self._lines.receive(time.monotonic() + 30)  # the greeting
        self.execute("qmp_capabilities")

    def execute(self, command: str, *, timeout_s: float = 60, **arguments: object) -> Any:
        """Give a command and return what it returns.

        Raises:
            QmpError: it was refused.
        """
        self._lines.send({"execute": command, "arguments": {k.replace("_", "-"): v for k, v in arguments.items()}})
        end = time.monotonic() + timeout_s
        while True:
            try:
                found = self._lines.receive(end)
            except TimeoutError:
                raise CommandTimeout(f"cannot ask QEMU to {command}: no answer after {timeout_s:g} s") from None
            except (EOFError, ConnectionError):
                raise QmpError(f"cannot ask QEMU to {command}: it is gone") from None
            if "event" in found:
                self.events.append(found)
            elif "error" in found:
                raise QmpError(f"cannot ask QEMU to {command}: {found['error'].get('desc')}")
            else:
                return found["return"]

    def monitor(self, line: str, timeout_s: float = 120) -> str:
        """Run a command of the monitor for people; its complaints are text like its answers."""
        return str(self.execute("human-monitor-command", command_line=line, timeout_s=timeout_s))

    def wait_event(self, name: str, timeout_s: float, **data: object) -> None:
        """Wait for an event, or take one that came since it was last waited for."""
        end = time.monotonic() + timeout_s
        while True:
            for event in self.events:
                if event["event"] == name and data.items() <= event.get("data", {}).items():
                    self.events.remove(event)
                    return
            try:
                self.events.append(self._lines.receive(end))
            except TimeoutError:
                raise CommandTimeout(f"cannot wait for {name}: it did not come in {timeout_s:g} s") from None
            except (EOFError, ConnectionError):
                raise QmpError(f"cannot wait for {name}: QEMU is gone") from None

    def close(self) -> None:
        self._lines.close()


class Agent:
    """QEMU's agent in a guest: commands as root, over a virtual serial port, whatever the guest's network is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: Lines | None = None

    def execute(self, command: str, *, timeout_s: float = 60, **arguments: object) -> Any:
        """Give a command and return what it returns; connects again after a reboot.

        Raises:
            CommandTimeout: nothing answers there.
            QmpError: it was refused.
        """
        end = time.monotonic() + timeout_s
        with self._in_step(end) as lines:
            lines.send({"execute": command, "arguments": {k.replace("_", "-"): v for k, v in arguments.items()}})
            found = lines.receive(end)
        if "error" in found:
            raise QmpError(f"cannot ask the agent to {command}: {found['error'].get('desc')}")
        return found["return"]

    @contextlib.contextmanager
    def _in_step(self, end: float) -> Iterator[Lines]:
        """Make sure that the next answer is the answer to the next question.

        A guest that reboots takes questions and answers with it; the mark shows which of them were lost.
        """
        try:
            if self._lines is None:
                self._lines = Lines(self.path)
                mark = secrets.randbelow(1 << 30)
                self._lines.send({"execute": "guest-sync-delimited", "arguments": {"id": mark}}, prefix=b"\xff")
                while self._lines.receive(end).get("return") != mark:
                    pass
            yield self._lines
        except (TimeoutError, EOFError, OSError) as error:
            self.close()
            raise CommandTimeout(f"cannot reach the agent in the guest: {error or 'no answer'}") from None

    def close(self) -> None:
        if self._lines is not None:
            self._lines.close()
            self._lines = None
