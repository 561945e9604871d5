"""install.sh as a whole, on bare booted boxes without a network, with real packages and playbooks of a few lines.

What the real playbooks make of a box is tested in `tests/provision/`.
"""

import hashlib
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.errors import SkerryError
from kit import assembly, build, openpgp
from kit.suites import SUITES
from tests.hosts import nspawn, roots
from tests.hosts.process import Result

pytestmark = pytest.mark.slow

STICKS = "/mnt/sticks"
SECRET = "hunter2-of-the-site"
UNTOUCHED = "find /etc/apt /var/lib/apt/lists -type f -exec sha256sum {} + | sort"

SITE = """
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.debug:
        msg: "kit={{ skerry_kit }} version={{ skerry_version }} sha={{ skerry_kit_sha256 }} key={{ skerry_kit_key }}"
      tags: [shown]
    - ansible.builtin.copy:
        content: "{{ word | default('none') }} of KIT\\n"
        dest: /etc/word
        mode: "0644"
      tags: [written]
    - ansible.builtin.copy:
        content: "{{ secret | default('none') }}"
        dest: /root/secret
        mode: "0600"
      no_log: true
    - ansible.builtin.apt:
        name: [tzdata]
        install_recommends: false
      environment:
        APT_CONFIG: /var/lib/skerry/apt/apt.conf
    - ansible.builtin.assert:
        that: word | default('none') != 'broken'
        fail_msg: the word is broken
"""
OTHERS = {
    "check.yml": "- {hosts: all, gather_facts: false, tasks: [{ansible.builtin.command: test -e /etc/promise}]}\n",
    "fleet.yml": '- {hosts: all, gather_facts: false, tasks: [{ansible.builtin.copy: '
    '{content: "{{ inventory_hostname }} {{ word | default(\'none\') }}", dest: /etc/fleet}}]}\n',
    "reset.yml": '- {hosts: all, gather_facts: false, tasks: [{ansible.builtin.copy: '
    '{content: "{{ reset_mode }} {{ reset_data }} {{ reset_confirm }}", dest: /etc/reset}}]}\n',
    "ansible.cfg": "[defaults]\ninventory = localhost,\ninterpreter_python = /usr/bin/python3\n",
}  # fmt: skip


@dataclass(frozen=True)
class Sticks:
    """A folder of kits, and the digest of their key."""

    folder: Path
    key: str


def make_sticks(folder: Path, suite: str, *names: str) -> Sticks:
    """Real kits but for their playbooks, which differ in a word."""
    sources = assembly.Sources((SUITES[suite],), None, False, None, None, False, build.STATION, build.CACHE)
    signer = openpgp.developer(build.STATION)
    try:
        with build.alone():
            files = assembly.gather(sources, signer)
            for name in names:
                kept: assembly.Files = {
                    p: f for p, f in files.items() if p.split("/")[0] not in ("playbooks", "models")
                }
                kept["playbooks/site.yml"] = SITE.replace("KIT", name).encode()
                kept |= {f"playbooks/{path}": text.encode() for path, text in OTHERS.items()}
                assembly.put_together(folder / name, kept)
                assembly.sign(folder / name, kept, sources.suites, signer)
    except SkerryError as e:
        if "cannot fetch" in e.message:
            pytest.skip(f"not run: {e.message}")
        raise
    finally:
        openpgp.end_agent(signer.home)
    return Sticks(folder, openpgp.sha256_of_key((folder / names[0] / "kit.gpg").read_bytes()))


@pytest.fixture(scope="module")
def sticks(tmp_path_factory: pytest.TempPathFactory) -> Sticks:
    roots.debian("bookworm")  # skips where no box can be had, before the kits take their time
    return make_sticks(tmp_path_factory.mktemp("sticks"), "bookworm", "a", "b", "c")


@dataclass
class Installed:
    """A box after its first run, and what that printed."""

    box: nspawn.Box
    sticks: Sticks
    output: str
    sources: str

    def install(self, stick: str, *options: str, check: bool = True) -> Result:
        command = f"bash {STICKS}/{stick}/install.sh --key {self.sticks.key} {' '.join(options)}"
        return self.box.run(command, check=check, timeout_s=300)


def site(word: str) -> str:
    return f"word: {word}\nsecret: {SECRET}\n"


