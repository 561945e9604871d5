"""Passes through a model that answers wait for, and how several of them become one.

A step of an answer that needs the model yields a `Forward` and goes on with its logits. Whoever drives the steps may
gather the forwards of several answers and `compute` them together, which reads the weights once for all of them; if
nobody does, a forward is computed alone when its logits are asked for:

    for step in complete(session, words, request):      # each Forward among the steps is computed alone
        ...

What is computed together has, to the bit, the logits that it has alone: a row of the matrix kernels does not depend on
the rows beside it, and the attention sees each sequence by itself. It has one way of computing for a single token and
another for several, so the two are never put into one pass. (Measured on processors with AVX2; a test says whether it
holds where it runs.)
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from appliance.decoding.sampling import Logits
from appliance.engine.cache import Cache
from appliance.engine.session import LONG, Session, Wanted

log = logging.getLogger("skerry.engine")


@dataclass(eq=False)
class Forward:
    """Tokens to append to one cache, and the logits that are wanted of them.

    Attributes:
        session: the model.
        cache: of the session.
        tokens: int64, shape (n,), n >= 1.
        rows: int64, shape (r,): the positions in `tokens` whose logits are wanted.
        instead: is asked before it is computed with others; true: it has become needless, and is not computed.
        ids: shape (m,): the tokens whose logits are wanted, where r is 1; None: all.
    """

    session: Session
    cache: Cache
    tokens: NDArray[np.int64]
    rows: NDArray[np.int64]
    instead: Callable[[], bool] = lambda: False
    ids: NDArray[np.intp] | None = None
    _logits: Logits | None = field(default=None, repr=False)
    _skipped: bool = False

    @property
    def is_long(self) -> bool:
        """Whether it is a part of a prompt, which others should not wait for more than once a round."""
        return len(self.tokens) >= LONG

    @property
    def logits(self) -> Logits:
        """float32, shape (r, vocabulary), minus infinity where not wanted; valid until the session's next pass.

        Raises:
            ContextTooLong: as `Session.forward`.
        """
        if self._logits is None:
            (self._logits,) = self.session.forward_together([self.wanted])
        return self._logits

    @property
    def wanted(self) -> Wanted:
        """What the session is asked for."""
        return Wanted(self.cache, self.tokens, self.rows, self.ids)

    def finish(self) -> bool:
        """Compute it, if nobody has; tells whether it had become needless instead."""
        self.logits  # noqa: B018  computes
        return self._skipped


def compute(forwards: Iterable[Forward]) -> None:
    """Compute forwards, as many at once as the arithmetic allows.

    A pass that fails leaves its forwards as they are: each is then computed alone, by its own answer, and an error is
    the error of that answer only.
    """
    passes: dict[tuple[int, bool], list[Forward]] = {}
    for forward in forwards:
        if _needless(forward):
            forward._logits, forward._skipped = np.empty((0, 0), np.float32), True
            continue
        passes.setdefault((id(forward.session), len(forward.tokens) == 1), []).append(forward)
    for group in passes.values():
        _compute_pass(group)


def _needless(forward: Forward) -> bool:
    try:
        return forward.instead()
    except Exception as e:  # noqa: BLE001  one answer's defect must not end the thread that computes for all
        log.error("defect before a pass: %s", type(e).__name__)
        return False


def _compute_pass(group: Sequence[Forward]) -> None:
    try:
        found = group[0].session.forward_together([f.wanted for f in group])
    except Exception as e:  # noqa: BLE001  whatever it is, it is the error of the answer that meets it alone
        log.warning("a pass for %d answers failed, each is computed alone: %s", len(group), type(e).__name__)
        return
    for forward, logits in zip(group, found, strict=True):
        forward._logits = logits
