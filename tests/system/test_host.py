"""How many cores there are for the engine, and memory that goes back."""

import subprocess
import sys
from pathlib import Path

import pytest

from appliance.system import host

# name | siblings of each processor that the process may use | quota, in processors | cores
MACHINES = [
    ("two cores", {0: "0", 1: "1"}, None, 2),
    ("two cores of two threads", {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}, None, 2),
    ("one thread of each", {0: "0,2", 1: "1,3"}, None, 2),
    ("both threads of one", {0: "0,2", 2: "0,2"}, None, 1),
    ("a quota of one and a half", {0: "0", 1: "1", 2: "2", 3: "3"}, 1.5, 2),
    ("a quota of a tenth", {0: "0", 1: "1"}, 0.1, 1),
    ("nothing can be read", {0: None, 1: None, 2: None}, None, 3),
]


@pytest.mark.parametrize(("siblings", "quota", "cores"), [m[1:] for m in MACHINES], ids=[m[0] for m in MACHINES])
def test_threads_of_one_core_count_once(
    siblings: dict[int, str | None], quota: float | None, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a quota of the cgroup cuts what the affinity allows."""
    for cpu, line in siblings.items():
        if line is not None:
            (tmp_path / f"cpu{cpu}/topology").mkdir(parents=True)
            (tmp_path / f"cpu{cpu}/topology/thread_siblings_list").write_text(line + "\n")
    monkeypatch.setattr(host, "_CPUS", tmp_path)
    monkeypatch.setattr(host, "_cgroup_quota", lambda: quota)
    monkeypatch.setattr(host.os, "sched_getaffinity", lambda pid: set(siblings))
    assert host.usable_cpus() == cores


def test_freed_memory_goes_back_to_the_kernel() -> None:
    """The C library keeps what lies below something that is still in use, until it is asked."""
    code = """
from appliance.system.host import resident_bytes, return_memory
kept = [bytes(2000) for _ in range(50_000)]
last = bytes(3000)
del kept
before = resident_bytes()
return_memory()
print(before - resident_bytes())
"""
    given = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert given > 50 << 20
