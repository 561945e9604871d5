"""`skerry serve`: run the inference daemon in the foreground, for systemd or by hand; or check that it could."""

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli.box import box
from appliance.cli.output import emit, fields, note
from appliance.errors import ConfigError, FileProblem

if TYPE_CHECKING:
    from appliance.config import Config


def serve(
    ctx: typer.Context,
    state_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep everything in this folder; made if missing.")
    ] = None,
    socket: Annotated[Path | None, typer.Option(metavar="PATH", help="Listen here instead.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Threads of the engine; default: the processors there are.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Configuration; default: /etc/skerry/config.yaml.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Only say whether the daemon could start so.")] = False,
) -> None:
    """Run the inference daemon until SIGTERM.

    Without systemd, one folder is enough:  skerry serve --state-dir DIR
    """
    import msgspec

    from appliance.config import CONFIG_PATH, Config, load_config

    chosen = box(ctx)
    folder = state_dir or (None if config else chosen.folder)
    if folder and config:
        raise ConfigError("cannot serve: both --state-dir and --config, expected one of them")
    if folder:
        if not check:
            _prepare(folder)
        settings = Config.default(folder)
    elif config or CONFIG_PATH.exists():
        settings = load_config(config or CONFIG_PATH)
    else:
        raise ConfigError(
            f"cannot serve: there is no {CONFIG_PATH}, and no folder was named",
            hint="by hand: skerry serve --state-dir DIR",
        )
    socket = socket or chosen.socket
    if socket:
        settings = msgspec.structs.replace(settings, socket=str(socket.absolute()))
    if threads:
        settings = msgspec.structs.replace(settings, threads=threads)

    if check:
        _check(settings)
        return

    from appliance.inferenced.main import run

    run(settings)


def _check(settings: "Config") -> None:
    """Look at what the configuration names, and change nothing: `validate` of Ansible's copy and template.

    Raises:
        ConfigError: the daemon could not start, would refuse every model because of its key directory or every task
            because of theirs, or would keep no pairs though it is to.
        FileProblem: the models directory cannot be read.
    """
    from appliance.agent.installed import InstalledTasks
    from appliance.models.store import Store
    from appliance.trust.keys import KeySet

    models, store = Path(settings.models_dir), Store(Path(settings.models_dir))
    if not models.is_dir():
        raise ConfigError(
            f"cannot serve: models_dir {models} is not there, expected a folder", hint=f"mkdir -p -m 755 {models}"
        )
    names, keys = store.names(), KeySet.from_directory(Path(settings.keys_dir))
    for name in settings.preload:
        if name not in names:
            raise ConfigError(
                f"cannot serve: preload names {name!a}, which is not installed",
                hint=f"install it, or take it out of preload; installed: {', '.join(names) or 'none'}",
            )
    tasks = InstalledTasks(settings.tasks).all()
    pairs = _check_preferences(settings) if settings.preferences.enabled else "none are kept"
    rows = [
        ("models", f"{len(names)} in {models}"),
        ("keys", f"{len(keys)} trusted in {settings.keys_dir}"),
        ("tasks", f"{len(tasks.tasks)} in {settings.tasks}"),
        ("preferences", pairs),
        ("preload", ", ".join(settings.preload) or "none"),
        ("socket", settings.socket),
    ]
    emit("\n".join(fields(rows)))
    if not len(keys):
        note(f"note: no trusted key in {settings.keys_dir}: every model will be refused")
    if settings.tasks_dir and not settings.tasks.exists():
        note(f"note: tasks_dir {settings.tasks} is not there: there will be no tasks")
    for broken in tasks.broken:
        note(f"note: task {broken.name} will be refused: {broken.details}")


def _check_preferences(settings: "Config") -> str:
    """Look at the directory as the daemon does before it writes there; it makes a missing one itself."""
    directory = settings.preferences_dir
    try:
        info = directory.lstat()
    except FileNotFoundError:
        if directory.parent.is_dir():
            return f"kept in {directory}, which the daemon will make"
        raise _unusable(directory, f"nor is there {directory.parent}", "make it, or correct the path") from None
    except OSError as e:
        raise _unusable(directory, str(e.strerror), "correct the path") from e
    if not stat.S_ISDIR(info.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(info.st_mode) else "no directory"
        raise _unusable(directory, f"it is {kind}", "name a directory that only the daemon's user opens")
    if info.st_mode & 0o077:
        raise _unusable(directory, f"it has mode {stat.S_IMODE(info.st_mode):04o}", f"run `chmod 700 {directory}`")
    # root checks for the daemon's user, whose name it does not know
    if os.geteuid() and info.st_uid != os.geteuid():
        raise _unusable(directory, f"it belongs to uid {info.st_uid}", "run the daemon as that user, or name another")
    return f"kept in {directory}"


def _unusable(directory: Path, found: str, hint: str) -> ConfigError:
    return ConfigError(
        f"cannot keep pairs in preferences.directory {directory}: {found}, expected a directory of mode 0700", hint=hint
    )


def _prepare(folder: Path) -> None:
    """Make the folders of a by-hand box, not writable by others whatever the umask is."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for path in (folder, folder / "models", folder / "keys", folder / "run"):
            if not path.exists():
                path.mkdir()
                path.chmod(0o755)
    except OSError as e:
        raise FileProblem(
            f"cannot prepare {folder}: {e.strerror}", hint="name a folder that is yours, and check the space"
        ) from e
