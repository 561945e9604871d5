"""Hours of mixed work on one daemon, and what memory it takes: `python -m bench.soak --minutes 120`.

Callers ask for JSON, stream and hang up in the middle, ask for long answers, and send what is refused. Every few
minutes the model is taken out of memory in the middle of that and loaded again by the next request; and every few
minutes after that the callers leave, the model goes, and the daemon is read at rest: what it has allocated, its
resident memory, its files and threads. What Python makes once and keeps is made before that. A line a minute: answers,
hang-ups, errors, resident memory, open files, threads.

At the end the second half of what was read at rest is set against the first: a leak is a slope. What is allocated
shows it best. Resident memory also holds what was freed but lies between what was not, which grows at first and then
levels off. While callers ask, memory follows the work, and tells nothing.

What this does NOT show: another model than the recipe's, or the audit record.
"""

import argparse
import collections
import contextlib
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from appliance.client import Client
from appliance.errors import SkerryError
from appliance.forge import recipe as recipes
from appliance.system.host import resident_bytes
from bench import machine
from bench.forms import our_forms
from bench.pipe import ROOT, SideFailed
from bench.workload import MODELS, SCHEMA, daemon, documents, messages

RELOAD_S = 300.0
"""From one unload to the next; every second one is at rest."""
REST_S = 5.0
"""Of quiet before the memory is read."""
ENOUGH = 4
"""Times that the memory at rest must be read to tell anything."""
LEAK = {"malloc_bytes": 0.02, "python_blocks": 0.02, "resident_bytes": 0.1, "files": 0.1, "threads": 0.1}
"""How much more the second half may have at rest than the first, as a share."""


class Soak:
    """The callers, and what they saw.

    Args:
        socket: the daemon's.
        model: its name.
        read: what the daemon has, at rest; keys as in `LEAK`.
    """

    def __init__(self, socket: Path, model: str, read: Callable[[], Mapping[str, int]]) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.ended = threading.Event()
        self.at_rest: list[Mapping[str, int]] = []
        self._going_on = threading.Event()
        self._going_on.set()
        self._socket, self._model, self._read = socket, model, read

    def callers(self) -> list[Callable[[Client, random.Random], None]]:
        """What is asked, a thread each."""
        return [self._json, self._json, self._hang_up, self._hang_up, self._long, self._refused]

    def run(self, ask: Callable[[Client, random.Random], None], seed: int) -> None:
        """Ask on and on, and leave while the daemon is read; what it refuses is counted by its kind."""
        rng = random.Random(f"soak {seed}")  # noqa: S311  varies the work
        while not self.ended.is_set():
            self._going_on.wait()
            with Client(self._socket) as client:
                while self._going_on.is_set() and not self.ended.is_set():
                    try:
                        ask(client, rng)
                    except SkerryError as e:
                        self.counts[e.kind] += 1
                        self.ended.wait(0.2)

    def reload(self) -> None:
        """Take the model out of memory now and then; the next request loads it."""
        with Client(self._socket) as client:
            for number in itertools.count(1):
                if self.ended.wait(RELOAD_S):
                    return
                with contextlib.suppress(SkerryError):
                    if number % 2:
                        client.unload(self._model)
                    else:
                        self.at_rest.append(self.rest(client))
                    self.counts["unloads"] += 1

    def rest(self, client: Client) -> Mapping[str, int]:
        """Have the callers leave until nothing is asked, unload the model, and read what is left."""
        self._going_on.clear()
        try:
            while (status := client.status()).requests.running or status.requests.queued:
                time.sleep(0.5)
            client.unload(self._model)
            time.sleep(REST_S)
            return self._read()
        finally:
            self._going_on.set()

    def _json(self, client: Client, rng: random.Random) -> None:
        (task,) = documents(rng.randrange(1 << 30), 1)
        form = {"type": "json_schema", "json_schema": {"name": "event", "schema": SCHEMA}}
        client.chat(messages(task), self._model, temperature=0, max_tokens=128, response_format=form)
        self.counts["answers"] += 1

    def _hang_up(self, client: Client, rng: random.Random) -> None:
        (task,) = documents(rng.randrange(1 << 30), 1)
        with client.stream_chat(messages(task), self._model, max_tokens=200) as stream:
            for number, _ in enumerate(stream):
                if number >= rng.randrange(1, 40):
                    break
        self.counts["hang-ups"] += 1

    def _long(self, client: Client, rng: random.Random) -> None:
        client.complete(f"List {rng.randrange(20, 90)} things in a workshop:\n1.", self._model, max_tokens=400)
        self.counts["answers"] += 1

    def _refused(self, client: Client, rng: random.Random) -> None:
        self.ended.wait(rng.random() * 4)
        client.complete("word " * rng.randrange(9_000, 20_000), self._model, max_tokens=1)


