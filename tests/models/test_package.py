"""Opening a package: the table of everything that must be refused, and what a proof holds."""

import gc
import os
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from appliance.errors import (
    BadSignature,
    CardMismatch,
    DigestMismatch,
    FileProblem,
    MalformedSignature,
    MissingFile,
    SkerryError,
    UnknownKey,
    UnlistedFile,
    UnsafeFile,
    Unsigned,
    VerificationFailed,
)
from appliance.models import package as package_module
from appliance.models.package import open_verified, sign_package
from appliance.trust import oms
from appliance.trust.keys import KeySet, PrivateKey, generate
from tests.fakes.package import DATA, external_tensor, graph, make_tiny_package, model, with_card, write

KEY = generate()
KEYS = KeySet.of(KEY.public())


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A signed package."""
    return make_tiny_package(tmp_path, key=KEY)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def mappings_of(path: Path) -> int:
    return Path("/proc/self/maps").read_text().count(str(path))


# --- what is accepted -------------------------------------------------------------------------------------------------


def test_signed_package_opens(package: Path) -> None:
    """A package that a trusted key signed opens, and the proof carries its bytes."""
    with open_verified(package, KEYS) as verified:
        assert verified.name == verified.card.name == "tiny"
        assert verified.key_id == KEY.public().key_id
        assert re.fullmatch("[0-9a-f]{64}", verified.root_digest)
        on_disk = {p.name: p.read_bytes() for p in package.iterdir() if p.name != "model.sig"}
        assert {name: bytes(view) for name, view in verified.files.items()} == on_disk
        assert verified.size_bytes == sum(map(len, on_disk.values()))
        verified.recheck()


def test_package_without_chat_template_opens(tmp_path: Path) -> None:
    """A base model has no template, and its card says so."""
    with open_verified(make_tiny_package(tmp_path, "base", KEY, chat=False), KEYS) as verified:
        assert "chat_template.jinja" not in verified.files


def test_directory_may_be_given_relatively(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current directory has a name, too."""
    monkeypatch.chdir(package)
    with open_verified(Path(), KEYS) as verified:
        assert verified.name == "tiny"


def test_verified_bytes_cannot_be_written(package: Path) -> None:
    """The memory that the engine gets is read-only."""
    with open_verified(package, KEYS) as verified:
        view = verified.files["model.onnx.data"]
        assert view.readonly
        with pytest.raises(TypeError):
            view[0] = 1
        with pytest.raises(TypeError):
            verified.files["x"] = view  # type: ignore[index]


def test_verification_reports_progress(package: Path) -> None:
    """The callback sees fractions that grow to 1."""
    seen: list[float] = []
    open_verified(package, KEYS, lambda what, fraction: seen.append(fraction)).close()
    assert seen == sorted(seen)
    assert seen[-1] == 1


def test_large_file_is_hashed_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of several chunks is hashed to its end: a change in the last byte is found."""
    monkeypatch.setattr(package_module, "_HASH_CHUNK", 1000)
    package = make_tiny_package(tmp_path, key=KEY)
    open_verified(package, KEYS).close()
    write(package / "model.onnx.data", DATA[:-1] + b"\x00")
    with pytest.raises(DigestMismatch):
        open_verified(package, KEYS)


def test_signing_again_replaces_the_signature(package: Path) -> None:
    """A second signature, by another key, is the only one afterwards; nothing temporary stays."""
    other = generate()
    sign_package(package, other)
    open_verified(package, KeySet.of(other.public())).close()
    with pytest.raises(UnknownKey):
        open_verified(package, KEYS)
    assert sorted(p.name for p in package.iterdir()) == [
        "card.yaml",
        "chat_template.jinja",
        "model.onnx",
        "model.onnx.data",
        "model.sig",
        "tokenizer.json",
    ]


def test_extra_file_that_a_trusted_key_signed_is_accepted(package: Path) -> None:
    """A licence text that a signer's other tool has listed is part of the package."""
    write(package / "LICENSE", b"terms")
    sign_listing(package)
    with open_verified(package, KEYS) as verified:
        assert bytes(verified.files["LICENSE"]) == b"terms"


def sign_listing(package: Path, key: PrivateKey = KEY, **extra: str) -> None:
    """Sign whatever is there, as a signer without our rules would."""
    import hashlib

    digests = {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in package.iterdir()
        if p.is_file() and not p.name.startswith(".") and p.name != "model.sig"
    }
    write(package / "model.sig", oms.sign({**digests, **extra}, package.name, key))


# --- what is refused --------------------------------------------------------------------------------------------------


