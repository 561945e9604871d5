"""`skerry chat`: a conversation, line by line.

Works on any terminal: it prints lines and moves no cursor; line editing and history are readline's, where there is one.
With input from a pipe every line is a turn. What the operator types is kept in a history file that only they can read;
`--no-history` keeps nothing.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli import ask, output, terminal
from appliance.cli.box import MaxTokensOption, ModelOption, SeedOption, SystemOption, TemperatureOption, box
from appliance.cli.output import emit, note
from appliance.errors import ContextTooLong, InvalidRequest, ModelNotFound, SkerryError

if TYPE_CHECKING:
    from appliance.client import Answer, Client, Message, Options

HISTORY_LINES = 1000
PROMPT, CONTINUED = "> ", ". "


def chat(
    ctx: typer.Context,
    model: ModelOption = None,
    system: SystemOption = None,
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = None,
    seed: SeedOption = None,
    stats: Annotated[bool, typer.Option("--stats", help="Print speed and counts after every answer.")] = False,
    no_history: Annotated[bool, typer.Option("--no-history", help="Neither read nor write the history file.")] = False,
) -> None:
    """Talk with a model. /help lists the commands, Ctrl-C stops an answer, Ctrl-D ends."""
    wanted = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    options: Options = {k: v for k, v in wanted.items() if v is not None}  # type: ignore[assignment]
    interactive = sys.stdin.isatty()
    with box(ctx).client() as client:
        conversation = Conversation(client, model, system, options, stats)
        if interactive:
            conversation.greet()
        history = None if no_history or not interactive else history_path()
        with line_reader(history) as read:
            conversation.run(read)


class Conversation:
    """The turns so far, and what the operator set. Its public methods named `do_x` are the commands `/x`."""

    def __init__(
        self, client: "Client", model: str | None, system: str | None, options: "Options", stats: bool
    ) -> None:
        self._client, self._model, self._system = client, model, system
        self._options, self._stats = options, stats
        self._turns: list[Message] = []
        self._last: Answer | None = None
        self._tokens = 0
        self._over = False

    def greet(self) -> None:
        """Say which model answers; fails now, not at the first question, if nobody is there."""
        names = self._client.model_ids()
        if self._model is not None and self._model not in names:
            raise _unknown(self._model, names)
        which = self._model or (names[0] if len(names) == 1 else "the only one that can chat")
        note(f"model: {which}   /help lists the commands, Ctrl-D ends")

    def run(self, read: Callable[[], str | None]) -> None:
        """Take lines until there are no more."""
        while not self._over and (line := read()) is not None:
            try:
                self._take(line)
            except SkerryError as e:
                output.report(e)
                if isinstance(e, ContextTooLong) and self._turns:
                    note("hint: /reset forgets the conversation so far")

    def _take(self, line: str) -> None:
        text = line.strip()
        if text.startswith("/") and not text.startswith("//"):
            verb, _, rest = text[1:].partition(" ")
            command = getattr(self, f"do_{verb}", None)
            if command is None:
                raise InvalidRequest(f"cannot do /{verb}: no such command", hint="/help lists them")
            command(rest.strip())
        elif text:
            self._say(text.removeprefix("/"))

    def _say(self, text: str) -> None:
        from appliance.client import Message

        head = [Message("system", self._system)] if self._system else []
        turns = [*self._turns, Message("user", text)]
        answer, complete = ask.show(self._client.stream_chat([*head, *turns], self._model, **self._options))
        # A turn that failed has raised before this line and is forgotten, so that it can be tried again.
        self._turns = [*turns, Message("assistant", answer.text)]
        self._last = answer
        self._tokens += (answer.usage.completion_tokens if answer.usage else 0) or 0
        if not complete:
            note("stopped")
        elif answer.finish_reason == "length":
            note("note: cut at the longest answer allowed; `continue` may go on")
        if self._stats:
            note(ask.figures(answer))

    # --- commands -----------------------------------------------------------------------------------------------------

    def do_help(self, _: str) -> None:
        """List the commands."""
        commands = [(f"/{n[3:]}", getattr(self, n).__doc__ or "") for n in sorted(dir(self)) if n.startswith("do_")]
        more = [("\\ at the end", "Go on in the next line."), ("//...", "Say something that begins with a slash.")]
        emit("\n".join(output.fields([*commands, *more])))

    def do_reset(self, _: str) -> None:
        """Forget the conversation."""
        self._turns = []
        note("forgotten; the conversation begins anew")

    def do_system(self, text: str) -> None:
        """Show the system text; /system TEXT sets it, /system - clears it."""
        if text:
            self._system = None if text == "-" else text
        note(f"system: {self._system or '(none)'}")

    def do_model(self, name: str) -> None:
        """List the models; /model NAME changes to another one."""
        names = self._client.model_ids()
        if name:
            if name not in names:
                raise _unknown(name, names)
            self._model = name
            note(f"model: {name}")
        else:
            emit("\n".join(f"{'*' if n == self._model else ' '} {n}" for n in names) or "no models are installed")

    def do_stats(self, _: str) -> None:
        """Show speed and counts, from now on after every answer."""
        self._stats = True
        note(ask.figures(self._last) if self._last else "no answer yet")
        note(f"so far: {len(self._turns)} turns, {self._tokens} tokens written")

    def do_quit(self, _: str) -> None:
        """End; Ctrl-D does the same."""
        self._over = True


def _unknown(name: str, names: tuple[str, ...]) -> ModelNotFound:
    return ModelNotFound(
        f"cannot use model {name}: it is not installed", hint=f"installed: {', '.join(names) or 'none'}"
    )


# --- lines ------------------------------------------------------------------------------------------------------------


def history_path() -> Path:
    """Where the operator's lines are kept: $XDG_STATE_HOME/skerry/chat_history, or below ~/.local/state."""
    home = os.environ.get("XDG_STATE_HOME", "")
    return (Path(home) if Path(home).is_absolute() else Path.home() / ".local/state") / "skerry" / "chat_history"


