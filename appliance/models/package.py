"""A model package: a flat directory that is signed as a whole and verified every time it is opened.

The station calls `sign_package`; the box calls `open_verified` and gives the `VerifiedModel` to the engine, which
accepts nothing else. Between the two there is no path that could be exchanged: every file is opened once, relative to
the directory's descriptor and without following links, mapped, and the digest is taken of that mapping. What the engine
reads is the memory that was hashed; no name is looked up again.

Beyond the signature a package must be plain: no folders (empty ones included), no hidden files, no links of either
kind, no devices, nothing that nobody signed, nothing that others may write; the card must name the directory; and the
graph may point to no file but its own data. OpenSSF Model Signing would let some of these through.

BUG: the mapping is the file, not a copy. Root, or a process of the user that owns the file, can still change a page
after it was hashed (through a writable mapping made before, even without a new mtime), or truncate the file, and then
the kernel ends this process with SIGBUS. `VerifiedModel.recheck` after loading narrows the first. Files that belong to
root and a daemon that is not root close both for everybody but root. A page that the kernel let go of comes from the
disk again without being hashed again, so a disk that changes under a running box is not seen either; fs-verity would
close all of this.

What this does NOT protect against: an older package that is also validly signed (releases with a counter are for that),
and what the weights themselves were trained to do.

Source: OpenSSF Model Signing v1.0 for the signature (`appliance.trust.oms`).
"""

import contextlib
import hashlib
import mmap
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import NamedTuple

from appliance.errors import (
    CardMismatch,
    ConfigError,
    DigestMismatch,
    FileProblem,
    MissingFile,
    UnlistedFile,
    UnsafeFile,
    Unsigned,
    VerificationFailed,
)
from appliance.files import Progress, no_progress, ownership_problem, write_durably
from appliance.models import onnx_external
from appliance.models.card import Card, is_legal_name, parse
from appliance.trust import oms
from appliance.trust.keys import KeySet, PrivateKey

MODEL_FILE = "model.onnx"
DATA_FILE = onnx_external.DATA_FILE
TOKENIZER_FILE = "tokenizer.json"
TEMPLATE_FILE = "chat_template.jinja"
CARD_FILE = "card.yaml"
SIGNATURE_FILE = oms.SIGNATURE_FILE

REQUIRED_FILES = frozenset({MODEL_FILE, DATA_FILE, TOKENIZER_FILE, CARD_FILE})
OPTIONAL_FILES = frozenset({TEMPLATE_FILE})

# A package has a handful of files; the bound keeps a hostile directory from using up descriptors.
_MAX_FILES = 64
_HASH_CHUNK = 16 << 20
# O_NONBLOCK: opening a FIFO must not hang the daemon; regular files ignore it.
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class _Identity(NamedTuple):
    """What fstat must still say if nobody touched the file."""

    device: int
    inode: int
    links: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, info: os.stat_result) -> "_Identity":
        return cls(info.st_dev, info.st_ino, info.st_nlink, info.st_size, info.st_mtime_ns, info.st_ctime_ns)


@dataclass(frozen=True)
class _HeldFile:
    """One file, open and mapped."""

    name: str
    fd: int
    identity: _Identity
    mapping: mmap.mmap
    view: memoryview

    def close(self) -> None:
        # An array over this memory keeps the mapping until it goes itself; that is safe, the bytes cannot be unmapped
        # under it. The descriptor is only for recheck.
        with contextlib.suppress(BufferError):
            self.view.release()
            self.mapping.close()
        os.close(self.fd)


