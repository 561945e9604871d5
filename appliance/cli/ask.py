"""`skerry ask`: one question, the answer as it is written."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli import terminal
from appliance.cli.box import (
    JsonOption,
    MaxTokensOption,
    ModelOption,
    SeedOption,
    SystemOption,
    TemperatureOption,
    box,
)
from appliance.cli.output import emit_json, note
from appliance.errors import InvalidRequest

if TYPE_CHECKING:
    from appliance.client import Answer, Client, LoopBreak, Message, Options, Stream, Timings

MAX_INPUT_BYTES = 1 << 20


def ask(
    ctx: typer.Context,
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="The question; - or nothing reads it from standard input."),
    ] = None,
    model: ModelOption = None,
    system: SystemOption = None,
    file: Annotated[
        list[Path] | None, typer.Option("--file", "-f", metavar="FILE", help="Text to add to the question; repeatable.")
    ] = None,
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = None,
    top_p: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, metavar="P", help="Sample among the likeliest, up to this sum.")
    ] = None,
    seed: SeedOption = None,
    stop: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="End before this text; repeatable.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the text, without a chat template (base models).")
    ] = False,
    timeout: Annotated[
        float, typer.Option(min=0.1, max=86400, metavar="S", help="Longest silence of the daemon.")
    ] = 600.0,
    stats: Annotated[bool, typer.Option("--stats", help="Print speed and counts on standard error.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Say when a loop is found, and what is done.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Ask a model one question; Ctrl-C stops the answer.

    skerry ask "What does error E42 mean?" --file handbook.txt
    """
    text = question(prompt, file or [])
    wanted = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed, "stop": stop}
    options: Options = {k: v for k, v in wanted.items() if v not in (None, [])}  # type: ignore[assignment]
    if raw and system:
        raise InvalidRequest("cannot use --system with --raw: a text to continue has no roles")
    with box(ctx).client(timeout) as client:
        if as_json:
            messages = turns(system, text)
            answer = client.complete(text, model, **options) if raw else client.chat(messages, model, **options)
            emit_json(summary(answer))
            return
        answer, complete = show(_stream(client, raw, system, text, model, options), explain=explain)
    if stats:
        note(figures(answer))
    if not complete:
        note("stopped")
        raise typer.Exit(130)
    note_cut(answer)


def _stream(
    client: "Client", raw: bool, system: str | None, text: str, model: str | None, options: "Options"
) -> "Stream":
    if raw:
        return client.stream(text, model, **options)
    return client.stream_chat(turns(system, text), model, **options)


def question(prompt: str | None, files: list[Path]) -> str:
    """Put the question together: files, standard input, and last the argument, as small models read best."""
    if prompt is None and sys.stdin.isatty() and not files:
        raise InvalidRequest("cannot ask: no question, expected one", hint='skerry ask "..."; or pipe it in')
    parts = [read_text(path) for path in files]
    if prompt == "-" or (prompt is None and not sys.stdin.isatty()):
        parts.append(_decode(sys.stdin.buffer.read(MAX_INPUT_BYTES + 1), "standard input"))
    elif prompt is not None:
        parts.append(prompt)
    text = "\n\n".join(part.strip("\n") for part in parts if part)
    if not text.strip():
        raise InvalidRequest("cannot ask: the question is empty, expected text")
    return text


def read_text(path: Path) -> str:
    """Read a file of text.

    Raises:
        FileProblem, InvalidRequest: it cannot be read, is too large, or is not UTF-8.
    """
    from appliance.files import read_limited

    return _decode(read_limited(path, MAX_INPUT_BYTES), str(path))


def _decode(data: bytes, what: str) -> str:
    if len(data) > MAX_INPUT_BYTES:
        raise InvalidRequest(f"cannot read {what}: more than {MAX_INPUT_BYTES} bytes", hint="ask about a part of it")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise InvalidRequest(
            f"cannot read {what}: byte {e.start} is not UTF-8, expected text", hint="convert it, e.g. with iconv"
        ) from e


def turns(system: str | None, text: str) -> "list[Message]":
    """Make a conversation of one question."""
    from appliance.client import Message

    first = [Message("system", system)] if system else []
    return [*first, Message("user", text)]


def show(stream: "Stream", *, explain: bool = False) -> "tuple[Answer, bool]":
    """Write an answer to stdout as it arrives; Ctrl-C stops the model.

    Args:
        stream: the answer.
        explain: whether to say on stderr, in the place where it happens, what is done about a loop.
    Returns:
        what arrived, and whether it was allowed to end.
    """
    last, complete = "\n", True
    try:
        with stream:
            for piece in stream:
                for done in piece.loop.breaks if explain and piece.loop else ():
                    note(("" if last.endswith("\n") else "\n") + explanation(done))
                if piece.text:
                    last = piece.text
                    sys.stdout.write(terminal.for_stream(piece.text, sys.stdout))
                    sys.stdout.flush()
    except KeyboardInterrupt:
        complete = False
    finally:
        if not last.endswith("\n"):
            sys.stdout.write("\n")
            sys.stdout.flush()
    return stream.answer, complete


_DONE = {
    "warn": "left as it is",
    "resample": "drawn anew",
    "penalize": "penalized",
    "restart": "begun anew",
    "end_thinking": "thinking ended",
    "complete": "form closed",
    "stop": "cut here",
}
_KINDS = {
    "exact": "the same",
    "counter": "the same but numbers",
    "drift": "nearly the same",
    "list": "items said before",
}


def explanation(done: "LoopBreak") -> str:
    """What was done about a loop, in one line of a terminal."""
    return (
        f"[loop: {_KINDS.get(done.kind, done.kind)}, {done.copies:.0f} x {done.period} tokens; "
        f"{done.rewound} taken back, {_DONE.get(done.rung, done.rung)}]"
    )


def note_cut(answer: "Answer") -> None:
    """Say so if the answer was cut: at its longest, or where it began to repeat itself."""
    if answer.finish_reason == "loop":
        note("note: the answer repeated itself without end; it is cut before that. Ask for less, or in other words")
    if answer.finish_reason == "length":
        n = answer.usage.completion_tokens if answer.usage else None
        note(
            f"note: cut after {n} tokens; --max-tokens allows more" if n else "note: cut at the longest answer allowed"
        )


def figures(answer: "Answer") -> str:
    """Speed and counts of an answer, in one line."""
    t: Timings | None = answer.timings
    if t is None:
        return "no figures: the answer did not end" if answer.finish_reason is None else "no figures"
    parts = [f"{t.completion_tokens or 0} tokens at {t.decode_tokens_per_s or 0:.1f}/s"]
    if t.first_token_s is not None:
        parts.append(f"first after {t.first_token_s:.2f} s")
    parts.append(f"prompt {t.prompt_tokens or 0} tokens at {t.prompt_tokens_per_s or 0:.0f}/s")
    if t.queue_s is not None and t.queue_s >= 0.01:
        parts.append(f"waited {t.queue_s:.2f} s")
    return "; ".join(parts)


def summary(answer: "Answer") -> dict[str, object]:
    """The answer for --json."""
    return {
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "loop": answer.choices[0].loop,
        "model": answer.model,
        "usage": answer.usage,
        "timings": answer.timings,
    }
