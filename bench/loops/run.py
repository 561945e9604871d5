"""Ask every prompt of every model, with the breaker off and on; two processes with one thread each.

An answer with the breaker on is the answer with it off up to the first break, and nothing else (a property test holds
that). So every prompt is asked with the breaker off; that answer is replayed through the breaker, and only where the
breaker would have acted the prompt is asked again with it on. `full` asks all again.

Rows go to <folder>/<model>-<temperature>-<off|on>.jsonl, one an answer, as soon as it is there; a run that is
interrupted goes on where it was. Rows of another breaker (by the hash of its source) are computed anew.
"""

import contextlib
import hashlib
import json
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import appliance.decoding
from appliance.files import Progress
from bench.forms import Form
from bench.loops.prompts import PLAIN_STOP, Prompt
from bench.pipe import Side

WORKERS = 2
MAX_TOKENS = 512
_POLICY = ("loops.py", "loop_shapes.py", "list_loops.py", "breaker.py", "sampling.py")

Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """A model at a temperature, and where its rows are kept.

    Attributes:
        chat: whether the model converses; a base model gets the plain form of a prompt.
    """

    model: str
    form: Form
    chat: bool
    temperature: float
    folder: Path

    def text(self, prompt: Prompt) -> str:
        """What this model is asked."""
        return prompt.text if self.chat else prompt.plain

    @property
    def stop(self) -> list[str]:
        """Strings that end an answer."""
        return [] if self.chat else list(PLAIN_STOP)

    def rows_path(self, breaker: str) -> Path:
        """The file of rows with the breaker `off` or `on`."""
        return self.folder / f"{self.model}-{self.temperature:g}-{breaker}.jsonl"


@dataclass
class Rows:
    """The rows of one file by prompt; `add` writes a row before it is counted."""

    path: Path
    policy: str | None = None
    rows: dict[str, Row] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            with contextlib.suppress(json.JSONDecodeError):  # the last line of a run that was killed
                row = json.loads(line)
                if self.policy is None or row.get("policy") == self.policy:
                    self.rows[row["prompt"]] = row

    def get(self, prompt: Prompt) -> Row | None:
        """Give the row of a prompt; None if there is none, or it is the answer to other words."""
        row = self.rows.get(prompt.id)
        return row if row is not None and row.get("asked") == prompt.seal else None

    def add(self, row: Row) -> None:
        """Append a row to the file."""
        if self.policy is not None:
            row = {**row, "policy": self.policy}
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            self.rows[row["prompt"]] = row


def policy_hash() -> str:
    """Tell breakers apart: the hash of what decides."""
    hasher = hashlib.sha256()
    folder = Path(next(iter(appliance.decoding.__path__)))
    for name in _POLICY:
        hasher.update((folder / name).read_bytes())
    return hasher.hexdigest()[:12]


def measure(setting: Setting, prompts: Sequence[Prompt], *, full: bool, say: Progress) -> tuple[list[Row], list[Row]]:
    """Get the rows of all prompts, with the breaker off and on, computing what is missing.

    Args:
        setting: the model and how it draws.
        prompts: to ask.
        full: ask with the breaker on even where it would not have acted.
        say: told about the progress.
    Returns:
        Rows in the prompts' order; with the breaker on, a row that was not computed is the one with it off.
    Raises:
        SideFailed: a worker died.
    """
    off, on = Rows(setting.rows_path("off")), Rows(setting.rows_path("on"), policy_hash())

    def ask(side: Side, prompt: Prompt) -> None:
        if off.get(prompt) is None:
            off.add(_answer(side, setting, prompt, "off"))
        before = off.rows[prompt.id]
        fired = side.ask("breaks", text=setting.text(prompt), tokens=before["tokens"])
        if full or fired is not None:
            on.add({**_answer(side, setting, prompt, "on"), "fired": fired, "computed": True})
        else:
            on.add({**before, "breaker": "on", "fired": None, "computed": False})

    missing = [p for p in prompts if off.get(p) is None or not _is_done(on.get(p), full=full)]
    spread(missing, ask, setting.form, say, f"{setting.model}, temperature {setting.temperature:g}")
    return [off.rows[p.id] for p in prompts], [on.rows[p.id] for p in prompts]


def _is_done(row: Row | None, *, full: bool) -> bool:
    return row is not None and (row["computed"] or not full)


def _answer(side: Side, setting: Setting, prompt: Prompt, breaker: str) -> Row:
    answer = side.ask(
        "answer",
        text=setting.text(prompt),
        stop=setting.stop,
        temperature=setting.temperature,
        seed=prompt.seed,
        breaker="break" if breaker == "on" else "off",
        max_tokens=MAX_TOKENS,
    )
    about = {"prompt": prompt.id, "family": prompt.family, "model": setting.model, "temperature": setting.temperature}
    return {**about, "asked": prompt.seal, "seed": prompt.seed, "breaker": breaker, **answer}


def spread(
    prompts: Sequence[Prompt], ask: Callable[[Side, Prompt], None], form: Form, say: Progress, what: str
) -> None:
    """Let WORKERS processes take prompts from one queue until it is empty.

    Raises:
        SideFailed: one of them died, or an answer is an error; the others finish what they are at.
    """
    if not prompts:
        return
    jobs: queue.SimpleQueue[Prompt] = queue.SimpleQueue()
    for prompt in prompts:
        jobs.put(prompt)
    failures: list[Exception] = []

    def work() -> None:
        try:
            with Side(form.python, "bench.loops.worker") as side:
                side.ask("open", **form.arguments)
                while not failures:
                    prompt = jobs.get_nowait()
                    say(what, 1 - (jobs.qsize() + 1) / len(prompts))
                    ask(side, prompt)
        except queue.Empty:
            pass
        except Exception as e:  # noqa: BLE001  a thread's failure is raised by the one that waits for it
            failures.append(e)

    threads = [threading.Thread(target=work) for _ in range(min(WORKERS, len(prompts)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
