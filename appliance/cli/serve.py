"""`skerry serve`: run the inference daemon in the foreground, for systemd or by hand; or check that it could."""

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
        ConfigError: the daemon could not start, or would refuse every model because of its key directory.
        FileProblem: the models directory cannot be read.
    """
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
    rows = [("models", f"{len(names)} in {models}"), ("keys", f"{len(keys)} trusted in {settings.keys_dir}")]
    emit("\n".join(fields([*rows, ("preload", ", ".join(settings.preload) or "none"), ("socket", settings.socket)])))
    if not len(keys):
        note(f"note: no trusted key in {settings.keys_dir}: every model will be refused")


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
