"""Signing keys, and the directory of public keys that is the whole of the trust policy.

A station makes a key with `generate()` and keeps it with `PrivateKey.save`. A box trusts exactly the `*.pub` files of
one directory, read by `KeySet.from_directory`: a package is accepted if one of them signed it, and refused otherwise.
There is no mode that warns and goes on. An empty directory is legal and refuses everything.

Keys are ECDSA on NIST P-256 with SHA-256, because that is what OpenSSF Model Signing uses with plain keys. A key's id
is the SHA-256 of its PEM, as that format has it.

What this does NOT protect against: root, another process of the same user, or someone who may rename a parent directory
of the key directory (only the directory itself and its files are checked). A key has no expiry date and no list of
revocations: to revoke, remove the file. Keys in memory are not wiped.

BUG: PKCS#8 as written by `cryptography` derives the encryption key with PBKDF2 and only 2,048 rounds, so a short
passphrase can be guessed by whoever has the file. Use six random words or more.

Source: RFC 5480 (P-256 SubjectPublicKeyInfo), RFC 5958 (PKCS#8), RFC 7468 (PEM), FIPS 186-5 (ECDSA).
"""

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.errors import BadSignature, ConfigError, FileProblem, InvalidRequest, SkerryError
from appliance.files import ownership_problem, sync_directory, write_durably

MAX_KEY_BYTES = 16 * 1024
PUBLIC_KEY_SUFFIX = ".pub"
_ALGORITHM = ec.ECDSA(hashes.SHA256())
_PRIVATE_MARK = b"PRIVATE KEY-----"
# O_NONBLOCK: opening a FIFO must not hang the caller; regular files ignore it.
_READ_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, repr=False)
class PublicKey:
    """An EC P-256 public key. Equal if the key is the same.

    Attributes:
        pem: the SubjectPublicKeyInfo as PEM, in its one canonical form.
        key_id: 64 hexadecimal digits, the SHA-256 of `pem`; what OpenSSF Model Signing calls the hint.
    """

    pem: bytes
    key_id: str

    @classmethod
    def from_pem(cls, data: bytes) -> "PublicKey":
        """Read exactly one canonical SubjectPublicKeyInfo block; line ends may be CRLF.

        Raises:
            InvalidRequest: a private key, another algorithm or curve, a compressed point, text around the block.
        """
        if _PRIVATE_MARK in data:
            raise InvalidRequest(
                "cannot use public key: found a private key, expected a public one",
                hint="remove it from here and consider it exposed; `skerry key show` prints the public half",
            )
        try:
            key = serialization.load_pem_public_key(data)
        except (ValueError, TypeError, UnsupportedAlgorithm) as e:
            raise InvalidRequest("cannot use public key: found no PEM block that can be read, expected one") from e
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise InvalidRequest(f"cannot use public key: found {_describe(key)}, expected EC P-256")
        public = cls._of(key)
        if data.split() != public.pem.split():
            raise InvalidRequest(
                "cannot use public key: found other text or another encoding, expected one canonical PEM block",
                hint="write it again with `openssl pkey -pubin -ec_conv_form uncompressed`",
            )
        return public

    @classmethod
    def load(cls, path: Path) -> "PublicKey":
        """Read one public key file.

        Raises:
            FileProblem: it cannot be read.
            InvalidRequest: see `from_pem`.
        """
        return cls.from_pem(_read(path)[0])

    @classmethod
    def _of(cls, key: ec.EllipticCurvePublicKey) -> "PublicKey":
        pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        return cls(pem=pem, key_id=hashlib.sha256(pem).hexdigest())

    def save(self, path: Path) -> None:
        """Write the PEM durably, readable by all, replacing what was there.

        Raises:
            FileProblem: the disk refuses.
        """
        write_durably(path, self.pem, 0o644)

    def verify(self, message: bytes, signature: bytes) -> None:
        """Return if this key signed `message`.

        Args:
            message: the exact bytes that were signed.
            signature: ECDSA with SHA-256, DER.
        Raises:
            BadSignature: it did not.
        """
        key = serialization.load_pem_public_key(self.pem)
        # `from_pem` and `PrivateKey` are the only makers; this holds the type for whoever calls the constructor.
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise TypeError("not an EC P-256 key")
        try:
            key.verify(signature, message, _ALGORITHM)
        except InvalidSignature as e:
            raise BadSignature(
                f"cannot verify signature: key {self.key_id[:16]} did not make it, though it is named as the signer",
                hint="the content or the signature was changed after signing: fetch both again from the station",
            ) from e

    def __repr__(self) -> str:
        return f"PublicKey({self.key_id[:16]})"


