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
    wanted = requests([(1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 9, 4, 5), (1, 2, 3, 4), (7,), (7, 8)])
    found: list[Finished] = []
    steps = complete_until(model(), WORDS, wanted, lambda one: bool(found.append(one)))  # type: ignore[arg-type]
    list(steps)
    assert [one.text for one in found] == [alone(request) for request in wanted]
    assert [one.index for one in found] == [0, 1, 2, 3, 4, 5]
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


def test_a_candidate_is_told_whole() -> None:
    """Its text to the last token, also where there is room for no other; its loops; and why it ended."""
    said_as = [b" " + bytes(97 + (n // 26**k) % 26 for k in range(3)) for n in range(290)] + [b""] * 10
    lead, sentence = tuple(range(100, 170)), tuple(range(12))

    def rule(seen: Sequence[int]) -> dict[int, float]:
        said = len(seen) - 1
        return {lead[said] if said < len(lead) else sentence[(said - len(lead)) % 12]: 50, 250: 40}

    sampling = SamplingParams(temperature=0)
    wanted = [CompletionRequest(prompt=(1,), sampling=sampling, max_tokens=n, streamed=False) for n in (20, 200)]
    session = RuledSession(rule, stop=(END,))
    found: list[Finished] = []
    steps = list(complete_until(session, Words.of(said_as), wanted, lambda one: bool(found.append(one))))  # type: ignore[arg-type]
    short, long = found
    assert short.text == b"".join(said_as[token] for token in lead[:20]).decode()
    assert (short.finish_reason, short.usage.completion_tokens, short.breaks) == ("length", 20, ())
    assert long.breaks == tuple(done for step in steps if isinstance(step, Delta) for done in step.breaks)
    assert long.breaks[0].rung == "resample"
    assert long.usage.rewound_tokens == sum(done.rewound for done in long.breaks) > 0
