"""The signed form of a receipt: what is accepted, and what is not."""

import base64
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance.errors import BadSignature, MalformedSignature, UnknownKey
from appliance.receipt import statement
from appliance.receipt.statement import Box, Packages, Predicate, Software, State, System
from appliance.trust import dsse
from appliance.trust.keys import KeySet, PrivateKey, generate

KEY = generate()
KEYS = KeySet.of(KEY.public())
WHEELS = Packages(count=1, sha256="a" * 64)
STATE = State(
    box=Box(hostname="box-07", id="0" * 32),
    software=Software(skerry="0.1.0", kit_manifest="b" * 64, wheels=WHEELS),
    system=System(debian="12.11", kernel="6.1.0", systemd="252", debs=None),
    files={"/etc/skerry/config.yaml": "c" * 64},
    models=(),
    exposure={"skerry-inferenced.service": 0.2},
    scans=(),
)
PREDICATE = Predicate(serial=1, time="2026-11-22T18:00:00Z", clock="plausible", previous=None, state=STATE)


def test_what_was_signed_comes_back() -> None:
    """The predicate, with the key that signed it."""
    found = statement.verify(statement.seal(PREDICATE, KEY), KEYS)
    assert (found.predicate, found.key_id) == (PREDICATE, KEY.public().key_id)


def test_statement_is_one_of_in_toto() -> None:
    """Type, subject and predicate stand where in-toto's Statement v1 has them; the subject is the state's digest."""
    envelope = json.loads(statement.seal(PREDICATE, KEY))
    assert set(envelope) == {"payload", "payloadType", "signatures"}
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    said = json.loads(base64.b64decode(envelope["payload"]))
    assert set(said) == {"_type", "subject", "predicateType", "predicate"}
    assert said["_type"] == "https://in-toto.io/Statement/v1"
    assert said["subject"] == [{"name": "box-07", "digest": {"sha256": STATE.digest()}}]


def test_digest_of_a_state_knows_no_order() -> None:
    """Equal states have equal digests, in whatever order their parts were found; different ones have not."""
    files = {f"/{i}": "c" * 64 for i in range(9)}
    one = msgspec.structs.replace(STATE, files=files)
    other = msgspec.structs.replace(STATE, files=dict(reversed(files.items())))
    assert one.digest() == other.digest() != STATE.digest()


def test_another_key_is_refused() -> None:
    """By its id if it is not trusted; by the signature if it only claims to be the trusted one."""
    other = generate()
    with pytest.raises(UnknownKey, match=r"box\.pub|receipt"):
        statement.verify(statement.seal(PREDICATE, other), KEYS)
    envelope = json.loads(statement.seal(PREDICATE, other))
    envelope["signatures"][0]["keyid"] = KEY.public().key_id
    with pytest.raises(BadSignature):
        statement.verify(json.dumps(envelope).encode(), KEYS)


def test_changed_statement_is_refused() -> None:
    """One character of the state, changed consistently with the subject, fails on the signature."""
    changed = msgspec.structs.replace(PREDICATE, state=msgspec.structs.replace(STATE, files={}))
    envelope = json.loads(statement.seal(PREDICATE, KEY))
    envelope["payload"] = json.loads(statement.seal(changed, KEY))["payload"]
    with pytest.raises(BadSignature):
        statement.verify(json.dumps(envelope).encode(), KEYS)


# --- payloads that a trusted key has signed, and that are refused all the same ----------------------------------------


def signed(payload: bytes, key: PrivateKey = KEY) -> bytes:
    return json.dumps(dsse.seal(payload, key, key.public().key_id)).encode()


def edited(edit: Callable[[Any], object]) -> bytes:
    """A signed statement with one thing changed; still in its canonical form."""
    said = json.loads(base64.b64decode(json.loads(statement.seal(PREDICATE, KEY))["payload"]))
    edit(said)
    return signed(json.dumps(said, sort_keys=True, separators=(",", ":")).encode())


EDITS: list[tuple[str, Callable[[Any], object]]] = [
    ("another type", lambda s: s.update(_type="https://in-toto.io/Statement/v0.1")),
    ("no type", lambda s: s.pop("_type")),
    ("another predicate", lambda s: s.update(predicateType="https://slsa.dev/provenance/v1")),
    ("unknown field", lambda s: s.update(extra=1)),
    ("unknown field in the state", lambda s: s["predicate"]["state"].update(extra=1)),
    ("two subjects", lambda s: s.update(subject=s["subject"] * 2)),
    ("no subject", lambda s: s.update(subject=[])),
    ("subject of another state", lambda s: s["subject"][0]["digest"].update(sha256="d" * 64)),
    ("subject of another box", lambda s: s["subject"][0].update(name="box-08")),
    ("state that is not the subject's", lambda s: s["predicate"]["state"].update(files={})),
    ("serial 0", lambda s: s["predicate"].update(serial=0)),
    ("serial as text", lambda s: s["predicate"].update(serial="1")),
    ("time in another form", lambda s: s["predicate"].update(time="2026-11-22 18:00")),
    ("previous that is no digest", lambda s: s["predicate"].update(previous="x")),
]


@pytest.mark.parametrize(("name", "edit"), EDITS, ids=[name for name, _ in EDITS])
def test_statement_that_is_not_understood_is_refused(name: str, edit: Callable[[Any], object]) -> None:
    """Even with a good signature; and showing it is refused as well."""
    receipt = edited(edit)
    for read in (lambda: statement.verify(receipt, KEYS), lambda: statement.peek(receipt)):
        with pytest.raises(MalformedSignature):
            read()


def test_statement_in_another_spelling_is_refused() -> None:
    """Blanks, or keys in another order: one statement has one form."""
    payload = base64.b64decode(json.loads(statement.seal(PREDICATE, KEY))["payload"])
    for spelling in (json.dumps(json.loads(payload)).encode(), payload + b"\n"):
        with pytest.raises(MalformedSignature):
            statement.verify(signed(spelling), KEYS)


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"hello", b"[]", b'{"payload":"","payloadType":"text/plain","signatures":[]}', b"\xff" * 9]
)
def test_what_is_no_envelope_is_refused(data: bytes) -> None:
    """Empty, cut off, another kind of file."""
    with pytest.raises(MalformedSignature):
        statement.verify(data, KEYS)


def test_every_cut_off_receipt_is_refused() -> None:
    """However much of the end is missing."""
    whole = statement.seal(PREDICATE, KEY)
    for length in range(0, len(whole) - 1, 37):
        with pytest.raises(MalformedSignature):
            statement.verify(whole[:length], KEYS)


def test_openssl_verifies(tmp_path: Path) -> None:
    """The signature is one of the key over DSSE's encoding, as `openssl dgst` checks it."""
    envelope = json.loads(statement.seal(PREDICATE, KEY))
    payload = base64.b64decode(envelope["payload"])
    KEY.public().save(tmp_path / "box.pub")
    (tmp_path / "sig").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    command = ["openssl", "dgst", "-sha256", "-verify", "box.pub", "-signature", "sig", "pae"]
    for said, code in ((payload, 0), (payload.replace(b"box-07", b"box-08"), 1)):
        (tmp_path / "pae").write_bytes(b"DSSEv1 28 application/vnd.in-toto+json %d %s" % (len(said), said))
        assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == code
