"""The suite's cases are read, written, counted and judged as the table says."""

import json
import tarfile
from pathlib import Path

import pytest

from appliance.decoding import conformity
from appliance.decoding.grammar import Vocabulary
from bench import schemas
from bench.schemas import Case, Counts

BYTES = Vocabulary([*(bytes([b]) for b in range(256)), b""], {"<end>": 256}, [256], lambda text: list(text.encode()))
PERSON = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}, "required": ["age"]}
ENCODED = {"$schema": schemas.DIALECTS["draft7"], "type": "string", "contentEncoding": "base64"}
"""What no grammar knows, and the second check does."""


def test_members_are_written_in_the_schemas_order() -> None:
    """The grammar's order, at every depth; and as they came, if that differs."""
    instance = {"x": [{"age": 3, "name": "a"}], "age": 1, "name": "b"}
    assert schemas.written(instance, PERSON) == [
        '{"name": "b", "age": 1, "x": [{"name": "a", "age": 3}]}',
        '{"x": [{"age": 3, "name": "a"}], "age": 1, "name": "b"}',
    ]
    assert schemas.written([1, "é"], True) == ['[1, "é"]']


def test_cases_get_the_dialect_of_their_folder(tmp_path: Path) -> None:
    """Unless they declare one; booleans cannot."""
    group = {
        "description": "d",
        "schema": {"type": "null"},
        "tests": [{"description": "t", "data": None, "valid": True}],
    }
    folder = tmp_path / "draft7" / "optional"
    folder.mkdir(parents=True)
    (folder / "a.json").write_text(json.dumps([group, group | {"schema": True}]))
    first, second = schemas.cases(tmp_path, "draft7")
    assert first.schema == {"$schema": "http://json-schema.org/draft-07/schema#", "type": "null"}
    assert first.name == "draft7/optional/a.json: d"
    assert first.instances == ((None, True),)
    assert second.schema is True
    assert schemas.with_dialect({"$schema": "x"}, "draft4") == {"$schema": "x"}


def test_counts() -> None:
    """Compiled or refused; valid ones accepted; invalid ones that the grammar alone, or both checks, accept."""
    found = [
        Case("draft7", "a", PERSON, (({"age": 1, "name": "x"}, True), ({"age": "x"}, False))),
        Case("draft7", "b", {"not": {}}, ((1, False),)),
        Case("draft7", "c", ENCODED, (("%%%", False), ("abcd", True))),
    ]
    counts = schemas.measure(iter(found), BYTES)
    assert (counts.schemas, counts.compiled) == (3, 2)
    assert (counts.valid, counts.valid_accepted) == (2, 2)
    assert (counts.invalid, counts.invalid_in_grammar, counts.invalid_accepted) == (2, 1, [])
    assert counts.refused_for == {"not": 1}
    assert counts.mask_us


def test_invalid_one_that_is_accepted_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the second check gone, the grammar's gap shows, and the table says so."""
    monkeypatch.setattr(schemas, "conforms", lambda *_: None)
    case = Case("draft7", "c", ENCODED, (("%%%", False),))
    counts = schemas.measure(iter([case]), BYTES)
    assert counts.invalid_accepted == ['c: "%%%"']
    text = schemas.table({"draft7": counts})
    assert "| draft7 | 1 | 1 | 0 | 0 of 0 | 1 of 1 | 1 |" in text
    assert "INVALID ACCEPTED: c" in text
    assert conformity.conforms is not schemas.conforms


def test_reason_is_the_keyword() -> None:
    """What a table can count."""
    assert schemas.reason("cannot use this JSON schema: if, then at #/a is not supported") == "if"
    assert schemas.reason("cannot use this JSON schema: format at #: Unknown format: x") == "format"
    assert schemas.reason("cannot use this JSON schema: nested deeper than 48 levels") == "nested deeper than 48 levels"


def test_totals_are_sums() -> None:
    """Every count is carried over."""
    one = Counts(1, 1, 2, 1, 3, 1, ["x"])
    one.refused_for["not"] += 1
    total = Counts()
    total.add(one)
    total.add(one)
    assert (total.schemas, total.compiled, total.valid, total.valid_accepted) == (2, 2, 4, 2)
    assert (total.invalid, total.invalid_in_grammar, total.invalid_accepted) == (6, 2, ["x", "x"])
    assert total.refused_for == {"not": 2}


def test_suite_is_taken_from_the_package(tmp_path: Path) -> None:
    """Only the suite's own files, and nothing is fetched that is there."""
    name = schemas.PACKAGE.replace("==", "-")
    source = tmp_path / "source.json"
    source.write_text("[]")
    with tarfile.open(tmp_path / f"{name}.tar.gz", "w:gz") as tar:
        tar.add(source, f"{name}/json/tests/draft7/a.json")
        tar.add(source, f"{name}/setup.json")
    suite = schemas.fetched(tmp_path)
    assert suite == tmp_path / name / "json" / "tests"
    assert [p.name for p in tmp_path.rglob("*.json")].count("a.json") == 1
    assert not (tmp_path / name / "setup.json").exists()
