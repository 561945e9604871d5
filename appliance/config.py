"""YAML in, one frozen value out; unknown keys are errors.

`load_yaml` reads the small subset of YAML that a person can check by eye: no tags, no aliases, no key twice.
`convert` turns the plain value into a frozen type and names the path of what does not fit. `Config` is the daemon's
configuration: `/etc/skerry/config.yaml` on a box, or the defaults of one folder (`--state-dir`) by hand.
"""

from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from appliance import typed
from appliance.errors import ConfigError
from appliance.files import read_limited

T = TypeVar("T")

MAX_YAML_BYTES = 1 << 20
CONFIG_PATH = Path("/etc/skerry/config.yaml")


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one caller, and all of them together, may ask of the daemon."""

    running: int = 8
    """Answers that are computed side by side."""
    queued: int = 32
    """Requests of all callers that may wait."""
    per_caller: int = 8
    """Requests that one uid may have running and waiting together."""
    body_bytes: int = 1 << 20
    """Largest body of a request."""
    header_timeout_s: float = 10.0
    """Time for the head of a request to arrive, and for a kept connection to say something."""
    body_timeout_s: float = 30.0
    """Time for the body of a request to arrive."""
    drain_timeout_s: float = 30.0
    """Time that requests under way get after SIGTERM."""
    connections: int = 256
    """Open connections of all callers; more are closed at once."""


class Preferences(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Whether pairs of a better and a worse answer are kept for training: the text of prompts and answers."""

    enabled: bool = False
    """The site's consent."""
    directory: str | None = None
    """Where they lie; none: `preferences` beside the models directory."""
    max_bytes: int = 64 << 20
    """Of all of them; nothing is kept beyond."""


