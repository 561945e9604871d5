"""Keys: made, kept, read back, and the key directory as policy."""

import hashlib
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from appliance.errors import BadSignature, ConfigError, FileProblem, InvalidRequest
from appliance.trust.keys import KeySet, PrivateKey, PublicKey, generate

OPENSSL = shutil.which("openssl")


@pytest.fixture
def key() -> PrivateKey:
    return generate()


@pytest.fixture
def key_directory(tmp_path: Path, key: PrivateKey) -> Path:
    """A key directory that trusts `key`."""
    directory = tmp_path / "keys"
    directory.mkdir(mode=0o755)
    key.public().save(directory / "station.pub")
    return directory


def spki(key: object, form: serialization.PublicFormat = serialization.PublicFormat.SubjectPublicKeyInfo) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, form)  # type: ignore[attr-defined]


def pkcs8(key: object) -> bytes:
    return key.private_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


# --- one key ----------------------------------------------------------------------------------------------------------


def test_signature_verifies_only_for_its_message_and_key(key: PrivateKey) -> None:
    """A signature holds for the bytes and the key that made it, and for no other."""
    signature = key.sign(b"message")
    key.public().verify(b"message", signature)
    for public, message, made in [
        (key.public(), b"messagE", signature),
        (generate().public(), b"message", signature),
        (key.public(), b"message", signature[:-1]),
        (key.public(), b"message", b""),
        (key.public(), b"message", b"\x30\x06\x02\x01\x00\x02\x01\x00"),  # r = s = 0
    ]:
        with pytest.raises(BadSignature):
            public.verify(message, made)


def test_key_id_is_the_digest_of_the_pem(key: PrivateKey) -> None:
    """The id is what model-signing calls the hint: SHA-256 of the SubjectPublicKeyInfo as PEM."""
    public = key.public()
    assert public.key_id == hashlib.sha256(public.pem).hexdigest()
    assert public.pem.startswith(b"-----BEGIN PUBLIC KEY-----\n")


@pytest.mark.parametrize("passphrase", [None, b"six random words are much better"])
def test_saved_key_is_private_and_loads_again(tmp_path: Path, key: PrivateKey, passphrase: bytes | None) -> None:
    """A key comes back from its file, which only its owner may read, whatever the umask."""
    path = tmp_path / "station.key"
    before = os.umask(0)
    try:
        key.save(path, passphrase)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (b"ENCRYPTED" in path.read_bytes()) == (passphrase is not None)
    assert PrivateKey.load(path, passphrase).public() == key.public()


def test_existing_key_is_never_replaced(tmp_path: Path, key: PrivateKey) -> None:
    """Saving over a file, or through a symbolic link, is refused and changes nothing."""
    path = tmp_path / "station.key"
    key.save(path)
    before = path.read_bytes()
    (tmp_path / "link.key").symlink_to(tmp_path / "elsewhere.key")
    for target in (path, tmp_path / "link.key"):
        with pytest.raises(FileProblem, match="exists"):
            generate().save(target)
    assert path.read_bytes() == before
    assert not (tmp_path / "elsewhere.key").exists()


@pytest.mark.parametrize("failing", ["fsync", "sync_directory"])
def test_failed_save_leaves_nothing(
    tmp_path: Path, key: PrivateKey, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """A disk that is full in the middle leaves no half-written key behind."""

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(
        {"fsync": "appliance.trust.keys.os.fsync", "sync_directory": "appliance.trust.keys.sync_directory"}[failing],
        fail,
    )
    with pytest.raises(FileProblem, match="No space"):
        key.save(tmp_path / "station.key")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("saved", "given", "says"),
    [
        (b"right", b"wrong", "passphrase is wrong"),
        (b"right", None, "no passphrase was given"),
        (None, b"any", "not encrypted"),
    ],
)
def test_wrong_passphrase_is_refused(
    tmp_path: Path, key: PrivateKey, saved: bytes | None, given: bytes | None, says: str
) -> None:
    """A passphrase that is wrong, missing or superfluous is named as such."""
    key.save(tmp_path / "k", saved)
    with pytest.raises(InvalidRequest, match=says):
        PrivateKey.load(tmp_path / "k", given)


def test_empty_passphrase_is_refused(tmp_path: Path, key: PrivateKey) -> None:
    """An empty passphrase would look like protection and be none."""
    with pytest.raises(InvalidRequest, match="empty"):
        key.save(tmp_path / "k", b"")
    assert not (tmp_path / "k").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_private_key_that_others_read_is_refused(tmp_path: Path, key: PrivateKey, mode: int) -> None:
    """As ssh does: a private key that is open to others is not used."""
    key.save(tmp_path / "k")
    (tmp_path / "k").chmod(mode)
    with pytest.raises(FileProblem, match="lets others read it"):
        PrivateKey.load(tmp_path / "k")


