"""The roles' small programs, without a machine: preflight's rules, files coming into place, a disk being divided."""

import base64
import datetime
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.programs import load

FILES = Path(__file__).parents[2] / "playbooks" / "roles" / "base" / "files"
BUILT = datetime.datetime(2026, 11, 20, tzinfo=datetime.UTC)

preflight, tree, mounts = (load(FILES / f"{name}.py") for name in ("preflight", "tree", "mounts"))


def field(*parts: bytes) -> str:
    """The data of a public key, as SSH writes it."""
    return base64.b64encode(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).decode()


ED25519 = f"ssh-ed25519 {field(b'ssh-ed25519', bytes(range(32)))} ada@site"
RSA_2048, RSA_3072 = ("ssh-rsa " + field(b"ssh-rsa", b"\1\0\1", b"\0" + b"\xff" * size) for size in (256, 384))


def machine(**changes: Any) -> Any:
    """A machine that will do, but for the changes."""
    found: dict[str, Any] = {
        "system": "debian 12",
        "architecture": "x86_64",
        "flags": frozenset({"avx2", "fma", "sse4_2"}),
        "memory_mb": 4000,
        "free_mb": 9000,
        "provisioned": False,
        "now": BUILT + datetime.timedelta(days=3),
        "systemd": True,
        "container": False,
        "rtc_local": False,
        "passwords": (),
        "users": {"root": 0, "backup": 34, "ada": 1000},
        "locales": frozenset({"C.UTF-8"}),
        "zones": True,
        "peers": (),
        "root_on_usb": False,
        "usb_networks": (),
    }
    return preflight.Machine(**(found | changes))


def site(**changes: Any) -> Any:
    """A site's variables that will do, but for the changes."""
    found: dict[str, Any] = {
        "operators": [{"name": "ops1", "role": "operator", "keys": [ED25519]}],
        "rescue_keys": [ED25519],
        "networks": ["192.168.10.0/24"],
        "usb_blocked": True,
        "memory_min_mb": 900,
        "disk_min_mb": 1500,
        "timezone": "Etc/UTC",
        "locale": "C.UTF-8",
        "hostname": "",
        "built": BUILT,
    }
    return preflight.Site(**(found | changes))


def test_a_machine_that_will_do_has_no_problem() -> None:
    """The positive control of the table below."""
    assert list(preflight.problems(machine(), site())) == []
    assert list(preflight.problems(machine(system="debian 13"), site(rescue_keys=[RSA_3072]))) == []