def state(pid: int) -> dict[str, int]:
    """Resident bytes, open files and threads of a process."""
    process = Path(f"/proc/{pid}")
    return {
        "resident_bytes": resident_bytes(pid) or 0,
        "files": len(list((process / "fd").iterdir())),
        "threads": len(list((process / "task").iterdir())),
    }


def counted(pid: int, file: Path) -> dict[str, int]:
    """What a process of `bench.counted` has: allocated, resident, open.

    Raises:
        SideFailed: it does not write `file` within ten seconds.
    """
    file.unlink(missing_ok=True)
    os.kill(pid, signal.SIGUSR1)
    for _ in range(100):
        time.sleep(0.1)
        if file.exists():
            return {**json.loads(file.read_text()), **state(pid)}
    raise SideFailed(f"the daemon (process {pid}) did not count what it has allocated")


def main() -> int:
    """Soak, print, judge."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=int, default=120, help="(120)")
    parser.add_argument("--threads", type=int, default=2, help="of the engine (2)")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench", help="where packages are kept")
    options = parser.parse_args()
    print(f"machine: {machine.line(machine.describe())}")
    recipe = recipes.load(ROOT / "models" / f"{MODELS[0]}.yaml")
    form = our_forms(recipe, [], options.work)[0]
    with tempfile.TemporaryDirectory(prefix="skerry-soak-") as folder:
        file = Path(folder) / "allocated.json"
        model = Path(form.arguments["path"]).name
        with daemon(form, options.threads, (form.python, "-m", "bench.counted", file)) as (process, socket):
            fill_pool(socket, model)
            soak = Soak(socket, model, lambda: counted(process.pid, file))
            _soak(soak, process.pid, options.minutes)
    return judge(soak.at_rest)


def fill_pool(socket: Path, model: str) -> None:
    """Have the daemon make all threads that asyncio's pool ever has: it makes one when all others are busy."""

    def verify(_: int) -> None:
        with Client(socket) as client:
            client.verify(model)

    threads = min(32, (os.cpu_count() or 1) + 4)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(verify, range(threads)))


def halves(sizes: Sequence[int]) -> tuple[float, float]:
    """Medians of the first and of the second half."""
    half = len(sizes) // 2
    return median(sizes[:half]), median(sizes[half:])


def judge(at_rest: Sequence[Mapping[str, int]]) -> int:
    """Say what grows at rest; the exit code."""
    if len(at_rest) < ENOUGH:
        print(f"not judged: read {len(at_rest)} times at rest, expected at least {ENOUGH}")
        return 0
    grown = False
    for what, allowed in LEAK.items():
        readings = [reading[what] for reading in at_rest]
        first, second = halves(readings)
        flat = second <= first * (1 + allowed)
        grown |= not flat
        print(
            f"{what} at rest: first half {first:,.0f}, second half {second:,.0f}, {second / first - 1:+.1%}: "
            f"{'flat' if flat else f'GROWS, by more than {allowed:.0%}'}; read: {' '.join(map(str, readings))}"
        )
    return int(grown)


def _soak(soak: Soak, pid: int, minutes: int) -> None:
    threads = [
        threading.Thread(target=soak.run, args=(ask, number), daemon=True) for number, ask in enumerate(soak.callers())
    ]
    threads.append(threading.Thread(target=soak.reload, daemon=True))
    for thread in threads:
        thread.start()
    for minute in range(1, minutes + 1):
        time.sleep(60)
        now = state(pid)
        said = ", ".join(f"{count} {what}" for what, count in sorted(soak.counts.items()))
        has = f"{now['resident_bytes'] / 1e6:.0f} MB, {now['files']} files, {now['threads']} threads"
        print(f"{minute} min: {has}; {said}", flush=True)
    soak.ended.set()
    for thread in threads:
        thread.join(120)


if __name__ == "__main__":
    sys.exit(main())
