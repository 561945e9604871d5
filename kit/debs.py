"""The kit's Debian packages: a closure that apt computes, fetched and verified by apt, as a flat signed repository.

The closure starts from an empty system: what every Debian has already (essential packages, apt, systemd) is in it too,
so that a box whose base is older than the kit can still meet its dependencies without any other source.

apt runs with folders of its own under `build/`, as any user; the station's sources, lists and packages are not touched.
Which mirror to ask is read from the station's own sources. Debian's archive keys verify what comes.

What this does NOT give: packages older than the mirror's. A kit has the versions of the day on which it is built.
"""

import hashlib
import re
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

from appliance.errors import BuildError, FileProblem
from kit.commands import run, say
from kit.openpgp import Signer
from kit.suites import ARCHITECTURE, SUITES, Suite

PACKAGES = Path(__file__).with_name("packages.txt")
BASE = ("?essential", "?priority(required)", "apt", "systemd-sysv", "dbus", "libpam-systemd")
"""What a minimal Debian that boots has."""
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
REFRESH_S = 12 * 3600
"""How old the mirror's lists may be."""
_LINE = re.compile(r"(?P<name>[a-z0-9][a-z0-9+.-]+)(?: +\[(?P<suite>[a-z]+)\])?")
_URI = re.compile(r"'(?P<uri>[^']+)' (?P<file>\S+) (?P<size>\d+) .*")


@dataclass(frozen=True)
class Mirror:
    """Where Debian's packages come from, without the suites' names."""

    main: str
    security: str


def wanted(suite: Suite, text: str) -> list[str]:
    """The names of `packages.txt` that are for a suite.

    Raises:
        BuildError: a line that is neither a name nor a comment, or for a suite that does not exist.
    """
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        content = line.partition("#")[0].strip()
        if not content:
            continue
        match = _LINE.fullmatch(content)
        if not match or (match["suite"] or suite.name) not in SUITES:
            raise BuildError(f"cannot read packages.txt:{number}: {content!r}, expected NAME or NAME [SUITE]")
        if match["suite"] in (None, suite.name):
            found.append(match["name"])
    return found


def station_mirror() -> Mirror:
    """The mirror that the station itself uses.

    Raises:
        FileProblem: the station has none: it is no Debian.
    """
    form = "$(CREATED_BY) $(COMPONENT) $(RELEASE) $(REPO_URI)"
    found: dict[bool, str] = {}
    for line in run("list the station's mirrors", ["apt-get", "indextargets", "--format", form]).decode().splitlines():
        kind, component, release, uri = line.split(" ", 3)
        if kind == "Packages" and component == "main" and release.partition("-")[0] in {*SUITES, "stable", "oldstable"}:
            found.setdefault(release.endswith("-security"), uri)
    if len(found) < 2:
        raise FileProblem(
            f"cannot fetch Debian packages: this station's sources have {len(found)} of Debian's two archives",
            hint="build on Debian 12 or 13, or name them with --mirror and --security-mirror",
        )
    return Mirror(found[False], found[True])


