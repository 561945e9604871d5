"""Answers in OpenAI's shapes, whole and streamed.

An answer that was asked for in some form is judged once more when it is complete: one that ended too early says so in
its `skerry.structure`, and one that is complete and wrong is an error, never an answer. Loops that were found stand in
`loop`.

Source: OpenAI's API reference: the completion and chat completion objects, their chunks, and server-sent events.
`loop` and `skerry` are Skerry's own.
"""

import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import msgspec

from appliance.decoding.breaker import Break
from appliance.decoding.call_loops import Invocation, find_call_loop
from appliance.decoding.sampling import TokenLogprobs
from appliance.engine.completion import Delta, Usage
from appliance.inferenced.models import Loaded
from appliance.inferenced.reading import Reading
from appliance.inferenced.structure import Plan
from appliance.models.tool_styles import Call

DONE = b"data: [DONE]\n\n"


def event(body: dict[str, Any]) -> bytes:
    """One server-sent event. JSON has no raw line break, so one `data:` line holds it all."""
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


@dataclass
class Answer:
    """One of a request's answers, as far as it has come."""

    text: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    breaks: list[Break] = field(default_factory=list)
    finish_reason: str | None = None
    usage: Usage | None = None
    complete: bool | None = None
    at_stop_text: bool = False

    def add(self, delta: Delta) -> None:
        """Take a step's result in."""
        self.text.append(delta.text)
        self.tokens += delta.tokens
        if delta.logprobs is not None:
            self.logprobs.append(delta.logprobs)
        self.breaks += delta.breaks
        if delta.finish_reason is not None:
            self.finish_reason, self.usage, self.complete = delta.finish_reason, delta.usage, delta.complete
            self.at_stop_text = delta.at_stop_text


class Shape:
    """How one request's answers look on the wire."""

    def __init__(self, loaded: Loaded, *, chat: bool, logprobs: bool, plan: Plan | None = None) -> None:
        self._plan = plan or Plan()
        self._vocabulary = loaded.vocabulary
        self._readings: dict[int, Reading] = {}
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
        """The body of a request that is not streamed.

        Raises:
            InternalError: an answer is complete and not of the form that was asked for.
        """
        choices = []
        for index, answer in enumerate(answers):
            reading = Reading(self._plan, self._vocabulary)
            parts = reading.push("".join(answer.text))
            parts += reading.finish(answer.finish_reason, answer.complete, at_stop_text=answer.at_stop_text)
            text, calls = _apart(parts)
            choices.append(
                {
                    "index": index,
                    **self._said(text, calls),
                    "logprobs": self._logprobs(index, answer.logprobs),
                    "finish_reason": _reason(answer.finish_reason, reading),
                    **_loop(answer.breaks, answer.finish_reason, self._plan.history, reading.calls),
                    **_structure(reading),
                }
            )
        return {**self._head, "choices": choices, "usage": usage(answers), "skerry": {"timings": timings}}

    def _said(self, text: str, calls: list[Call]) -> dict[str, Any]:
        if not self._chat:
            return {"text": text}
        content = text or (None if calls or self._plan.must_call else "")
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if calls:
            message["tool_calls"] = [_call_object(call) for call in calls]
        return {"message": message}

    def opening(self, index: int, usage: dict[str, None]) -> list[dict[str, Any]]:
        """What a stream begins with: for chats, the role."""
        if not self._chat:
            return []
        content = None if self._plan.must_call else ""
        choice = {"delta": {"role": "assistant", "content": content}, "logprobs": None}
        return [self._chunk([{"index": index, **choice, "finish_reason": None}], usage)]

    def judges(self, delta: Delta) -> bool:
        """Whether `piece` may take long at this step: an answer's end, or a call's, is judged by its schema."""
        return bool(self._plan.tools or (self._plan.form and delta.finish_reason))

    def piece(self, index: int, delta: Delta, usage: dict[str, None]) -> list[dict[str, Any]]:
        """Chunks for one step: none for a step without text, and the end in one of its own as OpenAI does.

        Raises:
            InternalError: the answer is complete and not of the form that was asked for.
        """
        reading = self._readings.setdefault(index, Reading(self._plan, self._vocabulary))
        known = len(reading.calls)
        parts = reading.push(delta.text)
        if delta.finish_reason:
            parts += reading.finish(delta.finish_reason, delta.complete, at_stop_text=delta.at_stop_text)
        text, calls = _apart(parts)
        choices = []
        if text or delta.logprobs:
            said: dict[str, Any] = {"delta": {"content": text}} if self._chat else {"text": text}
            choices.append({**said, "logprobs": self._logprobs(index, [delta.logprobs] if delta.logprobs else [])})
        for position, call in enumerate(calls, known):
            choices.append({"delta": {"tool_calls": [{"index": position, **_call_object(call)}]}, "logprobs": None})
        empty: dict[str, Any] = {"delta": {}} if self._chat else {"text": ""}
        if delta.breaks:
            choices = choices or [{**empty, "logprobs": None}]
            choices[0] |= _loop(delta.breaks, delta.finish_reason, (), ())
        choices = [{"index": index, **choice, "finish_reason": None} for choice in choices]
        if delta.finish_reason:
            end = {"index": index, **empty, "logprobs": None, "finish_reason": _reason(delta.finish_reason, reading)}
            loop = _loop((), delta.finish_reason, self._plan.history, reading.calls)
            choices.append(end | loop | _structure(reading))
        return [self._chunk([choice], usage) for choice in choices]

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


