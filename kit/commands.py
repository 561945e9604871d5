"""Run other people's programs: pip, apt, gpg. A failure becomes one line that says what could not be done."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from appliance.errors import BuildError, FileProblem

_TAIL = 400


def run(
    what: str,
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    folder: Path | None = None,
    hint: str | None = None,
) -> bytes:
    """Run a command and give its standard output.

    Args:
        what: for the error, as in "cannot WHAT".
        command: the program and its arguments.
        environment: added to ours.
        stdin: what it reads; nothing if it is None.
        folder: where it runs; here if it is None.
        hint: the next step if it fails.
    Raises:
        BuildError: it failed; the message ends with the last it said.
        FileProblem: there is no such program.
    """
    given: dict[str, object] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    try:
        done = subprocess.run(
            [str(part) for part in command],
            capture_output=True,
            check=False,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C.UTF-8", **(environment or {})},
            **given,  # type: ignore[call-overload]
        )
    except FileNotFoundError as e:
        raise FileProblem(
            f"cannot {what}: there is no program {command[0]}", hint="run `make kit`: it installs it"
        ) from e
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).decode(errors="replace").split())
        raise BuildError(f"cannot {what}: {Path(command[0]).name} says: {said[-_TAIL:] or 'nothing'}", hint=hint)
    return bytes(done.stdout)


def say(text: str) -> None:
    """Tell the operator what is being done; results alone go to standard output."""
    print(f"kit: {text}", file=sys.stderr, flush=True)
