"""What few logits save: a figure for each number of tokens, set against all of them."""

import re
from pathlib import Path

import pytest

from bench import few
from bench.forms import Form
from tests.fakes import built_models


def test_each_number_of_tokens_has_a_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens a second, and the ratio to all tokens, which is 1 for themselves."""
    built = built_models.tiny(tmp_path / "box")
    monkeypatch.setattr(few, "COUNTS", (None, 1, 6))
    form = Form("Skerry", "q8", Path("python"), {"path": str(built.path), "keys": str(built.state_dir / "keys")})
    found = [re.fullmatch(r"([\d.]+) \(([\d.]+)x\)", cell) for cell in few.measure(form, 1, 3)]
    assert len(found) == 3
    assert all(cell and float(cell[1]) > 0 for cell in found)
    assert found[0]
    assert found[0][2] == "1.00"
