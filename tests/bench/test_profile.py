"""What a profile is made of: each operator counted once, and what is between them."""

from pathlib import Path
from typing import Any

import pytest

from bench import profile
from bench.forms import Form
from tests.fakes import tiny_gguf


def event(name: str, took: int) -> dict[str, Any]:
    """As onnxruntime writes it, microseconds."""
    if name == "run":
        return {"cat": "Session", "name": "model_run", "ts": 0, "dur": took, "args": {}}
    return {"cat": "Node", "name": "n1_kernel_time", "ts": 0, "dur": took, "args": {"op_name": name}}


def test_shares() -> None:
    """The last product is the head's; what scales a product belongs to rounding, and no other Mul; so do Reshapes."""
    found = profile.summed(
        [
            [
                event("Reshape", 2),
                event("ReduceSum", 4),
                event("Abs", 5),
                event("MatMulIntegerToFloat", 40),
                event("Mul", 5),
                event("Mul", 3),
                event("GroupQueryAttention", 10),
                event("Reshape", 1),
                event("MatMulNBits", 20),
                event("run", 100),
            ]
        ]
        * 2
    )
    assert found.milliseconds == 0.1
    assert found.operators == 9
    assert found.shares == {
        "matrices of the layers": 0.4,
        "head, for one row": 0.2,
        "attention": 0.1,
        "rounding tokens to 8 bits": 0.1,
        "sums of blocks": 0.06,
        "norms, gates, copies": 0.04,
        "between the operators": 0.1,
    }


@pytest.mark.parametrize("scheme", ["w8a8", "q8", "q4x"])
def test_real_steps_are_profiled(scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kind of step of a real session, and all that the form is known to have."""
    built = tiny_gguf.built(tmp_path / "box", "llama", scheme)
    monkeypatch.setattr(profile, "STEPS", {"one": (5, 1), "part": (5, 40)})
    form = Form("Skerry", scheme, Path("python"), {"path": str(built.path), "keys": str(built.state_dir / "keys")})
    found = profile.profile(form, 1, 3)
    assert list(found) == ["one", "part"]
    for step in found.values():
        assert step.milliseconds > 0
        assert step.operators > 20
        assert sum(step.shares.values()) == pytest.approx(1)
        has = {"rounding tokens to 8 bits": scheme == "w8a8", "sums of blocks": scheme == "q4x"}
        always = dict.fromkeys(
            ("matrices of the layers", "head, for one row", "attention", "between the operators"), True
        )
        for kind, there in (always | has).items():
            assert (step.shares[kind] > 0) == there, kind
    cells = profile.table({scheme: found})
    assert cells[0] == ["", f"{scheme}, one", f"{scheme}, part"]
    assert {len(row) for row in cells} == {3}
