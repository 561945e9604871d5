"""OpenSSF Model Signing: what is accepted, and the table of what is not."""

import base64
import contextlib
import copy
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import BadSignature, MalformedSignature, UnknownKey, VerificationFailed
from appliance.trust import oms
from appliance.trust.keys import KeySet, PrivateKey, generate

KEY = generate()
KEYS = KeySet.of(KEY.public())
DIGESTS = {"card.yaml": "a" * 64, "model.onnx": "b" * 64, "d/model-2": "c" * 64, "d-x": "d" * 64}


def root(digests: list[str]) -> str:
    """The root digest, by the format's own words: SHA-256 over the digests in their order."""
    return hashlib.sha256(b"".join(bytes.fromhex(d) for d in digests)).hexdigest()


def statement_of(bundle: bytes) -> dict[str, Any]:
    """The decoded statement inside a bundle."""
    value: dict[str, Any] = json.loads(base64.b64decode(json.loads(bundle)["dsseEnvelope"]["payload"]))
    return value


def signed(payload: bytes, key: PrivateKey = KEY) -> bytes:
    """A bundle with a valid signature over any payload at all."""
    pae = b"DSSEv1 28 application/vnd.in-toto+json %d %s" % (len(payload), payload)
    bundle = json.loads(oms.sign(DIGESTS, "tiny", key))
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(key.sign(pae)).decode()
    return json.dumps(bundle).encode()


def test_signed_statement_verifies() -> None:
    """What was signed comes back, with the key, the name and the root digest."""
    statement = oms.verify(oms.sign(DIGESTS, "tiny", KEY), KEYS)
    assert statement.key_id == KEY.public().key_id
    assert statement.name == "tiny"
    assert dict(statement.digests) == DIGESTS
    # Folder by folder, as pathlib sorts: "d/model-2" stands before "d-x", plain text has them the other way round.
    assert list(statement.digests) == ["card.yaml", "d/model-2", "d-x", "model.onnx"]
    assert statement.root_digest == root(["a" * 64, "c" * 64, "d" * 64, "b" * 64])


def test_statement_is_deterministic() -> None:
    """The same files give the same bytes, in whatever order they come."""
    assert oms.make_statement(DIGESTS, "tiny") == oms.make_statement(dict(reversed(DIGESTS.items())), "tiny")


def test_unknown_key_is_refused_and_named() -> None:
    """A signature by a key that is not trusted is refused, and so is every one when no key is trusted."""
    other = generate()
    for keys in (KeySet.of(other.public()), KeySet.of()):
        with pytest.raises(UnknownKey, match=KEY.public().key_id[:16]):
            oms.verify(oms.sign(DIGESTS, "tiny", KEY), keys)


def test_signature_under_another_trusted_keys_name_is_refused() -> None:
    """The hint chooses the key; a signature by another one, though it is trusted too, does not pass."""
    other = generate()
    bundle = json.loads(oms.sign(DIGESTS, "tiny", KEY))
    bundle["verificationMaterial"]["publicKey"]["hint"] = other.public().key_id
    with pytest.raises(BadSignature):
        oms.verify(json.dumps(bundle).encode(), KeySet.of(KEY.public(), other.public()))


def test_changed_statement_is_refused() -> None:
    """A digest that is changed after signing, consistently, fails on the signature and is not parsed."""
    statement = statement_of(oms.sign(DIGESTS, "tiny", KEY))
    statement["predicate"]["resources"][0]["digest"] = "e" * 64
    bundle = json.loads(oms.sign(DIGESTS, "tiny", KEY))
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    with pytest.raises(BadSignature):
        oms.verify(json.dumps(bundle).encode(), KEYS)


def test_signature_of_the_bare_payload_is_refused() -> None:
    """The signature covers DSSE's encoding with the payload's type, so a signature of other data cannot be reused."""
    payload = oms.make_statement(DIGESTS, "tiny")
    bundle = json.loads(oms.sign(DIGESTS, "tiny", KEY))
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(KEY.sign(payload)).decode()
    with pytest.raises(BadSignature):
        oms.verify(json.dumps(bundle).encode(), KEYS)


# --- the bundle and the envelope: nothing that is not understood ------------------------------------------------------

Edit = Callable[[dict[str, Any]], object]


