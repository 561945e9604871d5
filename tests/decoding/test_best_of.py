"""The best candidate is the one that the rules prefer, and no more are asked for than needed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.config import convert
from appliance.decoding.best_of import BestOf, Candidate, choose_best
from appliance.decoding.verifiers import Context, Verdict, Verifier

YES, NO = Verdict(True, "v"), Verdict(False, "v", "no")

# what the first has over the second | first | second
PREFERENCES = [
    ("no loop, whatever passed", {"verdicts": (NO, NO), "index": 3}, {"verdicts": (YES, YES), "looped": True}),
    ("more verifiers", {"verdicts": (YES, YES), "index": 2, "finish_reason": "length"}, {"verdicts": (YES, NO)}),
    ("an end of its own", {"index": 2, "verdicts": (NO, YES)}, {"verdicts": (YES, NO), "finish_reason": "length"}),
    ("being greedy", {"index": 0, "logprob": -9.0}, {"index": 1, "logprob": -0.1}),
    ("likelihood", {"index": 2, "logprob": -0.1}, {"index": 1, "logprob": -0.2}),
    ("coming first", {"index": 1}, {"index": 2}),
]


def candidate(text="a", index=0, **more):
    return Candidate(text=text, index=index, **more)


@pytest.mark.parametrize(("why", "better", "worse"), PREFERENCES)
def test_preference(why, better, worse):
    """Each rule decides where those before it do not, in both orders."""
    first, second = candidate("x", **better), candidate("y", **worse)
    assert choose_best([first, second]) is first
    assert choose_best([second, first]) is first


def test_majority_wins_before_the_greedy_one():
    """Two that say the same outvote the first; a looped one has no vote."""
    texts = ["b", "A.", "a"]
    assert choose_best([candidate(t, i) for i, t in enumerate(texts)]).index == 1
    looped = [candidate("b", 0), candidate("a", 1), candidate("a", 2, looped=True)]
    assert choose_best(looped).index == 0


def test_votes_can_be_on_a_field():
    """Candidates that differ elsewhere agree."""
    texts = ['{"a": 1, "b": 0}', '{"a": 2, "b": 1}', '{"a": 2, "b": 2}']
    every = [candidate(t, i) for i, t in enumerate(texts)]
    assert choose_best(every).index == 0
    assert choose_best(every, "a").index == 1


def test_none_is_an_error():
    """Nothing to choose from is the caller's bug."""
    with pytest.raises(ValueError, match="no candidates"):
        choose_best([])
    with pytest.raises(ValueError, match="no candidates"):
        BestOf().best()


def verifiers(*declared):
    return convert(list(declared), tuple[Verifier, ...], "test")


def test_first_that_passes_ends_it():
    """Later ones are not needed; what is best has its verdicts."""
    best = BestOf(verifiers({"kind": "number"}), Context(input="2 + 3"))
    assert not best.offer(candidate("4", 0))
    assert not best.offer(candidate("5", 1, looped=True))
    assert best.offer(candidate("5", 2))
    assert best.best().index == 2
    assert best.best().verdicts == (Verdict(True, "number"),)
    assert [c.index for c in best.all()] == [0, 1, 2]


def test_without_verifiers_the_greedy_one_is_enough():
    """Unless it looped."""
    assert BestOf().offer(candidate("a", 0))
    best = BestOf()
    assert not best.offer(candidate("a", 0, looped=True))
    assert best.offer(candidate("b", 1))
    assert best.best().text == "b"


def test_agreement_is_judged_again_with_each_candidate():
    """The first cannot agree with anybody; the third makes it the winner, and its verdict says so."""
    best = BestOf(verifiers({"kind": "agreement", "share": 0.6, "field": "a"}))
    assert not best.offer(candidate('{"a": "x", "n": 1}', 0))
    assert not best.offer(candidate('{"a": "y", "n": 2}', 1))
    assert best.offer(candidate('{"a": "X", "n": 3}', 2))
    assert best.best().index == 0
    assert best.best().verdicts[0].passed
    assert not best.offer(candidate('{"a": "y", "n": 4}', 3))


candidates = st.builds(
    Candidate,
    text=st.sampled_from(["a", "b", "A "]),
    index=st.integers(0, 3),
    looped=st.booleans(),
    finish_reason=st.sampled_from(["stop", "length"]),
    verdicts=st.tuples(st.sampled_from([YES, NO]), st.sampled_from([YES, NO])),
    logprob=st.none() | st.floats(-9, 0),
)


@given(st.lists(candidates, min_size=1, max_size=6))
def test_winner_is_never_worse(offered):
    """Whatever is offered: no looped one wins over one that is not, and none that passes more among its like loses."""
    winner = choose_best(offered)
    assert winner in offered
    if winner.looped:
        assert all(c.looped for c in offered)
    assert winner.passed == max(c.passed for c in offered if c.looped == winner.looped)
