"""What makes an answer come sooner: prompts that begin as an earlier one did, and words that it copies."""

import re
import uuid
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.config import Limits
from appliance.engine.prefixes import PART
from appliance.inferenced import completions
from appliance.inferenced.completions import Completions
from tests.fakes.box import Box

HANDBOOK = " ".join(
    f"Rule {n}: the valve of tank {n} is closed by hand before its pump is stopped, and the shift is told."
    for n in range(40)
)


def ask(box: Box, question: str, system: str = HANDBOOK, **more: Any) -> Any:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    return box.post("/v1/chat/completions", {"messages": messages, "temperature": 0, "max_tokens": 24, **more}).json


def cached(answer: Any) -> int:
    tokens: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return tokens


def counted(box: Box, kind: str) -> float:
    found = re.search(rf'skerry_tokens_total{{kind="{kind}",[^}}]*}} ([\d.]+)', box.get("/metrics").body.decode())
    return float(found[1]) if found else 0.0


def test_a_prompt_that_begins_as_before_is_answered_alike(real: Box) -> None:
    """Its beginning is not computed again, and no word of the answer is another one."""
    mark = f"{uuid.uuid4()} "
    first = ask(real, "Which valve comes first?", mark + HANDBOOK)
    assert cached(first) == 0
    before = counted(real, "cached")
    again = ask(real, "Which valve comes first?", mark + HANDBOOK)
    assert cached(again) == again["usage"]["prompt_tokens"] - 1 > 2 * PART
    assert again["choices"][0]["message"] == first["choices"][0]["message"]
    assert counted(real, "cached") - before == cached(again)
    other = ask(real, "Who is told, and when?", mark + HANDBOOK)
    assert cached(again) - 30 < cached(other) < cached(again)  # all but the question
    fresh = ask(real, "Who is told, and when?", f"{uuid.uuid4()} " + HANDBOOK)
    assert cached(fresh) == 0


def test_words_that_are_copied_are_guessed(real: Box) -> None:
    """They are told in the timings, and counted."""
    line = "The red lamp of boiler room B went out on 3 May at noon and was changed by Mrs Okafor."
    before = counted(real, "guessed")
    answer = real.post(
        "/v1/completions", {"prompt": f"{line}\n{line}\n{line}\n", "temperature": 0, "max_tokens": 20}
    ).json
    assert answer["choices"][0]["text"].startswith(line[:40])
    guessed = answer["skerry"]["timings"]["guessed_tokens"]
    assert guessed >= 8
    assert counted(real, "guessed") - before == guessed


def test_the_other_kinds_of_tokens_are_counted_too(real: Box) -> None:
    """Whatever was spared, the prompt and the answer count in full."""
    prompt, generated = counted(real, "prompt"), counted(real, "generated")
    usage = ask(real, "Which valve comes first?")["usage"]
    assert counted(real, "prompt") - prompt == usage["prompt_tokens"]
    assert counted(real, "generated") - generated == usage["completion_tokens"]


@pytest.mark.parametrize("shared", [False, True])
def test_callers_share_only_if_the_site_says_so(monkeypatch: pytest.MonkeyPatch, shared: bool) -> None:
    """Else a caller's beginnings are its own."""
    none: Any = None
    routes = Completions(none, none, Limits(), none, shared_prefixes=shared)
    callers = {"a": 1000, "b": 1001}
    monkeypatch.setattr(completions, "caller_of", lambda request: SimpleNamespace(uid=callers[request]))
    owners = [routes.owner(request) for request in ("a", "b", "a")]  # type: ignore[arg-type]
    assert owners[0] == owners[2]
    assert (owners[0] == owners[1]) == shared
