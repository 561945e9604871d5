"""The kit's Python packages: resolved once into lock files, then fetched by digest.

`lock` asks the package index that pip is configured with and writes `wheels-cp311.lock` and `wheels-cp313.lock`: one
line a wheel, with its version and SHA-256. `fetch` brings exactly those. Skerry's own wheel is built from this tree.

pip evaluates the markers of requirements (`; python_version < "3.13"`) with the Python that it runs on, not with the
one it resolves for. So `lock` follows the requirements once more by itself, for the box's Python, and adds and drops
what differs.
"""

import email
import hashlib
import json
import re
import shutil
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from appliance.errors import BuildError
from kit.commands import run, say
from kit.manifest import digest
from kit.suites import Suite

ROOT = Path(__file__).parents[1]
ANSIBLE = "ansible-core>=2.19,<2.20"
"""The last series for Python 3.11."""
PIP = "pip>=25"
REPRODUCIBLE = "1735689600"
"""The time in Skerry's wheel, whenever it is built: 1 January 2025."""
_LINE = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>\S+) --hash=sha256:(?P<sha256>[0-9a-f]{64})")


@dataclass(frozen=True)
class Pin:
    """One line of a lock."""

    name: str
    version: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}"


def lock_file(suite: Suite) -> Path:
    """Where a suite's pins stand."""
    return ROOT / "kit" / f"wheels-{suite.tag}.lock"


def read_lock(suite: Suite) -> list[Pin]:
    """The pins of a suite.

    Raises:
        BuildError: the file has a line that is no pin.
    """
    found = []
    for number, line in enumerate(lock_file(suite).read_text().splitlines(), 1):
        if line and not line.startswith("#"):
            match = _LINE.fullmatch(line)
            if not match:
                raise BuildError(
                    f"cannot read {lock_file(suite).name}:{number}: {line!r}, expected NAME==VERSION --hash=..."
                )
            found.append(Pin(**match.groupdict()))
    return found


