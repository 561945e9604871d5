"""Run a program of a test inside the confinement of one of Skerry's units: the same unit, another program."""

import base64
import re
from typing import Any, Protocol

PROBE = "skerry-test-probe"
OUTPUT = f"/run/{PROBE}.out"

# What makes a daemon of a unit, and no part of its confinement.
_DROPPED = re.compile(
    r"^(Type|NotifyAccess|Exec\w+|Restart\w*|Watchdog\w+|OOMPolicy|LoadCredential\w*|Standard\w+|RuntimeDirectory\w*"
    r"|CollectMode|Requires|After|User=sandbox-%i|LogLevelMax)\b"
)


class Host(Protocol):
    """A box of either kind."""

    def run(self, command: str, *, check: bool = True, timeout_s: float = 60) -> Any: ...

    def put(self, source: str, target: str) -> None: ...

    def read(self, path: str) -> str: ...


def run_inside(box: Host, unit: str, program: str, *more: str, timeout_s: float = 60) -> str:
    """Run a Python program as `unit` would run its own; gives all that it printed.

    Args:
        box: where.
        unit: the service whose settings count, drop-ins included.
        program: read from standard input, as `python -`.
        more: lines for the section [Service] that come last, `Environment=...`.
        timeout_s: the program's time.
    """
    settings = box.run(f"systemctl cat {unit}").stdout
    interpreter = "/usr/bin/python3 -I -S" if "sandbox" in unit else "/opt/skerry/current/bin/python -I"
    lines = [line for line in settings.splitlines() if not _DROPPED.match(line)]
    lines += [
        "[Service]",
        "Type=oneshot",
        f"ExecStart={interpreter} -",
        "StandardInput=data",
        f"StandardInputData={base64.b64encode(program.encode()).decode()}",
        f"StandardOutput=truncate:{OUTPUT}",
        f"StandardError=truncate:{OUTPUT}",
        f"TimeoutStartSec={timeout_s}s",
        *more,
    ]
    path = f"/run/systemd/system/{PROBE}.service"
    box.put("".join(f"{line}\n" for line in lines), path)
    try:
        box.run("systemctl daemon-reload")
        done = box.run(f"systemctl start {PROBE}.service", check=False, timeout_s=timeout_s + 10)
        said = box.read(OUTPUT)
        assert done.returncode == 0, said or box.run(f"journalctl -u {PROBE} -n 20 --no-pager").stdout
        return said
    finally:
        box.run(f"rm -f {path} {OUTPUT}; systemctl daemon-reload")