class VerifiedModel:
    """Proof that a package was verified, and the verified bytes themselves. Only `open_verified` makes one.

    A context manager; `close` it when the engine has let go of the memory.

    Attributes:
        name: of the model; the directory's and the card's.
        card: the parsed card.
        key_id: of the key that signed.
        root_digest: of the content, 64 hexadecimal digits.
        size_bytes: of all signed files together.
        files: name to the mapped, read-only bytes of every signed file.
        directory_fd: the directory that was verified, held open.
    """

    def __init__(self, card: Card, statement: oms.Statement, held: Mapping[str, _HeldFile], directory_fd: int) -> None:
        self.name = card.name
        self.card = card
        self.key_id = statement.key_id
        self.root_digest = statement.root_digest
        self.size_bytes = sum(file.identity.size_bytes for file in held.values())
        self.files: Mapping[str, memoryview] = MappingProxyType({name: file.view for name, file in held.items()})
        self.directory_fd = directory_fd
        self._held: Mapping[str, _HeldFile] = held
        self._closed = False

    def recheck(self) -> None:
        """Ask the kernel once more whether any file has been touched since it was opened; call it after loading.

        Raises:
            DigestMismatch: one has.
            ValueError: the model is closed.
        """
        if self._closed:
            raise ValueError("the model is closed")
        for file in self._held.values():
            _check_untouched(file)

    def release_pages(self) -> None:
        """Let the kernel take back the memory of the files' pages; a later read brings them in again.

        For after loading, as the engine keeps its own, rearranged copy of most weights, and after much was read.
        """
        for file in self._held.values():
            file.mapping.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Let go of the files. Memory that the engine still uses stays mapped until it has let go, too."""
        if not self._closed:
            self._closed = True
            for file in self._held.values():
                file.close()
            os.close(self.directory_fd)
            # A proof that is kept must not keep mappings that only an array still needs.
            self.files = MappingProxyType({})
            self._held = MappingProxyType({})

    def __enter__(self) -> "VerifiedModel":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"VerifiedModel({self.name}, {self.root_digest[:16]})"


def open_verified(directory: Path, keys: KeySet, progress: Progress = no_progress) -> VerifiedModel:
    """Open a package, and return it only if a trusted key signed exactly what is there.

    Args:
        directory: the package; its last component is the model's name.
        keys: the trusted keys.
        progress: told about the hashing.
    Raises:
        Unsigned: there is no signature.
        MalformedSignature, UnknownKey, BadSignature: the signature is not one of ours.
        UnsafeFile: a link, folder, device, hidden file, file that others may write, or external data elsewhere.
        UnlistedFile, MissingFile, DigestMismatch: the files are not the signed ones.
        CardMismatch: the card cannot be read, or disagrees with the directory's name or the files.
        VerificationFailed: the graph is not well-formed.
        FileProblem: the directory or a file cannot be read.
    """
    with contextlib.ExitStack() as opened:
        fd = _open_directory(directory, opened)
        held = _open_files(fd, directory, opened)
        signature = held.pop(SIGNATURE_FILE, None)
        if signature is None:
            raise Unsigned(
                f"cannot trust package {directory.name}: found no {SIGNATURE_FILE}",
                hint="sign it on the station with `skerry model sign`",
            )
        # Read once, and bounded before it is copied out of the mapping.
        bundle = bytes(signature.view[: oms.MAX_BUNDLE_BYTES + 1])
        statement = oms.verify(bundle, keys)
        _check_listing(held, statement.digests)
        for name, digest in _hash(held, progress):
            if digest != statement.digests[name]:
                raise DigestMismatch(
                    f"cannot trust {name}: its SHA-256 is {digest[:16]}…, expected {statement.digests[name][:16]}…",
                    hint="the file was changed after signing: install the package again",
                )
        card = _check_content(directory, held)
        for file in held.values():
            _check_untouched(file)  # not touched while it was hashed either
        signature.close()
        opened.pop_all()
        return VerifiedModel(card, statement, held, fd)


def sign_package(directory: Path, key: PrivateKey) -> None:
    """Write `model.sig` over everything in the directory, after the checks that verification will make.

    A signature that is already there is replaced.

    Raises:
        UnlistedFile: a file that is no part of a model package.
        UnsafeFile, MissingFile, CardMismatch, VerificationFailed, FileProblem: see `open_verified`.
    """
    with contextlib.ExitStack() as opened:
        held = _open_files(_open_directory(directory, opened), directory, opened)
        held.pop(SIGNATURE_FILE, None)
        for name in held:
            if name not in REQUIRED_FILES | OPTIONAL_FILES:
                raise UnlistedFile(
                    f"cannot sign package {directory.name}: {name!a} is no part of a model package",
                    hint="remove it",
                )
        _check_complete(held)
        card = _check_content(directory, held)
        digests = dict(_hash(held, no_progress))
        for file in held.values():
            _check_untouched(file)
        write_durably(directory / SIGNATURE_FILE, oms.sign(digests, card.name, key), 0o644)


# --- opening ----------------------------------------------------------------------------------------------------------


def _open_directory(directory: Path, opened: contextlib.ExitStack) -> int:
    """Open the package's directory; `opened` closes it."""
    try:
        fd = os.open(directory, _DIRECTORY_FLAGS)
    except OSError as e:
        raise FileProblem(
            f"cannot open package {directory}: {e.strerror}, expected a directory that is no symbolic link",
            hint="check the path and its permissions",
        ) from e
    opened.callback(os.close, fd)
    return fd


def _open_files(fd: int, directory: Path, opened: contextlib.ExitStack) -> dict[str, _HeldFile]:
    """Open and map every file of a flat directory; whatever is opened is closed by `opened`."""
    _check_owner(f"package {directory.name}", os.fstat(fd))
    names = sorted(os.listdir(fd))
    if len(names) > _MAX_FILES:
        raise UnlistedFile(
            f"cannot use package {directory.name}: {len(names)} entries, expected at most {_MAX_FILES}",
            hint="is this the right directory?",
        )
    held = {}
    for name in names:
        held[name] = _open_file(fd, name)
        opened.callback(held[name].close)
    return held


