"""`skerry status`: the daemon at a glance."""

from typing import TYPE_CHECKING

import typer

from appliance.cli.box import JsonOption, box
from appliance.cli.output import count, duration, emit, emit_json, fields, number, size, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from appliance.client import ModelInfo, Status


def status(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """Show whether the daemon is well, what it does and which models it has."""
    with box(ctx).client() as client:
        found = client.status()
    if as_json:
        emit_json(found)
        return
    emit("\n".join(_overview(found)))
    emit()
    emit("\n".join(models_table(found.models)))


def _overview(s: "Status") -> list[str]:
    r, limits, caller = s.requests, s.limits, s.caller
    roles = ", ".join(caller.roles) or "none"
    return fields(
        [
            ("daemon", f"{s.state}, version {s.version}, up {duration(s.uptime_s)}, pid {s.pid or '-'}"),
            ("socket", s.socket or "-"),
            ("memory", f"{size(s.memory.resident_bytes)} resident, {s.threads or '-'} threads"),
            ("now", f"{r.running} running, {r.queued} waiting"),
            (
                "limits",
                f"{number(limits.running)} running, {number(limits.queued)} waiting, "
                f"{number(limits.per_caller)} for each caller",
            ),
            (
                "since start",
                f"{number(r.total)} requests, {number(r.rejected)} rejected, {number(r.cancelled)} cancelled",
            ),
            ("tokens", f"{number(s.tokens.prompt)} read, {number(s.tokens.generated)} written"),
            ("you", f"uid {caller.uid if caller.uid is not None else '-'}, roles: {roles}"),
        ]
    )


def models_table(models: "Sequence[ModelInfo]") -> list[str]:
    """Lay out models; those with a problem have it below the table."""
    if not models:
        return ["no models are installed"]
    rows = [
        [
            m.name,
            m.state,
            size(m.size_bytes),
            number(m.context_length),
            count(m.parameters.total if m.parameters else None),
            {True: "yes", False: "no", None: "-"}[m.chat],
            number(m.requests),
        ]
        for m in models
    ]
    head = ["MODEL", "STATE", "SIZE", "CONTEXT", "PARAMS", "CHAT", "CALLS"]
    lines = table(head, rows, right=("SIZE", "CONTEXT", "PARAMS", "CALLS"))
    for m in models:
        if m.problem:
            lines += ["", *fields([("refused", m.name), ("reason", m.problem.message)], 8)]
            lines += fields([("hint", m.problem.hint)], 8) if m.problem.hint else []
    return lines
