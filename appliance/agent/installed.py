"""The tasks that are installed: the files `*.yaml` of one directory, read again when they change.

    installed = InstalledTasks(Path("/etc/skerry/tasks"))
    found = installed.all()              # found.tasks, and found.broken: files that cannot be used, and why
    task = installed.get("triage")

A task decides what a model reads and who judges it, so its file must be what a key's must: a regular file and no link,
of root or this user, that nobody else may write. A file that is not, or that holds no task, is told by its name and
keeps no other one from being used.

Callers are told where in a file its error is and nothing that stands there: they may not read the file. The whole
error is the operator's (`Broken.details`); `skerry serve --check` prints it.

What this does NOT protect against: root, another process of the same user, or someone who may rename a parent of the
directory.
"""

import contextlib
import logging
import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import yaml

from appliance.agent.task import Task, parse_task
from appliance.config import MAX_YAML_BYTES
from appliance.errors import ConfigError
from appliance.files import ownership_problem

log = logging.getLogger("skerry.tasks")

MOST_TASKS = 1000
_SUFFIX = ".yaml"
# O_NONBLOCK: opening a FIFO must not hang the daemon; regular files ignore it.
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Broken:
    """A file that cannot be used.

    Attributes:
        name: of the task that it should be.
        error: for callers, without a word of the file.
        details: for the operator.
    """

    name: str
    error: ConfigError
    details: str


@dataclass(frozen=True, slots=True)
class Found:
    """What lies in the directory, by name."""

    tasks: dict[str, Task]
    broken: tuple[Broken, ...]


_Identity = tuple[int, ...]


class InstalledTasks:
    """A directory of task files. Safe to use from several threads."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._known: dict[str, tuple[_Identity, Task | Broken]] = {}

    def all(self) -> Found:
        """Read all tasks; none, if there is no such directory.

        Raises:
            ConfigError: the directory is a link or a file, others may write it, or it holds too many.
        """
        with self._lock, self._open() as directory:
            read = {} if directory is None else {n: self._read(directory, n) for n in self._names(directory)}
            self._known = {name: known for name, known in self._known.items() if name in read}
        found = [one for one in read.values() if one is not None]
        return Found(
            {one.name: one for one in found if isinstance(one, Task)},
            tuple(one for one in found if isinstance(one, Broken)),
        )

    def get(self, name: str) -> Task | None:
        """Read one task; None if it is not there.

        Raises:
            ConfigError: it cannot be used, or the directory cannot.
        """
        with self._lock, self._open() as directory:
            found = None if directory is None else self._read(directory, name)
        if isinstance(found, Broken):
            raise found.error
        return found

    @contextlib.contextmanager
    def _open(self) -> Iterator[int | None]:
        try:
            fd = os.open(self._directory, _FLAGS | os.O_DIRECTORY)
        except FileNotFoundError:
            yield None
            return
        except OSError as e:
            raise ConfigError(
                f"cannot use tasks directory {self._directory}: {e.strerror}, expected a directory that is no symbolic"
                " link",
                hint="check tasks_dir in the configuration",
            ) from e
        try:
            if (problem := ownership_problem(os.fstat(fd))) is not None:
                raise ConfigError(
                    f"cannot use tasks directory {self._directory}: {problem.found}",
                    hint=f"run `{problem.program}{problem.arguments}` on it, after checking what lies there",
                )
            yield fd
        finally:
            os.close(fd)

    def _names(self, directory: int) -> list[str]:
        entries = os.listdir(directory)
        names = sorted(n.removesuffix(_SUFFIX) for n in entries if n.endswith(_SUFFIX) and not n.startswith("."))
        if len(names) > MOST_TASKS:
            raise ConfigError(
                f"cannot use tasks directory {self._directory}: {len(names)} tasks, expected at most {MOST_TASKS}",
                hint="move some of them away",
            )
        return names

    def _read(self, directory: int, name: str) -> Task | Broken | None:
        shown = name.encode("utf-8", "backslashreplace").decode()
        what = f"{self._directory}/{shown}{_SUFFIX}"
        try:
            with os.fdopen(os.open(name + _SUFFIX, _FLAGS, dir_fd=directory), "rb") as file:
                info = os.fstat(file.fileno())
                if (problem := _problem(info)) is not None:
                    raise ConfigError(f"cannot use {what}: {problem[0]}", hint=problem[1])
                identity = (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
                if (known := self._known.get(name)) is not None and known[0] == identity:
                    return known[1]
                data = file.read(MAX_YAML_BYTES + 1)
        except FileNotFoundError:
            return None
        except ConfigError as e:
            return Broken(shown, e, e.message)
        except OSError as e:
            error = ConfigError(f"cannot use {what}: {e.strerror}, expected a regular file", hint="copy the file there")
            return Broken(shown, error, error.message)
        outcome = _parsed(data, what, name, shown)
        self._known[name] = (identity, outcome)
        return outcome


def _problem(info: os.stat_result) -> tuple[str, str] | None:
    """What speaks against reading a file, and what to do; its links are refused when it is opened."""
    if not stat.S_ISREG(info.st_mode):
        return "not a regular file", "copy the file there"
    if (problem := ownership_problem(info)) is not None:
        return problem.found, f"run `{problem.program}{problem.arguments}` on it, after checking who put it there"
    return None


def _parsed(data: bytes, what: str, name: str, shown: str) -> Task | Broken:
    try:
        return parse_task(data, what, name)
    except ConfigError as e:
        log.warning("a task cannot be used: %s", e.message)
        place = _place(e.__cause__)
        error = ConfigError(
            f"cannot use task {shown}: its file has an error{place and f' at {place}'}",
            hint="`skerry serve --check` on the box says which",
        )
        return Broken(shown, error, e.message)


def _place(cause: BaseException | None) -> str:
    """Where in the file the error is, if that is known."""
    if isinstance(cause, msgspec.ValidationError):
        return str(cause).rpartition(" - at ")[2] if " - at " in str(cause) else ""
    if isinstance(cause, yaml.MarkedYAMLError) and (mark := cause.problem_mark or cause.context_mark) is not None:
        return f"line {mark.line + 1}, column {mark.column + 1}"
    return ""