@dataclass(frozen=True, repr=False, eq=False)
class PrivateKey:
    """An EC P-256 signing key. It has no text form other than the file, and its repr shows the public id only."""

    _key: ec.EllipticCurvePrivateKey

    @classmethod
    def load(cls, path: Path, passphrase: bytes | None = None, *, credential: bool = False) -> "PrivateKey":
        """Read a private key as PEM (PKCS#8, or the older "EC PRIVATE KEY").

        Args:
            path: the file; it must not be readable by group or others.
            passphrase: as given to `save`; none for a key that is not encrypted.
            credential: from the service manager, by an ACL, which stat shows as rights of the group.
        Raises:
            FileProblem: it cannot be read, or others may read it.
            InvalidRequest: not a key, not P-256, or the passphrase is wrong, missing or superfluous.
        """
        data, info = _read(path)
        if info.st_mode & (0o037 if credential else 0o077):
            raise FileProblem(
                f"cannot use key {path}: mode {stat.S_IMODE(info.st_mode):04o} lets others read it, expected 0600",
                hint=f"run `chmod 600 {path}`; if others have had it, make a new key",
            )
        try:
            key = serialization.load_pem_private_key(data, passphrase)
        except TypeError as e:  # cryptography's way to say that a passphrase is missing, or is given for nothing
            found = "encrypted, and no passphrase was given" if passphrase is None else "not encrypted"
            raise InvalidRequest(
                f"cannot use key {path}: it is {found}", hint="pass the passphrase exactly if the key has one"
            ) from e
        except (ValueError, UnsupportedAlgorithm) as e:
            raise InvalidRequest(
                f"cannot use key {path}: not a private key in PEM, or the passphrase is wrong",
                hint="check the file and the passphrase",
            ) from e
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise InvalidRequest(
                f"cannot use key {path}: found {_describe(key)}, expected EC P-256",
                hint="make one with `skerry key new`",
            )
        return cls(key)

    def save(self, path: Path, passphrase: bytes | None = None) -> None:
        """Write the key as PKCS#8 PEM with mode 0600, durably, and never over an existing file.

        Args:
            path: a new file in an existing directory.
            passphrase: encrypts the file if given; not empty.
        Raises:
            InvalidRequest: the passphrase is empty.
            FileProblem: the file exists, or the disk refuses.
        """
        if passphrase == b"":
            raise InvalidRequest("cannot write key: the passphrase is empty", hint="give one, or none at all")
        encryption = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
        pem = self._key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
        _write_new(path, pem)

    def public(self) -> PublicKey:
        """The public half."""
        return PublicKey._of(self._key.public_key())

    def sign(self, message: bytes) -> bytes:
        """Sign with ECDSA and SHA-256; DER. Two signatures of the same message differ."""
        return self._key.sign(message, _ALGORITHM)

    def __repr__(self) -> str:
        return f"PrivateKey(of {self.public().key_id[:16]})"


def generate() -> PrivateKey:
    """Make a new EC P-256 key from the operating system's random source."""
    return PrivateKey(ec.generate_private_key(ec.SECP256R1()))


@dataclass(frozen=True, repr=False)
class KeySet:
    """The public keys that are trusted, by id; the proof that a key directory was read and found safe."""

    _keys: Mapping[str, PublicKey]

    @classmethod
    def of(cls, *keys: PublicKey) -> "KeySet":
        """Trust exactly these keys; none trusts nothing."""
        return cls(MappingProxyType({key.key_id: key for key in keys}))

    @classmethod
    def from_directory(cls, path: Path) -> "KeySet":
        """Trust every `*.pub` of a directory; one bad file refuses the whole directory, so that nobody overlooks it.

        Other files are not read as keys, but a private key among them is an error: a box must not hold one.

        Raises:
            ConfigError: the directory or a key in it is a symbolic link, can be written by group or others, belongs to
                somebody other than root or the current user, cannot be read, or is not an EC P-256 public key; or a
                private key lies there.
        """
        try:
            directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as e:
            raise ConfigError(
                f"cannot use key directory {path}: {e.strerror}, expected a directory that is no symbolic link",
                hint=f"run `mkdir -m 755 {path}` and put the trusted *.pub files there",
            ) from e
        try:
            _check_owner(f"key directory {path}", os.fstat(directory))
            # Sorted, so that the same directory always gives the same error.
            keys = [_trusted_key(path, directory, name) for name in sorted(os.listdir(directory))]  # noqa: PTH208  a descriptor
        finally:
            os.close(directory)
        return cls.of(*(key for key in keys if key is not None))

    def get(self, key_id: str) -> PublicKey | None:
        """The key of this id, or none if it is not trusted."""
        return self._keys.get(key_id)

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[PublicKey]:
        return iter(self._keys.values())

    def __repr__(self) -> str:
        return f"KeySet({', '.join(key_id[:16] for key_id in self._keys)})"


