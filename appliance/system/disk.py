"""How full the file systems are, and from where on that is somebody's business.

    marks = load_settings(DISK_CONFIG_PATH)
    for found in survey(marks).found: print(found.mount_point, found.level)

Places are named by what they hold (data, log, root); places on one file system are one finding. A file system counts as
full by its blocks or by its inodes, whichever is worse, and as `df` counts: what only root may use is not free.

What this does NOT do: free anything. A full disk must never take the login or the daemon away, and nothing here stops
either of them.
"""

import math
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from appliance.config import MAX_YAML_BYTES, convert, load_yaml
from appliance.errors import ConfigError, FileProblem
from appliance.files import read_limited

DISK_CONFIG_PATH = Path("/etc/skerry/disk.yaml")
PLACES = {"data": "/var/lib/skerry", "log": "/var/log", "root": "/"}

Level = Literal["ok", "warn", "critical"]

_NEXT = {
    "data": "remove models that nobody uses (skerry model list) and kits of older versions",
    "log": "shorten the journal: journalctl --vacuum-size=50M",
    "root": "look for what grew: du -xh / | sort -h | tail",
}


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The watermarks, and the places that are looked at."""

    warn_percent: Annotated[int, msgspec.Meta(ge=1, le=100)] = 80
    """From here on an operator should make room."""
    critical_percent: Annotated[int, msgspec.Meta(ge=1, le=100)] = 90
    """From here on it is urgent."""
    places: dict[Annotated[str, msgspec.Meta(pattern=r"\A[a-z][a-z0-9-]{0,19}\Z")], str] = msgspec.field(
        default_factory=lambda: dict(PLACES)
    )
    """What is looked at: a name and an absolute path each."""


@dataclass(frozen=True)
class FileSystem:
    """One file system and how full it is.

    Attributes:
        mount_point: where it begins.
        places: the names of the places on it.
        size_bytes: all of it.
        free_bytes: what somebody who is not root may still use.
        used_percent: of what such a user may use at all, rounded up, as `df` has it.
        inodes_percent: of its files; None where the file system does not count them.
        level: by the worse of the two.
        next_step: what to do; None when all is well.
    """

    mount_point: str
    places: tuple[str, ...]
    size_bytes: int
    free_bytes: int
    used_percent: int
    inodes_percent: int | None
    level: Level
    next_step: str | None


@dataclass(frozen=True)
class Survey:
    """What was found, and what could not be looked at."""

    found: tuple[FileSystem, ...]
    problems: tuple[FileProblem, ...]


def load_settings(path: Path = DISK_CONFIG_PATH) -> Settings:
    """Read the watermarks; the defaults if there is no such file.

    Raises:
        ConfigError: an unknown field, a relative path, or marks in the wrong order.
        FileProblem: the file cannot be read.
    """
    if not path.exists():
        return Settings()
    settings = convert(load_yaml(read_limited(path, MAX_YAML_BYTES), str(path)), Settings, str(path))
    if settings.warn_percent > settings.critical_percent:
        raise ConfigError(
            f"cannot use {path}: warn_percent {settings.warn_percent} is more than critical_percent "
            f"{settings.critical_percent}, expected at most that"
        )
    for name, place in settings.places.items():
        if not Path(place).is_absolute() or "\0" in place:
            raise ConfigError(f"cannot use {path}: places.{name} is {place!r}, expected an absolute path")
    return settings


def survey(settings: Settings, ask: Callable[[str], os.statvfs_result] = os.statvfs) -> Survey:
    """Look at every place; places on one file system together, in the order of the settings.

    Args:
        settings: marks and places.
        ask: statvfs, or a test's.
    """
    grouped: dict[str, list[str]] = {}
    found, problems = [], []
    for name, place in settings.places.items():
        try:
            grouped.setdefault(_mount_point(Path(place)), []).append(name)
        except OSError as e:
            problems.append(_problem(place, e))
    for mount_point, names in grouped.items():
        try:
            found.append(judge(mount_point, names, ask(mount_point), settings))
        except OSError as e:
            problems.append(_problem(mount_point, e))
    return Survey(tuple(found), tuple(problems))


def judge(mount_point: str, places: list[str], s: os.statvfs_result, settings: Settings) -> FileSystem:
    """Make a finding of what statvfs said."""
    used = _percent(s.f_blocks - s.f_bfree, s.f_bavail) or 0
    inodes = _percent(s.f_files - s.f_ffree, s.f_favail)
    found = level(max(used, inodes or 0), settings)
    return FileSystem(
        mount_point=mount_point,
        places=tuple(places),
        size_bytes=s.f_blocks * s.f_frsize,
        free_bytes=s.f_bavail * s.f_frsize,
        used_percent=used,
        inodes_percent=inodes,
        level=found,
        next_step=None if found == "ok" else next_step(places),
    )


def level(percent: float, settings: Settings) -> Level:
    """Judge one figure; a mark belongs to the level that it opens."""
    if percent >= settings.critical_percent:
        return "critical"
    return "warn" if percent >= settings.warn_percent else "ok"


def next_step(places: Collection[str]) -> str:
    """What frees space where these places are."""
    return "; ".join(_NEXT[name] for name in _NEXT if name in places) or "remove what nobody needs"


def _percent(used: int, free: int) -> int | None:
    return math.ceil(100 * used / (used + free)) if used + free > 0 else None


def _mount_point(path: Path) -> str:
    """Where the file system of a path begins; of a path that is not there, that of its nearest parent."""
    while not path.exists() and path != path.parent:
        path = path.parent
    path = path.resolve()
    device = path.stat().st_dev
    while path != path.parent and path.parent.stat().st_dev == device:
        path = path.parent
    return str(path)


def _problem(path: str, error: OSError) -> FileProblem:
    return FileProblem(
        f"cannot look at the file system of {path}: {error.strerror}",
        hint="is its disk there? `lsblk` and `dmesg` tell",
    )