@pytest.mark.parametrize(
    ("found", "asked", "says"),
    [
        ({"system": "debian 11"}, {}, "expected Debian 12 or 13"),
        ({"system": "ubuntu 24.04"}, {}, "ubuntu 24.04"),
        ({"architecture": "aarch64"}, {}, "aarch64"),
        ({"flags": frozenset({"fma"})}, {}, "lacks avx2"),
        ({"memory_mb": 512}, {}, "512 MB of memory, expected 900"),
        ({"free_mb": 1400}, {}, "1400 MB free"),
        ({"free_mb": 100, "provisioned": True}, {}, "100 MB free"),
        ({"now": BUILT - datetime.timedelta(seconds=1)}, {}, "the kit was built later"),
        ({"now": datetime.datetime(2099, 1, 1, tzinfo=datetime.UTC)}, {}, "the clock says 2099"),
        ({"rtc_local": True}, {}, "local time"),
        ({"systemd": False}, {}, "process 1"),
        ({"zones": False}, {"timezone": "Mars/Base"}, "Mars/Base"),
        ({}, {"locale": "tlh_XX.UTF-8"}, "tlh_XX"),
        ({}, {"hostname": "Box 1"}, "Box 1"),
        ({"root_on_usb": True}, {}, "USB disk"),
        ({"usb_networks": ("enx001",)}, {}, "enx001 hangs on USB"),
        ({"peers": ("192.168.11.5",)}, {}, "192.168.11.5"),
        ({}, {"networks": ["192.168.10.7/24"]}, "192.168.10.7/24"),
        ({}, {"networks": ["site"]}, "'site'"),
        ({}, {"operators": [], "rescue_keys": []}, "nobody could log in"),
        ({}, {"operators": [{"name": "ops1", "keys": []}], "rescue_keys": []}, "nobody could log in"),
        ({}, {"operators": [{"name": "backup", "keys": []}]}, "user of the system"),
        ({}, {"operators": [{"name": "rescue", "keys": []}]}, "'rescue' will not do"),
        ({}, {"operators": [{"name": "skerry-x", "keys": []}]}, "'skerry-x' will not do"),
        ({}, {"operators": [{"name": "a b", "keys": []}]}, "'a b' will not do"),
        ({}, {"operators": [{"name": "ops1", "keys": []}] * 2}, "twice"),
        ({}, {"operators": [{"name": "ops1", "keys": ["ssh-ed25519 AAAA...replace-me"]}]}, "cut off or mistyped"),
        ({}, {"rescue_keys": ["ssh-ed25519 REPLACE-ME rescue"]}, "cut off or mistyped"),
        ({}, {"rescue_keys": [ED25519[:60]]}, "cut off or mistyped"),
        ({}, {"rescue_keys": [RSA_2048]}, "3072 bits"),
        ({}, {"rescue_keys": ["ssh-dss AAAA old"]}, "begins with ssh-ed25519"),
        ({}, {"rescue_keys": [f'command="x" {ED25519}']}, "begins with ssh-ed25519"),
        ({}, {"rescue_keys": [f"{ED25519}\n{ED25519}"]}, "begins with ssh-ed25519"),
        ({}, {"rescue_keys": [f"ssh-ed25519 {field(b'ssh-rsa', b'x', b'y')}"]}, "of another kind"),
        ({}, {"rescue_keys": [f"ssh-ed25519 {field(b'ssh-ed25519', b'short')}"]}, "the size of such a key"),
    ],
)
def test_preflight_says_what_is_wrong(found: dict[str, Any], asked: dict[str, Any], says: str) -> None:
    """Each problem is one line that names what was found and the next step; nothing else is complained of."""
    (problem,) = preflight.problems(machine(**found), site(**asked))
    assert says in problem
    assert "Next: " in problem


def test_a_password_on_the_console_is_a_way_in() -> None:
    """Without any key a machine is accepted if somebody may log in on its console."""
    assert list(preflight.problems(machine(passwords=("root",)), site(operators=[], rescue_keys=[]))) == []


def test_preflight_sees_this_machine() -> None:
    """Facts are collected without an error on the machine of the test, and nothing is written."""
    found = preflight.look(site())
    assert found.memory_mb > 100
    assert found.users["root"] == 0
    assert found.system.split()[0] in ("debian", "ubuntu", "unknown") or found.system


def test_a_disk_on_usb_is_found_behind_layers(tmp_path: Path) -> None:
    """A root on LVM or LUKS on a USB disk is on USB all the same; one on an inner disk is not."""
    for bus, disk in (("usb1/1-1", "sda"), ("ata1", "sdb")):
        (tmp_path / "devices" / bus / disk / f"{disk}2").mkdir(parents=True)
    for upper, lower in (("dm-0", "usb1/1-1/sda/sda2"), ("dm-1", "ata1/sdb/sdb2")):
        (tmp_path / "devices/virtual" / upper / "slaves").mkdir(parents=True)
        (tmp_path / "devices/virtual" / upper / "slaves" / "part").symlink_to(tmp_path / "devices" / lower)
    assert preflight.hangs_on_usb(tmp_path / "devices/usb1/1-1/sda/sda2")
    assert preflight.hangs_on_usb(tmp_path / "devices/virtual/dm-0")
    assert not preflight.hangs_on_usb(tmp_path / "devices/virtual/dm-1")
    assert not preflight.hangs_on_usb(tmp_path / "devices/gone")


