"""The container hosts: what a test may rely on, and that nothing of them is left behind."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hosts import cable, keeper, nspawn, process, roots, ssh

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bare() -> Path:
    nspawn.require()
    return roots.debian("bookworm")


@pytest.fixture(scope="module")
def box(bare: Path) -> Iterator[nspawn.Box]:
    """A box that tests share; each leaves it as it was."""
    with nspawn.boot(bare) as box:
        box.run("useradd --create-home --groups systemd-journal ada")
        yield box


def processes(name: str) -> list[str]:
    """List what runs in a box or holds it."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if name in command or name in (folder / "cgroup").read_text():
                found.append(command)
    return found


def left_behind(name: str) -> list[str]:
    """List what still exists of a box: processes, control groups, mounts and files."""
    found = processes(name) + [str(folder) for folder in keeper.cgroup_folders(name) if folder.exists()]
    found += [line for line in Path("/proc/mounts").read_text().splitlines() if name in line]
    return found + [str(path) for path in nspawn.BOXES.glob(f"{name}*")]


def wait_for_none(look: Callable[[str], list[str]], name: str, limit_s: float = 10) -> list[str]:
    """Wait until nothing is found any more; returns what is found after all."""
    end = time.monotonic() + limit_s
    while (found := look(name)) and time.monotonic() < end:
        time.sleep(0.1)
    return found


class TestCommands:
    def test_a_box_is_a_bare_booted_debian(self, box: nspawn.Box) -> None:
        """It runs systemd with no failed unit, on the unified hierarchy, and has neither Python nor an SSH server."""
        assert box.run("systemctl is-system-running").stdout.strip() == "running"
        assert box.failed_units() == []
        assert 'VERSION_ID="12"' in box.read("/etc/os-release")
        assert box.run("stat -f -c %T /sys/fs/cgroup").stdout.strip() == "cgroup2fs"
        for name in ("python3", "sshd", "sudo"):
            assert box.run(f"command -v {name}", check=False).returncode != 0

    def test_nothing_of_this_machine_shows(self, box: nspawn.Box, monkeypatch: pytest.MonkeyPatch) -> None:
        """Neither this process's environment nor this machine's name, resolver or time zone reach the box."""
        monkeypatch.setenv("SKERRY_SECRET", "word")
        assert "SKERRY_SECRET" not in box.run("env").stdout
        assert box.run("env", env={"GIVEN": "a b"}).stdout.count("GIVEN=a b\n") == 1
        assert not box.exists("/etc/resolv.conf")
        assert box.read("/etc/hostname") == "debian\n"

    def test_a_user_has_its_groups_and_nothing_else(self, box: nspawn.Box) -> None:
        """A command may run as a user of the box: its groups, its home, no rights of root, and none to come by."""
        found = box.run(
            "id -un; id -Gn; echo $HOME; grep CapEff /proc/self/status; cat /etc/shadow", check=False, user="ada"
        )
        assert found.stdout.splitlines()[:3] == ["ada", "ada systemd-journal", "/home/ada"]
        assert int(found.stdout.split()[-1], 16) == 0
        assert "Permission denied" in found.stderr
        assert "nobody-here" in box.run("id", user="nobody-here", check=False).stderr

    def test_root_has_no_more_rights_than_the_container(self, box: nspawn.Box) -> None:
        """Root's capabilities are those of the box's process 1: it cannot set this machine's clock."""
        ours = box.run("grep CapEff /proc/self/status").stdout
        assert ours == box.run("grep CapEff /proc/1/status").stdout
        assert int(ours.split()[1], 16) >> 25 & 1 == 0  # CAP_SYS_TIME
        assert not box.run("date --set 2020-01-01", check=False).ok

    def test_a_failure_shows_what_was_printed(self, box: nspawn.Box) -> None:
        """A command that fails raises, with its code and the tails of both outputs."""
        with pytest.raises(process.CommandFailed, match=r"(?s)ended with 7.*stdout\nto out\n.*stderr\nto err"):
            box.run("echo to out; echo to err >&2; exit 7")
        assert box.run("exit 7", check=False).returncode == 7

    def test_a_command_that_hangs_is_killed_inside(self, box: nspawn.Box) -> None:
        """After its time a command is killed with its children, and what it had printed is shown."""
        with pytest.raises(process.CommandTimeout, match="before the hang"):
            box.run("echo before the hang; sleep 987 & sleep 987", timeout_s=0.5)
        assert "sleep" not in box.run("cat /proc/[0-9]*/comm", check=False).stdout

    def test_a_daemon_left_running_holds_nobody_up(self, box: nspawn.Box) -> None:
        """A command that leaves a process behind with its outputs open ends when it ends."""
        began = time.monotonic()
        assert box.run("sleep 30 & echo $!", timeout_s=20).stdout.strip().isdigit()
        assert time.monotonic() - began < 5

    def test_files_go_in_and_come_out(self, box: nspawn.Box, tmp_path: Path) -> None:
        """Texts, files and folders are copied with their modes; owners are as told, names are taken literally."""
        box.put("text\n", "/srv/it's new/a.txt", mode=0o640, owner="ada")
        assert box.read("/srv/it's new/a.txt") == "text\n"
        assert box.run(["stat", "-c", "%a %U", "/srv/it's new/a.txt"]).stdout == "640 ada\n"
        (tmp_path / "tree/sub").mkdir(parents=True)
        (tmp_path / "tree/sub/run.sh").write_text("#!/bin/sh\necho ran\n")
        (tmp_path / "tree/sub/run.sh").chmod(0o755)
        box.put(tmp_path / "tree", "/srv/tree")
        assert box.run("/srv/tree/sub/run.sh").stdout == "ran\n"
        assert box.run("stat -c %U /srv/tree/sub/run.sh").stdout == "root\n"
        box.put(tmp_path / "tree/sub/run.sh", "/srv/run.sh")
        assert box.run("stat -c %a /srv/run.sh").stdout == "755\n"
        assert not box.exists("/srv/none")

    def test_a_failed_unit_is_not_waited_for(self, box: nspawn.Box) -> None:
        """Waiting for a unit ends at once when it fails, and shows its journal."""
        unit = "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo the reason; exit 3'\n"
        box.put(unit, "/run/systemd/system/breaks.service")
        box.run("systemctl start breaks.service", check=False)
        began = time.monotonic()
        with pytest.raises(process.HostError, match=r"(?s)it is failed, expected active.*the reason"):
            box.wait_unit("breaks.service")
        assert time.monotonic() - began < 5
        assert box.failed_units() == ["breaks.service"]
        box.run("systemctl reset-failed")
        box.wait_unit("dbus.socket")


