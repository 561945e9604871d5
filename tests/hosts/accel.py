"""Whether QEMU has hardware virtualization here: found out by booting, as /dev/kvm promises more than it may keep.

On some machines that are virtual themselves a guest is created without an error and never leaves its first steps.
SKERRY_TEST_ACCEL=tcg or kvm decides without a trial.
"""

import functools
import os
from pathlib import Path

from tests.hosts import process, roots

TRIAL_LIMIT_S = 12


@functools.cache
def name() -> str:
    """Return `kvm` if a kernel boots with it, else `tcg`: emulation."""
    if chosen := os.environ.get("SKERRY_TEST_ACCEL"):
        return chosen
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    kernel = next(iter(sorted(roots.CACHE.glob("disk-*/root/vmlinuz"))), None)
    if kernel is None:
        return "tcg"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    known = roots.CACHE / f"accel-{boot}"
    if not known.exists():
        known.write_text("kvm" if _boots(kernel) else "tcg")
    return known.read_text()


def option() -> str:
    """Return QEMU's option for it; a large translation buffer spares an emulated guest from being translated anew."""
    return "kvm" if name() == "kvm" else "tcg,thread=multi,tb-size=512"


def _boots(kernel: Path) -> bool:
    """Boot a kernel that finds no root: if it works it says who it is, panics and so ends QEMU."""
    argv = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-accel", "kvm", "-cpu", "host", "-m", "512"]
    argv += ["-no-reboot", "-serial", "stdio", "-kernel", str(kernel), "-append", "console=ttyS0 panic=-1"]
    try:
        return "Linux version" in process.run(argv, timeout_s=TRIAL_LIMIT_S).stdout
    except process.HostError:
        return False
