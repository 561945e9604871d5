"""Beginnings of prompts that are kept: the same to the bit, only their owner's, within their bytes."""

from collections.abc import Iterator

import numpy as np
import pytest

from appliance.decoding.sampling import SamplingParams
from appliance.engine import memory, prefixes
from appliance.engine.cache import Cache
from appliance.engine.forward import Forward, compute
from appliance.engine.generate import Prefilled, Token, generate, prefill, warm
from appliance.engine.prefixes import EVERYBODY, PART, SHORTEST, Prefixes, parts_of
from appliance.engine.session import Session
from appliance.errors import OutOfMemory
from tests.fakes import built_models

rng = np.random.default_rng(5)
PROMPT = rng.integers(3, 300, 3 * PART + 40)
OTHER = np.concatenate([PROMPT[: PART + 30], rng.integers(3, 300, 2 * PART)])


@pytest.fixture(scope="module", params=built_models.ARCHITECTURES)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> built_models.BuiltModel:
    folder = tmp_path_factory.mktemp("tiny") / "box"
    return built_models.tiny(folder, request.param, "q8", context_length=1024)


@pytest.fixture
def session(built: built_models.BuiltModel) -> Iterator[Session]:
    with Session(built.open(), 1, prefix_bytes=1 << 30) as session:
        yield session


def filled(session: Session, prompt: np.ndarray, owner: str = "", boundary: int = 0) -> tuple[Cache, int]:
    """Prefill a new cache; also how many tokens were restored."""
    cache = session.new_cache(1024)
    return cache, sum(step.restored for step in steps_of(session, cache, prompt, owner, boundary))


def steps_of(session: Session, cache: Cache, prompt: np.ndarray, owner: str = "", boundary: int = 0) -> list[Prefilled]:
    """Prefill a cache, each part alone."""
    return [step for step in prefill(session, cache, prompt, owner, boundary) if isinstance(step, Prefilled)]


def part_bytes(session: Session) -> int:
    return session.cache_bytes(PART)


# name | first prompt | second prompt | tokens restored
BEGINNINGS = [
    ("the same", PROMPT, PROMPT, len(PROMPT) - 1),
    ("one token more than parts", PROMPT, PROMPT[: 2 * PART + 1], 2 * PART),
    ("parts and no more", PROMPT, PROMPT[: 2 * PART], PART),
    ("longer", PROMPT[: PART + 9], PROMPT, PART),
    ("alike for a part and a bit", PROMPT, OTHER, PART),
    ("shorter than a part", PROMPT, PROMPT[:PART], 0),
    ("another beginning", PROMPT, PROMPT[1:], 0),
    ("the first too short", PROMPT[:PART], PROMPT, 0),
]


@pytest.mark.parametrize(("first", "second", "restored"), [r[1:] for r in BEGINNINGS], ids=[r[0] for r in BEGINNINGS])
def test_whole_pages_that_are_alike_are_used_again(
    built: built_models.BuiltModel, session: Session, first: np.ndarray, second: np.ndarray, restored: int
) -> None:
    """And the logits after them, and of every later token, are those of a session that kept nothing, to the bit."""
    filled(session, first)
    warm, found = filled(session, second)
    assert found == restored
    with Session(built.open(), 1) as cold_session:
        cold, nothing = filled(cold_session, second)
        assert nothing == 0
        assert warm.length == cold.length == len(second) - 1
        for token in (second[-1], 17, 120):
            step = np.array([token], np.int64)
            np.testing.assert_array_equal(session.forward(warm, step), cold_session.forward(cold, step))


# name | boundary of the first | of the second | tokens restored
BOUNDARIES = [
    ("a system prompt", 100, 100, 100),
    ("a long one", PART + 30, PART + 30, PART + 30),
    ("whole parts", PART, PART, PART),
    ("too short to keep", SHORTEST - 1, SHORTEST - 1, PART),
    ("the shortest", SHORTEST, SHORTEST, SHORTEST),
    ("not in both", 100, 0, 0),
    ("not in the first", 0, 100, 0),
    ("elsewhere, after a part", PART + 10, PART + 20, PART),
]


