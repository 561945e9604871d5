"""`skerry serve`: run the inference daemon in the foreground, for systemd or by hand."""

from pathlib import Path
from typing import Annotated

import typer

from appliance.cli.box import box
from appliance.errors import ConfigError, FileProblem


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

    from appliance.inferenced.main import run

    run(settings)


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
