"""Take out of a root what is one machine's own, and what differs from build to build.

An image is copied to many machines. What they must not share goes: host keys, the machine's number, random seeds,
secrets that were made during the build, keys of people, logs. What would make two builds differ goes as well, or gets
the build's one time: then a second build from the same kit and packages is the same bytes, and anybody can check it.
"""

import os
import re
import shutil
from pathlib import Path

from images import provision

# Made by the build for itself, or by the machine for itself. A folder goes with all that is in it.
GONE = """
    skerry-image.*  etc/systemd/system/skerry-image.service
    etc/systemd/system/multi-user.target.wants/skerry-image.service
    mnt/*  root/.ansible  root/.cache  root/.bash_history  tmp/*  tmp/.[!.]*  var/tmp/*  run/*
    etc/ssh/ssh_host_*  etc/skerry/site.yaml  etc/skerry/first-boot  etc/skerry/authorized_keys/rescue
    etc/credstore.encrypted/*  var/lib/systemd/credential.secret  var/lib/systemd/random-seed  var/lib/systemd/timers/*
    var/lib/systemd/linger/*  var/lib/systemd/catalog/database  var/lib/skerry/receipts/*  var/lib/skerry/lockout
    var/lib/dbus/machine-id  var/lib/private/*  var/lib/wtmpdb/*  var/lib/logrotate
    etc/passwd- etc/shadow- etc/group- etc/gshadow- etc/subuid- etc/subgid- etc/.pwd.lock  etc/resolv.conf
    var/cache/apt/*.bin  var/cache/apt/archives/*.deb  var/lib/apt/lists/*  var/cache/ldconfig/*
    var/cache/debconf/*-old
    var/lib/skerry/apt/cache  var/lib/dpkg/*-old  var/lib/dpkg/lock*  var/lib/ucf/*.[0-9]  var/log/journal/*
    home/*/.ansible home/*/.bash_history
"""
# Found by their presence: programs that write into them do not make them.
EMPTY = ("var/log/wtmp", "var/log/btmp", "var/log/lastlog", "var/log/account/pacct", "var/log/faillog")
MACHINE_ID = "uninitialized\n"  # machine-id(5): the next boot is the first, until it has succeeded
# Python's compiled files hold the time of their source, unless told otherwise; as kit's runtime does.
ANSIBLE = "opt/skerry/ansible/lib"


def clean(root: Path, epoch: int) -> None:
    """Clean a root that is not in use; `epoch` is the latest time that anything in it may have."""
    for pattern in GONE.split():
        for path in root.glob(pattern):
            remove(path)
    empty_logs(root / "var/log")
    (root / "etc/machine-id").write_text(MACHINE_ID)
    settle_accounts(root / "etc/shadow", epoch)
    compile_ansible(root)
    (root / "usr/lib/clock-epoch").touch()  # systemd(1): the clock never starts before this file's time
    set_times(root, epoch)


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def empty_logs(folder: Path) -> None:
    """Remove all logs but their folders, and empty what must be there."""
    kept = {folder.parents[1] / name for name in EMPTY}
    for path in sorted(folder.rglob("*")):
        if path in kept:
            os.truncate(path, 0)
        elif path.is_file() and not path.is_symlink():
            path.unlink()


def settle_accounts(shadow: Path, epoch: int) -> None:
    """Let every account's password be as old as the image."""
    days = epoch // 86400
    text = re.sub(r"^([^:]*:[^:]*):\d+:", rf"\1:{days}:", shadow.read_text(), flags=re.MULTILINE)
    shadow.write_text(text)


def compile_ansible(root: Path) -> None:
    """Compile Ansible's modules so that no time is in them: the times of their sources are about to change."""
    target = (root / ANSIBLE.rpartition("/")[0]).readlink()  # ansible -> ansible-<digest>
    command = ["-m", "compileall", "-q", "-f", "-j", "1", "--invalidation-mode", "unchecked-hash"]
    provision.chroot(
        "compile Ansible", root, [f"/opt/skerry/{target}/bin/python", *command, f"/opt/skerry/{target}/lib"]
    )


def set_times(root: Path, epoch: int) -> None:
    """Give whatever is younger than the build its time; access times tell nobody anything."""
    for folder, folders, files in os.walk(root, topdown=False):
        for name in (*files, *folders):
            _set_time(Path(folder, name), epoch)
    _set_time(root, epoch)


def _set_time(path: Path, epoch: int) -> None:
    when = min(int(path.lstat().st_mtime), epoch)
    os.utime(path, (when, when), follow_symlinks=False)
