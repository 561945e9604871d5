"""From a bare Debian 12 and a stick to an answer, on a booted box."""

import re
import time
from collections.abc import Callable

from tests.provision.conftest import MODEL, QUESTION, Provisioned, install

FIRST_ANSWER_S = 240
SECOND_RUN_S = 60
"""Promised are 30 s, and 25 s were measured; a machine that does other things as well is given twice the time."""
CHANGED = re.compile(r"changed=(\d+)")


def changed(log: str) -> int:
    """The number of changed tasks in Ansible's recap."""
    return sum(int(n) for n in CHANGED.findall(log))


def test_a_bare_box_answers(each_provisioned: Provisioned, record_property: Callable[[str, object], None]) -> None:
    """A user of the group skerry-client gets an answer of the signed model, within 4 minutes from the bare system."""
    began = time.monotonic()
    found = each_provisioned.box.run(f"skerry ask {QUESTION!r} --temperature 0", user="app", timeout_s=120)
    total = each_provisioned.install_s + time.monotonic() - began
    record_property("bare_to_first_answer_s", round(total, 1))
    print(f"from bare to first answer: {total:.0f} s")
    assert "Paris" in found.stdout
    assert total <= FIRST_ANSWER_S


def test_others_are_refused(each_provisioned: Provisioned) -> None:
    """A user without a role is refused by the daemon, with exit code 3."""
    found = each_provisioned.box.run(f"skerry ask {QUESTION!r}", user="nobodys", check=False)
    assert found.returncode == 3
    assert "Paris" not in found.stdout
    assert "skerry-client" in found.stderr


def test_the_second_run_changes_nothing(
    each_provisioned: Provisioned, record_property: Callable[[str, object], None]
) -> None:
    """Running install.sh again changes nothing, quickly; the daemon is not even restarted."""
    before = each_provisioned.box.run("systemctl show -P MainPID skerry-inferenced").stdout
    log, took = install(each_provisioned.box, each_provisioned.kit)
    record_property("second_run_s", round(took, 1))
    print(f"second run: {took:.0f} s")
    assert changed(log) == 0, [line for line in log.splitlines() if "changed" in line]
    assert each_provisioned.box.run("systemctl show -P MainPID skerry-inferenced").stdout == before
    assert took <= SECOND_RUN_S


def test_check_mode_is_clean(each_provisioned: Provisioned) -> None:
    """`--check` on a provisioned box finds nothing to change and shows no difference."""
    log, _ = install(each_provisioned.box, each_provisioned.kit, "--check")
    assert changed(log) == 0, log[-2000:]
    assert not re.search(r"^\+\+\+ ", log, re.MULTILINE), log[-2000:]


def test_check_mode_sees_a_change(each_provisioned: Provisioned) -> None:
    """`--check` reports a file that somebody changed by hand, and leaves it; a run puts it right."""
    box, path = each_provisioned.box, "/etc/skerry/config.yaml"
    kept = box.read(path)
    box.run(f"printf '# by hand\\n' >> {path}")
    log, _ = install(box, each_provisioned.kit, "--check")
    assert changed(log) == 2, "the file, and the daemon that would be restarted"
    assert "by hand" in log
    assert "by hand" in box.run(f"cat {path}").stdout
    install(box, each_provisioned.kit)
    assert box.read(path) == kept


def test_the_report_keeps_every_promise(each_provisioned: Provisioned) -> None:
    """check.yml proves the box's state: every promise of its table is kept."""
    log, _ = install(each_provisioned.box, each_provisioned.kit, "--report")
    lines = re.findall(r"(ok {6}|BROKEN {2})(.*)", log)
    assert len(lines) >= 12
    assert not [name for state, name in lines if state.startswith("BROKEN")], log[-3000:]


def test_the_report_names_a_broken_promise(each_provisioned: Provisioned) -> None:
    """A box whose firewall was taken away by hand fails the check, which names what it found."""
    box = each_provisioned.box
    box.run("nft flush ruleset")
    try:
        found = box.run("skerry-setup --report", check=False, timeout_s=120)
    finally:
        box.run("systemctl reload-or-restart nftables")
    assert found.returncode == 1
    assert "BROKEN  nothing may go out" in found.stdout + found.stderr


def test_the_daemon_serves_a_verified_model(each_provisioned: Provisioned) -> None:
    """The model that answers is the signed one of the kit, by the daemon's own word."""
    found = each_provisioned.box.run(f"skerry model list --json | grep -c {MODEL}").stdout
    assert int(found) >= 1
