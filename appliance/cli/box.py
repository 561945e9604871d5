"""Which box a command talks to: this machine's, or one that lives in a folder (`--state-dir`).

What is said on the command line counts more than the environment, a socket more than a folder. Also the options that
several commands share.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from appliance.client import Client
    from appliance.config import Config


@dataclass(frozen=True)
class Box:
    """The choice of the global options."""

    state_dir: Path | None = None
    socket: Path | None = None

    @property
    def folder(self) -> Path | None:
        """The folder of a by-hand box; None for the machine's own."""
        if self.state_dir or self.socket:
            return self.state_dir
        return Path(d) if (d := os.environ.get("SKERRY_STATE_DIR")) else None

    def socket_path(self) -> Path:
        """The daemon's socket."""
        from appliance.client import DEFAULT_SOCKET

        if self.socket:
            return self.socket
        if self.state_dir is None and (named := os.environ.get("SKERRY_SOCKET")):
            return Path(named)
        return self.folder / "run" / "inference.sock" if self.folder else DEFAULT_SOCKET

    def config(self) -> "Config":
        """Where the box keeps its models and keys.

        Raises:
            ConfigError, FileProblem: the machine's configuration file is there, but cannot be used.
        """
        from appliance.config import CONFIG_PATH, Config, load_config

        if self.folder:
            return Config.default(self.folder)
        if CONFIG_PATH.exists():
            return load_config(CONFIG_PATH)
        return Config(models_dir="/var/lib/skerry/models", keys_dir="/etc/skerry/keys", socket=str(self.socket_path()))

    def client(self, timeout_s: float | None = None) -> "Client":
        """A client of the box's daemon."""
        from appliance.client import Client

        return Client(self.socket_path()) if timeout_s is None else Client(self.socket_path(), timeout_s)


def box(ctx: typer.Context) -> Box:
    """The box of a command."""
    chosen = ctx.find_object(Box)
    return chosen if chosen is not None else Box()


def complete_model(ctx: typer.Context, incomplete: str) -> list[str]:
    """Installed models, for the shell's completion; nothing if the daemon does not answer at once."""
    from appliance.errors import SkerryError

    chosen = ctx.find_root().params
    try:
        with Box(chosen.get("state_dir"), chosen.get("socket")).client(timeout_s=1.0) as client:
            return [name for name in client.model_ids() if name.startswith(incomplete)]
    except SkerryError:
        return []


JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        help="Which model; needed if several are installed.",
        autocompletion=complete_model,
    ),
]
ModelArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="An installed model.", autocompletion=complete_model)
]
PassphraseOption = Annotated[
    Path | None,
    typer.Option("--passphrase-file", metavar="FILE", help="File whose first line is the key's passphrase."),
]
SystemOption = Annotated[str | None, typer.Option("--system", metavar="TEXT", help="How the model should behave.")]
MaxTokensOption = Annotated[
    int | None, typer.Option("--max-tokens", min=1, metavar="N", help="Longest answer, in tokens.")
]
TemperatureOption = Annotated[
    float | None, typer.Option("--temperature", min=0.0, metavar="T", help="0: always the likeliest token.")
]
SeedOption = Annotated[int | None, typer.Option("--seed", metavar="N", help="Same seed and same words, same answer.")]
