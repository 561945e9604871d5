"""Other people's clients, unchanged, against the real SmolLM2 behind the real daemon."""

import asyncio
import json
import shutil
import subprocess
from pathlib import Path

import httpx2
import openai
import pytest

from appliance.client import Client
from tests.fakes.box import Box

NAME = "smollm2-135m-instruct-w8a8"
QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]


def test_real_model_knows_the_capital_of_france(sdk: openai.OpenAI) -> None:
    """Greedy SmolLM2, asked through the official package, says Paris and stops by itself."""
    answer = sdk.chat.completions.create(model=NAME, messages=QUESTION, temperature=0, max_tokens=60, extra_body={"repetition_penalty": 1.0})  # fmt: skip  # noqa: E501
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens < 60


def test_sdk_answers_are_sent_back_as_they_are(sdk: openai.OpenAI) -> None:
    """An answer's message is the next request's, with every field that the package's own type has."""
    first = sdk.chat.completions.create(model=NAME, messages=QUESTION, temperature=0, max_tokens=8)
    said = first.choices[0].message.model_dump()
    assert {"annotations", "audio", "function_call", "refusal", "tool_calls"} <= set(said)
    more = [*QUESTION, said, {"role": "user", "content": "And of Italy?"}]
    assert (
        sdk.chat.completions.create(model=NAME, messages=more, temperature=0, max_tokens=4).choices[0].message.content
    )


def test_sdk_streams_and_counts(sdk: openai.OpenAI) -> None:
    """The package's stream gives the whole answer in pieces, then usage."""
    wanted = {"model": NAME, "messages": QUESTION, "temperature": 0, "max_tokens": 30}
    whole = sdk.chat.completions.create(**wanted)  # type: ignore[call-overload]
    pieces, usage = [], None
    for chunk in sdk.chat.completions.create(**wanted, stream=True, stream_options={"include_usage": True}):  # type: ignore[call-overload]
        usage = chunk.usage or usage
        pieces += [c.delta.content or "" for c in chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert len(pieces) > 3
    assert usage == whole.usage


def test_sdk_completions_models_and_logprobs(sdk: openai.OpenAI) -> None:
    """The older route, the list of models and log probabilities parse as the package's own types."""
    assert [m.id for m in sdk.models.list()] == [NAME]
    done = sdk.completions.create(model=NAME, prompt="One, two, three,", max_tokens=5, temperature=0, logprobs=3)
    assert done.choices[0].text.startswith(" four")
    assert done.choices[0].logprobs is not None
    assert len(done.choices[0].logprobs.tokens or []) == 5
    chat = sdk.chat.completions.create(
        model=NAME, messages=QUESTION, max_tokens=3, temperature=0, logprobs=True, top_logprobs=2
    )
    assert chat.choices[0].logprobs is not None
    assert [len(e.top_logprobs) for e in chat.choices[0].logprobs.content or []] == [2, 2, 2]


def test_sdk_raises_its_own_errors(sdk: openai.OpenAI) -> None:
    """Our refusals arrive as the package's exceptions, with our code and param."""
    with pytest.raises(openai.NotFoundError) as missing:
        sdk.chat.completions.create(model="gpt-7", messages=QUESTION)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        sdk.chat.completions.create(model=NAME, messages=QUESTION, temperature=9)
    assert wrong.value.param == "temperature"


def test_sdk_async(real: Box) -> None:
    """The asynchronous client, two questions at once."""

    async def ask() -> list[str | None]:
        transport = httpx2.AsyncHTTPTransport(uds=str(real.socket))
        async with httpx2.AsyncClient(transport=transport) as http:
            client = openai.AsyncOpenAI(base_url="http://skerry/v1", api_key="none", http_client=http)
            answers = await asyncio.gather(
                *(
                    client.chat.completions.create(model=NAME, messages=QUESTION, temperature=0, max_tokens=12)
                    for _ in range(2)
                )
            )
        return [a.choices[0].message.content for a in answers]

    first, second = asyncio.run(ask())
    assert first
    assert first == second


def test_curl(real: Box) -> None:
    """curl, as the documentation shows it."""
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("not run: curl is not installed")
    body = json.dumps({"messages": QUESTION, "temperature": 0, "max_tokens": 30})
    command = [curl, "--silent", "--fail", "--unix-socket", str(real.socket), "http://skerry/v1/chat/completions"]
    run = subprocess.run(
        [*command, "--json", body]
        if _has_json(curl)
        else [*command, "-H", "Content-Type: application/json", "-d", body],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(run.stdout)["choices"][0]["message"]["content"]


def _has_json(curl: str) -> bool:
    return "--json" in subprocess.run([curl, "--help", "all"], capture_output=True, text=True, check=True).stdout


def test_own_client(real: Box) -> None:
    """Skerry's own library: answer, stream and models, with timings."""
    with Client(socket=real.socket) as client:
        answer = client.chat("Say hello.", temperature=0, max_tokens=16)
        assert answer.text
        assert answer.timings is not None
        with client.stream_chat("Say hello.", temperature=0, max_tokens=16) as stream:
            assert "".join(p.text for p in stream) == answer.text
        assert [m.name for m in client.models()] == [NAME]
        assert client.status().models[0].state == "loaded"


def test_cancel_of_a_real_answer_saves_the_rest(real: Box) -> None:
    """A caller who leaves after the first piece costs a token or two, not the 2,000 that were asked for."""
    before = real.wait_idle()["requests"]
    with (
        Client(socket=real.socket) as client,
        client.stream_chat("Count.", max_tokens=2000, logit_bias={"2": -100}) as s,
    ):
        next(iter(s))
    after = real.wait_idle()["requests"]
    assert after["cancelled"] == before["cancelled"] + 1


def test_loading_and_memory_are_within_bounds(real: Box) -> None:
    """Load is verified and ready, and the daemon holds about one copy of the weights, not two."""
    model = real.post(f"/skerry/v1/models/{NAME}/load").json
    assert model["state"] == "loaded"
    resident = real.status()["memory"]["resident_bytes"]
    assert resident < 3 * model["size_bytes"], Path(real.log).read_text()
