"""Measure a box with other people's tools, before and after it is provisioned, in a virtual machine.

    python -m tests.provision.scan                    both; some 90 minutes on an emulated processor
    python -m tests.provision.scan --only after       the provisioned one alone
    python -m tests.provision.scan --profiles minimal intermediary enhanced high
    python -m tests.provision.scan --nspawn           a container in minutes: no kernel settings, no audit; for trying

Prints a table; what the tools said stays under build/scan/. Lynis is Debian 12's own 3.0.8. OpenSCAP is Debian 12's
too, with the content for Debian 12 that Debian 13's ssg-debian has. Both run on the booted system: oscap-chroot would
call half of the rules not applicable. They are installed for the measurement only; a box has neither.

What the figures do NOT say: that a box is secure. They say how much of two published lists it follows.
"""

import argparse
import contextlib
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from kit import debs
from kit.suites import SUITES
from tests.hosts import nspawn, qemu, roots
from tests.provision import machines
from tests.provision.conftest import KIT_ON_BOX, ROOT, build_kit, install, make_keys, site_file

SCAN = ROOT / "build" / "scan"
TOOLS_ON_BOX = "/mnt/tools"
PROFILES = ("minimal", "intermediary", "enhanced", "high")
WAIVERS = Path(__file__).with_name("lynis-waivers.prf")
Box = nspawn.Box | qemu.Box

INSTALL_TOOLS = f"""
set -e
mkdir -p /run/tools/lists/partial
echo "deb [trusted=yes] file:{TOOLS_ON_BOX} ./" > /run/tools/list
options="-o Dir::Etc::sourcelist=/run/tools/list -o Dir::Etc::sourceparts=/dev/null"
options="$options -o Dir::State::lists=/run/tools/lists"
apt-get -qq $options update
DEBIAN_FRONTEND=noninteractive apt-get -qq -y $options install --no-install-recommends lynis openscap-scanner {{more}}
"""


