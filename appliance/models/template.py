"""Chat templates: messages to a prompt, in a sandbox, with the callers' words kept apart from the template's.

A template is Jinja and comes signed with the package; it still runs in Jinja's immutable sandbox. A control token's
text inside of a message (`<|im_end|>` typed by a user) is taken out before rendering and put back as plain characters
after tokenizing, so that nobody can end his message and begin the system's. The same holds for every text within tools
and tool calls: names, descriptions, keys, arguments and results.

Source: the `chat_template` convention of the transformers library.
"""

import datetime
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import jinja2
import jinja2.meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from appliance.errors import CardMismatch, InvalidRequest
from appliance.models.tokenizer import Tokenizer

MAX_PROMPT_CHARACTERS = 8 << 20


@dataclass(frozen=True, slots=True)
class Control:
    """A control token that Skerry itself, never a caller, writes into a message."""

    word: str


Content = str | Sequence[str | Control]
"""What a message says; parts are joined."""


class ChatTemplate:
    """The chat template of one model.

    Attributes:
        source: Jinja, as the package has it.
        uses_tools: whether it shows tools to the model by itself.
    """

    def __init__(self, source: str, tokenizer: Tokenizer, *, bos: str = "", eos: str = "") -> None:
        """Compile a template.

        Args:
            source: Jinja.
            tokenizer: of the same package.
            bos: text of the first token, which templates may write themselves.
            eos: text of the last token.
        Raises:
            CardMismatch: it does not compile.
        """
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = _strftime_now
        # Jinja's own filter writes for HTML: a quotation mark would reach the model as \u0027.
        environment.filters["tojson"] = _to_json
        try:
            self._template = environment.from_string(source)
            self.uses_tools = "tools" in jinja2.meta.find_undeclared_variables(environment.parse(source))
        except jinja2.TemplateError as e:
            raise CardMismatch(f"cannot compile chat_template.jinja: {e}") from e
        self.source = source
        self._tokenizer = tokenizer
        self._words = {"bos_token": bos, "eos_token": eos}
        self._guard = _Guard(tokenizer.control)

    @property
    def control(self) -> Mapping[str, int]:
        """The model's control tokens."""
        return self._tokenizer.control

    def encode(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """Render messages and tokenize the prompt, ready for the assistant's answer.

        Args:
            messages: each with `role` and `content` (`Content`), and what else the template knows.
            tools: for a template that `uses_tools`.
        Raises:
            InvalidRequest: the template refuses these messages, for example for their order.
        """
        taken = _Taken(self._guard)
        words = {"messages": [taken.out_of_message(m) for m in messages], **self._words}
        if tools is not None:
            words["tools"] = [taken.out_of(tool) for tool in tools]
        try:
            prompt = self._template.render(add_generation_prompt=True, **words)
        except (jinja2.TemplateError, TypeError, KeyError, ValueError) as e:
            raise InvalidRequest(f"cannot render the messages: {taken.put_back(str(e))}", param="messages") from e
        if len(prompt) > MAX_PROMPT_CHARACTERS:
            raise InvalidRequest("cannot render the messages: the prompt is too long", param="messages")
        # A template may drop or reorder messages, hence the number within each mark.
        own, *marked = taken.mark.split(prompt)
        ids = self._tokenizer.encode(own, special=True)
        for number, part in zip(marked[::2], marked[1::2], strict=True):
            ids += self._tokenizer.encode(taken.words[int(number)], special=False, bos=False)
            ids += self._tokenizer.encode(part, special=True, bos=False)
        return ids


class _Guard:
    """Finds what must not reach the tokenizer as a part of the template's text."""

    def __init__(self, control: Mapping[str, int]) -> None:
        words = sorted(control, key=len, reverse=True)
        self.word = re.compile("|".join(map(re.escape, words))) if words else None
        # Of words that look like control tokens only: a text that ends in a letter is no beginning of anything.
        self._beginnings = {w[:size] for w in words if not w[0].isalnum() for size in range(1, len(w))}
        self._longest = max(map(len, self._beginnings), default=0)

    def beginning(self, text: str) -> int:
        """Count the characters at the end that may begin a control token: the next text might have its rest."""
        sizes = range(min(self._longest, len(text)), 0, -1)
        return next((size for size in sizes if text[-size:] in self._beginnings), 0)


@dataclass
class _Taken:
    """What was taken out of the callers' texts, and the marks that stand in its places."""

    guard: _Guard
    nonce: str = field(default_factory=lambda: secrets.token_hex(8))
    words: list[str] = field(default_factory=list)

    @property
    def mark(self) -> re.Pattern[str]:
        return re.compile(f"\ue000{self.nonce}([0-9]+)\ue001")

    def out_of_message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Guard a message: its content, whose parts are joined, and whatever else it has."""
        safe = {key: value if key == "role" else self.out_of(value) for key, value in message.items()}
        content = message.get("content")
        if isinstance(content, list | tuple):
            safe["content"] = "".join(p.word if isinstance(p, Control) else self.out_of(p) for p in content)
        return safe

    def out_of(self, value: Any) -> Any:
        """Guard every text in a value, however deep it is."""
        if isinstance(value, str):
            return self._out_of_text(value)
        if isinstance(value, Mapping):
            return {self.out_of(key): self.out_of(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.out_of(inner) for inner in value]
        return value

    def put_back(self, text: str) -> str:
        """Undo the marks in a text that is not going to be tokenized."""
        return self.mark.sub(lambda match: self.words[int(match[1])], text)

    def _out_of_text(self, text: str) -> str:
        if self.guard.word is None:
            return text
        text = self.guard.word.sub(lambda match: self._take(match[0]), text)
        size = self.guard.beginning(text)
        return text[:-size] + self._take(text[-size:]) if size else text

    def _take(self, word: str) -> str:
        self.words.append(word)
        return f"\ue000{self.nonce}{len(self.words) - 1}\ue001"


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now(datetime.UTC).strftime(form)
