"""The first boot of an image: learn who may get in and how the box is reached, then make it a box by the playbooks.

    first_boot.py                   wait for answers, use them; run by skerry-first-boot.service
    first_boot.py wizard TTY        ask on a console; run by skerry-wizard@TTY.service as a user without rights
    first_boot.py read-stick DEVICE print what a stick says; run in a mount namespace of its own

There is no password and no key until somebody gives one. It comes, whichever is first,

* from whoever starts the machine: the systemd credential `skerry.operator`, one public key;
* from a stick whose file system is labelled SKERRY, with `skerry/operator.pub` and, if wanted, `skerry/rescue.pub`,
  `skerry/network` and `skerry/hostname`, each one line;
* from somebody at the console, who pastes a key or takes a one-time password.

The key opens the account `operator` (role admin: Skerry's console and nothing else) and, unless there is one of its
own, the break-glass account `rescue`. A one-time password opens `rescue` on the console only, must be changed at once,
and is gone when a key takes its place.

Afterwards `/etc/skerry/first-boot` says how and when, and this program and its units are gone. Until then every boot
goes on where the last one was cut off. What this does NOT protect against: whoever is at the machine before its owner.
"""

import contextlib
import dataclasses
import datetime
import importlib.util
import ipaddress
import json
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

SETUP = Path("/usr/local/sbin/skerry-setup")
SITE = Path("/etc/skerry/site.yaml")
DONE = Path("/etc/skerry/first-boot")
NETWORK = Path("/etc/systemd/network/10-site.network")
UNITS = (
    Path("/etc/systemd/system/multi-user.target.wants/skerry-first-boot.service"),
    Path("/usr/local/lib/systemd/system/skerry-first-boot.service"),
    Path("/usr/local/lib/systemd/system/skerry-wizard@.service"),
)
STICK = Path("/dev/disk/by-label/SKERRY")
WINDOW = Path("/run/skerry-usb-window")
CARDS = Path("/sys/class/net")
STICK_FILES = {"operator.pub": "operator", "rescue.pub": "rescue", "network": "network", "hostname": "hostname"}
LONGEST = 8192
CABLE_S, LEASE_S = 10, 60
STICK_FIRST_S = 8  # a stick that is in is found sooner; then the consoles ask

# Letters that are not taken for each other, 30 of them: 20 make 98 bits.
ALPHABET = "abcdefghjkmnpqrstuvwxyz2345678"
CLOCK = "%Y-%m-%d %H:%M"
# The lockout guard goes back to what let people in before. Here nobody could get in before, so it would shut them out.
FIRST_RUN = "hardening_lockout_minutes: 0\n"
# What the playbooks' hardening_ssh_networks lets in by itself.
PRIVATE = tuple(map(ipaddress.IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))
# Of a key's comment only what has no meaning to a shell, to YAML or to Ansible's templates.
COMMENT = re.compile(r"[A-Za-z0-9@._+-]{1,60}")


class Refused(Exception):
    """An answer will not do; says what was found and what is expected."""


@dataclasses.dataclass(frozen=True)
class Answers:
    """What the box needs to know, checked."""

    operator: str = ""
    rescue: str = ""
    password: str = ""
    network: str = "dhcp"
    hostname: str = "skerry"
    clock: str = ""


def check(fields: Mapping[str, str], key_problem: Callable[[str], str]) -> Answers:
    """Read answers, wherever they came from, and refuse what is not plainly right.

    Args:
        fields: text by the names of Answers; what is left out keeps its default.
        key_problem: says what is wrong with a line of authorized_keys; empty if nothing.
    """
    if unknown := sorted(fields.keys() - {field.name for field in dataclasses.fields(Answers)}):
        raise Refused(f"found {unknown[0]}, expected {', '.join(field.name for field in dataclasses.fields(Answers))}")
    given = {name: line(text, name) for name, text in fields.items() if text.strip()}
    for name in ("operator", "rescue"):
        if name in given:
            given[name] = key(given[name], key_problem)
    if "operator" not in given and "password" not in given:
        raise Refused("found no key, expected one line as in id_ed25519.pub")
    if "password" in given and not re.fullmatch(rf"[{ALPHABET}-]{{20,40}}", given["password"]):
        raise Refused("found another password than this program makes")
    if "network" in given:
        network_file(given["network"])
    if "hostname" in given and not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", given["hostname"]):
        raise Refused(f"found the name {given['hostname']!r}, expected small letters, digits and hyphens")
    if "clock" in given:
        clock(given["clock"])
    return Answers(**given)