def _apart(parts: Sequence[str | Call]) -> tuple[str, list[Call]]:
    return "".join(p for p in parts if isinstance(p, str)), [p for p in parts if isinstance(p, Call)]


def _call_object(call: Call) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def _reason(finish_reason: str | None, reading: Reading) -> str | None:
    return "tool_calls" if finish_reason == "stop" and reading.calls else finish_reason


def _structure(reading: Reading) -> dict[str, Any]:
    """Say whether the answer has the form that was asked for; nothing if none was."""
    if reading.valid is None:
        return {}
    reason = {} if reading.valid else {"reason": reading.reason}
    return {"skerry": {"structure": {"valid": reading.valid, **reason}}}


def _loop(
    breaks: Sequence[Break], finish_reason: str | None, history: Sequence[Invocation], calls: Sequence[Call]
) -> dict[str, Any]:
    """Say what was done about loops, and whether the calls of the conversation are one; nothing if nothing is."""
    made = [*history, *(Invocation(call.name, call.arguments) for call in calls)]
    found = find_call_loop(made) if calls else None
    stopped = finish_reason == "loop"
    if not breaks and not stopped and found is None:
        return {}
    return {"loop": {**loop_object(breaks, stopped=stopped), **({"calls": asdict(found)} if found else {})}}


def loop_object(breaks: Sequence[Break], *, stopped: bool) -> dict[str, Any]:
    """What was done about loops, on the wire."""
    names = ("rung", "kind", "onset", "period", "copies", "at", "rewound")
    return {"breaks": [{name: getattr(done, name) for name in names} for done in breaks], "stopped": stopped}


def usage(answers: list[Answer]) -> dict[str, Any]:
    """Count tokens; the prompt once, however many answers it got."""
    taken = [a.usage for a in answers if a.usage]
    prompt, cached = (taken[0].prompt_tokens, taken[0].cached_tokens) if taken else (0, 0)
    completion = sum(u.completion_tokens for u in taken)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


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
        "guessed_tokens": sum(u.guessed_tokens for u in taken),
        "prompt_tokens_per_s": round((first.prompt_tokens - first.cached_tokens) / first.prompt_s, 1)
        if first.prompt_s
        else None,
        "decode_tokens_per_s": round(decoded / first.decode_s, 1) if first.decode_s and decoded else None,
    }