def flip(package: Path, name: str) -> None:
    data = bytearray((package / name).read_bytes())
    data[len(data) // 2] ^= 1
    write(package / name, bytes(data))


def to_link(package: Path, name: str) -> None:
    """Move a file out and leave a symbolic link to the same bytes."""
    (package / name).rename(package.parent / name)
    (package / name).symlink_to(package.parent / name)


def link_directory(package: Path) -> None:
    package.rename(package.parent / "elsewhere")
    package.symlink_to(package.parent / "elsewhere")


def special(make: Callable[[Path], object], name: str = "x") -> Callable[[Path], object]:
    return lambda package: make(package / name)


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as s:
        # Relative, because the address of a socket is short.
        before = Path.cwd()
        os.chdir(path.parent)
        try:
            s.bind(path.name)
        finally:
            os.chdir(before)


def hidden_code(package: Path) -> None:
    (package / ".git").mkdir()
    write(package / ".git" / "x.py", b"print('not signed')")


def swap_file_for(package: Path, name: str, make: Callable[[Path], object]) -> None:
    (package / name).unlink()
    make(package / name)


def renamed(package: Path) -> Path:
    return package.rename(package.with_name("other"))


def resigned(change: Callable[[Path], object]) -> Callable[[Path], object]:
    """Make a change and sign it validly: what is left is the rule on the content."""

    def apply(package: Path) -> None:
        change(package)
        sign_listing(package)

    return apply


def external(location: str, **where: int) -> Callable[[Path], object]:
    """A graph whose weights are said to lie somewhere else, validly signed."""
    return resigned(lambda p: write(p / "model.onnx", model(graph(external_tensor(location, **where)))))


def touch_only(package: Path) -> None:
    for name in ("model.onnx", "card.yaml"):
        (package / name).chmod(0o666)


REFUSED: list[tuple[str, Callable[[Path], object], type[SkerryError], str]] = [
    # name | what is done to a good package | error | what it says
    ("no signature", lambda p: (p / "model.sig").unlink(), Unsigned, "found no model.sig"),
    ("empty signature", lambda p: write(p / "model.sig", b""), VerificationFailed, "empty"),
    ("garbage signature", lambda p: write(p / "model.sig", b"{}"), MalformedSignature, "bundle of another kind"),
    ("huge signature", lambda p: write(p / "model.sig", b" " * (2 << 20)), MalformedSignature, "at most"),
    ("wrong key", lambda p: sign_package(p, generate()), UnknownKey, "it was made with key"),
    ("forged statement", lambda p: forge(p), BadSignature, "did not make it"),
    ("changed byte in the weights", lambda p: flip(p, "model.onnx.data"), DigestMismatch, "model.onnx.data"),
    ("changed byte in the graph", lambda p: flip(p, "model.onnx"), DigestMismatch, "model.onnx"),
    ("changed byte in the tokenizer", lambda p: flip(p, "tokenizer.json"), DigestMismatch, "tokenizer.json"),
    ("changed byte in the template", lambda p: flip(p, "chat_template.jinja"), DigestMismatch, "chat_template"),
    ("changed byte in the card", lambda p: flip(p, "card.yaml"), DigestMismatch, "card.yaml"),
    ("byte appended", lambda p: write(p / "model.onnx.data", DATA + b"\0"), DigestMismatch, "model.onnx.data"),
    ("weights cut off", lambda p: write(p / "model.onnx.data", DATA[:-1]), DigestMismatch, "model.onnx.data"),
    ("weights emptied", lambda p: write(p / "model.onnx.data", b""), VerificationFailed, "empty"),
    ("added file", lambda p: write(p / "extra.py", b"x"), UnlistedFile, "nobody signed 'extra.py'"),
    ("added file with a terminal escape", lambda p: write(p / "\x1b[2J", b"x"), UnlistedFile, r"\\x1b"),
    ("missing file", lambda p: (p / "tokenizer.json").unlink(), MissingFile, "tokenizer.json is signed but missing"),
    ("missing optional file", lambda p: (p / "chat_template.jinja").unlink(), MissingFile, "chat_template"),
    ("symbolic link", lambda p: to_link(p, "model.onnx.data"), UnsafeFile, "symbolic link"),
    ("signature as symbolic link", lambda p: to_link(p, "model.sig"), UnsafeFile, "symbolic link"),
    ("dangling link", lambda p: (p / "x").symlink_to("nowhere"), UnsafeFile, "symbolic link"),
    ("hard link", lambda p: os.link(p / "model.onnx", p.parent / "second"), UnsafeFile, "hard link"),
    ("signature as hard link", lambda p: os.link(p / "model.sig", p.parent / "second"), UnsafeFile, "hard link"),
    ("hidden .git/x.py", hidden_code, UnsafeFile, "'.git': a hidden file or folder"),
    ("hidden .gitattributes", lambda p: write(p / ".gitattributes", b"x"), UnsafeFile, "hidden"),
    ("macOS leavings", lambda p: write(p / "._model.onnx", b"x"), UnsafeFile, "hidden"),
    ("empty folder", special(Path.mkdir), UnsafeFile, "a folder"),
    ("FIFO", special(os.mkfifo), UnsafeFile, "a FIFO"),
    ("FIFO for a file", lambda p: swap_file_for(p, "model.onnx", os.mkfifo), UnsafeFile, "a FIFO"),
    ("folder for a file", lambda p: swap_file_for(p, "model.onnx", Path.mkdir), UnsafeFile, "a folder"),
    ("socket", special(bind), UnsafeFile, "a socket"),
    ("package behind a link", link_directory, FileProblem, "no symbolic link"),
    ("no package", lambda p: shutil.rmtree(p), FileProblem, "cannot open package"),
    ("very many files", lambda p: [write(p / f"f{i}", b"x") for i in range(100)], UnlistedFile, "entries"),
    ("files that others may write", touch_only, UnsafeFile, "lets others change it"),
    ("directory that others may write", lambda p: p.chmod(0o777), UnsafeFile, "lets others change it"),
    # From here on validly signed, by a trusted key.
    ("signed without a tokenizer", resigned(lambda p: (p / "tokenizer.json").unlink()), MissingFile, "tokenizer.json"),
    ("listed in a folder", lambda p: sign_listing(p, **{"sub/x": "a" * 64}), MissingFile, "sub/x"),
    ("card of another model", resigned(lambda p: with_card(p, name="other")), CardMismatch, "its card says 'other'"),
    ("card unreadable", resigned(lambda p: write(p / "card.yaml", b"a: [")), CardMismatch, "card.yaml"),
    (
        "card from the future",
        resigned(lambda p: write(p / "card.yaml", b"format: 2\nx: 1")),
        CardMismatch,
        "format '2'",
    ),
    (
        "template that the card denies",
        resigned(lambda p: with_card(p, chat=False)),
        CardMismatch,
        "a template is there",
    ),
    (
        "no template although the card promises one",
        resigned(lambda p: (p / "chat_template.jinja").unlink()),
        CardMismatch,
        "no template is there",
    ),
    ("external data that leaves", external("../model.onnx.data"), UnsafeFile, "../model.onnx.data"),
    ("external data, absolute", external("/etc/passwd"), UnsafeFile, "/etc/passwd"),
    ("external data, second spelling", external("./model.onnx.data"), UnsafeFile, "./model"),
    ("external data in another file", external("tokenizer.json"), UnsafeFile, "tokenizer.json"),
    ("external data in memory", external("*/_ORT_MEM_ADDR_/*"), UnsafeFile, "_ORT_MEM_ADDR_"),
    ("external data past the end", external("model.onnx.data", offset=1), VerificationFailed, "which has 4096"),
    ("graph is not ONNX", resigned(lambda p: write(p / "model.onnx", b"\xff" * 9)), VerificationFailed, "ONNX model"),
]


def forge(package: Path) -> None:
    """Change the weights and the statement, and keep the old signature."""
    import base64
    import json

    old = json.loads((package / "model.sig").read_bytes())
    flip(package, "model.onnx.data")
    sign_listing(package, generate())
    new = json.loads((package / "model.sig").read_bytes())
    assert base64.b64decode(new["dsseEnvelope"]["payload"])
    old["dsseEnvelope"]["payload"] = new["dsseEnvelope"]["payload"]
    write(package / "model.sig", json.dumps(old).encode())


@pytest.mark.parametrize(("spoil", "error", "says"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_spoilt_package_is_refused_with_the_reason(
    package: Path, spoil: Callable[[Path], object], error: type[SkerryError], says: str
) -> None:
    """Each way to tamper with a package is refused by the class and the words that name it, and nothing stays open."""
    open_verified(package, KEYS).close()
    spoil(package)
    gc.collect()
    before = open_descriptors()
    with pytest.raises(error) as caught:
        open_verified(package, KEYS)
    assert type(caught.value) is error
    assert re.search(says, caught.value.message)
    assert caught.value.message.isprintable()
    assert caught.value.hint
    assert open_descriptors() == before


def test_renamed_package_is_refused(package: Path) -> None:
    """The card binds the name: what was verified as one model cannot be installed as another."""
    with pytest.raises(CardMismatch, match="'other': its card says 'tiny'"):
        open_verified(renamed(package), KEYS)


@pytest.mark.skipif(os.geteuid() != 0, reason="not run: only root can give files away and make devices")
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda p: os.chown(p, 65534, -1), "belongs to uid 65534"),
        (lambda p: os.chown(p / "model.onnx", 65534, -1), "belongs to uid 65534"),
        (lambda p: os.mknod(p / "x", 0o600 | 0o020000, os.makedev(1, 3)), "a device"),
    ],
    ids=["directory of another user", "file of another user", "device"],
)
def test_what_only_root_can_spoil_is_refused(package: Path, spoil: Callable[[Path], object], says: str) -> None:
    """Files of a third user, who could change them at any time, and devices are refused."""
    try:
        spoil(package)
    except PermissionError:
        pytest.skip("not run: this root may not make devices")
    with pytest.raises(UnsafeFile, match=says):
        open_verified(package, KEYS)


