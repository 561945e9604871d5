"""Make the root file system of an image: Debian's packages, then the kit's own `install.sh`, run in a booted container.

The container has no network but its loopback interface. What makes an image is thus what makes any box, and an image is
no more trusted than its kit: the kit's signature and digests are checked there as on a bare machine.

Source: mmdebstrap(1), systemd-nspawn(1).
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from appliance.errors import BuildError
from images import disk

HERE = Path(__file__).parent
SUITE = "trixie"
INSTALL_LIMIT_S = 1800

# The unit that runs the kit inside. It is removed afterwards, as all that is named in clean.py.
UNIT = """
[Unit]
After=multi-user.target
[Service]
Type=oneshot
Environment=HOME=/root
StandardOutput=file:/skerry-image.log
StandardError=inherit
ExecStart=/bin/bash /mnt/kit/install.sh --key {key} --site /mnt/site.yaml
ExecStopPost=/bin/sh -c 'echo "$SERVICE_RESULT" > /skerry-image.result; systemctl --no-block poweroff'
"""
# Somebody must be able to log in, or the playbooks refuse; this key is thrown away, and its public half with it.
SITE = "console_rescue_keys: [{key}]\nhardening_lockout_minutes: 0\nbase_volumes: none\n"


def packages() -> list[str]:
    """Name the packages that an image starts with."""
    lines = (HERE / "packages.txt").read_text().splitlines()
    return [line.split("#")[0].strip() for line in lines if line.split("#")[0].strip()]


def bootstrap(root: Path, epoch: int) -> None:
    """Fill a folder with Debian, from the mirrors of this station."""
    options = ["--quiet", "--variant=minbase", "--format=directory", f"--include={','.join(packages())}"]
    run("install Debian", ["mmdebstrap", *options, SUITE, root], environment={"SOURCE_DATE_EPOCH": str(epoch)})


def add_overlay(root: Path) -> None:
    """Put our own files in place, owned by root, and enable our units."""
    shutil.copytree(HERE / "overlay", root, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (HERE / "overlay").rglob("*"):
        if "__pycache__" in path.parts:
            continue
        target = root / path.relative_to(HERE / "overlay")
        os.chown(target, 0, 0)
        target.chmod(0o755 if target.is_dir() else 0o644)
    for folder in ("efi", "home", "var/lib/skerry"):
        (root / folder).mkdir(mode=0o755, exist_ok=True)
    units = ["systemd-networkd.service", "skerry-first-boot.service", "skerry-good-boot.service"]
    chroot("enable units", root, ["systemctl", "--quiet", "enable", *units])
    # Debian's waits for an address before it lets the boot go on; a box has to come up without a cable.
    masked = ["systemd-networkd-wait-online.service", "systemd-firstboot.service"]
    chroot("mask units", root, ["systemctl", "--quiet", "mask", *masked])


def install_kit(root: Path, kit: Path, key_sha256: str) -> str:
    """Boot the root without a network and run the kit's installer in it; gives what that printed.

    Raises:
        BuildError: it failed; the message ends with the last it said.
    """
    with tempfile.TemporaryDirectory() as scratch:
        key = Path(scratch, "key")
        run("make a key", ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "build", "-f", key])
        site = Path(scratch, "site.yaml")
        site.write_text(SITE.format(key=key.with_suffix(".pub").read_text().strip()))
        wants = root / "etc/systemd/system/multi-user.target.wants"
        (root / "etc/systemd/system/skerry-image.service").write_text(UNIT.format(key=key_sha256))
        (wants / "skerry-image.service").symlink_to("../skerry-image.service")
        # A first boot in here would be the build's, not the box's.
        (root / "etc/skerry").mkdir(exist_ok=True)
        (root / "etc/skerry/first-boot").touch()
        boot = ["systemd-nspawn", "--quiet", f"--directory={root}", "--machine=skerry-image", "--boot", "--register=no"]
        boot += ["--keep-unit", "--private-network", "--link-journal=no", "--resolv-conf=off", "--timezone=off"]
        boot += [f"--bind-ro={kit}:/mnt/kit", f"--bind-ro={site}:/mnt/site.yaml"]
        # The unified hierarchy, as a real Debian has it, whatever this station has.
        run("install the kit", boot, environment={"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}, limit_s=INSTALL_LIMIT_S)
    log, result = (root / f"skerry-image.{part}" for part in ("log", "result"))
    said = log.read_text(errors="replace") if log.exists() else "nothing"
    if not result.exists() or result.read_text().strip() != "success":
        raise BuildError(f"cannot install the kit in the image: {said[-1500:]}", hint="the same kit on a bare machine?")
    return said


def rebuild_initrd(root: Path, epoch: int) -> None:
    """Make the initrd anew: the hardening's list of blocked drivers must hold before the root is mounted, too."""
    environment = {"SOURCE_DATE_EPOCH": str(epoch)}
    chroot("make the initrd", root, ["update-initramfs", "-u", "-k", "all"], environment=environment)


def chroot(what: str, root: Path, command: list[str], environment: Mapping[str, str] | None = None) -> None:
    """Run a command of the image in it, without a network; with /proc, /sys and /dev as programs expect them."""
    argv = ["systemd-nspawn", "--quiet", f"--directory={root}", "--register=no", "--keep-unit", "--private-network"]
    argv += ["--resolv-conf=off", "--timezone=off", "--pipe"]
    argv += [f"--setenv={name}={value}" for name, value in (environment or {}).items()]
    run(what, [*argv, *command])


def run(
    what: str,
    command: list[str | Path] | list[str],
    *,
    environment: Mapping[str, str] | None = None,
    limit_s: float = 1800,
) -> None:
    """Run a command.

    Raises:
        BuildError: it failed; the message says what could not be done.
    """
    settings = {**os.environ, "PATH": disk.search_path(), "LC_ALL": "C.UTF-8", **(environment or {})}
    try:
        done = subprocess.run(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            env=settings,
            timeout=limit_s,
        )
    except FileNotFoundError as error:
        raise BuildError(
            f"cannot {what}: there is no program {command[0]}", hint="run `make image`: it installs it"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"cannot {what}: {command[0]} did not end in {limit_s:g} s") from error
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).decode(errors="replace").split())
        raise BuildError(f"cannot {what}: {command[0]} ended with {done.returncode}: {said[-600:] or 'nothing'}")
