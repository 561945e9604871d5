"""What a soak makes of the memory that it saw."""

import os

import pytest

from bench.soak import halves, judge, state


@pytest.mark.parametrize(
    ("sizes", "code", "word"),
    [
        ([200, 190, 210, 200, 195, 205], 0, "flat"),
        ([200, 200, 200, 200, 210, 209], 0, "flat"),
        ([200, 205, 210, 215, 220, 225], 1, "GROWS"),
        ([400, 300, 200, 200, 200, 200], 0, "flat"),
        ([200, 500, 900], 0, "not judged"),
        ([], 0, "not judged"),
    ],
)
def test_memory_at_rest_is_judged(sizes: list[int], code: int, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The second half against the first; too few figures tell nothing."""
    assert judge(sizes) == code
    assert capsys.readouterr().out.startswith(word)


def test_halves() -> None:
    """Medians, so that one odd figure is none; nothing is zero."""
    assert halves([1, 2, 100, 5, 6, 7]) == (2, 6)
    assert halves([]) == (0, 0)


def test_state_of_a_process_is_read() -> None:
    """Of this one: some memory, its standard streams, a thread."""
    resident, files, threads = state(os.getpid())
    assert resident > 1 << 20
    assert files >= 3
    assert threads >= 1
