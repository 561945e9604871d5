"""The state of a box, read from its files: no program is started, so that a closely confined unit can do it.

What other programs must say (exposure, scans) is given as files. No secret and no text of any user is taken up: files
of settings as digests, the machine id only as a keyed hash.
"""

import hashlib
import hmac
import importlib.metadata
import json
import os
import re
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from appliance import __version__, typed
from appliance.config import Config
from appliance.errors import FileProblem, InvalidRequest
from appliance.files import read_limited
from appliance.models.package import open_verified
from appliance.models.store import Store
from appliance.receipt.statement import Box, Model, Packages, Scan, Software, State, System
from appliance.trust.keys import KeySet

# What makes the box what it is, below the root; everything that matches is taken up.
FILES = (
    "etc/skerry/*.yaml",
    "etc/skerry/keys/*.pub",
    "etc/skerry/kit.gpg",
    "etc/systemd/system/skerry*",
    "etc/systemd/system/*.d/*skerry*",
    "etc/systemd/system/skerry*.d/*",
    "etc/systemd/*.conf.d/*skerry*",
    "etc/ssh/sshd_config",
    "etc/ssh/sshd_config.d/*",
    "etc/nftables.conf",
    "etc/nftables.d/*",
    "etc/sysctl.d/*",
    "etc/modprobe.d/*",
    "etc/audit/rules.d/*",
    "etc/security/*.conf",
    "etc/security/*.conf.d/*",
    "etc/pam.d/common-*",
    "etc/login.defs",
    "etc/sudoers.d/*",
    "etc/udev/rules.d/*skerry*",
    "etc/tmpfiles.d/*skerry*",
)
MAX_FILES = 1000
MAX_FILE_BYTES = 4 << 20
MAX_REPORT_BYTES = 64 << 20
# Of Skerry alone: another program that hashes the machine id gets another value.
APPLICATION = uuid.UUID("d0f7a2e9-43c5-4b0e-9d26-5f3b8c1e7a64")

_EXPOSURE = re.compile(r"Overall exposure level for (\S+): ([0-9]+(?:\.[0-9]+)?)")

_LYNIS = re.compile(r"^(hardening_index|lynis_version)=([\w.]+)$", re.MULTILINE)


@dataclass(frozen=True)
class Given:
    """What the caller has found out with other programs, as files; each may be missing.

    Attributes:
        kit: the folder of the kit that was installed.
        files: what `skerry receipt files` printed; for a writer who is not root and may not read all settings.
        exposure: what `systemd-analyze security --offline=true UNIT...` printed, or its list as JSON.
        lynis: its lynis-report.dat.
        oscap: results in XCCDF or ARF.
    """

    kit: Path | None = None
    files: Path | None = None
    exposure: Path | None = None
    lynis: Path | None = None
    oscap: Path | None = None


def collect(config: Config, given: Given, root: Path = Path("/")) -> State:
    """Look at the box.

    Args:
        config: where its models and keys lie.
        given: what is known beyond its files.
        root: of the file system, for tests.
    Raises:
        FileProblem: something cannot be read.
        InvalidRequest: a given file is not what it should be.
        VerificationFailed, ConfigError: an installed model is not what was signed, or the keys cannot be used.
    """
    debs = _debs(root)
    return State(
        box=Box(hostname=os.uname().nodename or "unnamed", id=_box_id(root)),
        software=Software(
            skerry=__version__, kit_manifest=_manifest(given.kit) if given.kit else None, wheels=_packages(_wheels())
        ),
        system=System(
            debian=_debian(root),
            kernel=os.uname().release,
            systemd=next((line.split()[1] for line in debs if line.startswith("systemd ")), None),
            debs=_packages(debs) if debs else None,
        ),
        files=_given_files(given.files) if given.files else settings(root),
        models=_models(config),
        exposure=_exposure(given.exposure) if given.exposure else {},
        scans=tuple(read(path) for read, path in ((_lynis, given.lynis), (_oscap, given.oscap)) if path),
    )


def settings(root: Path = Path("/")) -> dict[str, str]:
    """The digests of the files that make the box what it is: path to SHA-256, or `-> ` and the target of a link.

    Raises:
        FileProblem: one cannot be read, or there are too many.
    """
    found: dict[str, str] = {}
    for pattern in FILES:
        for path in root.glob(pattern):
            if path.is_symlink():
                found[f"/{path.relative_to(root)}"] = f"-> {path.readlink()}"
            elif path.is_file():
                data = read_limited(path, MAX_FILE_BYTES)
                found[f"/{path.relative_to(root)}"] = hashlib.sha256(data).hexdigest()
    if len(found) > MAX_FILES:
        raise FileProblem(f"cannot write receipt: {len(found)} files of settings, expected at most {MAX_FILES}")
    return dict(sorted(found.items()))


