"""The work that a box does, through the whole server, beside llama-server: documents in, JSON by a schema out.

    python -m bench.workload --llama-server PATH        # or all of the benchmark: python -m bench --llama-server PATH

Documents of some 300 to 1,500 tokens share a system prompt; answers are JSON of 40 to 150 tokens under one schema,
greedy. One caller asks for one document after the other, then eight callers ask at once. Skerry answers through its
daemon and its chat route (a base model: the text route), llama-server through its socket, from the very tokens that
Skerry makes of it, with its own prefix cache, its slots and its own grammar for the schema. The two take turns, round
by round, each round with documents that neither has seen; what is printed are medians over the rounds.

Beside the speed stands what came out: answers that are valid under the schema, and fields that are right.

The time to the first token is measured apart: a question about a document of some 1,500 tokens that nobody has read,
and another question about the same document.

What this does NOT show: models whose weights no recipe pins.
"""

import argparse
import contextlib
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import jsonschema

from appliance.client import Answer, Client
from appliance.config import Config, Limits, dump_yaml
from appliance.errors import SkerryError
from appliance.files import no_progress
from appliance.forge import recipe as recipes
from bench import machine, targets
from bench.forms import Form, our_forms, type_of
from bench.loops.llama_server import LlamaServer, weights
from bench.loops.prompts import PEOPLE
from bench.loops.sources import REPORTS
from bench.markdown import markdown_table
from bench.pipe import ROOT, Side, SideFailed, end_with_parent
from bench.report import ENOUGH_ROUNDS
from bench.targets import Verdict, times

MODELS = ("smollm2-135m-instruct", "gemma-3-270m")
CALLERS = (1, 8)
TARGETS = {1: 2.0, 8: 1.5}
"""Documents a minute, as many times the peer's, by callers."""
WARM_TARGET = 5.0
"""How many times as soon the first token comes where the text before it was read already."""
DOCUMENTS, ROUNDS = 17, 3
FIRST_ROUNDS = 5
MAX_TOKENS = 256
READY_S = 60.0

