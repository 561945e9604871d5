"""The best of several candidates, by what verifiers say.

    best = BestOf(verifiers, Context(input=question))
    for index, text in enumerate(candidates):
        if best.offer(Candidate(text=text, index=index)):
            break                       # this one passed everything: no need for more
    winner = best.best()

The order of preference: not stopped in a loop; most verifiers passed; ended by itself; most candidates that give the
same answer; the first one, which is the greedy one; the one that the model found likelier.

What this does NOT do: generate, or know the model. And the best of several wrong answers is a wrong answer: look at
the verdicts of the one that won.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from appliance.decoding.verifiers import NOTHING, Agreement, Context, Verdict, Verifier, canonical, judge


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One answer of several to the same request.

    Attributes:
        text: the whole answer.
        index: which of the request's answers; 0 is the greedy one.
        looped: whether a loop was found in it and not broken.
        finish_reason: as the API says it.
        verdicts: of the request's verifiers, in their order.
        logprob: mean log probability of its tokens, if known.
    """

    text: str
    index: int
    looped: bool = False
    finish_reason: str = "stop"
    verdicts: tuple[Verdict, ...] = ()
    logprob: float | None = None

    @property
    def passed(self) -> int:
        """How many verifiers passed it."""
        return sum(v.passed for v in self.verdicts)

    @property
    def verified(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.looped and self.passed == len(self.verdicts)


def choose_best(candidates: Sequence[Candidate], field: str | None = None) -> Candidate:
    """Choose by the order of preference that the module explains.

    Args:
        candidates: at least one; each judged by the same verifiers.
        field: of JSON answers, what must be equal for two of them to give the same answer.
    Raises:
        ValueError: there is none.
    """
    if not candidates:
        raise ValueError("cannot choose the best of no candidates")
    # One that ran in circles has no vote.
    votes = Counter(canonical(c.text, field) for c in candidates if not c.looped)

    def preference(c: Candidate) -> tuple[bool, int, bool, int, bool, float, int]:
        likely = -c.logprob if c.logprob is not None else 0.0
        return (
            c.looped,
            -c.passed,
            c.finish_reason == "length",
            -votes[canonical(c.text, field)],
            c.index != 0,
            likely,
            c.index,
        )

    return min(candidates, key=preference)


class BestOf:
    """Candidates as they come."""

    def __init__(self, verifiers: Sequence[Verifier] = (), context: Context = NOTHING) -> None:
        """Begin with none.

        Args:
            verifiers: judge every candidate.
            context: of the request; its `candidates` are filled in here.
        """
        self._verifiers = tuple(verifiers)
        self._context = context
        self._field = next((v.field for v in self._verifiers if isinstance(v, Agreement)), None)
        self._offered: list[Candidate] = []

    def offer(self, candidate: Candidate) -> bool:
        """Take a finished candidate in and judge it.

        Returns:
            Whether it, or with its vote an earlier one, passes everything, so that no further one is needed.
        """
        self._offered.append(candidate)
        return any(c.verified for c in self._judged())

    def best(self) -> Candidate:
        """The best one so far, with its verdicts.

        Raises:
            ValueError: none was offered.
        """
        return choose_best(self._judged(), self._field)

    def all(self) -> tuple[Candidate, ...]:
        """All that were offered, with their verdicts, in the order in which they came."""
        return tuple(self._judged())

    def _judged(self) -> list[Candidate]:
        """Judge what is not judged yet, and again what depends on the others."""
        texts = tuple(c.text for c in self._offered if not c.looped)
        context = replace(self._context, candidates=texts)
        for i, candidate in enumerate(self._offered):
            if not candidate.verdicts:
                verdicts = judge(self._verifiers, candidate.text, context)
            else:
                verdicts = tuple(
                    verifier.check(candidate.text, context) if verifier.needs_others else verdict
                    for verifier, verdict in zip(self._verifiers, candidate.verdicts, strict=True)
                )
            self._offered[i] = replace(candidate, verdicts=verdicts)
        return self._offered
