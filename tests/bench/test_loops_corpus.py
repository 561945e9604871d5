"""The legitimate documents, and the loops that are planted."""

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from appliance.decoding.breaker import Words
from appliance.models.package import TOKENIZER_FILE
from appliance.models.tokenizer import Tokenizer
from bench.loops import generated, synthetic
from bench.loops.corpus import MAX_CHARACTERS, PIECES, Document, corpus
from bench.loops.replay import first_step, replay
from tests.fakes.built_models import smollm2


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return corpus()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    with smollm2().open() as model:
        return Tokenizer(bytes(model.files[TOKENIZER_FILE]))


@pytest.fixture(scope="module")
def words(tokenizer: Tokenizer) -> Words:
    return Words.of(tokenizer.token_bytes, tokenizer.control, tokenizer.encode("\n", bos=False))


def test_there_are_a_thousand_documents_of_many_kinds(documents: Sequence[Document]) -> None:
    """At least 1,000 without one file of this machine, at least 12 kinds, none of them the most of it."""
    kinds = Counter(d.kind for d in documents)
    own = [d for d in documents if ":" not in d.id]

    assert len(own) >= 1000
    assert len({d.text for d in documents}) == len({d.id for d in documents}) == len(documents)
    assert len({d.kind for d in own}) >= 12
    assert max(kinds.values()) <= len(documents) / 10
    assert all(0 < len(d.text) <= MAX_CHARACTERS for d in documents)


def test_the_documents_are_the_same_every_time(documents: Sequence[Document]) -> None:
    """Nothing depends on a clock, a hash or the order of a folder."""
    assert corpus() == documents


def test_a_file_gives_two_pieces_at_most(documents: Sequence[Document]) -> None:
    """No single file weighs more than that."""
    files = Counter(d.id.rsplit(":", 1)[0] for d in documents if ":" in d.id)

    assert max(files.values(), default=0) <= PIECES


def test_what_repeats_because_it_was_asked_for_comes_with_its_request(documents: Sequence[Document]) -> None:
    """The answer holds what the request names, as often as it says."""
    said = [d for d in documents if d.kind == "said n times, as asked"]

    assert len(said) >= 40
    for one in said:
        assert one.request is not None
        count = next(int(w.strip(",.")) for w in one.request.split() if w.strip(",.").isdigit())
        what = one.text[-3:].strip()
        assert one.text.count(what) >= count


@pytest.mark.parametrize("kind", generated.KINDS)
def test_documents_of_a_kind_differ(kind: str) -> None:
    """The numbered documents of a kind are not one document."""
    texts = generated.documents(generated.KINDS[kind], kind, 12)

    assert len(set(texts)) >= 6


def test_replay_says_where_the_breaker_acts(tokenizer: Tokenizer, words: Words) -> None:
    """Prose passes; a planted loop is acted on behind its beginning; the same as an answer to a request passes."""
    prose = "The pump was taken out of service, because its bearing had become too warm. A second one ran at once."
    saying = "I will not talk in class. "
    texts = [
        Document("prose", "prose", prose),
        Document("loop", "prose", prose + " " + saying * 50),
        Document("asked", "said", saying * 50, f'Say "{saying.strip()}" 50 times.'),
    ]

    quiet, loop, asked = replay(texts, tokenizer, words)

    assert quiet.acted is None
    assert asked.acted is None
    assert loop.acted is not None
    assert len(tokenizer.encode(prose)) < loop.acted.at < loop.tokens


def test_planted_loops_have_the_period_of_their_class(tokenizer: Tokenizer, words: Words) -> None:
    """Exact ones to the token, counters about; all classes are there, and the same every time."""
    planted = list(synthetic.plant(tokenizer, words, 2))

    assert planted == list(synthetic.plant(tokenizer, words, 2))
    assert {p.periods for p in planted if p.kind == "exact"} == set(synthetic.CLASSES)
    for one in planted:
        low, high = synthetic.CLASSES[one.periods]
        assert low * 0.6 - 2 <= one.period <= high * 1.2 + 8, one
    exact = [p for p in planted if p.kind == "exact"]
    assert {p.period for p in exact} >= {4, 15, 16, 63, 64, 255, 256, 1024}
    assert sum(p.delay is not None for p in exact) >= 8


def test_drift_changes_one_token_in_half_of_the_copies(tokenizer: Tokenizer) -> None:
    """The other half stays as it was."""
    copies = synthetic._drift(tokenizer, 40, random.Random(3))  # noqa: S311  varies loops, hides nothing

    common = Counter(map(tuple, copies)).most_common(1)[0]
    changed = [c for c in copies if tuple(c) != common[0]]
    assert common[1] == len(copies) - len(copies) // 2
    assert all(sum(a != b for a, b in zip(c, common[0], strict=True)) == 1 for c in changed)


def test_text_before_a_planted_loop_is_no_loop(tokenizer: Tokenizer, words: Words) -> None:
    """Else it would be found for the wrong reason."""
    for n in range(10):
        rng = random.Random(n)  # noqa: S311  varies texts, hides nothing
        assert first_step(words, synthetic._passage(tokenizer, 1000, rng)) is None