# -- tree.py


def apply(
    folder: Path, files: dict[str, str], *options: str, given: str = "", before: dict[str, str] | None = None
) -> str:
    """Run the program on a tree and a root below a folder; gives its stdout."""
    for top, content in (("tree", files), ("root", before or {})):
        (folder / top).mkdir(exist_ok=True)
        for path, text in content.items():
            (folder / top / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / top / path).write_text(text)
    argv = [sys.executable, FILES / "tree.py", "--tree", folder / "tree", "--root", folder / "root", *options]
    return subprocess.run(argv, input=given, capture_output=True, text=True, check=True).stdout


def test_files_come_into_place_once(tmp_path: Path) -> None:
    """New and changed files are written and named, others are left; the second time nothing happens."""
    files = {"etc/a": "new\n", "etc/b": "same\n", "usr/local/sbin/tool": "#!/bin/sh\n", "etc/sudoers.d/x": "y\n"}
    out = apply(tmp_path, files, before={"etc/b": "same\n", "etc/a": "old\n"})
    assert out.splitlines() == ["/etc/a", "/etc/sudoers.d/x", "/usr/local/sbin/tool"]
    assert apply(tmp_path, {}) == ""
    modes = {path: stat.S_IMODE((tmp_path / "root" / path).stat().st_mode) for path in files}
    assert modes == {"etc/a": 0o644, "etc/b": 0o644, "usr/local/sbin/tool": 0o755, "etc/sudoers.d/x": 0o440}


def test_check_changes_nothing(tmp_path: Path) -> None:
    """With --check the names are told and the files stay."""
    assert apply(tmp_path, {"etc/a": "new\n"}, "--check", before={"etc/a": "old\n"}) == "/etc/a\n"
    assert (tmp_path / "root/etc/a").read_text() == "old\n"


def test_values_and_rendered_files(tmp_path: Path) -> None:
    """Values replace names in NAME.in, files come from stdin; a name without a value is an error."""
    given = '{"values": {"zone": "Etc/UTC"}, "files": {"/etc/deep/er": "text"}}'
    assert apply(tmp_path, {"etc/timezone.in": "@zone@\n"}, given=given).splitlines() == [
        "/etc/deep/er",
        "/etc/timezone",
    ]
    assert (tmp_path / "root/etc/timezone").read_text() == "Etc/UTC\n"
    with pytest.raises(subprocess.CalledProcessError):
        apply(tmp_path, {}, given="{}")


def test_an_existing_file_keeps_its_mode(tmp_path: Path) -> None:
    """A file that an administrator made stricter does not become readable again."""
    apply(tmp_path, {"etc/a": "1\n"})
    (tmp_path / "root/etc/a").chmod(0o600)
    apply(tmp_path, {"etc/a": "2\n"})
    assert stat.S_IMODE((tmp_path / "root/etc/a").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("function", "text", "wanted", "result"),
    [
        ("set_keys", "UMASK\t022\nX 1\n", "UMASK 027\n", "UMASK 027\nX 1\n"),
        ("set_keys", "UMASK 022\nUMASK 002\n", "UMASK 027\n", "# UMASK 022\nUMASK 027\n"),
        ("set_keys", "# UMASK 022\n", "# a reason\nUMASK 027\n", "# UMASK 022\nUMASK 027\n"),
        ("set_keys", "", "minlen = 15\naudit\n", "minlen = 15\naudit\n"),
        (
            "set_lines",
            "/dev/a / ext4 rw 0 1\n",
            "proc /proc proc x 0 0\n",
            "/dev/a / ext4 rw 0 1\nproc /proc proc x 0 0\n",
        ),
        (
            "set_lines",
            "proc /proc proc old 0 0\n/dev/a / ext4\n",
            "proc /proc proc x\n",
            "/dev/a / ext4\nproc /proc proc x\n",
        ),
        ("set_lines", "b /b\na /a\n", "a /a\nb /b\n", "b /b\na /a\n"),
    ],
)
def test_lines_of_others_files(function: str, text: str, wanted: str, result: str) -> None:
    """Single lines are set in a file that belongs to a package; what else it says stays; twice is as once."""
    work: Callable[[str, str], str] = getattr(tree, function)
    assert work(text, wanted) == result
    assert work(result, wanted) == result


