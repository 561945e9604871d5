"""`skerry bench`: how fast a model is on this very box, in half a minute.

The daemon is asked as any caller asks it, so what is measured is what callers get: its limits, its other work, its kept
beginnings and its guesses are in the figures. Prompts are made anew each time: nothing of them was asked before.
"""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli.box import JsonOption, ModelOption, box
from appliance.cli.output import emit, emit_json, fields, note, progress
from appliance.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from appliance.client import Answer, Client

ROUNDS = 3
PROMPT_WORDS, ANSWER_TOKENS = 400, 96
_WORDS = """
pump valve filter motor sensor relay drive fuse panel tank bearing hose shaft report shift morning pressure level north
south first second third green yellow open closed checked changed cleaned measured noted at in of by for the was is and
then after before four nine twelve
""".split()  # noqa: SIM905  read as words


@dataclass(frozen=True)
class Found:
    """What was measured: medians over the rounds; times in seconds, speeds in tokens a second."""

    model: str
    prompt_tokens: int
    first_token_s: float
    again_s: float
    read_per_s: float
    write_per_s: float
    callers: int
    together_per_s: float


def bench(
    ctx: typer.Context,
    model: ModelOption = None,
    callers: Annotated[
        int, typer.Option("--callers", min=1, max=8, metavar="N", help="Answers at once in the last figure.")
    ] = 4,
    as_json: JsonOption = False,
) -> None:
    """Measure how fast a model is on this box, in half a minute or so.

    It asks the daemon as any caller does: what else is asked meanwhile counts.
    """
    with box(ctx).client(600) as client:
        name = model or _only(client.model_ids())
        if busy := client.status().requests.running:
            note(f"note: {busy} other answers are running; the figures are those of a busy box")
        with progress() as update:
            found = measure(client, name, callers, random.Random(time.time_ns()), update)  # noqa: S311  varies prompts
    if as_json:
        emit_json(asdict(found))
    else:
        emit("\n".join(lines(found)))


def _only(names: "tuple[str, ...]") -> str:
    if len(names) != 1:
        listed = ", ".join(names) or "none is installed"
        raise InvalidRequest(f"cannot choose a model: {listed}", hint="name one with --model")
    return names[0]


def measure(
    client: "Client", model: str, callers: int, rng: random.Random, update: "Callable[[str, float], None]"
) -> Found:
    """Ask, and take medians.

    Args:
        client: of the daemon.
        model: its name.
        callers: answers at once in the last figure.
        rng: of the prompts' words.
        update: is told how far it is.
    Raises:
        SkerryError: as the daemon says.
    """

    def ask(prompt: str, tokens: int) -> "Answer":
        return client.complete(prompt, model, max_tokens=tokens, temperature=0, loop_breaker="off")

    ask(_prompt(rng, 8), 1)  # loads the model, if need be
    cold: list[Answer] = []
    warm: list[Answer] = []
    alone: list[Answer] = []
    together: list[float] = []
    for number in range(ROUNDS):
        update("measuring", number / ROUNDS)
        text = _prompt(rng, PROMPT_WORDS)
        cold.append(ask(text, 1))
        warm.append(ask(text, 1))
        alone.append(ask(_prompt(rng, 24), ANSWER_TOKENS))
        prompts = [_prompt(rng, 24) for _ in range(callers)]
        started = time.monotonic()
        with ThreadPoolExecutor(callers) as pool:
            answers = list(pool.map(lambda prompt: ask(prompt, ANSWER_TOKENS), prompts))
        together.append(sum(_tokens(a, "completion_tokens") for a in answers) / (time.monotonic() - started))
    return Found(
        model=model,
        prompt_tokens=round(median(_tokens(a, "prompt_tokens") for a in cold)),
        first_token_s=_median([a.timings.prompt_s if a.timings else None for a in cold]),
        again_s=_median([a.timings.prompt_s if a.timings else None for a in warm]),
        read_per_s=_median([a.timings.prompt_tokens_per_s if a.timings else None for a in cold]),
        write_per_s=_median([a.timings.decode_tokens_per_s if a.timings else None for a in alone]),
        callers=callers,
        together_per_s=median(together),
    )


def _tokens(answer: "Answer", which: str) -> int:
    return getattr(answer.usage, which) if answer.usage else 0


def _median(values: "Sequence[float | None]") -> float:
    """The median of what the daemon told; 0 where it told nothing, as of an answer of one token."""
    told = [value for value in values if value is not None]
    return median(told) if told else 0.0


def _prompt(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(_WORDS) for _ in range(words))


def lines(found: Found) -> list[str]:
    """Set the figures for people."""
    times = f", {found.first_token_s / found.again_s:.0f} times as soon" if found.again_s else ""
    rows = [
        (f"first token of a prompt of {found.prompt_tokens} tokens", f"{found.first_token_s:.2f} s"),
        ("  the same prompt again", f"{found.again_s:.2f} s{times}"),
        ("reads", f"{found.read_per_s:.0f} tokens a second"),
        ("writes", f"{found.write_per_s:.0f} tokens a second"),
        (f"  {found.callers} answers at once, together", f"{found.together_per_s:.0f} tokens a second"),
    ]
    return [f"{found.model}, medians of {ROUNDS}", "", *fields(rows)]