def two_signatures(b: dict[str, Any]) -> None:
    b["dsseEnvelope"]["signatures"] *= 2


def set_in(*path: str | int, to: object) -> Edit:
    """An edit that sets one place of a nested value."""

    def edit(value: Any) -> None:
        for step in path[:-1]:
            value = value[step]
        value[path[-1]] = to

    return edit


def drop(*path: str | int) -> Edit:
    """An edit that removes one place of a nested value."""

    def edit(value: Any) -> None:
        for step in path[:-1]:
            value = value[step]
        del value[path[-1]]

    return edit


E_ = "dsseEnvelope"
V_ = "verificationMaterial"
BUNDLE_EDITS: list[tuple[str, Edit]] = [
    ("older media type", set_in("mediaType", to="application/vnd.dev.sigstore.bundle+json;version=0.2")),
    ("no media type", drop("mediaType")),
    ("message signature beside", set_in("messageSignature", to={})),
    ("unknown field", set_in("extra", to=1)),
    ("no key hint", set_in(V_, "publicKey", to={})),
    ("empty key hint", set_in(V_, "publicKey", "hint", to="")),
    ("key hint in capitals", set_in(V_, "publicKey", "hint", to=KEY.public().key_id.upper())),
    ("key hint with line feed", set_in(V_, "publicKey", "hint", to=KEY.public().key_id + "\n")),
    ("raw key in the bundle", set_in(V_, "publicKey", "rawBytes", to="AA==")),
    ("certificate", set_in(V_, "certificate", to={"rawBytes": "AA=="})),
    ("transparency log entry", set_in(V_, "tlogEntries", to=[{}])),
    ("time stamps", set_in(V_, "timestampVerificationData", to={})),
    ("other payload type", set_in(E_, "payloadType", to="application/json")),
    ("two signatures", two_signatures),
    ("no signature", set_in(E_, "signatures", to=[])),
    ("contradicting key id", set_in(E_, "signatures", 0, "keyid", to="0" * 64)),
    ("certificate at the signature", set_in(E_, "signatures", 0, "cert", to="x")),
    ("signature not base64", set_in(E_, "signatures", 0, "sig", to="%%%%")),
    ("signature a number", set_in(E_, "signatures", 0, "sig", to=1)),
    ("payload missing", drop(E_, "payload")),
    ("payload null", set_in(E_, "payload", to=None)),
]


@pytest.mark.parametrize("edit", [row[1] for row in BUNDLE_EDITS], ids=[row[0] for row in BUNDLE_EDITS])
def test_other_bundles_are_refused(edit: Edit) -> None:
    """A bundle with one thing more, less or otherwise is malformed; none is read leniently."""
    bundle = json.loads(oms.sign(DIGESTS, "tiny", KEY))
    edit(bundle)
    with pytest.raises(MalformedSignature):
        oms.verify(json.dumps(bundle).encode(), KEYS)


def test_fields_that_other_signers_leave_out_may_be_absent() -> None:
    """An empty log list and an empty key id mean the same as none; a key id that agrees is fine, too."""
    bundle = json.loads(oms.sign(DIGESTS, "tiny", KEY))
    del bundle[V_]["tlogEntries"], bundle[E_]["signatures"][0]["keyid"]
    assert oms.verify(json.dumps(bundle).encode(), KEYS).name == "tiny"
    bundle[E_]["signatures"][0]["keyid"] = KEY.public().key_id
    assert oms.verify(json.dumps(bundle).encode(), KEYS).name == "tiny"


RAW_BUNDLES: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("empty", lambda b: b""),
    ("not JSON", lambda b: b[:-1]),
    ("not UTF-8", lambda b: b.replace(b"keyid", b"key\xff")),
    ("UTF-16", lambda b: b.decode().encode("utf-16")),
    ("byte order mark", lambda b: b"\xef\xbb\xbf" + b),
    ("a key twice", lambda b: b.replace(b'{"mediaType"', b'{"mediaType":"x","mediaType"')),
    ("an inner key twice", lambda b: b.replace(b'{"hint"', b'{"hint":"x","hint"')),
    ("NaN", lambda b: b.replace(b'"tlogEntries":[]', b'"tlogEntries":NaN')),
    ("a list", lambda b: b"[" + b + b"]"),
    ("two documents", lambda b: b + b),
    ("nested deeply", lambda b: b"[" * 100_000),
    ("huge number", lambda b: b.replace(b'"tlogEntries":[]', b'"tlogEntries":' + b"9" * 5000)),
    ("too large", lambda b: b + b" " * (1 << 20)),
    ("non-canonical base64", lambda b: spoil_padding(b)),
    ("base64 with line feeds", lambda b: b.replace(b'"payload":"', b'"payload":"\\n')),
]


