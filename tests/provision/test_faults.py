"""What can happen to the daemon on a box, and that it is back by itself with nothing else touched.

Each test prints its figure and leaves it in the report as a property.
"""

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from tests.hosts import nspawn
from tests.hosts.process import kill_tree
from tests.provision.conftest import MODEL, QUESTION, Provisioned

DAEMON = "skerry-inferenced.service"
OVERRIDE = f"/run/systemd/system/{DAEMON}.d/test.conf"
ASK = f"skerry ask {QUESTION!r} --temperature 0"


Figure = Callable[[str, float], None]


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Figure:
    """Prints a figure and keeps it in the report."""

    def keep(name: str, seconds: float) -> None:
        print(f"{name}: {seconds:.1f} s")
        record_property(name, round(seconds, 1))

    return keep


@pytest.fixture
def box(provisioned: Provisioned) -> Iterator[nspawn.Box]:
    """The provisioned box; whatever the test did, the daemon has its own settings again afterwards and answers."""
    box = provisioned.box
    before = others(box)
    yield box
    if box.exists(OVERRIDE):
        box.run(f"rm {OVERRIDE} && systemctl daemon-reload && systemctl restart {DAEMON}", timeout_s=120)
    assert "Paris" in answer(box)
    if box.run("cat /proc/sys/kernel/random/boot_id").stdout in before:
        assert others(box) == before


def others(box: nspawn.Box) -> str:
    """What no fault of the daemon may touch: since when the other units run, that none failed, since which boot."""
    units = "skerry-inferenced.socket skerry-sandbox.socket skerry-disk.timer ssh dbus systemd-journald"
    return box.run(
        f"cat /proc/sys/kernel/random/boot_id; systemctl show -P ActiveEnterTimestampMonotonic {units}; "
        "systemctl list-units --failed --plain --no-legend"
    ).stdout


def answer(box: nspawn.Box, timeout_s: float = 120) -> str:
    """What a user of skerry-client is told; it waits while the daemon starts."""
    return box.run(ASK, user="app", check=False, timeout_s=timeout_s).stdout


def poem(tokens: int) -> str:
    """A command that takes its time, and says how it ended."""
    question = "'Write a poem with fifty verses about the sea.'"
    return f"skerry ask {question} --temperature 0 --max-tokens {tokens} 2>&1; echo code $?"


def property_of(box: nspawn.Box, name: str) -> str:
    return box.run(f"systemctl show -P {name} {DAEMON}").stdout.strip()


