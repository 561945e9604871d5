"""Where memory is short for one more model, those that nobody uses make room."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.errors import ModelNotFound, OutOfMemory
from appliance.inferenced.models import Loaded, ModelHost
from appliance.models.store import Store

NAMES = ("a", "b", "c", "d")


class Box:
    """A host whose memory holds two models; what is closed and loaded is noted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, room: int = 2) -> None:
        for name in NAMES:
            (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "keys").mkdir()
        self.host, self.room, self.open = ModelHost(tmp_path / "models", tmp_path / "keys", 1), room, list[str]()
        monkeypatch.setattr(Store, "path", lambda store, name: store.root / name)
        self.verified: list[str] = []
        self.sizes = dict.fromkeys(NAMES, 1)
        monkeypatch.setattr(self.host, "_verify", self._verify)
        monkeypatch.setattr(self.host, "_load", self._load)
        monkeypatch.setattr(self.host, "describe", lambda name: {})
        monkeypatch.setattr("appliance.inferenced.models.has_room", lambda size: len(self.open) + size <= self.room)

    def _verify(self, name: str) -> Any:
        self.verified.append(name)
        return SimpleNamespace(size_bytes=self.sizes[name])

    def _load(self, name: str, model: Any, _started: float) -> Loaded:
        if len(self.open) >= self.room:
            raise OutOfMemory(f"cannot load {name}: no memory")
        self.open.append(name)
        prefixes = SimpleNamespace(held=SimpleNamespace(size_bytes=0))
        session: Any = SimpleNamespace(close=lambda: self.open.remove(name), model=model, prefixes=prefixes)
        nothing: Any = None
        return Loaded(name, session, nothing, None, nothing, nothing, nothing, 0.0)

    def get(self, name: str) -> Loaded:
        return asyncio.run(self.host.get(name))


@pytest.fixture
def box(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Box:
    return Box(monkeypatch, tmp_path)


def use(loaded: Loaded) -> None:
    loaded.retain()
    loaded.release()


def test_what_was_asked_for_longest_ago_goes_first(box: Box) -> None:
    """Not what was loaded first."""
    a, b = box.get("a"), box.get("b")
    use(b)
    use(a)
    box.get("c")
    assert box.open == ["a", "c"]
    box.get("a")
    assert box.open == ["a", "c"], "what is loaded needs no room"


def test_a_model_in_use_stays(box: Box) -> None:
    """However long ago it was asked for; its answer goes on."""
    a, b = box.get("a"), box.get("b")
    a.retain()
    use(b)
    box.get("c")
    assert box.open == ["a", "c"]
    box.host.loaded["c"].retain()
    with pytest.raises(OutOfMemory):
        box.get("d")
    assert box.open == ["a", "c"]
    a.release()
    box.get("d")
    assert box.open == ["c", "d"]


def test_a_preloaded_model_stays(box: Box) -> None:
    """The site said that it wants it there."""
    box.host.preload("a")
    box.get("b")
    box.get("c")
    assert box.open == ["a", "c"]


def test_as_many_go_as_are_needed(box: Box) -> None:
    """Each package is verified once, however many models make room for it."""
    box.get("a")
    box.get("b")
    box.room = 1
    box.get("c")
    assert box.open == ["c"]
    assert box.verified == ["a", "b", "c"]


def test_none_goes_in_vain(box: Box) -> None:
    """If all that may go is not enough, the error is the one of memory, and they stay."""
    box.get("a")
    box.get("b")
    box.sizes["c"] = 5
    with pytest.raises(OutOfMemory):
        box.get("c")
    assert box.open == ["a", "b"]


def test_a_model_that_was_removed_from_the_disk_makes_room_too(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in memory all the same."""
    box.get("a")
    box.get("b")
    gone = ModelNotFound("cannot find model 'a': it is not installed")

    def path(store: Store, name: str) -> Any:
        if name == "a":
            raise gone
        return store.root / name

    monkeypatch.setattr(Store, "path", path)
    box.get("c")
    assert box.open == ["b", "c"]


def test_what_others_take_meanwhile_is_made_up_for(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """There was room when it was looked at, and none when the model was loaded: one more goes."""
    box.get("a")
    box.get("b")
    monkeypatch.setattr("appliance.inferenced.models.has_room", lambda size: True)
    box.get("c")
    assert box.open == ["b", "c"]
    assert box.verified == ["a", "b", "c", "c"]


def test_a_model_whose_request_is_prepared_stays(box: Box) -> None:
    """Between the question which model it is and the first step of the answer lies a moment."""
    a, _ = box.get("a"), box.get("b")
    with a.in_use():
        box.get("c")
        assert box.open == ["a", "c"]
    assert a.idle
