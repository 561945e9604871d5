"""What both engines are put through, shown on an engine of chosen logits."""

import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bench import pipe
from bench.pipe import Side, SideFailed
from bench.side import CHUNK, feed, measure_loss, measure_speed, memory, negative_log_likelihood, repeat

VOCABULARY = 7


class ScriptedEngine:
    """Gives probability 1/2 to the successor of each token and shares the rest; remembers what it was fed."""

    def __init__(self) -> None:
        self.context: list[int] = []
        self.calls: list[tuple[int, int]] = []

    def reset(self) -> None:
        self.context = []

    def append(self, tokens: NDArray[np.int64]) -> int:
        assert 1 <= len(tokens) <= CHUNK
        self.calls.append((len(self.context), len(tokens)))
        self.context += tokens.tolist()
        return 0

    def score(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        self.append(tokens)
        logits = np.full((len(tokens), VOCABULARY), math.log(0.5 / (VOCABULARY - 1)), np.float32)
        logits[np.arange(len(tokens)), (tokens + 1) % VOCABULARY] = math.log(0.5)
        return logits + 3  # a constant changes no probability

    def facts(self) -> dict[str, Any]:
        return {}

    def close(self) -> None: ...


def test_likelihood_agrees_with_the_definition() -> None:
    """Rows are scored by softmax, with a constant added that exp() could not bear, in more rows than one block."""
    rng = np.random.default_rng(5)
    logits = rng.normal(0, 4, (150, 11)).astype(np.float32) + 900
    targets = rng.integers(0, 11, 150)
    wide = logits.astype(np.float64) - 900
    expected = -sum(wide[i, t] - math.log(np.exp(wide[i]).sum()) for i, t in enumerate(targets))
    assert negative_log_likelihood(logits, targets) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_not_scored(bad: float) -> None:
    """A broken engine gives no perplexity at all, rather than a wrong one."""
    logits = np.zeros((3, 4), np.float32)
    logits[1, 2] = bad
    with (
        pytest.raises(ValueError, match="not finite"),
        np.errstate(invalid="ignore"),
    ):
        negative_log_likelihood(logits, np.array([0, 2, 1]))


@pytest.mark.parametrize(("count", "window"), [(1500, 1024), (2048, 1024), (40, 16), (600, 1024)])
def test_a_predictable_text_has_perplexity_two(count: int, window: int) -> None:
    """Every token has probability 1/2, whatever the windows; each window's first token is only context."""
    loss = measure_loss(ScriptedEngine(), np.arange(count) % VOCABULARY, window=window, bos=None)
    assert loss["perplexity"] == pytest.approx(2.0, rel=1e-6)
    assert loss["scored"] == count - math.ceil(count / window)


def test_with_a_first_token_every_token_is_scored() -> None:
    """The token that begins each window makes the first token of the text predictable too, and fits the window."""
    engine = ScriptedEngine()
    loss = measure_loss(engine, np.arange(1, 31) % VOCABULARY, window=16, bos=0)
    assert loss["scored"] == 30
    assert max(start + count for start, count in engine.calls) < 16


def test_speed_decodes_at_the_contexts_it_names() -> None:
    """Steps of one token run from position 128 and from 1,024 on, and nothing is fed in chunks over the limit."""
    engine = ScriptedEngine()
    result = measure_speed(engine, np.arange(300), prefills=[512, 600], contexts=[128, 1024], decode=8)
    assert set(result) == {"prefill_512", "prefill_600", "decode_128", "decode_1024"}
    assert [s for s, n in engine.calls if n == 1] == [*range(128, 136), *range(1024, 1032)]
    assert engine.calls[0] == (0, 512)
    assert all(v["wall_s"] > 0 for v in result.values())


def test_text_is_repeated_to_any_length() -> None:
    """A text shorter than the context starts over."""
    assert repeat(np.array([1, 2, 3]), 7).tolist() == [1, 2, 3, 1, 2, 3, 1]
    engine = ScriptedEngine()
    feed(engine, np.arange(CHUNK * 2 + 1))
    assert engine.calls == [(0, CHUNK), (CHUNK, CHUNK), (2 * CHUNK, 1)]


def test_memory_is_read_in_bytes() -> None:
    """Resident is anonymous plus file pages, roughly, and not above the peak."""
    found = memory()
    assert found["resident"] > 5_000_000
    assert found["anonymous"] + found["file"] <= found["resident"] * 1.05
    assert found["peak"] >= found["resident"] * 0.95


@pytest.fixture
def fake_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Put a module where the child looks for it: an engine that prints to standard output, as engines do."""
    (tmp_path / "bench").symlink_to(pipe.ROOT / "bench")
    (tmp_path / "fake_side.py").write_text(
        "import os\n"
        "from bench.side import serve\n"
        "def noisy(text):\n"
        "    os.write(1, b'not json\\n')\n"
        "    return text.upper()\n"
        "def fatal():\n"
        "    os.write(2, b'out of luck')\n"
        "    os._exit(7)\n"
        "serve(lambda: None, noisy=noisy, fatal=fatal)\n"
    )
    monkeypatch.setattr(pipe, "ROOT", tmp_path)
    return "fake_side"


def test_side_answers_although_its_engine_prints(fake_side: str) -> None:
    """What an engine writes to standard output does not get between the answers."""
    with Side(Path(sys.executable), fake_side) as side:
        assert side.ask("noisy", text="a") == "A"
        assert side.ask("noisy", text="b") == "B"


def test_errors_of_a_side_are_told_and_survived(fake_side: str) -> None:
    """A failed request names its cause; the next one is answered."""
    with Side(Path(sys.executable), fake_side) as side:
        with pytest.raises(SideFailed, match="no model is open"):
            side.ask("warm", tokens=[1])
        assert side.ask("noisy", text="c") == "C"


def test_an_interpreter_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A wrong --peer-python is an error in words."""
    with pytest.raises(SideFailed, match=r"cannot start .*python: No such file"):
        Side(tmp_path / "python", "bench.llama_side")


def test_an_interpreter_without_the_peer_is_named() -> None:
    """Ours has no llama-cpp-python, and that is what the message says."""
    with (
        Side(Path(sys.executable), "bench.llama_side") as side,
        pytest.raises(SideFailed, match=r"has no llama-cpp-python"),
    ):
        side.ask("versions")


def test_a_side_that_dies_leaves_its_last_words(fake_side: str) -> None:
    """The exit status and the end of standard error are in the message."""
    with Side(Path(sys.executable), fake_side) as side, pytest.raises(SideFailed, match="ended with 7: out of luck"):
        side.ask("fatal")


def test_a_server_ends_with_whoever_started_it() -> None:
    """A benchmark that is killed leaves nothing running."""
    code = """
import subprocess
from bench.pipe import end_with_parent
print(subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, preexec_fn=end_with_parent).pid, flush=True)
input()
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=pipe.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        server = Path(f"/proc/{int(parent.stdout.readline())}/stat")
        parent.kill()
    deadline = time.monotonic() + 10
    # A zombie, where nobody waits for orphans, has ended too.
    while server.exists() and server.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline, "the server goes on"
        time.sleep(0.05)