def _open_file(directory: int, name: str) -> _HeldFile:
    """Open and map one file, checked on the open descriptor and not on the name."""
    shown = ascii(name)
    if name.startswith("."):
        raise UnsafeFile(f"cannot use {shown}: a hidden file or folder, expected plain files only", hint="remove it")
    try:
        fd = os.open(name, _FILE_FLAGS, dir_fd=directory)
    except OSError as e:
        raise _cannot_open(directory, name, e) from e
    try:
        info = os.fstat(fd)
        _check_plain(shown, info)
        mapping = mmap.mmap(fd, info.st_size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    except BaseException as e:
        os.close(fd)
        if isinstance(e, OSError | ValueError):  # ValueError: the file shrank after fstat
            raise FileProblem(f"cannot map {shown}: {e}", hint="check that nothing writes into the package") from e
        raise
    return _HeldFile(name, fd, _Identity.of(info), mapping, memoryview(mapping))


def _cannot_open(directory: int, name: str, error: OSError) -> Exception:
    """Name the reason: O_NOFOLLOW reports a link as ELOOP, and a socket cannot be opened at all."""
    with contextlib.suppress(OSError):
        mode = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
        if not stat.S_ISREG(mode):
            return UnsafeFile(f"cannot use {name!a}: {_kind(mode)}, expected a regular file", hint="remove it")
    return FileProblem(f"cannot open {name!a}: {error.strerror}", hint="check the permissions of the package's files")


def _check_plain(shown: str, info: os.stat_result) -> None:
    if not stat.S_ISREG(info.st_mode):
        raise UnsafeFile(f"cannot use {shown}: {_kind(info.st_mode)}, expected a regular file", hint="remove it")
    if info.st_nlink != 1:
        # A second name outside the package is a way to change it without being seen here.
        raise UnsafeFile(
            f"cannot use {shown}: a hard link, it has {info.st_nlink} names, expected one",
            hint="copy the package with `cp -r` instead of linking it",
        )
    _check_owner(shown, info)
    if info.st_size == 0:
        raise VerificationFailed(f"cannot use {shown}: it is empty", hint="install the package again")


def _check_owner(shown: str, info: os.stat_result) -> None:
    if (problem := ownership_problem(info)) is not None:
        raise UnsafeFile(
            f"cannot use {shown}: {problem.found}",
            hint=f"run `{problem.program} -R{problem.arguments}` on the package, after checking who put it there",
        )


def _kind(mode: int) -> str:
    for test, name in (
        (stat.S_ISLNK, "a symbolic link"),
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
    ):
        if test(mode):
            return name
    return "a device"


# --- checking ---------------------------------------------------------------------------------------------------------


def _check_listing(held: Mapping[str, _HeldFile], listed: Mapping[str, str]) -> None:
    """The directory and the signed list hold the same names, and those that a model needs are among them."""
    for name in held:
        if name not in listed:
            raise UnlistedFile(
                f"cannot trust package: nobody signed {name!a}",
                hint="remove the file, or install the package again",
            )
    for name in listed:
        if name not in held:
            raise MissingFile(f"cannot trust package: {name} is signed but missing", hint="install the package again")
    _check_complete(held)


def _check_complete(held: Mapping[str, _HeldFile]) -> None:
    if missing := sorted(REQUIRED_FILES - held.keys()):
        raise MissingFile(f"cannot use package: found no {missing[0]}", hint="build the package again")


def _hash(held: Mapping[str, _HeldFile], progress: Progress) -> Iterator[tuple[str, str]]:
    """Hash every mapping, smallest first: a wrong card is found before gigabytes are read."""
    total = sum(file.identity.size_bytes for file in held.values())
    done = 0
    for file in sorted(held.values(), key=lambda f: f.identity.size_bytes):
        digest = hashlib.sha256()
        for start in range(0, file.identity.size_bytes, _HASH_CHUNK):
            chunk = file.view[start : start + _HASH_CHUNK]
            digest.update(chunk)  # releases the GIL
            done += len(chunk)
            progress(f"verify {file.name}", done / total)
        yield file.name, digest.hexdigest()


def _check_content(directory: Path, held: Mapping[str, _HeldFile]) -> Card:
    """The card fits the directory and the files, and the graph stays inside the package."""
    try:
        card = parse(bytes(held[CARD_FILE].view))
    except ConfigError as e:
        raise CardMismatch(e.message, hint=e.hint or "build the package again with this version of Skerry") from e
    # abspath, so that "." has a name; resolve() would follow links.
    name = os.path.basename(os.path.abspath(directory))  # noqa: PTH100, PTH119
    if card.name != name or not is_legal_name(name):
        raise CardMismatch(
            f"cannot use package {name!a}: its card says {card.name!r}, expected the directory's name",
            hint=f"a package cannot be renamed: name the directory {card.name}, or build it under the new name",
        )
    if card.chat != (TEMPLATE_FILE in held):
        found = "no template is there" if card.chat else "a template is there"
        raise CardMismatch(
            f"cannot use package {name}: its card says chat: {str(card.chat).lower()}, but {found}",
            hint="build the package again",
        )
    # A copy: an error must not keep the mapping alive through the views in its traceback.
    onnx_external.check(bytes(held[MODEL_FILE].view), held[DATA_FILE].identity.size_bytes)
    return card


def _check_untouched(file: _HeldFile) -> None:
    if _Identity.of(os.fstat(file.fd)) != file.identity:
        raise DigestMismatch(
            f"cannot trust {file.name}: it was changed while it was open", hint="find out who writes into the package"
        )
