"""Loops of an agent: the same tool called again and again, seen from a conversation's calls alone.

    found = find_call_loop([Invocation("read", '{"tank": 4}', "full"), ...])
    if found is not None and found.certain:
        ...   # the model is not going to learn anything new

Three kinds: `same_call` (one call over and over), `ping_pong` (two calls in turn) and `same_result` (other arguments
every time, and always the same answer). Only loops that reach the last call are reported: one that was left is over.

A call is compared by its canonical form: keys sorted, `1.0` as `1`, white space of the JSON gone.

What this does NOT do: tell patience from a loop by the calls alone. Asking "is it done?" three times is legitimate, and
so is searching in four places that have nothing: a loop is `certain` only where every answer that is known was the same
as the one before, and `same_result` never is.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

SAME_CALLS = 3
"""Equal calls in a row that are a loop."""
ROUNDS = 3
"""Rounds of two calls in turn that are a loop."""
SAME_RESULTS = 4
"""Equal results of different calls in a row that are a loop."""
SURE_ROUNDS = 2
"""Answers of each call that must be known, and equal, for certainty."""

Kind = Literal["same_call", "ping_pong", "same_result"]


class Invocation(NamedTuple):
    """One tool call of a conversation."""

    name: str
    arguments: str
    """JSON; a text that is none is compared as it stands."""
    result: str | None = None
    """None while it is not known."""


@dataclass(frozen=True, slots=True)
class CallLoop:
    """Calls that repeat.

    Attributes:
        kind: how they repeat.
        onset: index of the first call of the loop.
        copies: calls in a row, or rounds for `ping_pong`.
        certain: whether the results say so too.
    """

    kind: Kind
    onset: int
    copies: int
    certain: bool


def find_call_loop(calls: Sequence[Invocation]) -> CallLoop | None:
    """Find the loop that the last call is part of; the most specific kind if there are several."""
    made = [(call.name, canonical(call.arguments)) for call in calls]
    return _same_call(made, calls) or _ping_pong(made, calls) or _same_result(calls)


def canonical(arguments: str) -> str:
    """Write arguments so that equal ones are equal texts; not JSON: as it stands."""
    try:
        value = json.loads(arguments)
        return json.dumps(_normal(value), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    except (ValueError, RecursionError):
        return arguments


def _normal(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _normal(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_normal(inner) for inner in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _same_call(made: Sequence[tuple[str, str]], calls: Sequence[Invocation]) -> CallLoop | None:
    copies = _run(made)
    if copies < SAME_CALLS:
        return None
    onset = len(made) - copies
    return CallLoop("same_call", onset, copies, _sure([call.result for call in calls[onset:]]))


def _ping_pong(made: Sequence[tuple[str, str]], calls: Sequence[Invocation]) -> CallLoop | None:
    # In pairs from the end. A loop that has just begun a new round has as many full ones, seen from one call earlier.
    rounds = _run([tuple(made[end - 2 : end]) for end in range(2 + len(made) % 2, len(made) + 1, 2)])
    if rounds < ROUNDS or made[-1] == made[-2]:
        return None
    onset = len(made) - 2 * rounds
    sides = ([call.result for call in calls[onset + side :: 2]] for side in (0, 1))
    return CallLoop("ping_pong", onset, rounds, all(map(_sure, sides)))


def _same_result(calls: Sequence[Invocation]) -> CallLoop | None:
    # The last calls may not have been answered yet; they neither make nor end the run.
    known = [call for call in calls if call.result is not None]
    copies = _run([call.result for call in known])
    if copies < SAME_RESULTS:
        return None
    onset = next(i for i, call in enumerate(calls) if call is known[-copies])
    return CallLoop("same_result", onset, copies, certain=False)


def _sure(results: Sequence[str | None]) -> bool:
    known = [result for result in results if result is not None]
    return len(known) >= SURE_ROUNDS and len(set(known)) == 1


def _run(items: Sequence[Any]) -> int:
    """Count the last item's copies in a row, itself included."""
    count = 0
    for item in reversed(items):
        if item != items[-1]:
            break
        count += 1
    return count
