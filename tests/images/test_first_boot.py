"""The first boot's answers: what is taken, what is refused, and what the box is told by them. No machine needed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fakes.programs import load

ROOT = Path(__file__).parents[2]
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ7Vmk5tvGcLlTkFvW1J6cXH8F0Ee4V2sJ4pM8mW0xQp"

PROGRAM = ROOT / "images/overlay/usr/local/lib/skerry/first_boot.py"
first_boot = load(PROGRAM)
rule = load(ROOT / "playbooks/roles/base/files/preflight.py").key_problem


def check(**fields: str) -> Any:
    """Read answers by the rule that the playbooks have for keys."""
    return first_boot.check(fields, rule)


def told(leased: tuple[str, ...] = (), **fields: str) -> dict[str, Any]:
    """The site's variables that follow from answers."""
    found = yaml.safe_load(first_boot.site(check(**fields), leased))
    assert isinstance(found, dict)
    return found


def test_a_key_alone_will_do() -> None:
    """One key opens the operator's account and the rescue account; the box is called skerry and asks for an address."""
    found = told(operator=f"{KEY} ada@site")
    assert found["console_operators"] == [{"name": "operator", "role": "admin", "keys": [f"{KEY} ada@site"]}]
    assert found["console_rescue_keys"] == [f"{KEY} ada@site"]
    assert found["base_hostname"] == "skerry"
    assert "hardening_ssh_networks" not in found


@pytest.mark.parametrize(
    "text",
    [f"\ufeff{KEY} ada\r\n", f"  {KEY} ada  \n\n", f"{KEY} ada"],
)
def test_what_editors_leave_is_no_matter(text: str) -> None:
    """A byte order mark, line ends of Windows and spaces around a key are dropped."""
    assert check(operator=text).operator == f"{KEY} ada"


def test_a_comment_with_meaning_is_dropped() -> None:
    """Of what stands behind a key only a plain name stays; a template or a command does not."""
    for comment in ("{{ lookup('pipe', 'id') }}", "$(id)", "a b", "x" * 61, '"'):
        assert check(operator=f"{KEY} {comment}").operator == f"{KEY} first-boot"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "no key"),
        ({"hostname": "box-07"}, "no key"),
        ({"operator": "ssh-ed25519 AAAA"}, "ssh-ed25519"),
        ({"operator": f"{KEY}\n{KEY}"}, "2 lines"),
        ({"operator": f'command="sh" {KEY}'}, "expected a line"),
        ({"operator": KEY, "shell": "/bin/sh"}, "found shell"),
        ({"operator": KEY, "hostname": "Box 7"}, "Box 7"),
        ({"operator": KEY, "hostname": "-box"}, "-box"),
        ({"operator": KEY, "network": "192.168.10.20"}, "no prefix"),
        ({"operator": KEY, "network": "192.168.10.0/24"}, "own or its broadcast"),
        ({"operator": KEY, "network": "192.168.10.20/24 10.0.0.1"}, "gateway"),
        ({"operator": KEY, "network": "192.168.10.20/24 192.168.10.20"}, "gateway"),
        ({"operator": KEY, "network": "fe80::1/64"}, "fe80"),
        ({"operator": KEY, "clock": "yesterday"}, "yesterday"),
        ({"operator": KEY, "clock": "2100-01-01 00:00"}, "2100"),
        ({"password": "hunter2"}, "another password"),
    ],
)
def test_what_will_not_do_is_named(fields: dict[str, str], reason: str) -> None:
    """Each answer that is not plainly right is refused, and the person is told which and why."""
    with pytest.raises(first_boot.Refused, match=reason):
        check(**fields)


def test_a_made_password_is_taken() -> None:
    """The password that the wizard makes will do by itself, is long, and is another one each time."""
    first, second = first_boot.make_password(), first_boot.make_password()
    assert first != second
    assert len(first.replace("-", "")) == 20
    found = told(password=first)
    assert found["console_rescue_keys"] == []
    assert first not in json.dumps(found)