@pytest.mark.parametrize(("first", "second", "restored"), [r[1:] for r in BOUNDARIES], ids=[r[0] for r in BOUNDARIES])
def test_a_boundary_ends_a_part(
    built: built_models.BuiltModel, session: Session, first: int, second: int, restored: int
) -> None:
    """Up to there prompts share what they begin with; and still warm is cold, to the bit."""
    filled(session, PROMPT, boundary=first)
    warm, found = filled(session, OTHER, boundary=second)
    assert found == restored
    with Session(built.open(), 1) as cold_session:
        cold, _ = filled(cold_session, OTHER, boundary=second)
        for token in (OTHER[-1], 17):
            step = np.array([token], np.int64)
            np.testing.assert_array_equal(session.forward(warm, step), cold_session.forward(cold, step))


def test_a_part_is_found_only_where_it_begins_and_ends(session: Session) -> None:
    """The same tokens up to the same end, but parted otherwise: what lies before that end is another part."""
    prompt = PROMPT[: 2 * PART + 1]
    filled(session, prompt, boundary=PART + 44)
    cache, restored = filled(session, prompt)
    assert (cache.length, restored) == (2 * PART, PART)


def test_parts_cover_a_prompt_but_for_its_last_token() -> None:
    """In order, none longer than it may be, and each has a name of its own."""
    for length in (1, 2, PART, PART + 1, PART + 2, 3 * PART + 40):
        for boundary in (0, 5, 100, PART, length - 2, length - 1, length, 10_000):
            parts = parts_of(PROMPT[:length], boundary)
            assert [part.start for part in parts] == [0, *(part.end for part in parts)][: len(parts)]
            assert (parts[-1].end if parts else 0) == length - 1
            assert all(0 < part.end - part.start <= PART for part in parts)
            assert len({part.digest for part in parts}) == len(parts)