@pytest.fixture(scope="module")
def installed(sticks: Sticks) -> Iterator[Installed]:
    with nspawn.boot(roots.debian("bookworm"), binds={STICKS: sticks.folder}) as box:
        found = Installed(box, sticks, "", box.run(UNTOUCHED).stdout)
        box.put(site("first").encode(), "/root/site.yaml")
        found.output = found.install("a", "--site", "/root/site.yaml").stdout
        yield found


# --- one box ----------------------------------------------------------------------------------------------------------


def test_a_bare_box_runs_the_playbooks(installed: Installed, sticks: Sticks) -> None:
    """Without Python and network: packages come from the kit alone, the playbooks run with the site's variables."""
    box = installed.box
    name = hashlib.sha256((sticks.folder / "a" / "manifest").read_bytes()).hexdigest()
    assert f"kit=/var/lib/skerry/kit/{name} " in installed.output
    assert f"sha={name} key={sticks.key}" in installed.output
    assert box.read("/etc/word") == "first of a\n"
    assert box.run("dpkg-query -Wf '${db:Status-Status}' tzdata").stdout == "installed"
    assert box.run("ls /var/lib/skerry/kit").stdout.split() == [name]
    assert re.search(r"^\[ +\d+s\] Done\. Skerry", installed.output, re.MULTILINE)


def test_debians_own_sources_are_left_alone(installed: Installed) -> None:
    """Neither apt's configuration nor its lists change: the kit is a source for Skerry's own runs only."""
    assert installed.box.run(UNTOUCHED).stdout == installed.sources
    assert "skerry" not in installed.box.run("apt-get indextargets", check=False).output


def test_the_site_is_kept_secret(installed: Installed) -> None:
    """The site's file is for root alone, and what is secret in it stands in no log."""
    box = installed.box
    assert box.run("stat -c '%a %U' /etc/skerry/site.yaml /var/log/skerry/install.log /var/log/skerry").stdout.split(
        "\n"
    ) == [
        "600 root",
        "600 root",
        "750 root",
        "",
    ]
    assert box.read("/root/secret") == SECRET
    assert SECRET not in installed.output
    assert box.run(f"grep -r {SECRET} /var/log", check=False).returncode == 1
    assert "Done. Skerry" in box.read("/var/log/skerry/install.log")


def test_later_runs_need_no_stick_and_change_nothing(installed: Installed) -> None:
    """`skerry-setup` verifies the copy and runs the playbooks with the kept key and site; Ansible starts in seconds."""
    before = installed.box.run(
        "find /opt/skerry /var/lib/skerry/kit /var/lib/skerry/apt -printf '%p %i %T@\n' | sort"
    ).stdout
    found = installed.box.run("skerry-setup").stdout
    assert "changed=0" in found
    assert "Copying" not in found
    started = re.search(r"\[ +(\d+)s\] Running Ansible", found)
    assert started
    assert int(started[1]) <= 8  # under 2 on a quiet machine
    after = installed.box.run(
        "find /opt/skerry /var/lib/skerry/kit /var/lib/skerry/apt -printf '%p %i %T@\n' | sort"
    ).stdout
    assert after == before


def test_check_changes_nothing(installed: Installed) -> None:
    """--check with another site's file shows the difference, and keeps neither it nor its values."""
    installed.box.put(site("second").encode(), "/root/second.yaml")
    found = installed.install("a", "--check", "--site", "/root/second.yaml").stdout
    assert "+second of a" in found
    assert installed.box.read("/etc/word") == "first of a\n"
    assert installed.box.read("/etc/skerry/site.yaml") == site("first")


def test_a_failed_run_says_so_and_may_be_repeated(installed: Installed) -> None:
    """A task that fails gives exit code 1; the next run, with what was mended, succeeds."""
    box = installed.box
    box.put(site("broken").encode(), "/root/broken.yaml")
    failed = installed.install("a", "--site", "/root/broken.yaml", check=False)
    assert failed.returncode == 1
    assert "the word is broken" in failed.stdout
    assert "the playbook site.yml failed" in failed.stderr
    installed.install("a", "--site", "/root/site.yaml")
    assert box.read("/etc/word") == "first of a\n"


def test_tags(installed: Installed) -> None:
    """--tags runs only those parts."""
    found = installed.install("a", "--tags", "shown").stdout
    assert "kit=/var/lib" in found
    assert "ok=1 " in found


