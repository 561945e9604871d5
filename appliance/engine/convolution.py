"""What a graph that convolves over the last tokens is told before a pass, and what is kept of it for later ones.

    convolutions = convolutions_of(inputs, outputs)     # None for a graph that only attends: it pays nothing
    feeds = convolutions.states(arena, spans)           # inputs of the pass
    kept = convolutions.bind(binding, tokens)           # where the pass puts what goes into its convolutions
    convolutions.keep(arena, spans, kept)               # after the pass

What goes into a convolution is kept for every token, in the arena beside keys and values, and a state is made of it
when a pass begins. The state itself, which the operator gives out, would be smaller; but it is that of the last token
only, and a cache must be able to go back to any length, exactly, and to hand out any part of itself.

What this does NOT do: compute. The graph's contract is described in `forge.layers`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from appliance.engine.cache import Arena

_INPUTS, _STATES = "conv_inputs.", "conv_states."


@dataclass(frozen=True)
class Span:
    """Tokens of one sequence in a pass.

    Attributes:
        slot: of its cache.
        length: tokens in the cache before the pass.
        start, end: where its tokens stand in the pass.
    """

    slot: int
    length: int
    start: int
    end: int


class Convolutions:
    """The convolutions of one graph.

    Attributes:
        shapes: heads (one) and width of each buffer in the arena, by its name.
    """

    def __init__(self, widths: Mapping[str, int], kernel: int) -> None:
        """Describe them.

        Args:
            widths: channels of each, by the name of the graph's output.
            kernel: tokens that each sees, its own included.
        """
        self.shapes = {name: (1, width) for name, width in widths.items()}
        self._before = kernel - 1

    def states(self, arena: Arena, spans: Sequence[Span]) -> dict[str, NDArray[Any]]:
        """Make the inputs of a pass.

        Args:
            spans: of the sequences that have tokens, in the order in which they stand in the pass.
        Returns:
            conv_seqlens int32 [active + 1], and conv_states.{i} float32 [active, width, kernel - 1].
        """
        feeds: dict[str, NDArray[Any]] = {"conv_seqlens": np.array([0, *(span.end for span in spans)], np.int32)}
        for name, (_, width) in self.shapes.items():
            state = np.zeros((len(spans), width, self._before), np.float32)  # zeros: nothing stands before a text
            for row, span in zip(state, spans, strict=True):
                for back in range(1, min(self._before, span.length) + 1):  # one by one: three times faster than .T
                    row[:, -back] = arena.buffers[name][span.slot, 0, span.length - back]
            feeds[name.replace(_INPUTS, _STATES)] = state
        return feeds

    def bind(self, binding: Any, tokens: int) -> dict[str, NDArray[np.float32]]:
        """Give each output of a pass over so many tokens its memory: float32 [tokens, width], to hold until its end."""
        kept = {name: np.empty((tokens, width), np.float32) for name, (_, width) in self.shapes.items()}
        for name, values in kept.items():
            binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(values))
        return kept

    def keep(self, arena: Arena, spans: Sequence[Span], kept: Mapping[str, NDArray[np.float32]]) -> None:
        """Write what a pass put there to the places of its tokens."""
        for name, values in kept.items():
            for span in spans:
                end = span.length + span.end - span.start
                arena.buffers[name][span.slot, 0, span.length : end] = values[span.start : span.end]


def convolutions_of(inputs: Mapping[str, Sequence[Any]], outputs: Mapping[str, Sequence[Any]]) -> Convolutions | None:
    """Read the convolutions of a graph from its inputs and outputs; None: it has none.

    Args:
        inputs, outputs: shapes by name.
    Raises:
        ValueError: they do not fit together.
    """
    states = {name.replace(_STATES, _INPUTS): shape for name, shape in inputs.items() if name.startswith(_STATES)}
    widths = {name: shape[-1] for name, shape in outputs.items() if name.startswith(_INPUTS)}
    if not states and not widths:
        return None
    befores = {shape[2] for shape in states.values()}
    if widths != {name: shape[1] for name, shape in states.items()} or len(befores) != 1:
        raise ValueError("its convolutions' states and inputs differ")
    return Convolutions({name: int(width) for name, width in widths.items()}, int(befores.pop()) + 1)
