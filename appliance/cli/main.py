"""The command `skerry`: its nouns, global options, and the one place where errors become messages and exit codes.

Exit codes: 0 done, 1 failed, 2 usage, 3 denied, 4 refused by policy, 5 verification failed, 130 stopped by Ctrl-C.
Everything heavy is imported inside the commands: `skerry --help` must come at once.
"""

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from appliance import __version__
from appliance.cli import (
    ask,
    bench,
    chat,
    console,
    disk,
    doctor,
    key,
    model,
    output,
    preferences,
    receipt,
    serve,
    status,
    task,
)
from appliance.cli.box import Box
from appliance.cli.outcome import outcome


class _Group(typer.core.TyperGroup):
    """The command's front page, which has to fit a screen."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Leave the options for completion out of the help: `docs/reference/commands.md` has them."""
        found = super().get_params(ctx)
        for one in found:
            if isinstance(one, typer.core.TyperOption) and one.name in ("install_completion", "show_completion"):
                one.hidden = True
        return found


app = typer.Typer(
    name="skerry",
    cls=_Group,
    no_args_is_help=True,
    # Plain help: it costs few bytes and a quarter of the time, and reads well on any terminal and aloud.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(short_help="Ask a model one question.")(ask.ask)
app.command()(chat.chat)
app.command(short_help="Show what the daemon does, and its models.")(status.status)
app.command(short_help="Check this machine, and how to mend it.")(doctor.doctor)
app.command(short_help="Measure how fast a model is on this box.")(bench.bench)
app.command()(serve.serve)
app.command(short_help="A prompt for operators, without a shell.")(console.console)
app.add_typer(model.app, name="model")
app.add_typer(key.app, name="key")
app.add_typer(disk.app, name="disk")
app.add_typer(receipt.app, name="receipt")
app.add_typer(task.app, name="task")
app.add_typer(preferences.app, name="preferences")


def _print_version(wanted: bool) -> None:
    if wanted:
        output.emit(f"skerry {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    ctx: typer.Context,
    state_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A box in a folder. [env: SKERRY_STATE_DIR]"),
    ] = None,
    socket: Annotated[
        Path | None, typer.Option(metavar="PATH", help="The daemon's socket. [env: SKERRY_SOCKET]")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show where errors arise. [env: SKERRY_DEBUG=1]")] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Small language models on this machine, verified at every load, never online."""
    if debug:
        os.environ["SKERRY_DEBUG"] = "1"  # also for what this command starts
    ctx.obj = Box(state_dir, socket)


def main() -> None:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command; errors become messages on stderr.

    Returns:
        the exit code.
    """
    _open_missing_streams()
    # So that what a command has begun is taken away when the line drops or somebody ends it.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda n, _: sys.exit(128 + n))
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal's encoding lacks must not end the command.
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        code = outcome(lambda: app(arguments, prog_name="skerry"))
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has seen enough (`| head`). Python's own flush at exit must not fail on it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 1
    except OSError as e:  # a full disk, for example
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        print(f"skerry: cannot write the result: {e.strerror}", file=sys.stderr)
        code = 1
    return code


def _open_missing_streams() -> None:
    """Where the caller closed a stream (`>&-`), write to nowhere."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123  open until the end
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123