@pytest.mark.parametrize(
    ("network", "leased", "others"),
    [
        ("192.168.10.20/24 192.168.10.1", (), None),
        ("10.9.0.2/16", (), None),
        ("203.0.113.20/24 203.0.113.1", (), ["203.0.113.0/24"]),
        ("dhcp", ("100.64.0.7/24",), ["100.64.0.0/24"]),
        ("dhcp", ("172.20.0.7/16",), None),
        ("dhcp", (), None),
        ("172.16.0.5/8", (), ["172.0.0.0/8"]),  # larger than the private network in it
    ],
)
def test_the_own_network_may_come_in(network: str, leased: tuple[str, ...], others: list[str] | None) -> None:
    """A box in a network that is none of the private ones lets that network in, or nobody could reach it."""
    found = told(leased, operator=KEY, network=network)
    private = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"]
    assert found.get("hardening_ssh_networks") == (None if others is None else private + others)
    defaults = yaml.safe_load((ROOT / "playbooks/roles/hardening/defaults/main.yml").read_text())
    assert defaults["hardening_ssh_networks"] == private


def test_questions_are_seen() -> None:
    """What a person is asked goes to the console; stderr is the journal."""
    call = f"import runpy; runpy.run_path({str(PROGRAM)!r})['prompt']('1 or 2', '')"
    keyboard, console = os.openpty()
    os.write(keyboard, b"2\n")
    argv = [sys.executable, "-I", "-c", call]
    done = subprocess.run(argv, stdin=console, stdout=console, stderr=subprocess.PIPE, text=True, check=True)
    os.close(console)
    shown = os.read(keyboard, 1000)
    os.close(keyboard)
    assert b"1 or 2: " in shown
    assert done.stderr == ""


def test_a_lease_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network's answer takes a while where a cable is in; where there is no card nobody waits."""
    clock, leases = iter(range(1000)), iter([[], [], [], ["100.64.0.7/24"]])
    monkeypatch.setattr(first_boot, "CARDS", tmp_path)
    monkeypatch.setattr(first_boot, "leased_addresses", lambda: next(leases))
    monkeypatch.setattr(first_boot.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(first_boot.time, "sleep", lambda _: None)
    (tmp_path / "lo").mkdir()
    assert first_boot.wait_for_lease() == []
    (tmp_path / "enp1s0").mkdir()
    (tmp_path / "enp1s0" / "carrier").write_text("1\n")
    assert first_boot.wait_for_lease() == ["100.64.0.7/24"]
    (tmp_path / "enp1s0" / "carrier").write_text("0\n")
    monkeypatch.setattr(first_boot, "leased_addresses", list)
    before = next(clock)
    assert first_boot.wait_for_lease() == []
    assert next(clock) - before < 2 * first_boot.CABLE_S


def test_the_first_change_is_not_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody could get in before the first boot, so its run has no lockout guard; every later run has it again."""
    given = tmp_path / "site.yaml"
    setup = tmp_path / "setup"
    setup.write_text('#!/bin/sh\ncp "$2" "$0.site" && cp "$2" "$(dirname "$0")/kept.yaml"\n')
    setup.chmod(0o755)
    for name, value in (("SETUP", setup), ("SITE", tmp_path / "kept.yaml"), ("DONE", tmp_path / "done")):
        monkeypatch.setattr(first_boot, name, value)
    for name in ("close_window", "remove_itself", "how_to_get_in"):
        monkeypatch.setattr(first_boot, name, lambda: "")
    monkeypatch.setattr(first_boot, "run", lambda *_: None)
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(given.parent))
    assert first_boot.set_up([], check(operator=KEY, network="203.0.113.20/24"), "stick") == 0
    during = yaml.safe_load((tmp_path / "setup.site").read_text())
    after = yaml.safe_load((tmp_path / "kept.yaml").read_text())
    assert during.pop("hardening_lockout_minutes") == 0
    assert during == after
    assert (tmp_path / "kept.yaml").stat().st_mode & 0o777 == 0o600


def test_an_address_goes_to_one_card() -> None:
    """The file for systemd-networkd names the card, the address and the gateway; `dhcp` needs none."""
    text = first_boot.network_file("192.168.10.20/24 192.168.10.1", "Name=enp3s0")
    assert "[Match]\nName=enp3s0\n" in text
    assert "Address=192.168.10.20/24\nGateway=192.168.10.1\n" in text
    assert first_boot.network_file("dhcp") == ""
