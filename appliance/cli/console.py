"""`skerry console`: a prompt for operators in place of a login shell.

Meant as sshd's ForceCommand. It offers the commands of `_OFFERED` with the options that stand there and no others:
a command line is parsed against that table, nothing is ever given to a shell, and no option of it names a file.
With SSH_ORIGINAL_COMMAND (`ssh box status`) that one line is run, with standard input and its exit code.

It works on any terminal, and when the daemon does not. What a caller may do is decided by the daemon, by groups; what
is read here is read as the caller's own user.

What this does NOT protect against: other ways in. Forwarding, subsystems and `~/.ssh/rc` are sshd's to forbid.
"""

import contextlib
import copy
import grp
import os
import pwd
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from appliance import __version__
from appliance.cli import terminal
from appliance.cli.box import Box, box
from appliance.cli.leave import Leave, idle_limit, session_signals
from appliance.cli.outcome import outcome
from appliance.cli.output import emit, note
from appliance.errors import InvalidRequest, PermissionDenied, SkerryError

if TYPE_CHECKING:
    from typer.core import TyperCommand

PROMPT = "skerry> "
_HELP = "Ctrl-C ends a command; quit or Ctrl-D ends the session; COMMAND -h explains."

# Command: its parameters that are offered, by the names of its function. What is not here does not exist.
_SAID = "model system max_tokens temperature seed stats"
_OFFERED = {
    "ask": f"prompt {_SAID} top_p stop raw timeout as_json",
    "chat": f"{_SAID} no_history",
    "status": "as_json",
    "doctor": "quick as_json",
    "bench": "model callers as_json",
    "disk status": "as_json",
    "model list": "as_json",
    "model inspect": "package as_json",
    "model verify": "package as_json",
    "model load": "name",
    "model unload": "name",
    "receipt show": "receipt as_json",
    "receipt verify": "receipt as_json",
}
# Arguments that elsewhere may be paths.
_NAMES = ("package", "receipt")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")


def console(
    ctx: typer.Context,
    idle: Annotated[
        float, typer.Option(min=0, max=1440, metavar="MINUTES", help="Leave after this long without input; 0: never.")
    ] = 15.0,
) -> None:
    """Give operators a prompt with Skerry's commands, and no shell.

    For sshd:  ForceCommand /usr/local/bin/skerry console
    """
    terminal.assume_far_terminal()
    os.chdir("/")  # so that no name is by chance a folder of the caller's
    commands = offered(ctx.find_root().command)
    line = os.environ.get("SSH_ORIGINAL_COMMAND", "")
    try:
        with session_signals(), idle_limit(60 * idle):
            if line.strip():
                raise typer.Exit(run(commands, line, box(ctx)))
            _session(commands, box(ctx))
    except Leave as e:
        raise typer.Exit(e.code) from None


def offered(root: Any) -> TyperGroup:
    """Make the tree of commands that are offered: copies of the real ones, with the listed parameters only."""
    tree = TyperGroup(
        name="skerry", help=_HELP, rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]}
    )
    for words, parameters in _OFFERED.items():
        group, real = tree, root
        *nouns, verb = words.split()
        for noun in nouns:
            real = real.commands[noun]
            if noun not in group.commands:
                group.add_command(TyperGroup(name=noun, help=real.help, rich_markup_mode=None))
            group = group.commands[noun]  # type: ignore[assignment]
        group.add_command(_restricted(real.commands[verb], parameters.split()))
    return tree


def _restricted(command: "TyperCommand", parameters: list[str]) -> "TyperCommand":
    restricted = copy.copy(command)
    restricted.help = (command.help or "").split("\n\n")[0]  # what follows are examples with options that are not here
    restricted.params = [copy.copy(p) for p in command.params if p.name in parameters]
    for p in restricted.params:
        if p.name in _NAMES:
            p.callback, p.metavar = _only_a_name, "NAME"
    return restricted


def _only_a_name(ctx: Any, parameter: Any, value: str | None) -> str | None:
    if value is not None and (not _NAME.fullmatch(value) or Path(value).exists()):
        raise InvalidRequest(f"cannot use {value!a}: expected a name; the console takes no paths")
    return value


def run(commands: TyperGroup, line: str, chosen: Box) -> int:
    """Run one line; its exit code."""
    try:
        words = shlex.split(line)
    except ValueError as e:
        note(f"skerry: cannot read the line: {e}")
        return 2
    if words[:1] == ["skerry"]:
        words = words[1:]
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    # `#` and the like are words as any other: shlex splits, nothing expands.
    return outcome(lambda: commands(words, prog_name="skerry", obj=chosen)) if words else 0


# --- a session --------------------------------------------------------------------------------------------------------


def _session(commands: TyperGroup, chosen: Box) -> None:
    read = _interactive(chosen) if sys.stdin.isatty() else sys.stdin.readline
    # A terminal in another encoding must not end the session.
    sys.stdin.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    while True:
        try:
            line = read()
            if not line or line.strip() in ("quit", "exit", "logout"):
                return
            run(commands, line, chosen)
            sys.stdout.flush()
        except KeyboardInterrupt:
            emit()


def _interactive(chosen: Box) -> Callable[[], str]:
    """Greet, and return what reads a line; an empty text is the end."""
    outcome(lambda: emit("\n".join(greeting(chosen))))
    _line_editing(sorted(_OFFERED))

    def read() -> str:
        try:
            return input(PROMPT) + "\n"
        except EOFError:
            emit()
            return ""

    return read


def greeting(chosen: Box) -> list[str]:
    """Who is where, in what state the daemon is, and how to go on: three lines of ASCII that fit any screen."""
    lines = [
        f"{os.uname().nodename}  Skerry {__version__}  you: {_user()}, roles: {_roles()}",
        f"daemon: {_daemon(chosen)}",
        "help lists the commands, quit or Ctrl-D leaves",
    ]
    return [terminal.safe(ascii(line)[1:-1])[:79] for line in lines]


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"


def _roles() -> str:
    """By the caller's groups, for the eye: the daemon asks the kernel itself."""
    held = []
    for gid in sorted({os.getgid(), *os.getgroups()}):
        with contextlib.suppress(KeyError):
            held.append(grp.getgrgid(gid).gr_name)
    roles = [name.removeprefix("skerry-") for name in held if name.startswith("skerry-")]
    return "all (root)" if os.getuid() == 0 else ", ".join(roles) or "none: ask an administrator"


def _daemon(chosen: Box) -> str:
    try:
        with chosen.client(timeout_s=3.0) as client:
            health = client.health()
            if health.status != "ok":
                return health.status
            try:
                s = client.status()
            except PermissionDenied:
                return "ready"
    except SkerryError as e:
        return f"DOWN: {e.message}"
    loaded = sum(m.state == "loaded" for m in s.models)
    refused = sum(m.state == "refused" for m in s.models)
    more = f", {refused} REFUSED" if refused else ""
    return f"{s.state}, {loaded} of {len(s.models)} models loaded{more}, {s.requests.running} requests running"


def _line_editing(commands: list[str]) -> None:
    """Editing, this session's lines, and Tab for commands; never for names of files."""
    os.environ["INPUTRC"] = os.devnull
    try:
        import readline
    except ImportError:
        return
    readline.set_completer_delims("")
    readline.set_completer(lambda text, n: [*(c + " " for c in commands if c.startswith(text)), None][n])
    readline.parse_and_bind("tab: complete")
