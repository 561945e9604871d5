"""The session: caches in place, exact rewinding, and weights that come from the verified mapping only."""

import multiprocessing
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from appliance.decoding.sampling import SamplingParams
from appliance.engine.cache import Cache
from appliance.engine.generate import Token, generate
from appliance.engine.prefixes import PART
from appliance.engine.session import LONG, Session
from appliance.errors import CardMismatch, ContextTooLong, DigestMismatch, InternalError, OutOfMemory
from appliance.models.package import DATA_FILE, VerifiedModel
from bench.side import memory
from tests.fakes import built_models
from tests.fakes.built_models import BuiltModel
from tests.fakes.scripted import RuledSession

TOKENS = np.array([5, 17, 90, 33, 250, 7, 7, 120, 64, 201, 15, 88], np.int64)


@pytest.fixture(scope="module", params=built_models.ARCHITECTURES)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BuiltModel:
    return built_models.tiny(tmp_path_factory.mktemp("tiny") / "box", request.param, "f32")


@pytest.fixture
def session(built: BuiltModel) -> Iterator[Session]:
    with Session(built.open(), threads=1) as session:
        yield session


def logits_of(session: Session, cache: Cache, *chunks: int) -> np.ndarray:
    """Feed TOKENS in chunks, and return the last row's logits."""
    at, last = 0, None
    for size in chunks:
        last = session.forward(cache, TOKENS[at : at + size])
        at += size
    assert last is not None
    return last[0].copy()


def test_chunks_give_the_logits_of_the_whole(session: Session) -> None:
    """In float32, a prompt in pieces and token by token gives the logits of the prompt at once."""
    whole = logits_of(session, session.new_cache(64), 12)
    for chunks in [(5, 7), (1,) * 12, (11, 1)]:
        np.testing.assert_allclose(logits_of(session, session.new_cache(64), *chunks), whole, atol=1e-4)


