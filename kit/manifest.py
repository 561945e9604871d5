"""The kit's manifest: which files it has, and their digests, in a form that coreutils check.

Comment lines `# key value` come first, then a line of sha256sum(1) for every file but the manifest and its signature,
sorted by path, so that one set of files has one manifest. `sha256sum -c manifest` reads it; `install.sh` reads it
strictly. Format: docs/reference/kit.md.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from appliance.errors import BuildError

FORMAT = "1"
MANIFEST, SIGNATURE = "manifest", "manifest.asc"

NAME = re.compile(r"[A-Za-z0-9_+~%@=,][A-Za-z0-9._+~%@=,-]*")
"""One part of a path: nothing that FAT32, a shell or sha256sum takes for something else. `install.sh` has it too."""
LONGEST_PATH = 180
"""Windows ends at 260 characters, with the path to the kit's folder."""
LARGEST_FILE = (1 << 32) - 1
"""FAT32 holds no file of 4 GiB."""
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


def check_names(sizes: Mapping[str, int]) -> None:
    """Refuse what a FAT32 stick would change, lose or not hold.

    Args:
        sizes: the size of each file by its path, relative to the kit.
    Raises:
        BuildError: a name or a size will not do.
    """
    folded: dict[str, str] = {}
    for path, size in sizes.items():
        for part in path.split("/"):
            if not NAME.fullmatch(part) or part.endswith(".") or _DEVICES.fullmatch(part):
                raise BuildError(f"cannot put {path!r} on a kit: {part!r} is no name for every stick")
        if len(path) > LONGEST_PATH:
            raise BuildError(f"cannot put {path} on a kit: {len(path)} characters, expected at most {LONGEST_PATH}")
        if size > LARGEST_FILE:
            raise BuildError(f"cannot put {path} on a kit: {size} bytes, expected less than 4 GiB, FAT32's limit")
        other = folded.setdefault(path.lower(), path)
        if other != path:
            raise BuildError(f"cannot put {path} on a kit: FAT32 takes it for {other}; rename one of them")


def render(header: Mapping[str, str], digests: Mapping[str, str]) -> bytes:
    """Write a manifest.

    Args:
        header: what the comment lines say, in this order.
        digests: SHA-256 in hex by path.
    """
    lines = [f"# skerry-kit {FORMAT}", *(f"# {key} {value}" for key, value in header.items())]
    lines += [f"{digests[path]}  {path}" for path in sorted(digests, key=str.encode)]
    return "".join(f"{line}\n" for line in lines).encode()


def header_of(manifest: bytes) -> dict[str, str]:
    """The comment lines of a manifest."""
    lines = (line[2:].partition(" ") for line in manifest.decode().splitlines() if line.startswith("# "))
    return {key: value for key, _, value in lines}


def same_but_for_time(a: bytes, b: bytes) -> bool:
    """Whether two manifests differ in nothing but the time at which they were made."""
    return _without_time(a) == _without_time(b)


def _without_time(manifest: bytes) -> list[bytes]:
    return [line for line in manifest.splitlines() if not line.startswith(b"# built ")]


def digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def digests(root: Path, paths: Iterable[str]) -> dict[str, str]:
    """SHA-256 of files by their paths."""
    return {path: digest(root / path) for path in paths}
