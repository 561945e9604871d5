"""The figures as Markdown for people, ready for docs/reference/benchmarks.md, and as plain values for JSON. Pure."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.loops.figures import Effect, Judged, Rate, effect, middle, percentile, rate
from bench.loops.judge import judge
from bench.loops.prompts import FAMILIES
from bench.loops.replay import Replayed
from bench.loops.routines import KINDS as ROUTINES
from bench.loops.synthetic import CLASSES, Planted
from bench.markdown import markdown_table

LOOPS_TARGET, UPPER_TARGET = 0.01, 0.03
USABLE_TARGET = 0.5
HARD_TARGET = 0.001
FOUND_TARGET = 0.9
MATTERS_FROM = 0.2
"""The targets for loops hold where the rate without the breaker is at least this."""


@dataclass(frozen=True)
class Run:
    """All answers of one model at one temperature."""

    model: str
    temperature: float
    off: Sequence[Judged]
    on: Sequence[Judged]

    @property
    def title(self) -> str:
        """Model and temperature, for people."""
        return f"{self.model}, {'greedy' if self.temperature == 0 else f'T = {self.temperature:g}'}"


@dataclass
class Report:
    """Everything that was measured; what was not is empty, or says why."""

    machine: str
    software: str
    runs: list[Run] = field(default_factory=list)
    peers: dict[str, dict[str, list[Judged]]] = field(default_factory=dict)
    replayed: dict[str, list[Replayed]] = field(default_factory=dict)
    planted: dict[str, list[Planted]] = field(default_factory=dict)
    not_run: list[str] = field(default_factory=list)
    drawn: dict[str, list[Replayed]] = field(default_factory=dict)
    unseen: dict[str, list[Replayed]] = field(default_factory=dict)


def markdown(report: Report) -> str:
    """Set all of it, tables first, then what reaches its target and what does not."""
    parts = [
        f"Machine: {report.machine}.\nSoftware: {report.software}.",
        *(f"Not run: {why}." for why in report.not_run),
    ]
    if report.runs or report.peers:
        parts += ["### Answers", _answers(report), *(_effect(run) for run in report.runs)]
    if report.runs:
        parts += [_families(report.runs)]
    if report.replayed:
        parts += ["### Legitimate documents", *(_corpus(name, docs) for name, docs in report.replayed.items())]
    for what, sets in (("drawn before", report.drawn), ("unseen", report.unseen)):
        if sets:
            parts.append(f"### Legitimate documents, {what}")
            parts += [_drawn(f"{what}, tokens of {name}", documents) for name, documents in sets.items()]
    if report.planted:
        parts += ["### Planted loops", *(_planted(name, found) for name, found in report.planted.items())]
    parts += ["### Targets", "\n".join(f"- {line}" for line in verdicts(report))]
    return "\n\n".join(parts) + "\n"


def _answers(report: Report) -> str:
    rows = [["answers", "loops", "95 % interval", "usable", "right", "tokens"]]
    for run in report.runs:
        rows.append(_answer_row(f"{run.title}, breaker off", run.off))
        rows.append(_answer_row(f"{run.title}, breaker on", run.on))
    for model, peers in report.peers.items():
        rows += [_answer_row(f"{model}, llama-server, {name}", judged) for name, judged in peers.items()]
    return markdown_table(rows)


def _answer_row(name: str, judged: Sequence[Judged]) -> list[str]:
    loops = rate(j.loop is not None for j in judged)
    low, high = loops.interval
    return [
        name,
        _of(loops),
        f"{_percent(low)} to {_percent(high)}",
        _of(rate(j.usable for j in judged)),
        str(sum(j.right for j in judged)),
        f"{sum(j.tokens for j in judged):,}",
    ]


def _effect(run: Run) -> str:
    e = effect(run.off, run.on)
    kinds = Counter(j.breaks[0]["kind"] for j in run.on if j.breaks)
    rungs = Counter(one["rung"] for j in run.on for one in j.breaks)
    asked_again = sum(bool(j.row.get("computed")) for j in run.on)
    rows = [
        ["what the breaker did", run.title],
        ["asked again with the breaker on (the others were replayed)", f"{asked_again} of {len(run.on)}"],
        ["loops in which it acted", _of(e.of_loops)],
        ["  kind of the first loop found", _counts(kinds)],
        ["  rungs, all breaks", _counts(rungs)],
        ["broken answers that ended usable", f"{_of(e.broken_usable)} ({_interval(e.broken_usable)})"],
        ["  right", str(e.broken_right.count)],
        ["  ended by stop, length, loop", ", ".join(str(n) for n in e.broken_ends.values())],
        ["acted where the answer was no loop", f"{len(e.needless)}{_names(e.needless)}"],
        ["loops that it did not see", f"{len(e.missed)}{_names(e.missed)}"],
        ["loops in spite of it", f"{len(e.still)}{_names(e.still)}"],
        ["delay of the first break, tokens: median, p90", f"{middle(e.delays):.0f}, {percentile(e.delays, 0.9):.0f}"],
        ["  seconds: median, p90", f"{middle(e.delays_s):.1f}, {percentile(e.delays_s, 0.9):.1f}"],
        ["saved by a broken answer, tokens: median, sum", f"{middle(e.saved):.0f}, {sum(e.saved):,}"],
        ["  seconds: median, sum", f"{middle(e.saved_s):.1f}, {sum(e.saved_s):.0f}"],
        ["prompts that are no loops: usable off, on", f"{_of(e.calm_off)}, {_of(e.calm_on)}"],
        ["  right off, on", f"{e.calm_right_off.count}, {e.calm_right_on.count}"],
        ["answers without a break that are the same to the byte", _of(e.kept)],
    ]
    return markdown_table(rows)


def _families(runs: Sequence[Run]) -> str:
    rows = [["family: loops off, on; usable off, on", *(run.title for run in runs)]]
    for family in FAMILIES:
        row = [family]
        for run in runs:
            off = [j for j in run.off if j.prompt.family == family]
            on = [j for j in run.on if j.prompt.family == family]
            row.append(
                f"{sum(j.loop is not None for j in off)}, {sum(j.loop is not None for j in on)}; "
                f"{sum(j.usable for j in off)}, {sum(j.usable for j in on)} of {len(off)}"
            )
        rows.append(row)
    return markdown_table(rows)


def _corpus(name: str, replayed: Sequence[Replayed]) -> str:
    groups = _by_kind(replayed) | {"all": list(replayed)}
    rows = _document_rows(f"documents, tokens of {name}", groups)
    rows[0].append("the judge's loops")
    for row, some in zip(rows[1:], groups.values(), strict=True):
        row.append(str(sum(judge(one.document.text) is not None for one in some)))
    return "\n\n".join([markdown_table(rows), *_acted_on(replayed)])


def _drawn(title: str, replayed: Sequence[Replayed]) -> str:
    """As the others, but without the judge: that is for answers, and slow on long texts."""
    groups = _by_kind(replayed) | _origins(replayed) | {"all": list(replayed)}
    rows = _document_rows(f"documents {title}", groups)
    return "\n\n".join([markdown_table(rows), *_acted_on(replayed)])


def _by_kind(replayed: Sequence[Replayed]) -> dict[str, list[Replayed]]:
    kinds: dict[str, list[Replayed]] = defaultdict(list)
    for one in replayed:
        kinds[one.document.kind].append(one)
    return dict(kinds)


def _document_rows(title: str, groups: Mapping[str, Sequence[Replayed]]) -> list[list[str]]:
    """A head, and a row for each group: how many, how long, in how many the breaker acted."""
    rows = [[title, "documents", "tokens", "acted on", "95 % interval"]]
    for group, some in groups.items():
        acted = rate(one.acted is not None for one in some)
        rows.append([group, str(len(some)), f"{sum(r.tokens for r in some):,}", str(acted.count), _interval(acted)])
    return rows


def _origins(replayed: Sequence[Replayed]) -> dict[str, list[Replayed]]:
    """Part documents by where they come from; what is invented says less than what was found."""
    made = [r for r in replayed if r.document.kind in ROUTINES]
    found = [r for r in replayed if r.document.kind not in ROUTINES]
    return {origin: some for origin, some in (("all files", found), ("all routines", made)) if some}


def _acted_on(replayed: Sequence[Replayed]) -> list[str]:
    """Name the documents that were acted on; nothing if there are none."""
    flagged = [
        f"- {r.document.id}: {r.acted.step.loop.kind}, period {r.acted.step.loop.period}, "
        f"{r.acted.step.loop.copies:.1f} copies, at token {r.acted.at}"
        for r in replayed
        if r.acted
    ]
    return ["\n".join(["Acted on:", "", *flagged])] if flagged else []


def _planted(name: str, planted: Sequence[Planted]) -> str:
    rows = [
        [
            f"planted, tokens of {name}", "period, tokens", "found", "95 % interval", "delay, tokens: median, p90",
            "copies: median, p90",
        ]
    ]  # fmt: skip
    for kind in dict.fromkeys(p.kind for p in planted):
        groups = [(c, [p for p in planted if p.kind == kind and p.periods == c]) for c in CLASSES]
        for periods, some in [*groups, ("all", [p for p in planted if p.kind == kind])]:
            if not some:
                continue
            found = rate(p.delay is not None for p in some)
            tokens = [p.delay for p in some if p.delay is not None]
            copies = [p.delay_copies for p in some if p.delay_copies is not None]
            rows.append(
                [
                    kind, periods, _of(found), _interval(found),
                    f"{middle(tokens):.0f}, {percentile(tokens, 0.9):.0f}",
                    f"{middle(copies):.1f}, {percentile(copies, 0.9):.1f}",
                ]
            )  # fmt: skip
    return markdown_table(rows)


def verdicts(report: Report) -> list[str]:
    """Say what is reached, a line a target."""
    lines = []
    for run in report.runs:
        e = effect(run.off, run.on)
        if e.loops_off.value < MATTERS_FROM:
            why = f"loops without the breaker: {_percent(e.loops_off.value)}, below {_percent(MATTERS_FROM)}"
            lines.append(f"{run.title}: {why}; not judged")
            continue
        low = e.loops_on.value <= LOOPS_TARGET and e.loops_on.interval[1] <= UPPER_TARGET
        lines.append(
            f"{run.title}: loops with the breaker {_of(e.loops_on)}, upper bound {_percent(e.loops_on.interval[1])}; "
            + _met(low, f"at most {_percent(LOOPS_TARGET)}, upper bound {_percent(UPPER_TARGET)}")
        )
        lines.append(
            f"{run.title}: broken answers that ended usable {_of(e.broken_usable)}; "
            + _met(e.broken_usable.value >= USABLE_TARGET, f"at least {_percent(USABLE_TARGET)}")
        )
    groups = [(name, "legitimate documents", replayed) for name, replayed in report.replayed.items()]
    for what, sets in (("drawn before", report.drawn), ("unseen", report.unseen)):
        groups += [
            (name, f"documents {what}, {origin}", some)
            for name, replayed in sets.items()
            for origin, some in _origins(replayed).items()
        ]
    for name, what, some in groups:
        acted = rate(one.acted is not None for one in some)
        lines.append(
            f"{name}: acted on {_of(acted)} {what}; "
            + _met(acted.value <= HARD_TARGET, f"at most {_percent(HARD_TARGET)}")
        )
    for name, planted in report.planted.items():
        for kind in dict.fromkeys(p.kind for p in planted):
            found = rate(p.delay is not None for p in planted if p.kind == kind)
            lines.append(
                f"{name}: planted {kind} loops found {_of(found)}; "
                + _met(found.value >= FOUND_TARGET, f"at least {_percent(FOUND_TARGET)}")
            )
    return lines


def plain(report: Report) -> dict[str, Any]:
    """Turn everything into what JSON can hold, prompt by prompt."""
    return {
        "machine": report.machine,
        "software": report.software,
        "not_run": report.not_run,
        "runs": [
            {"model": r.model, "temperature": r.temperature, **_plain_effect(effect(r.off, r.on)), "prompts": [
                {"prompt": a.prompt.id, "off": _plain_judged(a), "on": _plain_judged(b)}
                for a, b in zip(r.off, r.on, strict=True)
            ]}
            for r in report.runs
        ],
        "peers": {
            model: {n: [{"prompt": j.prompt.id, **_plain_judged(j)} for j in judged] for n, judged in peers.items()}
            for model, peers in report.peers.items()
        },
        "documents": _plain_documents(report.replayed),
        "drawn": _plain_documents(report.drawn),
        "unseen": _plain_documents(report.unseen),
        "planted": {name: [asdict(p) for p in planted] for name, planted in report.planted.items()},
        "targets": verdicts(report),
    }  # fmt: skip


def _plain_documents(replayed: Mapping[str, Sequence[Replayed]]) -> dict[str, Any]:
    return {
        name: [
            {"id": r.document.id, "kind": r.document.kind, "tokens": r.tokens, "acted_at": r.acted and r.acted.at}
            for r in documents
        ]
        for name, documents in replayed.items()
    }


def _plain_effect(e: Effect) -> Mapping[str, Any]:
    return {k: {"count": v.count, "total": v.total, "interval": v.interval} if isinstance(v, Rate) else v
            for k, v in vars(e).items()}  # fmt: skip


def _plain_judged(j: Judged) -> dict[str, Any]:
    return {
        "loop": j.loop and {k: v for k, v in asdict(j.loop).items() if k != "copy"},
        "usable": j.usable,
        "right": j.right,
        "reason": j.verdict.reason,
        "finish": j.row["finish"],
        "tokens": j.tokens,
        "breaks": len(j.breaks),
    }


# --- words ------------------------------------------------------------------------------------------------------------


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _of(found: Rate) -> str:
    return f"{found.count} of {found.total} ({_percent(found.value)})"


def _interval(found: Rate) -> str:
    low, high = found.interval
    return f"{_percent(low)} to {_percent(high)}"


def _counts(counter: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items(), key=lambda c: -c[1])) or "none"


def _names(ids: Sequence[str]) -> str:
    return f": {', '.join(ids[:12])}{', ...' if len(ids) > 12 else ''}" if ids else ""


def _met(met: bool, target: str) -> str:
    return f"{'met' if met else 'MISSED'} ({target})"
