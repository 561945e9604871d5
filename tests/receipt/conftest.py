"""A box's root file system in a folder, as much of it as a receipt reads."""

from pathlib import Path

import pytest

from appliance.config import Config
from appliance.trust.keys import PrivateKey, generate
from tests.fakes.package import make_tiny_package

MACHINE_ID = "3d1219c7c4c5404aaa1f6d2a48adfda4"
STATUS = """\
Package: systemd
Status: install ok installed
Architecture: amd64
Version: 252.39-1~deb12u2

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1

Package: adduser
Status: install ok installed
Architecture: all
Version: 3.134
Description: add and remove users
 Version: 9 of a description is none
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Settings of ours and of the system's, packages, one key and one model."""
    root = tmp_path / "root"
    files = {
        "etc/machine-id": MACHINE_ID + "\n",
        "etc/debian_version": "12.11\n",
        "var/lib/dpkg/status": STATUS,
        "etc/skerry/config.yaml": "threads: 2\n",
        "etc/systemd/system/skerry-inferenced.service": "[Service]\n",
        "etc/systemd/system/other.service": "[Service]\n",
        "etc/ssh/sshd_config": "PermitRootLogin no\n",
        "etc/sysctl.d/90-skerry.conf": "kernel.kptr_restrict=2\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "etc/systemd/system/skerry-old.service").symlink_to("/dev/null")
    return root


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A box with one model, signed by a trusted key."""
    box = tmp_path / "box"
    for name in ("models", "keys"):
        (box / name).mkdir(parents=True)
        (box / name).chmod(0o755)
    key = generate()
    key.public().save(box / "keys" / "station.pub")
    make_tiny_package(box / "models", "tiny", key)
    return Config.default(box)


@pytest.fixture
def key() -> PrivateKey:
    """The box's own key."""
    return generate()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where receipts go."""
    folder = tmp_path / "receipts"
    folder.mkdir()
    folder.chmod(0o755)
    return folder
