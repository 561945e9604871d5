"""Fixtures for all tests."""

import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

settings.register_profile("skerry", deadline=None)  # how long a case takes says how busy the machine is
settings.load_profile("skerry")

MACHINES = ("tests/provision/", "tests/images/", "tests/hosts/", "tests/kit/test_box.py")
"""Tests that share machines which take long to make."""

MACHINE_S = 1800
"""What the first test that needs a machine may take: its kit has 1,200 s, its installation 600."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Where tests run side by side, a file's stay together, and all that need a machine."""
    return _ByFile(config, log)


class _ByFile(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        return "machines" if nodeid.startswith(MACHINES) else nodeid.partition("::")[0]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give those that make a machine time for it; side by side, what takes longest begins first."""
    for item in items:
        if item.nodeid.startswith(MACHINES) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(MACHINE_S))
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not item.nodeid.startswith(MACHINES))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test printed goes from process to process as UTF-8; names that are none are told as escapes."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture
def public_path() -> Iterator[Path]:
    """A temporary folder that other users may enter; pytest's own are closed to them."""
    with tempfile.TemporaryDirectory(prefix="skerry-test-") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path
