"""Chat templates: messages to a prompt, in a sandbox, with the callers' words kept apart from the template's.

A template is Jinja and comes signed with the package; it still runs in Jinja's immutable sandbox. A control token's
text inside of a message (`<|im_end|>` typed by a user) is taken out before rendering and put back as plain characters
after tokenizing, so that nobody can end his message and begin the system's.

Source: the `chat_template` convention of the transformers library.
"""

import datetime
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from appliance.errors import CardMismatch, InvalidRequest
from appliance.models.tokenizer import Tokenizer

MAX_PROMPT_CHARACTERS = 8 << 20


class ChatTemplate:
    """The chat template of one model."""

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
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as e:
            raise CardMismatch(f"cannot compile chat_template.jinja: {e}") from e
        self._tokenizer = tokenizer
        self._words = {"bos_token": bos, "eos_token": eos}
        control = sorted(tokenizer.control, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, control))) if control else None

    def encode(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Render messages and tokenize the prompt, ready for the assistant's answer.

        Args:
            messages: each with `role` and `content`.
        Raises:
            InvalidRequest: the template refuses these messages, for example for their order.
        """
        nonce = secrets.token_hex(8)
        taken: list[str] = []

        def take(match: re.Match[str]) -> str:
            taken.append(match[0])
            return f"\ue000{nonce}{len(taken) - 1}\ue001"

        safe = (
            [{**m, "content": self._control.sub(take, m["content"])} for m in messages] if self._control else messages
        )
        try:
            prompt = self._template.render(messages=safe, add_generation_prompt=True, **self._words)
        except (jinja2.TemplateError, TypeError, KeyError, ValueError) as e:
            raise InvalidRequest(f"cannot render the messages: {e}", param="messages") from e
        if len(prompt) > MAX_PROMPT_CHARACTERS:
            raise InvalidRequest("cannot render the messages: the prompt is too long", param="messages")
        # A template may drop or reorder messages, hence the number within each mark.
        own, *marked = re.split(f"\ue000{nonce}([0-9]+)\ue001", prompt)
        ids = self._tokenizer.encode(own, special=True)
        for number, part in zip(marked[::2], marked[1::2], strict=True):
            ids += self._tokenizer.encode(taken[int(number)], special=False, bos=False)
            ids += self._tokenizer.encode(part, special=True, bos=False)
        return ids


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now(datetime.UTC).strftime(form)
