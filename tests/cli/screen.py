"""A command on a real terminal of 80x24, driven as an operator would."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path


class Screen:
    """Run `skerry ARGUMENTS` on a pseudo terminal until the block ends.

    `seen` is all that it wrote, undecoded escape sequences included.
    """

    def __init__(self, *arguments: str, home: Path, term: str = "xterm", **environment: str) -> None:
        self.seen = ""
        self._read_to = 0
        self._terminal, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        kept = {k: v for k, v in os.environ.items() if k in ("PATH", "VIRTUAL_ENV")}
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from appliance.cli.main import main; main()", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=_at_a_terminal,
            env=kept | {"HOME": str(home), "TERM": term, "LANG": "C.UTF-8"} | environment,
        )
        os.close(theirs)

    def __enter__(self) -> "Screen":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        os.close(self._terminal)

    def wait_for(self, text: str, timeout_s: float = 20.0) -> None:
        """Read until `text` has come, after what was waited for before."""
        end = time.monotonic() + timeout_s
        while (at := self.seen.find(text, self._read_to)) < 0:
            assert self._read(end - time.monotonic()), f"{text!r} did not come; seen: {self.seen!r}"
        self._read_to = at + len(text)

    def type(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C at a prompt, as late after its last character as a person would.

        Python waits for keys with select; a signal that comes between its last output and that is seen at the next key.
        """
        time.sleep(0.3)
        self.type("\x03")

    def exit_code(self, timeout_s: float = 20.0) -> int:
        """Read until the command ends."""
        end = time.monotonic() + timeout_s
        while self._read(end - time.monotonic()):
            pass
        return self._process.wait(timeout=max(0.1, end - time.monotonic()))

    def _read(self, timeout_s: float) -> bool:
        if timeout_s <= 0 or not select.select([self._terminal], [], [], timeout_s)[0]:
            return False
        try:
            data = os.read(self._terminal, 65536)
        except OSError:  # EIO: the other end is closed
            return False
        self.seen += data.decode("utf-8", "replace")
        return bool(data)


def _at_a_terminal() -> None:
    """Take the terminal: Ctrl-C is a signal then, also where the tests run in the background and ignore it."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
