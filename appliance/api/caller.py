"""Who is at the other end of a Unix socket, by the kernel's word, and which roles that gives.

Nothing that a caller says about itself counts. uid, gid and pid are those at the time of `connect` (SO_PEERCRED), the
supplementary groups too (SO_PEERGROUPS). Roles are Unix groups; their numbers are looked up once a minute.

What this does NOT protect against: a process that hands its connected socket to another one vouches for it. The pid may
have been reused by the time that its unit is looked up: it serves records, never decisions.

Source: unix(7); socket(7), SO_PEERCRED and SO_PEERGROUPS.
"""

import errno
import functools
import grp
import os
import socket
import struct
import time
from dataclasses import dataclass
from enum import StrEnum

from appliance.system.host import unit_of

_SO_PEERGROUPS = 59  # asm-generic/socket.h; Python's socket module does not name it
_MAX_GROUPS = 256  # Python's getsockopt takes buffers of at most 1,024 bytes


class Role(StrEnum):
    """What a caller may do; the Unix group is `skerry-` and the role."""

    CLIENT = "client"
    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"


# A role contains those to its right.
_CONTAINS = {
    Role.CLIENT: frozenset({Role.CLIENT}),
    Role.VIEWER: frozenset({Role.VIEWER}),
    Role.OPERATOR: frozenset({Role.OPERATOR, Role.VIEWER, Role.CLIENT}),
    Role.ADMIN: frozenset(Role),
}


@dataclass(frozen=True)
class Caller:
    """The process at the other end of a connection."""

    uid: int
    gid: int
    pid: int
    groups: frozenset[int]

    @property
    def unit(self) -> str | None:
        """The systemd unit that the process runs in, for records."""
        return unit_of(self.pid)

    @property
    def roles(self) -> frozenset[Role]:
        """Roles by the groups as they are in the group database now. root and the daemon's own user have all."""
        if self.uid in (0, os.geteuid()):
            return frozenset(Role)
        held: frozenset[Role] = frozenset()
        for role, contained in _CONTAINS.items():
            if _group_id(f"skerry-{role}", int(time.monotonic() / 60)) in self.groups:
                held |= contained
        return held


def identify(connection: socket.socket) -> Caller:
    """Ask the kernel who connected.

    Raises:
        OSError: it is not a connected Unix socket.
    """
    pid, uid, gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MAX_GROUPS * 4)
    except OSError as e:
        if e.errno != errno.ERANGE:
            raise
        raw = b""  # a caller in more groups than can be read has the rights of its main group only
    return Caller(uid, gid, pid, frozenset(struct.unpack(f"{len(raw) // 4}I", raw)) | {gid})


@functools.lru_cache(maxsize=len(Role))
def _group_id(name: str, minute: int) -> int | None:
    """Look a group up, at most once a minute: the group database may be slow."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None
