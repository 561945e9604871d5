"""`docs/reference/commands.md`, made of the commands themselves.

python -m tests.docs.commands > docs/reference/commands.md
"""

import sys
from collections.abc import Iterator
from typing import Any

import typer.main

from appliance.cli.main import app

HEAD = """# Commands

Made of the commands themselves by `python -m tests.docs.commands`; a test compares it with them.

The result goes to standard output, everything else to standard error. Every command that reads takes `--json`. A
progress bar appears on a terminal when something takes longer than two seconds.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | failed |
| 2 | usage: the arguments, or a file of yours, cannot be understood |
| 3 | denied: your groups do not allow it |
| 4 | refused by policy: a licence that was not accepted, memory that is not there |
| 5 | verification failed: something is not what was signed or pinned |
| 130 | stopped by Ctrl-C |

Shell completion: `skerry --install-completion` writes it for your shell, `skerry --show-completion` prints it. Names of
installed models are completed too, if the daemon answers.
"""


def render() -> str:
    """The whole page."""
    sections = [_section(path, command) for path, command in _walk(["skerry"], typer.main.get_command(app))]
    return "\n".join([HEAD, *sections])


def _walk(path: list[str], command: Any) -> Iterator[tuple[str, Any]]:
    yield " ".join(path), command
    for name, child in getattr(command, "commands", {}).items():
        yield from _walk([*path, name], child)


def _section(path: str, command: Any) -> str:
    usage, rows = [path], []
    for parameter in command.params:
        if parameter.name in ("help", "install_completion", "show_completion"):
            continue
        if parameter.param_type_name == "argument":
            usage.append(parameter.metavar if parameter.required else f"[{parameter.metavar}]")
            rows.append((f"`{parameter.metavar}`", parameter))
        else:
            metavar = "" if parameter.is_flag else f" {parameter.metavar or 'N'}"
            usage += [f"{parameter.opts[0]}{metavar}"] if parameter.required else []
            rows.append((f"`{', '.join(parameter.opts)}{metavar}`", parameter))
    if any(p.param_type_name == "option" and not p.required for _, p in rows):
        usage.insert(1, "[OPTIONS]")
    if getattr(command, "commands", None):
        usage.append("COMMAND")
    lines = [f"## {path}", "", *_help(command.help), "", "```console", f"$ {' '.join(usage)}", "```", ""]
    if rows:
        lines += ["| | |", "|---|---|", *(f"| {name} | {_about(p)} |" for name, p in rows), ""]
    return "\n".join(lines)


def _help(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


def _about(parameter: Any) -> str:
    text = parameter.help + (" Required." if parameter.required else "")
    default = parameter.default
    # A Path prints as "." here and as the user's folder elsewhere; both mean: here.
    if default is not None and not callable(default) and not isinstance(default, bool) and default != []:
        text += f" Default: `{default}`."
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(render())
