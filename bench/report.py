"""The figures as a table for people, and as plain values for JSON. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from bench.figures import (
    MEASURES,
    MEMORY_TARGET,
    READY_TARGET_S,
    TITLES,
    Figures,
    Measure,
    Reference,
    compare,
    find_reference,
    peer_of,
)
from bench.markdown import markdown_table
from bench.targets import Verdict, times

NO_PEER = (
    "llama.cpp: not run (no interpreter with llama-cpp-python; `make bench-peer` builds one into .venv-peer, which\n"
    "takes 10 minutes or more, or name one with --peer-python PATH or SKERRY_PEER_PYTHON)"
)
LOSSY = "!"
LEGEND = f"{LOSSY} more than 1 % above the source's perplexity: printed, not compared with"
ENOUGH_ROUNDS = 3
BAR = 36
"""Characters of the longest bar."""
QUIET_SPREAD = 0.2
"""More than this between the slowest and the fastest round, and something else was running."""


def table(title: str, forms: Sequence[Figures]) -> str:
    """Set one model at one number of threads as a Markdown table, ours first, the peer's fastest form first."""
    reference = find_reference(forms)
    head = [
        "engine, form",
        "MB",
        "perplexity",
        *(f"{TITLES[m]}, tok/s (CPU ms)" for m in MEASURES),
        "ready, s",
        "resident, MB",
    ]
    ordered = sorted(forms, key=lambda f: (f.engine != "Skerry", not f.default, -f.speeds["decode_128"].per_s))
    return f"{title}\n\n" + markdown_table([head, *(_row(f, reference) for f in ordered)])


def _row(f: Figures, reference: Reference | None) -> list[str]:
    name = f"{f.engine} {f.form}" + (", default" if f.default else "") + (", source" if f.source else "")
    quality = f"{f.perplexity:.2f}"
    if reference is not None:
        quality += f" ({100 * reference.change(f):+.1f} %)"
        quality += "" if reference.is_met(f) else LOSSY
    resident = f"{f.memory['resident'] / 1e6:.0f}"
    if f.memory_ratio is not None:
        resident += f" ({f.memory_ratio:.2f}x)"
    speeds = [f"{f.speeds[m].per_s:.1f} ({f.speeds[m].cpu_ms:.1f})" for m in MEASURES]
    return [name, f"{f.package_bytes / 1e6:.0f}", quality, *speeds, f"{f.ready_s:.2f}", resident]


def verdicts(forms: Sequence[Figures], rounds: int, targets: Mapping[Measure, float]) -> list[Verdict]:
    """Say what the default package reaches, and whether that is enough.

    Speeds of too few rounds are not judged: engines suffer differently from a busy machine, and one round cannot tell.
    Nor is memory then, as the form of the peer that it is compared with is the fastest.
    """
    ours = next((f for f in forms if f.default), None)
    if ours is None:
        return []
    can_tell = rounds >= ENOUGH_ROUNDS
    found = [
        Verdict(
            TITLES[r.measure],
            f"at least {targets[r.measure]}x",
            times(r.value),
            f"llama.cpp {r.peer_form}: {r.ours:.1f} to {r.peer:.1f} tok/s",
            r.value >= targets[r.measure] if can_tell else None,
        )
        for r in compare(forms)
    ]
    reference = find_reference(forms)
    if reference is not None:
        change = f"{100 * reference.change(ours):+.2f} %"
        found.append(Verdict("perplexity", "at most +1 %", change, "the source's", reference.is_met(ours)))
    peer = peer_of(forms)
    if peer is not None:
        mine, theirs = ours.memory["resident"], peer.memory["resident"]
        against = f"llama.cpp {peer.form}: {mine / 1e6:.0f} to {theirs / 1e6:.0f} MB"
        enough = mine <= MEMORY_TARGET * theirs if can_tell else None
        found.append(
            Verdict("resident memory", f"at most {MEMORY_TARGET}x", times(mine / theirs, least=False), against, enough)
        )
    ready = f"{ours.ready_s:.2f} s"
    found.append(Verdict("load to ready", f"below {READY_TARGET_S:.0f} s", ready, "", ours.ready_s < READY_TARGET_S))
    return found


def doubts(forms: Sequence[Figures], rounds: int) -> list[str]:
    """Say why the figures should not be trusted, if they should not."""
    if rounds < ENOUGH_ROUNDS:
        return [f"{rounds} round{'s' if rounds > 1 else ''}: shows that it runs, not how fast"]
    worst = max((f.speeds[m].spread, f"{f.engine} {f.form}, {TITLES[m]}") for f in forms for m in MEASURES)
    if worst[0] <= QUIET_SPREAD:
        return []
    return [f"the machine was not quiet: rounds differ by up to {100 * worst[0]:.0f} % ({worst[1]})"]


def bounds(forms: Sequence[Figures], bandwidth: float) -> str:
    """Draw how much of what memory allows each form decodes at 128 tokens, as bars of characters.

    Args:
        forms: of one model at one number of threads.
        bandwidth: bytes a second that these threads read.
    """
    longest = max(f.bound_per_s(bandwidth) for f in forms)
    wide = max(len(f"{f.engine} {f.form}") for f in forms)
    lines = [f"decode at 128 of what reading the weights allows ({bandwidth / 1e9:.1f} GB/s):"]
    for f in forms:
        bound, seen = f.bound_per_s(bandwidth), f.speeds["decode_128"].per_s
        room, bar = round(BAR * bound / longest), round(BAR * min(seen, bound) / longest)
        drawn = ("#" * bar).ljust(room, ".").ljust(BAR)
        lines.append(f"{f'{f.engine} {f.form}'.ljust(wide)} {drawn} {seen:.0f} of {bound:.0f}, {seen / bound:.0%}")
    return "\n".join(lines)


def plain(forms: Sequence[Figures]) -> Mapping[str, Any]:
    """Turn figures into what JSON can hold."""
    return {
        "forms": [{**asdict(f), "memory_ratio": f.memory_ratio} for f in forms],
        "ratios": [{**asdict(r), "ratio": r.value} for r in compare(forms)],
    }