def test_the_report_is_another_playbook(installed: Installed) -> None:
    """--report runs check.yml and nothing else; a broken promise gives exit code 1."""
    assert installed.install("a", "--report", check=False).returncode == 1
    installed.box.run("touch /etc/promise")
    assert "Done." not in installed.install("a", "--report").stdout


def test_a_fleet(installed: Installed) -> None:
    """--inventory runs fleet.yml on the machines of the inventory, without this machine's own variables."""
    installed.box.put(b"other ansible_connection=local\n", "/root/fleet.ini")
    installed.box.run("cd /root && skerry-setup --inventory fleet.ini")
    assert installed.box.read("/etc/fleet") == "other none"
    assert installed.box.run("command -v scp ssh").ok


def test_the_lockout_guard_is_announced(installed: Installed) -> None:
    """While the guard waits for a new login, the end of the run says how long it waits."""
    installed.box.run("echo $(($(date +%s) + 600)) >/run/skerry-lockout.deadline")
    assert re.search(r"LOG IN ANEW within (9|10) minutes", installed.install("a").stdout)
    installed.box.run("rm /run/skerry-lockout.deadline")
    assert "LOG IN" not in installed.install("a").stdout


def test_copies_of_older_kits_go(installed: Installed, sticks: Sticks) -> None:
    """A trusted install.sh takes newer kits; there is the copy in use and the one before; Ansible stays as it is."""
    box = installed.box
    venv = box.run("readlink /opt/skerry/ansible; stat -c %Y /opt/skerry/ansible/").stdout
    for name in ("b", "c"):
        box.run(f"skerry-setup --kit {STICKS}/{name}")
        assert box.read("/etc/word") == f"first of {name}\n"
    names = [hashlib.sha256((sticks.folder / n / "manifest").read_bytes()).hexdigest() for n in ("b", "c")]
    assert sorted(box.run("ls /var/lib/skerry/kit").stdout.split()) == sorted(names)
    assert box.run("readlink /usr/local/sbin/skerry-setup").stdout == f"/var/lib/skerry/kit/{names[1]}/install.sh\n"
    assert box.run("readlink /opt/skerry/ansible; stat -c %Y /opt/skerry/ansible/").stdout == venv


def test_reset(installed: Installed) -> None:
    """--reset tells reset.yml what to do; after uninstall and wipe nothing of the installation itself is left."""
    box = installed.box
    box.run("skerry-setup --reset factory --data keep --confirm box-01")
    assert box.read("/etc/reset") == "factory keep box-01"
    assert box.exists("/usr/local/sbin/skerry-setup")
    box.run("skerry-setup --reset uninstall --data wipe --confirm box-01")
    assert (
        box.run("ls -d /opt/skerry/ansible* /usr/local/sbin/skerry-setup /etc/skerry/kit.gpg", check=False).stdout == ""
    )


# --- other boxes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("when", "later_s"),
    [("Copying wheels", 0), ("Verifying", 0.3), ("Installing Python", 2.5), ("Installing Ansible", 1)],
)
def test_a_run_that_is_killed_is_repeated(sticks: Sticks, when: str, later_s: float) -> None:
    """kill -9 at any step, half-installed packages included: the next run repairs what it finds and succeeds."""
    with nspawn.boot(roots.debian("bookworm"), binds={STICKS: sticks.folder}) as box:
        kill = f"""
            setsid bash {STICKS}/a/install.sh --key {sticks.key} --prepare >/root/out 2>&1 &
            for i in $(seq 1200); do
                if grep -q '{when}' /root/out; then sleep {later_s}; break; fi
                sleep 0.05
            done
            kill -9 -- -$!
        """
        box.run(["bash", "-c", kill], timeout_s=120)
        assert "Prepared" not in box.read("/root/out")
        box.run(f"bash {STICKS}/a/install.sh --key {sticks.key}", timeout_s=300)
        assert box.read("/etc/word") == "none of a\n"
        assert box.run("dpkg --audit").stdout == ""
        assert len(box.run("ls /var/lib/skerry/kit").stdout.split()) == 1


