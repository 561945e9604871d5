"""Gather a kit: everything that makes a bare Debian machine an appliance, in one folder that a stick can carry.

    make kit                          a kit for Debian 12 and 13, with a model and keys for development
    make kit ARGS="--suite bookworm"  for Debian 12 alone
    python kit/build.py lock          resolve the Python packages anew, and write the lock files

Prints the kit's folder; what to note on paper goes to standard error. What was fetched stays under `build/kit-cache`,
so that the second time takes seconds. The layout of a kit: docs/reference/kit.md.

What this does NOT protect against: a station in the wrong hands. A box believes what the kit's key signs.
"""

import argparse
import contextlib
import fcntl
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for the imports below, when this is run as a file

from appliance import __version__  # noqa: E402
from appliance.errors import SkerryError  # noqa: E402
from kit import debs, manifest, openpgp, wheels  # noqa: E402
from kit.assembly import Sources, gather, put_together, sign  # noqa: E402
from kit.commands import say  # noqa: E402
from kit.suites import SUITES  # noqa: E402

BUILD = ROOT / "build"
STATION, CACHE, KITS = BUILD / "station", BUILD / "kit-cache", BUILD / "kit"


def main() -> int:
    """Understand the command line; gives the exit code."""
    options = _options()
    try:
        with alone():
            if options.command == "lock":
                lock()
            else:
                print(build(options))
    except SkerryError as e:
        print(f"kit: {e.message}" + (f"\nhint: {e.hint}" if e.hint else ""), file=sys.stderr)
        return e.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def lock() -> None:
    """Resolve the Python packages anew, for every Debian."""
    for suite in SUITES.values():
        count = wheels.lock(suite, CACHE / "wheels" / suite.tag)
        say(f"{wheels.lock_file(suite).relative_to(ROOT)}: {count} wheels")


def build(options: argparse.Namespace) -> Path:
    """Gather, put together, sign; gives the kit's folder."""
    began = time.monotonic()
    sources = _sources(options)
    signer = _signer(options)
    every = len(sources.suites) == len(SUITES)
    kit = KITS / "-".join(["skerry-kit", __version__, *([] if every else [s.name for s in sources.suites])])
    try:
        files = gather(sources, signer)
        changed = put_together(kit, files)
        sign(kit, files, sources.suites, signer)
    finally:
        openpgp.end_agent(signer.home)
    size = sum((kit / name).stat().st_size for name in files)
    say(f"{len(files)} files, {size / 1e6:.0f} MB; {changed} changed, {time.monotonic() - began:.0f} s")
    _note_for_paper(kit)
    return kit


def _sources(options: argparse.Namespace) -> Sources:
    return Sources(
        suites=tuple(SUITES[name] for name in sorted(set(options.suite or SUITES))),
        mirror=debs.Mirror(options.mirror, options.security_mirror or options.mirror) if options.mirror else None,
        refresh=options.refresh or options.mirror is not None,
        models=options.models,
        model_keys=options.keys,
        measure=not options.no_measure,
        station=STATION,
        cache=CACHE,
    )


def _signer(options: argparse.Namespace) -> openpgp.Signer:
    if options.signing_key:
        return openpgp.Signer(options.signing_home or Path.home() / ".gnupg", options.signing_key)
    return openpgp.developer(STATION)


def _note_for_paper(kit: Path) -> None:
    say("note on paper, and keep apart from the stick:")
    for what, value in (
        ("the key, for install.sh --key", openpgp.sha256_of_key((kit / "kit.gpg").read_bytes())),
        ("install.sh, as sha256sum says", manifest.digest(kit / "install.sh")),
    ):
        say(f"  {what}\n{_in_groups(value)}")


def _in_groups(digest: str) -> str:
    """Two lines that a person can copy by hand; `install.sh` ignores the spaces."""
    groups = [digest[i : i + 4] for i in range(0, len(digest), 4)]
    return "\n".join(f"       {' '.join(groups[i : i + 8])}" for i in (0, 8))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="kit/build.py", description="Gather a kit for boxes without a network.")
    add = parser.add_argument
    add("command", nargs="?", choices=("build", "lock"), default="build", help="lock: resolve the Python packages anew")
    add("--suite", action="append", choices=sorted(SUITES), help="repeatable; default: all")
    add("--models", type=Path, metavar="DIR", help="signed model packages, instead of SmolLM2 signed for development")
    add("--keys", type=Path, metavar="DIR", help="the *.pub that boxes shall trust for them")
    add("--no-measure", action="store_true", help="leave out the figures of quality on the card of SmolLM2")
    add("--signing-home", type=Path, metavar="DIR", help="the GnuPG home with the kit's key; default: gpg's own")
    add("--signing-key", metavar="FINGERPRINT", help="the kit's key, instead of one for development")
    add("--mirror", metavar="URI", help="where Debian's packages come from; default: as this station's apt")
    add("--security-mirror", metavar="URI", help="the same for security updates; default: --mirror")
    add("--refresh", action="store_true", help="ask the mirror for its lists, however young ours are")
    options = parser.parse_args()
    if (options.models is None) != (options.keys is None):
        parser.error("--models and --keys go together")
    if options.signing_home and not options.signing_key:
        parser.error("--signing-home needs --signing-key")
    return options


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Let no two builds write the same folders."""
    BUILD.mkdir(exist_ok=True)
    with (BUILD / ".kit.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another build is under way; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main())