# --- the same checks when signing -------------------------------------------------------------------------------------

NOT_SIGNED: list[tuple[str, Callable[[Path], object], type[SkerryError]]] = [
    ("editor's backup", lambda p: write(p / "card.yaml~", b"x"), UnlistedFile),
    ("private key", lambda p: write(p / "station.key", b"x"), UnlistedFile),
    ("hidden .git/x.py", hidden_code, UnsafeFile),
    ("symbolic link", lambda p: to_link(p, "model.onnx.data"), UnsafeFile),
    ("signature as symbolic link", lambda p: to_link(p, "model.sig"), UnsafeFile),
    ("hard link", lambda p: os.link(p / "model.onnx", p.parent / "second"), UnsafeFile),
    ("folder", special(Path.mkdir), UnsafeFile),
    ("missing file", lambda p: (p / "tokenizer.json").unlink(), MissingFile),
    ("card of another model", lambda p: with_card(p, name="other"), CardMismatch),
    ("external data that leaves", external("../x"), UnsafeFile),
]


@pytest.mark.parametrize(("spoil", "error"), [r[1:] for r in NOT_SIGNED], ids=[r[0] for r in NOT_SIGNED])
def test_what_would_be_refused_is_not_signed(
    package: Path, spoil: Callable[[Path], object], error: type[SkerryError]
) -> None:
    """Signing makes the checks of verification first, and leaves the old signature alone when they fail."""
    spoil(package)
    before = (package / "model.sig").read_bytes()
    with pytest.raises(error):
        sign_package(package, KEY)
    assert (package / "model.sig").read_bytes() == before


