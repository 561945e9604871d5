"""Signatures that bare Debian can check: OpenPGP, made with gpg.

`Signer` signs with a key of a GnuPG home: the operator's own, or one for development that is made once under build/.

What this does NOT protect: the development key. It has no passphrase and lies in the working tree; a real site signs
with a key of its own, see docs/reference/kit.md.
"""

import contextlib
import hashlib
import subprocess
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import BuildError, FileProblem
from kit.commands import run, say

DEVELOPER = "Skerry kit, development only <kit@skerry.invalid>"
_NOTE = """\
The keys in this folder were made by `make kit` for development and tests.
They have no passphrase. Do not build kits for a real site with them: see
docs/reference/kit.md, "Keys".
"""


@dataclass(frozen=True)
class Signer:
    """A signing key.

    Attributes:
        home: the GnuPG home that holds it.
        key: its fingerprint, or anything by which gpg finds exactly one key.
    """

    home: Path
    key: str

    def public(self) -> bytes:
        """The public key as apt and gpgv read it: the same bytes at every call."""
        found = self._gpg("read the kit's key", "--export", "--export-options", "export-minimal", self.key)
        if not found:
            raise BuildError(f"cannot sign with {self.key}: no such key in {self.home}", hint="see `gpg --list-keys`")
        return found

    def fingerprint(self) -> str:
        """The key's fingerprint in hex."""
        lines = self._gpg("read the kit's key", "--with-colons", "--list-keys", self.key).decode().splitlines()
        found = [line.split(":")[9] for line in lines if line.startswith("fpr:")]
        if not found:
            raise BuildError(f"cannot sign with {self.key}: no such key in {self.home}", hint="see `gpg --list-keys`")
        return found[0]

    def sign(self, data: bytes) -> bytes:
        """A detached signature, in ASCII."""
        return self._gpg("sign", *self._signing(), "--armor", "--detach-sign", stdin=data)

    def clearsign(self, text: bytes) -> bytes:
        """A text with its signature around it, as apt's InRelease."""
        return self._gpg("sign", *self._signing(), "--clearsign", stdin=text)

    def _signing(self) -> list[str]:
        return ["--local-user", self.key, "--digest-algo", "SHA512"]

    def _gpg(self, what: str, *arguments: str, stdin: bytes | None = None) -> bytes:
        return run(what, ["gpg", "--homedir", self.home, "--batch", "--quiet", *arguments], stdin=stdin)


def developer(station: Path) -> Signer:
    """The development key under `station`, made if there is none yet."""
    home = station / "gnupg"
    if not any(home.glob("private-keys-v1.d/*.key")):
        say(f"making a kit key for development in {station}")
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        (station / "README.txt").write_text(_NOTE)
        make_key(home, DEVELOPER)
    return Signer(home, f"={DEVELOPER}")


def make_key(home: Path, name: str) -> None:
    """Make an Ed25519 key for signing alone, without expiry and passphrase."""
    command = ["gpg", "--homedir", str(home), "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""]
    run("make a kit key", [*command, "--quick-generate-key", name, "ed25519", "sign", "never"])


def end_agent(home: Path) -> None:
    """End the helpers that gpg leaves running for a home."""
    with contextlib.suppress(OSError):
        subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=False, capture_output=True)


def sha256_of_key(public: bytes) -> str:
    """What the operator notes on paper."""
    if not public:
        raise FileProblem("cannot name the kit's key: it is empty")
    return hashlib.sha256(public).hexdigest()
