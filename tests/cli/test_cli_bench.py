"""`skerry bench`: what is asked, and how the figures are set."""

import json

from tests.fakes.daemon import TIMINGS, says_json

ROUTE = "/v1/completions"


def answer(prompt_s: float, tokens: int = 96) -> object:
    """An answer of the text route, with what it took."""
    timings = {**TIMINGS, "prompt_s": prompt_s, "prompt_tokens_per_s": 300.0, "decode_tokens_per_s": 90.0}
    usage = {"prompt_tokens": 600, "completion_tokens": tokens, "total_tokens": 600 + tokens}
    choice = {"index": 0, "text": "x", "finish_reason": "length"}
    body = {"object": "text_completion", "model": "tiny", "choices": [choice], "usage": usage}
    return says_json(body | {"skerry": {"timings": timings}})


def test_figures_are_set_for_people(skerry, daemon):
    """The words of the first screen, within 80 columns."""
    daemon.says("POST", ROUTE, answer(1.5))
    result = skerry("bench", "-m", "tiny", "--callers", 2)
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0] == "tiny, medians of 3"
    assert lines[2].split() == ["first", "token", "of", "a", "prompt", "of", "600", "tokens", "1.50", "s"]
    assert "1 times as soon" in lines[3]
    assert lines[4].split() == ["reads", "300", "tokens", "a", "second"]
    assert lines[5].split() == ["writes", "90", "tokens", "a", "second"]
    assert lines[6].startswith("  2 answers at once, together")
    assert max(map(len, lines)) <= 79
    assert "1 other answers are running" in result.err


def test_prompts_are_new_each_time_and_one_is_asked_twice(skerry, daemon):
    """Nothing was kept of the cold ones; the warm one is the very same; no loop is broken, or kept for training."""
    daemon.says("POST", ROUTE, answer(1.5))
    skerry("bench", "-m", "tiny", "--callers", 3)
    asked = [r.json for r in daemon.requests if r.path == ROUTE]
    assert len(asked) == 1 + 3 * (2 + 1 + 3)
    long = [a["prompt"] for a in asked if a["max_tokens"] == 1][1:]
    assert long[0::2] == long[1::2]
    assert len(set(long)) == 3
    others = [a["prompt"] for a in asked if a["max_tokens"] == 96]
    assert len(set(others)) == 12
    assert all(a["temperature"] == 0 and a["loop_breaker"] == "off" for a in asked)
    skerry("bench", "-m", "tiny", "--callers", 1)
    assert not {r.json["prompt"] for r in daemon.requests[-9:] if r.path == ROUTE} & set(long)


def test_figures_as_json(skerry, daemon):
    """The same, by name."""
    daemon.says("POST", ROUTE, answer(0.5))
    found = json.loads(skerry("bench", "-m", "tiny", "--json").out)
    assert found["model"] == "tiny"
    assert found["prompt_tokens"] == 600
    assert (found["first_token_s"], found["again_s"], found["callers"]) == (0.5, 0.5, 4)
    assert (found["read_per_s"], found["write_per_s"]) == (300.0, 90.0)
    assert found["together_per_s"] > 0


def test_several_models_need_a_name(skerry, daemon):
    """As for a question."""
    daemon.says("GET", "/v1/models", says_json({"object": "list", "data": [{"id": "a"}, {"id": "b"}]}))
    result = skerry("bench")
    assert result.code == 2
    assert "a, b" in result.err
    assert "--model" in result.err


def test_a_refusal_is_told(skerry, daemon):
    """A daemon that cannot answer ends it with its own words."""
    from tests.fakes.daemon import error_body

    daemon.says("POST", ROUTE, says_json(error_body("model_not_found", "cannot find tiny"), 404))
    result = skerry("bench", "-m", "tiny")
    assert result.code != 0
    assert "cannot find tiny" in result.err
