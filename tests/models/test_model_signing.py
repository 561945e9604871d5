"""Both directions with PyPI's model-signing, the reference implementation: its command and its API."""

import subprocess
import sys
from pathlib import Path

import pytest

from appliance.errors import DigestMismatch, UnlistedFile, UnsafeFile
from appliance.models.package import open_verified, sign_package
from appliance.trust import oms
from appliance.trust.keys import KeySet, PrivateKey, generate
from tests.fakes.package import make_tiny_package, write

model_signing = pytest.importorskip("model_signing", reason="not run: model-signing is not installed")


@pytest.fixture(scope="module")
def key() -> PrivateKey:
    return generate()


@pytest.fixture
def key_files(tmp_path: Path, key: PrivateKey) -> tuple[Path, Path]:
    """The private and the public key as files that we wrote."""
    private, public = tmp_path / "station.key", tmp_path / "station.pub"
    key.save(private)
    key.public().save(public)
    return private, public


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package without a signature."""
    return make_tiny_package(tmp_path)


def command(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "model_signing", *map(str, arguments)], capture_output=True, text=True, cwd=cwd
    )


def command_verify(package: Path, public: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return command("verify", "key", package, "--signature", package / "model.sig", "--public_key", public, *options)


def api_verify(package: Path, public: Path) -> None:
    from model_signing import verifying

    verifying.Config().use_elliptic_key_verifier(public_key=public).verify(package, package / "model.sig")


def api_sign(package: Path, private: Path, **serialization: object) -> None:
    from model_signing import hashing, signing

    config = hashing.Config().use_file_serialization(**serialization)
    config.set_ignored_paths(paths=["model.sig"])
    signer = signing.Config().use_elliptic_key_signer(private_key=private).set_hashing_config(config)
    signer.sign(package, package / "model.sig")


# --- ours, read by them -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--no-ignore-git-paths",)])
def test_their_command_accepts_our_signature(
    package: Path, key: PrivateKey, key_files: tuple[Path, Path], options: tuple[str, ...]
) -> None:
    """`model_signing verify key` says yes to a package that we signed, with our public key file."""
    sign_package(package, key)
    done = command_verify(package, key_files[1], *options)
    assert (done.returncode, done.stdout) == (0, "Verification succeeded\n"), done.stderr


def test_their_api_accepts_our_signature(package: Path, key: PrivateKey, key_files: tuple[Path, Path]) -> None:
    """`model_signing.verifying` accepts it, too, and sees a changed byte."""
    sign_package(package, key)
    api_verify(package, key_files[1])
    write(package / "tokenizer.json", b"{}")
    with pytest.raises(ValueError, match=r"Hash mismatch for 'tokenizer\.json'"):
        api_verify(package, key_files[1])


def test_their_command_refuses_what_is_not_ours(package: Path, key: PrivateKey, key_files: tuple[Path, Path]) -> None:
    """The agreement is not empty: with another key, or one more file, their command says no."""
    sign_package(package, key)
    other = key_files[1].with_name("other.pub")
    generate().public().save(other)
    assert command_verify(package, other).returncode == 1
    write(package / "extra", b"x")
    done = command_verify(package, key_files[1])
    assert done.returncode == 1
    assert "Extra files" in done.stderr


# --- theirs, read by us -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("relative", [False, True], ids=["by path", "from inside"])
def test_we_accept_their_commands_signature(
    package: Path, key: PrivateKey, key_files: tuple[Path, Path], relative: bool
) -> None:
    """A package signed by `model_signing sign key` opens, whichever way its path was given."""
    where = Path() if relative else package
    arguments = ("sign", "key", where, "--private_key", key_files[0], "--signature", where / "model.sig")
    done = command(*arguments, cwd=package if relative else None)
    assert done.returncode == 0, done.stderr
    (package / "model.sig").chmod(0o644)
    with open_verified(package, KeySet.of(key.public())) as verified:
        assert verified.name == "tiny"
        theirs = verified.root_digest
    # Both name the same content by the same root digest.
    sign_package(package, key)
    with open_verified(package, KeySet.of(key.public())) as verified:
        assert verified.root_digest == theirs


def test_we_accept_their_apis_signature(package: Path, key: PrivateKey, key_files: tuple[Path, Path]) -> None:
    """A package signed through `model_signing.signing` opens; a byte changed afterwards is found."""
    api_sign(package, key_files[0])
    (package / "model.sig").chmod(0o644)
    open_verified(package, KeySet.of(key.public())).close()
    write(package / "tokenizer.json", b"{}")
    with pytest.raises(DigestMismatch):
        open_verified(package, KeySet.of(key.public()))


def test_we_accept_their_key(package: Path, tmp_path: Path) -> None:
    """A key pair in their other form ("EC PRIVATE KEY") works in our hands, and its hint is our key id."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    theirs = ec.generate_private_key(ec.SECP256R1())
    path = tmp_path / "theirs.pem"
    path.write_bytes(
        theirs.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
    )
    path.chmod(0o600)
    api_sign(package, path)
    statement = oms.verify((package / "model.sig").read_bytes(), KeySet.of(PrivateKey.load(path).public()))
    assert statement.key_id == PrivateKey.load(path).public().key_id


