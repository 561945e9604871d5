"""What it saves to compute the logits of few tokens: `python -m bench.few`.

Single tokens after 128 of context, with all logits and with those of 1, 32 and 1,000 tokens, taking turns; medians.

What this does NOT show: how often a form allows so few.
"""

import argparse
import sys
import time
from statistics import median

import numpy as np

from appliance.engine.session import Session, Wanted
from appliance.errors import SkerryError
from appliance.forge import recipe as recipes
from bench import machine
from bench.forms import Form, open_package, our_forms
from bench.markdown import markdown_table
from bench.pipe import ROOT
from bench.workload import MODELS

COUNTS = (None, 1, 32, 1000)
CONTEXT, STEPS = 128, 16


def measure(form: Form, threads: int, rounds: int) -> list[str]:
    """Tokens a second, a number for each of COUNTS, as words."""
    with Session(open_package(form), threads) as session:
        rng, size = np.random.default_rng(1), session.card.vocabulary_size
        cache = session.new_cache(CONTEXT + STEPS)
        session.forward(cache, rng.integers(0, size, CONTEXT))
        tokens, last = rng.integers(0, size, (STEPS, 1)), np.array([0])
        ids = {count: None if count is None else np.sort(rng.choice(size, count, replace=False)) for count in COUNTS}
        seconds: dict[int | None, list[float]] = {count: [] for count in COUNTS}
        for _ in range(rounds + 1):
            for count in COUNTS:
                cache.rewind(CONTEXT)
                started = time.perf_counter()
                for token in tokens:
                    session.forward_together([Wanted(cache, token, last, ids[count])])
                seconds[count].append(time.perf_counter() - started)
    speeds = {count: STEPS / median(found[1:]) for count, found in seconds.items()}  # the first round warms
    return [f"{speed:.1f} ({speed / speeds[None]:.2f}x)" for speed in speeds.values()]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.few", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=[MODELS[0]], help=f"({MODELS[0]})")
    parser.add_argument("--rounds", type=int, default=15, help="(15)")
    parser.add_argument("--threads", type=int, default=2, help="(2)")
    parser.add_argument("--accept-licence", action="store_true", help="you accept the terms of Gemma's weights")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds is {options.rounds}, expected at least 1")
    print(f"machine: {machine.line(machine.describe())}")
    rows = [["decode at 128, tok/s", "all tokens", *(f"{count:,}" for count in COUNTS if count)]]
    for name in options.models:
        recipe = recipes.load(ROOT / "models" / f"{name}.yaml")
        try:
            (form,) = our_forms(recipe, [], ROOT / "build" / "bench", accept_licence=options.accept_licence)
        except SkerryError as e:
            print(f"bench: {e}", file=sys.stderr)
            return 1
        rows.append([f"{name} {form.name}", *measure(form, options.threads, options.rounds)])
    print(markdown_table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
