"""The installed store: names, paths and removal."""

from pathlib import Path

import pytest

from appliance.errors import FileProblem, ModelNotFound
from appliance.models import store as store_module
from appliance.models.package import open_verified
from appliance.models.store import Store
from appliance.trust.keys import KeySet, generate
from tests.fakes.package import DATA, make_tiny_package


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with two packages."""
    (tmp_path / "models").mkdir()
    for name in ("second", "first"):
        make_tiny_package(tmp_path / "models", name)
    return Store(tmp_path / "models")


def test_names_are_the_folders_with_a_legal_name(store: Store) -> None:
    """Files, links, hidden folders and folders with other names are no models."""
    (store.root / "file").write_bytes(b"")
    (store.root / "link").symlink_to(store.root / "first")
    for name in (".first.removed.x", "Upper", "with space"):
        (store.root / name).mkdir()
    assert store.names() == ["first", "second"]


def test_missing_store_is_empty(tmp_path: Path) -> None:
    """A new box has no models directory."""
    assert Store(tmp_path / "none").names() == []


def test_store_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    """Something else in its place is said, not swallowed."""
    (tmp_path / "models").write_bytes(b"")
    with pytest.raises(FileProblem, match="models directory"):
        Store(tmp_path / "models").names()


def test_path_of_an_installed_model(store: Store) -> None:
    """A name leads to its folder."""
    assert store.path("first") == store.root / "first"


@pytest.mark.parametrize(
    "name",
    ["third", "", ".", "..", "../models", "first/", "first/../second", "/etc", "FIRST", "first\n", "\x1b[2J", "link"],
)
def test_other_names_are_not_found(store: Store, name: str) -> None:
    """A name from a request never becomes a path elsewhere, nor an escape sequence in a log."""
    (store.root / "link").symlink_to(store.root / "first")
    for ask in (store.path, store.remove):
        with pytest.raises(ModelNotFound) as caught:
            ask(name)
        assert caught.value.message.isprintable()
    assert store.names() == ["first", "second"]


def test_removed_model_is_gone(store: Store) -> None:
    """Removing takes one model away, whole, and nothing else."""
    store.remove("first")
    assert store.names() == ["second"]
    assert [p.name for p in store.root.iterdir()] == ["second"]


def test_removing_lets_a_loaded_model_work_on(tmp_path: Path) -> None:
    """The bytes that were verified stay readable for whoever has them open."""
    key = generate()
    with open_verified(make_tiny_package(tmp_path, key=key), KeySet.of(key.public())) as verified:
        Store(tmp_path).remove("tiny")
        assert bytes(verified.files["model.onnx.data"]) == DATA


def test_interrupted_removal_leaves_no_half_package(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """When deleting fails in the middle, the name is already gone and what is left is hidden."""

    def fail(path: str) -> None:
        (Path(path) / "first" / "model.onnx").unlink()
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(store_module.shutil, "rmtree", fail)
    with pytest.raises(FileProblem, match="Input/output error"):
        store.remove("first")
    assert store.names() == ["second"]