def line(text: str, name: str) -> str:
    """Take the one line of a text; a line end of Windows and a mark at the beginning are no matter."""
    lines = [part.strip() for part in text.removeprefix("\ufeff").splitlines() if part.strip()]
    if len(lines) != 1 or len(text) > LONGEST or not lines[0].isascii() or not lines[0].isprintable():
        raise Refused(f"found {len(lines)} lines or odd characters in {name}, expected one line of plain text")
    return lines[0]


def key(text: str, key_problem: Callable[[str], str]) -> str:
    """Take a public key; what stands behind it stays only if it is a plain name."""
    if problem := key_problem(text):
        raise Refused(problem)
    kind, data, *rest = text.split()
    comment = rest[0] if len(rest) == 1 and COMMENT.fullmatch(rest[0]) else "first-boot"
    return f"{kind} {data} {comment}"


def network_file(text: str, match: str = "Type=ether") -> str:
    """Return systemd-networkd's file for `dhcp` or for `ADDRESS/PREFIX [GATEWAY]`, for the card that `match` names."""
    wired = f"# Written at the first boot.\n[Match]\n{match}\n\n[Network]\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n"
    if text == "dhcp":
        return ""  # what the image does by itself
    words = text.split()
    try:
        if len(words) not in (1, 2) or "/" not in words[0]:
            raise ValueError("no prefix")
        address = ipaddress.IPv4Interface(words[0])
        if address.ip in (address.network.network_address, address.network.broadcast_address):
            raise ValueError("it is the network's own or its broadcast address")
        wired += f"Address={address}\n"
        if len(words) == 2:
            gateway = ipaddress.IPv4Address(words[1])
            if gateway not in address.network or gateway == address.ip:
                raise ValueError("the gateway is not in that network")
            wired += f"Gateway={gateway}\n"
    except ValueError as error:
        raise Refused(
            f"found the network {text!r} ({error}), expected dhcp, or 192.168.10.20/24 192.168.10.1"
        ) from None
    return wired


def clock(text: str) -> datetime.datetime:
    """Take a time in UTC."""
    try:
        when = datetime.datetime.strptime(text, CLOCK).replace(tzinfo=datetime.UTC)
    except ValueError:
        raise Refused(f"found the time {text!r}, expected it as 2026-11-30 08:15 in UTC") from None
    if when.year > 2099:
        raise Refused(f"found the year {when.year}, expected this century")
    return when


def site(answers: Answers, leased: Sequence[str] = ()) -> str:
    """Return the site's variables. JSON is YAML, and quotes all that could mean something.

    Args:
        leased: addresses that the box has got from its network, as 100.64.0.7/24.
    """
    keys = [answers.operator] if answers.operator else []
    operators = [{"name": "operator", "role": "admin", "keys": keys}] if keys else []
    rescue = [answers.rescue] if answers.rescue else keys
    variables = {"base_hostname": answers.hostname, "console_operators": operators, "console_rescue_keys": rescue}
    # A network that the playbooks do not let in by themselves would leave nobody a way in.
    own = [ipaddress.IPv4Interface(text.split()[0]).network for text in (answers.network, *leased) if text != "dhcp"]
    if others := sorted({str(network) for network in own if not any(map(network.subnet_of, PRIVATE))}):
        variables["hardening_ssh_networks"] = [*map(str, PRIVATE), *others]
    note = "# Written at the first boot. After a change: sudo skerry-setup. All names: docs/reference/variables.md\n"
    return note + "".join(f"{name}: {json.dumps(value)}\n" for name, value in variables.items())


# --- as root: wait, then act ------------------------------------------------------------------------------------------


def serve() -> int:
    """Wait for answers and use them; the unit's main process."""
    consoles = list_consoles()
    if SITE.exists():  # cut off last time, after the answers
        tell(consoles, "The first boot was cut off; it goes on.")
        return set_up(consoles, None, "before")
    found = wait(consoles)
    if found is None:
        print("cannot ask in a container: start it with the credential skerry.operator, one public key")
        return 0
    source, answers = found
    # Nobody else is asked from here on, and nobody answers in vain.
    run("systemctl", "stop", *(f"skerry-wizard@{console}.service" for console in consoles))
    tell(consoles, f"Thank you ({source}). Setting up; this takes a minute or two. Leave the machine on.")
    write_network(answers)
    if answers.clock:
        run("timedatectl", "set-time", f"{answers.clock}:00")
    return set_up(consoles, answers, source)


