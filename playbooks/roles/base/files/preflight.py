"""Say what keeps this machine from becoming a box, before anything on it changes.

    python3 preflight.py --kit FOLDER --site JSON

Prints one problem a line, each with what was found, what is expected and the next step; nothing when all is well. The
exit status is 0 in both cases: the play decides. `look` collects facts and touches nothing; `problems` is pure and
judges them, so its rules can be tested as a table.

What it does NOT see: whether a key's private half exists, and hardware that breaks later.
"""

import argparse
import base64
import binascii
import dataclasses
import datetime
import ipaddress
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

RELEASES = {"12": "bookworm", "13": "trixie"}
FLAGS = frozenset({"avx2", "fma"})
"""What onnxruntime's fast kernels need; without them an answer takes minutes."""
YEARS_AFTER_BUILD = 20
RESERVED = frozenset({"root", "rescue", "nobody", "skerry-inference"})
KEY_TYPES = ("ssh-ed25519", "sk-ssh-ed25519@openssh.com", "ssh-rsa")
RSA_BITS = 3072


@dataclasses.dataclass(frozen=True)
class Machine:
    """What was found on the machine."""

    system: str  # "debian 12"
    architecture: str
    flags: frozenset[str]
    memory_mb: int
    free_mb: int  # the smallest of the file systems that are written to
    provisioned: bool  # an earlier run got as far as the software
    now: datetime.datetime
    systemd: bool
    container: bool
    rtc_local: bool  # the hardware clock is not in UTC
    passwords: tuple[str, ...]  # accounts that may log in on the console
    users: Mapping[str, int]  # name: uid
    locales: frozenset[str]
    zones: bool  # the time zone that is asked for exists
    peers: tuple[str, ...]  # addresses that are connected to port 22
    root_on_usb: bool
    usb_networks: tuple[str, ...]  # network interfaces on USB that no rule of usbguard allows


@dataclasses.dataclass(frozen=True)
class Site:
    """The variables that preflight judges."""

    operators: Sequence[Mapping[str, Any]]
    rescue_keys: Sequence[str]
    networks: Sequence[str]
    usb_blocked: bool
    memory_min_mb: int
    disk_min_mb: int
    timezone: str
    locale: str
    hostname: str
    built: datetime.datetime  # of the kit


