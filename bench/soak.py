"""Hours of mixed work on one daemon, and what memory it takes: `python -m bench.soak --minutes 120`.

Callers ask for JSON, stream and hang up in the middle, ask for long answers, and send what is refused. Every few
minutes the model is taken out of memory in the middle of that and loaded again by the next request; and every few
minutes after that the callers wait, the model goes, and the daemon's memory is read at rest. A line a minute: answers,
hang-ups, errors, resident memory, open files, threads.

At the end the memory at rest of the second half is set against that of the first: a leak is a slope. While callers ask,
memory follows the work: how many answers there are, how long they are, and whether an unloaded model still answers.

What this does NOT show: another model than the recipe's, or the audit record.
"""

import argparse
import collections
import contextlib
import itertools
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from appliance.client import Client
from appliance.errors import SkerryError
from appliance.forge import recipe as recipes
from bench import machine
from bench.forms import our_forms
from bench.pipe import ROOT
from bench.workload import MODELS, SCHEMA, daemon, documents, messages

RELOAD_S = 300.0
"""From one unload to the next; every second one is at rest."""
REST_S = 5.0
"""Of quiet before the memory is read."""
ENOUGH = 4
"""Times that the memory at rest must be read to tell anything."""
LEAK = 0.05
"""How much more memory the second half may take at rest than the first."""


class Soak:
    """The callers, and what they saw."""

    def __init__(self, socket: Path, model: str) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.ended = threading.Event()
        self.at_rest: list[int] = []
        self._going_on = threading.Event()
        self._going_on.set()
        self._socket, self._model = socket, model

    def callers(self) -> list[Callable[[Client, random.Random], None]]:
        """What is asked, a thread each."""
        return [self._json, self._json, self._hang_up, self._hang_up, self._long, self._refused]

    def run(self, ask: Callable[[Client, random.Random], None], seed: int) -> None:
        """Ask on and on; what a daemon refuses is counted by its kind."""
        rng = random.Random(f"soak {seed}")  # noqa: S311  varies the work
        with Client(self._socket) as client:
            while not self.ended.is_set():
                self._going_on.wait()
                try:
                    ask(client, rng)
                except SkerryError as e:
                    self.counts[e.kind] += 1
                    self.ended.wait(0.2)

    def reload(self, pid: int) -> None:
        """Take the model out of memory now and then; the next request loads it.

        Args:
            pid: of the daemon, whose memory is read at rest.
        """
        with Client(self._socket) as client:
            for number in itertools.count(1):
                if self.ended.wait(RELOAD_S):
                    return
                with contextlib.suppress(SkerryError):
                    if number % 2:
                        client.unload(self._model)
                    else:
                        self.at_rest.append(self._rest(client, pid))
                    self.counts["unloads"] += 1

    def _rest(self, client: Client, pid: int) -> int:
        """Have the callers wait until nothing is asked, unload the model, and read the memory; in bytes."""
        self._going_on.clear()
        try:
            while (status := client.status()).requests.running or status.requests.queued:
                time.sleep(0.5)
            client.unload(self._model)
            time.sleep(REST_S)
            return state(pid)[0]
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


def state(pid: int) -> tuple[int, int, int]:
    """Resident bytes, open files and threads of a process."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return int(status["VmRSS"].split()[0]) << 10, len(list(Path(f"/proc/{pid}/fd").iterdir())), int(status["Threads"])


def main() -> int:
    """Soak, print, judge."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=int, default=120, help="(120)")
    parser.add_argument("--threads", type=int, default=2, help="of the engine (2)")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench", help="where packages are kept")
    options = parser.parse_args()
    print(f"machine: {machine.line(machine.describe())}")
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    recipe = recipes.load(ROOT / "models" / f"{MODELS[0]}.yaml")
    form = our_forms(recipe, [], work, Path(sys.executable), accept_licence=False, progress=lambda *_: None)[0]
    with daemon(form, options.threads) as (process, socket):
        soak = Soak(socket, Path(form.arguments["path"]).name)
        busy = _soak(soak, process.pid, options.minutes)
    for what, sizes in (("busy", busy), ("at rest", soak.at_rest)):
        first, second = halves(sizes)
        print(f"resident, {what}, medians: first half {first / 1e6:.0f} MB, second half {second / 1e6:.0f} MB")
    return judge(soak.at_rest)


def halves(sizes: Sequence[int]) -> tuple[float, float]:
    """Medians of the first and of the second half; zeros where there is nothing."""
    half = len(sizes) // 2
    return median(sizes[:half] or [0]), median(sizes[half:] or [0])


def judge(at_rest: Sequence[int]) -> int:
    """Say whether memory at rest grows; the exit code."""
    if len(at_rest) < ENOUGH:
        print(f"not judged: read {len(at_rest)} times at rest, expected at least {ENOUGH}")
        return 0
    first, second = halves(at_rest)
    flat = second <= first * (1 + LEAK)
    print("flat" if flat else f"GROWS: more than {LEAK:.0%}")
    return 0 if flat else 1


def _soak(soak: Soak, pid: int, minutes: int) -> list[int]:
    threads = [
        threading.Thread(target=soak.run, args=(ask, number), daemon=True) for number, ask in enumerate(soak.callers())
    ]
    threads.append(threading.Thread(target=soak.reload, args=(pid,), daemon=True))
    for thread in threads:
        thread.start()
    resident = []
    for minute in range(1, minutes + 1):
        time.sleep(60)
        size, files, number = state(pid)
        resident.append(size)
        said = ", ".join(f"{count} {what}" for what, count in sorted(soak.counts.items()))
        rest = f", {soak.at_rest[-1] / 1e6:.0f} MB at rest" if soak.at_rest else ""
        print(f"{minute} min: {size / 1e6:.0f} MB{rest}, {files} files, {number} threads; {said}", flush=True)
    soak.ended.set()
    for thread in threads:
        thread.join(120)
    return resident


if __name__ == "__main__":
    sys.exit(main())
