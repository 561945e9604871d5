"""The tree as a newcomer sees it."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("appliance", "tui", "kit", "images", "bench", "examples")
MODULES = sorted(p for d in PARTS for p in (ROOT / d).rglob("*.py"))


@pytest.mark.parametrize("module", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_has_one_job(module: Path) -> None:
    """No module is longer than 600 lines, and each says in its first line what it is for."""
    lines = module.read_text().splitlines()
    assert len(lines) <= 600
    assert lines[0].startswith('"""')
