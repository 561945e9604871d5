"""Where a step spends its time, by onnxruntime's own profile: `python -m bench.profile`.

A step is one token, after 128 or 1,024 others, or a part of a prompt: 256 tokens after 128.

What this does NOT show: how fast a step is without a profile, which costs some microseconds an operator. Its shares go
to many small operators more than they should.
"""

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import onnxruntime as ort

from appliance.engine.session import Session
from appliance.errors import SkerryError
from appliance.forge import recipe as recipes
from appliance.forge.quantize import SCHEMES
from bench import machine
from bench.forms import Form, open_package, our_forms
from bench.markdown import markdown_table
from bench.pipe import ROOT
from bench.workload import MODELS

MEASURED = [scheme for scheme in SCHEMES if scheme != "f32"]
MATRICES, HEAD, ATTENTION = "matrices of the layers", "head, for one row", "attention"
ROUNDING, SUMS = "rounding tokens to 8 bits", "sums of blocks"
OTHERS, BETWEEN = "norms, gates, copies", "between the operators"
ROWS = (MATRICES, HEAD, ATTENTION, ROUNDING, SUMS, OTHERS, BETWEEN)
PRODUCTS = ("MatMulNBits", "MatMulIntegerToFloat")
KINDS = {
    **dict.fromkeys(PRODUCTS, MATRICES),
    "GroupQueryAttention": ATTENTION,
    **dict.fromkeys(("Abs", "ReduceMax", "Div", "QuantizeLinear"), ROUNDING),
    **dict.fromkeys(("ReduceSum", "Concat"), SUMS),
}
STEPS = {"128": (128, 1), "1,024": (1024, 1), "part": (128, 256)}
"""By name: tokens before, and tokens of the step."""
WARM = 2


class Profile(NamedTuple):
    """What one kind of step took.

    Attributes:
        milliseconds: of a step, with the profile's own cost.
        operators: how many a step has.
        shares: of its time, by kind; they add up to 1.
    """

    milliseconds: float
    operators: int
    shares: dict[str, float]


def profile(form: Form, threads: int, steps: int) -> dict[str, Profile]:
    """Profile each kind of step, `steps` times."""
    return {name: _profile(form, threads, *step, steps) for name, step in STEPS.items()}


def _profile(form: Form, threads: int, context: int, length: int, steps: int) -> Profile:
    """Profile one kind of step in a session of its own, as a profile ends once."""
    with tempfile.TemporaryDirectory(prefix="skerry-profile-") as folder:
        options = ort.SessionOptions()
        options.enable_profiling, options.profile_file_prefix = True, f"{folder}/profile"
        with mock.patch.object(ort, "SessionOptions", return_value=options):
            session = Session(open_package(form), threads)
        with session:
            rng, size = np.random.default_rng(1), session.card.vocabulary_size
            cache = session.new_cache(context + length)
            session.forward(cache, rng.integers(0, size, context))
            for _ in range(WARM + steps):
                cache.rewind(context)
                session.forward(cache, rng.integers(0, size, length))
            file = Path(session._session.end_profiling())
            return summed(list(_runs(json.loads(file.read_text())))[1 + WARM :])


def _runs(events: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Group events by run: its operators in their order, and at last the run itself."""
    run = list[dict[str, Any]]()
    for event in sorted(events, key=lambda e: int(e["ts"]) + int(e["dur"])):
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            run.append(event)
        elif event["name"] == "model_run":
            yield [*run, event]
            run = []


def summed(runs: list[list[dict[str, Any]]]) -> Profile:
    """Add up what each kind of operator took, as shares of the runs' time."""
    took = Counter[str]()
    for *operators, whole in runs:
        took[BETWEEN] += int(whole["dur"])
        last = max(i for i, event in enumerate(operators) if event["args"]["op_name"] in PRODUCTS)
        names = ["", *(event["args"]["op_name"] for event in operators), ""]
        for i, event in enumerate(operators):
            before, name, after = names[i : i + 3]
            kind = KINDS.get(name, OTHERS)
            if i == last:
                kind = HEAD
            elif (before, name) == ("MatMulIntegerToFloat", "Mul"):
                kind = ROUNDING
            elif (name, after) == ("Reshape", "ReduceSum"):
                kind = SUMS
            took[kind] += int(event["dur"])
            took[BETWEEN] -= int(event["dur"])
    microseconds = took.total()
    return Profile(
        microseconds / len(runs) / 1000, len(runs[-1]) - 1, {kind: took[kind] / microseconds for kind in ROWS}
    )


def table(profiles: dict[str, dict[str, Profile]]) -> list[list[str]]:
    """Rows of cells: a column for each form and kind of step."""
    columns = {f"{form}, {step}": found for form, steps in profiles.items() for step, found in steps.items()}
    rows = [["", *columns]]
    rows += [[kind, *(f"{found.shares[kind]:.0%}" for found in columns.values())] for kind in ROWS]
    rows.append(["operators", *(f"{found.operators:,}" for found in columns.values())])
    rows.append(["ms, profiled", *(f"{found.milliseconds:.1f}" for found in columns.values())])
    return rows


def main() -> int:
    """Profile and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.profile", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default=MODELS[0], help=f"({MODELS[0]})")
    parser.add_argument(
        "--schemes", nargs="*", choices=MEASURED, default=["q8", "q4x"], help="beside the recipe's own (q8 q4x)"
    )
    parser.add_argument("--steps", type=int, default=20, help="(20)")
    parser.add_argument("--threads", type=int, default=1, help="(1)")
    parser.add_argument("--accept-licence", action="store_true", help="you accept the terms of Gemma's weights")
    options = parser.parse_args()
    if options.steps < 1:
        parser.error(f"--steps is {options.steps}, expected at least 1")
    print(f"machine: {machine.line(machine.describe())}")
    recipe, folder = recipes.load(ROOT / "models" / f"{options.model}.yaml"), ROOT / "build" / "bench"
    try:
        forms = our_forms(recipe, options.schemes, folder, accept_licence=options.accept_licence)
    except SkerryError as e:
        print(f"bench: {e}", file=sys.stderr)
        return 1
    print(markdown_table(table({form.name: profile(form, options.threads, options.steps) for form in forms})))
    return 0


if __name__ == "__main__":
    sys.exit(main())