def main(argv: list[str]) -> int:
    """Print the problems of this machine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kit", type=Path, required=True)
    parser.add_argument("--site", type=json.loads, required=True)
    options = parser.parse_args(argv)
    site = Site(**options.site, built=build_time(options.kit))
    for problem in problems(look(site), site):
        print(problem)
    return 0


def problems(machine: Machine, site: Site) -> Iterator[str]:
    """Yield what is wrong, in the order in which a person would mend it."""
    yield from _system(machine, site)
    yield from _room(machine, site)
    yield from _clock(machine, site)
    yield from _people(machine, site)
    yield from _door(machine, site)


def _system(machine: Machine, site: Site) -> Iterator[str]:
    name, _, version = machine.system.partition(" ")
    if name != "debian" or version not in RELEASES:
        yield f"the system is {machine.system}, expected Debian 12 or 13. Next: install Debian's minimal system first"
    if machine.architecture != "x86_64":
        yield f"the processor is {machine.architecture}, expected x86_64. Next: use a 64-bit Intel or AMD machine"
    elif missing := FLAGS - machine.flags:
        yield (
            f"the processor lacks {', '.join(sorted(missing))}, expected a processor of 2015 or later. "
            "Next: in a virtual machine pass the host's processor through (cpu: host)"
        )
    if not machine.systemd:
        yield "systemd does not run as process 1. Next: boot the machine, a chroot is not enough"
    if not machine.zones:
        yield f"the time zone {site.timezone!r} does not exist. Next: base_timezone: Europe/Paris, or the like"
    if site.locale not in machine.locales:
        yield f"the locale {site.locale!r} does not exist here. Next: base_locale: C.UTF-8, or make it with locale-gen"
    if site.hostname and not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", site.hostname):
        yield f"the name {site.hostname!r} will not do, expected small letters, digits and hyphens. Next: base_hostname"
    if machine.usb_networks and site.usb_blocked:
        yield (
            f"the network interface {machine.usb_networks[0]} hangs on USB and would be blocked. Next: use another, "
            "allow it in /etc/usbguard/rules.d/site.conf (allow id VENDOR:PRODUCT), or set hardening_usb_blocked: false"
        )
    if machine.root_on_usb and site.usb_blocked:
        yield (
            "the system itself is on a USB disk, which would be blocked at the next boot. "
            "Next: install on an inner disk, or set hardening_usb_blocked: false"
        )


def _room(machine: Machine, site: Site) -> Iterator[str]:
    if machine.memory_mb < site.memory_min_mb:
        how = "add memory, or set base_memory_min_mb"
        yield f"{machine.memory_mb} MB of memory, expected {site.memory_min_mb}. Next: {how}"
    needed = 200 if machine.provisioned else site.disk_min_mb
    if machine.free_mb < needed:
        yield f"{machine.free_mb} MB free on the disk, expected {needed}. Next: make room, or base_disk_min_mb"


def _clock(machine: Machine, site: Site) -> Iterator[str]:
    if machine.rtc_local and not machine.container:
        yield "the hardware clock runs in local time, expected UTC. Next: timedatectl set-local-rtc 0"
    how = "Next: date -u -s 'YYYY-MM-DD HH:MM', then hwclock --systohc --utc"
    if machine.now < site.built:
        yield f"the clock says {machine.now:%F %R} UTC, the kit was built later, {site.built:%F %R}. {how}"
    elif machine.now > site.built + datetime.timedelta(days=365 * YEARS_AFTER_BUILD):
        yield f"the clock says {machine.now:%F %R} UTC, the kit was built in {site.built:%Y}. {how}"


def _people(machine: Machine, site: Site) -> Iterator[str]:
    seen: set[str] = set()
    for operator in site.operators:
        name = str(operator["name"])
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,30}", name) or name in RESERVED or name.startswith("skerry-"):
            yield f"the operator's name {name!r} will not do, expected small letters, digits and hyphens. Next: another"
        if name in seen:
            yield f"the operator {name!r} stands twice in console_operators. Next: one entry, with all keys"
        if machine.users.get(name, 1000) < 1000:
            yield f"the operator {name!r} is a user of the system. Next: another name"
        seen.add(name)
        for key in operator["keys"]:
            if why := key_problem(key):
                yield f"a key of the operator {name!r} will not do: {why}. Next: ssh-keygen -t ed25519"
    for key in site.rescue_keys:
        if why := key_problem(key):
            yield f"a key in console_rescue_keys will not do: {why}. Next: ssh-keygen -t ed25519"


def _door(machine: Machine, site: Site) -> Iterator[str]:
    keys = bool(site.rescue_keys) or any(operator["keys"] for operator in site.operators)
    if not keys and not machine.passwords:
        yield (
            "nobody could log in afterwards: no key of an operator, no rescue key, no password on the console. "
            "Next: console_rescue_keys, with the public half of a key that you keep safe"
        )
    networks = []
    for text in site.networks:
        try:
            networks.append(ipaddress.ip_network(text))
        except ValueError as error:
            yield f"hardening_ssh_networks has {text!r}: {error}. Next: write it as 192.168.10.0/24"
    for peer in machine.peers:
        address = ipaddress.ip_address(peer)
        if not address.is_loopback and not any(address in network for network in networks):
            yield (
                f"somebody is connected by SSH from {peer}, which is not in hardening_ssh_networks. "
                "Next: add the network, or work on the console"
            )


def key_problem(line: str) -> str:
    """Say why a line of authorized_keys will not do; empty if it will.

    Stricter than sshd: a key that sshd would pass over in silence is a lockout.
    """
    kind, _, rest = line.strip().partition(" ")
    data = rest.split(" ")[0]
    if "\n" in line.strip() or kind not in KEY_TYPES:
        return f"found {line[:40]!r}, expected a line that begins with {', '.join(KEY_TYPES[:2])} or {KEY_TYPES[2]}"
    try:
        fields = list(_ssh_fields(base64.b64decode(data, validate=True)))
    except (binascii.Error, ValueError):
        return f"found {line[:40]!r}, which is cut off or mistyped"
    if not fields or fields[0] != kind.encode():
        return f"found {line[:40]!r}, whose data is of another kind"
    if kind == "ssh-ed25519" and (len(fields) != 2 or len(fields[1]) != 32):
        return f"found {line[:40]!r}, which has not the size of such a key"
    if kind == "ssh-rsa" and (len(fields) != 3 or int.from_bytes(fields[2], "big").bit_length() < RSA_BITS):
        return f"found {line[:40]!r}, expected {RSA_BITS} bits or more"
    return ""


def _ssh_fields(data: bytes) -> Iterator[bytes]:
    while data:
        size = int.from_bytes(data[:4], "big")
        if len(data) < 4 + size:
            raise ValueError("cut off")
        yield data[4 : 4 + size]
        data = data[4 + size :]


def look(site: Site) -> Machine:
    """Collect the facts. Reads only."""
    release = dict(line.split("=", 1) for line in _lines("/etc/os-release") if "=" in line)
    memory = next(int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal"))
    flags = next((line for line in _lines("/proc/cpuinfo") if line.startswith("flags")), "")
    locales = subprocess.run(["locale", "-a"], capture_output=True, text=True, check=False).stdout.split()
    virtual = subprocess.run(["systemd-detect-virt", "--container", "--quiet"], check=False)
    return Machine(
        system=f"{release.get('ID', 'unknown')} {release.get('VERSION_ID', '?')}".replace('"', ""),
        architecture=os.uname().machine,
        flags=frozenset(flags.split()),
        memory_mb=memory // 1000,
        free_mb=min(shutil.disk_usage(place).free // 10**6 for place in ("/", "/var/lib")),
        provisioned=Path("/opt/skerry/current").exists(),
        now=datetime.datetime.now(datetime.UTC),
        systemd=Path("/run/systemd/system").is_dir(),
        container=virtual.returncode == 0,
        rtc_local="LOCAL" in _lines("/etc/adjtime"),
        passwords=tuple(_passwords()),
        users={line.split(":")[0]: int(line.split(":")[2]) for line in _lines("/etc/passwd")},
        locales=frozenset(locales) | {"C.UTF-8", "POSIX", "C"},
        zones=".." not in site.timezone and Path("/usr/share/zoneinfo", site.timezone).is_file(),
        peers=tuple(_peers()),
        root_on_usb=virtual.returncode != 0 and _root_on_usb(),
        usb_networks=() if virtual.returncode == 0 else tuple(_usb_networks()),
    )


def build_time(kit: Path) -> datetime.datetime:
    """When the kit was built, as its manifest says."""
    for line in _lines(kit / "manifest"):
        if line.startswith("# built "):
            return datetime.datetime.fromisoformat(line.removeprefix("# built ").strip())
    return datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def _passwords() -> Iterator[str]:
    shells = {line.split(":")[0]: line.rsplit(":", 1)[1] for line in _lines("/etc/passwd")}
    for line in _lines("/etc/shadow"):
        name, secret = line.split(":")[:2]
        if secret.startswith("$") and not shells.get(name, "").endswith(("nologin", "false")):
            yield name


def _peers() -> Iterator[str]:
    """Addresses connected to port 22, from the kernel's table: nothing needs to be installed for it."""
    for table, size in (("/proc/net/tcp", 4), ("/proc/net/tcp6", 16)):
        for line in _lines(table)[1:]:
            _, local, remote, state = line.split()[:4]
            if local.endswith(":0016") and state == "01":
                raw = bytes.fromhex(remote.split(":")[0])
                words = b"".join(raw[i : i + 4][::-1] for i in range(0, size, 4))
                address = ipaddress.ip_address(words)
                mapped = getattr(address, "ipv4_mapped", None)
                yield str(mapped or address)


def _usb_networks() -> Iterator[str]:
    if any(Path("/etc/usbguard/rules.d").glob("*.conf")):
        return
    for interface in Path("/sys/class/net").iterdir():
        if "/usb" in str(interface.resolve()):
            yield interface.name


def _root_on_usb() -> bool:
    source = subprocess.run(
        ["findmnt", "-nvo", "SOURCE", "/"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return hangs_on_usb(Path("/sys/class/block", Path(source).resolve().name))


def hangs_on_usb(device: Path) -> bool:
    """Say whether a block device of /sys, or one that it lies on by LVM, LUKS or RAID, is on USB."""
    return "/usb" in str(device.resolve()) or any(map(hangs_on_usb, device.glob("slaves/*")))


def _lines(path: str | Path) -> list[str]:
    try:
        return Path(path).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