def spoil_padding(bundle: bytes) -> bytes:
    """Set unused bits in the last character of the payload: it decodes to the same bytes."""
    value = json.loads(bundle)
    payload = base64.b64decode(value[E_]["payload"])
    while len(payload) % 3 != 1:  # one byte over: two characters and four unused bits
        payload += b" "
    text = json.loads(signed(payload))[E_]["payload"]
    assert text.endswith("==")
    spoiled = text[:-3] + chr(ord(text[-3]) + 1) + "=="
    assert base64.b64decode(spoiled) == payload
    out = json.loads(signed(payload))
    out[E_]["payload"] = spoiled
    return json.dumps(out).encode()


@pytest.mark.parametrize("edit", [row[1] for row in RAW_BUNDLES], ids=[row[0] for row in RAW_BUNDLES])
def test_ambiguous_encodings_are_refused(edit: Callable[[bytes], bytes]) -> None:
    """There is one way to write a bundle down; what two parsers could read differently is malformed."""
    with pytest.raises(MalformedSignature):
        oms.verify(edit(oms.sign(DIGESTS, "tiny", KEY)), KEYS)


# --- the statement: correctly signed, and refused all the same --------------------------------------------------------

P_ = "predicate"


def resources(*names: str, rehash: bool = True) -> Edit:
    """An edit that lists these files instead, with a consistent subject digest."""

    def edit(s: dict[str, Any]) -> None:
        s[P_]["resources"] = [{"name": n, "algorithm": "sha256", "digest": "a" * 64} for n in names]
        if rehash:
            s["subject"][0]["digest"]["sha256"] = root(["a" * 64] * len(names))

    return edit


def two_subjects(s: dict[str, Any]) -> None:
    s["subject"] *= 2


STATEMENT_EDITS: list[tuple[str, Edit]] = [
    ("other statement type", set_in("_type", to="https://in-toto.io/Statement/v0.1")),
    ("other predicate", set_in("predicateType", to="https://model_signing/Digests/v0.1")),
    ("unknown field", set_in("extra", to=1)),
    ("unknown field in the predicate", set_in(P_, "policy", to="allow")),
    ("two subjects", two_subjects),
    ("no subject", set_in("subject", to=[])),
    ("second subject digest", set_in("subject", 0, "digest", "sha512", to="a" * 128)),
    ("wrong subject digest", set_in("subject", 0, "digest", "sha256", to="a" * 64)),
    ("empty model name", set_in("subject", 0, "name", to="")),
    ("model name with an escape sequence", set_in("subject", 0, "name", to="\x1b[2J")),
    ("model name with a lone surrogate", set_in("subject", 0, "name", to="\ud800")),
    ("symbolic links allowed", set_in(P_, "serialization", "allow_symlinks", to=True)),
    ("symbolic links not a bool", set_in(P_, "serialization", "allow_symlinks", to="false")),
    ("symbolic links not said", drop(P_, "serialization", "allow_symlinks")),
    ("shards", set_in(P_, "serialization", "method", to="shards")),
    ("blake3", set_in(P_, "serialization", "hash_type", to="blake3")),
    ("shard size", set_in(P_, "serialization", "shard_size", to=1)),
    ("ignores another file", set_in(P_, "serialization", "ignore_paths", to=["model.sig", "model.onnx"])),
    ("ignores everything", set_in(P_, "serialization", "ignore_paths", to=["."])),
    ("no files", resources()),
    ("other file hash", set_in(P_, "resources", 0, "algorithm", to="blake2b")),
    ("digest in capitals", set_in(P_, "resources", 0, "digest", to="A" * 64)),
    ("short digest", set_in(P_, "resources", 0, "digest", to="a" * 62)),
    ("extra file field", set_in(P_, "resources", 0, "uri", to="x")),
    ("a file twice", resources("a", "a")),
    ("not in order", resources("b", "a")),
    ("files without the subject's knowledge", resources("a", rehash=False)),
    ("absolute path", resources("/etc/passwd")),
    ("parent", resources("../a")),
    ("parent inside", resources("a/../b")),
    ("dot", resources("./a")),
    ("empty path", resources("")),
    ("empty component", resources("a//b")),
    ("ends in a slash", resources("a/")),
    ("hidden file", resources(".gitattributes")),
    ("hidden folder", resources(".git/x.py")),
    ("hidden below", resources("a/.b")),
    ("backslash", resources("a\\b")),
    ("line feed", resources("a\n")),
    ("zero byte", resources("a\x00")),
    ("look-alike letter", resources("m\u043edel.onnx")),
    ("shard name", resources("a:0:4")),
    ("very long", resources("a" * 300)),
    ("the signature itself", resources("model.sig")),
]


