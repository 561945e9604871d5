"""The service manager's protocols: readiness, status, watchdog and passed sockets.

Both are a few lines of environment and datagrams, so that a daemon needs no compiled binding for them.
Source: sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3).
"""

import os
import socket

LISTEN_FDS_START = 3


def notify(*assignments: str) -> bool:
    """Tell the service manager, for example `notify("READY=1", "STATUS=two models")`.

    Returns:
        False where no manager listens (run by hand) or it does not take the message.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address or address[0] not in "/@":
        return False
    if address[0] == "@":  # the abstract namespace
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as s:
            s.connect(address)
            s.sendall("\n".join(assignments).encode())
    except OSError:
        return False
    return True


def watchdog_interval_s() -> float | None:
    """Half of the manager's watchdog time, which is how often to report; None if there is no watchdog."""
    usec, pid = os.environ.get("WATCHDOG_USEC"), os.environ.get("WATCHDOG_PID")
    if not usec or not usec.isdigit() or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 2e6


def passed_sockets() -> list[socket.socket]:
    """Take the listening sockets that socket activation passed to this very process; an empty list if none."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = int(os.environ.get("LISTEN_FDS", "0"))
    # Children must not believe that the sockets are theirs.
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    sockets = []
    for fd in range(LISTEN_FDS_START, LISTEN_FDS_START + count):
        os.set_inheritable(fd, False)
        sockets.append(socket.socket(fileno=fd))
    return sockets