def main() -> int:
    """Measure, and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["before", "after"])
    parser.add_argument("--nspawn", action="store_true", help="a container instead of a virtual machine")
    parser.add_argument("--profiles", nargs="+", choices=PROFILES, default=PROFILES[:1], help="of ANSSI-BP-028")
    options = parser.parse_args()
    tools = gather_tools()
    found = {}
    for stage in [options.only] if options.only else ["before", "after"]:
        print(f"--- {stage}", file=sys.stderr)
        with machine(stage, tools, container=options.nspawn) as box:
            folder = SCAN / f"{stage}{'-nspawn' if options.nspawn else ''}"
            found[stage] = measure(box, folder, options.profiles, waivers=stage == "after")
    for stage, figures in found.items():
        print(stage)
        for name, value in figures.items():
            print(f"  {name:<28}{value}")
    return 0


def gather_tools() -> Path:
    """A flat repository of the tools, and the content for OpenSCAP."""
    target = SCAN / "tools"
    content = SCAN / "content"
    if target.exists():
        return target
    bookworm = debs.Archive(SUITES["bookworm"], SCAN / "fetch-bookworm", None)
    trixie = debs.Archive(SUITES["trixie"], SCAN / "fetch-trixie", None)
    work = SCAN / "tools.partial"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    packages = ""
    for path in bookworm.fetch(["lynis", "openscap-scanner", "openssh-server", "iproute2", "procps", "kmod"]):
        shutil.copy(path, work)
        control = subprocess.run(["dpkg-deb", "--field", path], capture_output=True, text=True, check=True).stdout
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        packages += f"{control.rstrip()}\nFilename: ./{path.name}\nSize: {path.stat().st_size}\nSHA256: {digest}\n\n"
    (work / "Packages").write_text(packages)
    (guides,) = (path for path in trixie.fetch(["ssg-debian"]) if path.name.startswith("ssg-debian_"))
    subprocess.run(["dpkg-deb", "--extract", guides, content], check=True)
    shutil.copy(content / "usr/share/xml/scap/ssg/content/ssg-debian12-ds.xml", work)
    shutil.copy(WAIVERS, work)
    work.rename(target)
    return target


@contextlib.contextmanager
def machine(stage: str, tools: Path, *, container: bool) -> Iterator[Box]:
    """A machine in one of the two states, with the tools; a provisioned one was rebooted and somebody logged in."""
    shutil.copy(WAIVERS, tools)
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        box: Box
        if container:
            box = stack.enter_context(nspawn.boot(roots.debian("bookworm"), binds={TOOLS_ON_BOX: tools}))
            if stage == "after":
                provision_container(box)
        else:
            plain = stage == "before"
            start = qemu.debian_vm("bookworm") if plain else machines.provisioned_vm("bookworm").machine
            box = stack.enter_context(qemu.boot(start))
            if stage == "after":
                box.reboot()
            box.carry(tools, TOOLS_ON_BOX)
        # A box without sshd is no box, so the plain Debian gets one too before it is measured.
        box.run(INSTALL_TOOLS.format(more="openssh-server iproute2 procps kmod"), timeout_s=1800)
        print(f"ready after {time.monotonic() - began:.0f} s", file=sys.stderr)
        yield box


def provision_container(box: nspawn.Box) -> None:
    """Install the kit, log in once, and reboot."""
    kit = build_kit("bookworm")
    box.put(kit.path, KIT_ON_BOX)
    with tempfile.TemporaryDirectory() as name:
        keys = make_keys(Path(name))
        box.put(site_file(keys, Path(name) / "site.yaml"), "/root/site.yaml")
        install(box, kit, "--site /root/site.yaml")
        box.ssh("rescue", keys.rescue, "true")
    box.reboot()


def measure(box: Box, folder: Path, profiles: Sequence[str], *, waivers: bool) -> dict[str, object]:
    """Run the tools; gives the figures, and leaves what they said in a folder. Waivers are for a box alone."""
    folder.mkdir(parents=True, exist_ok=True)
    found = dict[str, object](lynis(box, "Lynis", "", folder))
    for profile in profiles:
        found[f"ANSSI-BP-028 {profile}"] = oscap(box, profile, folder)
    if waivers:
        found |= lynis(box, "Lynis with waivers", f"--profile {TOOLS_ON_BOX}/{WAIVERS.name}", folder)
    text = box.run("systemd-analyze security --no-pager", timeout_s=300).stdout
    (folder / "exposure.txt").write_text(text)
    (folder / "figures.json").write_text(json.dumps(found, indent=1))
    return found


def lynis(box: Box, name: str, options: str, folder: Path) -> dict[str, object]:
    """Run Lynis; gives its index, its number of tests, and what each test that lost points lost."""
    box.run(f"cd /root && nice lynis audit system --quick --no-colors {options} > /root/lynis.txt 2>&1", timeout_s=7200)
    stem = name.lower().replace(" ", "-")
    for path, suffix in (
        ("/root/lynis.txt", "txt"),
        ("/var/log/lynis.log", "log"),
        ("/var/log/lynis-report.dat", "dat"),
    ):
        (folder / f"{stem}.{suffix}").write_text(box.read(path))
    report = (folder / f"{stem}.dat").read_text()
    value = {
        key: int(number) for key, number in re.findall(r"^(hardening_index|lynis_tests_done)=(\d+)$", report, re.M)
    }
    print(name, value, file=sys.stderr)
    return {
        name: f"{value['hardening_index']} ({value['lynis_tests_done']} tests)",
        f"{name}, points lost": lost_points((folder / f"{stem}.log").read_text()),
    }


def lost_points(log: str) -> str:
    """Where Lynis gave fewer points than it could: test by test, the most first."""
    test, lost = "", dict[str, int]()
    for line in log.splitlines():
        if begun := re.search(r"Performing test ID (\S+) ", line):
            test = begun[1]
        if given := re.search(r"assigned partial number of hardening points \((\d+) of (\d+)\)", line):
            lost[test] = lost.get(test, 0) + int(given[2]) - int(given[1])
    return " ".join(f"{test}:{points}" for test, points in sorted(lost.items(), key=lambda item: -item[1]) if points)


def oscap(box: Box, profile: str, folder: Path) -> str:
    """Run one profile of OpenSCAP; gives how many rules passed and failed, and which failed."""
    command = (
        f"oscap xccdf eval --profile xccdf_org.ssgproject.content_profile_anssi_bp28_{profile} "
        f"{TOOLS_ON_BOX}/ssg-debian12-ds.xml"
    )
    done = box.run(command, check=False, timeout_s=7200)  # 2 says that some rule failed
    (folder / f"oscap-{profile}.txt").write_text(done.stdout + done.stderr)
    results = re.findall(r"^Rule\s+\S*_rule_(\S+)$.*?^Result\s+(\S+)$", done.stdout, re.MULTILINE | re.DOTALL)
    failed = [rule for rule, result in results if result == "fail"]
    count = {kind: sum(1 for _, result in results if result == kind) for kind in ("pass", "fail", "notapplicable")}
    assert results, done.stderr
    print(profile, count, file=sys.stderr)
    return f"{count} {' '.join(failed) if len(failed) < 40 else ''}"


if __name__ == "__main__":
    sys.exit(main())
