"""`skerry preferences`: pairs of a better and a worse answer, for training."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from appliance.cli import terminal
from appliance.cli.box import JsonOption, box
from appliance.cli.output import emit, emit_json, fields, note, number, size
from appliance.errors import ConfigError, FileProblem, InvalidRequest

if TYPE_CHECKING:
    from appliance.config import Config

app = typer.Typer(no_args_is_help=True, help="Pairs of a better and a worse answer, if the site keeps them.")

ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="The configuration that the daemon was started with.")
]


@app.command()
def status(ctx: typer.Context, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show whether pairs are kept, where, and how many there are.

    They are open to the daemon's user and root only.
    """
    from appliance.inferenced import preferences

    settings = _settings(ctx, config)
    policy, directory = settings.preferences, settings.preferences_dir
    kept = preferences.survey(directory)
    if as_json:
        head = {"enabled": policy.enabled, "directory": str(directory), "max_bytes": policy.max_bytes}
        emit_json(head | dataclasses.asdict(kept))
        return
    rows = [
        ("kept", "yes" if policy.enabled else "no; set preferences.enabled in the configuration"),
        ("directory", str(directory)),
        ("broken loops", number(kept.breaks)),
        ("groups", f"{number(kept.groups)} that verifiers judged"),
        ("pairs", number(kept.pairs)),
        ("size", f"{size(kept.size_bytes)} of at most {size(policy.max_bytes)}"),
    ]
    if kept.skipped:
        rows.append(("left out", f"{number(kept.skipped)} lines that are not whole"))
    emit("\n".join(fields(rows)))


@app.command()
def export(
    ctx: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help="Where to write; - is standard output.")],
    kind: Annotated[
        Literal["all", "break", "group"], typer.Option(metavar="KIND", help="break, group, or all of them.")
    ] = "all",
    form: Annotated[
        Literal["chat", "text"] | None,
        typer.Option(metavar="FORM", help="chat or text: prompts of one form; needed if there are both."),
    ] = None,
    details: Annotated[bool, typer.Option("--details", help="Add kind, time, tokens, verifier and model.")] = False,
    config: ConfigOption = None,
) -> None:
    """Write the pairs as JSONL with prompt, chosen and rejected, as TRL's DPOTrainer reads it.

    They hold what people typed: treat the file as you treat their mail.
    """
    import msgspec

    from appliance.inferenced import preferences

    directory = _settings(ctx, config).preferences_dir
    chosen_kind = None if kind == "all" else kind
    found = [r for r in preferences.records(directory, chosen_kind) if form is None or r.chat == (form == "chat")]
    if len({r.chat for r in found}) > 1:
        raise InvalidRequest(
            "cannot export the pairs: some prompts are conversations and some are texts, expected one form in a file",
            hint="pass --form chat, then --form text with another file",
        )
    rows = [pair for record in found for pair in preferences.pairs(record, details=details)]
    lines = [msgspec.json.encode(row) for row in rows]
    if file == "-":
        for line in lines:
            emit(terminal.safe_json(line.decode()))
    else:
        _write(Path(file), b"".join(line + b"\n" for line in lines))
    note(f"{number(len(rows))} pairs from {directory}" if rows else f"no pairs in {directory}")


def _settings(ctx: typer.Context, config: Path | None) -> "Config":
    """The configuration of the daemon that keeps the pairs, found as `skerry serve` finds it."""
    from appliance.config import load_config

    chosen = box(ctx)
    if config is None:
        return chosen.config()
    if chosen.state_dir:
        raise ConfigError("cannot find the pairs: both --state-dir and --config, expected one of them")
    return load_config(config)


def _write(path: Path, data: bytes) -> None:
    from appliance.files import write_durably

    if path.exists():
        raise FileProblem(f"cannot write {path}: it exists", hint="name another file")
    write_durably(path, data, 0o600)
