"""What a hardened box lets through, whom it lets in, and that every run leaves it so."""

import re
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.hosts import nspawn, roots
from tests.hosts.cable import Outside
from tests.provision.hardened import CONSOLE, Hardened

FAR, FAR_6 = "192.0.2.80", "2001:db8::80"
# As a user, without any tool but bash: to an address far away and to the neighbour, TCP and UDP, both families.
KNOCK = "for a in {addresses}; do for way in tcp/$a/443 tcp/$a/22 udp/$a/53 udp/$a/123; do {one}; done; done".format(
    addresses=f"{FAR} {FAR_6} 10.77.0.1", one='(echo out > "/dev/$way") 2>/dev/null && echo "$way"'
)
PASSWORD = "correct-Horse-77-battery"


@pytest.fixture
def tester(hardened: Hardened) -> str:
    """An account with a role and a password, as an administrator may make one by hand."""
    make = "id tester 2>/dev/null || { useradd --create-home -G skerry-viewer tester && chpasswd; }"
    hardened.box.run(make, stdin=f"tester:{PASSWORD}\n")
    return "tester"


def knock_as(box: nspawn.Box, *users: str) -> list[str]:
    """What users of the box reach outside, each line the user and the way; all TCP, and UDP that was not refused."""
    enter = "setpriv --reuid=$user --regid=$(id -g $user) --init-groups"
    each = f"timeout 30 {enter} bash -c '{KNOCK}' | sed s/^/$user:/"
    return box.run(f"for user in {' '.join(users)}; do {each}; done", timeout_s=300).stdout.splitlines()


# -- out


def test_a_plain_debian_reaches_everything() -> None:
    """The positive control: the same knocks go out of a machine that was not hardened, and are seen outside."""
    nspawn.require()
    with (
        nspawn.boot(roots.debian("bookworm"), veth=True) as box,
        box.outside.listen(443) as heard,
        box.outside.listen(22),
        box.outside.listen(53, socket.SOCK_DGRAM) as asked,
        box.outside.capture() as caught,
    ):
        assert len(knock_as(box, "root", "nobody")) == 24
        time.sleep(0.3)
        assert heard == [b"out\n"] * 6
        assert asked == [b"out\n"] * 6
        assert caught.ip_frames()


def test_nothing_goes_out_whoever_tries(hardened: Hardened) -> None:
    """No account of the box reaches anything, root and every daemon's user included; not a single frame leaves."""
    box = hardened.box
    users = [line.split(":")[0] for line in box.read("/etc/passwd").splitlines()]
    assert {"root", "ops1", "rescue", "_apt", "sshd"} <= set(users)
    with box.outside.listen(443) as heard, box.outside.capture() as caught:
        assert knock_as(box, *users) == []
    assert heard == []
    assert [frame.hex() for frame in caught.ip_frames()] == []


def test_root_cannot_ping_or_ask_for_a_name(hardened: Hardened) -> None:
    """ICMP of root's own making and the resolver are closed as well."""
    ping = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 1);"
        f"s.sendto(bytes([8, 0, 0xf7, 0xff, 0, 0, 0, 0]), ('{FAR}', 0))"
    )
    with hardened.box.outside.capture() as caught:
        assert not hardened.box.run(["python3", "-c", ping], check=False).ok
        assert not hardened.box.run(
            "echo nameserver 10.77.0.1 > /etc/resolv.conf; getent hosts example.org", check=False
        ).ok
    assert caught.ip_frames() == []


def test_an_attempt_is_counted_and_told_at_once(hardened: Hardened) -> None:
    """A program that tries to leave is refused within a moment instead of waiting, and the firewall counts it."""
    began = time.monotonic()
    hardened.box.run(f"timeout 20 bash -c 'echo > /dev/tcp/{FAR}/443'", check=False)
    assert time.monotonic() - began < 5
    counted = re.search(
        r"counter packets (\d+) .* reject", hardened.box.run("nft list chain inet skerry output").stdout
    )
    assert counted
    assert int(counted[1]) > 0


def test_no_way_through(hardened: Hardened) -> None:
    """The box never forwards: not by a rule, not by the kernel."""
    assert "policy drop" in hardened.box.run("nft list chain inet skerry forward").stdout
    assert hardened.box.run("sysctl -n net.ipv4.ip_forward").stdout.strip() == "0"


# -- in


