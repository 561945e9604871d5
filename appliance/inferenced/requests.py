"""What the OpenAI routes accept, as frozen types, and its translation to the engine's terms.

A field that is not listed is refused by name: a caller who asks for something that is silently not done would be worse
off than one who is told. Fields of OpenAI's that cannot change the answer (`user`, `metadata`, `store`) are accepted.

Source: OpenAI's API reference, chat completions and completions.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from appliance.decoding.asked import NOTHING, Asked
from appliance.decoding.sampling import SamplingParams
from appliance.engine.completion import CompletionRequest
from appliance.engine.prefixes import common
from appliance.errors import ContextTooLong, InvalidRequest, NoChatTemplate
from appliance.inferenced.messages import Message, Text, invocations_of, turns_of
from appliance.inferenced.models import Loaded
from appliance.inferenced.structure import (
    LoopBreaker,
    Plan,
    ResponseFormat,
    ToolChoice,
    Tools,
    form_of,
    grammar_of,
    plan_of,
)
from appliance.models.template import ChatTemplate
from appliance.models.tool_styles import plain, render

MAX_ANSWERS = 8
MAX_STOPS = 16
MAX_TOP_LOGPROBS = 20
_TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,8}")

StopText = Annotated[str, Meta(min_length=1, max_length=256)]
Count = Annotated[int, Meta(ge=1, le=1 << 20)]


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a stream carries beside text."""

    include_usage: bool = False
    include_obfuscation: bool = False


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
    no_repeat_ngram: int | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    lz_penalty: float | None = None
    logit_bias: Annotated[dict[str, float], Meta(max_length=1024)] | None = None
    seed: int | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_ANSWERS)] | None = None
    stop: StopText | Annotated[tuple[StopText, ...], Meta(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    loop_breaker: LoopBreaker | None = None
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
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None


class TextRequest(_Common, frozen=True):
    """The body of POST /v1/completions. One prompt a request: text, or token ids."""

    prompt: Text | Annotated[tuple[Any, ...], Meta(min_length=1, max_length=1 << 20)]
    logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    echo: bool | None = None


@dataclass(frozen=True)
class Prepared:
    """A request, ready to be computed: an engine request for each answer, and how the answers are read."""

    jobs: list[CompletionRequest]
    plan: Plan


def prepare_chat(request: ChatRequest, loaded: Loaded) -> Prepared:
    """Check, render, tokenize and bound a chat request.

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
    turns = turns_of(request.messages)
    plan = plan_of(
        form=form_of(request.response_format),
        tools=request.tools,
        choice=request.tool_choice,
        parallel=request.parallel_tool_calls,
        history=invocations_of(request.messages),
        template=loaded.template,
    )
    said = [*(turn.content for turn in turns), *(call.arguments for call in plan.history)]
    _check_length("".join(said), loaded, "messages")
    messages, tools = render(plan.style, turns, plan.tools) if plan.style else (plain(turns), None)
    prompt = loaded.template.encode(messages, tools)
    asked = next((turn.content for turn in reversed(turns) if turn.role == "user"), "")
    wanted = _Wanted(
        prompt=tuple(prompt),
        max_tokens=request.max_completion_tokens or request.max_tokens,
        top_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        asked=Asked.of(asked),
        boundary=_boundary(prompt, messages, tools, loaded.template),
        field="messages",
    )
    return Prepared(_jobs(request, loaded, wanted, plan), plan)


def _boundary(
    prompt: list[int],
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    template: ChatTemplate,
) -> int:
    """Count the tokens before the last message's text: they are likely to come again."""
    try:
        return common(prompt, template.encode([*messages[:-1], {**messages[-1], "content": ""}], tools))
    except InvalidRequest:  # a template that wants words there
        return 0


def prepare_text(request: TextRequest, loaded: Loaded) -> Prepared:
    """Check, tokenize and bound a completion request.

    Raises:
        InvalidRequest, ContextTooLong: with the field at fault.
    """
    if request.echo:
        raise InvalidRequest("cannot echo the prompt: it is not supported", param="echo", hint="leave echo out")
    plan = Plan(form_of(request.response_format))
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
    wanted = _Wanted(
        prompt=tuple(prompt),
        max_tokens=request.max_tokens,
        top_logprobs=request.logprobs,
        asked=Asked.of(given) if isinstance(given, str) else NOTHING,
        field="prompt",
    )
    return Prepared(_jobs(request, loaded, wanted, plan), plan)


def prompt_of(request: ChatRequest | TextRequest) -> str | list[dict[str, str]] | None:
    """Give the prompt as people wrote it, for the record of preferences; None for one of token ids or with calls."""
    if isinstance(request, TextRequest):
        return request.prompt if isinstance(request.prompt, str) else None
    turns = turns_of(request.messages)
    return None if request.tools or any(turn.role == "tool" or turn.calls for turn in turns) else plain(turns)


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


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """What the two routes say in ways of their own."""

    prompt: tuple[int, ...]
    max_tokens: int | None
    top_logprobs: int | None
    asked: Asked
    field: str
    boundary: int = 0


def _jobs(request: _Common, loaded: Loaded, wanted: _Wanted, plan: Plan) -> list[CompletionRequest]:
    grammar = grammar_of(plan, loaded.tokenizer.control, loaded.grammar)
    card = loaded.session.card
    room = card.context_length - len(wanted.prompt)
    if room < 1 or (wanted.max_tokens or 1) > room:
        raise ContextTooLong(
            f"cannot answer: the prompt has {len(wanted.prompt)} tokens"
            + (f" and max_tokens is {wanted.max_tokens}" if wanted.max_tokens else "")
            + f", the context of {loaded.name} is {card.context_length}",
            hint="shorten the prompt or lower max_tokens",
            param=wanted.field if room < 1 else "max_tokens",
        )
    sampling = _sampling(request, loaded)
    spoken = plan.spoken(loaded.tokenizer.control)
    return [
        CompletionRequest(
            prompt=wanted.prompt,
            sampling=sampling,
            max_tokens=wanted.max_tokens or min(card.generation.max_tokens, room),
            stop=request.stops,
            top_logprobs=wanted.top_logprobs,
            index=index,
            breaker=request.loop_breaker or "break",
            streamed=bool(request.stream),
            asked=wanted.asked,
            boundary=wanted.boundary,
            grammar=grammar,
            spoken=spoken,
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
    names = ("no_repeat_ngram", "dry_multiplier", "dry_base", "dry_allowed_length", "lz_penalty")
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
        **{name: value for name in names if (value := getattr(request, name)) is not None},
    )
    sampling.validate(loaded.session.card.vocabulary_size)
    return sampling