class Prefixes(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Beginnings of prompts that are kept, so that the next prompt that begins so is answered sooner."""

    max_bytes: int = 128 << 20
    """Of each loaded model; 0 keeps none."""
    shared: bool = False
    """Whether callers share them: then the time to the first token tells one caller what another asked."""


class Drafts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Tokens of an answer that are guessed from the text before them and computed at once."""

    max_tokens: int = 12
    """Guessed at most; 0 guesses none."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The inference daemon's configuration. Relative paths are not accepted."""

    models_dir: str
    """Installed model packages, one directory each."""
    keys_dir: str
    """Trusted public keys, `*.pub`. Policy is this directory and nothing else."""
    socket: str
    """The Unix socket to listen on, when systemd does not pass one."""
    preload: tuple[str, ...] = ()
    """Models to verify and load before the daemon says that it is ready; they stay in memory."""
    threads: int | None = None
    """Threads of the engine; none: the cores that this process may use."""
    limits: Limits = Limits()
    preferences: Preferences = Preferences()
    prefixes: Prefixes = Prefixes()
    drafts: Drafts = Drafts()
    tasks_dir: str | None = None
    """Task files, `*.yaml`; none: `tasks` beside the models directory."""

    @property
    def tasks(self) -> Path:
        """Where task files lie."""
        return Path(self.tasks_dir or Path(self.models_dir).with_name("tasks"))

    @property
    def preferences_dir(self) -> Path:
        """Where pairs for training lie, if they are kept."""
        return Path(self.preferences.directory or Path(self.models_dir).with_name("preferences"))

    @classmethod
    def default(cls, state_dir: Path, *, threads: int | None = None) -> "Config":
        """Build the configuration of a box that lives in one folder."""
        root = state_dir.absolute()
        return cls(
            models_dir=str(root / "models"),
            keys_dir=str(root / "keys"),
            socket=str(root / "run" / "inference.sock"),
            threads=threads,
        )


def load_config(path: Path) -> Config:
    """Read and check a configuration file.

    Raises:
        FileProblem: it cannot be read.
        ConfigError: it is not the YAML of a `Config`.
    """
    config = convert(load_yaml(read_limited(path, MAX_YAML_BYTES), str(path)), Config, str(path))
    for name in ("models_dir", "keys_dir", "socket"):
        if not Path(getattr(config, name)).is_absolute() or "\0" in getattr(config, name):
            raise ConfigError(f"cannot use {path}: {name} is {getattr(config, name)!r}, expected an absolute path")
    for name in Limits.__struct_fields__:
        if not 0 < getattr(config.limits, name) <= 1 << 30:  # not true of NaN either
            raise ConfigError(
                f"cannot use {path}: limits.{name} is {getattr(config.limits, name)}, expected more than 0, and finite"
            )
    if not config.tasks.is_absolute() or "\0" in str(config.tasks):
        raise ConfigError(f"cannot use {path}: tasks_dir is {config.tasks_dir!r}, expected an absolute path")
    if not config.preferences_dir.is_absolute() or "\0" in str(config.preferences_dir):
        raise ConfigError(
            f"cannot use {path}: preferences.directory is {config.preferences.directory!r}, expected an absolute path"
        )
    if not 0 < config.preferences.max_bytes <= 1 << 30:
        raise ConfigError(
            f"cannot use {path}: preferences.max_bytes is {config.preferences.max_bytes}, expected 1 to {1 << 30}"
        )
    if not 0 <= config.prefixes.max_bytes <= 1 << 40:
        raise ConfigError(
            f"cannot use {path}: prefixes.max_bytes is {config.prefixes.max_bytes}, expected 0 to {1 << 40}"
        )
    if not 0 <= config.drafts.max_tokens <= 64:
        raise ConfigError(f"cannot use {path}: drafts.max_tokens is {config.drafts.max_tokens}, expected 0 to 64")
    if config.threads is not None and not 1 <= config.threads <= 1024:
        raise ConfigError(f"cannot use {path}: threads is {config.threads}, expected 1 to 1024")
    return config


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML without aliases and duplicate keys: both have hidden things from reviewers."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias (*name), expected plain values")
        if getattr(self.peek_event(), "tag", None) is not None:  # type: ignore[no-untyped-call]
            raise yaml.YAMLError("a tag (!name), expected plain values")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.YAMLError(f"line {key_node.start_mark.line + 1}: key {key!r}, expected text")
            if key in seen:
                raise yaml.YAMLError(f"line {key_node.start_mark.line + 1}: key {key!r} for the second time")
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_yaml(data: bytes, what: str) -> Any:
    """Parse one YAML document into dicts, lists and scalars.

    Args:
        data: UTF-8, at most 1 MiB.
        what: the name to use in errors.
    Raises:
        ConfigError: not YAML, too large, or with tags, aliases or a key twice.
    """
    if len(data) > MAX_YAML_BYTES:
        raise ConfigError(f"cannot read {what}: {len(data)} bytes, expected at most {MAX_YAML_BYTES}")
    try:
        return yaml.load(data.decode("utf-8"), Loader=_StrictLoader)  # noqa: S506  a SafeLoader, made stricter
    except (UnicodeDecodeError, RecursionError, ValueError) as e:
        raise ConfigError(f"cannot read {what}: not plain YAML in UTF-8 ({type(e).__name__})") from e
    except yaml.YAMLError as e:
        raise ConfigError(f"cannot read {what}: {' '.join(str(e).split())}") from e


def dump_yaml(value: Any) -> bytes:
    """Write plain values or msgspec structs as YAML: block style, keys in the order of their declaration."""
    plain = msgspec.to_builtins(value)
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120, default_flow_style=False).encode()


def convert(value: Any, to: type[T], what: str) -> T:
    """Turn plain values into a frozen type, strictly.

    Raises:
        ConfigError: an unknown key, a missing one or a wrong type; the message names the path.
    """
    try:
        return typed.convert(value, to)
    except msgspec.ValidationError as e:
        raise ConfigError(f"cannot use {what}: {e}") from e
