"""`skerry doctor`: what is missing on this machine, and how to mend it. Works when nothing else does.

Each check is a function that looks at one thing and returns what it found; none changes anything. A check that breaks
is itself a finding, never the end of the others.
"""

import datetime
import importlib.util
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from appliance import __version__
from appliance.cli.box import Box, JsonOption, box
from appliance.cli.output import emit, emit_json, fields, progress, size
from appliance.errors import PermissionDenied, SkerryError
from appliance.files import Progress

if TYPE_CHECKING:
    from appliance.config import Config

ENOUGH_DISK = 2 << 30
ENOUGH_MEMORY = 1 << 30

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """What one check found, and the next step if it is not well."""

    check: str
    level: Level
    found: str
    mend: str | None = None


def doctor(
    ctx: typer.Context,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out verifying the models.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check this machine: processor, memory, disk, clock, keys, models, daemon.

    Exit code 1 if any check fails.
    """
    with progress() as update:
        findings = examine(box(ctx), quick=quick, update=update)
    if as_json:
        emit_json({"findings": findings, "version": __version__})
    else:
        emit("\n".join(_lines(findings)))
    if any(f.level == "fail" for f in findings):
        raise typer.Exit(1)


def _lines(findings: list[Finding]) -> list[str]:
    room = max(len(f.check) for f in findings) + 6
    lines = []
    for f in findings:
        lines += fields([(f"{f.level:4}  {f.check}", f.found)], room)
        lines += fields([("", f"mend: {f.mend}")], room) if f.mend else []
    n = {level: sum(f.level == level for f in findings) for level in ("ok", "warn", "fail")}
    return [*lines, "", f"{n['ok']} ok, {n['warn']} warnings, {n['fail']} failures"]


def examine(chosen: Box, *, quick: bool = False, update: Progress) -> list[Finding]:
    """Run all checks."""
    machine: list[Callable[[], Finding]] = [_python, _runtime, _processor, _memory, _clock, _station]
    findings = [_guarded(check.__name__.strip("_"), check) for check in machine]
    try:
        config = chosen.config()
    except SkerryError as e:
        return [*findings, Finding("configuration", "fail", e.message, e.hint), *_daemon(chosen)]
    findings += [_guarded("disk", lambda: _disk(config)), *_filesystems(chosen)]
    findings += [_guarded("keys", lambda: _keys(config))]
    if not quick:
        findings += _models(config, update)
    return findings + _daemon(chosen)


def _guarded(name: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except (SkerryError, OSError) as e:
        hint = e.hint if isinstance(e, SkerryError) else None
        return Finding(name, "fail", f"cannot check: {e}", hint or "run skerry doctor as root to see more")


# --- the machine ------------------------------------------------------------------------------------------------------


def _python() -> Finding:
    found = platform.python_version()
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Finding("python", "ok", f"{found}, skerry {__version__}")
    return Finding("python", "fail", f"{found}, expected 3.11 to 3.13", "install skerry with Debian's python3")


def _runtime() -> Finding:
    needed = ("onnxruntime", "numpy", "tokenizers", "cryptography", "uvicorn")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        return Finding(
            "runtime", "fail", f"not installed: {', '.join(missing)}", "install skerry again, with its wheels"
        )
    from importlib.metadata import version

    return Finding("runtime", "ok", f"onnxruntime {version('onnxruntime')}, numpy {version('numpy')}")


def _processor() -> Finding:
    from appliance.system import host

    flags, cpus = host.cpu_flags(), host.usable_cpus()
    model = " ".join((host.cpu_model() or platform.machine()).split())
    found = f"{model}, {cpus} usable"
    if platform.machine() != "x86_64":
        return Finding("processor", "warn", f"{found}; not x86-64", "nothing; but only x86-64 is tested")
    if not flags:
        return Finding("processor", "warn", f"{found}; flags unknown", "is /proc/cpuinfo hidden (ProcSubset=pid)?")
    known = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8")
    found += f"; {', '.join(f for f in known if f in flags) or 'no AVX2'}"
    if "avx2" not in flags:
        return Finding("processor", "warn", found, "a processor with AVX2; without it models answer very slowly")
    if not flags & {"avx_vnni", "avx512_vnni"}:
        return Finding("processor", "ok", f"{found}; no VNNI")
    return Finding("processor", "ok", found)


def _memory() -> Finding:
    from appliance.system import host

    free = host.available_memory_bytes()
    if free is None:
        return Finding("memory", "warn", "unknown", "is /proc/meminfo hidden?")
    if free < ENOUGH_MEMORY // 4:
        return Finding("memory", "fail", f"{size(free)} available", "stop other programs, or add memory")
    if free < ENOUGH_MEMORY:
        return Finding("memory", "warn", f"{size(free)} available", "small models only; stop other programs for more")
    return Finding("memory", "ok", f"{size(free)} available")


def _clock() -> Finding:
    from appliance.system import clock

    now = datetime.datetime.now(datetime.UTC)
    found = now.strftime("%Y-%m-%d %H:%M UTC")
    mend = "set it: date -u -s 'YYYY-MM-DD HH:MM', then hwclock -w; a clock that forgets has an empty battery"
    if (doubt := clock.doubt(now)) is not None:
        return Finding("clock", "fail", f"{found}, {doubt}", mend)
    return Finding("clock", "ok", found)


def _station() -> Finding:
    missing = [name for name in ("gguf", "onnx", "safetensors") if importlib.util.find_spec(name) is None]
    if missing:
        return Finding(
            "station", "ok", "station packages not installed: this machine runs models, it does not build any"
        )
    return Finding("station", "ok", "can build models")


# --- the box ----------------------------------------------------------------------------------------------------------


def _disk(config: "Config") -> Finding:
    path = Path(config.models_dir)
    while not path.exists() and path != path.parent:
        path = path.parent
    usage = shutil.disk_usage(path)
    found = f"{size(usage.free)} free of {size(usage.total)} at {path}"
    if usage.free < ENOUGH_DISK // 8:
        return Finding("disk", "fail", found, "remove models that nobody uses: skerry model list")
    if usage.free < ENOUGH_DISK:
        return Finding("disk", "warn", found, "may be too little for another model")
    return Finding("disk", "ok", found)


def _filesystems(chosen: Box) -> list[Finding]:
    """The levels of `skerry disk status`."""
    from appliance.cli.disk import settings_of, used
    from appliance.system import disk

    try:
        survey = disk.survey(settings_of(chosen))
    except SkerryError as e:
        return [Finding("filesystem", "fail", e.message, e.hint)]
    levels: dict[str, Level] = {"ok": "ok", "warn": "warn", "critical": "fail"}
    found = [
        Finding("filesystem", levels[f.level], f"{f.mount_point} ({', '.join(f.places)}): {used(f)} full", f.next_step)
        for f in survey.found
    ]
    return found + [Finding("filesystem", "fail", e.message, e.hint) for e in survey.problems]


def _keys(config: "Config") -> Finding:
    from appliance.trust.keys import KeySet

    path = Path(config.keys_dir)
    keys = KeySet.from_directory(path)
    if not len(keys):
        return Finding(
            "keys", "fail", f"no trusted key in {path}: no model will load", f"copy the station's .pub to {path}"
        )
    ids = ", ".join(key.key_id[:16] for key in keys)
    return Finding("keys", "ok", f"{len(keys)} trusted in {path}: {ids}")


def _models(config: "Config", update: Progress) -> Iterator[Finding]:
    from appliance.models.package import open_verified
    from appliance.models.store import Store
    from appliance.trust.keys import KeySet

    store = Store(Path(config.models_dir))
    try:
        names = store.names()
    except SkerryError as e:
        yield Finding("models", "fail", e.message, e.hint)
        return
    try:
        keys = KeySet.from_directory(Path(config.keys_dir))
    except SkerryError:
        yield Finding("models", "fail", f"{len(names)} installed, none can be verified", "mend the keys first")
        return
    if not names:
        yield Finding("models", "warn", f"none in {store.root}", f"copy a signed package to {store.root}")
    for i, name in enumerate(names):
        update(f"verifying {name}", i / len(names))
        try:
            with open_verified(store.path(name), keys) as model:
                found = f"{name}: verified, {size(model.size_bytes)}, key {model.key_id[:16]}"
                yield Finding("model", "ok", found)
        except (SkerryError, OSError) as e:
            hint = e.hint if isinstance(e, SkerryError) else None
            yield Finding("model", "fail", f"{name}: {e}", hint or "install it again from the station")


def _daemon(chosen: Box) -> list[Finding]:
    path = chosen.socket_path()
    try:
        with chosen.client(timeout_s=5.0) as client:
            health = client.health()
            if health.status != "ok":
                mend = "wait until it is gone, then start it again"
                return [Finding("daemon", "warn", f"{path}: {health.status}, takes no requests", mend)]
            s = client.status()
    except PermissionDenied as e:
        return [Finding("daemon", "warn", f"{path}: answers, but: {e.message}", e.hint)]
    except SkerryError as e:
        return [Finding("daemon", "fail", e.message, e.hint)]
    found = f"{path}: {s.state}, version {s.version}, models: {len(s.models)}"
    if s.version != __version__:
        mend = f"restart it: it runs an older or newer release than this command ({__version__})"
        return [Finding("daemon", "warn", found, mend)]
    return [Finding("daemon", "ok", found)]
