"""What a receipt says, and its signed form: bytes in, proof out; no disk, no clock.

`seal` signs a `Predicate`, `verify` returns it if a trusted key signed it. The form is an in-toto statement in a DSSE
envelope, so that `openssl` and other people's tools can check it. Its subject is the digest of the box's state: two
provisionings that left the same behind have the same one.

What this does NOT protect against: a receipt says what a box's own software saw. Root on the box can sign anything with
the box's key, and set the clock before.

Source: in-toto Attestation Framework, Statement v1; DSSE v1.0.2.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from appliance.errors import MalformedSignature
from appliance.trust import dsse
from appliance.trust.dsse import Hex256, Strict
from appliance.trust.keys import KeySet, PrivateKey

_READER = dsse.Reader(
    "receipt",
    hint="fetch the receipt again from its box",
    key_hint="name the box's own public key, box.pub, from a place that you trust",
)

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Percent = Annotated[float, msgspec.Meta(ge=0, le=100)]


class Box(Strict, frozen=True, kw_only=True):
    """Which machine."""

    hostname: Text
    id: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")] | None
    """Derived from the machine id, which itself stays secret; none if the machine has no id yet."""


class Packages(Strict, frozen=True, kw_only=True):
    """A list of packages, in short: SHA-256 of its sorted lines."""

    count: Count
    sha256: Hex256


class Software(Strict, frozen=True, kw_only=True):
    """Skerry itself."""

    skerry: Text
    kit_manifest: Hex256 | None
    """SHA-256 of the manifest of the kit that it came from."""
    wheels: Packages
    """Lines `name==version`, names in lower case with hyphens."""


class System(Strict, frozen=True, kw_only=True):
    """What it runs on."""

    debian: Text | None
    kernel: Text
    systemd: Text | None
    debs: Packages | None
    """Lines `name version architecture` of the packages that dpkg calls installed."""


class Model(Strict, frozen=True, kw_only=True):
    """An installed model, verified when the receipt was written."""

    name: Text
    root_digest: Hex256
    key_id: Hex256


class Scan(Strict, frozen=True, kw_only=True):
    """What somebody else's tool says of this box."""

    tool: Literal["lynis", "oscap"]
    version: Text | None
    profile: Text | None
    score: Percent
    passed: Count | None
    failed: Count | None
    report: Hex256
    """SHA-256 of the report."""


class State(Strict, frozen=True, kw_only=True):
    """What the provisioning left behind."""

    box: Box
    software: Software
    system: System
    files: dict[Text, Text]
    """Path to SHA-256; of a symbolic link, `-> ` and its target."""
    models: tuple[Model, ...]
    exposure: dict[Text, Annotated[float, msgspec.Meta(ge=0, le=10)]]
    """Unit to the overall exposure level of `systemd-analyze security`; 0 is best."""
    scans: tuple[Scan, ...]

    def digest(self) -> str:
        """SHA-256 of the state in its one canonical form; names this exact state in one line."""
        return hashlib.sha256(_canonical(self)).hexdigest()


class Predicate(Strict, frozen=True, kw_only=True):
    """The statement about a state."""

    serial: Annotated[int, msgspec.Meta(ge=1)]
    """Of this box's receipts; counts on, whatever the clock says."""
    time: Annotated[str, msgspec.Meta(pattern=r"\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\Z")]
    """What the box's clock showed."""
    clock: Text
    """What to think of that."""
    previous: Hex256 | None
    """SHA-256 of the receipt before, so that none can be taken away unseen."""
    state: State


class _Digest(Strict, frozen=True, kw_only=True):
    sha256: Hex256


class _Subject(Strict, frozen=True, kw_only=True):
    name: Text
    digest: _Digest


class _Statement(Strict, frozen=True, kw_only=True, rename={"type_": "_type", "predicate_type": "predicateType"}):
    type_: Literal["https://in-toto.io/Statement/v1"] = "https://in-toto.io/Statement/v1"
    subject: Annotated[list[_Subject], msgspec.Meta(min_length=1, max_length=1)]
    predicate_type: Literal["https://skerry/provisioning/v1"] = "https://skerry/provisioning/v1"
    predicate: Predicate


@dataclass(frozen=True)
class Receipt:
    """Proof that a trusted key signed a predicate. Only `verify` makes one.

    Attributes:
        key_id: the key that signed.
        predicate: what it signed.
    """

    key_id: str
    predicate: Predicate


def seal(predicate: Predicate, key: PrivateKey) -> bytes:
    """Sign; returns the receipt's file."""
    state = predicate.state
    statement = _Statement(
        subject=[_Subject(name=state.box.hostname, digest=_Digest(sha256=state.digest()))],
        predicate=predicate,
    )
    payload = _canonical(statement)
    _read(payload)  # what we sign, we must accept
    return json.dumps(dsse.seal(payload, key, key.public().key_id)).encode("ascii") + b"\n"


def verify(receipt: bytes, keys: KeySet) -> Receipt:
    """Return what was signed, if a trusted key signed it.

    Raises:
        MalformedSignature: not the one form that is understood.
        UnknownKey: the key that it names is not among them.
        BadSignature: the key that it names did not sign it.
    """
    envelope = _envelope(receipt)
    payload, key = _READER.open(envelope, envelope.signatures[0].keyid if envelope.signatures else "", keys)
    return Receipt(key.key_id, _read(payload))


def peek(receipt: bytes) -> Receipt:
    """Read without checking who signed: for showing it, never for deciding.

    Raises:
        MalformedSignature: as `verify`.
    """
    envelope = _envelope(receipt)
    named = envelope.signatures[0].keyid if envelope.signatures else ""
    return Receipt(named, _read(_READER.decode_base64(envelope.payload)))


def _envelope(receipt: bytes) -> dsse.Envelope:
    return _READER.parse(receipt, dsse.Envelope, "envelope")


def _read(payload: bytes) -> Predicate:
    statement = _READER.parse(payload, _Statement, "statement")
    if payload != _canonical(statement):
        raise _malformed("a statement that is not in its canonical form")
    state = statement.predicate.state
    if statement.subject[0].digest.sha256 != state.digest() or statement.subject[0].name != state.box.hostname:
        raise _malformed("a subject that is not this box's state")
    return statement.predicate


def _canonical(value: Strict) -> bytes:
    """ASCII, keys sorted, no blanks: the same value always gives the same bytes."""
    plain = msgspec.to_builtins(value)
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def _malformed(found: str) -> MalformedSignature:
    return _READER.malformed(found)
