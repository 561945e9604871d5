"""From raw rounds to figures: medians, and which form of the peer to compare with. Pure.

A speed says nothing without the quality it was bought with. So our default package is compared with the fastest form of
the peer whose perplexity is within 1 % of the perplexity of the weights as published; lossier forms are printed, with
their loss, and not used.

The peer runs the published weights in two ways, with flash attention and without, and they differ by some tenths of a
percent. The doubt counts against us: our package must be near the better of the two, a form of the peer only near the
worse.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

OURS = "Skerry"
TOLERANCE = 0.01
"""How much higher a perplexity may be and still count as the same quality."""

MEMORY_TARGET = 1.1
"""Resident memory, as many times that of the peer's form that decodes fastest."""
READY_TARGET_S = 2.0

Measure = Literal["decode_128", "decode_1024", "prefill_512", "prefill_2048"]
MEASURES: tuple[Measure, ...] = ("decode_128", "decode_1024", "prefill_512", "prefill_2048")
TITLES: Mapping[Measure, str] = {
    "decode_128": "decode at 128",
    "decode_1024": "decode at 1,024",
    "prefill_512": "prefill 512",
    "prefill_2048": "prefill 2,048",
}
SPEED_TARGETS: Mapping[Measure, float] = {
    "decode_128": 1.15,
    "decode_1024": 1.25,
    "prefill_512": 1.4,
    "prefill_2048": 1.4,
}
"""How many times as fast as the peer's best of the same quality."""
OTHER_TARGETS: Mapping[str, Mapping[Measure, float]] = {"gemma-3-270m": {"prefill_512": 1.6, "prefill_2048": 1.6}}
"""Where a model's differ."""


@dataclass(frozen=True)
class Speed:
    """Medians of one measure.

    Attributes:
        per_s: tokens a second of wall time.
        cpu_ms: milliseconds of CPU time a token, of all threads together.
        spread: (slowest - fastest) / median of the rounds' wall times.
    """

    per_s: float
    cpu_ms: float
    spread: float


@dataclass(frozen=True)
class Figures:
    """One form of one model at one number of threads.

    Attributes:
        engine: "Skerry" or "llama.cpp".
        form: its quantization, and "flash" where that is on.
        default: whether this is the package that Skerry builds by default.
        source: whether these are the weights as published, run by the peer: the reference of quality.
        kv_bytes: of the whole cache that was open; None if the engine does not say.
        memory: resident, peak, anonymous, file; bytes, after a prefill of 1,024 tokens and some decoding.
    """

    engine: str
    form: str
    default: bool
    source: bool
    perplexity: float
    package_bytes: int
    kv_bytes: int | None
    ready_s: float
    memory: Mapping[str, int]
    speeds: Mapping[Measure, Speed]

    @property
    def memory_ratio(self) -> float | None:
        """Resident memory over the package and the cache together."""
        return None if self.kv_bytes is None else self.memory["resident"] / (self.package_bytes + self.kv_bytes)

    def bound_per_s(self, bandwidth: float) -> float:
        """Tokens a second that reading the weights once for each would allow.

        Args:
            bandwidth: bytes a second that this machine reads from memory.
        """
        return bandwidth / self.package_bytes


@dataclass(frozen=True)
class Ratio:
    """Our default package against one form of the peer, in one measure."""

    measure: Measure
    ours: float
    peer_form: str
    peer: float

    @property
    def value(self) -> float:
        """How many times as fast we are."""
        return self.ours / self.peer


def summarize_speed(rounds: Sequence[Mapping[str, float]], tokens: int) -> Speed:
    """Take medians over rounds.

    Args:
        rounds: wall_s and cpu_s of each.
        tokens: that were computed in each.
    """
    wall = [r["wall_s"] for r in rounds]
    middle = median(wall)
    return Speed(
        per_s=tokens / middle,
        cpu_ms=1000 * median(r["cpu_s"] for r in rounds) / tokens,
        spread=(max(wall) - min(wall)) / middle,
    )


@dataclass(frozen=True)
class Reference:
    """Perplexity of the weights as published, in the better and in the worse of the peer's ways to run them."""

    better: float
    worse: float

    def is_met(self, form: Figures) -> bool:
        """Say whether a form has the same quality: at most 1 % above; lower is better and always good enough."""
        return form.perplexity <= (self.better if form.engine == OURS else self.worse) * (1 + TOLERANCE)

    def change(self, form: Figures) -> float:
        """How far a form is above the better of the two, as a fraction."""
        return form.perplexity / self.better - 1


def find_reference(forms: Iterable[Figures]) -> Reference | None:
    """Take the reference from the forms that run the weights as published; None without the peer."""
    found = [f.perplexity for f in forms if f.source]
    return Reference(min(found), max(found)) if found else None


def fastest(peer: Iterable[Figures], measure: Measure, reference: Reference) -> Figures | None:
    """Pick the peer's fastest form of the same quality as the published weights."""
    fit = [f for f in peer if reference.is_met(f)]
    return max(fit, key=lambda f: f.speeds[measure].per_s, default=None)


def compare(forms: Sequence[Figures]) -> list[Ratio]:
    """Set our default package against the peer's best, a measure at a time; empty without the peer or the default."""
    ours = next((f for f in forms if f.default), None)
    reference = find_reference(forms)
    if ours is None or reference is None:
        return []
    ratios = []
    for measure in MEASURES:
        best = fastest((f for f in forms if f.engine != OURS), measure, reference)
        if best is not None:
            ratios.append(Ratio(measure, ours.speeds[measure].per_s, best.form, best.speeds[measure].per_s))
    return ratios


def rotated(names: Sequence[Any], round_number: int) -> list[Any]:
    """Give the order of a round: every round begins with another form, so that none always runs after the same one."""
    start = round_number % len(names) if names else 0
    return [*names[start:], *names[:start]]


def peer_of(forms: Sequence[Figures]) -> Figures | None:
    """Pick the form of the peer to compare memory with: of the same quality, the fastest in decoding."""
    reference = find_reference(forms)
    return None if reference is None else fastest((f for f in forms if f.engine != OURS), "decode_128", reference)
