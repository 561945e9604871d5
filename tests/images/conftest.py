"""An image as `make image` builds it, and keys of the people who are to get in. Slow: some minutes."""

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
    disk = Path(done.stdout.strip().splitlines()[-1])
    return Image(disk, disk.with_name(f"{disk.stem}-root.tar.zst"), (out / "SHA256SUMS").read_text())


@pytest.fixture(scope="session")
def kit_folder() -> Path:
    nspawn.require()
    return build_kit("trixie").path


@pytest.fixture(scope="session")
def image(kit_folder: Path) -> Image:
    """The image, in the place where an operator of the station finds it."""
    return build_image(kit_folder, ROOT / "build" / "image")


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("keys"))
