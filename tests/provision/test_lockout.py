"""The lockout guard: a change that locks everybody out undoes itself, and only a fresh login stops that."""

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import process
from tests.provision.hardened import SITE_NETWORK, Hardened

ELSEWHERE = "203.0.113.0/24"
SECONDS = 5
PAST = SECONDS + 2
STATE = "/var/lib/skerry/lockout"


@pytest.fixture
def box(hardened: Hardened) -> Iterator[Hardened]:
    """The box with nothing waiting, before and after."""
    if hardened.box.exists(f"{STATE}/armed"):
        hardened.log_in()
    assert hardened.lockout("status") == "in force\n"
    hardened.box.run("tar -C /etc/skerry/guarded -cf /root/guarded.tar .")
    yield hardened
    hardened.box.run("tar -C /etc/skerry/guarded -xf /root/guarded.tar")
    hardened.lockout("apply --seconds 0")
    hardened.box.run(f"systemctl stop skerry-lockout-revert.timer; rm -rf {STATE}/* /run/skerry-lockout.*", check=False)


def bad_change(hardened: Hardened) -> None:
    """A firewall that lets in another site."""
    hardened.change_staged("/etc/nftables.conf", SITE_NETWORK, ELSEWHERE)


def harmless_change(hardened: Hardened) -> None:
    """A setting of sshd that nobody notices."""
    hardened.change_staged("/etc/ssh/sshd_config", "LoginGraceTime 30", "LoginGraceTime 31")


def wait_reverted(hardened: Hardened) -> None:
    """Wait until the guard has acted; a busy machine takes some seconds more than the time that was set."""
    end = time.monotonic() + 30
    while hardened.box.exists(f"{STATE}/armed"):
        assert time.monotonic() < end, "the change was not undone"
        time.sleep(0.2)


def grace(hardened: Hardened) -> str:
    """The setting that `harmless_change` changes, as it is in force."""
    return hardened.box.run("sshd -T | grep -i logingracetime").stdout.split()[1]


def test_provisioning_arms_the_guard(hardened: Hardened) -> None:
    """After the first run a change waits for a login, its end is told in seconds since 1970; a login confirms it."""
    assert 10 * 60 < hardened.waited_s <= 15 * 60
    assert "waiting" in hardened.log
    assert hardened.confirmed
    assert not hardened.box.exists("/run/skerry-lockout.deadline")


def test_a_bad_change_is_undone(box: Hardened) -> None:
    """A firewall that shuts the site out goes back to what it was after the time, and a marker says why."""
    before = box.box.read("/etc/nftables.conf")
    assert box.door_is_open()
    bad_change(box)
    assert "etc/nftables.conf" in box.lockout(f"apply --seconds {SECONDS}")
    assert not box.door_is_open()
    wait_reverted(box)
    assert box.door_is_open()
    assert box.box.read("/etc/nftables.conf") == before
    assert "nobody logged in" in box.box.read(f"{STATE}/reverted")
    assert "reverted" in box.lockout("status", check=False)
    box.log_in(from_outside=True)


def test_a_link_is_put_back_as_a_link(box: Hardened) -> None:
    """A guarded file that the operator had made a link is one again after the change is undone."""
    box.box.run("mv /etc/nftables.conf /etc/nftables.site && ln -s nftables.site /etc/nftables.conf")
    bad_change(box)
    box.lockout(f"apply --seconds {SECONDS}")
    wait_reverted(box)
    assert box.box.run("readlink /etc/nftables.conf").stdout == "nftables.site\n"
    assert box.door_is_open()
    box.box.run("mv -T /etc/nftables.site /etc/nftables.conf")


def test_a_bad_change_of_pam_is_undone(box: Hardened) -> None:
    """A session stack that lets nobody in is undone too: a login that fails is no login."""
    box.change_staged("/etc/pam.d/common-session", "pam_unix.so", "pam_deny.so")
    box.lockout(f"apply --seconds {SECONDS}")
    assert box.box.ssh("rescue", box.keys.rescue, "true", check=False).returncode != 0
    assert box.box.exists(f"{STATE}/armed")
    wait_reverted(box)
    box.log_in()


def test_a_fresh_login_keeps_the_change(box: Hardened) -> None:
    """A login after the change keeps it for good."""
    harmless_change(box)
    box.lockout(f"apply --seconds {SECONDS}")
    box.log_in(from_outside=True)
    time.sleep(PAST)
    assert grace(box) == "31"
    assert box.lockout("status") == "in force\n"