def test_a_part_that_another_prompt_brings_meanwhile_is_not_computed(session: Session) -> None:
    """Of prompts that begin alike and wait for their turns, the first one computes the beginning for all."""
    one, other = session.new_cache(1024), session.new_cache(1024)
    waiting = [prefill(session, cache, prompt) for cache, prompt in ((one, PROMPT), (other, OTHER))]
    forwards = [next(steps) for steps in waiting]
    assert all(isinstance(forward, Forward) for forward in forwards)
    compute(forwards[:1])  # type: ignore[arg-type]
    assert next(waiting[0]) == Prefilled(PART, len(PROMPT) - 1)
    compute(forwards[1:])  # type: ignore[arg-type]
    assert next(waiting[1]) == Prefilled(PART, len(OTHER) - 1, restored=PART)
    for a, b in zip(one.read(0, PART), other.read(0, PART), strict=True):
        np.testing.assert_array_equal(a, b)
    for _ in waiting[1]:
        pass
    fresh, _ = filled(session, OTHER, "nobody")
    for a, b in zip(other.read(0, other.length), fresh.read(0, fresh.length), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_owner_finds_only_its_own(session: Session) -> None:
    """Another one's prompt is computed as if nothing were kept."""
    filled(session, PROMPT, "uid 1000")
    assert filled(session, PROMPT, "uid 1001")[1] == 0
    assert filled(session, PROMPT, "uid 100")[1] == 0
    assert filled(session, PROMPT, "")[1] == 0
    assert filled(session, PROMPT, "uid 1000")[1] == len(PROMPT) - 1


def test_a_page_is_a_copy(session: Session) -> None:
    """What becomes of the cache that it came from, or went to, leaves it alone."""
    first, _ = filled(session, PROMPT)
    warm, _ = filled(session, PROMPT)
    for cache in (first, warm):
        cache.rewind(0)
        session.forward(cache, OTHER[::-1][:PART].astype(np.int64))
    again, restored = filled(session, PROMPT)
    fresh, _ = filled(session, PROMPT, "nobody")
    assert restored == len(PROMPT) - 1
    for a, b in zip(again.read(0, again.length), fresh.read(0, fresh.length), strict=True):
        np.testing.assert_array_equal(a, b)


def test_pages_stay_within_their_bytes(session: Session) -> None:
    """What nobody asked for longest goes first; a page is not kept without the one before it."""
    session.prefixes = Prefixes(4 * part_bytes(session))
    a, b = PROMPT[: 2 * PART + 1], PROMPT[::-1][: 2 * PART + 1]
    filled(session, a)
    filled(session, b)
    assert session.prefixes.held.parts == 4
    assert session.prefixes.held.size_bytes == 4 * part_bytes(session)
    assert filled(session, a)[1] == 2 * PART
    filled(session, OTHER[::-1][: PART + 1])
    assert session.prefixes.held.parts == 4
    assert session.prefixes.held.evicted == 1
    assert filled(session, b)[1] == PART  # its end went, its beginning is there
    assert filled(session, a)[1] == PART  # and b's end came again in the place of a's


def test_a_prompt_that_does_not_fit_keeps_its_beginning(session: Session) -> None:
    """Its pages do not push each other out."""
    session.prefixes = Prefixes(2 * part_bytes(session) + 1)
    filled(session, PROMPT)
    assert filled(session, PROMPT)[1] == 2 * PART


def test_without_bytes_nothing_is_kept(session: Session) -> None:
    """Nor looked for at any cost."""
    session.prefixes = Prefixes(0)
    filled(session, PROMPT)
    assert filled(session, PROMPT)[1] == 0
    assert session.prefixes.held.parts == 0


def test_only_parts_that_every_prompt_has_are_kept(session: Session) -> None:
    """What was computed in other parts, or by an answer, would not be the same to the bit."""
    cache = session.new_cache(1024)
    session.forward(cache, PROMPT[:100])
    steps_of(session, cache, PROMPT)
    assert session.prefixes.held.parts == 0
    cache = session.new_cache(1024)
    for _ in generate(session, PROMPT[:200], SamplingParams(temperature=0), max_tokens=100, cache=cache):
        pass
    assert cache.length > PART
    assert session.prefixes.held.parts == 1
    assert session.prefixes.held.size_bytes == session.cache_bytes(199)


def test_pages_go_before_an_answer_is_refused(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that is needed now is taken from what may be needed again."""
    filled(session, PROMPT)
    held = session.prefixes.held.size_bytes
    room = memory.RESERVE_BYTES + session.cache_bytes(512)

    def available() -> int:
        return room - session.prefixes.held.size_bytes

    monkeypatch.setattr(memory, "promised_bytes", int)
    monkeypatch.setattr(memory, "available_memory_bytes", available)
    assert held
    session.new_cache(512)
    assert session.prefixes.held.parts == 0
    with pytest.raises(OutOfMemory):
        session.new_cache(1024)


def test_nothing_is_kept_where_memory_is_short(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """A beginning that may be asked for again is not worth what an answer may need."""
    cache = session.new_cache(1024)
    monkeypatch.setattr(memory, "free_bytes", lambda: part_bytes(session) - 1)
    steps_of(session, cache, PROMPT[: 2 * PART + 1])
    assert session.prefixes.held.parts == 0


def test_what_is_new_takes_the_place_of_what_is_old(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory is short what is kept does not freeze; a branch still never stays without its trunk."""
    room = 2 * part_bytes(session)
    monkeypatch.setattr(prefixes, "has_room", lambda size: size <= room - session.prefixes.held.size_bytes)
    old, new = PROMPT[: 2 * PART + 1], rng.integers(3, 300, 2 * PART + 1)
    filled(session, old)
    assert filled(session, old)[1] == 2 * PART
    filled(session, new)
    assert session.prefixes.held.size_bytes == 2 * part_bytes(session)
    assert filled(session, new)[1] == 2 * PART
    assert filled(session, old)[1] == 0
    longer = rng.integers(3, 300, 3 * PART + 1)
    filled(session, longer)
    assert filled(session, longer)[1] == PART


def test_the_first_step_says_what_was_restored(session: Session) -> None:
    """Then the rest, part by part."""
    filled(session, PROMPT)
    steps = steps_of(session, session.new_cache(1024), PROMPT)
    total = len(PROMPT) - 1
    assert steps == [Prefilled(total, total, restored=total)]
    other = np.append(PROMPT[: 2 * PART], PROMPT[:300])
    steps = steps_of(session, session.new_cache(1024), other)
    ends = (3 * PART, len(other) - 1)
    assert steps == [Prefilled(2 * PART, ends[-1], restored=2 * PART), *(Prefilled(end, ends[-1]) for end in ends)]


def test_reading_and_writing_are_checked(session: Session) -> None:
    """Tokens that are not there, a gap, and what does not fit."""
    cache, _ = filled(session, PROMPT[:50])
    part = cache.read(0, 20)
    with pytest.raises(ValueError, match="cannot read tokens 40 to 50 of a cache of 49"):
        cache.read(40, 50)
    with pytest.raises(ValueError, match="cannot write tokens 48 to 68"):
        cache.write(48, part)
    small = session.new_cache(128)
    for start in range(0, 120, 20):
        small.write(start, part)
    with pytest.raises(ValueError, match="cannot write tokens 120 to 140 of a cache of 120 of 128"):
        small.write(120, part)


# --- what is everybody's ----------------------------------------------------------------------------------------------

BOUNDARY = PART + 70


def answer(session: Session, owner: str) -> tuple[list[int], int]:
    """Tokens of an answer, and how many of the prompt's were restored."""
    steps = list(
        generate(
            session, PROMPT, SamplingParams(temperature=0.8, seed=3), max_tokens=20, owner=owner, boundary=BOUNDARY
        )
    )
    restored = sum(step.restored for step in steps if isinstance(step, Prefilled))
    return [step.id for step in steps if isinstance(step, Token)], restored


def test_what_was_read_beforehand_is_found_by_all(session: Session) -> None:
    """Up to the boundary; the answer is the same, and what a caller adds is that caller's."""
    cold = answer(session, "uid 1")
    session.prefixes.shrink()
    assert cold[1] == 0
    assert [step.done for step in warm(session, PROMPT[:BOUNDARY]) if isinstance(step, Prefilled)] == [PART, BOUNDARY]
    for owner in ("uid 1", "uid 2"):
        assert answer(session, owner) == (cold[0], BOUNDARY)
    assert answer(session, "uid 2") == (cold[0], len(PROMPT) - 1)


def test_what_is_everybodys_is_kept_once(session: Session) -> None:
    """A caller who asks the same adds nothing to it, and it goes as everything goes."""
    for _ in warm(session, PROMPT[:BOUNDARY]):
        pass
    held = session.prefixes.held
    assert held.size_bytes == session.cache_bytes(BOUNDARY)
    for _ in warm(session, PROMPT[:BOUNDARY]):
        pass
    filled(session, PROMPT[: BOUNDARY + 1], "uid 1", BOUNDARY)
    assert session.prefixes.held == held
    session.prefixes.shrink()
    assert session.prefixes.held.size_bytes == 0


def test_a_callers_own_is_nobody_elses_still(session: Session) -> None:
    """Nobody gives to everybody but who says so."""
    filled(session, PROMPT, "uid 1", BOUNDARY)
    assert filled(session, PROMPT, "uid 2", BOUNDARY)[1] == 0
    assert filled(session, PROMPT, EVERYBODY, BOUNDARY)[1] == 0
