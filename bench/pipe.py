"""The parent's end: an engine in a child process, driven by lines of JSON."""

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parent.parent
ANSWER_TIMEOUT_S = 1800.0
_STDERR_TAIL = 2000
_PR_SET_PDEATHSIG = 1


class SideFailed(Exception):
    """An engine's process died, hung or reported an error."""


def end_with_parent() -> None:
    """Have the kernel end this process when the thread that started it ends, however it ends: a `preexec_fn` of Popen.

    A server would go on for ever; a side ends with its standard input. Source: prctl(2).
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Side:
    """A child process that holds one engine.

    Args:
        python: the interpreter; the peer has its own.
        module: `bench.skerry_side` or `bench.llama_side`.
    Raises:
        SideFailed: the interpreter cannot be started.
    """

    def __init__(self, python: Path, module: str) -> None:
        self.module = module
        self._python = python
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the child
        try:
            self._process = subprocess.Popen(
                [python, "-m", module],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env=_environment(),
            )
        except OSError as e:
            self._stderr.close()
            raise SideFailed(f"cannot start {python}: {e.strerror}, expected a Python interpreter") from e

    def ask(self, do: str, **arguments: Any) -> Any:
        """Send one request and wait for its answer.

        Raises:
            SideFailed: the child died, said nothing for too long, or answered with an error.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise ValueError("the pipes are open from the start")
        try:
            stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError as e:
            raise SideFailed(f"cannot measure with {self.module}: {self._last_words()}") from e
        # One answer a question, so nothing waits in the reader's buffer while select looks at the pipe.
        ready, _, _ = select.select([stdout], [], [], ANSWER_TIMEOUT_S)
        if not ready:
            raise SideFailed(f"cannot measure with {self.module}: no answer to {do!r} in {ANSWER_TIMEOUT_S:.0f} s")
        line = stdout.readline()
        if not line:
            raise SideFailed(f"cannot measure with {self.module}: {self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise SideFailed(f"cannot {do} with {self.module}: {answer['error']}")
        return answer["result"]

    def close(self) -> None:
        """End the child and wait for it."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - _STDERR_TAIL))
        said = self._stderr.read().decode("utf-8", "replace").strip()
        if "No module named 'llama_cpp'" in said:
            return f"{self._python} has no llama-cpp-python, expected an interpreter that has it"
        return f"its process ended with {self._process.returncode}: {said or 'no message'}"


def _environment() -> dict[str, str]:
    """Keep thread settings of the caller's shell out of both engines."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_", "PYTHONPATH"))}
