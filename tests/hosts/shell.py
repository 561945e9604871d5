"""How commands enter a virtual machine as root: by QEMU's agent, or by SSH as somebody who may sudo.

Both write what a command prints to files in the guest and fetch them when it has ended: then a daemon that it leaves
behind, which holds its outputs open, is not waited for.
"""

import base64
import contextlib
import secrets
import shlex
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from tests.hosts import process
from tests.hosts.process import CommandTimeout, HostError, Result
from tests.hosts.qmp import Agent

PLACE = "/run/skerry-test"
PIECE = 1 << 20

# A group of its own, to be killed by; as root or as a user, with the environment of neither the agent nor this machine.
ENTER = f"""
umask 077
user=$1 folder=$2 id=$3 stdin=$4
shift 4
mkdir -p {PLACE}
exec > {PLACE}/$id.out 2> {PLACE}/$id.err < "$stdin"
group=$(id -g -- "$user") || exit 125
cd "$folder" || exit 125
umask 022
exec setsid setpriv --reuid="$user" --regid="$group" --init-groups --inh-caps=-all --reset-env env -- "$@"
"""


class Sshable(Protocol):
    """What an SshShell needs of a box."""

    name: str

    def ssh_argv(self, user: str, key: Path, *, tty: bool = False) -> list[str]: ...


class Shell(Protocol):
    """A way in, as root."""

    def run(
        self,
        command: str | Sequence[str],
        user: str,
        timeout_s: float,
        stdin: bytes,
        env: Mapping[str, str],
        folder: str,
    ) -> Result: ...

    def close(self) -> None: ...


class AgentShell:
    """By QEMU's agent: needs no network, no sshd and no account."""

    def __init__(self, agent: Agent, where: str) -> None:
        self.agent = agent
        self.where = where

    def run(
        self,
        command: str | Sequence[str],
        user: str,
        timeout_s: float,
        stdin: bytes,
        env: Mapping[str, str],
        folder: str,
    ) -> Result:
        """Run a command to its end; see `qemu.Box.run`."""
        shown = command if isinstance(command, str) else shlex.join(command)
        end = time.monotonic() + timeout_s
        name = secrets.token_hex(4)
        source = self._write(f"{PLACE}/{name}.in", stdin, timeout_s) if stdin else "/dev/null"
        arguments = ["-c", ENTER, "sh", user, folder, name, source, *_command(command, env)]
        limit = max(timeout_s, 5)
        pid = self.agent.execute("guest-exec", path="/bin/sh", arg=arguments, timeout_s=limit)["pid"]
        pause = 0.02
        while not (state := self.agent.execute("guest-exec-status", pid=pid, timeout_s=limit))["exited"]:
            if time.monotonic() > end:
                self._do(f"kill -KILL -- -{pid} {pid}")
                raise CommandTimeout(
                    f"cannot run on {self.where}: `{shown}` still ran after {timeout_s:g} s\n"
                    f"{self._result(shown, -signal.SIGKILL, name).tails()}"
                )
            time.sleep(pause)
            pause = min(pause * 1.5, 0.5)
        code = state.get("exitcode", -state.get("signal", signal.SIGKILL))
        return self._result(shown, code, name)

    def close(self) -> None:
        """Forget the connection, as the guest goes away."""
        self.agent.close()

    def _result(self, shown: str, code: int, name: str) -> Result:
        out, err = (self._read(f"{PLACE}/{name}.{which}") for which in ("out", "err"))
        self._do(f"rm -f {PLACE}/{name}.*")
        return Result(shown, code, out, err)

    def _do(self, line: str) -> None:
        self.agent.execute("guest-exec", path="/bin/sh", arg=["-c", line])

    def _write(self, path: str, content: bytes, timeout_s: float) -> str:
        pid = self.agent.execute("guest-exec", path="/bin/mkdir", arg=["-p", "-m", "700", PLACE])["pid"]
        while not self.agent.execute("guest-exec-status", pid=pid)["exited"]:
            time.sleep(0.01)
        handle = self.agent.execute("guest-file-open", path=path, mode="w")
        for at in range(0, len(content), PIECE):
            piece = base64.b64encode(content[at : at + PIECE]).decode()
            self.agent.execute("guest-file-write", handle=handle, buf_b64=piece, timeout_s=max(timeout_s, 60))
        self.agent.execute("guest-file-close", handle=handle)
        return path

    def _read(self, path: str) -> str:
        found = b""
        with contextlib.suppress(HostError):
            handle = self.agent.execute("guest-file-open", path=path, mode="r")
            while True:
                piece = self.agent.execute("guest-file-read", handle=handle, count=PIECE)
                found += base64.b64decode(piece["buf-b64"])
                if piece["eof"]:
                    break
            self.agent.execute("guest-file-close", handle=handle)
        return found.decode(errors="replace")


class SshShell:
    """By SSH as a user that may sudo without a password: the way of an operator in need."""

    def __init__(self, box: Sshable, user: str, key: Path) -> None:
        self.box = box
        self.user = user
        self.key = key

    def run(
        self,
        command: str | Sequence[str],
        user: str,
        timeout_s: float,
        stdin: bytes,
        env: Mapping[str, str],
        folder: str,
    ) -> Result:
        """Run a command to its end; see `qemu.Box.run`."""
        shown = command if isinstance(command, str) else shlex.join(command)
        name, end = secrets.token_hex(4), 'cat "$1.out"; cat "$1.err" >&2; rm -f "$1".*; exit "$2"'
        inner = shlex.join(["sh", "-c", ENTER, "sh", user, folder, name, f"{PLACE}/{name}.in", *_command(command, env)])
        place = f"{PLACE}/{name}"
        script = f"umask 077; mkdir -p {PLACE}; cat > {place}.in; timeout -k 1 {timeout_s:g} {inner}; code=$?; "
        script += f"set -- {place} $code; {end}"
        remote = f"sudo -n sh -c {shlex.quote(script)}"
        return process.run(
            [*self.box.ssh_argv(self.user, self.key), remote],
            timeout_s=timeout_s + 15,
            stdin=stdin,
            shown_as=shown,
            where=self.box.name,
        )

    def close(self) -> None:
        """Nothing to forget."""


def _command(command: str | Sequence[str], env: Mapping[str, str]) -> list[str]:
    within = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
    return [*(f"{key}={value}" for key, value in {"LANG": "C.UTF-8", **env}.items()), *within]
