"""A virtual machine that was provisioned from a kit, made once: on an emulated processor that takes most of an hour.

    found = machines.provisioned_vm("bookworm")
    with qemu.boot(found.machine) as box:                          # some seconds: it goes on where it was saved
        box.ssh("rescue", found.keys.rescue, "true")

It is cached by what the kit holds, so a change of a role makes a new one. What its provisioning took is in `install_s`.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from kit import manifest
from tests.hosts import qemu, roots
from tests.provision.conftest import KIT_ON_BOX, Keys, Kit, build_kit, install, make_keys, site_file

SITE_NETWORKS = ["10.0.2.0/24"]


@dataclass(frozen=True)
class ProvisionedMachine:
    """A saved machine, after its first `install.sh` and a first login, with one user `app` of skerry-client."""

    machine: qemu.Machine
    kit: Kit
    keys: Keys
    log: str
    install_s: float


def provisioned_vm(suite: str) -> ProvisionedMachine:
    """Return the machine of this kit, and make it if it is not there; skip if it cannot be had."""
    plain = qemu.debian_vm(suite)
    kit = build_kit(suite)

    def build(target: Path) -> None:
        target.mkdir()
        keys = make_keys(target)
        site = site_file(keys, target / "site.yaml", hardening_ssh_networks=SITE_NETWORKS)
        with qemu.boot(plain, binds={KIT_ON_BOX: kit.path}) as box:
            box.put(site, "/root/site.yaml")
            log, took = install(box, kit, "--site /root/site.yaml", timeout_s=5400)
            (target / "install.log").write_text(log)
            (target / "install_s").write_text(f"{took:.0f}")
            box.run("useradd --create-home app && usermod -aG skerry-client app")
            box.ssh("rescue", keys.rescue, "true", timeout_s=300)
            end = time.monotonic() + 300
            while (said := box.run("skerry-lockout status", check=False).stdout) != "in force\n":
                assert time.monotonic() < end, said
                time.sleep(2)
            box.uncarry(KIT_ON_BOX)
            box.save(target)

    folder = roots.cached(
        f"provisioned-{suite}", f"{plain.disk} {qemu.DEVICES} {content_of(kit)} {SITE_NETWORKS}", build
    )
    return ProvisionedMachine(
        machine=qemu.load(folder),
        kit=kit,
        keys=Keys(folder / "operator", folder / "rescue"),
        log=(folder / "install.log").read_text(),
        install_s=float((folder / "install_s").read_text()),
    )


def content_of(kit: Kit) -> str:
    """Return the kit's own list of what is in it, which has a digest of every file."""
    return (kit.path / manifest.MANIFEST).read_text()
