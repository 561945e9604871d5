"""Facts about this machine, read from /proc and the scheduler.

All of them are best effort: a value that cannot be read is None or empty, never an exception.
"""

import contextlib
import ctypes
import os
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")


def usable_cpus() -> int:
    """Count the cores that this process may really use: those of its affinity, cut by the cgroup's quota.

    Two threads of one core share what computes: a matrix kernel on both is not faster than on one.
    """
    cores = {_siblings(cpu) for cpu in os.sched_getaffinity(0)}
    quota = _cgroup_quota()
    return max(1, min(len(cores), int(quota + 0.5))) if quota else len(cores)


def _siblings(cpu: int) -> str:
    """Name the core that a processor is a thread of; where that cannot be read, each is a core of its own."""
    try:
        return (_CPUS / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return f"{cpu}"


def _cgroup_quota() -> float | None:
    """Read cpu.max of this process's cgroup v2, in processors."""
    try:
        group = Path("/proc/self/cgroup").read_text().strip().splitlines()[-1].split(":", 2)[2]
        quota, period = Path("/sys/fs/cgroup", group.lstrip("/"), "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, IndexError):
        return None


def return_memory() -> None:
    """Have the C library give what was freed back to the kernel; it keeps hundreds of megabytes otherwise.

    Source: malloc_trim(3), of glibc; elsewhere nothing is done.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def resident_bytes(pid: int | str = "self") -> int | None:
    """Resident memory of a process in bytes (VmRSS)."""
    return _status_kilobytes(f"/proc/{pid}/status", "VmRSS")


def available_memory_bytes() -> int | None:
    """Memory that can be had without swapping, in bytes (MemAvailable, cut by the cgroup's limit)."""
    available = _status_kilobytes("/proc/meminfo", "MemAvailable")
    try:
        group = Path("/proc/self/cgroup").read_text().strip().splitlines()[-1].split(":", 2)[2]
        base = Path("/sys/fs/cgroup", group.lstrip("/"))
        left = int((base / "memory.max").read_text()) - int((base / "memory.current").read_text())
    except (OSError, ValueError, IndexError):
        return available
    return left if available is None else min(available, left)


def _status_kilobytes(path: str, field: str) -> int | None:
    try:
        for line in Path(path).read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def cpu_flags() -> frozenset[str]:
    """Read the first processor's feature flags, empty where /proc/cpuinfo is hidden."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return frozenset(line.split(":", 1)[1].split())
    except OSError:
        pass
    return frozenset()


def cpu_model() -> str | None:
    """Name the processor, as the kernel does."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return None


def unit_of(pid: int) -> str | None:
    """Name the systemd unit that a process runs in, if any, from its cgroup."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        for part in reversed(line.split(":", 2)[-1].split("/")):
            if part.endswith((".service", ".scope")):
                return part
    return None
