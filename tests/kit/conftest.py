"""Tiny kits with everything that install.sh looks at before it installs, signed by real keys."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kit import assembly, openpgp
from kit.suites import SUITES

ROOT = Path(__file__).parents[2]
INSTALL = ROOT / "kit" / "install.sh"
SUITE = SUITES["bookworm"]

CONTENT: assembly.Files = {
    "install.sh": INSTALL,
    "wheels/one-1.0-py3-none-any.whl": b"one" * 1000,
    "wheels/ansible-cp311.txt": b"one==1.0\n",
    "debs/bookworm/libc6_2.36-9+deb12u14_amd64.deb": b"deb" * 5000,
    "debs/bookworm/perl_5%3a5.36~rc1_amd64.deb": b"another",
    "models/small-q8/card.yaml": b"name: small\n",
    "playbooks/site.yml": b"- hosts: all\n",
    "playbooks/roles/inference/files/skerry-sandbox@.service": b"[Unit]\n",
}


@dataclass(frozen=True)
class Stick:
    """A kit on a stick, and the digest of its key as an operator would have it on paper."""

    path: Path
    key_sha256: str
    signer: openpgp.Signer

    def copy_to(self, path: Path) -> "Stick":
        shutil.copytree(self.path, path)
        return Stick(path, self.key_sha256, self.signer)

    def sign_again(self, manifest: bytes, signer: openpgp.Signer | None = None) -> None:
        """Give the kit another manifest and a good signature over it: by its own key if no other is given."""
        (self.path / "manifest").write_bytes(manifest)
        (self.path / "manifest.asc").write_bytes((signer or self.signer).sign(manifest))

    @property
    def manifest(self) -> bytes:
        return (self.path / "manifest").read_bytes()


def make_stick(path: Path, signer: openpgp.Signer, built: float | None = None) -> Stick:
    """Put a tiny kit together, by the code that makes the real ones."""
    files = {**CONTENT, "kit.gpg": signer.public()}
    assembly.put_together(path, files)
    assembly.sign(path, files, (SUITE,), signer, built or time.time() - 60)
    return Stick(path, openpgp.sha256_of_key(signer.public()), signer)


def _home() -> Iterator[Path]:
    if shutil.which("gpg") is None:
        pytest.skip("not run: gpg missing, install gnupg")
    # Not pytest's own folder: gpg's agent listens on a socket in it, whose path may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="skerry-gpg-") as name:
        yield Path(name)
        openpgp.end_agent(Path(name))


@pytest.fixture(scope="session")
def signer() -> Iterator[openpgp.Signer]:
    """The kit's key."""
    for home in _home():
        openpgp.make_key(home, "Kit of the tests <kit@skerry.invalid>")
        yield openpgp.Signer(home, "kit@skerry.invalid")


@pytest.fixture(scope="session")
def stranger() -> Iterator[openpgp.Signer]:
    """Another key, which names itself as the kit's does."""
    for home in _home():
        openpgp.make_key(home, "Kit of the tests <kit@skerry.invalid>")
        yield openpgp.Signer(home, "kit@skerry.invalid")


@pytest.fixture(scope="session")
def good_stick(signer: openpgp.Signer, tmp_path_factory: pytest.TempPathFactory) -> Stick:
    """A kit that nobody changed. Tests copy it."""
    if shutil.which("gpgv") is None and shutil.which("sqv") is None:
        pytest.skip("not run: neither gpgv nor sqv is here")
    return make_stick(tmp_path_factory.mktemp("good") / "kit", signer)


@pytest.fixture
def stick(good_stick: Stick, tmp_path: Path) -> Stick:
    """A kit that the test may spoil."""
    return good_stick.copy_to(tmp_path / "stick")


@dataclass
class Machine:
    """A machine of which install.sh sees a state folder: enough for all that happens before it installs anything."""

    folder: Path
    code: int = 0
    output: str = ""

    @property
    def kits(self) -> Path:
        return self.folder / "state" / "kit"

    @property
    def copies(self) -> list[str]:
        return sorted(p.name for p in self.kits.iterdir()) if self.kits.is_dir() else []

    def run(self, script: Path, *arguments: str, work: str = "stage", before: str = "") -> "Machine":
        """Source install.sh and run a part of it.

        Args:
            script: the install.sh.
            arguments: its command line.
            work: what to run after the command line is understood.
            before: shell code that puts other functions or values in place of the script's own.
        """
        (self.folder / "state").mkdir(parents=True, exist_ok=True)
        (self.folder / "os-release").write_text('ID=debian\nVERSION_CODENAME="bookworm"\n')
        code = f"""
            source {script}
            dpkg() {{ echo amd64; }}
            RUN=$PWD STATE=$PWD/state KITS=$PWD/state/kit ETC=$PWD/etc OPT=$PWD/opt LOG=$PWD/log/install.log
            SETUP=$PWD/sbin/skerry-setup OS_RELEASE=$PWD/os-release
            parse "$@"
            begin
            {before}
            {work}
        """
        done = subprocess.run(
            ["bash", "-c", code, "install.sh", *arguments],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=60,
            check=False,
        )
        # Long messages are wrapped.
        self.code, self.output = done.returncode, " ".join(done.stdout.decode(errors="replace").split())
        return self


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "machine")
