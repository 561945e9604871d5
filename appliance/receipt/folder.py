"""The folder of a box's receipts: one file each, numbered, each naming the one before by its digest.

`write` adds a receipt if there is anything new to say. Beside the receipts lies `box.pub`, the box's public key; after
a new key the old one stays as `box-<first digits of its id>.pub`.

What this does NOT protect against: who owns the folder can remove the newest receipts, or all. Copies elsewhere, and
the audit log, are for that.
"""

import contextlib
import datetime
import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import DigestMismatch, FileProblem, InvalidRequest, MissingFile, UnsafeFile
from appliance.files import ownership_problem, read_limited, write_durably
from appliance.receipt.statement import Predicate, Receipt, State, peek, seal, verify
from appliance.system import clock
from appliance.trust.dsse import MAX_BYTES
from appliance.trust.keys import KeySet, PrivateKey, PublicKey

PUBLIC_KEY = "box.pub"
_NAME = re.compile(r"receipt-(\d{6})-\d{4}-\d\d-\d\dT\d{6}Z\.json")


@dataclass(frozen=True)
class Written:
    """What `write` did.

    Attributes:
        path: of the newest receipt.
        changed: whether it is new.
        key_id: of the key that signed it.
        predicate: what it says.
    """

    path: Path
    changed: bool
    key_id: str
    predicate: Predicate


def names(folder: Path) -> list[str]:
    """The receipts' file names, oldest first.

    Raises:
        FileProblem: the folder cannot be read.
    """
    try:
        return sorted(name for name in os.listdir(folder) if _NAME.fullmatch(name))  # noqa: PTH208  names are what is wanted
    except OSError as e:
        raise FileProblem(
            f"cannot read receipts in {folder}: {e.strerror}", hint="`skerry receipt write` writes the first one"
        ) from e


def find(folder: Path, name: str | None) -> Path:
    """The receipt of this name, or the newest one.

    Raises:
        InvalidRequest: not a receipt's name.
        FileProblem: there is no receipt.
    """
    if name is not None:
        if not _NAME.fullmatch(name):
            raise InvalidRequest(f"cannot find receipt {name!a}: expected the name of a receipt", hint=f"ls {folder}")
        return folder / name
    known = names(folder)
    if not known:
        raise FileProblem(f"cannot find a receipt in {folder}: there is none", hint="skerry receipt write")
    return folder / known[-1]


def write(folder: Path, state: State, key: PrivateKey, now: datetime.datetime) -> Written:
    """Add a receipt, unless the newest one says the same of the same state and is signed with the same key.

    Raises:
        FileProblem: the folder is missing, or the disk refuses.
        UnsafeFile: others may write the folder.
        VerificationFailed: the receipts that are there are not as they were written.
    """
    with _locked(folder):
        public = key.public()
        last = _check(folder, public)
        _publish(folder, public)
        if last and last[1].predicate.state == state and last[1].key_id == public.key_id:
            return Written(last[0], False, last[1].key_id, last[1].predicate)
        before = last[1].predicate if last else None
        time = now.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        predicate = Predicate(
            serial=before.serial + 1 if before else 1,
            time=time,
            clock=judge_clock(now, time, before.time if before else None),
            previous=_digest(last[0]) if last else None,
            state=state,
        )
        path = folder / f"receipt-{predicate.serial:06}-{time.replace(':', '')}.json"
        write_durably(path, seal(predicate, key), 0o644)
        return Written(path, True, public.key_id, predicate)


def judge_clock(now: datetime.datetime, time: str, before: str | None) -> str:
    """Say what to think of the box's time; there is no time server to ask."""
    if (doubt := clock.doubt(now)) is not None:
        return f"wrong: {doubt}"
    if before is not None and time < before:
        return "doubtful: earlier than the receipt before"
    return "plausible: set by hand or kept by the machine, never compared with a time server"


# --- what is there already --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other writers out, and refuse a folder that others may write."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as e:
        raise FileProblem(
            f"cannot write receipt: {folder}: {e.strerror}, expected a folder", hint=f"mkdir -p -m 755 {folder}"
        ) from e
    try:
        if (problem := ownership_problem(os.fstat(fd))) is not None:
            raise UnsafeFile(
                f"cannot write receipt: {folder}: {problem.found}",
                hint=f"find out who changed it, then: {problem.program}{problem.arguments} {folder}",
            )
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _check(folder: Path, own: PublicKey) -> tuple[Path, Receipt] | None:
    """Verify the newest receipt, and by their digests those before it; the oldest may have been taken away."""
    known = names(folder)
    if not known:
        return None
    keys = KeySet.of(own, *(PublicKey.load(path) for path in sorted(folder.glob("box*.pub"))))
    newest = verify(_bytes(folder / known[-1]), keys)
    predicate = newest.predicate
    for name, before in zip(reversed(known), [*reversed(known[:-1]), None], strict=True):
        if not name.startswith(f"receipt-{predicate.serial:06}-"):
            raise _broken(folder, MissingFile, f"found {name}, expected receipt {predicate.serial:06}")
        if before is None:
            break
        if predicate.previous != _digest(folder / before):
            raise _broken(folder, DigestMismatch, f"{before} is not the receipt that {name} names")
        predicate = peek(_bytes(folder / before)).predicate
    return folder / known[-1], newest


def _broken(folder: Path, error: type[MissingFile | DigestMismatch], found: str) -> Exception:
    return error(
        f"cannot write receipt: {found}",
        hint=f"find out who changed {folder}; to begin anew, move its files elsewhere",
    )


def _publish(folder: Path, public: PublicKey) -> None:
    """Write `box.pub`; keep the one of an older key, for the receipts that it signed."""
    path = folder / PUBLIC_KEY
    if path.exists():
        old = PublicKey.load(path)
        if old == public:
            return
        old.save(folder / f"box-{old.key_id[:16]}.pub")
    public.save(path)


def _bytes(path: Path) -> bytes:
    return read_limited(path, MAX_BYTES)


def _digest(path: Path) -> str:
    return hashlib.sha256(_bytes(path)).hexdigest()