def pam(hardened: Hardened, service: str, *types: str, stay_s: float = 0) -> bool:
    """Call the guard as PAM does, from one process; whether a change still waits."""
    calls = "; ".join(f"PAM_TYPE={type_} skerry-lockout confirm" for type_ in types)
    hardened.box.run(f"export PAM_USER=root PAM_SERVICE={service}; {calls}; sleep {stay_s}")
    return hardened.box.exists(f"{STATE}/armed")


def test_a_login_on_the_console_keeps_the_change(box: Hardened) -> None:
    """A session of login(1) counts as well as sshd's; those of sudo and cron do not, nor one that ended at once."""
    harmless_change(box)
    box.lockout("apply --seconds 60")
    assert pam(box, "sudo", "open_session", "close_session")
    assert pam(box, "cron", "open_session", "close_session")
    assert pam(box, "login", "close_session")
    assert pam(box, "login", "open_session")
    assert not pam(box, "login", "open_session", "close_session")


def test_a_login_counts_while_it_lasts(box: Hardened) -> None:
    """Nobody has to log out: a session that is still there after three seconds confirms the change."""
    harmless_change(box)
    box.lockout("apply --seconds 60")
    assert not pam(box, "login", "open_session", stay_s=5)


def test_an_old_session_does_not_keep_the_change(box: Hardened, tmp_path: Path) -> None:
    """A session from before the change proves nothing, nor does another one over its connection."""
    control = f"-oControlPath={tmp_path}/c"
    argv = box.box.ssh_argv("rescue", box.keys.rescue)
    master = subprocess.Popen([argv[0], "-M", "-N", control, *argv[1:]], stderr=subprocess.DEVNULL)
    over_it = [argv[0], control, "-oControlMaster=no", *argv[1:], "id -un"]
    try:
        end = time.monotonic() + 20
        while not (tmp_path / "c").exists() and time.monotonic() < end:
            time.sleep(0.1)
        harmless_change(box)
        box.lockout(f"apply --seconds {SECONDS}")
        assert subprocess.check_output(over_it, text=True, timeout=20) == "rescue\n"
        assert box.box.exists(f"{STATE}/armed")
        wait_reverted(box)
        assert grace(box) == "30"
    finally:
        master.terminate()
        master.wait(10)


def test_a_connection_from_before_does_not_keep_the_change(box: Hardened) -> None:
    """Who connected before the change and gives the key only after it has seen none of the new rules."""
    argv = box.box.ssh_argv("rescue", box.keys.rescue)
    slow = [re.sub("ProxyCommand=(.*)", r"ProxyCommand=sh -c '(sleep 3; cat) | \1'", a) for a in argv]
    assert slow != argv
    late = subprocess.Popen([*slow, "id -un"], stdout=subprocess.PIPE, text=True)
    try:
        time.sleep(1)
        harmless_change(box)
        box.lockout("apply --seconds 8")
        assert late.communicate(timeout=30)[0] == "rescue\n"
        assert box.box.exists(f"{STATE}/armed")
    finally:
        process.kill_tree(late)
    wait_reverted(box)
    assert grace(box) == "30"


def test_a_reboot_does_not_end_the_waiting(box: Hardened) -> None:
    """A change that nobody logged in after still waits after a reboot, and is undone."""
    bad_change(box)
    box.lockout("apply --seconds 6")
    box.box.reboot()
    assert box.box.exists("/run/skerry-lockout.deadline")
    assert not box.door_is_open()
    wait_reverted(box)
    assert box.door_is_open()


def test_a_second_change_is_undone_with_the_first(box: Hardened) -> None:
    """Two changes before a login go back together, to the state that was last proven."""
    harmless_change(box)
    box.lockout("apply --seconds 60")
    bad_change(box)
    box.lockout(f"apply --seconds {SECONDS}")
    wait_reverted(box)
    assert box.door_is_open()
    assert grace(box) == "30"


@pytest.mark.parametrize(
    ("path", "old", "new", "says"),
    [
        ("/etc/ssh/sshd_config", "PermitRootLogin no", "PermitRootLogin maybe", "sshd says"),
        ("/etc/ssh/sshd_config.d/skerry-console.conf", "PermitTTY yes", "PermitTTY perhaps", "sshd says"),
        ("/etc/nftables.conf", "policy drop", "policy fall", "nft says"),
        ("/etc/pam.d/common-auth", "pam_faillock.so preauth", "pam_missing.so preauth", "pam_missing.so"),
    ],
)
def test_what_the_programs_refuse_is_not_tried(box: Hardened, path: str, old: str, new: str, says: str) -> None:
    """A file that sshd, nft or PAM could not use is refused before anything changes, with the program's own words."""
    box.change_staged(path, old, new)
    before = box.box.read(path)
    found = box.box.run("skerry-lockout apply --seconds 60", check=False)
    assert found.returncode == 1
    assert says in found.stderr
    assert box.box.read(path) == before
    assert not box.box.exists(f"{STATE}/armed")