# -- mounts.py


@pytest.mark.parametrize(
    ("mode", "free", "data", "log", "container", "result"),
    [
        ("auto", 20_000, 0, 0, False, {"data": 12_375, "log": 2000}),
        ("auto", 200_000, 0, 0, False, {"data": 145_875, "log": 4000}),
        ("auto", 3000, 0, 0, False, {}),
        ("auto", 20_000, 0, 0, True, {}),
        ("files", 20_000, 5000, 800, False, {"data": 5000, "log": 800}),
        ("none", 20_000, 0, 0, False, {}),
    ],
)
def test_how_a_disk_is_divided(
    mode: str, free: int, data: int, log: int, container: bool, result: dict[str, int]
) -> None:
    """Volumes take a share of what is free, leave room for the system, and are not made where there is none."""
    assert mounts.volume_sizes(mode, free, data, log, container=container) == result


@pytest.mark.parametrize(("unit", "stays"), [("Options=loop,nodev\n", True), ("", False), (None, False)])
def test_an_image_that_nothing_names_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: str | None, stays: bool
) -> None:
    """What a run that was cut off left takes no room in the next; an empty unit, as a power cut leaves it, is none."""
    monkeypatch.setattr(mounts, "IMAGES", tmp_path)
    monkeypatch.setattr(mounts, "UNITS", tmp_path)
    (tmp_path / "data.img").write_bytes(b"0")
    if unit is not None:
        (tmp_path / "var-lib-skerry.mount").write_text(unit)
    mounts.remove_orphans()
    assert (tmp_path / "data.img").exists() == stays


@pytest.mark.parametrize("used", ["in_fstab", "is_mounted"])
def test_an_image_in_use_stays_without_its_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used: str) -> None:
    """Somebody who took the unit away, or put its mount into fstab, loses no data."""
    monkeypatch.setattr(mounts, "IMAGES", tmp_path)
    monkeypatch.setattr(mounts, "UNITS", tmp_path)
    monkeypatch.setattr(mounts, used, lambda where: where == Path("/var/lib/skerry"))
    for name in ("data", "log"):
        (tmp_path / f"{name}.img").write_bytes(b"0")
    mounts.remove_orphans()
    assert (tmp_path / "data.img").exists()
    assert not (tmp_path / "log.img").exists()


def test_volumes_that_do_not_fit_are_refused() -> None:
    """Asked for by name and too large: an error that says how much is free."""
    with pytest.raises(SystemExit, match="5000 MB are free"):
        mounts.volume_sizes("files", 5000, 4000, 500, container=False)


def test_fstab_gets_the_options_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A partition of the installer keeps its line and gains the missing options; a second time nothing changes."""
    fstab = tmp_path / "fstab"
    fstab.write_text("# home\nUUID=1 / ext4 defaults 0 1\nUUID=2 /home ext4 defaults,nodev 0 2\n")
    monkeypatch.setattr(mounts, "FSTAB", fstab)
    monkeypatch.setattr(mounts, "run", lambda *_: None)
    home = mounts.Place(Path("/home"), "nodev,nosuid")
    assert list(mounts.complete_fstab(home, check=True)) == ["/home (nodev,nosuid in fstab)"]
    assert list(mounts.complete_fstab(home, check=False)) == ["/home (nodev,nosuid in fstab)"]
    assert fstab.read_text().splitlines()[1:] == [
        "UUID=1 / ext4 defaults 0 1",
        "UUID=2 /home ext4 defaults,nodev,nosuid 0 2",
    ]
    assert list(mounts.complete_fstab(home, check=False)) == []