@pytest.mark.parametrize(
    "make",
    [
        lambda: pkcs8(ec.generate_private_key(ec.SECP384R1())),
        lambda: pkcs8(ec.generate_private_key(ec.SECP256K1())),
        lambda: pkcs8(ed25519.Ed25519PrivateKey.generate()),
        lambda: pkcs8(rsa.generate_private_key(65537, 2048)),
        lambda: b"-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n",
        lambda: b"",
        lambda: generate().public().pem,
    ],
    ids=["p-384", "secp256k1", "ed25519", "rsa", "garbage", "empty", "public"],
)
def test_other_private_keys_are_refused(tmp_path: Path, make: Callable[[], bytes]) -> None:
    """Only EC P-256 private keys are signing keys."""
    path = tmp_path / "k"
    path.write_bytes(make())
    path.chmod(0o600)
    with pytest.raises(InvalidRequest):
        PrivateKey.load(path)


def test_private_key_is_not_shown(key: PrivateKey) -> None:
    """Neither repr nor a traceback's locals show more than the public id."""
    assert repr(key) == f"PrivateKey(of {key.public().key_id[:16]})"


@pytest.mark.skipif(OPENSSL is None, reason="not run: no openssl command")
def test_openssl_agrees(tmp_path: Path, key: PrivateKey) -> None:
    """OpenSSL reads our encrypted key, verifies our signature, and its "EC PRIVATE KEY" is read by us."""
    key.save(tmp_path / "k", b"pass phrase")
    key.public().save(tmp_path / "k.pub")
    run = [OPENSSL, "pkey", "-in", tmp_path / "k", "-passin", "pass:pass phrase", "-pubout"]
    assert subprocess.run(run, capture_output=True, check=True).stdout == key.public().pem
    (tmp_path / "m").write_bytes(b"message")
    (tmp_path / "s").write_bytes(key.sign(b"message"))
    run = [OPENSSL, "dgst", "-sha256", "-verify", tmp_path / "k.pub", "-signature", tmp_path / "s", tmp_path / "m"]
    assert subprocess.run(run, capture_output=True, check=True).stdout == b"Verified OK\n"
    run = [OPENSSL, "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", tmp_path / "theirs"]
    subprocess.run(run, capture_output=True, check=True)
    (tmp_path / "theirs").chmod(0o600)
    theirs = PrivateKey.load(tmp_path / "theirs")
    theirs.public().verify(b"x", theirs.sign(b"x"))


# --- public keys ------------------------------------------------------------------------------------------------------


def test_public_key_with_windows_line_ends_is_the_same_key(key: PrivateKey) -> None:
    """A key that crossed a Windows machine on a stick has the same id."""
    assert PublicKey.from_pem(key.public().pem.replace(b"\n", b"\r\n")) == key.public()


BAD_PUBLIC_KEYS: list[tuple[str, Callable[[PrivateKey], bytes], str]] = [
    ("p-384", lambda _: spki(ec.generate_private_key(ec.SECP384R1()).public_key()), "secp384r1"),
    ("secp256k1", lambda _: spki(ec.generate_private_key(ec.SECP256K1()).public_key()), "secp256k1"),
    ("ed25519", lambda _: spki(ed25519.Ed25519PrivateKey.generate().public_key()), "Ed25519"),
    ("rsa", lambda _: spki(rsa.generate_private_key(65537, 2048).public_key()), "RSA"),
    ("private key", lambda k: pkcs8(k._key), "private key"),
    ("private key after the public one", lambda k: k.public().pem + pkcs8(k._key), "private key"),
    ("two keys", lambda k: k.public().pem + generate().public().pem, "canonical"),
    ("text before", lambda k: b"our station\n" + k.public().pem, "canonical"),
    ("compressed point", lambda k: compressed(k), "canonical"),
    ("garbage", lambda _: b"-----BEGIN PUBLIC KEY-----\nMAA=\n-----END PUBLIC KEY-----\n", "no PEM block"),
    ("empty", lambda _: b"", "no PEM block"),
    ("not text", lambda _: bytes(range(256)), "no PEM block"),
]


def compressed(key: PrivateKey) -> bytes:
    """The same key with a compressed point: another spelling, so another id."""
    import base64

    point = key._key.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)
    der = bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200") + point
    return b"-----BEGIN PUBLIC KEY-----\n" + base64.encodebytes(der) + b"-----END PUBLIC KEY-----\n"


