"""An image as `make image` builds it, and keys of the people who are to get in. Slow: some minutes."""

import hashlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.hosts import nspawn
from tests.provision.conftest import ROOT, Keys, build_kit, make_keys


@dataclass(frozen=True)
class Image:
    """What a build left: the disk, the tarball of its root, and its digest as SHA256SUMS says it."""

    disk: Path
    tarball: Path
    sums: str


def build_image(kit: Path, out: Path) -> Image:
    """Build an image with the station's own command."""
    done = subprocess.run(
        [sys.executable, "-m", "images.build", "--kit", str(kit), "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return named(Path(done.stdout.strip().splitlines()[-1]))


def named(disk: Path) -> Image:
    """What lies beside a disk image."""
    return Image(disk, disk.with_name(f"{disk.stem}-root.tar.zst"), (disk.parent / "SHA256SUMS").read_text())


@pytest.fixture(scope="session")
def kit_folder() -> Path:
    nspawn.require()
    return build_kit("trixie").path


@pytest.fixture(scope="session")
def image(kit_folder: Path) -> Image:
    """The image, in the place where an operator of the station finds it; built anew when anything of it changed."""
    out = ROOT / "build" / "image"
    sources = [
        kit_folder / "manifest",
        *(p for p in (ROOT / "images").rglob("*") if p.is_file() and p.suffix != ".pyc"),
    ]
    recipe = hashlib.sha256(b"".join(str(p).encode() + p.read_bytes() for p in sorted(sources))).hexdigest()
    known = out / "built-from"
    if known.exists() and known.read_text() == recipe:
        return named(next(out.glob("*.img")))
    found = build_image(kit_folder, out)
    known.write_text(recipe)
    return found


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("keys"))
