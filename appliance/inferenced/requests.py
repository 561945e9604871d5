"""What the OpenAI routes accept, as frozen types, and its translation to the engine's terms.

A field that is not listed is refused by name: a caller who asks for something that is silently not done would be worse
off than one who is told. Fields of OpenAI's that cannot change the answer (`user`, `metadata`, `store`) are accepted.

Source: OpenAI's API reference, chat completions and completions.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from appliance.decoding.sampling import SamplingParams
from appliance.engine.completion import CompletionRequest
from appliance.errors import ContextTooLong, InvalidRequest, NoChatTemplate
from appliance.inferenced.models import Loaded

MAX_ANSWERS = 8
MAX_STOPS = 16
MAX_TOP_LOGPROBS = 20
_TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,8}")

Text = Annotated[str, Meta(max_length=1 << 20)]
StopText = Annotated[str, Meta(min_length=1, max_length=256)]
Count = Annotated[int, Meta(ge=1, le=1 << 20)]


class TextPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A piece of a message; Skerry's models read text only."""

    type: Literal["text"]
    text: Text


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[tuple[TextPart, ...], Meta(min_length=1, max_length=64)]
    name: Annotated[str, Meta(max_length=64)] | None = None

    def plain(self) -> dict[str, str]:
        """The turn as templates expect it: one text, and OpenAI's newer name of the system role undone."""
        content = self.content if isinstance(self.content, str) else "".join(p.text for p in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a stream carries beside text."""

    include_usage: bool = False
    include_obfuscation: bool = False


class TextFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The only response format so far."""

    type: Literal["text"]


class _Common(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Fields that both routes have. None means: the model card's default."""

    model: Annotated[str, Meta(max_length=64)] | None = None
    max_tokens: Count | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: Annotated[dict[str, float], Meta(max_length=1024)] | None = None
    seed: int | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_ANSWERS)] | None = None
    stop: StopText | Annotated[tuple[StopText, ...], Meta(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, Meta(max_length=512)] | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None

    @property
    def answers(self) -> int:
        """How many answers are wanted."""
        return self.n or 1

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else self.stop or ()


class ChatRequest(_Common, frozen=True):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[tuple[Message, ...], Meta(min_length=1, max_length=1024)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    response_format: TextFormat | None = None


class TextRequest(_Common, frozen=True):
    """The body of POST /v1/completions. One prompt a request: text, or token ids."""

    prompt: Text | Annotated[tuple[Any, ...], Meta(min_length=1, max_length=1 << 20)]
    logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    echo: bool | None = None


def chat_jobs(request: ChatRequest, loaded: Loaded) -> list[CompletionRequest]:
    """Render, tokenize and bound a chat request: one engine request for each answer.

    Raises:
        NoChatTemplate: the model is a base model.
        InvalidRequest, ContextTooLong: with the field at fault.
    """
    if loaded.template is None:
        raise NoChatTemplate(
            f"cannot chat with {loaded.name}: it is a base model without a chat template",
            hint="send a prompt to /v1/completions, or choose another model",
            param="model",
        )
    if request.top_logprobs and not request.logprobs:
        raise InvalidRequest("cannot give top_logprobs: logprobs is not true", param="top_logprobs")
    messages = [m.plain() for m in request.messages]
    _check_length("".join(m["content"] for m in messages), loaded, "messages")
    prompt = loaded.template.encode(messages)
    top = (request.top_logprobs or 0) if request.logprobs else None
    wanted = request.max_completion_tokens or request.max_tokens
    return _jobs(request, loaded, prompt, wanted, top, "messages")


def text_jobs(request: TextRequest, loaded: Loaded) -> list[CompletionRequest]:
    """Tokenize and bound a completion request: one engine request for each answer.

    Raises:
        InvalidRequest, ContextTooLong: with the field at fault.
    """
    if request.echo:
        raise InvalidRequest("cannot echo the prompt: it is not supported", param="echo", hint="leave echo out")
    given: str | Sequence[Any] = request.prompt
    if not isinstance(given, str) and len(given) == 1 and isinstance(given[0], str | list):
        given = given[0]  # a batch of one
    if isinstance(given, str):
        _check_length(given, loaded, "prompt")
        prompt = loaded.tokenizer.encode(given)
    else:
        prompt = _token_ids(given, len(loaded.tokenizer))
    if not prompt:
        raise InvalidRequest("cannot complete an empty prompt: this model has no first token", param="prompt")
    return _jobs(request, loaded, prompt, request.max_tokens, request.logprobs, "prompt")


def _check_length(text: str, loaded: Loaded, field: str) -> None:
    """Refuse what cannot fit whatever its tokens are, before the work of tokenizing it."""
    context = loaded.session.card.context_length
    if len(text.encode("utf-8", "replace")) > context * loaded.tokenizer.longest:
        raise ContextTooLong(
            f"cannot answer: {len(text)} characters cannot fit, the context of {loaded.name} is {context} tokens",
            hint="shorten the prompt",
            param=field,
        )


def _token_ids(prompt: Sequence[Any], vocabulary: int) -> list[int]:
    if any(isinstance(p, str | list | tuple) for p in prompt):
        raise InvalidRequest(
            f"cannot complete {len(prompt)} prompts: expected one", param="prompt", hint="send a request for each"
        )
    if not all(type(p) is int and 0 <= p < vocabulary for p in prompt):
        raise InvalidRequest(f"cannot use the prompt: expected token ids from 0 to {vocabulary - 1}", param="prompt")
    return list(prompt)


def _jobs(
    request: _Common, loaded: Loaded, prompt: list[int], wanted: int | None, top_logprobs: int | None, field: str
) -> list[CompletionRequest]:
    card = loaded.session.card
    room = card.context_length - len(prompt)
    if room < 1 or (wanted or 1) > room:
        raise ContextTooLong(
            f"cannot answer: the prompt has {len(prompt)} tokens"
            + (f" and max_tokens is {wanted}" if wanted else "")
            + f", the context of {loaded.name} is {card.context_length}",
            hint="shorten the prompt or lower max_tokens",
            param=field if room < 1 else "max_tokens",
        )
    sampling = _sampling(request, loaded)
    return [
        CompletionRequest(
            prompt=tuple(prompt),
            sampling=sampling,
            max_tokens=wanted or min(card.generation.max_tokens, room),
            stop=request.stops,
            top_logprobs=top_logprobs,
            index=index,
        )
        for index in range(request.answers)
    ]


def _sampling(request: _Common, loaded: Loaded) -> SamplingParams:
    defaults = loaded.session.card.generation

    def given(name: str) -> Any:
        value = getattr(request, name)
        return getattr(defaults, name) if value is None else value

    if not all(_TOKEN_ID.fullmatch(token) for token in request.logit_bias or {}):
        raise InvalidRequest("cannot use logit_bias: its keys must be token ids", param="logit_bias")
    bias = {int(token): value for token, value in (request.logit_bias or {}).items()}
    sampling = SamplingParams(
        temperature=given("temperature"),
        top_p=given("top_p"),
        top_k=given("top_k"),
        min_p=given("min_p"),
        repetition_penalty=given("repetition_penalty"),
        frequency_penalty=request.frequency_penalty or 0.0,
        presence_penalty=request.presence_penalty or 0.0,
        logit_bias=bias,
        seed=request.seed,
    )
    sampling.validate(loaded.session.card.vocabulary_size)
    return sampling
