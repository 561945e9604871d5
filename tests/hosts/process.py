"""Run a command on this machine or inside a host, with a time limit, and report what it printed.

Output goes to files, never to pipes: a daemon that a command leaves behind keeps a pipe open, and the reader would wait
for it until the time limit.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

TAIL_LINES = 40


class HostError(Exception):
    """A host did not do what the test asked of it."""


class CommandFailed(HostError):
    """A command ended with another code than 0."""


class CommandTimeout(HostError):
    """A command did not end in time; it and its children were killed."""


def tail(text: str, lines: int = TAIL_LINES) -> str:
    """Return the last lines of a text, with a note if others were left out."""
    all_lines = text.rstrip().splitlines()
    if len(all_lines) <= lines:
        return "\n".join(all_lines)
    return "\n".join([f"[... {len(all_lines) - lines} lines before]", *all_lines[-lines:]])


@dataclass(frozen=True)
class Result:
    """What a command did: its exit code (negative: the signal that ended it) and its output as text."""

    command: str
    returncode: int
    stdout: str
    stderr: str

    @property
    def ok(self) -> bool:
        return self.returncode == 0

    @property
    def output(self) -> str:
        """Both outputs, to search in or to show."""
        return self.stdout + self.stderr

    def check(self, where: str = "this machine") -> "Result":
        """Return self, or raise CommandFailed with the tails of both outputs."""
        if self.ok:
            return self
        raise CommandFailed(
            f"cannot run on {where}: `{self.command}` ended with {self.returncode}, expected 0\n{self.tails()}"
        )

    def tails(self) -> str:
        return f"--- stdout\n{tail(self.stdout)}\n--- stderr\n{tail(self.stderr)}"


def run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    shown_as: str | None = None,
    where: str = "this machine",
) -> Result:
    """Run a command to its end.

    Raises:
        CommandTimeout: it did not end within `timeout_s`; it and its children were killed.
    """
    shown = shown_as or shlex.join(argv)
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(stdin)
        given.seek(0)
        child = subprocess.Popen(argv, stdin=given, stdout=out, stderr=err, env=env, start_new_session=True)
        try:
            child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            kill_tree(child)
            partial = Result(shown, -signal.SIGKILL, _read(out), _read(err))
            raise CommandTimeout(
                f"cannot run on {where}: `{shown}` still ran after {timeout_s:g} s\n{partial.tails()}"
            ) from None
        except BaseException:
            kill_tree(child)
            raise
        return Result(shown, child.returncode, _read(out), _read(err))


def kill_tree(child: "subprocess.Popen[bytes]") -> None:
    """Kill a child and all that it started, across PID namespaces, and wait for it.

    Killing nsenter alone leaves the command inside alive: from here all of them are seen, so all are killed.
    """
    for pid in [*descendants(child.pid), child.pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    child.wait(10)


def descendants(pid: int) -> list[int]:
    """List the children of a process and theirs, parents first."""
    found = []
    for child in children(pid):
        found += [child, *descendants(child)]
    return found


def children(pid: int) -> list[int]:
    """List the children of a process, of all its threads; none if it is gone."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