# --- where we are stricter on purpose ---------------------------------------------------------------------------------


def test_what_they_ignore_we_refuse(package: Path, key: PrivateKey, key_files: tuple[Path, Path]) -> None:
    """Their verifier passes over `.git/x.py` and empty folders; ours does not."""
    sign_package(package, key)
    (package / "empty").mkdir()
    assert command_verify(package, key_files[1]).returncode == 0
    with pytest.raises(UnsafeFile, match="a folder"):
        open_verified(package, KeySet.of(key.public()))
    (package / "empty").rmdir()
    (package / ".git").mkdir()
    write(package / ".git" / "x.py", b"print('not signed')")
    assert command_verify(package, key_files[1]).returncode == 0
    with pytest.raises(UnsafeFile, match="hidden"):
        open_verified(package, KeySet.of(key.public()))


def test_file_that_their_signer_left_out_is_refused(
    package: Path, key: PrivateKey, key_files: tuple[Path, Path]
) -> None:
    """A signature made with `--ignore-paths` does not smuggle the ignored file in."""
    write(package / "extra.py", b"x")
    options = ("--ignore-paths", package / "extra.py")
    signature = ("--private_key", key_files[0], "--signature", package / "model.sig")
    assert command("sign", "key", package, *signature, *options).returncode == 0
    (package / "model.sig").chmod(0o644)
    assert command_verify(package, key_files[1]).returncode == 0
    with pytest.raises((UnlistedFile, oms.MalformedSignature), match=r"extra\.py"):
        open_verified(package, KeySet.of(key.public()))


@pytest.mark.parametrize("serialization", [{"hashing_algorithm": "blake3"}, {"allow_symlinks": True}])
def test_their_other_serializations_are_refused(
    package: Path, key: PrivateKey, key_files: tuple[Path, Path], serialization: dict[str, object]
) -> None:
    """Only SHA-256 of whole files; links are never allowed, not even by the signer."""
    from model_signing import hashing, signing

    config = hashing.Config().use_file_serialization(**serialization)
    config.set_allow_symlinks(bool(serialization.get("allow_symlinks"))).set_ignored_paths(paths=["model.sig"])
    signer = signing.Config().use_elliptic_key_signer(private_key=key_files[0]).set_hashing_config(config)
    signer.sign(package, package / "model.sig")
    with pytest.raises(oms.MalformedSignature):
        oms.verify((package / "model.sig").read_bytes(), KeySet.of(key.public()))


def test_their_shards_are_refused(package: Path, key: PrivateKey, key_files: tuple[Path, Path]) -> None:
    """Shards are another statement: not understood, so refused."""
    from model_signing import hashing, signing

    config = hashing.Config().use_shard_serialization().set_ignored_paths(paths=["model.sig"])
    signer = signing.Config().use_elliptic_key_signer(private_key=key_files[0]).set_hashing_config(config)
    signer.sign(package, package / "model.sig")
    with pytest.raises(oms.MalformedSignature, match="another kind"):
        oms.verify((package / "model.sig").read_bytes(), KeySet.of(key.public()))
