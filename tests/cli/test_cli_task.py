"""`skerry task`: named jobs, and whether their answers were verified."""

import json

from tests.fakes.daemon import says_json

TASK = {"name": "triage", "version": "3", "description": "Sort tickets", "model": None, "candidates": 3}
GOOD = {
    "task": "triage",
    "output": '{"category": "building"}',
    "verified": True,
    "verdicts": [{"verifier": "schema", "passed": True, "reason": ""}],
    "candidates": 1,
}
BAD = GOOD | {
    "verified": False,
    "candidates": 3,
    "verdicts": [{"verifier": "schema", "passed": False, "reason": "category is missing"}],
}


def test_list(skerry, daemon):
    """Name, version and what it is for."""
    daemon.says("GET", "/skerry/v1/tasks", says_json({"tasks": [TASK]}))
    result = skerry("task", "list")
    assert result.code == 0
    assert "triage" in result.out
    assert "Sort tickets" in result.out
    daemon.says("GET", "/skerry/v1/tasks", says_json({"tasks": []}))
    assert skerry("task", "list").out == "no tasks\n"


def test_output_is_all_of_stdout(skerry, daemon, tmp_path):
    """The answer alone goes to stdout; who verified it, to stderr. Input and sources reach the daemon."""
    daemon.says("POST", "/skerry/v1/tasks/triage", says_json(GOOD))
    (tmp_path / "source.txt").write_text("a page")
    result = skerry("task", "run", "triage", "The door is stuck", "--source", tmp_path / "source.txt")
    assert (result.code, result.out) == (0, '{"category": "building"}\n')
    assert "verified by schema" in result.err
    assert daemon.requests[-1].json == {"input": "The door is stuck", "sources": ["a page"]}


def test_what_was_not_verified_has_its_own_exit_code(skerry, daemon):
    """A script must not take the best of three wrong answers for a right one."""
    daemon.says("POST", "/skerry/v1/tasks/triage", says_json(BAD))
    result = skerry("task", "run", "triage", "The door is stuck")
    assert result.code == 4
    assert "NOT verified" in result.err
    assert "category is missing" in result.err
    daemon.says("POST", "/skerry/v1/tasks/triage", says_json(BAD))
    result = skerry("task", "run", "triage", "x", "--json")
    assert (result.code, json.loads(result.out)["verified"]) == (4, False)
