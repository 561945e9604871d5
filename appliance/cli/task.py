"""`skerry task`: run named jobs whose answers are verified."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli import ask, terminal
from appliance.cli.box import JsonOption, ModelOption, box
from appliance.cli.output import emit, emit_json, note, table

if TYPE_CHECKING:
    from appliance.client import TaskResult

app = typer.Typer(no_args_is_help=True, help="Named jobs whose answers are verified.")


@app.command("list")
def list_(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """List the installed tasks."""
    with box(ctx).client() as client:
        found = client.task_list()
    if as_json:
        emit_json(found)
        return
    rows = [(t.name, t.version, str(t.candidates), t.model or "any", t.description) for t in found.tasks]
    emit("\n".join(table(("name", "version", "candidates", "model", "what"), rows)) if rows else "no tasks")
    for broken in found.broken:
        note(f"broken: {broken.name}: {broken.error}; `skerry serve --check` on the box says more")


@app.command(short_help="Give a task an input.")
def run(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="TASK", help="As `skerry task list` names it.")],
    text: Annotated[
        str | None,
        typer.Argument(metavar="INPUT", help="The input; - or nothing reads it from standard input."),
    ] = None,
    file: Annotated[
        list[Path] | None, typer.Option("--file", "-f", metavar="FILE", help="Text to add to the input; repeatable.")
    ] = None,
    source: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A text that citations must be from; repeatable.")
    ] = None,
    model: ModelOption = None,
    timeout: Annotated[
        float, typer.Option(min=0.1, max=86400, metavar="S", help="Longest silence of the daemon.")
    ] = 600.0,
    as_json: JsonOption = False,
) -> None:
    """Give a task an input, and print the best answer.

    Exit code 4 says that the answer is not verified: it is the best of those that failed, or nothing judges it.
    """
    sources = [ask.read_text(path) for path in source or []]
    given = ask.question(text, file or [])
    with box(ctx).client(timeout) as client:
        result = client.run_task(name, given, sources=sources, model=model)
    if as_json:
        emit_json(result)
    else:
        sys.stdout.write(terminal.for_stream(result.output, sys.stdout))
        sys.stdout.write("" if result.output.endswith("\n") else "\n")
        note(_verdict(result))
    if not result.verified:
        raise typer.Exit(4)


def _verdict(result: "TaskResult") -> str:
    failed = [f"{v.verifier} ({v.reason})" for v in result.verdicts if not v.passed]
    tried = f"{result.candidates} candidate{'s' if result.candidates != 1 else ''}"
    if failed:
        return f"NOT verified, the best of {tried}: {', '.join(failed)}"
    if not result.verified:
        why = "it was ended in a loop" if result.finish_reason == "loop" else "the task has no verifier"
        return f"NOT verified: {why}; {tried}"
    return f"verified by {', '.join(v.verifier for v in result.verdicts)}; {tried}"