def override(box: nspawn.Box, *lines: str) -> None:
    """Give the daemon other settings until the test ends."""
    box.run(f"mkdir -p /run/systemd/system/{DAEMON}.d")
    box.put("".join(f"{line}\n" for line in ("[Service]", *lines)), OVERRIDE)
    box.run(f"systemctl daemon-reload && systemctl restart {DAEMON}", timeout_s=120)


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float) -> float:
    """Seconds until a condition holds."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < timeout_s, f"{what}: not within {timeout_s} s"
        time.sleep(0.1)
    return time.monotonic() - began


@contextlib.contextmanager
def asking(box: nspawn.Box, command: str = ASK) -> Iterator["subprocess.Popen[bytes]"]:
    """A client at work in the background."""
    child = box.popen(["/bin/sh", "-c", command], user="app")
    try:
        yield child
    finally:
        kill_tree(child)
        if child.stdout:
            child.stdout.close()


# --- it ends ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signal", ["KILL", pytest.param("SEGV", marks=pytest.mark.slow)])
def test_killed_it_is_back(box: nspawn.Box, figure: Figure, signal: str) -> None:
    """However the process ends, another one answers soon; a request that comes meanwhile only waits."""
    before = property_of(box, "MainPID")
    began = time.monotonic()
    box.run(f"kill -{signal} {before}")
    assert "Paris" in answer(box)
    took = time.monotonic() - began
    figure(f"after_kill_{signal.lower()}_until_answer_s", took)
    assert property_of(box, "MainPID") != before
    assert took < 20


def test_a_hang_is_ended_by_the_watchdog(box: nspawn.Box, figure: Figure) -> None:
    """A process that stands still is ended by the watchdog, says where it stood, and another one takes its place."""
    assert (property_of(box, "WatchdogUSec"), property_of(box, "TimeoutAbortUSec")) == ("1min", "5s")
    override(box, "WatchdogSec=4s")
    before = property_of(box, "MainPID")
    began = time.monotonic()
    box.run(f"kill -STOP {before}")
    wait_for(lambda: property_of(box, "MainPID") not in (before, "0"), "another process", 60)
    assert "Paris" in answer(box)
    took = time.monotonic() - began
    figure("after_a_hang_until_answer_s", took)
    journal = box.journal(DAEMON)
    assert "Watchdog timeout (limit 4s)" in journal
    assert "Fatal Python error: Aborted" in journal
    assert "run_forever" in journal
    assert "France" not in journal, "a text of somebody"
    assert took < 4 + 20


def test_it_never_gives_up(box: nspawn.Box, provisioned: Provisioned, figure: Figure) -> None:
    """A start that is refused is tried again and again, and meanwhile the operator gets in; when the cause is mended,
    who has waited is answered."""
    restarts = int(property_of(box, "NRestarts"))
    mend = "[ ! -e /etc/skerry/keys.away ] || { rmdir /etc/skerry/keys; mv /etc/skerry/keys.away /etc/skerry/keys; }"
    box.run("mv /etc/skerry/keys /etc/skerry/keys.away && mkdir -m 755 /etc/skerry/keys")
    try:
        box.run(f"kill -KILL {property_of(box, 'MainPID')}")
        with asking(box) as client:
            wait_for(lambda: int(property_of(box, "NRestarts")) >= restarts + 3, "three tries", 90)
            assert box.run("systemctl is-active skerry-inferenced.socket").stdout.strip() == "active"
            assert "cannot trust" in box.journal(DAEMON)
            assert "FILE SYSTEM" in box.ssh("ops1", provisioned.keys.operator, "disk status", timeout_s=30).stdout
            box.run(mend)
            began = time.monotonic()
            said = client.communicate(timeout=60)[0].decode()
        figure("after_mending_until_answer_s", time.monotonic() - began)
        assert "Paris" in said
    finally:
        box.run(
            "[ ! -e /etc/skerry/keys.away ] || { rmdir /etc/skerry/keys; mv /etc/skerry/keys.away /etc/skerry/keys; }"
        )
    assert int(property_of(box, "NRestarts")) >= restarts + 3


# --- it is stopped and started ----------------------------------------------------------------------------------------


def test_a_stop_lets_answers_end(box: nspawn.Box, figure: Figure) -> None:
    """`systemctl stop` waits for the answer under way, which is complete; then the next request starts the daemon."""
    with asking(box, poem(300)) as client:
        wait_for(lambda: json.loads(box.run("skerry status --json").stdout)["requests"]["running"] > 0, "begun", 30)
        began = time.monotonic()
        box.run(f"systemctl stop {DAEMON}", timeout_s=60)
        took = time.monotonic() - began
        said = client.communicate(timeout=30)[0].decode()
    figure("a_stop_with_an_answer_under_way_s", took)
    assert said.rstrip().endswith("code 0")
    assert len(said) > 500
    assert (property_of(box, "Result"), property_of(box, "ExecMainStatus")) == ("success", "0")
    assert property_of(box, "ActiveState") == "inactive"
    began = time.monotonic()
    assert "Paris" in answer(box)
    figure("start_on_demand_until_answer_s", time.monotonic() - began)


def test_an_answer_without_end_does_not_hold_up_a_stop(box: nspawn.Box, figure: Figure) -> None:
    """What has not ended in the daemon's own time ends with an error that says why, and the stop goes on."""
    config = "/etc/skerry/config.yaml"
    kept = box.read(config)
    box.put(kept.replace("limits: {}", "limits: {drain_timeout_s: 1}"), config)
    try:
        box.run(f"systemctl restart {DAEMON}", timeout_s=60)
        with asking(box, poem(1500)) as client:
            wait_for(lambda: json.loads(box.run("skerry status --json").stdout)["requests"]["running"] > 0, "begun", 30)
            began = time.monotonic()
            box.run(f"systemctl stop {DAEMON}", timeout_s=60)
            took = time.monotonic() - began
            said = client.communicate(timeout=30)[0].decode()
    finally:
        box.put(kept, config)
        box.run(f"systemctl restart {DAEMON}", timeout_s=60)
    figure("a_stop_with_an_endless_answer_s", took)
    assert not said.rstrip().endswith("code 0")
    assert took < 10