def test_ssh_is_the_only_open_door(hardened: Hardened) -> None:
    """Nothing but sshd listens on more than loopback, and of the ports that are ever used one answers the site."""
    addresses = {line.split()[4] for line in hardened.box.run("ss -Hltun").stdout.splitlines()}
    assert {a for a in addresses if not a.startswith(("127.", "[::1]"))} == {"0.0.0.0:22"}
    assert hardened.box.outside.open_ports([*range(1, 1025), 2222, 3000, 5000, 8000, 8080, 8443, 9090, 11434]) == [22]


@pytest.mark.slow
def test_no_other_port_answers(hardened: Hardened) -> None:
    """Of all 65,535 TCP ports one answers."""
    assert hardened.box.outside.open_ports(range(1, 65536)) == [22]


def test_another_network_is_shut_out(hardened: Hardened) -> None:
    """From an address that the site did not list port 22 does not answer, while it answers the site's."""
    outside: Outside = hardened.box.outside
    stranger = "198.51.100.7"
    hardened.box.run(f"ip route replace 198.51.100.0/24 via {outside.address}")
    outside.run(["ip", "address", "replace", f"{stranger}/32", "dev", "lo"])
    assert outside.open_ports([22], source=stranger) == []
    assert outside.open_ports([22], source=outside.address) == [22]
    hardened.box.run(f"nft add element inet skerry ssh_v4 {{ {stranger} }}")
    try:
        assert outside.open_ports([22], source=stranger) == [22], "the positive control failed"
    finally:
        hardened.box.run(f"nft delete element inet skerry ssh_v4 {{ {stranger} }}")


def test_the_box_does_not_answer_pings(hardened: Hardened) -> None:
    """Nothing but SSH is answered, not even a question whether somebody is there."""
    outside = hardened.box.outside
    with outside.open_socket(socket.AF_INET, socket.SOCK_DGRAM) as knock, outside.capture() as caught:
        knock.sendto(b"?", (outside.box_address, 53))
        time.sleep(0.5)
    # An address family, an IP header, and what it carries: TCP may be the last of a connection of the test before.
    assert [frame.hex() for frame in caught.ip_frames() if frame[23] != socket.IPPROTO_TCP] == []


# -- who


def test_an_operator_gets_the_console_and_nothing_else(hardened: Hardened) -> None:
    """Whatever an operator asks sshd for, the console runs; the words are only handed to it; no locale comes along."""
    box, key = hardened.box, hardened.keys.operator
    for asked in ("", "id", "bash -i", "rm -rf /", "/usr/lib/openssh/sftp-server"):
        answer = box.ssh("ops1", key, asked).stdout
        assert answer.startswith(f"console of ops1, asked: {asked or 'nothing'}\n"), asked
        assert "LC_" not in answer


def test_an_operator_copies_no_files(hardened: Hardened, tmp_path: Path) -> None:
    """scp and sftp end in the console, which speaks neither."""
    (tmp_path / "f").write_text("x")
    argv = hardened.box.ssh_argv("ops1", hardened.keys.operator)
    options = [a for a in argv[1:-1] if a not in ("-T", "-n")]
    done = subprocess.run(
        ["scp", *options, str(tmp_path / "f"), f"{argv[-1]}:/tmp/f"], capture_output=True, text=True, timeout=30
    )
    assert done.returncode != 0
    assert not hardened.box.exists("/tmp/f")  # noqa: S108 (a folder of the box)


@pytest.mark.parametrize(
    ("option", "tells"),
    [
        (["-L", "8080:127.0.0.1:22"], "forward"),
        (["-R", "8081:127.0.0.1:22"], "forward"),
        (["-D", "1080"], "forward"),
        (["-A"], "agent"),
        (["-X"], "x11"),
        (["-w", "0:0"], "tun"),
    ],
)
def test_nothing_passes_through_ssh(hardened: Hardened, option: list[str], tells: str) -> None:
    """Ports, agents, displays and tunnels are refused to everybody, the rescue account included."""
    settings = hardened.box.run("sshd -T -C user=rescue,host=x,addr=10.77.0.1").stdout
    wanted = {
        "forward": (
            "allowtcpforwarding no",
            "gatewayports no",
            "allowstreamlocalforwarding no",
            "disableforwarding yes",
        ),
        "agent": ("allowagentforwarding no",),
        "x11": ("x11forwarding no",),
        "tun": ("permittunnel no",),
    }[tells]
    for line in wanted:
        assert line in settings.splitlines(), option