def test_pages_of_the_file_are_let_go_after_so_many_tokens(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each embedding that is read maps some; single tokens are no reason to keep the whole table."""
    released = list[int]()
    monkeypatch.setattr(VerifiedModel, "release_pages", lambda _: released.append(cache.length))
    cache = session.new_cache(256)
    for token in np.arange(2 * LONG):
        session.forward(cache, np.array([token]))
    session.forward(cache, np.arange(LONG))
    session.forward(cache, np.array([5]))
    assert released == [LONG - 1, 2 * LONG - 1, 2 * LONG]  # a pass counts at its end


def test_every_row_can_be_asked_for(session: Session) -> None:
    """The rows of one call are the last rows of calls that end there."""
    rows = session.forward(session.new_cache(64), TOKENS, rows=np.arange(12)).copy()
    for end in (1, 6, 12):
        np.testing.assert_allclose(rows[end - 1], logits_of(session, session.new_cache(64), end), atol=1e-4)


def test_rewound_cache_equals_a_fresh_one(session: Session) -> None:
    """After truncating, the same tokens give bit for bit what a cache gives that never saw the others."""
    rewound = session.new_cache(64)
    logits_of(session, rewound, 6)
    session.forward(rewound, np.array([1, 2, 3, 4], np.int64))
    rewound.rewind(6)
    fresh = session.new_cache(64)
    logits_of(session, fresh, 6)
    for token in (90, 12, 4):
        step = np.array([token], np.int64)
        a, b = session.forward(rewound, step).copy(), session.forward(fresh, step)
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("length", [0, 1, 2, 3, 9, 12])
@pytest.mark.parametrize("chunk", [1, 3])
def test_a_cache_can_go_back_to_any_length(session: Session, length: int, chunk: int) -> None:
    """To the bit, also to where a convolution sees beyond the beginning; single tokens and chunks go on from there."""
    rewound, fresh = session.new_cache(64), session.new_cache(64)
    logits_of(session, rewound, 3, 9)
    session.forward(rewound, TOKENS[::-1].copy())
    rewound.rewind(length)
    for size in (min(length, 3), length - min(length, 3)):  # in the chunks in which the other one was filled
        if size:
            session.forward(fresh, TOKENS[fresh.length : fresh.length + size])
    for start in range(0, 9, chunk):
        tokens = np.arange(100 + start, 100 + start + chunk)
        rows = np.arange(chunk)
        a, b = session.forward(rewound, tokens, rows).copy(), session.forward(fresh, tokens, rows)
        np.testing.assert_array_equal(a, b)


def test_cache_is_written_in_place(session: Session) -> None:
    """A step writes its own row into the buffers and leaves the others alone; keys and values are bound, not copied."""
    cache = session.new_cache(64)
    session.forward(cache, TOKENS[:6])
    before = [b.copy() for b in cache._buffers]
    session.forward(cache, TOKENS[6:7])
    bound = {o.data_ptr() for o in session._binding(cache.slot, cache.slot + 1).get_outputs()}
    kept = {n: b[cache.slot].ctypes.data for n, b in session._arena.buffers.items()}
    assert {at for name, at in kept.items() if name.startswith("past_key_values.")} < bound
    for buffer, earlier in zip(cache._buffers, before, strict=True):
        np.testing.assert_array_equal(buffer[:, :6], earlier[:, :6])
        assert buffer[:, 6].any()
        assert not buffer[:, 7:].any()


def test_a_slot_that_is_given_back_is_empty(session: Session) -> None:
    """What one caller asked is not left for the next; the lowest free slot comes first."""
    first, second = session.new_cache(64), session.new_cache(64)
    assert (first.slot, second.slot) == (0, 1)
    logits_of(session, first, 12)
    logits_of(session, second, 12)
    kept = [b.copy() for b in second._buffers]
    del first
    third = session.new_cache(64)
    assert third.slot == 0
    assert not any(b.any() for b in third._buffers)
    for buffer, before in zip(second._buffers, kept, strict=True):
        np.testing.assert_array_equal(buffer, before)


def test_more_sequences_than_slots_are_refused(built: BuiltModel) -> None:
    """And one that ends makes room for the next."""
    with Session(built.open(), 1, slots=2) as session:
        held = [session.new_cache(64) for _ in range(2)]
        with pytest.raises(OutOfMemory, match="all 2 are in use"):
            session.new_cache(64)
        held.pop()
        session.new_cache(64)


def test_two_caches_do_not_see_each_other(session: Session) -> None:
    """Interleaved sequences give what each gives alone."""
    alone = logits_of(session, session.new_cache(64), 4, 4, 4)
    one, other = session.new_cache(64), session.new_cache(128)
    for at in range(0, 12, 4):
        last = session.forward(one, TOKENS[at : at + 4])[0].copy()
        session.forward(other, TOKENS[::-1][at : at + 4].copy())
    np.testing.assert_array_equal(last, alone)


def test_full_cache_and_context_are_refused(session: Session) -> None:
    """What does not fit is refused before anything is computed."""
    cache = session.new_cache(100)
    assert cache.capacity == 128
    with pytest.raises(ContextTooLong):
        session.forward(cache, np.zeros(129, np.int64))
    assert cache.length == 0
    with pytest.raises(ContextTooLong):
        session.new_cache(257)
    with pytest.raises(ValueError, match="rewind"):
        cache.rewind(1)


def test_memory_is_refused_in_words(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that the box cannot hold is an error, not the end of the process."""
    monkeypatch.setattr("appliance.engine.memory.available_memory_bytes", lambda: 1 << 20)
    with pytest.raises(OutOfMemory, match="1 MiB are available"):
        session.new_cache(64)


def test_memory_is_promised_once(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches that are not written yet count: what was promised to one is not promised to the next."""
    each = session.cache_bytes(128)
    room = (64 << 20) + 3 * each
    monkeypatch.setattr("appliance.engine.memory.available_memory_bytes", lambda: room)
    held = [session.new_cache(128) for _ in range(3)]
    with pytest.raises(OutOfMemory, match="promised"):
        session.new_cache(128)
    held.pop()
    session.new_cache(128)


def test_weights_come_from_the_verified_mapping(
    built: BuiltModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the file behind the name is exchanged after verification, the verified bytes are still what computes."""
    with Session(built.open(), 1) as session:
        expected = logits_of(session, session.new_cache(64), 12)
    copy = built.copy_to(tmp_path / "box")
    model = copy.open()
    weights = copy.path / DATA_FILE
    size = weights.stat().st_size
    weights.unlink()
    weights.write_bytes(bytes(size))
    monkeypatch.setattr(VerifiedModel, "recheck", lambda self: None)
    with Session(model, 1) as session:
        np.testing.assert_array_equal(logits_of(session, session.new_cache(64), 12), expected)


def test_exchanged_file_is_refused(built: BuiltModel, tmp_path: Path) -> None:
    """And without looking away, the exchange is found and the load refused."""
    copy = built.copy_to(tmp_path / "box")
    model = copy.open()
    weights = copy.path / DATA_FILE
    other = tmp_path / "other"
    shutil.copy(weights, other)
    other.rename(weights)
    with pytest.raises(DigestMismatch):
        Session(model, 1)


def test_graph_that_is_none_of_ours_is_refused(tmp_path: Path) -> None:
    """A signed package whose graph onnxruntime cannot run ends in an error, not a crash."""
    from tests.fakes.package import make_tiny_package

    key = built_models.keys.generate()
    make_tiny_package(tmp_path, name="odd", key=key)
    model = built_models.package.open_verified(tmp_path / "odd", built_models.keys.KeySet.of(key.public()))
    with pytest.raises(CardMismatch):
        Session(model, 1)


def test_long_prompts_are_prefilled_in_chunks(built: BuiltModel) -> None:
    """`generate` stops between chunks, where a cancel takes hold, and the same seed gives the same tokens."""
    with Session(built.open(), 1) as session:
        prompt = np.resize(TOKENS, 240)
        params = SamplingParams(temperature=1.0, seed=3)
        a, b = (generate(session, prompt, params, max_tokens=8) for _ in range(2))
        first = [s.id for s in a if isinstance(s, Token)]
        assert [s.id for s in b if isinstance(s, Token)] == first
        assert len(first) == 8
    assert PART <= 256


def _taken_by_a_prompt() -> dict[str, int]:
    """What a process has more after a prompt than after its first token: "anonymous" and "file"; "cache": its keys."""
    with Session(built_models.smollm2().open(), 1) as session:
        cache = session.new_cache(1100)
        session.forward(cache, TOKENS[:1])
        before = memory()
        for start in range(0, 1024, PART):  # of words that lie far from each other in the table of embeddings
            session.forward(cache, np.arange(start, start + PART) * 47)
        after = memory()
        return {kind: after[kind] - before[kind] for kind in ("anonymous", "file")} | {
            "cache": session.cache_bytes(cache.length)
        }


def test_a_prompt_leaves_nothing_but_its_cache() -> None:
    """What its parts are computed in, some 40 MB, goes back, and so do the pages of the file that its words lie in.

    In a process of its own, whose memory is nobody else's.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        taken = pool.submit(_taken_by_a_prompt).result()
    assert taken["cache"] > 40e6
    assert taken["anonymous"] < taken["cache"] + 8e6
    assert taken["file"] < 8e6


def test_addresses_that_are_not_there_are_refused_in_words(built: BuiltModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that promises no more than it has may not even reserve the room of all contexts."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    with built.open() as model:
        monkeypatch.setattr("appliance.engine.cache.mmap.mmap", refuse)
        with pytest.raises(OutOfMemory, match=r"cannot reserve \d+ MiB of addresses") as refused:
            Session(model, 1)
    assert "limits.running" in (refused.value.hint or "")


def test_a_whole_row_with_a_logit_that_is_none_is_refused() -> None:
    """Minus infinity stands for what was not computed; from the model itself it is a defect."""
    session = RuledSession(lambda seen: {5: -np.inf, 7: 9.0}, 300)
    with pytest.raises(InternalError, match="1 of 300 logits are not finite"):
        list(generate(session, np.array([1, 2]), SamplingParams(temperature=0), max_tokens=3))  # type: ignore[arg-type]
