"""Answers in OpenAI's shapes, whole and streamed.

Source: OpenAI's API reference: the completion and chat completion objects, their chunks, and server-sent events.
"""

import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import msgspec

from appliance.decoding.sampling import TokenLogprobs
from appliance.engine.completion import Delta, Usage
from appliance.inferenced.models import Loaded

DONE = b"data: [DONE]\n\n"


def event(body: dict[str, Any]) -> bytes:
    """One server-sent event. JSON has no raw line break, so one `data:` line holds it all."""
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


@dataclass
class Answer:
    """One of a request's answers, as far as it has come."""

    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None
    usage: Usage | None = None

    def add(self, delta: Delta) -> None:
        """Take a step's result in."""
        self.text.append(delta.text)
        if delta.logprobs is not None:
            self.logprobs.append(delta.logprobs)
        if delta.finish_reason is not None:
            self.finish_reason, self.usage = delta.finish_reason, delta.usage


class Shape:
    """How one request's answers look on the wire."""

    def __init__(self, loaded: Loaded, *, chat: bool, logprobs: bool) -> None:
        self._tokenizer = loaded.tokenizer
        self._chat = chat
        self._with_logprobs = logprobs
        self._offsets: dict[int, int] = {}
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": "chat.completion" if chat else "text_completion",
            "created": int(time.time()),
            "model": loaded.name,
            # The same fingerprint, request and seed give the same answer on the same machine.
            "system_fingerprint": f"skerry-{loaded.session.model.root_digest[:16]}",
        }

    def whole(self, answers: list[Answer], timings: dict[str, Any]) -> dict[str, Any]:
        """The body of a request that is not streamed."""
        choices = []
        for index, answer in enumerate(answers):
            text = "".join(answer.text)
            message = {"role": "assistant", "content": text, "refusal": None}
            said: dict[str, Any] = {"message": message} if self._chat else {"text": text}
            logprobs = self._logprobs(index, answer.logprobs)
            choices.append({"index": index, **said, "logprobs": logprobs, "finish_reason": answer.finish_reason})
        return {**self._head, "choices": choices, "usage": usage(answers), "skerry": {"timings": timings}}

    def opening(self, index: int, usage: dict[str, None]) -> list[dict[str, Any]]:
        """What a stream begins with: for chats, the role."""
        if not self._chat:
            return []
        choice = {"delta": {"role": "assistant", "content": ""}, "logprobs": None}
        return [self._chunk([{"index": index, **choice, "finish_reason": None}], usage)]

    def piece(self, index: int, delta: Delta, usage: dict[str, None]) -> list[dict[str, Any]]:
        """Chunks for one step: none for a step without text, and the end in one of its own as OpenAI does."""
        chunks = []
        logprobs = self._logprobs(index, [delta.logprobs] if delta.logprobs else [])
        if delta.text or delta.logprobs:
            said: dict[str, Any] = {"delta": {"content": delta.text}} if self._chat else {"text": delta.text}
            chunks.append({"index": index, **said, "logprobs": logprobs, "finish_reason": None})
        if delta.finish_reason:
            said = {"delta": {}} if self._chat else {"text": ""}
            chunks.append({"index": index, **said, "logprobs": None, "finish_reason": delta.finish_reason})
        return [self._chunk([c], usage) for c in chunks]

    def closing(self, answers: list[Answer], timings: dict[str, Any]) -> dict[str, Any]:
        """The last chunk: no choices, but what it took."""
        return {**self._chunk([], {}), "usage": usage(answers), "skerry": {"timings": timings}}

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, None]) -> dict[str, Any]:
        head = {**self._head, "object": "chat.completion.chunk"} if self._chat else self._head
        return {**head, "choices": choices, **usage}

    def _logprobs(self, index: int, entries: list[TokenLogprobs]) -> dict[str, Any] | None:
        if not self._with_logprobs:
            return None
        if self._chat:
            return {"content": [self._chat_entry(e) for e in entries]}
        tokens = [self._name(e.token) for e in entries]
        offsets = []
        for token in tokens:
            offsets.append(self._offsets.setdefault(index, 0))
            self._offsets[index] += len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [e.logprob for e in entries],
            "top_logprobs": [{self._name(t): p for t, p in e.top} for e in entries],
            "text_offset": offsets,
        }

    def _chat_entry(self, entry: TokenLogprobs) -> dict[str, Any]:
        top = [self._chat_token(token, logprob) for token, logprob in entry.top]
        return {**self._chat_token(entry.token, entry.logprob), "top_logprobs": top}

    def _chat_token(self, token: int, logprob: float) -> dict[str, Any]:
        return {
            "token": self._name(token),
            "logprob": logprob,
            "bytes": list(self._tokenizer.token_bytes[token]),
        }

    def _name(self, token: int) -> str:
        return self._tokenizer.names.get(token) or self._tokenizer.token_bytes[token].decode("utf-8", "replace")


def usage(answers: list[Answer]) -> dict[str, int]:
    """Count tokens; the prompt once, however many answers it got."""
    taken = [a.usage for a in answers if a.usage]
    prompt = taken[0].prompt_tokens if taken else 0
    completion = sum(u.completion_tokens for u in taken)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def timings(answers: list[Answer], queue_s: float) -> dict[str, Any]:
    """Say what the first answer took, and all tokens together."""
    taken = [a.usage for a in answers if a.usage]
    if not taken:
        return {}
    first, tokens = taken[0], sum(u.completion_tokens for u in taken)
    decoded = first.completion_tokens - 1
    return {
        "queue_s": round(queue_s, 4),
        "prompt_s": round(first.prompt_s, 4),
        "first_token_s": round(queue_s + first.prompt_s, 4),
        "decode_s": round(first.decode_s, 4),
        "prompt_tokens": first.prompt_tokens,
        "completion_tokens": tokens,
        "prompt_tokens_per_s": round(first.prompt_tokens / first.prompt_s, 1) if first.prompt_s else None,
        "decode_tokens_per_s": round(decoded / first.decode_s, 1) if first.decode_s and decoded else None,
    }