class TestNetwork:
    def test_a_box_has_no_network(self, box: nspawn.Box) -> None:
        """There is a loopback interface and no other: every address is unreachable."""
        assert box.run("ls /sys/class/net").stdout == "lo\n"
        found = box.run(["bash", "-c", ": > /dev/tcp/192.0.2.1/80"], check=False)
        assert "Network is unreachable" in found.stderr

    def test_a_cable_shows_what_a_firewall_closes(self, bare: Path) -> None:
        """Without a firewall every address answers from outside; with one not a single IP packet leaves the box."""
        if shutil.which("nft") is None:
            pytest.skip("not run: nft missing, install nftables")
        tries = ["/dev/tcp/9.9.9.9/443", "/dev/tcp/2001:db8::1/443", "/dev/udp/192.0.2.53/443"]
        with nspawn.boot(bare, veth=True) as box:

            def knock() -> tuple[list[bool], list[bytes], list[bytes]]:
                outside = box.outside
                with (
                    outside.listen(443) as tcp,
                    outside.listen(443, socket.SOCK_DGRAM) as udp,
                    outside.capture() as wire,
                ):
                    oks = [box.run(["timeout", "1", "bash", "-c", f"echo hi > {t}"], check=False).ok for t in tries]
                return oks, tcp + udp, wire.ip_frames()

            oks, heard, frames = knock()
            assert oks == [True, True, True]
            assert heard == [b"hi\n"] * 3
            assert len(frames) > 8
            rules = "table inet t { chain out { type filter hook output priority 0; policy drop; oif lo accept; }; }"
            process.run(["nsenter", f"--target={box.leader}", "--net", "nft", rules], timeout_s=10).check()
            oks, heard, frames = knock()
            assert oks[:2] == [False, False]
            assert (heard, frames) == ([], [])

    def test_open_ports_are_found_from_outside(self, bare: Path) -> None:
        """A knock at every port finds those that listen on the cable, and not those on the loopback interface."""
        with nspawn.boot(bare, veth=True) as box, box.open_socket() as seen, box.open_socket() as hidden:
            seen.bind((cable.BOX_ADDRESS, 2222))
            seen.listen()
            hidden.bind(("127.0.0.1", 3333))
            hidden.listen()
            assert box.outside.open_ports(range(1, 4000)) == [2222]


