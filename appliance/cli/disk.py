"""`skerry disk`: how full the file systems are."""

import os
from typing import TYPE_CHECKING

import typer

from appliance.cli.box import Box, JsonOption, box
from appliance.cli.output import emit, emit_json, fields, note, report, size, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from appliance.errors import FileProblem
    from appliance.system.disk import FileSystem, Settings

app = typer.Typer(no_args_is_help=True, help="How full the file systems are.")


@app.command()
def status(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """Show the file systems of data, logs and root, and their levels.

    Marks and places can be set in /etc/skerry/disk.yaml.
    """
    from appliance.system import disk

    settings = settings_of(box(ctx))
    survey = disk.survey(settings)
    if as_json:
        marks = {"warn_percent": settings.warn_percent, "critical_percent": settings.critical_percent}
        emit_json({"filesystems": survey.found, **marks})
    else:
        emit("\n".join(_lines(survey.found)))
    _tell(survey.problems)


@app.command()
def watch(ctx: typer.Context) -> None:
    """Write a line on standard error for each file system that fills up.

    For a timer. Exit code 1 only if a file system cannot be looked at.
    """
    from appliance.system import disk

    survey = disk.survey(settings_of(box(ctx)))
    for f in survey.found:
        if f.level != "ok":
            holds = ", ".join(f.places)
            text = f"disk {f.level}: {f.mount_point} ({holds}) is {used(f)} full, {size(f.free_bytes)} free"
            note(f"{_priority(f.level)}{text}; next: {f.next_step}")
    _tell(survey.problems)


def _lines(found: "Sequence[FileSystem]") -> list[str]:
    rows = [
        [f.mount_point, ", ".join(f.places), size(f.size_bytes), size(f.free_bytes), used(f), f.level] for f in found
    ]
    head = ["FILE SYSTEM", "HOLDS", "SIZE", "FREE", "USED", "LEVEL"]
    lines = table(head, rows, right=("SIZE", "FREE", "USED"))
    for f in found:
        if f.next_step:
            lines += ["", *fields([(f.level, f.mount_point), ("next", f.next_step)], 8)]
    return lines


def _tell(problems: "Sequence[FileProblem]") -> None:
    for problem in problems[1:]:
        report(problem)
    if problems:
        raise problems[0]


def settings_of(chosen: Box) -> "Settings":
    """The marks, and the places of this box: the machine's own, or its folder and the machine's log and root."""
    import msgspec

    from appliance.system import disk

    settings = disk.load_settings(disk.DISK_CONFIG_PATH)
    if chosen.folder is None:
        return settings
    return msgspec.structs.replace(settings, places=settings.places | {"data": str(chosen.folder.absolute())})


def used(f: "FileSystem") -> str:
    """81%, or 95% of inodes where these run out first."""
    if f.inodes_percent is not None and f.inodes_percent > f.used_percent:
        return f"{f.inodes_percent}% of inodes"
    return f"{f.used_percent}%"


def _priority(level: str) -> str:
    """The journal's mark of a line's priority (sd-daemon(3)), where standard error is the journal."""
    if "JOURNAL_STREAM" not in os.environ:
        return ""
    return "<2>" if level == "critical" else "<4>"