def wait(consoles: list[str]) -> tuple[str, Answers] | None:
    """Return the first answers that will do, and where they came from; None where nobody can give any."""
    rule = load_preflight().key_problem
    credential = Path(os.environ.get("CREDENTIALS_DIRECTORY", "/nonexistent"), "skerry.operator")
    if credential.exists():
        try:
            return "credential", check({"operator": credential.read_text()}, rule)
        except Refused as error:
            tell(consoles, f"The credential skerry.operator will not do: {error}.")
    if subprocess.run(["systemd-detect-virt", "--container", "--quiet"], check=False).returncode == 0:
        return None
    refused, asked, began = "", False, time.monotonic()
    while True:
        open_window()
        for source, fields in given(consoles):
            try:
                return source, check(fields, rule)
            except Refused as error:
                if str(error) != refused:
                    refused = str(error)
                    tell(consoles, f"The answers of the {source} will not do: {refused}.")
        if not asked and time.monotonic() - began > STICK_FIRST_S:
            asked = True
            run("systemctl", "start", "--no-block", *(f"skerry-wizard@{console}.service" for console in consoles))
        time.sleep(1)


def given(consoles: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Give what there is now: of the stick, of the consoles."""
    if STICK.exists():
        argv = ["unshare", "--mount", sys.executable, "-I", __file__, "read-stick", str(STICK)]
        with contextlib.suppress(subprocess.TimeoutExpired, ValueError):
            done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
            fields = json.loads(done.stdout) if done.returncode == 0 else {}
            if fields:
                yield "stick", fields
            elif not done.returncode:
                yield "stick", {"operator": ""}
    for console in consoles:
        # Written by a user without rights: read little, follow no link, believe nothing.
        with contextlib.suppress(OSError, ValueError):
            file = os.open(f"/run/skerry-wizard-{console}/answers", os.O_RDONLY | os.O_NOFOLLOW)
            with os.fdopen(file, "rb") as answers:
                fields = json.loads(answers.read(4 * LONGEST))
            if isinstance(fields, dict) and all(isinstance(v, str) for v in fields.values()):
                yield "console", fields


def read_stick(device: str) -> int:
    """Print the files of a stick as JSON; in a mount namespace that ends with this process."""
    mount = ["mount", "-t", "vfat,exfat,ext4", "-o", "ro,nodev,nosuid,noexec", device, "/mnt"]
    if subprocess.run(mount, check=False).returncode != 0:
        return 1
    fields = {}
    for name, field in STICK_FILES.items():
        path = Path("/mnt/skerry", name)
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                fields[field] = file.read(LONGEST).decode(errors="replace")
    print(json.dumps(fields))
    return 0


def set_up(consoles: list[str], answers: Answers | None, source: str) -> int:
    """Run the playbooks of the kit that is on this machine, and end the first boot if that went well."""
    command = [str(SETUP)]
    if answers:
        file = Path(os.environ["RUNTIME_DIRECTORY"], "site.yaml")
        file.write_text(site(answers, wait_for_lease() if answers.network == "dhcp" else ()) + FIRST_RUN)
        command += ["--site", str(file)]
        give_password(answers)  # the playbooks refuse to close a machine that nobody could enter, and leave it as it is
    # Its output goes to the journal as it comes; what went wrong is said at its end, on stderr.
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    sys.stderr.write(done.stderr)
    if done.returncode != 0:
        said = "\r\n".join(done.stderr.strip().splitlines()[-8:])
        tell(consoles, f"The first boot FAILED:\r\n{said}\r\nMend that and start the machine again.")
        SITE.unlink(missing_ok=True)  # or it would not ask again
        run("systemctl", "start", "--no-block", *map(getty, consoles))
        return 1
    close_window()
    write(SITE, SITE.read_text().replace(FIRST_RUN, ""), 0o600)
    os.sync()
    now = datetime.datetime.now(datetime.UTC)
    write(DONE, f"{now:%Y-%m-%dT%H:%M:%SZ} by {source}\n")
    tell(consoles, f"Skerry is ready.\r\n{how_to_get_in()}")
    run("systemctl", "start", "--no-block", *map(getty, consoles))
    remove_itself()
    return 0


def remove_itself() -> None:
    """Leave no unit behind that may do everything and is never wanted again."""
    for path in (*UNITS, Path(__file__)):
        path.unlink(missing_ok=True)
    run("systemctl", "daemon-reload")


def how_to_get_in() -> str:
    """Name the addresses and the host key, to be compared at the first login."""
    shown = output("hostname", "-I").split()
    host_key = output("ssh-keygen", "-lf", "/etc/ssh/ssh_host_ed25519_key.pub").split()
    lines = [f"  ssh operator@{address}" for address in shown] or [
        "  no address yet: look at the cable, or log in here"
    ]
    return "\r\n".join([*lines, f"  its key: {host_key[1] if len(host_key) > 1 else 'none'}"])


def give_password(answers: Answers) -> None:
    """Set the one-time password: good once, on the console, as sshd takes keys only."""
    if answers.password:
        pair = f"rescue:{answers.password}\n"
        subprocess.run(["chpasswd"], input=pair, text=True, check=True)
        run("chage", "--lastday", "0", "rescue")


def write_network(answers: Answers) -> None:
    """Put the network's file in place and in force."""
    if text := network_file(answers.network, connected_card()):
        write(NETWORK, text)
    else:
        NETWORK.unlink(missing_ok=True)  # of an answer before this one, which led nowhere
    run("networkctl", "reload")


def connected_card() -> str:
    """Say which network card has a cable in: the address goes to it alone. To any, if that cannot be told."""
    for card in sorted(CARDS.glob("e*")):
        if has_cable(card):
            return f"Name={card.name}"  # by its slot: a card may be replaced
    return "Type=ether"


def wait_for_lease() -> list[str]:
    """Return the addresses that the network gave, which takes a while; a card needs some seconds to see its cable."""
    cards = [card for card in CARDS.iterdir() if card.name != "lo"]
    began = time.monotonic()
    while not (found := leased_addresses()) and cards:
        if time.monotonic() - began > (LEASE_S if any(map(has_cable, cards)) else CABLE_S):
            break
        time.sleep(1)
    return found


def has_cable(card: Path) -> bool:
    """Say whether a network card is connected; one that is switched off cannot tell."""
    try:
        return (card / "carrier").read_text().strip() == "1"
    except OSError:
        return False


def leased_addresses() -> list[str]:
    """Return the box's addresses, as 192.168.10.20/24."""
    try:
        shown = json.loads(output("ip", "-json", "-4", "address", "show", "scope", "global") or "[]")
    except ValueError:
        return []
    return [f"{entry['local']}/{entry['prefixlen']}" for card in shown for entry in card.get("addr_info", [])]


def open_window() -> None:
    """Let sticks in while the first boot waits; it closes after two hours, and is opened again."""
    if not WINDOW.exists():
        run("skerry-usb-window", "open", "--reason", "first boot, for the key of an operator", "--minutes", "120")


def close_window() -> None:
    """Block sticks again."""
    if WINDOW.exists():
        run("skerry-usb-window", "close", "--reason", "the first boot is over")


def list_consoles() -> list[str]:
    """Name the consoles that the kernel writes to, and that a person may sit at."""
    try:
        active = Path("/sys/class/tty/console/active").read_text().split()
    except OSError:
        return []
    return ["tty1" if console == "tty0" else console for console in active if re.fullmatch(r"tty[A-Za-z]*\d+", console)]


def getty(console: str) -> str:
    """Name the unit that lets people log in on a console."""
    return f"getty@{console}.service" if re.fullmatch(r"tty\d+", console) else f"serial-getty@{console}.service"


def tell(consoles: list[str], text: str) -> None:
    """Say something to whoever is at the machine, and to the journal."""
    print(text.replace("\r\n", "\n"), flush=True)
    for console in consoles:
        with contextlib.suppress(OSError):
            terminal = os.open(f"/dev/{console}", os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
            with os.fdopen(terminal, "w") as out:
                out.write(f"\r\n{text}\r\n")


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file so that after a power cut it is there whole, or not at all."""
    partial = path.with_name(f".{path.name}.new")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def run(*command: str) -> None:
    """Run a command whose failure is a pity, but no obstacle."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(f"{command[0]} ended with {done.returncode}: {(done.stderr or done.stdout).strip()}", flush=True)


def output(*command: str) -> str:
    """Return what a command prints."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def load_preflight() -> ModuleType:
    """Load the rules for keys that the playbooks will judge by, from the verified copy of the kit."""
    path = SETUP.resolve().parent / "playbooks/roles/base/files/preflight.py"
    spec = importlib.util.spec_from_file_location("preflight", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {path}")
    sys.dont_write_bytecode = True  # the copy stays what was signed
    module = importlib.util.module_from_spec(spec)
    sys.modules["preflight"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


# --- on a console, as nobody ------------------------------------------------------------------------------------------

WELCOME = """

Skerry, first boot. This machine belongs to nobody yet: who shall get in?

  - Put a stick in that is labelled SKERRY and has the file skerry/operator.pub,
  - or answer here. Ctrl-C begins anew.
"""
ENTRY = """
  1  paste a public key (ssh-ed25519 ...), for 'ssh operator@this-machine'
  2  make a one-time password, for the account rescue on this console
"""


def wizard(folder: Path) -> int:
    """Ask a person, and write the answers for the process that acts on them."""
    rule = load_preflight().key_problem
    print(WELCOME)
    while True:
        try:
            fields = ask_all(rule)
        except KeyboardInterrupt:
            print("\n")
            continue
        except EOFError:
            return 1
        break
    partial = folder / ".answers.new"
    partial.write_text(json.dumps(fields))
    partial.replace(folder / "answers")
    while True:  # until this unit is stopped: the console must not offer a login that cannot work yet
        time.sleep(3600)


def ask_all(rule: Callable[[str], str]) -> dict[str, str]:
    """Ask until the person says that it is right."""
    while True:
        fields = ask_entry(rule)
        ask_one(
            fields, "network", "Network: dhcp, or ADDRESS/PREFIX GATEWAY as 192.168.10.20/24 192.168.10.1", "dhcp", rule
        )
        ask_one(fields, "hostname", "Name of this machine", "skerry", rule)
        now = datetime.datetime.now(datetime.UTC).strftime(CLOCK)
        ask_one(fields, "clock", "Time in UTC", now, rule)
        if fields["clock"] == now:
            del fields["clock"]  # it went on meanwhile
        print(f"\n  network  {fields['network']}\n  name     {fields['hostname']}")
        print(
            f"  key      {fields['operator'][:60]}..."
            if "operator" in fields
            else "  key      none, a one-time password"
        )
        if prompt("Is that right? yes or no", "").lower() in ("yes", "y"):
            return fields


def ask_entry(rule: Callable[[str], str]) -> dict[str, str]:
    """Ask for a key, or make a password."""
    while True:
        print(ENTRY)
        choice = prompt("1 or 2", "")
        if choice == "1":
            fields: dict[str, str] = {}
            ask_one(fields, "operator", "The key, in one line", "", rule)
            return fields
        if choice == "2":
            password = make_password()
            print(f"\n  One-time password of the account rescue:   {password}\n")
            print("  Write it down. It works on the console only, and must be changed when it is used.")
            prompt("Press Enter when you have it", "")
            return {"password": password}


def ask_one(fields: dict[str, str], name: str, question: str, default: str, rule: Callable[[str], str]) -> None:
    """Ask for one answer until it will do; add it to the others."""
    while True:
        answer = prompt(question, default) or default
        try:
            check({"password": make_password(), **fields, name: answer}, rule)
        except Refused as error:
            print(f"  That will not do: {error}.")
            continue
        if answer:
            fields[name] = answer
            return


def prompt(question: str, default: str) -> str:
    """Ask one question; the answer without what surrounds it."""
    # Not by input(): that writes to stderr, which is the journal here, and nobody would see a question.
    print(f"{question}{f' [{default}]' if default else ''}: ", end="", flush=True)
    return input().strip()


def make_password() -> str:
    """Make a password that can be read from a screen and typed."""
    return "-".join("".join(secrets.choice(ALPHABET) for _ in range(5)) for _ in range(4))


def main(argv: list[str]) -> int:
    """Do what the unit asks for."""
    if argv[:1] == ["wizard"]:
        return wizard(Path(os.environ["RUNTIME_DIRECTORY"]))
    if argv[:1] == ["read-stick"] and len(argv) == 2:
        return read_stick(argv[1])
    return serve()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
