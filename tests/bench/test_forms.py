"""How the peer's files are named."""

import pytest

from bench.forms import type_of


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1"),
        ("gemma-3-270m-q4_k_m.gguf", "Q4_K_M"),
        ("model-f16.gguf", "F16"),
        ("model.IQ4_NL.gguf", "IQ4_NL"),
        ("plain-model.gguf", "plain-model"),
    ],
)
def test_type_is_read_from_the_end_of_the_name(file: str, name: str) -> None:
    """The recipe's file name says what the publisher made; numbers elsewhere in it do not."""
    assert type_of(file) == name
