"""Give data and logs a file system of their own, and folders their mount options, without partitioning the disk.

    python3 mounts.py --volumes auto|files|none [--data-mb N] [--log-mb N] [--check]

A full disk must never take the console or the login away. `files` makes two images of a fixed size, filled with real
blocks from the start, and mounts them on /var/lib/skerry and /var/log: then neither models nor logs can fill the root,
and a full root cannot starve them. `auto` does so on a machine with room, and not in a container. A folder that is a
file system of its own already (a partition of the bootable image) is left as it is; only its options in fstab are
completed.

Other folders are mounted onto themselves, which costs nothing and lets them have options: no devices, no set-uid
programs, in some no programs at all (ANSSI-BP-028 R28, Lynis FILE-6310 and FILE-6374). That separates rights, not room.

Names what it changed on stdout, one line each. Content is copied before the new file system is mounted over it, and the
hidden original removed after that; a power cut in between leaves the original in force.

What this does NOT do: grow an image later (docs/how-to/disk-full.md), or check it at boot beyond
ext4's own journal.
"""

import argparse
import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

IMAGES = Path("/var/lib/skerry-volumes")
UNITS = Path("/etc/systemd/system")
FSTAB = Path("/etc/fstab")

ROOT_KEEPS_MB = 1500
"""What the root file system must have left when the images are made."""
SMALLEST_MB = {"data": 1500, "log": 300}


@dataclasses.dataclass(frozen=True)
class Place:
    """A folder and the options it is to have."""

    where: Path
    options: str
    image: str = ""
    """Name of the image that holds it in mode `files`; else it is mounted onto itself."""

    @property
    def unit(self) -> Path:
        """The file of its mount unit."""
        return UNITS / (str(self.where).strip("/").replace("/", "-") + ".mount")

    def unit_now(self) -> str:
        """What that file holds now; empty as well if it is not there."""
        return self.unit.read_text() if self.unit.exists() else ""


PLACES = (
    Place(Path("/boot"), "nodev,nosuid,noexec"),
    # Programs of packages run from /home/rescue (the kit's install.sh) and /var (dpkg): these two have no noexec.
    Place(Path("/home"), "nodev,nosuid"),
    Place(Path("/var"), "nodev,nosuid"),
    Place(Path("/var/tmp"), "nodev,nosuid,noexec"),  # noqa: S108 (nothing is written there)
    # skerry-setup is run from the verified copy of the kit in here.
    Place(Path("/var/lib/skerry"), "nodev,nosuid", image="data"),
    Place(Path("/var/log"), "nodev,nosuid,noexec", image="log"),
)
"""Parents before children: that is the order in which they are mounted."""


