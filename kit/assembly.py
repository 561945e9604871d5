"""Put a kit together: find or fetch what it is made of, make a folder hold exactly that, sign it.

The folder is brought up to date rather than made anew: what is there already stays, and a kit that did not change keeps
its manifest, and with it its name on the boxes.
"""

import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from appliance import __version__
from appliance.errors import FileProblem
from kit import debs, manifest, models, wheels
from kit.openpgp import Signer
from kit.suites import ARCHITECTURE, Suite

ROOT = Path(__file__).parents[1]
GOES_AS_IT_IS = ("install.sh", "site.example.yaml")

Files = dict[str, Path | bytes]
"""What a kit holds: where each file comes from, by its path in the kit."""


@dataclass(frozen=True)
class Sources:
    """Where a kit's parts come from.

    Attributes:
        suites: the releases of Debian that it is for.
        mirror: of Debian's packages; None for the one that the station's apt uses.
        refresh: ask the mirror for its lists, however young ours are.
        models: folder of signed packages; None for SmolLM2, built here.
        model_keys: folder of the public keys for them.
        measure: have the card of SmolLM2 say how good it is.
        station: folder of the development keys.
        cache: folder of what was fetched and built.
    """

    suites: tuple[Suite, ...]
    mirror: debs.Mirror | None
    refresh: bool
    models: Path | None
    model_keys: Path | None
    measure: bool
    station: Path
    cache: Path


def gather(sources: Sources, signer: Signer) -> Files:
    """Find or fetch everything that the kit is made of."""
    files: Files = {name: ROOT / "kit" / name for name in GOES_AS_IT_IS}
    files["README.txt"] = (ROOT / "kit" / "README.txt").read_text().replace("@VERSION@", __version__).encode()
    files["kit.gpg"] = signer.public()
    own = wheels.build_own(sources.cache / "own")
    files[f"wheels/{own.name}"] = own
    for suite in sources.suites:
        fetched = wheels.fetch(suite, sources.cache / "wheels" / suite.tag)
        files |= {f"wheels/{path.name}": path for path in fetched.values()}
        files |= {f"wheels/{name}": text for name, text in wheels.requirement_files(suite, fetched, own).items()}
        files |= {f"debs/{suite.name}/{name}": path for name, path in _repository(sources, suite, signer).items()}
    found = _models(sources)
    for package in found.packages:
        files |= {f"models/{package.name}/{path.name}": path for path in package.iterdir()}
    files |= {f"keys/{path.name}": path for path in found.keys}
    playbooks = ROOT / "playbooks"
    files |= {f"playbooks/{path.relative_to(playbooks)}": path for path in tree(playbooks)}
    return files


def put_together(kit: Path, files: Mapping[str, Path | bytes]) -> int:
    """Make a folder hold these files and no others; gives the number of those that were written or removed."""
    manifest.check_names({path: _size(content) for path, content in files.items()})
    kit.mkdir(parents=True, exist_ok=True)
    kept = {*files, manifest.MANIFEST, manifest.SIGNATURE}
    changed = 0
    for path in sorted(kit.rglob("*"), reverse=True):
        if path.is_symlink() or (not path.is_dir() and str(path.relative_to(kit)) not in kept):
            path.unlink()
            changed += 1
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    for name, content in files.items():
        if not _is_same(kit / name, content):
            (kit / name).parent.mkdir(parents=True, exist_ok=True)
            _write(kit / name, content)
            changed += 1
    return changed


def sign(
    kit: Path, files: Mapping[str, Path | bytes], suites: tuple[Suite, ...], signer: Signer, built: float | None = None
) -> None:
    """Write manifest and signature; those that are there stay if the kit is the same, so that its name stays.

    Args:
        kit: the folder, which holds exactly `files`.
        files: what is in it.
        suites: the releases of Debian that it is for.
        signer: of the manifest.
        built: seconds since 1970; now if it is None. No box whose clock is before it takes the kit.
    """
    header = {
        "version": __version__,
        "built": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(built)),
        "suites": " ".join(suite.name for suite in suites),
        "architecture": ARCHITECTURE,
        "files": str(len(files)),
        "bytes": str(sum((kit / name).stat().st_size for name in files)),
    }
    new = manifest.render(header, manifest.digests(kit, files))
    path, signature = kit / manifest.MANIFEST, kit / manifest.SIGNATURE
    if path.exists() and signature.exists() and manifest.same_but_for_time(path.read_bytes(), new):
        return
    signature.unlink(missing_ok=True)
    path.write_bytes(new)
    signature.write_bytes(signer.sign(new))


# --- parts ------------------------------------------------------------------------------------------------------------


def _repository(sources: Sources, suite: Suite, signer: Signer) -> dict[str, Path]:
    folder = sources.cache / "debs" / suite.name
    archive = debs.Archive(suite, folder, sources.mirror)
    packages = archive.fetch(debs.wanted(suite, debs.PACKAGES.read_text()), refresh=sources.refresh)
    return debs.repository(suite, packages, signer, folder / "index")


def _models(sources: Sources) -> models.Models:
    if sources.models and sources.model_keys:
        return models.given(sources.models, sources.model_keys)
    return models.development(sources.station, sources.cache / "models", measure=sources.measure)


def tree(folder: Path) -> Iterator[Path]:
    """The files of the playbooks: no caches, nothing hidden.

    Raises:
        FileProblem: there is a link, which a stick cannot hold.
    """
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if "__pycache__" in parts or any(part.startswith(".") for part in parts) or path.suffix == ".retry":
            continue
        if path.is_symlink():
            raise FileProblem(f"cannot put {path.relative_to(ROOT)} on a kit: it is a link, expected a file")
        if path.is_file():
            yield path


def _size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _is_same(path: Path, content: Path | bytes) -> bool:
    """Whether a file is there already; one that was copied has its source's time."""
    if not path.is_file():
        return False
    if isinstance(content, bytes):
        return path.read_bytes() == content
    a, b = path.stat(), content.stat()
    return (a.st_size, a.st_mtime_ns) == (b.st_size, b.st_mtime_ns)


def _write(path: Path, content: Path | bytes) -> None:
    path.unlink(missing_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        shutil.copyfile(content, path)
        shutil.copystat(content, path)
    path.chmod(0o755 if path.name == "install.sh" else 0o644)
