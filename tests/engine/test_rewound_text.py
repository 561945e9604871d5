"""Characters and stop strings where a loop was broken: as if what was taken back had never been said."""

from collections.abc import Sequence

import pytest

from appliance.decoding.breaker import Break, Words
from appliance.decoding.sampling import SamplingParams
from appliance.engine.completion import CompletionRequest, Delta, complete
from tests.fakes.scripted import RuledSession

END, THINK, ANSWER = 290, 291, 292
FIRST_HALF, SECOND_HALF = 270, 271
TOKEN_BYTES = [b" " + bytes(97 + (n // 26**k) % 26 for k in range(3)) for n in range(290)] + [b"<end>"] + [b""] * 9
TOKEN_BYTES[FIRST_HALF], TOKEN_BYTES[SECOND_HALF] = b"\xc3", b"\xa9"
TEXTS = [data.decode("latin-1") for data in TOKEN_BYTES]
WORDS = Words.of(TOKEN_BYTES, {"<think>": THINK, "</think>": ANSWER})
LEAD, SENTENCE = range(100, 170), range(12)
BEFORE = "".join(TEXTS[token] for token in (*LEAD, *SENTENCE))


def run(
    left: Sequence[int], *, stop: tuple[str, ...] = (), streamed: bool = True, prompt: Sequence[int] = (299,)
) -> tuple[str, list[Delta], list[Break]]:
    """An answer that runs in circles, is taken back, and then goes on with `left`; its first token is drawn."""

    def rule(seen: Sequence[int]) -> dict[int, float]:
        said = list(seen[len(prompt) :])
        if len(said) < len(LEAD):
            return {LEAD[len(said)]: 50}
        rest = said[len(LEAD) :]
        at = next((i for i, token in enumerate(rest) if token != SENTENCE[i % 12]), None)
        if at is None:
            return {SENTENCE[len(rest) % 12]: 50, left[0]: 40}
        return {left[len(rest) - at] if len(rest) - at < len(left) else END: 50}

    request = CompletionRequest(
        prompt=tuple(prompt), sampling=SamplingParams(temperature=0), max_tokens=900, stop=stop, streamed=streamed
    )
    session = RuledSession(rule, stop=(END,))
    deltas = [s for s in complete(session, WORDS, request) if isinstance(s, Delta)]  # type: ignore[arg-type]
    return "".join(d.text for d in deltas), deltas, [done for d in deltas for done in d.breaks]


STOPS = {
    # stop string | text after what was kept; None: the last word that was kept is a part of the stop string
    "no stop string": ((), "".join(TEXTS[200:216])),
    "its beginning was taken back": ((TEXTS[11] + "zzz",), "".join(TEXTS[200:216])),
    "it lies across the place": ((TEXTS[11] + TEXTS[200],), None),
    "it comes later": ((TEXTS[205],), "".join(TEXTS[200:205])),
    "it would be there if a word were read twice": ((TEXTS[200] * 2,), "".join(TEXTS[200:216])),
    "it was taken back": ((TEXTS[11] + TEXTS[0] + TEXTS[200],), "".join(TEXTS[200:216])),
}


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("name", STOPS)
def test_stop_strings_where_a_loop_was_broken(name: str, streamed: bool) -> None:
    """They are found in what remains and what follows, and nowhere else."""
    stop, after = STOPS[name]
    text, deltas, breaks = run(range(200, 216), stop=stop, streamed=streamed)
    assert text == (BEFORE.removesuffix(TEXTS[11]) if after is None else BEFORE + after)
    assert deltas[-1].finish_reason == "stop"
    assert [done.rung for done in breaks] == ["resample"]


@pytest.mark.parametrize("streamed", [True, False])
def test_characters_where_a_loop_was_broken(streamed: bool) -> None:
    """One of two tokens is whole, though it is the first that was drawn there."""
    text, _, _ = run([FIRST_HALF, SECOND_HALF, *range(200, 216)], streamed=streamed)
    assert text == BEFORE + "é" + "".join(TEXTS[200:216])


def test_the_token_that_ends_an_answer_has_no_text() -> None:
    """Whatever bytes a vocabulary has for it."""
    text, deltas, _ = run([200])
    assert text == BEFORE + TEXTS[200]
    assert deltas[-1].text == ""


def test_a_prompt_that_ends_inside_a_thinking_block_is_thought_on() -> None:
    """Thinking that runs in circles twice is ended, though the answer itself did not begin it."""
    again = [200, *list(range(20, 32)) * 10]
    _, _, breaks = run(again, prompt=(THINK,))
    assert [done.rung for done in breaks][:2] == ["resample", "end_thinking"]
    _, _, breaks = run(again, prompt=(THINK, ANSWER))
    assert "end_thinking" not in [done.rung for done in breaks]
