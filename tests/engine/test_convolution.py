"""Convolutions over the last tokens: what a pass is told of the tokens before it, and what is kept of its own."""

from pathlib import Path

import numpy as np
import pytest

from appliance.engine.cache import Arena
from appliance.engine.convolution import Convolutions, Span, convolutions_of
from appliance.engine.session import Session
from tests.fakes import built_models

WIDTH, NAME = 4, "conv_inputs.0"


@pytest.fixture
def convolutions() -> Convolutions:
    return Convolutions({NAME: WIDTH}, kernel=4)


@pytest.fixture
def arena(convolutions: Convolutions) -> Arena:
    """Each value tells slot, token and channel: 100 * (slot + 1) + 10 * token + channel."""
    arena = Arena(convolutions.shapes, slots=3, capacity=16)
    slot, token, channel = np.ogrid[:3, :16, :WIDTH]
    arena.buffers[NAME][:, 0] = 100 * (slot + 1) + 10 * token + channel
    return arena


# name | tokens in the cache | of channel 0 in slot 1: the state, the latest token last
STATES = [
    ("nothing before", 0, [0, 0, 0]),
    ("one token before", 1, [0, 0, 200]),
    ("two", 2, [0, 200, 210]),
    ("as many as it sees", 3, [200, 210, 220]),
    ("more", 9, [260, 270, 280]),
    ("full", 16, [330, 340, 350]),
]


@pytest.mark.parametrize(("length", "state"), [s[1:] for s in STATES], ids=[s[0] for s in STATES])
def test_a_state_is_the_last_tokens_before_a_pass(
    convolutions: Convolutions, arena: Arena, length: int, state: list[int]
) -> None:
    """Zeros where nothing is, whatever lies in the slot beyond its length."""
    feeds = convolutions.states(arena, [Span(1, length, 0, 1)])
    found = feeds["conv_states.0"]
    assert found.shape == (1, WIDTH, 3)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[0, 0], state)
    np.testing.assert_array_equal(found[0, 3], [value + 3 * (value > 0) for value in state])


def test_sequences_stand_in_the_order_of_the_pass(convolutions: Convolutions, arena: Arena) -> None:
    """Not in that of their slots; a slot without tokens is not among them."""
    feeds = convolutions.states(arena, [Span(2, 5, 0, 4), Span(0, 3, 4, 5)])
    np.testing.assert_array_equal(feeds["conv_seqlens"], np.array([0, 4, 5], np.int32))
    np.testing.assert_array_equal(feeds["conv_states.0"][:, 0], [[320, 330, 340], [100, 110, 120]])


def test_what_a_pass_gave_lies_at_its_tokens(convolutions: Convolutions, arena: Arena) -> None:
    """And nowhere else."""
    before = arena.buffers[NAME].copy()
    kept = np.arange(5 * WIDTH, dtype=np.float32).reshape(5, WIDTH) + 1000
    convolutions.keep(arena, [Span(2, 5, 0, 4), Span(0, 3, 4, 5)], {NAME: kept})
    after = arena.buffers[NAME]
    np.testing.assert_array_equal(after[2, 0, 5:9], kept[:4])
    np.testing.assert_array_equal(after[0, 0, 3:4], kept[4:])
    after[2, 0, 5:9], after[0, 0, 3:4] = before[2, 0, 5:9], before[0, 0, 3:4]
    np.testing.assert_array_equal(after, before)


INPUTS = {"conv_states.3": ["active", 8, 2], "conv_states.5": ["active", 8, 2], "input_ids": ["tokens"]}
OUTPUTS = {"conv_inputs.3": ["tokens", 8], "conv_inputs.5": ["tokens", 8], "logits": ["rows", 320]}


def test_a_graph_says_what_it_convolves() -> None:
    """Layers and widths; a graph that only attends has none."""
    found = convolutions_of(INPUTS, OUTPUTS)
    assert found is not None
    assert found.shapes == {"conv_inputs.3": (1, 8), "conv_inputs.5": (1, 8)}
    assert convolutions_of({"input_ids": ["tokens"]}, {"logits": ["rows", 320]}) is None


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ({"conv_states.5": ["active", 9, 2]}, {}),
        ({"conv_states.5": ["active", 8, 3]}, {}),
        ({"conv_states.6": ["active", 8, 2]}, {}),
        ({}, {"conv_inputs.4": ["tokens", 8]}),
    ],
)
def test_a_graph_that_contradicts_itself_is_refused(inputs: dict[str, list], outputs: dict[str, list]) -> None:
    """Another width, another kernel, or a convolution with only one of both."""
    with pytest.raises(ValueError, match="states and inputs differ"):
        convolutions_of(INPUTS | inputs, OUTPUTS | outputs)


@pytest.mark.parametrize("architecture", built_models.ARCHITECTURES)
def test_only_a_graph_with_convolutions_pays_for_them(tmp_path: Path, architecture: built_models.Architecture) -> None:
    """In memory for each token: keys and values of the layers that attend, inputs of those that convolve."""
    with Session(built_models.tiny(tmp_path, architecture, "f32").open(), 1) as session:
        assert (session._convolutions is not None) == (architecture == "lfm2")
        each = {"llama": 2 * 2 * 2 * 16, "gemma3": 4 * 2 * 1 * 32, "qwen3": 2 * 2 * 2 * 32}
        expected = each | {"lfm2": 2 * 2 * 2 * 16 + 4 * 64}
        assert session.cache_bytes(1) == 4 * expected[architecture]