@contextlib.contextmanager
def line_reader(history: Path | None) -> Iterator[Callable[[], str | None]]:
    """Yield a function that reads the operator's next line, None at the end; a backslash at the end joins lines."""
    with contextlib.ExitStack() as stack:
        keep = stack.enter_context(_history(history)) if history else None

        def read() -> str | None:
            line, prompt = "", PROMPT
            while True:
                try:
                    part = _read_line(prompt)
                except KeyboardInterrupt:
                    note("\n(Ctrl-D or /quit ends)")
                    line, prompt = "", PROMPT
                    continue
                if part is None:
                    return line or None
                if not part.endswith("\\"):
                    line += part
                    if keep and line.strip():
                        keep(line)
                    return line
                line, prompt = line + part[:-1] + "\n", CONTINUED

        yield read


def _read_line(prompt: str) -> str | None:
    """Read a line with editing if both ends are a terminal; None at the end of input."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        try:
            return input(prompt)
        except EOFError:
            emit()
            return None
    if sys.stdin.isatty():  # the answers go into a file or pipe: the prompt must not
        sys.stderr.write(prompt)
        sys.stderr.flush()
    line = sys.stdin.readline()
    return line.rstrip("\n") if line else None


@contextlib.contextmanager
def _history(path: Path) -> Iterator[Callable[[str], None]]:
    """Give readline the lines of former conversations; yield a function that keeps one more."""
    try:
        import readline
    except ImportError:  # a Python without it: no editing, no history
        yield lambda line: None
        return
    fd = _open_history(path)
    if fd is None:
        yield lambda line: None
        return
    with os.fdopen(fd, "r+", encoding="utf-8", errors="replace") as f:
        lines = f.read().splitlines()
        if len(lines) > 2 * HISTORY_LINES:
            lines = lines[-HISTORY_LINES:]
            f.seek(0)
            f.truncate()
            f.writelines(line + "\n" for line in lines)
            f.flush()
        for line in lines[-HISTORY_LINES:]:
            readline.add_history(terminal.safe(line))

        def keep(line: str) -> None:
            # At once, so that a killed session keeps its lines; one write, so that two sessions do not mix.
            with contextlib.suppress(OSError):
                f.write(line.replace("\n", " ") + "\n")
                f.flush()

        yield keep


def _open_history(path: Path) -> int | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
        os.fchmod(fd, 0o600)
    except OSError as e:
        note(f"note: no history: {path}: {e.strerror}")
        return None
    return fd