def application_id(machine_id: str) -> str:
    """Hash a machine id for Skerry alone, as sd_id128_get_machine_app_specific(3) does."""
    digest = hmac.digest(bytes.fromhex(machine_id), APPLICATION.bytes, "sha256")
    return uuid.UUID(bytes=digest[:16], version=4).hex


# --- the machine ------------------------------------------------------------------------------------------------------


def _box_id(root: Path) -> str | None:
    try:
        text = (root / "etc/machine-id").read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return application_id(text) if re.fullmatch("[0-9a-f]{32}", text) else None


def _debian(root: Path) -> str | None:
    try:
        return (root / "etc/debian_version").read_text().strip()[:255] or None
    except OSError:
        return None


def _debs(root: Path) -> list[str]:
    """The installed Debian packages, `name version architecture`."""
    path = root / "var/lib/dpkg/status"
    if not path.exists():
        return []
    lines = []
    for paragraph in read_limited(path, MAX_REPORT_BYTES).decode("utf-8", "replace").split("\n\n"):
        found = dict(re.findall(r"^(Package|Status|Version|Architecture): (.+)$", paragraph, re.MULTILINE))
        if found.get("Status", "").endswith(" installed"):
            lines.append(f"{found['Package']} {found['Version']} {found['Architecture']}")
    return sorted(lines)


def _wheels() -> list[str]:
    """The Python packages that this program runs with, `name==version`."""
    found = importlib.metadata.distributions()
    return sorted({f"{re.sub('[-_.]+', '-', d.name).lower()}=={d.version}" for d in found if d.name})


def _packages(lines: Iterable[str]) -> Packages:
    lines = sorted(lines)
    text = "".join(f"{line}\n" for line in lines)
    return Packages(count=len(lines), sha256=hashlib.sha256(text.encode()).hexdigest())


def _manifest(kit: Path) -> str:
    return hashlib.sha256(read_limited(kit / "manifest", MAX_FILE_BYTES)).hexdigest()


def _models(config: Config) -> tuple[Model, ...]:
    store, keys = Store(Path(config.models_dir)), KeySet.from_directory(Path(config.keys_dir))
    found = []
    for name in store.names():
        with open_verified(store.path(name), keys) as model:
            found.append(Model(name=name, root_digest=model.root_digest, key_id=model.key_id))
    return tuple(found)


# --- what other programs say ------------------------------------------------------------------------------------------


def _given_files(path: Path) -> dict[str, str]:
    try:
        return typed.decode(read_limited(path, MAX_FILE_BYTES), dict[str, str])
    except msgspec.MsgspecError as e:
        raise InvalidRequest(f"cannot use {path}: {e}, expected what `skerry receipt files` prints") from e


def _exposure(path: Path) -> dict[str, float]:
    text = read_limited(path, MAX_FILE_BYTES).decode("utf-8", "replace")
    try:
        # One object a unit is what `systemd-analyze security --json=short` prints without --offline.
        found = {row["unit"]: float(row["exposure"]) for row in json.loads(text)}
    except (ValueError, KeyError, TypeError):
        found = {unit.rsplit("/", 1)[-1]: float(level) for unit, level in _EXPOSURE.findall(text)}
    if not found:
        raise InvalidRequest(
            f"cannot use {path}: no exposure level in it, expected what systemd-analyze prints",
            hint="systemd-analyze security --offline=true UNIT...",
        )
    return dict(sorted(found.items()))


def _lynis(path: Path) -> Scan:
    data = read_limited(path, MAX_REPORT_BYTES)
    found = dict(_LYNIS.findall(data.decode("utf-8", "replace")))
    if not found.get("hardening_index", "").isdecimal():
        raise InvalidRequest(f"cannot use {path}: no hardening_index in it, expected Lynis' lynis-report.dat")
    return Scan(
        tool="lynis",
        version=found.get("lynis_version"),
        profile=None,
        score=float(found["hardening_index"]),
        passed=None,
        failed=None,
        report=hashlib.sha256(data).hexdigest(),
    )


def _oscap(path: Path) -> Scan:
    data = read_limited(path, MAX_REPORT_BYTES)
    text = data.decode("utf-8", "replace")
    # Only the part with results: a data stream holds the rules as well.
    result = re.search(r"<(?:\w+:)?TestResult\b.*?</(?:\w+:)?TestResult>", text, re.DOTALL)
    score = result and re.search(r"<(?:\w+:)?score\b[^>]*>([0-9.]+)</", result[0])
    if not result or not score:
        raise InvalidRequest(f"cannot use {path}: no TestResult with a score in it, expected results of oscap")
    profile = re.search(r"<(?:\w+:)?profile idref=\"([^\"]{1,255})\"", result[0])
    results = re.findall(r"<(?:\w+:)?result>(\w+)</", result[0])
    return Scan(
        tool="oscap",
        version=None,
        profile=profile[1] if profile else None,
        score=round(float(score[1]), 2),
        passed=results.count("pass"),
        failed=results.count("fail"),
        report=hashlib.sha256(data).hexdigest(),
    )