def _trusted_key(path: Path, directory: int, name: str) -> PublicKey | None:
    """Read one entry of a key directory; none if it is neither a key nor dangerous."""
    what = f"key directory {path}"
    try:
        info = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if not name.endswith(PUBLIC_KEY_SUFFIX) and not stat.S_ISREG(info.st_mode):
            return None
        if stat.S_ISLNK(info.st_mode):
            raise ConfigError(
                f"cannot use {what}: {name} is a symbolic link, expected a file", hint="copy the key there instead"
            )
        data, info = _read(Path(name), directory, os.O_NOFOLLOW)
    except FileProblem as e:
        raise ConfigError(f"cannot use {what}: {e.message}", hint="expected plain files that this user may read") from e
    except OSError as e:
        raise ConfigError(f"cannot use {what}: {name}: {e.strerror}", hint="expected plain, readable files") from e
    if _PRIVATE_MARK in data:
        raise ConfigError(
            f"cannot use {what}: {name} holds a private key, expected public keys only",
            hint="move it to the station and consider it exposed",
        )
    if not name.endswith(PUBLIC_KEY_SUFFIX):
        return None
    _check_owner(f"key {path / name}", info)
    try:
        return PublicKey.from_pem(data)
    except SkerryError as e:
        raise ConfigError(f"cannot use {what}: {name}: {e.message}", hint=e.hint or "remove the file") from e


def _check_owner(what: str, info: os.stat_result) -> None:
    if (problem := ownership_problem(info)) is not None:
        raise ConfigError(
            f"cannot use {what}: {problem.found}",
            hint=f"run `{problem.program}{problem.arguments}` on it, after checking who put it there",
        )


def _read(path: Path, directory: int | None = None, extra_flags: int = 0) -> tuple[bytes, os.stat_result]:
    """Read a small regular file through one descriptor, so that what is checked is what is read.

    Raises:
        FileProblem: it is missing, not readable, not a regular file or too large to be a key.
    """
    try:
        fd = os.open(path, _READ_FLAGS | extra_flags, dir_fd=directory)
        with os.fdopen(fd, "rb") as f:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise FileProblem(f"cannot read key {path}: found something else, expected a regular file")
            data = f.read(MAX_KEY_BYTES + 1)
    except OSError as e:
        raise FileProblem(f"cannot read key {path}: {e.strerror}", hint="check the path and its permissions") from e
    if len(data) > MAX_KEY_BYTES:
        raise FileProblem(f"cannot read key {path}: larger than {MAX_KEY_BYTES} bytes", hint="is this the right file?")
    return data, info


def _write_new(path: Path, data: bytes) -> None:
    """Create a file that only its owner reads; O_EXCL, so that two writers cannot both believe that they made it."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError as e:
        raise FileProblem(
            f"cannot write key {path}: it exists", hint="choose another name; Skerry never replaces a key"
        ) from e
    except OSError as e:
        raise FileProblem(f"cannot write key {path}: {e.strerror}", hint="check that the folder exists") from e
    try:
        with os.fdopen(fd, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(fd)
        sync_directory(path.parent)
    except BaseException as e:
        with contextlib.suppress(OSError):
            path.unlink()
        if isinstance(e, OSError):
            raise FileProblem(f"cannot write key {path}: {e.strerror}", hint="check that the disk has space") from e
        raise


def _describe(key: object) -> str:
    """Say what kind of key this is, for an error."""
    if isinstance(key, ec.EllipticCurvePublicKey | ec.EllipticCurvePrivateKey):
        return f"EC {key.curve.name}"
    return type(key).__name__.lstrip("_")