class Archive:
    """Debian's archive as one suite's boxes see it, with an apt of its own.

    Args:
        suite: which.
        folder: keeps lists and packages for the next time.
        mirror: where they come from; None for the station's.
    """

    def __init__(self, suite: Suite, folder: Path, mirror: Mirror | None) -> None:
        self.suite, self.folder, self.mirror = suite, folder, mirror
        self.packages = folder / "archives"

    def fetch(self, names: Sequence[str], *, refresh: bool = False) -> list[Path]:
        """Bring packages with all they depend on.

        Args:
            names: of Debian packages.
            refresh: ask the mirror for its lists, however young ours are.
        Raises:
            BuildError: the mirror does not answer, or a package is not there or cannot be verified.
        """
        stamp = self.folder / "refreshed"
        if refresh or not stamp.exists() or time.time() - stamp.stat().st_mtime > REFRESH_S:
            say(f"asking for the packages of Debian {self.suite.release}")
            self._prepare()
            # Any error of one list is an error: an old list would leave out security updates in silence.
            self._apt("fetch the lists of packages", "update", "-o", "APT::Update::Error-Mode=any")
            stamp.touch()
            refresh = True
        files = self._closure(names, stamp.stat().st_mtime_ns)
        if any(not (self.packages / file).exists() for file in files):
            say(f"fetching packages of Debian {self.suite.release}: {len(files)} with all they depend on")
            try:
                self._apt("fetch Debian packages", "install", "--download-only", *_INSTALL, *BASE, *names)
            except BuildError:
                if refresh:
                    raise
                return self.fetch(names, refresh=True)  # the mirror may have newer ones by now, and those no longer
        for path in self.packages.glob("*.deb"):
            if path.name not in files:
                path.unlink()
        return [self.packages / file for file in files]

    def _closure(self, names: Sequence[str], lists: int) -> list[str]:
        """The files of packages with all they depend on; kept for the same names and the same lists."""
        question = f"# {lists} {' '.join([*BASE, *names])}"
        known = self.folder / "closure"
        if known.exists() and (lines := known.read_text().splitlines())[0] == question:
            return lines[1:]
        empty = self.folder / "empty"
        (empty / "partial").mkdir(parents=True, exist_ok=True)
        options = ["install", "--print-uris", *_INSTALL, "-o", f"Dir::Cache::archives={empty}", *BASE, *names]
        found = self._apt("find out what the packages need", *options).decode().splitlines()
        files = sorted(match["file"] for line in found if (match := _URI.fullmatch(line)))
        known.write_text("".join(f"{line}\n" for line in [question, *files]))
        return files

    def _apt(self, what: str, *arguments: str | Path) -> bytes:
        hint = "is the mirror reachable? Is every name in kit/packages.txt right?"
        return run(
            what, ["apt-get", "-qq", *arguments], environment={"APT_CONFIG": str(self.folder / "apt.conf")}, hint=hint
        )

    def _prepare(self) -> None:
        if not KEYRING.exists():
            raise FileProblem(f"cannot fetch Debian packages: no {KEYRING}", hint="apt install debian-archive-keyring")
        for part in ("lists/partial", "archives/partial", "sources", "none"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        (self.folder / "status").touch()
        (self.folder / "sources" / "debian.sources").write_text(self._sources(self.mirror or station_mirror()))
        # The station's proxy and certificates are used, the rest of its configuration is not.
        dump = run("read apt's configuration", ["apt-config", "dump"]).decode().splitlines()
        network = [line for line in dump if re.match(r"Acquire::(?!IndexTargets|Languages)", line)]
        own = {
            "Dir::Etc::main": "/dev/null",
            "Dir::Etc::parts": self.folder / "none",
            "Dir::Etc::sourcelist": "/dev/null",
            "Dir::Etc::sourceparts": self.folder / "sources",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": self.folder / "none",
            "Dir::State": self.folder,
            "Dir::State::status": self.folder / "status",
            "Dir::Cache": self.folder,
            "Dir::Log": self.folder,
            "APT::Architecture": ARCHITECTURE,
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
            "Acquire::Retries": 3,
        }
        lines = [*network, 'APT::Architectures { "amd64"; };', *(f'{key} "{value}";' for key, value in own.items())]
        (self.folder / "apt.conf").write_text("".join(f"{line}\n" for line in lines))

    def _sources(self, mirror: Mirror) -> str:
        name = self.suite.name
        of = ((mirror.main, f"{name} {name}-updates"), (mirror.security, f"{name}-security"))
        return "\n".join(
            f"Types: deb\nURIs: {uri}\nSuites: {suites}\nComponents: main\nSigned-By: {KEYRING}\n" for uri, suites in of
        )


_INSTALL = ("--yes", "--no-install-recommends", "--no-remove")


def repository(suite: Suite, packages: Iterable[Path], signer: Signer, folder: Path) -> dict[str, Path]:
    """The files of a flat repository: the packages, `Packages` and `InRelease`.

    Args:
        suite: whose packages these are.
        packages: the .deb files.
        signer: signs the index.
        folder: keeps the index, so that the same packages are not signed anew.
    """
    packages = list(packages)
    hasher = hashlib.sha256(signer.fingerprint().encode())
    for path in packages:
        hasher.update(f"{path.name} {path.stat().st_size}\n".encode())
    index = folder / hasher.hexdigest()[:16]
    if not (index / "InRelease").exists():
        shutil.rmtree(folder, ignore_errors=True)
        index.mkdir(parents=True)
        content = "\n".join(_stanza(path) for path in packages).encode()
        (index / "Packages").write_bytes(content)
        (index / "InRelease").write_bytes(signer.clearsign(_release(suite, content).encode()))
    return {**{path.name: path for path in packages}, **{name: index / name for name in ("Packages", "InRelease")}}


def _stanza(path: Path) -> str:
    control = run(f"read {path.name}", ["dpkg-deb", "--field", path]).decode().rstrip("\n")
    data = path.read_bytes()
    return f"{control}\nFilename: ./{path.name}\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n"


def _release(suite: Suite, packages: bytes) -> str:
    return (
        f"Origin: Skerry\nLabel: Skerry kit\nSuite: {suite.name}\nCodename: {suite.name}\n"
        f"Date: {formatdate(usegmt=True)}\nArchitectures: {ARCHITECTURE}\n"
        f"Description: what a Skerry appliance needs of Debian {suite.release}\n"
        f"SHA256:\n {hashlib.sha256(packages).hexdigest()} {len(packages)} Packages\n"
    )