# --- the proof --------------------------------------------------------------------------------------------------------


def in_place(path: Path) -> None:
    with path.open("r+b") as f:
        f.write(b"\xff")


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as f:
        f.write(data)


TOUCHED: list[tuple[str, Callable[[Path], object]]] = [
    ("written in place", in_place),
    ("appended to", lambda p: append(p, b"x")),
    ("mode changed", lambda p: p.chmod(0o600)),
    ("second name", lambda p: os.link(p, p.parent.parent / "second")),
    ("written, and the time set back", lambda p: back_in_time(p)),
    ("replaced by another file", lambda p: Path(shutil.copy(p, p.parent.parent / "copy")).replace(p)),
]


def back_in_time(path: Path) -> None:
    info = path.stat()
    in_place(path)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


@pytest.mark.parametrize("touch", [r[1] for r in TOUCHED], ids=[r[0] for r in TOUCHED])
def test_recheck_sees_that_a_file_was_touched(package: Path, touch: Callable[[Path], object]) -> None:
    """Between verification and the end of loading nothing may happen to a file that was hashed."""
    with open_verified(package, KEYS) as verified:
        verified.recheck()
        touch(package / "model.onnx.data")
        with pytest.raises(DigestMismatch, match="changed while it was open"):
            verified.recheck()


def test_change_while_hashing_is_refused(package: Path) -> None:
    """A file that is written after its bytes were hashed, but before the end, is found."""

    def interfere(what: str, fraction: float) -> None:
        if fraction == 1:
            append(package / "card.yaml", b"\n# later")

    with pytest.raises(DigestMismatch, match="changed while it was open"):
        open_verified(package, KEYS, interfere)


def test_name_is_not_looked_up_again(package: Path) -> None:
    """Once open, another file under the same name is never read: the proof keeps the bytes that were verified."""
    with open_verified(package, KEYS) as verified:
        write(package.parent / "evil", b"\xee" * len(DATA))
        (package.parent / "evil").replace(package / "model.onnx.data")
        assert bytes(verified.files["model.onnx.data"]) == DATA


def test_close_lets_go_of_everything(package: Path) -> None:
    """After close there is neither a descriptor nor a mapping; closing again is harmless, rechecking a bug."""
    gc.collect()
    before = open_descriptors()
    verified = open_verified(package, KEYS)
    assert open_descriptors() > before
    assert mappings_of(package) > 0
    verified.close()
    verified.close()
    assert open_descriptors() == before
    assert mappings_of(package) == 0
    with pytest.raises(ValueError, match="closed"):
        verified.recheck()


def test_memory_that_the_engine_uses_outlives_close(package: Path) -> None:
    """An array over the mapping stays valid after close, and the mapping goes with it."""
    verified = open_verified(package, KEYS)
    weights = np.frombuffer(verified.files["model.onnx.data"], np.uint8)
    verified.close()
    assert weights.tobytes() == DATA
    del weights, verified
    gc.collect()
    assert mappings_of(package) == 0