def test_debian_13(tmp_path: Path) -> None:
    """The same on Debian 13, whose apt brings sqv instead of gpgv; a bad signature is refused there too."""
    root = roots.debian("trixie")
    sticks = make_sticks(tmp_path, "trixie", "a", "bad")
    (tmp_path / "bad" / "manifest").write_bytes((tmp_path / "bad" / "manifest").read_bytes() + b"\n")
    with nspawn.boot(root, binds={STICKS: sticks.folder}) as box:
        assert box.run("command -v gpgv", check=False).returncode != 0
        refused = box.run(f"bash {STICKS}/bad/install.sh --key {sticks.key}", check=False)
        assert refused.returncode == 5
        before = box.run(UNTOUCHED).stdout
        found = box.run(f"bash {STICKS}/a/install.sh --key {sticks.key}", timeout_s=300).stdout
        assert "Done. Skerry" in found
        assert "changed=0" in box.run("skerry-setup").stdout
        assert box.run(UNTOUCHED).stdout == before


def test_a_kit_of_the_other_debian_is_refused(sticks: Sticks) -> None:
    """A kit for Debian 12 alone is refused on Debian 13 before anything is copied."""
    with nspawn.boot(roots.debian("trixie"), binds={STICKS: sticks.folder}) as box:
        found = box.run(f"bash {STICKS}/a/install.sh --key {sticks.key}", check=False)
        assert found.returncode == 4
        assert "debian trixie: the kit is for debian bookworm" in " ".join(found.stderr.split())
        assert box.run("ls -A /var/lib/skerry/kit").stdout == ""


def test_a_full_disk(sticks: Sticks) -> None:
    """Too little room is found before the copying; a disk that fills meanwhile leaves no half copy."""
    options = ["--tmpfs=/var/lib/skerry:size=40M,mode=0755"]
    with nspawn.boot(roots.debian("bookworm"), binds={STICKS: sticks.folder}, options=options) as box:
        found = box.run(f"bash {STICKS}/a/install.sh --key {sticks.key}", check=False)
        assert found.returncode == 4
        assert re.search(r"has \d+ MB free, expected \d{3,4} MB", " ".join(found.stderr.split()))
        assert box.run("ls -A /var/lib/skerry/kit").stdout == ""
        less = f"sed '/^    room /d' {STICKS}/a/install.sh >/root/install.sh"
        box.run(less)
        found = box.run(f"bash /root/install.sh --kit {STICKS}/a --key {sticks.key}", check=False)
        assert found.returncode == 1
        assert "No space left" in found.stderr
        assert box.run("ls -A /var/lib/skerry/kit").stdout == ""


def test_the_kit_by_hand(sticks: Sticks) -> None:
    """What README.txt says about checking install.sh with the system's own tools works as it stands there."""
    text = (sticks.folder / "a" / "README.txt").read_text()
    lines = re.findall(
        r"^ {5}(\S.*?)(?: {2,}\(.*)?$", text.partition("BEFORE THE FIRST TIME")[2].partition("LATER")[0], re.M
    )
    wanted = [line for line in lines if not line.startswith(("sqv", "bash"))]
    assert len(wanted) == 5
    with nspawn.boot(roots.debian("bookworm"), binds={STICKS: sticks.folder}) as box:
        script = "set -e\n" + "\n".join(wanted)
        found = box.run(["bash", "-c", script], folder=f"{STICKS}/a")
        assert sticks.key in found.stdout
        assert "install.sh: OK" in found.stdout
        began = time.monotonic()
        done = box.run(f"bash /root/check/install.sh --kit {STICKS}/a --key {sticks.key} --prepare", timeout_s=300)
        print(f"prepared in {time.monotonic() - began:.0f} s")
        assert "Prepared." in done.stdout


def test_a_stick_that_is_pulled(sticks: Sticks, tmp_path: Path) -> None:
    """A stick that vanishes while it is copied gives a clear end, and no half copy."""
    pulled = tmp_path / "pulled"
    subprocess.run(["cp", "-r", sticks.folder / "a", pulled], check=True)
    with nspawn.boot(roots.debian("bookworm"), binds={"/mnt/pulled": pulled}) as box:
        work = "sed 's/^copy_files() {$/&\\n    umount -l \\/mnt\\/pulled/' /mnt/pulled/install.sh >/root/install.sh"
        box.run(work)
        found = box.run(f"bash /root/install.sh --kit /mnt/pulled --key {sticks.key}", check=False)
        assert found.returncode == 1, found.output
        assert "is the stick still in?" in " ".join(found.stderr.split())
        assert box.run("ls -A /var/lib/skerry/kit").stdout == ""