def test_a_reboot(box: nspawn.Box, figure: Figure) -> None:
    """After a reboot it serves by itself, the model loaded, without anybody asking first."""
    began = time.monotonic()
    box.reboot()
    box.wait_unit(DAEMON, timeout_s=60)
    models = json.loads(box.run("skerry status --json").stdout)["models"]
    assert [(m["name"], m["state"]) for m in models] == [(MODEL, "loaded")]
    assert "Paris" in answer(box)
    figure("reboot_until_answer_s", time.monotonic() - began)


# --- its surroundings -------------------------------------------------------------------------------------------------


@pytest.fixture
def full_disks(box: nspawn.Box) -> Iterator[str]:
    """Small file systems over the places that programs write to, filled to the last byte."""
    places = ("/var/log", "/var/tmp", "/home")  # noqa: S108
    try:
        for place in places:
            box.run(f"mount -t tmpfs -o size=1M,mode=$(stat -c %a {place}) tmpfs {place}")
            box.run(f"dd if=/dev/zero of={place}/fill bs=64k 2>/dev/null || true")
            assert box.run(f"df --output=avail {place} | tail -n 1").stdout.strip() == "0"
        yield " ".join(places)
    finally:
        for place in places:
            box.run(f"umount --lazy {place}", check=False)


def test_full_disks_change_nothing(box: nspawn.Box, full_disks: str, provisioned: Provisioned) -> None:
    """With no room left it answers, dies and comes back; the watermarks say what is full; the operator gets in."""
    assert "Paris" in answer(box)
    box.run(f"kill -KILL {property_of(box, 'MainPID')}")
    assert "Paris" in answer(box)
    found = json.loads(box.run("skerry disk status --json").stdout)["filesystems"]
    assert ("/var/log", "critical") in [(f["mount_point"], f["level"]) for f in found]
    assert "disk critical: /var/log" in box.run("skerry disk watch").stderr  # what the timer has written to the journal
    done = box.ssh("ops1", provisioned.keys.operator, "status", timeout_s=60)
    assert MODEL in done.stdout


def test_slow_clients_hold_up_nobody(box: nspawn.Box, figure: Figure) -> None:
    """A user who opens connections and never finishes a request keeps no other user from an answer."""
    crowd = """
import socket, time
calls = []
for _ in range(300):
    s = socket.socket(socket.AF_UNIX)
    try:
        s.connect("/run/skerry/inference.sock")
        s.sendall(b"POST /v1/chat/completions HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 100000\\r\\n")
        calls.append(s)
    except OSError:
        pass
print(len(calls), flush=True)
time.sleep(60)
"""
    with contextlib.ExitStack() as begun:
        child = box.popen(["python3", "-c", crowd], user="nobodys")
        begun.callback(kill_tree, child)
        assert child.stdout
        begun.callback(child.stdout.close)
        assert int(child.stdout.readline()) > 50
        began = time.monotonic()
        assert "Paris" in answer(box)
        figure("answer_beside_slow_clients_s", time.monotonic() - began)
