"""OpenSSF Model Signing v1.0 with a plain key: bytes in, proof out; no disk, no clock, no network.

A signature is three layers: a Sigstore bundle v0.3 (JSON, names the key) around a DSSE envelope (holds the ECDSA
signature) around an in-toto statement (lists the SHA-256 of every file). `sign` writes one, `verify` returns the
`Statement` if a trusted key signed it. PyPI's `model-signing` accepts what `sign` writes, and `verify` accepts what its
version 1.1.1 writes with an EC P-256 key.

The reader is stricter than the format: whatever it does not understand, it refuses, because a field that one verifier
ignores and another obeys is how a signature comes to mean two things. The envelope's signature is checked before the
statement is parsed.

What this does NOT protect against: it says nothing about files. Comparing the digests with what is on the disk,
refusing files that the statement does not list, and binding the name are `appliance.models.package`'s work (the format
binds neither name nor version: the subject's name is advice). A signature has no date and cannot be revoked.

Source: https://github.com/ossf/model-signing-spec v1.0; Sigstore bundle v0.3 (sigstore/protobuf-specs); DSSE v1.0.2
protocol.md; in-toto Attestation Framework, Statement v1.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Literal

import msgspec

from appliance.errors import MalformedSignature
from appliance.trust import dsse
from appliance.trust.dsse import Hex256, Strict
from appliance.trust.keys import KeySet, PrivateKey

MAX_BUNDLE_BYTES = dsse.MAX_BYTES
SIGNATURE_FILE = "model.sig"

_BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PREDICATE_TYPE = "https://model_signing/signature/v1.0"

# What model-signing skips by default. None of it is skipped here: these paths are hidden, and hidden files are refused.
_MAY_BE_IGNORED = frozenset({SIGNATURE_FILE, ".git", ".gitattributes", ".github", ".gitignore"})
_MAX_PATH = 255
# ASCII only: two names that look alike, or that a file system folds into one, cannot both be listed.
_COMPONENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*")
_MAX_MODEL_NAME = 255

_READER = dsse.Reader(
    "signature",
    hint="sign the package again with `skerry model sign`",
    key_hint="put the signer's public key into the key directory if you trust it",
)


@dataclass(frozen=True)
class Statement:
    """What a trusted key has signed. Only `verify` makes one.

    Attributes:
        key_id: the key that signed.
        name: what the signer called the model (its folder's name); advice, not proof.
        digests: path to SHA-256 (64 hexadecimal digits) of every file, in the order of the statement.
        root_digest: SHA-256 of all digests in that order; names this exact content in one line.
    """

    key_id: str
    name: str
    digests: Mapping[str, str]
    root_digest: str


def sign(digests: Mapping[str, str], name: str, key: PrivateKey) -> bytes:
    """Sign a list of files.

    Args:
        digests: path relative to the package to SHA-256 in lower-case hexadecimal; not the signature file itself.
        name: of the model, for people.
        key: the signer's.
    Returns:
        The bundle as JSON, the content of `model.sig`.
    Raises:
        ValueError: a path or digest that `verify` would refuse.
    """
    payload = make_statement(digests, name)
    bundle = {
        "mediaType": _BUNDLE_TYPE,
        "verificationMaterial": {"publicKey": {"hint": key.public().key_id}, "tlogEntries": []},
        "dsseEnvelope": dsse.seal(payload, key),
    }
    return json.dumps(bundle, separators=(",", ":")).encode("ascii")


def make_statement(digests: Mapping[str, str], name: str) -> bytes:
    """Write the in-toto statement that `sign` signs: the same files and name always give the same bytes.

    Args:
        digests: path to SHA-256, as for `sign`.
        name: of the model.
    Raises:
        ValueError: a path, digest or name that `verify` would refuse.
    """
    paths = sorted(digests, key=_sort_key)
    statement = {
        "_type": dsse.STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": _root_digest([digests[path] for path in paths])}}],
        "predicateType": _PREDICATE_TYPE,
        "predicate": {
            # Only the signature: another verifier need not skip anything else to agree with us.
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [SIGNATURE_FILE],
            },
            "resources": [{"name": path, "algorithm": "sha256", "digest": digests[path]} for path in paths],
        },
    }
    payload = json.dumps(statement, indent=2).encode("ascii")
    try:
        _read_statement(payload, key_id="")  # what we sign, we must accept
    except MalformedSignature as e:
        raise ValueError(e.message) from e
    return payload


def verify(bundle: bytes, keys: KeySet) -> Statement:
    """Return what was signed, if a trusted key signed it.

    Args:
        bundle: the content of `model.sig`.
        keys: the trusted keys.
    Raises:
        MalformedSignature: not the one form of bundle and statement that is understood.
        UnknownKey: the key that it names is not trusted.
        BadSignature: the key that it names did not sign it.
    """
    read = _READER.parse(bundle, _Bundle, "bundle")
    hint = read.verification_material.public_key.hint
    payload, key = _READER.open(read.dsse_envelope, hint, keys)
    return _read_statement(payload, key.key_id)


# --- the layers -------------------------------------------------------------------------------------------------------


class _PublicKeyHint(Strict, frozen=True, kw_only=True):
    hint: Hex256


class _VerificationMaterial(Strict, frozen=True, kw_only=True, rename="camel"):
    public_key: _PublicKeyHint
    # A transparency log cannot be checked behind an air gap, so an entry is not understood rather than ignored.
    tlog_entries: Annotated[list[Any], msgspec.Meta(max_length=0)] = msgspec.field(default_factory=list)


class _Bundle(Strict, frozen=True, kw_only=True, rename="camel"):
    media_type: Literal["application/vnd.dev.sigstore.bundle.v0.3+json"]
    verification_material: _VerificationMaterial
    dsse_envelope: dsse.Envelope


class _Digest(Strict, frozen=True, kw_only=True):
    sha256: Hex256


class _Subject(Strict, frozen=True, kw_only=True):
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=_MAX_MODEL_NAME)]
    digest: _Digest


class _Resource(Strict, frozen=True, kw_only=True):
    name: str
    algorithm: Literal["sha256"]
    digest: Hex256


class _Serialization(Strict, frozen=True, kw_only=True):
    method: Literal["files"]
    hash_type: Literal["sha256"]
    allow_symlinks: bool
    ignore_paths: list[str] = msgspec.field(default_factory=list)


class _Predicate(Strict, frozen=True, kw_only=True):
    serialization: _Serialization
    resources: Annotated[list[_Resource], msgspec.Meta(min_length=1)]


class _InToto(Strict, frozen=True, kw_only=True, rename={"type_": "_type", "predicate_type": "predicateType"}):
    type_: Literal["https://in-toto.io/Statement/v1"]
    subject: Annotated[list[_Subject], msgspec.Meta(min_length=1, max_length=1)]
    predicate_type: Literal["https://model_signing/signature/v1.0"]
    predicate: _Predicate


def _read_statement(payload: bytes, key_id: str) -> Statement:
    """Parse and check the signed statement.

    Raises:
        MalformedSignature: see `verify`.
    """
    statement = _READER.parse(payload, _InToto, "statement")
    serialization, resources = statement.predicate.serialization, statement.predicate.resources
    if serialization.allow_symlinks:
        raise _malformed("allow_symlinks is true, expected false")
    if hidden := sorted(set(serialization.ignore_paths) - _MAY_BE_IGNORED):
        raise _malformed(f"it leaves {_shown(hidden[0])} out of the check, expected every file to be checked")
    subject = statement.subject[0]
    if not subject.name.isprintable():
        raise _malformed(f"model name {_shown(subject.name)}, expected printable text")
    paths = [resource.name for resource in resources]
    for path in paths:
        _check_path(path)
    if len(set(paths)) != len(paths):
        raise _malformed("a file that is listed twice")
    if paths != sorted(paths, key=_sort_key):
        raise _malformed("files that are not in order, expected them sorted by path")
    if subject.digest.sha256 != _root_digest([resource.digest for resource in resources]):
        raise _malformed("a subject digest that is not the digest of the listed files")
    digests = {resource.name: resource.digest for resource in resources}
    return Statement(key_id, subject.name, MappingProxyType(digests), subject.digest.sha256)


def _check_path(path: str) -> None:
    """Refuse a path that is absolute, leaves the package, is hidden, or has a second spelling."""
    if len(path) > _MAX_PATH or not all(_COMPONENT.fullmatch(part) for part in path.split("/")):
        raise _malformed(f"path {_shown(path)}, expected plain names below the package, none hidden")
    if path == SIGNATURE_FILE:
        raise _malformed(f"{SIGNATURE_FILE} in the list of files; a signature cannot cover itself")


def _sort_key(path: str) -> list[str]:
    # model-signing sorts pathlib paths, which compare folder by folder; plain text order differs ("a-b" and "a/b").
    return path.split("/")


def _root_digest(digests: list[str]) -> str:
    try:
        return hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in digests)).hexdigest()
    except ValueError as e:
        raise ValueError("a digest that is not hexadecimal") from e


def _shown(text: str) -> str:
    """Quote foreign text for an error: short, and without control characters that a terminal would obey."""
    return ascii(text if len(text) <= 80 else text[:80] + "...")


def _malformed(found: str) -> MalformedSignature:
    return _READER.malformed(found)