@pytest.mark.parametrize(
    ("make", "says"), [row[1:] for row in BAD_PUBLIC_KEYS], ids=[row[0] for row in BAD_PUBLIC_KEYS]
)
def test_other_public_keys_are_refused(key: PrivateKey, make: Callable[[PrivateKey], bytes], says: str) -> None:
    """Exactly one canonical EC P-256 block is a public key."""
    with pytest.raises(InvalidRequest, match=says):
        PublicKey.from_pem(make(key))


# --- the key directory ------------------------------------------------------------------------------------------------


def test_key_directory_trusts_its_public_keys(key_directory: Path, key: PrivateKey) -> None:
    """Every *.pub file is trusted, by id; other plain files are not keys."""
    other = generate().public()
    other.save(key_directory / "second.pub")
    (key_directory / "README").write_text("who holds which key")
    generate().public().save(key_directory / "retired.pub.off")
    keys = KeySet.from_directory(key_directory)
    assert {k.key_id for k in keys} == {key.public().key_id, other.key_id}
    assert keys.get(other.key_id) == other
    assert keys.get("0" * 64) is None


def test_empty_key_directory_is_legal_and_trusts_nothing(tmp_path: Path) -> None:
    """No keys is a policy: refuse everything."""
    (tmp_path / "keys").mkdir(mode=0o755)
    assert len(KeySet.from_directory(tmp_path / "keys")) == 0


def replace(directory: Path, data: bytes, name: str = "station.pub") -> None:
    (directory / name).unlink(missing_ok=True)
    (directory / name).write_bytes(data)
    (directory / name).chmod(0o644)


def link(directory: Path) -> None:
    (directory / "station.pub").rename(directory.parent / "moved.pub")
    (directory / "station.pub").symlink_to(directory.parent / "moved.pub")


def link_directory(directory: Path) -> None:
    directory.rename(directory.parent / "real")
    directory.symlink_to(directory.parent / "real")


BAD_DIRECTORIES: list[tuple[str, Callable[[Path], object], str]] = [
    ("directory writable by group", lambda d: d.chmod(0o775), "lets others change it"),
    ("directory writable by all", lambda d: d.chmod(0o757), "lets others change it"),
    ("key writable by group", lambda d: (d / "station.pub").chmod(0o664), "lets others change it"),
    ("key writable by all", lambda d: (d / "station.pub").chmod(0o646), "lets others change it"),
    ("key is a symbolic link", link, "symbolic link"),
    ("directory is a symbolic link", link_directory, "Not a directory"),
    ("directory is missing", lambda d: shutil.rmtree(d), "No such file"),
    ("key is a folder", lambda d: (d / "folder.pub").mkdir(), "regular file|directory"),
    ("key is a FIFO", lambda d: os.mkfifo(d / "fifo.pub", 0o600), "regular file"),
    ("private key as *.pub", lambda d: replace(d, pkcs8(generate()._key)), "private key"),
    ("private key beside", lambda d: replace(d, pkcs8(generate()._key), "station.key"), "private key"),
    ("old private key beside", lambda d: replace(d, b"-----BEGIN EC PRIVATE KEY-----", "x.pem"), "private key"),
    ("other curve", lambda d: replace(d, spki(ec.generate_private_key(ec.SECP384R1()).public_key())), "secp384r1"),
    ("garbage", lambda d: replace(d, b"?"), "no PEM block"),
    ("huge file", lambda d: replace(d, b" " * 20_000), "larger than"),
]


@pytest.mark.parametrize(("spoil", "says"), [r[1:] for r in BAD_DIRECTORIES], ids=[r[0] for r in BAD_DIRECTORIES])
def test_unsafe_key_directory_is_refused(key_directory: Path, spoil: Callable[[Path], object], says: str) -> None:
    """One thing that is wrong refuses the whole directory, with the reason, although a good key is there, too."""
    generate().public().save(key_directory / "good.pub")
    KeySet.from_directory(key_directory)
    spoil(key_directory)
    with pytest.raises(ConfigError, match=says) as caught:
        KeySet.from_directory(key_directory)
    assert caught.value.hint


@pytest.mark.skipif(os.geteuid() != 0, reason="not run: only root can give files away")
@pytest.mark.parametrize("which", [".", "station.pub"])
def test_key_directory_of_somebody_else_is_refused(key_directory: Path, which: str) -> None:
    """Neither the directory nor a key may belong to a user who is not root or oneself."""
    os.chown(key_directory / which, 65534, -1)
    with pytest.raises(ConfigError, match="belongs to uid 65534"):
        KeySet.from_directory(key_directory)
