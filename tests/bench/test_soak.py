"""What a soak makes of what it saw of the daemon."""

import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.client import Client
from bench import soak
from bench.pipe import ROOT, SideFailed
from bench.soak import LEAK, Soak, counted, fill_pool, halves, judge, state
from tests.fakes import built_models
from tests.fakes.box import running

COUNTED = """
import sys
import threading
import time
from pathlib import Path
from bench.counted import count_into

count_into(Path(sys.argv[1]))
kept = []


def keep():
    print("ready", flush=True)
    for line in sys.stdin:
        if line == "names\\n":
            for number in range(100_000):
                sys.intern(f"of {number}")
        else:
            kept.append([object() for _ in range(50_000)] if line == "objects\\n" else bytes(range(256)) * 40_000)
        print("kept", flush=True)


# Not where signals are handled: one that comes just before a read begins would wait for the read's end.
threading.Thread(target=keep, daemon=True).start()
while True:
    time.sleep(0.05)
"""


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """One that counts into `allocated.json`, and keeps objects or bytes when told to."""
    command = [sys.executable, "-c", COUNTED, str(tmp_path / "allocated.json")]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


@pytest.mark.parametrize("what", LEAK)
@pytest.mark.parametrize(
    ("shares", "code"),
    [
        ([100, 95, 105, 100, 95, 105], 0),
        ([100, 100, 100, 100, 115, 114], 1),
        ([400, 300, 100, 100, 100, 100], 0),
        ([200, 500, 900], 0),
        ([], 0),
    ],
)
def test_what_grows_at_rest_is_named(
    what: str, shares: list[int], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second half against the first, each figure by itself; too few tell nothing."""
    flat = dict.fromkeys(LEAK, 100)
    assert judge([{**flat, what: share} for share in shares]) == code
    said = capsys.readouterr().out.splitlines()
    if len(shares) < 4:
        assert said == [f"not judged: read {len(shares)} times at rest, expected at least 4"]
    else:
        assert [line.split()[0] for line in said if "GROWS" in line] == [what] * code


@pytest.mark.parametrize(
    ("what", "flat"),
    [("malloc_bytes", 102), ("python_blocks", 102), ("resident_bytes", 110), ("files", 110), ("threads", 110)],
)
def test_a_slope_is_seen_as_soon_as_it_passes_the_bound(what: str, flat: int) -> None:
    """2 % of what is allocated, 10 % of what also depends on chance."""
    others = dict.fromkeys(LEAK, 100)
    assert [judge([others] * 2 + [{**others, what: second}] * 2) for second in (flat, flat + 1)] == [0, 1]


def test_halves() -> None:
    """Medians, so that one odd figure is none."""
    assert halves([1, 2, 100, 5, 6, 7]) == (2, 6)


def test_state_of_a_process_is_read() -> None:
    """Of this one: some memory, its standard streams, a thread."""
    now = state(os.getpid())
    assert now["resident_bytes"] > 1 << 20
    assert now["files"] >= 3
    assert now["threads"] >= 1


def test_what_is_allocated_is_counted(process: subprocess.Popen[str], tmp_path: Path) -> None:
    """Objects that stay are Python's blocks, large bytes are malloc's; each is seen, and nothing else."""

    def keep(what: str) -> dict[str, int]:
        assert process.stdin
        assert process.stdout
        process.stdin.write(f"{what}\n")
        process.stdin.flush()
        assert process.stdout.readline() == "kept\n"
        return counted(process.pid, tmp_path / "allocated.json")

    before = counted(process.pid, tmp_path / "allocated.json")
    objects = keep("objects")
    assert 50_000 <= objects["python_blocks"] - before["python_blocks"] < 51_000
    large = keep("bytes")
    buffers = 100_000  # of files and pipes, which may have been there once and not the other time
    assert abs(large["malloc_bytes"] - objects["malloc_bytes"] - 10_240_000) < buffers
    assert large["python_blocks"] - objects["python_blocks"] < 1_000
    assert large.keys() == LEAK.keys()
    named = keep("names")  # which come and go: their table has grown before
    assert abs(named["malloc_bytes"] - large["malloc_bytes"]) < buffers


def test_the_pool_of_a_daemon_is_filled(tmp_path: Path) -> None:
    """With threads that were not there before, and no more than asyncio ever makes."""
    built_models.tiny(tmp_path / "b", "llama")
    with running(tmp_path / "b") as box:
        before = state(box.process.pid)["threads"]
        fill_pool(box.socket, "tiny-llama-q8")
        assert before < state(box.process.pid)["threads"] <= before + (os.cpu_count() or 1) + 4


def test_a_process_that_does_not_count_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The signal ends it; what was written before is not taken for its answer."""
    file = tmp_path / "allocated.json"
    file.write_text("{}")
    monkeypatch.setattr("bench.soak.time.sleep", lambda _: None)
    with subprocess.Popen(["sleep", "99"]) as process, pytest.raises(SideFailed, match="did not count"):
        counted(process.pid, file)


def test_callers_leave_while_the_daemon_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the open files at rest would be theirs, some more or less; and then they come back."""
    monkeypatch.setattr(soak, "REST_S", 0.5)
    built_models.tiny(tmp_path / "b", "llama")
    with running(tmp_path / "b") as box, Client(box.socket) as client:
        soaked = Soak(box.socket, "tiny-llama-q8", lambda: state(box.process.pid))
        asked = [threading.Event() for _ in range(4)]

        def ask(client: Client, rng: random.Random) -> None:
            client.status()
            asked[int(rng.random() * len(asked))].set()

        before = soaked.rest(client)["files"]
        callers = [threading.Thread(target=soaked.run, args=(ask, number)) for number in range(3)]
        for caller in callers:
            caller.start()
        try:
            for _ in range(2):
                assert all(event.wait(10) for event in asked)
                assert soaked.rest(client)["files"] == before
                for event in asked:
                    event.clear()
            assert asked[0].wait(10)
        finally:
            soaked.ended.set()
            for caller in callers:
                caller.join(10)
