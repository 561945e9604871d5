"""Installing a package: only what was signed, whole or not at all, and nothing twice."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.errors import DigestMismatch, SkerryError
from appliance.models import install as install_module
from appliance.models.install import install
from appliance.models.package import open_verified, sign_package
from appliance.models.store import Store
from appliance.trust.keys import KeySet, generate
from tests.fakes.package import make_tiny_package, with_card, write

KEY, OTHER = generate(), generate()
KEYS = KeySet.of(KEY.public())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A signed package, as in a kit."""
    (tmp_path / "kit").mkdir()
    return make_tiny_package(tmp_path / "kit", key=KEY)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_package_is_installed(source: Path, store: Store) -> None:
    """The store holds the same files, signature included, for everybody to read, and nothing else."""
    umask = os.umask(0o077)
    try:
        done = install(source, store, KEYS)
    finally:
        os.umask(umask)
    assert (done.name, done.changed) == ("tiny", True)
    assert content(store.root / "tiny") == content(source)
    assert {p.stat().st_mode & 0o777 for p in (store.root / "tiny").iterdir()} == {0o644}
    assert [p.name for p in store.root.iterdir()] == ["tiny"]
    with open_verified(store.path("tiny"), KEYS) as model:
        assert model.root_digest == done.root_digest


def test_second_time_changes_nothing(source: Path, store: Store) -> None:
    """The same content by the same key is left alone: not even a time stamp moves."""
    install(source, store, KEYS)
    before = (store.root / "tiny").stat()
    assert not install(source, store, KEYS).changed
    assert (store.root / "tiny").stat() == before


def test_newer_package_replaces(source: Path, store: Store, tmp_path: Path) -> None:
    """Other content under the same name takes the old one's place; so does the same content, signed anew."""
    old = install(source, store, KEYS)
    (tmp_path / "newer").mkdir()
    newer = make_tiny_package(tmp_path / "newer", key=KEY, chat=False)
    done = install(newer, store, KEYS)
    assert done.changed
    assert done.root_digest != old.root_digest
    sign_package(newer, KEY)
    assert install(newer, store, KEYS).changed
    assert content(store.root / "tiny") == content(newer)


def _damage(installed: Path) -> None:
    write(installed / "model.onnx.data", b"something else")


def _open_to_all(installed: Path) -> None:
    (installed / "card.yaml").chmod(0o666)


def _add(installed: Path) -> None:
    write(installed / "extra", b"x")


def _remove(installed: Path) -> None:
    (installed / "model.sig").unlink()


@pytest.mark.parametrize("harm", [_damage, _open_to_all, _add, _remove], ids=lambda f: f.__name__[1:])
def test_damaged_one_is_mended(source: Path, store: Store, harm: Callable[[Path], None]) -> None:
    """An installed package that would be refused at the next load is replaced by the good one."""
    install(source, store, KEYS)
    harm(store.root / "tiny")
    assert install(source, store, KEYS).changed
    with open_verified(store.path("tiny"), KEYS):
        pass


def _other_card(source: Path) -> None:
    with_card(source, summary="not what was signed")


def _sign_with_another_key(source: Path) -> None:
    sign_package(source, OTHER)


@pytest.mark.parametrize(
    "harm", [_damage, _other_card, _add, _remove, _sign_with_another_key], ids=lambda f: f.__name__[1:]
)
def test_refused_package_leaves_the_old_one(
    source: Path, store: Store, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    """What no trusted key signed as it is never gets into the store, and what is there stays."""
    (tmp_path / "older").mkdir()
    install(make_tiny_package(tmp_path / "older", key=KEY, chat=False), store, KEYS)
    before = content(store.root / "tiny")
    harm(source)
    with pytest.raises(SkerryError):
        install(source, store, KEYS)
    assert content(store.root / "tiny") == before
    assert [p.name for p in store.root.iterdir()] == ["tiny"]


def test_package_that_changes_while_it_is_copied_is_refused(
    source: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between hashing and writing nobody can slip something in: the files are looked at once more."""
    real = install_module._is_there

    def meddle(*arguments: object) -> bool:
        write(source / "tokenizer.json", b'{"other": 1}')
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(install_module, "_is_there", meddle)
    with pytest.raises(DigestMismatch):
        install(source, store, KEYS)
    assert store.names() == []


def test_dry_run_writes_nothing(source: Path, store: Store) -> None:
    """It says what would change, on an empty disk and on one with the package."""
    assert install(source, store, KEYS, dry_run=True).changed
    assert not store.root.exists()
    install(source, store, KEYS)
    assert not install(source, store, KEYS, dry_run=True).changed
