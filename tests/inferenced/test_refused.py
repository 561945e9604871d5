"""A model that was refused is not verified again until something has changed."""

import asyncio
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from appliance.errors import DigestMismatch, OutOfMemory, SkerryError, VerificationFailed
from appliance.inferenced import models
from appliance.inferenced.models import ModelHost
from appliance.trust.keys import generate
from tests.fakes.package import make_tiny_package


class Host:
    """A host on a box with one refused model, and a count of the verifications."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.models, self.keys = root / "models", root / "keys"
        for folder in (self.models, self.keys):
            folder.mkdir(parents=True)
            folder.chmod(0o755)
        self.key = generate()
        self.key.public().save(self.keys / "station.pub")
        self.package = make_tiny_package(self.models, "tiny", self.key)
        (self.package / "tokenizer.json").write_text("{}")
        self.verified = 0
        self._real = models.open_verified
        monkeypatch.setattr(models, "open_verified", self._count)
        self.host = ModelHost(self.models, self.keys, 1)

    def _count(self, *arguments: object) -> object:
        self.verified += 1
        return self._real(*arguments)  # type: ignore[arg-type]

    def ask(self) -> SkerryError:
        with pytest.raises(VerificationFailed) as e:
            asyncio.run(self.host.get("tiny"))
        return e.value


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path / "box", monkeypatch)


def test_refusal_is_remembered(host: Host) -> None:
    """The second request, and the hundredth, get the same answer without the work."""
    first = host.ask()
    again = [host.ask() for _ in range(99)]
    assert host.verified == 1
    assert isinstance(first, DigestMismatch)
    assert {(type(e), e.message, e.hint) for e in again} == {(DigestMismatch, first.message, first.hint)}
    assert host.host.describe("tiny")["state"] == "refused"


def test_requests_at_the_same_time_share_one_verification(host: Host) -> None:
    """Callers who wait for the same load do not repeat it one after the other."""

    async def many() -> list[object]:
        return await asyncio.gather(*(host.host.get("tiny") for _ in range(20)), return_exceptions=True)

    assert {type(e) for e in asyncio.run(many())} == {DigestMismatch}
    assert host.verified == 1


def rewrite(host: Host) -> None:
    (host.package / "tokenizer.json").write_text("[]")


def same_bytes_and_time(host: Host) -> None:
    path = host.package / "tokenizer.json"
    info = path.stat()
    path.write_text("[]")
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))  # the time of change of the inode cannot be set back


def install_again(host: Host) -> None:
    shutil.copytree(host.package, host.models / "new")
    shutil.rmtree(host.package)
    (host.models / "new").rename(host.package)


CHANGES: list[Callable[[Host], object]] = [
    rewrite,
    same_bytes_and_time,
    install_again,
    lambda h: (h.package / "extra").write_text("x"),
    lambda h: (h.package / "model.sig").unlink(),
    lambda h: (h.package / "card.yaml").chmod(0o600),
    lambda h: generate().public().save(h.keys / "other.pub"),
    lambda h: (h.keys / "station.pub").unlink(),
    lambda h: h.key.public().save(h.keys / "station.pub"),
]
NAMES = [
    "rewrite",
    "same size and time",
    "install again",
    "add a file",
    "unsign",
    "mode",
    "new key",
    "revoke",
    "key again",
]


@pytest.mark.parametrize("change", CHANGES, ids=NAMES)
def test_any_change_is_looked_at(host: Host, change: Callable[[Host], object]) -> None:
    """Whatever changes in the package or among the keys, the next request verifies again, once."""
    host.ask()
    time.sleep(0.03)  # the kernel's file times move in steps of some milliseconds
    change(host)
    host.ask()
    host.ask()
    assert host.verified == 2


def test_change_during_the_work_is_looked_at(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is replaced while the old one is being hashed gets its own verification."""
    real = host._real

    def slow(*arguments: object) -> object:
        try:
            return real(*arguments)  # type: ignore[arg-type]
        finally:
            rewrite(host)

    host._real = slow  # type: ignore[assignment]
    host.ask()
    host._real = real
    host.ask()
    assert host.verified == 2


def test_operators_verify_always_works(host: Host) -> None:
    """`verify` is asked for by name and by an operator: it looks every time."""
    host.ask()
    for _ in range(3):
        with pytest.raises(DigestMismatch):
            asyncio.run(host.host.verify("tiny"))
    assert host.verified == 4


def test_shortage_of_memory_is_not_remembered(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """What may be otherwise a moment later is tried again."""
    tried = []

    def short(*_: object) -> object:
        tried.append(threading.get_ident())
        raise OutOfMemory("cannot load tiny: no memory")

    monkeypatch.setattr(host.host, "_verify", lambda name: SimpleNamespace(size_bytes=1))
    monkeypatch.setattr(host.host, "_load", short)
    for _ in range(3):
        with pytest.raises(OutOfMemory):
            asyncio.run(host.host.get("tiny"))
    assert len(tried) == 3