class TestOnAndOff:
    def test_files_survive_a_reboot_and_a_power_cut(self, bare: Path, tmp_path: Path) -> None:
        """A reboot and a power cut leave the files, and the folders of this machine, and nothing of /run."""
        with nspawn.boot(bare, binds={"/mnt/kit": tmp_path}) as box:
            (tmp_path / "note").write_text("kept")
            assert not box.run("touch /mnt/kit/new", check=False).ok, "binds are read-only"
            box.put("kept", "/srv/note")
            for end in (box.reboot, box.power_cut, box.poweroff):
                first = box.leader
                box.put("lost", "/run/note")
                end()
                if not box.is_on:
                    with pytest.raises(process.HostError, match="off"):
                        box.run("true")
                    box.start()
                assert box.leader != first
                assert (box.read("/srv/note"), box.read("/mnt/kit/note")) == ("kept", "kept")
                assert not box.exists("/run/note")

    def test_many_boxes_start_from_one(self, bare: Path) -> None:
        """What one box wrote is the start of others; neither they nor the cached root see each other's changes."""
        with nspawn.boot(bare) as first:
            first.put("by the first", "/srv/note")
            with pytest.raises(process.HostError, match="it is on"):
                _ = first.layers
            first.poweroff()
            with nspawn.boot(first.layers) as second, nspawn.boot(first.layers) as third:
                second.put("by the second", "/srv/note")
                assert third.read("/srv/note") == "by the first"
        assert not (bare / "srv/note").exists()


class TestCleanUp:
    def test_a_failed_test_leaves_nothing(self, bare: Path) -> None:
        """An error in the block ends the box, with all its processes and files."""
        with pytest.raises(ZeroDivisionError), nspawn.boot(bare, veth=True) as box:  # noqa: PT012
            name = box.name
            box.run("setsid sleep 1000 < /dev/null > /dev/null 2>&1 &")
            assert left_behind(name), "or this test cannot see anything"
            _ = 1 / 0
        assert left_behind(name) == []

    def test_a_box_that_does_not_boot_shows_its_console(self, bare: Path) -> None:
        """A machine that ends at once is an error that shows what it printed, and leaves nothing."""
        with pytest.raises(process.HostError, match=r"(?s)cannot boot box-.*console.*no such folder") as error:  # noqa: SIM117
            with nspawn.boot(bare, options=["--bind-ro=/no such folder"]):
                pass
        assert left_behind(re.findall(r"box-\w+", str(error.value))[0]) == []

    def test_a_box_that_ends_by_itself_can_be_started_again(self, bare: Path) -> None:
        """A box whose process 1 is killed is off, and leaves nothing that keeps it from booting."""
        with nspawn.boot(bare) as box:
            os.kill(box.leader, signal.SIGKILL)
            end = time.monotonic() + 10
            while box.is_on and time.monotonic() < end:
                time.sleep(0.02)
            box.start()
            box.run("true")

    @pytest.mark.parametrize("victim", ["test", "keeper", "interrupt"])
    def test_a_killed_test_leaves_nothing(self, bare: Path, victim: str) -> None:
        """A test that is killed or interrupted, or the keeper, takes the box with it; files go at the next boot."""
        code = f"""
import signal, time
from pathlib import Path
from tests.hosts import nspawn
signal.signal(signal.SIGINT, signal.default_int_handler)
with nspawn.boot(Path({str(bare)!r}), veth=True) as box:
    print(box.name, box._keeper.pid, flush=True)
    time.sleep(60)
"""
        test = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert test.stdout is not None
        with test.stdout:
            name, holder = test.stdout.readline().split()
        os.kill(
            int(holder) if victim == "keeper" else test.pid, signal.SIGINT if victim == "interrupt" else signal.SIGKILL
        )
        if victim == "keeper":
            assert wait_for_none(processes, name) == [], "what ran in the box outlives its keeper"
            test.kill()
        test.wait(20)
        assert wait_for_none(processes, name) == []
        if victim != "interrupt":
            with nspawn.boot(bare):
                pass
        assert left_behind(name) == []


