"""Measure Skerry's engine beside llama.cpp: `python -m bench` from the root of the repository.

Each engine runs in a process of its own; the forms take turns, round by round, so that a machine that grows hot or busy
does so for all of them; medians are reported. What is measured is the engine: no HTTP, no sampling, no tokenizer.

With `--llama-server PATH` the work of a box follows, through whole servers (see `bench.workload`), and the table of all
targets at the end is complete.

What this does NOT show: contexts beyond 2,048 tokens, or machines of another kind than the one it ran on.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from appliance.errors import SkerryError
from appliance.files import write_durably
from appliance.forge import recipe as recipes
from bench import machine, report, targets, workload
from bench.figures import MEASURES, OTHER_TARGETS, SPEED_TARGETS, Figures, rotated, summarize_speed
from bench.forms import Form, our_forms, peer_forms
from bench.pipe import ROOT, Side, SideFailed

CONTEXTS = (128, 1024)
PREFILLS = (512, 2048)
SETTLE_S = 0.15
"""Both engines' threads spin a moment after a call; the next one must not pay for that."""


@dataclass(frozen=True)
class Plan:
    """How long to measure."""

    rounds: int
    decode: int
    text_tokens: int | None
    threads: tuple[int, ...]

    @property
    def capacity(self) -> int:
        """Tokens of cache: the longest context and what is decoded on it, or the longest prefill; whole 128s."""
        return -(-max(CONTEXTS[-1] + self.decode, *PREFILLS) // 128) * 128


@dataclass(frozen=True)
class Text:
    """The evaluation text in tokens of one model."""

    ids: list[int]
    bos: int | None

    @property
    def all(self) -> list[int]:
        """With the first token, if the model wants one."""
        return self.ids if self.bos is None else [self.bos, *self.ids]


def main() -> int:
    """Measure, print, write."""
    options = _parse()
    try:
        _measure(options, _find_peer(options.peer_python))
    except (SkerryError, SideFailed) as e:
        print(f"bench: {e}", file=sys.stderr)
        if isinstance(e, SkerryError) and e.hint:
            print(f"hint: {e.hint}", file=sys.stderr)
        return 1
    if options.out:
        print(f"written: {options.out}")
    return 0


def _measure(options: argparse.Namespace, peer: Path | None) -> None:
    plan = Plan(options.rounds, 64, None, tuple(options.threads))
    if options.quick:
        plan = Plan(1, 24, 512, (max(options.threads),))
    facts = machine.describe()
    print(f"machine: {machine.line(facts)}")
    versions = _versions(peer)
    print("software: " + ", ".join(f"{k} {v}" for k, v in versions.items()))
    plural = "s" if plan.rounds > 1 else ""
    print(f"each figure of the engines: median of {plan.rounds} round{plural}, all forms in turn\n")
    found: dict[str, Any] = {"machine": facts, "software": versions, "models": {}}
    for name in options.models:
        found["models"][name] = _measure_model(ROOT / "models" / f"{name}.yaml", options, plan, peer)
        if options.out:
            write_durably(options.out, json.dumps(found, indent=1).encode() + b"\n")
    print(report.NO_PEER if peer is None else report.LEGEND)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="one short round, one thread count: does it run at all?")
    parser.add_argument("--rounds", type=int, default=5, help="rounds to take medians of (5)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="thread counts (1 2)")
    parser.add_argument(
        "--models", nargs="+", choices=workload.MODELS, default=list(workload.MODELS), help="recipes to measure (all)"
    )
    parser.add_argument("--schemes", nargs="*", default=[], help="our quantizations beside the default, e.g. q4 f32")
    parser.add_argument("--peer-python", type=Path, help="interpreter that has llama-cpp-python")
    parser.add_argument(
        "--llama-server", type=Path, metavar="PATH", help="a llama-server that you built: the work of a box"
    )
    parser.add_argument(
        "--documents", type=int, default=workload.DOCUMENTS, help=f"of that work a round, of {workload.ROUNDS}"
    )
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench", help="where packages and files are kept")
    parser.add_argument("--accept-licence", action="store_true", help="you accept the terms of Gemma's weights")
    parser.add_argument("--out", type=Path, help="write all figures to this file as JSON")
    return parser.parse_args()


def _find_peer(named: Path | None) -> Path | None:
    """Take the interpreter that was named, or the one that `make bench-peer` built; None if there is none."""
    given = named or (Path(os.environ["SKERRY_PEER_PYTHON"]) if os.environ.get("SKERRY_PEER_PYTHON") else None)
    if given is not None:
        # Not resolved: a virtual environment's python is a link, and its place is what makes it that environment's.
        return given.absolute()
    built = ROOT / ".venv-peer" / "bin" / "python"
    return built if built.exists() else None


def _versions(peer: Path | None) -> dict[str, str]:
    versions: dict[str, str] = {}
    with Side(Path(sys.executable), "bench.skerry_side") as side:
        versions |= side.ask("versions")
    if peer is not None:
        with Side(peer, "bench.llama_side") as side:
            versions |= side.ask("versions")  # the first question: an interpreter without the package fails here
    return versions


def _measure_model(path: Path, options: argparse.Namespace, plan: Plan, peer: Path | None) -> dict[str, Any]:
    recipe = recipes.load(path)
    if recipe.licence.must_accept and not options.accept_licence:
        why = f"not run (its weights have terms of their own, {recipe.licence.terms}; pass --accept-licence)"
        print(f"{recipe.name}: {why}\n")
        return {"not_run": why}
    work = options.work.absolute()
    ours = our_forms(recipe, options.schemes, work, accept_licence=options.accept_licence, progress=_say)
    theirs = [] if peer is None else peer_forms(recipe, work, peer, _say)
    evaluation = recipe.evaluation_path.read_bytes()
    text, same_ids = _tokenize(evaluation.decode(), ours[0], theirs)
    result: dict[str, Any] = {
        "text_sha256": hashlib.sha256(evaluation).hexdigest(),
        "text_tokens": len(text.ids),
        "same_token_ids": same_ids,
        "threads": {},
    }
    losses = {f: _loss(f, text, plan) for f in [*ours, *theirs]}
    for threads in plan.threads:
        raw = _measure_threads([*ours, *theirs], text, threads, plan)
        forms = [_figures(f, losses[f], raw[f], plan) for f in raw]
        scored = losses[ours[0]]["scored"]
        title = f"{recipe.name}, {threads} thread{'s' if threads > 1 else ''}, perplexity over {scored} tokens"
        print(report.table(title, forms) + "\n")
        bandwidth = machine.read_bandwidth(threads)
        print(report.bounds(forms, bandwidth) + "\n")
        for line in report.doubts(forms, plan.rounds):
            print(f"- {line}\n")
        verdicts = report.verdicts(forms, plan.rounds, {**SPEED_TARGETS, **OTHER_TARGETS.get(recipe.name, {})})
        if threads == max(plan.threads) and options.llama_server is not None:
            _say("the work of a box", 0.0)
            program = options.llama_server.absolute()
            documents, rounds = (2, 1) if options.quick else (options.documents, workload.ROUNDS)
            found = workload.run(workload.Plan(recipe, ours[0], program, work, documents, rounds, threads))
            print(found.tables() + "\n")
            verdicts += found.verdicts()
        print(f"{recipe.name}, {threads} thread{'s' if threads > 1 else ''}\n\n{targets.table(verdicts)}\n", flush=True)
        rounds = {f.label: raw[f] for f in raw}
        result["threads"][str(threads)] = {
            **report.plain(forms),
            "rounds": rounds,
            "bytes_per_s": bandwidth,
            "targets": [dataclasses.asdict(v) for v in verdicts],
        }
    return result


def _tokenize(evaluation: str, ours: Form, theirs: list[Form]) -> tuple[Text, bool | None]:
    """Take our token ids, for both engines, and see whether the peer would have made the same."""
    with Side(ours.python, ours.module) as side:
        answer = side.ask("tokenize", text=evaluation, **ours.arguments)
    text = Text(answer["ids"], answer["bos"])
    if not theirs:
        return text, None
    with Side(theirs[0].python, theirs[0].module) as side:
        same = side.ask("tokenize", text=evaluation, path=theirs[0].arguments["path"]) == text.ids
    if not same:
        print("note: llama.cpp tokenizes the text otherwise; both engines were given our ids")
    return text, same


def _loss(form: Form, text: Text, plan: Plan) -> dict[str, Any]:
    """Measure the quality of a form in a process of its own; the scoring takes memory that must not count elsewhere."""
    _say(f"{form.label}: perplexity", 0.0)
    with Side(form.python, form.module) as side:
        side.ask("open", **form.arguments, threads=max(plan.threads), capacity=CONTEXTS[-1])
        answer: dict[str, Any] = side.ask(
            "loss", tokens=text.ids[: plan.text_tokens], window=CONTEXTS[-1], bos=text.bos
        )
    return answer


def _measure_threads(forms: list[Form], text: Text, threads: int, plan: Plan) -> dict[Form, dict[str, Any]]:
    """Load every form in fresh processes, round by round; then keep all open and let them decode in turn."""
    raw: dict[Form, dict[str, Any]] = {f: {"open": [], "speed": []} for f in forms}
    for number in range(plan.rounds):
        _say(f"{threads} threads: load, round {number + 1} of {plan.rounds}", number / plan.rounds)
        for form in rotated(forms, number):
            with Side(form.python, form.module) as side:
                raw[form]["open"].append(side.ask("open", **form.arguments, threads=threads, capacity=plan.capacity))
                if number == 0:
                    raw[form]["memory"] = side.ask("memory", tokens=text.all, prefill=CONTEXTS[-1], decode=plan.decode)
    with contextlib.ExitStack() as stack:
        sides = {f: stack.enter_context(Side(f.python, f.module)) for f in forms}
        for form, side in sides.items():
            side.ask("open", **form.arguments, threads=threads, capacity=plan.capacity)
            side.ask("warm", tokens=text.all[:256])
        for number in range(plan.rounds):
            _say(f"{threads} threads: speed, round {number + 1} of {plan.rounds}", number / plan.rounds)
            for form in rotated(forms, number):
                time.sleep(SETTLE_S)
                raw[form]["speed"].append(
                    sides[form].ask(
                        "speed", tokens=text.all, prefills=list(PREFILLS), contexts=list(CONTEXTS), decode=plan.decode
                    )
                )
    return raw


def _figures(form: Form, loss: dict[str, Any], raw: dict[str, Any], plan: Plan) -> Figures:
    first = raw["open"][0]
    return Figures(
        engine=form.engine,
        form=form.name,
        default=form.default,
        source=form.source,
        perplexity=loss["perplexity"],
        package_bytes=first["package_bytes"],
        kv_bytes=first["kv_bytes"],
        ready_s=median(o["ready_s"] for o in raw["open"]),
        memory=raw["memory"],
        speeds={
            m: summarize_speed(
                [r[m] for r in raw["speed"]], int(m.split("_")[1]) if m.startswith("prefill") else plan.decode
            )
            for m in MEASURES
        },
    )


def _say(what: str, fraction: float) -> None:
    """Tell a person who waits what is going on; figures go to standard output."""
    if sys.stderr.isatty():
        print(f"\r\x1b[2K{what} {100 * fraction:.0f} %", end="\r", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
