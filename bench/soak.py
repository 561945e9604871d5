"""Hours of mixed work on one daemon, and what memory it takes: `python -m bench.soak --minutes 120`.

Callers ask for JSON, stream and hang up in the middle, ask for long answers, send what is refused, and every few
minutes the model is taken out of memory and loaded again. A line a minute: answers, hang-ups, errors, resident memory,
open files, threads. At the end the memory of the second half is set against that of the first: a leak is a slope.

What this does NOT show: another model than the recipe's, or the audit record.
"""

import argparse
import collections
import contextlib
import random
import sys
import threading
import time
from collections.abc import Callable
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
LEAK = 0.05
"""How much more memory the second half may take than the first."""


class Soak:
    """The callers, and what they saw."""

    def __init__(self, socket: Path, model: str) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.ended = threading.Event()
        self._socket, self._model = socket, model

    def callers(self) -> list[Callable[[Client, random.Random], None]]:
        """What is asked, a thread each."""
        return [self._json, self._json, self._hang_up, self._hang_up, self._long, self._refused]

    def run(self, ask: Callable[[Client, random.Random], None], seed: int) -> None:
        """Ask on and on; what a daemon refuses is counted by its kind."""
        rng = random.Random(f"soak {seed}")  # noqa: S311  varies the work
        with Client(self._socket) as client:
            while not self.ended.is_set():
                try:
                    ask(client, rng)
                except SkerryError as e:
                    self.counts[e.kind] += 1
                    self.ended.wait(0.2)

    def reload(self) -> None:
        """Take the model out of memory now and then; the next request loads it."""
        with Client(self._socket) as client:
            while not self.ended.wait(RELOAD_S):
                with contextlib.suppress(SkerryError):
                    client.unload(self._model)
                    self.counts["unloads"] += 1

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
        resident = _soak(Soak(socket, Path(form.arguments["path"]).name), process.pid, options.minutes)
    half = len(resident) // 2
    first, second = median(resident[1:half] or resident), median(resident[half:])
    print(f"resident, medians: first half {first / 1e6:.0f} MB, second half {second / 1e6:.0f} MB")
    flat = second <= first * (1 + LEAK)
    print("flat" if flat else f"GROWS: more than {LEAK:.0%}")
    return 0 if flat else 1


def _soak(soak: Soak, pid: int, minutes: int) -> list[int]:
    threads = [
        threading.Thread(target=soak.run, args=(ask, number), daemon=True) for number, ask in enumerate(soak.callers())
    ]
    threads.append(threading.Thread(target=soak.reload, daemon=True))
    for thread in threads:
        thread.start()
    resident = []
    for minute in range(1, minutes + 1):
        time.sleep(60)
        size, files, number = state(pid)
        resident.append(size)
        said = ", ".join(f"{count} {what}" for what, count in sorted(soak.counts.items()))
        print(f"{minute} min: {size / 1e6:.0f} MB, {files} files, {number} threads; {said}", flush=True)
    soak.ended.set()
    for thread in threads:
        thread.join(120)
    return resident


if __name__ == "__main__":
    sys.exit(main())