def main(argv: list[str]) -> int:
    """Bring mounts and volumes into place."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--volumes", choices=["auto", "files", "none"], required=True)
    parser.add_argument("--data-mb", type=int, default=0)
    parser.add_argument("--log-mb", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="change nothing")
    options = parser.parse_args(argv)
    if options.volumes != "none" and not options.check:
        remove_orphans()
    sizes = volume_sizes(options.volumes, free_mb(), options.data_mb, options.log_mb, container=in_container())
    for place in PLACES:
        size = sizes.get(place.image, 0)
        for line in apply(place, size, check=options.check):
            print(line)
    return 0


def remove_orphans() -> None:
    """Remove images of a run that was cut off: nothing uses or names them, and they would keep the room asked for.

    An image that is mounted, or that an administrator mounts by fstab, holds data, whatever became of its unit.
    """
    for place in PLACES:
        if place.image and not (place.unit_now() or in_fstab(place.where) or is_mounted(place.where)):
            (IMAGES / f"{place.image}.img").unlink(missing_ok=True)


def volume_sizes(mode: str, free: int, data: int, log: int, *, container: bool) -> dict[str, int]:
    """Decide how large the images become, in MB; empty when there are to be none.

    Raises:
        SystemExit: images are asked for and do not fit.
    """
    if mode == "none" or container:
        return {}
    log = log or min(max(free // 10, SMALLEST_MB["log"]), 4000)
    data = data or (free - log - ROOT_KEEPS_MB) * 3 // 4
    fits = data >= SMALLEST_MB["data"] and log >= SMALLEST_MB["log"] and free - data - log >= ROOT_KEEPS_MB
    if not fits and mode == "files":
        sys.exit(
            f"cannot make volumes of {data} MB for data and {log} MB for logs: {free} MB are free, expected that "
            f"{ROOT_KEEPS_MB} MB stay and each has at least {SMALLEST_MB}. Next: base_volumes: none, or other sizes"
        )
    return {"data": data, "log": log} if fits else {}


def apply(place: Place, size_mb: int, *, check: bool) -> Iterator[str]:
    """Bring one place into its state; yield what changed."""
    if not place.where.is_dir() and not check:
        place.where.mkdir(parents=True)
    if in_fstab(place.where):
        yield from complete_fstab(place, check=check)
        return
    if check and not place.where.is_dir():
        yield f"{place.where} ({place.options})"
        return
    if place.unit_now():
        size_mb = 1 if "Options=loop" in place.unit_now() else 0
        image_ready = True
    else:
        if is_other_device(place.where):
            return
        image_ready = False
    text = unit_text(place, from_image=size_mb > 0)
    if place.unit_now() == text and is_mounted(place.where):
        return
    yield f"{place.where} ({f'volume of {size_mb} MB' if size_mb > 1 else place.options})"
    if check:
        return
    if size_mb > 0 and not image_ready:
        make_image(place, size_mb)
    place.unit.write_text(text)
    run("systemctl", "daemon-reload")
    run("systemctl", "enable", "--quiet", place.unit.name)
    run("systemctl", "reload-or-restart" if is_mounted(place.where) else "start", place.unit.name)
    if size_mb > 0 and not image_ready:
        os.sync()  # the unit too, before the original goes
        remove_hidden(place.where)
        reopen_logs(place)


def unit_text(place: Place, *, from_image: bool) -> str:
    """The mount unit of a place. Wanted, not required: a broken image must not stop the boot."""
    what, kind = (IMAGES / f"{place.image}.img", "ext4") if from_image else (place.where, "none")
    options = f"loop,{place.options},noatime" if from_image else f"bind,private,{place.options}"
    return (
        "# Skerry, roles/base/files/mounts.py: see there for the reasons.\n"
        f"[Unit]\nDescription={place.where} for Skerry\nBefore=local-fs.target\n\n"
        f"[Mount]\nWhat={what}\nWhere={place.where}\nType={kind}\nOptions={options}\n\n"
        "[Install]\nWantedBy=local-fs.target\n"
    )


def make_image(place: Place, size_mb: int) -> None:
    """Make the image and copy into it what is in the folder now."""
    IMAGES.mkdir(mode=0o700, exist_ok=True)
    image = IMAGES / f"{place.image}.img"
    run("fallocate", "-l", f"{size_mb}MB", str(image))
    run("mkfs.ext4", "-q", "-m", "1", "-L", f"skerry-{place.image}", str(image))
    work = Path("/run/skerry-volume")
    work.mkdir(exist_ok=True)
    run("mount", "-o", "loop", str(image), str(work))
    try:
        run("cp", "-a", f"{place.where}/.", str(work))
        shutil.copystat(place.where, work)
        run("sync", "-f", str(work))
    finally:
        run("umount", str(work))


def remove_hidden(where: Path) -> None:
    """Remove the original that the new file system hides, through a second view of its parent."""
    view = Path("/run/skerry-volume")
    run("mount", "--bind", str(where.parent), str(view))
    try:
        for entry in (view / where.name).iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    entry.unlink()
    finally:
        run("umount", str(view))


def reopen_logs(place: Place) -> None:
    """Let the daemons that hold files below a folder open them anew in the new file system."""
    if place.image == "log":
        run("systemctl", "restart", "systemd-journald")
        if subprocess.run(["systemctl", "--quiet", "is-active", "auditd"], check=False).returncode == 0:
            run("systemctl", "kill", "--signal=USR1", "auditd")


def in_fstab(where: Path) -> bool:
    """Whether an administrator, an installer or an image mounts this folder."""
    return any(line.split()[1:2] == [str(where)] for line in _fstab() if not line.startswith("#"))


def complete_fstab(place: Place, *, check: bool) -> Iterator[str]:
    """Add the options to the folder's line in fstab."""
    lines, changed = [], False
    for line in _fstab():
        words = line.split()
        if not line.startswith("#") and words[1:2] == [str(place.where)]:
            present = words[3].split(",") if len(words) > 3 else ["defaults"]
            missing = [option for option in place.options.split(",") if option not in present]
            if missing:
                changed = True
                line = " ".join([*words[:3], ",".join([*present, *missing]), *(words[4:] or ["0", "2"])])
        lines.append(line)
    if changed:
        yield f"{place.where} ({place.options} in fstab)"
        if not check:
            partial = FSTAB.with_name(".fstab.skerry-new")
            partial.write_text("".join(f"{line}\n" for line in lines))
            partial.chmod(0o644)
            partial.replace(FSTAB)
            run("systemctl", "daemon-reload")
            if is_mounted(place.where):
                run("mount", "-o", "remount", str(place.where))


def is_mounted(where: Path) -> bool:
    """Whether something is mounted on this very folder; os.path.ismount does not see binds of the same device."""
    return any(line.split()[4] == str(where) for line in Path("/proc/self/mountinfo").read_text().splitlines())


def is_other_device(where: Path) -> bool:
    """Whether the folder is a file system of its own that nobody wrote into fstab (a container's, for example)."""
    return is_mounted(where) or where.stat().st_dev != where.parent.stat().st_dev


def free_mb() -> int:
    """What is free where the images would lie."""
    return shutil.disk_usage("/var/lib").free // 10**6


def in_container() -> bool:
    """Loop devices belong to the host there."""
    return subprocess.run(["systemd-detect-virt", "--container", "--quiet"], check=False).returncode == 0


def run(*command: str) -> None:
    """Run a command; end with its words if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"cannot run {' '.join(command)}: it ended with {done.returncode}: {done.stderr.strip()}")


def _fstab() -> list[str]:
    return FSTAB.read_text().splitlines() if FSTAB.exists() else []


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main(sys.argv[1:]))
