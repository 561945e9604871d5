"""Counters for the site's monitoring, in the Prometheus text format: names and numbers, never anybody's text."""

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from appliance import __version__
from appliance.decoding.breaker import Break
from appliance.errors import SkerryError
from appliance.system.host import resident_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from appliance.engine.completion import Usage
    from appliance.engine.scheduler import Scheduler

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The daemon's counters. `docs/reference/metrics.md` explains each."""

    def __init__(self, scheduler: "Scheduler") -> None:
        self._registry = registry = CollectorRegistry()
        self._answers = Counter(
            "skerry_answers",
            "Answers ended, by outcome: done or the error's kind",
            ["model", "outcome"],
            registry=registry,
        )
        self._tokens = Counter(
            "skerry_tokens",
            "Tokens of complete answers: prompt, cached (of the prompt), generated or guessed (of those)",
            ["model", "kind"],
            registry=registry,
        )
        self._loops = Counter(
            "skerry_loops",
            "Loops found in answers, by kind and by what was done about each",
            ["model", "kind", "rung"],
            registry=registry,
        )
        self._rewound = Counter(
            "skerry_rewound_tokens", "Tokens taken back because of loops", ["model"], registry=registry
        )
        self._first_token = Histogram(
            "skerry_first_token_seconds",
            "From the request's arrival to its first token",
            ["model"],
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
            registry=registry,
        )
        self._rate = Histogram(
            "skerry_decode_tokens_per_second",
            "Decoding speed of an answer",
            ["model"],
            buckets=(5, 10, 20, 40, 60, 80, 100, 150, 200, 300),
            registry=registry,
        )
        load = scheduler.load
        for name, text, read in (
            ("skerry_running", "Answers being computed", lambda: load().running),
            ("skerry_queued", "Answers waiting for their turn", lambda: load().queued),
            ("skerry_resident_bytes", "Resident memory of the daemon", lambda: resident_bytes() or 0),
        ):
            Gauge(name, text, registry=registry).set_function(read)
        rejected = Gauge("skerry_rejected", "Requests refused since the start because of a limit", registry=registry)
        rejected.set_function(lambda: load().rejected)
        Gauge("skerry_build_info", "Always 1", ["version"], registry=registry).labels(__version__).set(1)
        self.prompt_tokens = self.generated_tokens = 0

    def ended(self, model: str, outcome: SkerryError | None) -> None:
        """Count the end of one answer."""
        self._answers.labels(model, outcome.kind if outcome else "done").inc()

    def broke(self, model: str, done: Break) -> None:
        """Count what was done about a loop."""
        self._loops.labels(model, done.kind, done.rung).inc()
        self._rewound.labels(model).inc(done.rewound)

    def completed(self, name: str, taken: "Sequence[Usage]", queue_s: float) -> None:
        """Count what a complete request took.

        Args:
            name: of the model.
            taken: what each answer took.
            queue_s: how long the request waited.
        """
        prompt, generated = sum(u.prompt_tokens for u in taken), sum(u.completion_tokens for u in taken)
        self.prompt_tokens += prompt
        self.generated_tokens += generated
        self._tokens.labels(name, "prompt").inc(prompt)
        self._tokens.labels(name, "cached").inc(sum(u.cached_tokens for u in taken))
        self._tokens.labels(name, "generated").inc(generated)
        self._tokens.labels(name, "guessed").inc(sum(u.guessed_tokens for u in taken))
        for one in taken:
            self._first_token.labels(name).observe(queue_s + one.prompt_s)
            if one.decode_s:
                self._rate.labels(name).observe((one.completion_tokens - 1) / one.decode_s)

    def text(self) -> bytes:
        """All of them as text."""
        return generate_latest(self._registry)
