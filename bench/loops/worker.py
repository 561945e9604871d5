"""One engine in a process of its own, on one thread: `bench.pipe.Side` asks it for answers.

Two of these give more tokens a second together than one engine on two threads, and an answer of one does not depend on
what the other does.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from appliance.decoding.asked import Asked
from appliance.decoding.sampling import SamplingParams
from appliance.engine.completion import CompletionRequest, Delta, complete
from appliance.inferenced.models import Loaded, ModelHost
from bench.loops.replay import first_step


class Worker:
    """A model and the requests about it."""

    def __init__(self) -> None:
        self._loaded: Loaded | None = None
        self.requests: dict[str, Callable[..., Any]] = {
            "open": self.open,
            "render": self.render,
            "render_chat": self.render_chat,
            "answer": self.answer,
            "breaks": self.breaks,
        }

    @property
    def model(self) -> Loaded:
        """The model that is open."""
        if self._loaded is None:
            raise ValueError("cannot answer: no model is open")
        return self._loaded

    def open(self, path: str, keys: str) -> dict[str, Any]:
        """Load a package; says whether the model converses."""
        package = Path(path)
        self._loaded = ModelHost(package.parent, Path(keys), 1).preload(package.name)
        return {"chat": self._loaded.template is not None}

    def render(self, text: str) -> list[int]:
        """Give the tokens of a prompt: by the model's template, or as they are if it has none."""
        if self.model.template is None:
            return self.model.tokenizer.encode(text)
        return self.model.template.encode([{"role": "user", "content": text}])

    def render_chat(self, messages: list[dict[str, str]]) -> list[int]:
        """Give the tokens of a conversation, by the model's template."""
        if self.model.template is None:
            raise ValueError("cannot render a conversation: the model has no template")
        return self.model.template.encode(messages)

    def answer(
        self, text: str, stop: list[str], temperature: float, seed: int, breaker: Any, max_tokens: int
    ) -> dict[str, Any]:
        """Compute an answer.

        Args:
            text: of the prompt.
            stop: strings that end the answer.
            temperature: 0 is greedy.
            seed: of the chances.
            breaker: "off" or "break".
            max_tokens: the answer's limit.
        """
        request = CompletionRequest(
            prompt=tuple(self.render(text)),
            sampling=SamplingParams(temperature=temperature, seed=seed),
            max_tokens=max_tokens,
            stop=tuple(stop),
            breaker=breaker,
            asked=Asked.of(text),
            streamed=False,  # as a program asks: nobody reads along
        )
        said, tokens, breaks = "", list[int](), list[dict[str, Any]]()
        last: Delta | None = None
        for delta in complete(self.model.session, self.model.words, request):
            if isinstance(delta, Delta):
                last = delta
                said += delta.text
                tokens += delta.tokens
                breaks += [{**asdict(one), "rewound": one.rewound} for one in delta.breaks]
        if last is None or last.usage is None:
            raise ValueError("the engine gave no answer")
        return {
            "prompt_tokens": last.usage.prompt_tokens,
            "tokens": tokens,
            "text": said,
            "finish": last.finish_reason,
            "prompt_s": last.usage.prompt_s,
            "decode_s": last.usage.decode_s,
            "rewound": last.usage.rewound_tokens,
            "breaks": breaks,
        }

    def breaks(self, text: str, tokens: list[int]) -> int | None:
        """Say after how many tokens of an answer the breaker would first have acted; None if never."""
        step = first_step(self.model.words, tokens, text)
        return None if step is None else step.at


def main() -> None:
    """Answer requests from standard input until it ends: {"do": name, ...arguments} -> {"result"} or {"error"}."""
    # Engines print to file descriptor 1 as they like; the answers get a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"result": worker.requests[request.pop("do")](**request)}
        except Exception as e:  # noqa: BLE001  whatever goes wrong is the answer; the other side reports it
            answer = {"error": f"{type(e).__name__}: {e}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
