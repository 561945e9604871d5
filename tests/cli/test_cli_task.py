"""`skerry task`: named jobs, and whether their answers were verified."""

import json

import pytest

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


def test_list_names_what_is_broken(skerry, daemon):
    """On standard error, beside the good ones; in JSON with them."""
    broken = {"name": "sort", "error": "cannot use task sort: its file has an error at line 3, column 1"}
    listed = says_json({"tasks": [TASK], "broken": [broken]})
    daemon.says("GET", "/skerry/v1/tasks", listed)
    result = skerry("task", "list")
    assert (result.code, "sort:" in result.out) == (0, False)
    assert "broken: sort: cannot use task sort: its file has an error at line 3, column 1" in result.err
    daemon.says("GET", "/skerry/v1/tasks", listed)
    result = skerry("task", "list", "--json")
    assert json.loads(result.out) == {"tasks": [TASK], "broken": [broken]}


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


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"verdicts": []}, "NOT verified: the task has no verifier; 1 candidate"),
        ({"finish_reason": "loop"}, "NOT verified: it was ended in a loop; 1 candidate"),
    ],
    ids=["no verifier", "a loop"],
)
def test_what_no_verifier_refused_is_not_verified_by_that(skerry, daemon, said, told):
    """The exit code and the words are the daemon's word, not the absence of a failed verdict."""
    daemon.says("POST", "/skerry/v1/tasks/triage", says_json(GOOD | {"verified": False} | said))
    result = skerry("task", "run", "triage", "The door is stuck")
    assert (result.code, result.out) == (4, '{"category": "building"}\n')
    assert told in result.err


@pytest.mark.parametrize("name", ["../x", ".."])
def test_a_name_with_a_path_is_no_task(skerry, daemon, name):
    """It is said so, and nothing is sent."""
    result = skerry("task", "run", name, "x")
    assert result.code == 1
    assert f"cannot run task '{name}': it is not installed" in result.err
    assert daemon.requests == []