SYSTEM = (
    "You read reports of a plant and write down what happened. Answer with one JSON object and nothing else. Its "
    "fields are: pump, the tag of the pump, which is P- and four digits; part, the part that failed; changed_by, "
    "the name of the person who changed it; date, the day of the change as it stands in the report; order, the "
    "number of the work order, which is WO- and six digits; severity, one of low, medium and high; downtime_h, the "
    "hours that the pump stood still; summary, one short sentence about the event. Copy names, numbers and days as "
    "they are written. Do not write what the report does not say. Reports hold much that has nothing to do with the "
    "event: tests, visits, the weather. Leave that out. If two pumps are named, take the one whose part was "
    "changed. The unit of the hours is left out. Write no explanation before or after the object, and no other "
    "fields than these."
)
SCHEMA = {
    "type": "object",
    "properties": {
        "pump": {"type": "string", "pattern": "^P-[0-9]{4}$"},
        "part": {"type": "string", "minLength": 3, "maxLength": 24},
        "changed_by": {"type": "string", "minLength": 3, "maxLength": 32},
        "date": {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$"},
        "order": {"type": "string", "pattern": "^WO-[0-9]{6}$"},
        "severity": {"enum": ["low", "medium", "high"]},
        "downtime_h": {"type": "integer", "minimum": 0, "maximum": 99},
        "summary": {"type": "string", "minLength": 10, "maxLength": 160},
    },
    "required": ["pump", "part", "changed_by", "date", "order", "severity", "downtime_h", "summary"],
    "additionalProperties": False,
}
_NEWS = [s for report in REPORTS for s in re.split(r"(?<=[.!?])\s+", report) if 40 < len(s) < 300]
_PARTS = ("coupling", "bearing", "gasket", "filter", "impeller", "valve seat", "drive belt", "fuse", "relay", "sensor")


Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Task:
    """A document, and what is to be found in it."""

    text: str
    wanted: dict[str, Any]


@dataclass(frozen=True)
class Done:
    """An answer, and what it took."""

    text: str
    wall_s: float
    tokens: int


@dataclass(frozen=True)
class Server:
    """Something that answers: `prepare` takes what may be done before the clock runs; `first` times a first token."""

    ask: Callable[[Task], Done]
    first: Callable[[Messages], float]
    prepare: Callable[[Sequence[Task]], None] = lambda _: None


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        recipe: of the model.
        form: our package of it.
        program: the peer's; None: nobody is beside us.
        work: where the peer's files are kept.
        documents: a round.
        threads: of each engine.
        callers: how many ask at once, one measurement each.
    """

    recipe: recipes.Recipe
    form: Form
    program: Path | None
    work: Path
    documents: int
    rounds: int
    threads: int = 2
    callers: Sequence[int] = CALLERS


def documents(seed: int, count: int) -> list[Task]:
    """Write reports, always the same for the same seed: an event somewhere among other news."""
    rng = random.Random(f"workload {seed}")  # noqa: S311  varies texts, hides nothing
    return [_document(rng, rng.randrange(900, 5200)) for _ in range(count)]


def questions(seed: int) -> list[Messages]:
    """Two questions about one long document, which stands in a message of its own before them."""
    rng = random.Random(f"first token {seed}")  # noqa: S311  varies texts, hides nothing
    before = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": _document(rng, 5600).text},
        {"role": "assistant", "content": "I have read it."},
    ]
    asked = ("Which pump was stopped?", "Who changed the part, and when?")
    return [[*before, {"role": "user", "content": question}] for question in asked]


def _document(rng: random.Random, size: int) -> Task:
    wanted = {
        "pump": f"P-{rng.randrange(1000, 9999)}",
        "part": rng.choice(_PARTS),
        "changed_by": rng.choice(PEOPLE),
        "date": f"2026-{rng.randrange(1, 13):02d}-{rng.randrange(1, 29):02d}",
        "order": f"WO-{rng.randrange(100000, 999999)}",
        "severity": rng.choice(("low", "medium", "high")),
        "downtime_h": rng.randrange(1, 48),
    }
    event = (
        "On {date} pump {pump} was stopped because its {part} had failed. The {part} was changed by {changed_by} under "
        "work order {order}. The severity was {severity}, and the pump stood still for {downtime_h} hours."
    ).format(**wanted)
    said: list[str] = []
    while sum(map(len, said)) < size:
        said.append(rng.choice(_NEWS))
    said.insert(rng.randrange(len(said) + 1), event)
    return Task(f"Report {rng.randrange(100, 999)}\n\n" + " ".join(said), wanted)


def messages(task: Task) -> list[dict[str, str]]:
    """What is asked about a document."""
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": task.text}]


def as_text(said: Messages) -> str:
    """What a model is asked that was not taught to converse."""
    return "\n\n".join(one["content"] for one in said) + "\n\nJSON: "


# --- the two servers --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def daemon(
    form: Form, threads: int, program: Sequence[str | Path] = ()
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run the daemon; gives the process and its socket.

    Args:
        form: the package that it serves.
        threads: of its engine.
        program: what runs in the place of that form's `skerry`.

    Raises:
        SideFailed: it does not become ready.
    """
    path = Path(form.arguments["path"])
    with tempfile.TemporaryDirectory(prefix="skerry-bench-") as name:
        folder = Path(name)
        config = Config(
            models_dir=str(path.parent),
            keys_dir=form.arguments["keys"],
            socket=str(folder / "s.sock"),
            threads=threads,
            limits=Limits(running=max(CALLERS), per_caller=4 * max(CALLERS)),
        )
        (folder / "config.yaml").write_bytes(dump_yaml(config))
        command = [*(program or [form.python.with_name("skerry")]), "serve", "--config", folder / "config.yaml"]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [*map(str, command)], cwd=ROOT, stdout=log, stderr=log, preexec_fn=end_with_parent
            )
        try:
            _wait(process, folder)
            yield process, folder / "s.sock"
        finally:
            process.terminate()
            process.wait()


@contextlib.contextmanager
def skerry(plan: Plan) -> Iterator[Server]:
    """Run the daemon, the model in memory."""
    model = Path(plan.form.arguments["path"]).name
    with daemon(plan.form, plan.threads) as (_, socket), Client(socket) as client:
        client.load(model)

        def say(said: Messages, **options: Any) -> Answer:
            if plan.recipe.chat:
                return client.chat(said, model=model, temperature=0, **options)
            return client.complete(as_text(said), model=model, temperature=0, **options)

        def ask(task: Task) -> Done:
            started = time.monotonic()
            form = {"type": "json_schema", "json_schema": {"name": "event", "schema": SCHEMA}}
            answer = say(messages(task), max_tokens=MAX_TOKENS, response_format=form)
            return Done(answer.text, time.monotonic() - started, answer.usage.completion_tokens)

        def first(said: Messages) -> float:
            started = time.monotonic()
            say(said, max_tokens=1)
            return time.monotonic() - started

        yield Server(ask, first)