class TestRoots:
    def test_a_root_is_built_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Two who ask at once get one build; another recipe gets another; what is half built is not taken."""
        monkeypatch.setattr(roots, "CACHE", tmp_path)
        built: list[Path] = []

        def build(target: Path) -> None:
            target.mkdir()  # fails if another build, or half of one, is there
            time.sleep(0.2)
            built.append(target)

        askers = [threading.Thread(target=roots.cached, args=("r", "recipe", build)) for _ in range(2)]
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join()
        assert len(built) == 1
        assert roots.cached("r", "recipe", build) != roots.cached("r", "other", build)
        assert len(built) == 2
        folder = roots.cached("r", "recipe", build).parent
        folder.rename(folder.with_name(f"{folder.name}.part"))  # as a build that was killed leaves it
        assert roots.cached("r", "recipe", build).is_dir()
        assert len(built) == 3

    def test_a_build_that_failed_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A build that fails half-way is not taken for a root, and is not tried again by the same process."""
        monkeypatch.setattr(roots, "CACHE", tmp_path)
        monkeypatch.setattr(roots, "_failed", {})
        tries = []

        def build(target: Path) -> None:
            target.mkdir()
            tries.append(target)
            raise roots.BuildFailed("no mirror")

        for _ in range(2):
            with pytest.raises(roots.BuildFailed, match="no mirror"):
                roots.cached("r", "recipe", build)
        assert len(tries) == 1
        assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def served(request: pytest.FixtureRequest) -> Iterator[nspawn.Box]:
    ssh.require()
    nspawn.require()
    with nspawn.boot(roots.debian(request.param, ("openssh-server",)), veth=True) as box:
        box.wait_unit("ssh.service")
        yield box


@pytest.mark.slow
class TestSsh:
    def test_a_login_goes_through_the_real_sshd(self, served: nspawn.Box, tmp_path: Path) -> None:
        """A key gets in by the loopback and by the cable, with a session of PAM; another key does not."""
        key, other = ssh.make_key(tmp_path / "key"), ssh.make_key(tmp_path / "other")
        served.run("useradd --create-home --shell /bin/bash eve")
        served.put(key.with_suffix(".pub"), "/home/eve/.ssh/authorized_keys", mode=0o600)
        served.run("chown -R eve /home/eve/.ssh && chmod 700 /home/eve/.ssh")
        for outside in (False, True):
            found = served.ssh(
                "eve", key, "id -un; echo $SSH_CONNECTION; echo $XDG_SESSION_ID; cat", stdin="in", from_outside=outside
            )
            name, connection, session, given = found.stdout.splitlines()
            assert (name, given) == ("eve", "in")
            assert connection.startswith(cable.OUTSIDE_ADDRESS if outside else "127.0.0.1")
            assert session
            refused = served.ssh("eve", other, "true", check=False, from_outside=outside)
            assert refused.returncode == 255
            assert "Permission denied" in refused.stderr
        assert "Accepted publickey for eve" in served.journal("ssh.service")
        assert served.ssh("eve", key, "tty", tty=True).stdout.startswith("/dev/pts/")
        assert shlex.join(served.ssh_argv("eve", key)).endswith(f"-l eve {served.name}")