def test_a_port_is_really_not_forwarded(hardened: Hardened) -> None:
    """A connection through the rescue account's SSH to the box's own port 22 is refused by the server."""
    argv = hardened.box.ssh_argv("rescue", hardened.keys.rescue)
    done = subprocess.run([argv[0], "-W", "127.0.0.1:22", *argv[1:]], capture_output=True, text=True, timeout=30)
    assert done.returncode == 255
    assert "SSH-2.0" not in done.stdout


def test_the_rescue_account_is_loud(hardened: Hardened) -> None:
    """It has a shell and root by sudo, and every login is an alert in the journal that names where it came from."""
    box = hardened.box
    assert box.ssh("rescue", hardened.keys.rescue, "sudo -n id -un", from_outside=True).stdout == "root\n"
    alerts = box.run("journalctl -t skerry-lockout -p alert --no-pager -o cat").stdout
    assert "BREAK-GLASS: the rescue account logged in by sshd from 10.77.0.1" in alerts
    assert "COMMAND=/usr/bin/id" in box.read("/var/log/sudo.log").replace("\n    ", " ")
    assert "rescue" in box.run("getent group sudo rescue").stdout
    assert box.run("sudo -l -U ops1", check=False).stdout.find("not allowed") > 0


@pytest.mark.parametrize("user", ["root", "ops1", "rescue", "nobody", "tester"])
def test_no_password_opens_ssh(hardened: Hardened, tester: str, user: str) -> None:
    """sshd offers nobody a password, not even to an account that has one; only keys are asked for."""
    argv = hardened.box.ssh_argv(user, hardened.keys.operator)
    done = subprocess.run(
        [
            argv[0],
            "-oPubkeyAuthentication=no",
            "-oPreferredAuthentications=password,keyboard-interactive",
            *argv[1:],
            "id",
        ],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 255
    assert "Permission denied (publickey)" in done.stderr


@pytest.mark.parametrize("user", ["root", "nobody", "tester"])
def test_a_key_in_the_home_folder_opens_nothing(hardened: Hardened, tester: str, user: str) -> None:
    """authorized_keys of a home folder is not read, and accounts without a role are not let in at all."""
    box = hardened.box
    home = box.run(f"getent passwd {user}").stdout.split(":")[5]
    if home != "/nonexistent":
        public = hardened.keys.operator.with_suffix(".pub").read_text()
        box.put(public, f"{home}/.ssh/authorized_keys", mode=0o600, owner=user)
    found = box.ssh(user, hardened.keys.operator, "id", check=False)
    assert found.returncode == 255
    assert "Permission denied" in found.stderr


def test_keys_do_not_grow_old(hardened: Hardened) -> None:
    """A key still opens two years after the account was made, although passwords age after one."""
    box = hardened.box
    assert "PASS_MAX_DAYS 365" in box.read("/etc/login.defs")
    box.run("chage --lastday 2020-01-01 ops1 && chage --lastday 2020-01-01 rescue")
    assert "console of ops1" in box.ssh("ops1", hardened.keys.operator).stdout
    assert box.ssh("rescue", hardened.keys.rescue, "id -un").stdout == "rescue\n"


def test_only_modern_algorithms(hardened: Hardened) -> None:
    """What sshd offers is a short list, and a client that knows only old ones is refused."""
    settings = dict(line.split(" ", 1) for line in hardened.box.run("sshd -T").stdout.splitlines() if " " in line)
    assert "sha1" not in settings["kexalgorithms"] + settings["macs"] + settings["pubkeyacceptedalgorithms"]
    assert "cbc" not in settings["ciphers"]
    assert "ssh-rsa," not in settings["hostkeyalgorithms"] + ","
    argv = hardened.box.ssh_argv("rescue", hardened.keys.rescue)
    argv.insert(1, "-oLogLevel=INFO")
    assert subprocess.run([*argv, "id"], capture_output=True, timeout=30).returncode == 0
    for old in ("-oCiphers=aes128-ctr", "-oMACs=hmac-sha1", "-oKexAlgorithms=diffie-hellman-group14-sha256"):
        options = [old, "-oCiphers=aes128-ctr"] if "MACs" in old else [old]
        done = subprocess.run([argv[0], *options, *argv[1:], "id"], capture_output=True, text=True, timeout=30)
        assert "no matching" in done.stderr, (old, done)


def test_a_removed_operator_is_gone(hardened: Hardened) -> None:
    """Taken off the list: the session under way ends, the key opens nothing, the account has no role."""
    box = hardened.box
    public = hardened.keys.operator.with_suffix(".pub").read_text().strip()
    operators = [{"name": name, "role": "operator", "keys": [public]} for name in ("ops1", "ops2")]
    hardened.install(tags="console", console_operators=operators)
    box.put("#!/bin/sh\nexec sleep 120\n", "/usr/local/bin/skerry", mode=0o755)
    argv = box.ssh_argv("ops2", hardened.keys.operator)
    session = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            if box.run("pgrep -u ops2 sleep", check=False).ok:
                break
            time.sleep(0.1)
        assert box.run("pgrep -u ops2 sleep", check=False).ok
        log = hardened.install(tags="console", console_operators=operators[:1])
        assert "changed=1" in log
        assert session.wait(20) != 0
    finally:
        session.kill()
        session.wait()
        box.put(CONSOLE, "/usr/local/bin/skerry", mode=0o755)
    assert box.run("id -Gn ops2").stdout == "ops2\n"
    assert "nologin" in box.run("getent passwd ops2").stdout
    assert not box.exists("/etc/skerry/authorized_keys/ops2")
    assert box.ssh("ops2", hardened.keys.operator, check=False).returncode == 255
    assert box.ssh("ops1", hardened.keys.operator, "id", check=False).returncode != 255


# -- passwords


@pytest.mark.parametrize("weak", ["short-1A!", "alllowercaseletters", "Passwordpassword1", "AAAAAAAAaaaa1111!!!!"])
def test_a_weak_password_is_told(hardened: Hardened, weak: str) -> None:
    """pwquality finds passwords that are short, of one kind, of the dictionary, or repeat themselves."""
    hardened.box.run("useradd weak")  # root is told and obeyed: no account of another test
    found = hardened.box.run(["passwd", "weak"], stdin=f"{weak}\n{weak}\n", check=False)
    hardened.box.run("userdel weak")
    assert "BAD PASSWORD" in found.stdout + found.stderr


def test_three_wrong_passwords_close_an_account(hardened: Hardened, tester: str) -> None:
    """After three failures the right password is refused too; root's is never closed; the key still opens."""
    box = hardened.box
    box.run("faillock --user tester --reset")
    become = "su tester -c 'echo in'"
    assert "in" in box.run(become, user="rescue", stdin=f"{PASSWORD}\n", check=False).stdout
    for _ in range(3):
        assert "in" not in box.run(become, user="rescue", stdin="wrong\n", check=False).stdout
    assert "in" not in box.run(become, user="rescue", stdin=f"{PASSWORD}\n", check=False).stdout
    box.run("faillock --user tester --reset")
    assert "in" in box.run(become, user="rescue", stdin=f"{PASSWORD}\n", check=False).stdout
    assert "even_deny_root" not in re.sub("#.*", "", box.read("/etc/security/faillock.conf"))


def test_hashes_are_slow(hardened: Hardened, tester: str) -> None:
    """A new password is kept as SHA-512 with 65,536 rounds."""
    assert hardened.box.run("getent shadow tester").stdout.split(":")[1].startswith("$6$rounds=65536$")


# -- the rest of the house


def test_the_house_is_in_order(hardened: Hardened) -> None:
    """No unit failed; nothing looks for updates or the time; the journal has its limit; Debian's sources are off."""
    box = hardened.box
    assert box.failed_units() == []
    for unit in ("apt-daily.timer", "systemd-timesyncd.service", "ctrl-alt-del.target", "usbguard-dbus.service"):
        assert box.run(["systemctl", "is-enabled", unit], check=False).stdout.strip() in ("masked", "masked-runtime"), (
            unit
        )
    assert "SystemMaxUse=512M" in box.read("/etc/systemd/journald.conf.d/10-skerry.conf")
    assert box.run("find /etc/apt -name '*.list' -o -name '*.sources'").stdout == ""
    assert box.run("apt-get --quiet --simulate install hello", check=False).returncode != 0


@pytest.mark.parametrize(
    ("where", "options"),
    [
        ("/tmp", "nosuid,nodev,noexec"),  # noqa: S108 (a folder of the box)
        ("/var/tmp", "nosuid,nodev,noexec"),  # noqa: S108
        ("/dev/shm", "nosuid,nodev,noexec"),  # noqa: S108
        ("/var/log", "nosuid,nodev,noexec"),
        ("/boot", "nosuid,nodev,noexec"),
        ("/home", "nosuid,nodev"),
        ("/var", "nosuid,nodev"),
        ("/proc", "hidepid=invisible"),
    ],
)
def test_mounts_have_their_options(hardened: Hardened, where: str, options: str) -> None:
    """Each of these folders is a mount with its options, once."""
    lines = [line.split() for line in hardened.box.read("/proc/mounts").splitlines()]
    found = [set(words[3].split(",")) for words in lines if words[1] == where]
    assert len(found) == 1
    assert set(options.split(",")) <= found[0]


def test_processes_of_others_are_hidden(hardened: Hardened) -> None:
    """A user sees its own processes and no others; logins still become sessions."""
    assert hardened.box.run("ps -eo user= | sort -u", user="nobody").stdout.split() == ["nobody"]
    assert "session" in hardened.box.ssh("rescue", hardened.keys.rescue, "cat /proc/self/cgroup; loginctl").stdout


def test_usb_stays_blocked_in_a_container(hardened: Hardened) -> None:
    """The drivers are out of use; the window refuses without a kernel of its own, and wants a reason and root."""
    box = hardened.box
    blocked = box.read("/etc/modprobe.d/skerry-usb.conf")
    assert "install usb-storage /bin/false" in blocked
    assert "install uas /bin/false" in blocked
    window = "/usr/local/sbin/skerry-usb-window"
    assert box.run(f"{window} status", check=False).returncode == 1
    assert box.run(f"{window} open", check=False).returncode == 2
    assert box.run(f"{window} open --reason 'a test of November'", check=False).returncode == 4
    assert box.run(f"{window} open --reason 'a test of November'", user="ops1", check=False).returncode == 3


def test_what_was_switched_off_comes_back(hardened: Hardened) -> None:
    """A box whose SSH an administrator stopped and disabled, or a preset never enabled, has it again after a run."""
    box = hardened.box
    box.run("systemctl disable --now ssh.service && systemctl mask acct.service")
    log = hardened.install(tags="hardening")
    assert re.search(r"changed=1 ", log), log[-2500:]
    assert box.run("systemctl is-active ssh.service").ok
    assert box.run("systemctl is-enabled ssh.service acct.service").stdout == "enabled\nenabled\n"


def test_no_second_way_into_sshd(hardened: Hardened) -> None:
    """Neither a socket for the host of a virtual machine nor one in the file system leads to sshd, as systemd would."""
    box = hardened.box
    assert not box.run("ls /run/systemd/generator | grep ssh", check=False).stdout
    assert "sshd" not in box.run("systemctl list-units --plain --no-legend --type=socket --all").stdout


def test_nothing_of_ours_is_writable(hardened: Hardened) -> None:
    """What root runs or believes can be changed by root alone."""
    found = hardened.box.run(
        "find /usr/local/sbin /etc/skerry /etc/ssh /etc/pam.d /etc/sudoers.d /etc/modprobe.d /etc/sysctl.d "
        "/etc/systemd/system /etc/nftables.conf ! -type l \\( -perm /022 -o ! -user root \\)"
    )
    assert found.stdout == ""
    assert "OK" in hardened.box.run("visudo -c").stdout.upper()


def test_after_a_reboot_nothing_is_to_do(hardened: Hardened) -> None:
    """A reboot leaves everything in force: no unit fails, and the roles find nothing to change."""
    hardened.box.reboot()
    assert hardened.box.failed_units() == []
    log = hardened.install()
    assert re.search(r"changed=0 ", log), log[-2500:]
    assert hardened.lockout("status") == "in force\n"


def test_the_login_survives_full_disks(hardened: Hardened) -> None:
    """With no byte left on the file system of the logs the rescue account still logs in and has root."""
    box = hardened.box
    box.run("mkdir -p /run/full && mount -t tmpfs -o size=2M tmpfs /run/full && mount --bind /run/full /var/log")
    box.run("cat /dev/zero > /var/log/fill", check=False)
    try:
        assert not box.run("echo x >> /var/log/more", check=False).ok
        assert box.ssh("rescue", hardened.keys.rescue, "sudo -n id -un").stdout == "root\n"
        assert box.ssh("ops1", hardened.keys.operator, "id", check=False).returncode != 255
    finally:
        box.run("umount /var/log; umount /run/full")