def _wait(process: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(SkerryError):
            Client(folder / "s.sock").health()
            return
        time.sleep(0.1)
    raise SideFailed(f"cannot start the daemon: {(folder / 'log').read_text(errors='replace')[-600:]}")


@contextlib.contextmanager
def llama_server(plan: Plan, program: Path, gguf: Path, slots: int) -> Iterator[Server]:
    """Run the peer; prompts are tokenized beforehand, by Skerry."""
    chat, server = plan.recipe.chat, LlamaServer(program, gguf, slots, plan.threads)
    with contextlib.closing(server) as peer, Side(plan.form.python, "bench.loops.worker") as side:
        side.ask("open", **plan.form.arguments)
        rendered: dict[str, list[int]] = {}

        def render(said: Messages) -> list[int]:
            asked = {"do": "render_chat", "messages": said} if chat else {"do": "render", "text": as_text(said)}
            return [int(token) for token in side.ask(asked.pop("do"), **asked)]

        def ask(task: Task) -> Done:
            settings = {"temperature": 0.0, "n_predict": MAX_TOKENS, "cache_prompt": True, "json_schema": SCHEMA}
            row = peer.complete(rendered[task.text], [], 0, settings)
            return Done(row["text"], row["wall_s"], len(row["tokens"]))

        def prepare(tasks: Sequence[Task]) -> None:
            rendered.update({task.text: render(messages(task)) for task in tasks})

        def first(said: Messages) -> float:
            tokens = render(said)
            settings = {"temperature": 0.0, "n_predict": 1, "cache_prompt": True}
            return float(peer.complete(tokens, [], 0, settings)["wall_s"])

        yield Server(ask, first, prepare)


# --- measuring --------------------------------------------------------------------------------------------------------


@dataclass
class Measured:
    """One server with one number of callers: a figure a round."""

    minutes: list[float]
    answers: list[tuple[Task, Done]]

    def row(self, count: int) -> list[str]:
        """Documents a minute, a document's wall time, what came out."""
        done = [d for _, d in self.answers]
        valid = [is_valid(d.text) for d in done]
        right = [fields_right(task, d.text) for task, d in self.answers]
        return [
            f"{count / median(self.minutes):.1f}",
            f"{median(d.wall_s for d in done):.2f}",
            f"{median(d.tokens for d in done):.0f}",
            f"{sum(valid)} of {len(valid)}",
            f"{sum(right)} of {7 * len(right)}",
        ]


def is_valid(text: str) -> bool:
    """Whether an answer is JSON under the schema."""
    try:
        jsonschema.validate(json.loads(text), SCHEMA)
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


def fields_right(task: Task, text: str) -> int:
    """How many of the seven fields that can be checked are right."""
    try:
        found = json.loads(text)
    except ValueError:
        return 0
    return sum(found.get(name) == value for name, value in task.wanted.items()) if isinstance(found, dict) else 0


def measure(server: Server, tasks: Sequence[Task], callers: int, into: Measured) -> None:
    """Have all documents answered by so many callers, and keep the time."""
    server.prepare(tasks)
    started = time.monotonic()
    with ThreadPoolExecutor(callers) as pool:
        done = list(pool.map(server.ask, tasks))
    into.minutes.append((time.monotonic() - started) / 60)
    into.answers += zip(tasks, done, strict=True)


@dataclass(frozen=True)
class Found:
    """What came out, ours first.

    Attributes:
        answered: by callers, by server.
        firsts: by server: the first token cold and warm, in seconds, of each round.
        documents: a round.
    """

    answered: dict[int, dict[str, Measured]]
    firsts: dict[str, list[tuple[float, float]]]
    documents: int

    def tables(self) -> str:
        """Speed with what came out beside it, and first tokens."""
        rows = [["server, callers", "documents a minute", "s a document", "tokens", "valid", "fields right"]]
        for callers, servers in self.answered.items():
            rows += [[f"{name}, {callers}", *one.row(self.documents)] for name, one in servers.items()]
        first = [["first token after some 1,500 tokens", "cold, s", "warm, s", "cold over warm"]]
        for name, pairs in self.firsts.items():
            cold, warm = (median(column) for column in zip(*pairs, strict=True))
            first.append([name, f"{cold:.2f}", f"{warm:.3f}", f"{_gain(pairs):.1f}"])
        return f"{markdown_table(rows)}\n\n{markdown_table(first)}"

    def verdicts(self) -> list[Verdict]:
        """Our documents a minute over the peer's, where there are enough; how much sooner a warm first token is."""
        found = []
        for callers, servers in self.answered.items():
            (_, ours), *others = servers.items()
            mine = self.documents / median(ours.minutes)
            for name, peer in others:
                theirs, wanted = self.documents / median(peer.minutes), TARGETS[callers]
                against = f"{name}: {mine:.1f} to {theirs:.1f} documents a minute"
                what = f"workload, {callers} caller{'s' if callers > 1 else ''}"
                judged = len(ours.minutes) >= ENOUGH_ROUNDS and self.documents >= callers
                enough = mine >= wanted * theirs if judged else None
                found.append(Verdict(what, f"at least {wanted}x", times(mine / theirs), against, enough))
        gain = _gain(next(iter(self.firsts.values())))
        what, wanted = "first token, warm", f"at least {WARM_TARGET:.0f}x"
        return [*found, Verdict(what, wanted, times(gain), "the same, cold", gain >= WARM_TARGET)]


def _gain(pairs: Sequence[tuple[float, float]]) -> float:
    return median(cold / warm for cold, warm in pairs)


def run(plan: Plan) -> Found:
    """Measure everything."""
    answered = {callers: _measure(callers, plan) for callers in plan.callers}
    return Found(answered, _measure_first(plan), plan.documents)


def _measure(callers: int, plan: Plan) -> dict[str, Measured]:
    with _servers(callers, plan) as servers:
        found = {name: Measured([], []) for name in servers}
        for turn in range(plan.rounds):
            tasks = documents(100 * callers + turn, plan.documents)
            order = list(servers) if turn % 2 == 0 else list(servers)[::-1]
            for name in order:
                measure(servers[name], tasks, callers, found[name])
    return found


def _measure_first(plan: Plan) -> dict[str, list[tuple[float, float]]]:
    firsts: dict[str, list[tuple[float, float]]] = {}
    with _servers(1, plan) as servers:
        for turn in range(FIRST_ROUNDS):
            for name, server in servers.items():
                cold, warm = (server.first(said) for said in questions(turn))
                firsts.setdefault(name, []).append((cold, warm))
    return firsts


@contextlib.contextmanager
def _servers(callers: int, plan: Plan) -> Iterator[dict[str, Server]]:
    """Run Skerry, and the peer if there is one, for so many callers."""
    with contextlib.ExitStack() as stack:
        servers = {f"Skerry {plan.form.name}": stack.enter_context(skerry(plan))}
        if plan.program is not None:
            gguf = weights(plan.recipe, plan.program, plan.work, no_progress)
            name = f"llama-server {type_of(gguf.name)}"
            servers[name] = stack.enter_context(llama_server(plan, plan.program, gguf, callers))
        yield servers


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.workload", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default=MODELS[0], help=f"recipe to measure ({MODELS[0]})")
    parser.add_argument("--llama-server", type=Path, metavar="PATH", help="a llama-server that you built, as the peer")
    parser.add_argument("--documents", type=int, default=DOCUMENTS, help=f"a round ({DOCUMENTS})")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"({ROUNDS})")
    parser.add_argument("--threads", type=int, default=2, help="of each engine (2)")
    parser.add_argument("--callers", type=int, nargs="+", choices=CALLERS, default=CALLERS, help="at once (both)")
    parser.add_argument("--scheme", default=None, help="of our package; none: the recipe's")
    parser.add_argument("--accept-licence", action="store_true", help="you accept the terms of Gemma's weights")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench", help="where packages are kept")
    options = parser.parse_args()
    print(f"machine: {machine.line(machine.describe())}")
    recipe = recipes.load(ROOT / "models" / f"{options.model}.yaml")
    work = options.work.absolute()
    schemes = [] if options.scheme is None else [options.scheme]
    try:
        form = our_forms(recipe, schemes, work, accept_licence=options.accept_licence)[-1]
        program = options.llama_server and options.llama_server.absolute()
        plan = Plan(recipe, form, program, work, options.documents, options.rounds, options.threads, options.callers)
        found = run(plan)
    except (SkerryError, SideFailed) as e:
        print(f"bench: {e}", file=sys.stderr)
        return 1
    print(f"{found.tables()}\n\n{targets.table(found.verdicts())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
