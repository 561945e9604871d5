"""The draws by chance that leave a loop: their own settings, their own source of chance, all that the request wants."""

from collections.abc import Sequence

import numpy as np
import pytest

from appliance.decoding.breaker import RESAMPLED, Break, Words
from appliance.decoding.sampling import SamplingParams, apply, choose, processors
from appliance.engine.completion import CompletionRequest, Delta, complete
from tests.fakes.scripted import RuledSession

END, LINE_END = 290, 289
WORDS = [b" " + bytes(97 + (n // 26**k) % 26 for k in range(3)) for n in range(LINE_END)] + [b"\n"] + [b""] * 10
VOCABULARY = Words.of(WORDS)
GREEDY = SamplingParams(temperature=0)
PROMPT, PERIOD = (299, 298, 251), 12
SENTENCE = list(range(PERIOD))


def run(session: RuledSession, sampling: SamplingParams, index: int = 0) -> tuple[list[int], list[Break]]:
    """The answer's tokens, and what was broken."""
    request = CompletionRequest(prompt=PROMPT, sampling=sampling, max_tokens=900, index=index)
    deltas = [s for s in complete(session, VOCABULARY, request) if isinstance(s, Delta)]  # type: ignore[arg-type]
    return [token for d in deltas for token in d.tokens], [done for d in deltas for done in d.breaks]


def model(lead: int, rule: dict[int, dict[int, float]]) -> RuledSession:
    """A model that says `lead` tokens of a row, then a sentence for ever; where it is left, it follows a rule.

    Args:
        lead: tokens before the sentence, of 100 and the next ones.
        rule: tokens since the sentence was left -> logits from there on, up to the next number of tokens; under 0 what
            rivals the sentence has.
    """

    def logits(seen: Sequence[int]) -> dict[int, float]:
        said = list(seen[len(PROMPT) :])
        if len(said) < lead:
            return rule.get(-2) or {100 + len(said): 5000}
        rest = said[lead:]
        left = next((i for i, token in enumerate(rest) if token != SENTENCE[i % PERIOD]), None)
        if left is None:
            return {SENTENCE[len(rest) % PERIOD]: 5000} | rule[-1]
        return rule[max(n for n in rule if n <= len(rest) - left)]

    return RuledSession(logits, stop=(END,))


TWO = {-1: {250: 48.5, 251: 48}, 0: {END: 50}}


@pytest.mark.parametrize(
    "sampling", [GREEDY, SamplingParams(temperature=0, presence_penalty=2)], ids=["plain", "penalty"]
)
def test_each_answer_leaves_in_its_own_way(sampling: SamplingParams) -> None:
    """Greedy requests too, and always the same; a penalty leaves out what only the prompt has said, as ever."""
    first, second = [[run(model(30, TWO), sampling, n)[1][0].replacement for n in range(8)] for _ in range(2)]
    assert first == second
    assert set(first) == {250, 251}


def flat(first: int) -> dict[int, float]:
    return dict.fromkeys(range(first, first + 16), 40.0)


def test_the_requests_own_draws_are_those_that_they_would_have_been() -> None:
    """What is drawn to leave a loop comes from another source; after it the request's goes on where it was."""
    sampling = SamplingParams(temperature=0.8, seed=5)
    rule = {-2: flat(100), -1: flat(200), 0: flat(200), RESAMPLED: flat(220), RESAMPLED + 16: {END: 50}}
    said, breaks = run(model(RESAMPLED, rule), sampling)
    (done,) = breaks
    own, chain = sampling.generator(0), processors(sampling)

    def drawn(logits: dict[int, float]) -> int:
        row = np.zeros(300, np.float32)
        row[list(logits)] = list(logits.values())
        return choose(apply(chain, [], row), own)

    lead = [drawn(flat(100)) for _ in range(RESAMPLED)]
    assert said[:RESAMPLED] == lead
    for n in range(done.at - RESAMPLED):
        assert drawn({SENTENCE[n % PERIOD]: 5000}) == SENTENCE[n % PERIOD]
    left, later = said[done.length : done.length + RESAMPLED], said[done.length + RESAMPLED :]
    assert later == [drawn(flat(220)) for _ in range(16)]
    assert [token - 200 for token in left] != [token - 100 for token in lead]
    assert len(set(left)) > 4


def test_answers_of_one_request_are_drawn_from_streams_of_their_own() -> None:
    """Each of several says something else, and the same each time."""
    rule = {-2: flat(100), -1: {250: 48}, 0: {END: 50}}
    sampling = SamplingParams(temperature=1, seed=7)
    answers = [run(model(20, rule), sampling, index)[0][:20] for index in (0, 1, 0)]
    assert answers[0] == answers[2] != answers[1]


def test_dry_does_not_reach_across_a_line_after_a_rewind_either() -> None:
    """A line may end after the word after which one ended before."""
    sampling = SamplingParams(temperature=0, dry_multiplier=8, dry_allowed_length=1)
    rule = {-1: {250: 48}, 0: {}, 1: {105: 5000}, 2: {LINE_END: 50, 260: 46}, 3: {END: 5000}}

    def logits(seen: Sequence[int]) -> dict[int, float]:
        said = list(seen[len(PROMPT) :])
        return {LINE_END: 5000} if said == list(range(100, 106)) else inner(seen)

    session = model(30, rule)
    inner = session.rule
    session.rule = lambda seen: logits(seen)
    said, breaks = run(session, sampling)
    assert said[breaks[0].length :] == [250, 105, LINE_END]
