"""Fixtures for all tests."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def public_path() -> Iterator[Path]:
    """A temporary folder that other users may enter; pytest's own are closed to them."""
    with tempfile.TemporaryDirectory(prefix="skerry-test-") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path
