"""Signed statements: a DSSE envelope around an in-toto statement, read strictly. No disk, no clock, no network.

Two formats share this: a model's signature (`appliance.trust.oms`) and the receipt of a provisioning
(`appliance.receipt.statement`). The signature covers the pre-authentication encoding (`pae`), which binds the payload's
type and length, and is checked before anybody parses the payload.

A `Reader` is stricter than the formats: whatever it does not understand, it refuses, because a field that one verifier
ignores and another obeys is how a signature comes to mean two things.

What this does NOT protect against: a signature has no date and cannot be revoked; which keys are trusted is the
caller's choice.

Source: DSSE v1.0.2 protocol.md and envelope.md; in-toto Attestation Framework, Statement v1.
"""

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from appliance import typed
from appliance.errors import MalformedSignature, UnknownKey
from appliance.trust.keys import KeySet, PrivateKey, PublicKey

MAX_BYTES = 1 << 20
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"

T = TypeVar("T")

Hex256 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Every field known, none twice, nothing converted."""


class Signature(Strict, frozen=True, kw_only=True):
    """One signature of an envelope."""

    sig: str
    keyid: str = ""


class Envelope(Strict, frozen=True, kw_only=True, rename="camel"):
    """DSSE's envelope, for in-toto statements only."""

    payload: str
    payload_type: Literal["application/vnd.in-toto+json"]
    signatures: list[Signature]


def pae(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding, which is what a key signs: the type and both lengths, then the payload."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode("ascii"), len(payload), payload)


def seal(payload: bytes, key: PrivateKey, keyid: str = "") -> dict[str, Any]:
    """Sign a statement; the envelope as plain values, ready for JSON.

    Args:
        payload: the statement's exact bytes.
        key: the signer's.
        keyid: advice on which key it was; not signed.
    """
    return {
        "payload": base64.b64encode(payload).decode("ascii"),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"sig": base64.b64encode(key.sign(pae(payload))).decode("ascii"), "keyid": keyid}],
    }


@dataclass(frozen=True)
class Reader:
    """Reads one kind of signed document.

    Attributes:
        what: the document's name, for errors.
        hint: the next step where it is malformed.
        key_hint: the next step where its key is not trusted.
    """

    what: str
    hint: str
    key_hint: str

    def open(self, envelope: Envelope, keyid: str, keys: KeySet) -> tuple[bytes, PublicKey]:
        """Return the payload, if the key of this id is trusted and signed it.

        Args:
            envelope: with exactly one signature.
            keyid: of the key, from wherever the format names it.
            keys: the trusted keys.
        Raises:
            MalformedSignature: several signatures, or two names for the key, or text that is not base64.
            UnknownKey: the key is not trusted.
            BadSignature: it did not sign this.
        """
        if len(envelope.signatures) != 1:
            raise self.malformed(f"{len(envelope.signatures)} signatures, expected exactly one")
        signature = envelope.signatures[0]
        # The id inside the envelope is as unsigned as any other; if both are there, they must agree.
        if signature.keyid not in ("", keyid):
            raise self.malformed("two key ids that differ")
        key = keys.get(keyid)
        if key is None:
            raise UnknownKey(
                f"cannot trust {self.what}: it was made with key {keyid[:16]}, "
                f"expected one of {len(keys)} trusted keys",
                hint=self.key_hint,
            )
        payload = self.decode_base64(envelope.payload)
        key.verify(pae(payload), self.decode_base64(signature.sig))
        return payload, key

    def parse(self, data: bytes, to: type[T], part: str) -> T:
        """Read strict JSON into a type.

        Raises:
            MalformedSignature: too large, not JSON in UTF-8, a key twice, or a value of another kind.
        """
        if len(data) > MAX_BYTES:
            raise self.malformed(f"a {part} of {len(data)} bytes, expected at most {MAX_BYTES}")
        try:
            # Decoded here: json.loads would guess UTF-16 and UTF-32 as well.
            value = json.loads(data.decode("utf-8"), object_pairs_hook=_no_key_twice, parse_constant=_no_constant)
        except (ValueError, RecursionError) as e:
            # An over-deep document is a RecursionError; its text would say nothing to an operator.
            reason = "nested too deeply" if isinstance(e, RecursionError) else str(e)
            raise self.malformed(f"a {part} that is not strict JSON ({reason[:200]})") from e
        try:
            return typed.convert(value, to)
        except msgspec.ValidationError as e:
            raise self.malformed(f"a {part} of another kind ({str(e)[:200]})") from e

    def decode_base64(self, text: str) -> bytes:
        """Decode base64 in its one canonical form.

        Raises:
            MalformedSignature: it is not.
        """
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as e:
            raise self.malformed("text that is not base64") from e
        # One spelling only: unused bits in the last character would let two files hold the same signature.
        if base64.b64encode(data).decode("ascii") != text:
            raise self.malformed("base64 that is not in its canonical form")
        return data

    def malformed(self, found: str) -> MalformedSignature:
        """Make the error for what cannot be understood."""
        return MalformedSignature(f"cannot use {self.what}: found {found}", hint=self.hint)


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a key twice in one object")
    return dict(pairs)


def _no_constant(name: str) -> Any:
    raise ValueError(f"the constant {name}")
