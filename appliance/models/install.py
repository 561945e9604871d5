"""Put a model package into the store: verified where it lies, written from the verified bytes, visible all at once.

    done = install(Path("/mnt/stick/models/smollm2-135m-instruct-w8a8"), store, keys)

What is written are the bytes that were hashed, through the mappings that verification made. Until the last rename
nothing is there under the model's name; a killed installation leaves a hidden folder, which the next one removes.

What this does NOT protect against: a disk that stores something else than it was told. The daemon verifies again at
every load.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import SkerryError
from appliance.files import Progress, no_progress, publish_directory, read_limited
from appliance.models.package import SIGNATURE_FILE, open_verified
from appliance.models.store import Store
from appliance.trust.keys import KeySet
from appliance.trust.oms import MAX_BUNDLE_BYTES


@dataclass(frozen=True)
class Installed:
    """What an installation did.

    Attributes:
        name: of the model.
        root_digest: of its content.
        changed: whether something was written, or would have been.
    """

    name: str
    root_digest: str
    changed: bool


def install(
    source: Path, store: Store, keys: KeySet, *, dry_run: bool = False, progress: Progress = no_progress
) -> Installed:
    """Install a package; an older one of the same name is replaced, one that is there unharmed is left alone.

    That one is verified and the given one is not even read, but for its signature. A loaded model goes on as it is.

    Args:
        source: the package's folder, for example in a kit.
        store: where to.
        keys: the trusted keys.
        dry_run: verify and compare, write nothing.
        progress: told about the hashing.
    Raises:
        VerificationFailed, UnsafeFile, FileProblem: the package may not be trusted; see `open_verified`.
        FileProblem: the disk refuses.
    """
    if (there := _is_there(source, store, keys, progress)) is not None:
        return there
    with open_verified(source, keys, progress) as model:
        if not dry_run:
            with publish_directory(store.root / model.name, replace=True) as work:
                for name, content in model.files.items():
                    (work / name).write_bytes(content)
                (work / SIGNATURE_FILE).write_bytes(_signature(model.directory_fd))
                model.recheck()
        return Installed(model.name, model.root_digest, changed=True)


def _is_there(source: Path, store: Store, keys: KeySet, progress: Progress) -> Installed | None:
    """The installed package, if it has the signature of the given one and is unharmed."""
    try:
        installed = store.path(source.resolve().name)
        if read_limited(installed / SIGNATURE_FILE, MAX_BUNDLE_BYTES) != read_limited(
            source / SIGNATURE_FILE, MAX_BUNDLE_BYTES
        ):
            return None
        with open_verified(installed, keys, progress) as model:
            return Installed(model.name, model.root_digest, changed=False)
    except SkerryError:  # not there, damaged, or of a key that is trusted no more
        return None


def _signature(directory_fd: int) -> bytes:
    fd = os.open(SIGNATURE_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
    with os.fdopen(fd, "rb") as f:
        return f.read()