def fetch(suite: Suite, folder: Path) -> dict[str, Path]:
    """Bring the wheels of a lock into `folder`; what lies there with the right digest is not fetched again.

    Returns:
        The wheels by their packages' canonical names.
    Raises:
        BuildError: the index does not have them, or has others under their names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pins = read_lock(suite)
    wheels = {digest(p): p for p in folder.glob("*.whl")}
    if missing := [pin for pin in pins if pin.sha256 not in wheels]:
        say(f"fetching {len(missing)} wheels for Python {suite.python}")
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as wanted:
            wanted.write("".join(f"{pin}\n" for pin in missing))
            wanted.flush()
            run(
                f"fetch the wheels of {lock_file(suite).name}",
                [*_pip("download"), "--no-deps", "--require-hashes", "-r", wanted.name, "-d", folder, *_target(suite)],
                hint="is there a package index? If a pin is gone from it: python kit/build.py lock",
            )
        wheels = {digest(p): p for p in folder.glob("*.whl")}
    return {canonicalize_name(pin.name): wheels[pin.sha256] for pin in pins}


def build_own(folder: Path) -> Path:
    """Build Skerry's wheel; the same tree gives the same bytes. Not built again when nothing changed."""
    sources = [
        p for d in ("appliance", "tui") for p in (ROOT / d).rglob("*") if "__pycache__" not in p.parts and p.is_file()
    ]
    sources += [ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE")]
    hasher = hashlib.sha256()
    for path in sorted(sources):
        hasher.update(f"{path.relative_to(ROOT)} {digest(path)}\n".encode())
    done = folder / hasher.hexdigest()[:16]
    if not (found := list(done.glob("*.whl"))):
        with tempfile.TemporaryDirectory(dir=_made(folder)) as work:
            run(
                "build Skerry's wheel",
                [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", work],
                environment={"SOURCE_DATE_EPOCH": REPRODUCIBLE},
                folder=ROOT,
            )
            found = [path.replace(_made(done) / path.name) for path in Path(work).glob("*.whl")]
        for older in folder.iterdir():
            if older != done:
                shutil.rmtree(older)
    return found[0]


def requirement_files(suite: Suite, wheels: Mapping[str, Path], own: Path) -> dict[str, bytes]:
    """What a box installs, for `pip install --no-deps --require-hashes -r`: Ansible, and Skerry.

    Raises:
        BuildError: a wheel that is needed is not in the lock.
    """
    everything = {**wheels, "skerry": own}
    files = {}
    for name, root in (("ansible", ANSIBLE), ("runtime", "skerry")):
        needed = closure([root], everything, suite)
        lines = [str(Pin(n, _version(everything[n]), digest(everything[n]))) for n in sorted(needed)]
        files[f"{name}-{suite.tag}.txt"] = "".join(f"{line}\n" for line in lines).encode()
    return files


def closure(roots: Iterable[str], wheels: Mapping[str, Path], suite: Suite) -> set[str]:
    """The packages that some requirements need on a suite's Python, themselves included.

    Raises:
        BuildError: one of them is not among the wheels, or not in a version that will do.
    """
    found, missing = _walk(roots, wheels, suite)
    if missing:
        raise BuildError(
            f"cannot make a kit for Python {suite.python}: {', '.join(map(str, missing))} is not in "
            f"{lock_file(suite).name}",
            hint="python kit/build.py lock",
        )
    return found


def lock(suite: Suite, folder: Path) -> int:
    """Resolve anew and write a suite's lock file; gives the number of its pins."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    roots = [PIP, ANSIBLE, *project["dependencies"]]
    wanted = list(roots)
    for _ in range(5):
        pins = _resolve(wanted, suite)
        wheels = _download(pins, suite, folder)
        found, missing = _walk(roots, wheels, suite)
        if not missing:
            break
        wanted += map(str, missing)
    else:
        raise BuildError(f"cannot lock for Python {suite.python}: {', '.join(map(str, missing))} stays missing")
    lines = sorted(str(pin) for pin in pins if canonicalize_name(pin.name) in found)
    head = f"# Wheels for Python {suite.python} (Debian {suite.release}, x86-64). Made by: python kit/build.py lock\n"
    lock_file(suite).write_text(head + "".join(f"{line}\n" for line in lines))
    return len(lines)


# --- small things -----------------------------------------------------------------------------------------------------


def _walk(roots: Iterable[str], wheels: Mapping[str, Path], suite: Suite) -> tuple[set[str], list[Requirement]]:
    """Follow the requirements; gives the packages that meet them, and the requirements that none meets."""
    waiting = [Requirement(r) for r in roots]
    seen: set[tuple[str, frozenset[str]]] = set()
    found: set[str] = set()
    missing: list[Requirement] = []
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if (mark := (name, frozenset(requirement.extras))) in seen:
            continue
        seen.add(mark)
        if name not in wheels or not requirement.specifier.contains(_version(wheels[name]), prereleases=True):
            missing.append(requirement)
            continue
        found.add(name)
        for needed in _requirements(wheels[name]):
            environments = [_environment(suite, extra) for extra in ("", *requirement.extras)]
            if needed.marker is None or any(needed.marker.evaluate(e) for e in environments):
                waiting.append(needed)
    return found, missing


@cache
def _metadata(wheel: Path) -> tuple[str, tuple[str, ...]]:
    with zipfile.ZipFile(wheel) as z:
        name = next(n for n in z.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n))
        message = email.message_from_bytes(z.read(name))
    return message["Version"], tuple(message.get_all("Requires-Dist") or ())


def _version(wheel: Path) -> str:
    return _metadata(wheel)[0]


def _requirements(wheel: Path) -> list[Requirement]:
    return [Requirement(r) for r in _metadata(wheel)[1]]


def _environment(suite: Suite, extra: str) -> dict[str, str]:
    return {
        "python_version": suite.python,
        "python_full_version": f"{suite.python}.0",
        "implementation_name": "cpython",
        "implementation_version": f"{suite.python}.0",
        "platform_python_implementation": "CPython",
        "platform_machine": "x86_64",
        "platform_system": "Linux",
        "platform_release": "",
        "platform_version": "",
        "sys_platform": "linux",
        "os_name": "posix",
        "extra": extra,
    }


def _resolve(requirements: Iterable[str], suite: Suite) -> list[Pin]:
    with tempfile.TemporaryDirectory() as nowhere:
        report = run(
            f"resolve the wheels for Python {suite.python}",
            [
                *_pip("install"),
                *("--dry-run", "--ignore-installed", "--report", "-", "--target", nowhere),
                *_target(suite),
                *requirements,
            ],
        )
    found = json.loads(report)["install"]
    return [
        Pin(
            canonicalize_name(i["metadata"]["name"]),
            i["metadata"]["version"],
            i["download_info"]["archive_info"]["hashes"]["sha256"],
        )
        for i in found
    ]


def _download(pins: list[Pin], suite: Suite, folder: Path) -> dict[str, Path]:
    lock_file(suite).write_text("".join(f"{pin}\n" for pin in pins))
    return fetch(suite, folder)


def _target(suite: Suite) -> list[str]:
    """pip's options for a box that is not this machine."""
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in range(suite.glibc, 4, -1)]
    platforms += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]
    options = ["--only-binary", ":all:", "--implementation", "cp", "--python-version", suite.python]
    return options + [part for platform in platforms for part in ("--platform", platform)]


def _pip(command: str) -> list[str]:
    return [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", command, "--quiet"]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