def test_what_cannot_be_loaded_leaves_nothing_waiting(box: Hardened) -> None:
    """When a program refuses its new file after all, the old files are back at once and no timer is left to fail."""
    box.change_staged("/etc/ssh/sshd_config", "LoginGraceTime 30", "LoginGraceTime 31")
    box.box.put("[Service]\nExecReload=\nExecReload=/bin/false\n", "/run/systemd/system/ssh.service.d/test.conf")
    box.box.run("systemctl daemon-reload")
    try:
        found = box.box.run("skerry-lockout apply --seconds 2", check=False)
    finally:
        box.box.run("rm /run/systemd/system/ssh.service.d/test.conf && systemctl daemon-reload")
        box.box.run("systemctl reload ssh.service")
    assert found.returncode == 1
    assert "cannot load" in found.stderr
    assert grace(box) == "30"
    time.sleep(4)
    assert not [unit for unit in box.box.failed_units() if "lockout" in unit]
    box.box.run(f"rm {STATE}/reverted")


@pytest.mark.parametrize("seconds", [0, 600])
def test_sshd_that_cannot_listen_is_undone_at_once(box: Hardened, seconds: int) -> None:
    """What `sshd -t` lets pass may still end sshd; nobody has to wait outside until the time is over."""
    box.change_staged("/etc/ssh/sshd_config", "Port 22", "Port 22\nListenAddress 192.0.2.9")
    found = box.box.run(f"skerry-lockout apply --seconds {seconds}", check=False)
    assert found.returncode == 1
    assert "cannot load the new files" in found.stderr
    assert not box.box.exists(f"{STATE}/armed")
    box.log_in(from_outside=True)
    box.box.run(f"rm {STATE}/reverted")


def test_sshd_listens_when_the_guard_is_done(box: Hardened) -> None:
    """A fleet's run logs in the moment after; sshd refuses everybody while it reads its files."""
    for seconds in (31, 32, 33, 34, 35):
        box.change_staged("/etc/ssh/sshd_config", f"LoginGraceTime {seconds - 1}", f"LoginGraceTime {seconds}")
        box.box.run("skerry-lockout apply --seconds 0")
        assert box.door_is_open()


def test_nothing_changed_is_nothing_armed(box: Hardened) -> None:
    """Without a difference the guard waits for nothing; --check changes nothing; 0 seconds arms nothing."""
    assert box.lockout("apply --seconds 60") == ""
    harmless_change(box)
    assert "sshd_config" in box.lockout("apply --seconds 60 --check")
    assert grace(box) == "30"
    assert not box.box.exists(f"{STATE}/armed")
    box.lockout("apply --seconds 0")
    assert grace(box) == "31"
    assert not box.box.exists(f"{STATE}/armed")


def test_a_firewall_that_was_flushed_comes_back(box: Hardened) -> None:
    """Rules that somebody removed from the kernel are loaded again, although the file is as it should be."""
    box.box.run("nft flush ruleset")
    assert "firewall" in box.lockout("apply --seconds 0")
    assert "policy drop" in box.box.run("nft list chain inet skerry output").stdout


def test_the_play_reports_a_revert(box: Hardened) -> None:
    """The next run says that the last change was undone, and makes it again under the guard."""
    bad_change(box)
    box.lockout("apply --seconds 2")
    wait_reverted(box)
    box.box.run(f"test -e {STATE}/reverted")
    box.box.run("tar -C /etc/skerry/guarded -xf /root/guarded.tar")
    assert "skerry-lockout status: reverted" in box.install(tags="hardening")


def test_only_root_calls_it(box: Hardened) -> None:
    """An operator can neither cancel a revert nor cause one."""
    for verb in ("confirm", "revert", "apply"):
        call = f"PAM_SERVICE=sshd PAM_TYPE=open_session /usr/local/sbin/skerry-lockout {verb}"
        found = box.box.run(call, user="ops1", check=False)
        assert found.returncode == 3, found


@pytest.mark.parametrize("name", ["skerry-lockout.lock", "skerry-install.lock"])
def test_nobody_holds_the_lock_of_root(box: Hardened, name: str) -> None:
    """A lock needs no right but to read, so a user who could read it would keep the guard from acting."""
    box.lockout("apply --seconds 0")
    assert box.box.exists(f"/run/{name}")
    found = box.box.run(f"flock -n /run/{name} true", user="ops1", check=False)
    assert found.returncode != 0
    assert "Permission denied" in found.stderr
