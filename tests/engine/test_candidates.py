"""Candidates share a cache, stop when one is good, and the first is what it would be alone."""

from collections.abc import Sequence

import pytest

from appliance.decoding.breaker import Words
from appliance.decoding.sampling import SamplingParams
from appliance.engine.candidates import Finished, complete_until
from appliance.engine.completion import CompletionRequest, Delta, complete
from appliance.engine.generate import Prefilled
from tests.fakes.scripted import RuledSession

END = 290
WORDS = Words.of([b" %d" % n for n in range(290)] + [b""] * 10)


def model() -> RuledSession:
    """A model whose next token is one of three, by what came before."""

    def rule(seen: Sequence[int]) -> dict[int, float]:
        if len(seen) > 30:
            return {END: 50}
        at = sum(seen) % 280
        return {at: 5, (at + 7) % 280: 4.5, (at + 11) % 280: 4}

    return RuledSession(rule, stop=(END,))


def requests(prompts: Sequence[tuple[int, ...]]) -> list[CompletionRequest]:
    return [
        CompletionRequest(
            prompt=prompt, sampling=SamplingParams(temperature=1 if i else 0, seed=4), max_tokens=40, index=i
        )
        for i, prompt in enumerate(prompts)
    ]


def alone(request: CompletionRequest) -> str:
    steps = complete(model(), WORDS, request)  # type: ignore[arg-type]
    return "".join(step.text for step in steps if isinstance(step, Delta))


def test_each_candidate_is_what_it_would_be_alone() -> None:
    """The shared cache changes nothing: same prompt, other order of the same, or another prompt altogether."""
    wanted = requests([(1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 9, 4, 5), (7,), (7, 8)])
    found: list[Finished] = []
    steps = complete_until(model(), WORDS, wanted, lambda one: bool(found.append(one)))  # type: ignore[arg-type]
    list(steps)
    assert [one.text for one in found] == [alone(request) for request in wanted]
    assert [one.index for one in found] == [0, 1, 2, 3, 4]
    assert found[0].text != found[1].text


def test_what_prompts_have_in_common_is_computed_once() -> None:
    """A second candidate of the same prompt needs no prefill; one with another end only that end's."""
    prompt = tuple(range(100))
    session = model()
    steps = complete_until(session, WORDS, requests([prompt, prompt, (*prompt[:90], 200, 201)]), lambda one: False)  # type: ignore[arg-type]
    prefills = [step for step in steps if isinstance(step, Prefilled)]
    assert [step.done for step in prefills] == [99, 91]
    assert [n for n in session.forwards if n > 1] == [99, 1] or session.forwards.count(99) == 1


@pytest.mark.parametrize("good", [0, 1, 2])
def test_the_first_good_one_is_the_last(good: int) -> None:
    """As soon as one is enough, no further one is computed."""
    found: list[Finished] = []

    def enough(one: Finished) -> bool:
        found.append(one)
        return one.index == good

    list(complete_until(model(), WORDS, requests([(1, 2, 3)] * 4), enough))  # type: ignore[arg-type]
    assert len(found) == good + 1
