"""After the first run: a fleet over SSH, an upgrade, an uninstall, a factory reset. Slow, for `make test-all`."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.hosts import nspawn, roots
from tests.provision.conftest import KIT_ON_BOX, QUESTION, ROOT, Keys, Kit, Provisioned, install, provision, site_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")


@pytest.fixture
def own(kit: Kit, keys: Keys, tmp_path: Path) -> Iterator[Provisioned]:
    """A provisioned box that the test may spoil."""
    with provision(kit, keys, site_file(keys, tmp_path / "site.yaml"), "bookworm") as box:
        yield box


def answers(box: nspawn.Box) -> bool:
    """Whether an unprivileged program of the box gets its answer."""
    found = box.run(f"skerry ask {QUESTION!r} --temperature 0", user="app", check=False, timeout_s=120)
    return "Paris" in found.stdout


def run_fleet(box: nspawn.Box, kit: Kit, user: str, key: Path, site: Path, folder: Path) -> str:
    """Provision a box over SSH with the kit's fleet.yml; gives what was printed."""
    digest = subprocess.check_output(["sha256sum", kit.path / "manifest"], text=True).split()[0]
    *_, proxy = [a for a in box.ssh_argv(user, key) if a.startswith("ProxyCommand=")]
    options = f"-o '{proxy}' -o UserKnownHostsFile={folder}/known -o StrictHostKeyChecking=accept-new"
    host = {"ansible_user": user, "ansible_ssh_private_key_file": str(key), "ansible_ssh_common_args": options}
    variables = yaml.safe_load(site.read_text())
    (folder / "inventory.yml").write_text(yaml.safe_dump({"all": {"vars": variables, "hosts": {"box-01": host}}}))
    staged = folder / digest
    if not staged.exists():
        shutil.copytree(kit.path, staged)
    given = {
        "skerry_kit": f"/var/lib/skerry/kit/{digest}",
        "fleet_source": str(staged),  # only here: the sender has its verified copy in the same place as the boxes
        "skerry_kit_key": kit.key_sha256,
        "skerry_kit_sha256": digest,
        "skerry_version": "0.1.0",
    }
    command = [str(PLAYBOOK), "-i", str(folder / "inventory.yml"), "fleet.yml"]
    for name, value in given.items():
        command += ["-e", f"{name}={value}"]
    found = subprocess.run(
        command,
        cwd=ROOT / "playbooks",
        env=os.environ | {"ANSIBLE_SSH_ARGS": "-F none -o IdentitiesOnly=yes"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert found.returncode == 0, found.stdout[-4000:] + found.stderr[-2000:]
    assert "failed=0" in found.stdout
    return found.stdout


def test_a_fleet_is_provisioned_over_ssh(own: Provisioned, tmp_path: Path) -> None:
    """fleet.yml brings the kit to a box that lacks it, lets the box verify it, and finds the rest as it should be.

    It goes on, too, where a run before was cut off after the copying: nothing on the box used the copy yet.
    """
    box, kit = own.box, own.kit
    digest = subprocess.check_output(["sha256sum", kit.path / "manifest"], text=True).split()[0]
    box.run(f"rm -rf /var/lib/skerry/kit/{digest}")
    run_fleet(box, kit, "rescue", own.keys.rescue, site_file(own.keys, tmp_path / "site.yaml"), tmp_path)
    assert box.exists(f"/var/lib/skerry/kit/{digest}/manifest")
    assert answers(box)
    box.run("rm -r /usr/local/sbin/skerry-setup /opt/skerry/ansible* /var/lib/skerry/apt")
    run_fleet(box, kit, "rescue", own.keys.rescue, site_file(own.keys, tmp_path / "site.yaml"), tmp_path)
    assert (
        box.run("readlink -f /usr/local/sbin/skerry-setup").stdout.strip() == f"/var/lib/skerry/kit/{digest}/install.sh"
    )
    assert box.run("skerry-setup --report", timeout_s=300).returncode == 0
    assert not box.exists("/var/lib/skerry/incoming")


def test_a_fleet_of_bare_machines_becomes_boxes(kit: Kit, keys: Keys, tmp_path: Path) -> None:
    """A bare machine that lets root in over SSH is a box after one run, kept by the run's own login as rescue."""
    bare = roots.debian("bookworm", ("openssh-server",))
    site = site_file(keys, tmp_path / "site.yaml")
    with nspawn.boot(bare) as box:
        public = keys.rescue.with_suffix(".pub").read_text()
        box.put(public, "/root/.ssh/authorized_keys", mode=0o600)
        run_fleet(box, kit, "root", keys.rescue, site, tmp_path)
        assert box.run("skerry-lockout status").stdout == "in force\n"
        assert box.ssh("root", keys.rescue, "true", check=False).returncode == 255
        box.run("useradd --create-home app && usermod -aG skerry-client app")
        assert answers(box)
        assert re.search(r"changed=0 ", run_fleet(box, kit, "rescue", keys.rescue, site, tmp_path))


def test_a_newer_kit_upgrades_and_keeps_the_older_version(own: Provisioned, tmp_path: Path) -> None:
    """A kit with other contents makes a version beside the old one and switches; the daemon answers from the new."""
    box = own.box
    before = box.run("readlink /opt/skerry/current").stdout.strip()
    tree = tmp_path / "newer"
    files = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True).split("\n")
    for name in filter(None, files):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    (tree / "build").mkdir()
    for cache in ("kit-cache", "station"):
        shutil.copytree(ROOT / "build" / cache, tree / "build" / cache, symlinks=True)
    version = tree / "appliance" / "__init__.py"
    version.write_text(re.sub(r'__version__ = ".*"', '__version__ = "0.2.0"', version.read_text()))
    built = subprocess.run(
        [sys.executable, "-m", "kit.build", "--no-measure", "--suite", "bookworm"],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert built.returncode == 0, built.stderr[-2000:]
    newer = Path(built.stdout.strip().splitlines()[-1])
    box.put(newer, "/root/newer")
    box.run(f"bash /root/newer/install.sh --key {own.kit.key_sha256}", timeout_s=600)
    after = box.run("readlink /opt/skerry/current").stdout.strip()
    assert "0.2.0" in after
    assert box.run("skerry --version").stdout.strip() == "skerry 0.2.0"
    assert box.exists(f"/opt/skerry/{before}")
    assert "0.2.0" in box.run("skerry status --json").stdout
    assert answers(box)


def test_uninstall_keeps_data_and_hardening(own: Provisioned) -> None:
    """`--reset uninstall --data keep` removes software and units, leaves models and firewall; a run brings all back."""
    box = own.box
    name = box.run("hostname").stdout.strip()
    refused = box.run("skerry-setup --reset uninstall --data keep --confirm another", check=False, timeout_s=120)
    assert refused.returncode == 1
    assert answers(box)
    box.run(f"skerry-setup --reset uninstall --data keep --confirm {name}", timeout_s=240)
    assert not box.exists("/opt/skerry/current")
    assert "skerry-inferenced" not in box.run("systemctl list-unit-files 'skerry-inferenced*'").stdout
    assert box.run("ls /var/lib/skerry/models").stdout.strip()
    assert "policy drop" in box.run("nft list chain inet skerry input").stdout
    install(box, own.kit)
    assert answers(box)


def test_a_factory_reset_forgets_the_site(own: Provisioned) -> None:
    """`--reset factory --data wipe` removes operators, the site's file, keys, receipts and models; the kit stays."""
    box = own.box
    name = box.run("hostname").stdout.strip()
    box.run(f"skerry-setup --reset factory --data wipe --confirm {name}", timeout_s=240)
    gone = ["/etc/skerry/site.yaml", "/etc/skerry/keys", "/var/lib/skerry/models", "/var/lib/skerry/receipts"]
    assert not [path for path in gone if box.exists(path)]
    assert box.run("getent passwd ops1", check=False).returncode != 0
    assert not box.exists("/home/ops1")
    assert box.run("ls /var/lib/skerry/kit").stdout.strip()
    box.run("skerry-setup --site /root/site.yaml", timeout_s=600)
    assert answers(box)
    assert KIT_ON_BOX not in box.run("readlink -f /usr/local/sbin/skerry-setup").stdout


def test_an_operator_who_left_is_locked_out(own: Provisioned, tmp_path: Path) -> None:
    """Who is no longer in the site's list loses key and role at the next run; the files and a program's role stay."""
    box = own.box
    assert box.ssh("ops1", own.keys.operator, "status", check=False).returncode == 0
    box.put(site_file(own.keys, tmp_path / "without.yaml", console_operators=[]), "/root/site.yaml")
    box.run("skerry-setup --site /root/site.yaml --tags console", timeout_s=300)
    assert box.ssh("ops1", own.keys.operator, "status", check=False).returncode == 255
    assert box.run("id -nG ops1").stdout.strip() == "ops1"
    assert box.exists("/home/ops1")
    assert answers(box)


def test_a_killed_run_is_safe_to_run_again(own: Provisioned) -> None:
    """A run that was cut off with the power leaves a box that boots, and that the next run puts right."""
    box = own.box
    box.run("rm -f /usr/local/bin/skerry /etc/skerry/config.yaml /etc/systemd/system/skerry-sandbox.socket")
    cut = box.popen("skerry-setup")
    try:
        cut.wait(12)
    except subprocess.TimeoutExpired:
        box.power_cut()
        box.start()
    install(box, own.kit)
    assert answers(box)
    log, _ = install(box, own.kit)
    assert sum(int(n) for n in re.findall(r"changed=(\d+)", log)) == 0
