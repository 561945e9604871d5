"""What kind of machine the figures are from: enough to judge them, nothing that names it."""

import os
import platform
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from appliance.system.host import cpu_flags, cpu_model, usable_cpus

_TELLING = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8", "asimddp", "i8mm", "sve")
"""Instructions that the matrix kernels of either engine choose by."""


_READ_BYTES, _READ_PASSES = 128 << 20, 10


def describe() -> dict[str, Any]:
    """Read processor, memory and kernel."""
    flags = cpu_flags()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": cpu_model() or platform.machine(),
        "instructions": [f for f in _TELLING if f in flags],
        "cores": usable_cpus(),
        "memory_gib": round(pages / 2**30, 1),
        # Two numbers only: the rest of a release name is often the name of a site or of a provider.
        "kernel": "Linux " + ".".join(platform.release().split(".")[:2]),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
        "governor": _governor(),
    }


def line(facts: dict[str, Any]) -> str:
    """Set the facts as one line."""
    instructions = " ".join(facts["instructions"]) or "no vector instructions known"
    governor = f", governor {facts['governor']}" if facts["governor"] else ""
    return (
        f"{facts['processor']} ({instructions}), {facts['cores']} cores, {facts['memory_gib']} GiB, {facts['kernel']}, "
        f"Python {facts['python']}{governor}; load before: {facts['load_before']}"
    )


def read_bandwidth(threads: int) -> float:
    """Measure how many bytes a second so many threads read from memory together: the best of some passes.

    Each reads 128 MiB of its own, far more than the caches hold, by the fastest of numpy's loops.
    """
    arrays = [np.full(_READ_BYTES // 4, i, np.float32) for i in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        best = 0.0
        for _ in range(_READ_PASSES):
            started = time.perf_counter()
            list(pool.map(np.max, arrays))
            best = max(best, threads * _READ_BYTES / (time.perf_counter() - started))
    return best


def _governor() -> str | None:
    try:
        return Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip()
    except OSError:
        return None
