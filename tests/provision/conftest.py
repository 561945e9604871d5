"""A kit as the station builds it, and a box that was provisioned from it."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.hosts import nspawn, roots, ssh

if TYPE_CHECKING:  # the module imports this one
    from tests.provision.hardened import Hardened

ROOT = Path(__file__).parents[2]
KIT_ON_BOX = "/mnt/stick"
QUESTION = "What is the capital of France? Answer in one sentence."
MODEL = "smollm2-135m-instruct-w8a8"


@dataclass(frozen=True)
class Kit:
    """A kit's folder, and the digest of its key as an operator would have it on paper."""

    path: Path
    key_sha256: str


@dataclass(frozen=True)
class Keys:
    """SSH keys of the site's people: private key files."""

    operator: Path
    rescue: Path


@dataclass
class Provisioned:
    """A box after its first `install.sh`, and what that printed and took."""

    box: nspawn.Box
    kit: Kit
    keys: Keys
    log: str
    install_s: float


def build_kit(*suites: str) -> Kit:
    """Build a kit with the station's own command; quick when nothing changed."""
    arguments = [a for suite in suites for a in ("--suite", suite)]
    found = subprocess.run(
        [sys.executable, "-m", "kit.build", "--no-measure", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    if found.returncode != 0:
        tail = found.stderr.strip()[-400:]
        if "cannot fetch" in tail:
            pytest.skip(f"not run: {tail}")
        raise AssertionError(f"make kit failed: {tail}")
    path = Path(found.stdout.strip().splitlines()[-1])
    return Kit(path, subprocess.check_output(["sha256sum", path / "kit.gpg"], text=True).split()[0])


@pytest.fixture(scope="session")
def kit() -> Kit:
    """A kit for Debian 12."""
    nspawn.require()
    roots.debian("bookworm")  # skips where no box can be had, before the kit takes its time
    return build_kit("bookworm")


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """Keys of an operator and of the envelope in the safe."""
    return make_keys(tmp_path_factory.mktemp("keys"))


def make_keys(folder: Path) -> Keys:
    """Make them in a folder."""
    return Keys(ssh.make_key(folder / "operator", "operator"), ssh.make_key(folder / "rescue", "rescue"))


def site_file(keys: Keys, path: Path, **changes: object) -> Path:
    """What a site writes down: who may log in, and from where."""
    variables = {
        "console_operators": [
            {"name": "ops1", "role": "operator", "keys": [keys.operator.with_suffix(".pub").read_text().strip()]}
        ],
        "console_rescue_keys": [keys.rescue.with_suffix(".pub").read_text().strip()],
        "hardening_ssh_networks": ["10.99.0.0/24"],
    }
    path.write_text(yaml.safe_dump(variables | changes))
    return path


def install(box: nspawn.Box, kit: Kit, *options: str, timeout_s: float = 600) -> tuple[str, float]:
    """Run the stick's install.sh as the operator would; its output and its time in seconds."""
    began = time.monotonic()
    result = box.run(
        f"bash {KIT_ON_BOX}/install.sh --key {kit.key_sha256} {' '.join(options)}", check=False, timeout_s=timeout_s
    )
    took = time.monotonic() - began
    assert result.returncode == 0, (
        f"install.sh ended with {result.returncode}:\n{(result.stdout + result.stderr)[-4000:]}"
    )
    return result.stdout + result.stderr, took


@contextlib.contextmanager
def provision(kit: Kit, keys: Keys, site: Path, suite: str) -> Iterator[Provisioned]:
    """Boot a bare Debian, provision it, and give it one user with a role and one without."""
    with nspawn.boot(roots.debian(suite), binds={KIT_ON_BOX: kit.path}) as box:
        box.put(site, "/root/site.yaml")
        log, took = install(box, kit, "--site /root/site.yaml")
        box.run("useradd --create-home app && usermod -aG skerry-client app && useradd --create-home nobodys")
        yield Provisioned(box, kit, keys, log, took)


@pytest.fixture(scope="session")
def provisioned(kit: Kit, keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provisioned]:
    """A bare Debian 12, provisioned. Tests must leave it as they found it: it is shared."""
    site = site_file(keys, tmp_path_factory.mktemp("site") / "site.yaml")
    with provision(kit, keys, site, "bookworm") as box:
        yield box


@pytest.fixture(scope="session", params=["bookworm", pytest.param("trixie", marks=pytest.mark.slow)])
def hardened(
    request: pytest.FixtureRequest, keys: Keys, tmp_path_factory: pytest.TempPathFactory
) -> Iterator["Hardened"]:
    """A box on a cable with the roles of hardening alone; a first login has confirmed it. Shared, in good order."""
    from tests.provision.hardened import provisioned_box

    nspawn.require()
    roots.debian(request.param)
    kit = request.getfixturevalue("kit") if request.param == "bookworm" else build_kit(request.param)
    with provisioned_box(kit, keys, tmp_path_factory.mktemp("hardened"), request.param) as box:
        yield box


@pytest.fixture(scope="session", params=["bookworm", pytest.param("trixie", marks=pytest.mark.slow)])
def each_provisioned(
    request: pytest.FixtureRequest, keys: Keys, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Provisioned]:
    """A provisioned box of each Debian release, for what may differ between them; shared, too."""
    if request.param == "bookworm":
        yield request.getfixturevalue("provisioned")
        return
    nspawn.require()
    roots.debian(request.param)
    site = site_file(keys, tmp_path_factory.mktemp("site") / "site.yaml")
    with provision(build_kit(request.param), keys, site, request.param) as box:
        yield box
