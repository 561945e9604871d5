"""Durable writes and directories that appear whole or not at all.

The order of system calls is the promise: write, fsync the file, rename, fsync the parent. A rename without the last
step may be lost at a power cut; a rename without the second may expose a file of zeros.

What this does NOT protect against: a disk that lies about fsync, and another process of the same user.
"""

import contextlib
import fcntl
import glob
import itertools
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from appliance.errors import FileProblem

Progress = Callable[[str, float], None]
"""What is being done, and the fraction of it that is done, from 0 to 1."""


def no_progress(what: str, fraction: float) -> None:
    """Report to nobody."""


def write_durably(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace `path` by `data`; after a crash there is the old file or the new one, never a part.

    Args:
        path: the file; its parent must exist.
        data: all of its bytes.
        mode: permission bits of the new file, regardless of the umask.
    Raises:
        FileProblem: the parent is missing, not writable or full.
    """
    try:
        fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(fd, "wb") as f:
                f.write(data)
                f.flush()
                os.fchmod(f.fileno(), mode)
                os.fsync(f.fileno())
            Path(temporary).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
            raise
        sync_directory(path.parent)
    except OSError as e:
        raise FileProblem(
            f"cannot write {path}: {e.strerror}", hint="check that the folder exists, is yours and has space"
        ) from e


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_tree(root: Path) -> None:
    """Fsync every file and directory below `root`, children before parents."""
    for folder, _, names in os.walk(root, topdown=False):
        for name in names:
            fd = os.open(Path(folder, name), os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        sync_directory(Path(folder))


@contextlib.contextmanager
def publish_directory(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty working directory that becomes `target` when the block ends well, and vanishes when it does not.

    Args:
        target: the directory to create; its parent is made if missing.
        replace: whether an existing target may be replaced. There is a moment without `target` between the two renames;
            after a crash in it, the next call puts the old one back.
    Raises:
        FileProblem: the target exists and may not be replaced, or the disk refuses.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        if target.exists() and not replace:
            raise FileProblem(
                f"cannot create {target}: it exists", hint="choose another folder, or pass --force to replace it"
            )
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=_WORK, dir=target.parent))
        lock = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(lock, fcntl.LOCK_EX)  # says that somebody works here
    except OSError as e:
        raise FileProblem(
            f"cannot create {target}: {e.strerror}", hint="check that its folder is yours and has space"
        ) from e
    old = work.with_name(work.name.removesuffix(_WORK) + _OLD)
    try:
        yield work
        # Whatever the umask: readable by every daemon, writable by its owner only.
        work.chmod(0o755)
        for path in work.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        sync_tree(work)
        if target.exists():
            target.rename(old)
        work.rename(target)
        sync_directory(target.parent)
        if old.exists():
            shutil.rmtree(old)
    except OSError as e:
        raise FileProblem(f"cannot create {target}: {e.strerror}", hint="check that the disk has space") from e
    finally:
        os.close(lock)
        if work.exists():
            shutil.rmtree(work, ignore_errors=True)


_WORK, _OLD = ".work", ".old"


def _sweep(target: Path) -> None:
    """Take away what a killed process left of this target, and put back what it had moved aside."""
    for left in target.parent.glob(f".{glob.escape(target.name)}.*"):
        if left.name.endswith(_OLD):
            if target.exists():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.rename(target)
        elif left.name.endswith(_WORK):
            fd = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # its process lives
            finally:
                os.close(fd)
            shutil.rmtree(left, ignore_errors=True)


class OwnershipProblem(NamedTuple):
    """What was found, and the program and its arguments that mend it."""

    found: str
    program: str
    arguments: str


def ownership_problem(info: os.stat_result) -> OwnershipProblem | None:
    """Say what is wrong with something that only root and this user should be able to change; None if nothing is."""
    if info.st_mode & 0o022:
        return OwnershipProblem(f"mode {stat.S_IMODE(info.st_mode):04o} lets others change it", "chmod", " go-w")
    if info.st_uid not in (0, os.geteuid()):
        found = f"it belongs to uid {info.st_uid}, expected root or uid {os.geteuid()}"
        return OwnershipProblem(found, "chown", "")
    return None


def snapshot(folder: Path) -> tuple[object, ...]:
    """What the kernel says of a flat folder and its first thousand entries; another value after any change to them.

    Raises:
        OSError: the folder cannot be read.
    """
    with os.scandir(folder) as entries:
        found = sorted((e.name, _identity(e.stat(follow_symlinks=False))) for e in itertools.islice(entries, 1000))
    return (_identity(folder.lstat()), *found)


def _identity(i: os.stat_result) -> tuple[int, ...]:
    return (i.st_dev, i.st_ino, i.st_mode, i.st_uid, i.st_nlink, i.st_size, i.st_mtime_ns, i.st_ctime_ns)


def read_limited(path: Path, limit_bytes: int) -> bytes:
    """Read a small file of the user's.

    Raises:
        FileProblem: it is missing, not readable, not a regular file or larger than `limit_bytes`.
    """
    try:
        # Not to hang on a FIFO: without a writer, a plain open would wait for one.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as f:
            if not stat.S_ISREG(os.fstat(f.fileno()).st_mode):
                raise FileProblem(f"cannot read {path}: not a regular file", hint="is this the right file?")
            data = f.read(limit_bytes + 1)
    except OSError as e:
        raise FileProblem(f"cannot read {path}: {e.strerror}", hint="check the path and its permissions") from e
    if len(data) > limit_bytes:
        raise FileProblem(f"cannot read {path}: larger than {limit_bytes} bytes", hint="is this the right file?")
    return data
