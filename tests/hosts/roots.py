"""Root file systems of bare Debian machines, built once and cached by content.

    root = roots.debian("bookworm")     # a folder; never write into it: boxes lay a writable layer over it

A root's folder is named after everything that decides what is in it: suite, packages and the recipe below. It is not
rebuilt for its age, as a machine of an operator is old too; remove `build/hosts` to get this week's packages.
`built.txt` beside the root says when it was made and of which package versions.

Two processes may ask at once (a file lock), and a build that is killed leaves nothing that looks finished (a rename).
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.hosts import process

CACHE = Path(__file__).parents[2] / "build" / "hosts"
BUILD_LIMIT_S = 900

# What an installed Debian has at the very least: no Python, no SSH server, no sudo.
PACKAGES = ("systemd", "systemd-sysv", "dbus", "libpam-systemd")

# What a machine made by mmdebstrap has of the machine that made it, and no installed one would have.
CLEAN = (
    'rm -f "$1/etc/resolv.conf"',
    'echo debian > "$1/etc/hostname"',
    'printf "%s\\n" "127.0.0.1 localhost" "127.0.1.1 debian" "::1 localhost ip6-localhost" > "$1/etc/hosts"',
    ': > "$1/etc/fstab"',
    ': > "$1/etc/machine-id"',
)
RECIPE = "1"  # raise it when a change of the code below changes what is built

_failed: dict[str, str] = {}


def debian(suite: str, packages: tuple[str, ...] = ()) -> Path:
    """Return the folder of a bare Debian's root; skip the test if it cannot be had.

    Args:
        suite: `bookworm` or `trixie`.
        packages: more Debian packages than the bare machine has.
    """
    wanted = sorted({*PACKAGES, *packages})
    recipe = "\n".join([suite, *wanted, *CLEAN, RECIPE])

    def build(target: Path) -> None:
        if os.geteuid() != 0:
            pytest.skip("not run: building a Debian root needs root")
        if shutil.which("mmdebstrap") is None:
            pytest.skip("not run: mmdebstrap missing, install mmdebstrap")
        # Namespaces of its own: a build that is killed leaves neither processes nor mounts in what is removed next.
        argv = ["setpriv", "--pdeathsig=KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        argv += ["mmdebstrap", "--quiet", "--variant=minbase", "--format=directory", f"--include={','.join(wanted)}"]
        argv += [f"--customize-hook={hook}" for hook in CLEAN]
        env = {**os.environ, "LC_ALL": "C.UTF-8"}
        try:
            result = process.run([*argv, suite, str(target)], timeout_s=BUILD_LIMIT_S, env=env)
        except process.CommandTimeout as error:
            raise BuildFailed(f"mmdebstrap: {error}") from None
        if not result.ok:
            raise BuildFailed(f"mmdebstrap ended with {result.returncode}: {process.tail(result.stderr, 5)}")

    try:
        return cached(f"debian-{suite}", recipe, build)
    except BuildFailed as error:
        pytest.skip(f"not run: cannot build a {suite} root, expected a reachable Debian mirror: {error}")


class BuildFailed(process.HostError):
    """What a cached folder is made of cannot be had now."""


def cached(name: str, recipe: str, build: Callable[[Path], None]) -> Path:
    """Return the folder that `build` fills, from the cache if it is there for this recipe.

    Args:
        name: how the folder's name begins.
        recipe: all that decides what is in it; its digest is the rest of the name.
        build: fills the folder it is given, or raises; BuildFailed is remembered for this process.
    """
    key = f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    folder = CACHE / key
    if (folder / "root").is_dir():
        return folder / "root"
    if key in _failed:
        raise BuildFailed(_failed[key])
    CACHE.mkdir(parents=True, exist_ok=True)
    with locked(CACHE / f"{key}.lock"):
        if (folder / "root").is_dir():  # another process was quicker
            return folder / "root"
        part = CACHE / f"{key}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            build(part / "root")
        except BaseException as error:
            shutil.rmtree(part, ignore_errors=True)
            if isinstance(error, BuildFailed):
                _failed[key] = str(error)
            raise
        (part / "built.txt").write_text(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}\n{recipe}\n{versions(part / 'root')}")
        os.sync()  # or a power cut could leave the name without the content
        part.rename(folder)
    return folder / "root"


def versions(root: Path) -> str:
    """List the packages of a root and their versions, one a line."""
    status = root / "var/lib/dpkg/status"
    if not status.exists():
        return ""
    fields = re.findall(r"^(?:Package|Version): (.+)$", status.read_text(), re.MULTILINE)
    return "".join(f"{package} {version}\n" for package, version in zip(fields[::2], fields[1::2], strict=True))


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file's lock; the kernel lets go of it when the process ends, however it ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