@pytest.mark.parametrize("edit", [row[1] for row in STATEMENT_EDITS], ids=[row[0] for row in STATEMENT_EDITS])
def test_other_statements_are_refused_although_signed(edit: Edit) -> None:
    """A valid signature does not make a statement acceptable that is not understood to the last field."""
    statement = statement_of(oms.sign(DIGESTS, "tiny", KEY))
    assert oms.verify(signed(json.dumps(statement).encode()), KEYS)
    edited = copy.deepcopy(statement)
    edit(edited)
    with pytest.raises(MalformedSignature) as caught:
        oms.verify(signed(json.dumps(edited).encode()), KEYS)
    assert caught.value.message.isprintable()


def test_statement_with_a_key_twice_is_refused() -> None:
    """The statement's JSON is read as strictly as the bundle's."""
    payload = oms.make_statement(DIGESTS, "tiny").replace(b'"subject"', b'"subject": [], "subject"')
    with pytest.raises(MalformedSignature, match="twice"):
        oms.verify(signed(payload), KEYS)


@pytest.mark.parametrize("paths", [[], [".git"], ["model.sig", ".git", ".github", ".gitignore", ".gitattributes"]])
def test_what_model_signing_ignores_by_default_may_be_listed(paths: list[str]) -> None:
    """The five names that model-signing writes are known; whether such files may be there is the package's rule."""
    statement = statement_of(oms.sign(DIGESTS, "tiny", KEY))
    statement[P_]["serialization"]["ignore_paths"] = paths
    assert oms.verify(signed(json.dumps(statement).encode()), KEYS).name == "tiny"


@pytest.mark.parametrize(
    ("digests", "name"),
    [
        ({}, "tiny"),
        ({"../a": "a" * 64}, "tiny"),
        ({"a": "A" * 64}, "tiny"),
        ({"a": "not hex"}, "tiny"),
        ({"model.sig": "a" * 64}, "tiny"),
        ({"a": "a" * 64}, ""),
        ({"a": "a" * 64}, "\x1b"),
    ],
)
def test_what_would_be_refused_is_not_signed(digests: dict[str, str], name: str) -> None:
    """Signing something that verification refuses is a bug of the caller."""
    with pytest.raises(ValueError):  # noqa: PT011  whichever rule it breaks
        oms.sign(digests, name, KEY)


# --- any change at all ------------------------------------------------------------------------------------------------

BUNDLE = oms.sign(DIGESTS, "tiny", KEY)
STATEMENT = oms.verify(BUNDLE, KEYS)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_change_of_a_bundle_changes_its_meaning(data: st.DataObject) -> None:
    """Whatever byte of a bundle is replaced, removed or added: it is refused, or it still says exactly the same."""
    at = data.draw(st.integers(0, len(BUNDLE) - 1))
    cut = data.draw(st.integers(0, 2))
    put = data.draw(st.binary(max_size=2))
    with contextlib.suppress(VerificationFailed):
        assert oms.verify(BUNDLE[:at] + put + BUNDLE[at + cut :], KEYS) == STATEMENT


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_is_refused_in_our_own_words(data: bytes) -> None:
    """Any bytes at all end in one of our errors, never in a parser's."""
    with pytest.raises(MalformedSignature):
        oms.verify(data, KEYS)
    with pytest.raises(MalformedSignature):
        oms.verify(signed(data), KEYS)
