"""Tasks are read strictly, render the same prompt every time, and make JSON of what the model wrote."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.agent import lines
from appliance.agent.task import biases, constraint, judges, load_task, render, result, unfinished, written
from appliance.config import dump_yaml
from appliance.decoding.conformity import conforms
from appliance.decoding.verifiers import NOTHING
from appliance.errors import ConfigError

ROOT = Path(__file__).parents[2]

SCHEMA = {
    "type": "object",
    "properties": {
        "about": {"type": "string", "maxLength": 20},
        "category": {"enum": ["equipment", "building"]},
    },
    "required": ["about", "category"],
    "additionalProperties": False,
}
SORT = {
    "format": 1,
    "name": "sort",
    "version": "1",
    "prompt": {
        "form": "text",
        "system": "Sort.",
        "template": "Ticket: {input}\n",
        "examples": [
            {"input": "A drill smokes.", "output": {"about": "drill", "category": "equipment"}},
            {"input": "A tile is loose.", "output": {"about": "tile", "category": "building"}},
            {"input": "The {input} roof leaks.", "output": {"about": "roof", "category": "building"}},
        ],
    },
    "output": {"kind": "json_schema", "schema": SCHEMA, "written": "lines"},
}


@pytest.fixture
def task(tmp_path):
    """Write and read a task with some fields changed; a dotted name changes a part."""

    def make(name="sort", **changes):
        plain = json.loads(json.dumps(SORT)) | {"name": name}
        for key, value in changes.items():
            *way, last = key.split("__")
            part = plain
            for step in way:
                part = part[step]
            if value is None:
                del part[last]
            else:
                part[last] = value
        path = tmp_path / f"{name}.yaml"
        path.write_bytes(dump_yaml(plain))
        return load_task(path)

    return make


FREE = {"output__written": "json", "prompt__examples": []}
EMPTY = {"type": "object", "properties": {"a": {"enum": ["", "x"]}}}
# what is wrong | change | words of the error
WRONG = [
    ("unknown key", {"promt": {}}, "promt"),
    ("unknown key of a part", {"prompt__sytem": "x"}, "sytem"),
    ("other format", {"format": 2}, "format"),
    ("name", {"name": "Sort It"}, "name"),
    ("template without input", {"prompt__template": "Ticket:"}, "once"),
    ("template with two", {"prompt__template": "{input} {input}"}, "once"),
    ("candidates", {"candidates": 9}, "candidates"),
    ("temperature", {"sampling": {"temperature": 3.0}}, "temperature"),
    ("schema", {"output__schema": {"type": "nonsense"}}, "type"),
    ("lines of a nested object", {"output__schema__properties__about": {"type": "object"}}, "cannot express about"),
    ("lines with something optional", {"output__schema__required": ["about"]}, "required"),
    ("kind of output", {"output": {"kind": "xml"}}, "xml"),
    ("regex", {"output": {"kind": "regex", "pattern": "(a"}}, "regular expression|regex|unclosed"),
    ("lark", {"output": {"kind": "lark", "grammar": "start: ["}}, "grammar"),
    ("verifier", {"verifiers": [{"kind": "length", "max_word": 3}]}, "max_word"),
    ("verifiers of one name", {"verifiers": [{"kind": "length"}, {"kind": "length"}]}, "same name"),
    ("example breaks the schema", {"prompt__examples": [{"input": "x", "output": {"about": "x"}}]}, "example 1"),
    ("example is an object", {"output": {"kind": "text"}}, "example 1"),
    ("shuffle of one", {"prompt__examples": [SORT["prompt"]["examples"][0]], "shuffle": True}, "two examples"),
    ("calibration of no value", {"calibration": {"category": {"roof": 1.0}}}, "roof"),
    ("calibration of no field", {"calibration": {"colour": {"red": 1.0}}}, "red"),
    ("calibration of text", {"output": {"kind": "text"}, "prompt__examples": [], "calibration": {"a": {}}}, "json_sch"),
    (
        "schema that cannot be held to",
        FREE | {"output__schema": {"type": "object", "not": {"type": "null"}}},
        "not at #",
    ),
    (
        "schema of too large a number",
        FREE | {"output__schema": {"type": "string", "minLength": 10**400}},
        "a double can",
    ),
    ("seed beyond 64 bits", {"sampling": {"seed": 2**63}}, "64 bits"),
    ("temperature that is none", {"sampling": {"temperature": math.nan}}, r"nan, .* at `\$\.sampling\.temperature`"),
    ("more characters than may be", {"verifiers": [{"kind": "length", "min_chars": 9, "max_chars": 3}]}, "max_chars 3"),
    ("more words than may be", {"verifiers": [{"kind": "length", "min_words": 9, "max_words": 3}]}, "max_words 3"),
    ("agreement with oneself", {"verifiers": [{"kind": "agreement"}]}, "candidates is 1, expected at least the 2"),
    ("enum without a value", {"output__schema__properties__category": {"enum": []}}, "enum is empty"),
    (
        "lines without room",
        {"output__schema__properties__about": {"type": "string", "maxLength": 0}},
        "expected at least 1",
    ),
    (
        "lines that are too long",
        {"output__schema__properties__about": {"type": "string", "minLength": 500}},
        "at most 200",
    ),
    ("calibration of an empty value", FREE | {"output__schema": EMPTY, "calibration": {"a": {"": 1.0}}}, "empty value"),
    ("verifier of the form's name", {"verifiers": [{"kind": "length", "name": "form"}]}, "same name"),
]


@pytest.mark.parametrize(("change", "words"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_wrong_task_is_refused_in_words(task, change, words):
    """Every row is a ConfigError that names the file and what to look for."""
    named = change.get("name")
    with pytest.raises(ConfigError, match=words) as refused:
        task(**change) if named is None else task(name=named)
    assert ".yaml" in refused.value.message
    assert refused.value.hint


def test_a_date_without_quotes_is_refused(task, tmp_path):
    """YAML makes a date of it, and no answer in JSON could ever equal that."""
    task(**FREE, output__schema={"const": "DAY"})
    file = tmp_path / "sort.yaml"
    file.write_text(file.read_text().replace("DAY", "2020-01-01"))
    with pytest.raises(ConfigError, match=r"a date, expected text in quotes - at `\$\.output\.schema\.const`"):
        load_task(file)


def test_name_is_the_files_name(task, tmp_path):
    """So that a task is found by what it is called."""
    task()
    (tmp_path / "sort.yaml").rename(tmp_path / "other.yaml")
    with pytest.raises(ConfigError, match="expected other"):
        load_task(tmp_path / "other.yaml")


# --- prompts ----------------------------------------------------------------------------------------------------------


def test_text_prompt_is_a_pattern_to_continue(task):
    """System, examples with their answers, and the input; the answer comes directly after."""
    assert render(task(), "It hums.") == (
        "Sort.\n\n"
        "Ticket: A drill smokes.\nAbout: drill\nCategory: equipment\n\n"
        "Ticket: A tile is loose.\nAbout: tile\nCategory: building\n\n"
        "Ticket: The {input} roof leaks.\nAbout: roof\nCategory: building\n\n"
        "Ticket: It hums.\n"
    )


def test_chat_prompt_is_messages(task):
    """Examples are turns; an object is JSON unless it is written as lines."""
    messages = render(task(prompt__form="chat", output__written="json", prompt__template="{input}"), "It hums.")
    assert [m["role"] for m in messages] == ["system", *["user", "assistant"] * 3, "user"]
    assert messages[2]["content"] == '{"about": "drill", "category": "equipment"}'
    assert messages[-1] == {"role": "user", "content": "It hums."}


@given(text=st.text(max_size=40))
def test_input_is_never_a_template(text):
    """Whatever is sent stands in the prompt as it is, once: braces, marks and the placeholder itself."""
    prompt = render(EXAMPLE, text)
    before, after = EXAMPLE.prompt.template.split("{input}")
    assert prompt.endswith(before + text + after)
    assert prompt.startswith(render(EXAMPLE, "")[: -len(before + after)])


def test_orders_differ_and_are_always_the_same(task):
    """With `shuffle` each candidate reads the examples in an order of its own; without it all read the same."""
    shuffled = task(shuffle=True)
    orders = [render(shuffled, "x", n) for n in range(4)]
    assert orders[0] == render(task(), "x")
    assert len(set(orders)) > 1
    assert all(sorted(o.split("\n\n")) == sorted(orders[0].split("\n\n")) for o in orders)
    assert orders == [render(shuffled, "x", n) for n in range(4)]
    assert len({render(task(), "x", n) for n in range(4)}) == 1


# --- answers ----------------------------------------------------------------------------------------------------------


def test_lines_become_json_that_the_schema_judges(task):
    """What the pattern admits is read; what it does not is left alone and fails the schema."""
    sort = task()
    pattern = constraint(sort)
    assert pattern.kind == "regex"
    said = "About: a big drill\nCategory: equipment"
    assert conforms(pattern, said) is None
    assert json.loads(result(sort, said)) == {"about": "a big drill", "category": "equipment"}
    form, schema = judges(sort)
    assert form.name == "form"
    assert schema.check(result(sort, said)).passed
    for wrong in ("About: drill\nCategory: roof", "About: \nCategory: building", "Category: building", "", "{}"):
        assert conforms(pattern, wrong) is not None
        assert not schema.check(result(sort, wrong)).passed
    assert not schema.check(result(sort, "Category: a\nAbout: building")).passed
    assert not schema.check(result(sort, "What: drill\nCategory: building")).passed
    assert not schema.check(result(sort, "About: " + "x" * 21 + "\nCategory: building")).passed


LINED = {
    "type": "object",
    "properties": {
        "what": {"type": "string"},
        "urgent": {"type": "boolean", "title": "Is it urgent"},
        "kind": {"enum": ["a.b", "c (d)"]},
        "how_many": {"type": "integer"},
        "weight": {"type": "number"},
    },
    "required": ["what", "urgent", "kind", "how_many", "weight"],
}
line = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=30)


@given(
    st.fixed_dictionaries(
        {
            "what": line,
            "urgent": st.booleans(),
            "kind": st.sampled_from(["a.b", "c (d)"]),
            "how_many": st.integers(-(10**14), 10**14),
            "weight": st.decimals(-999, 999, places=2).map(float),
        }
    )
)
def test_every_object_survives_its_lines(value):
    """Written, matched by the pattern, and read again, an object is the same."""
    lines.check(LINED)
    said = lines.write(LINED, value)
    assert lines.read(LINED, said) == value


def test_pattern_matches_what_is_written():
    """Labels are titles or names; special characters of the enum are literal; a number needs an end."""
    value = {"what": "x", "urgent": True, "kind": "c (d)", "how_many": -3, "weight": 2.5}
    said = lines.write(LINED, value)
    assert said == "What: x\nIs it urgent: true\nKind: c (d)\nHow many: -3\nWeight: 2.5"
    task_like = lines.pattern(LINED)
    from appliance.decoding.grammar import Constraint

    assert conforms(Constraint("regex", task_like), said + "\n") is None
    assert conforms(Constraint("regex", task_like), said.replace("c (d)", "axb") + "\n") is not None


@pytest.mark.parametrize(
    "part",
    [
        {"type": "array"},
        {"enum": [1]},
        {"enum": ["a\nb"]},
        {"enum": [" a"]},
        {},
        True,
        {"type": "string", "title": "a:b"},
    ],
)
def test_what_lines_cannot_express_is_refused(part):
    """Lists, numbers as words, words of several lines, a label with a colon."""
    with pytest.raises(ValueError, match="cannot express x"):
        lines.check({"type": "object", "properties": {"x": part}, "required": ["x"]})


def test_other_outputs(task):
    """JSON, a pattern, a grammar and free text: their constraint, and an answer that is its own result."""
    as_json = task(output__written="json")
    assert constraint(as_json).kind == "json_schema"
    assert json.loads(constraint(as_json).source) == SCHEMA
    assert result(as_json, "About: x") == "About: x"
    for output, kind in (
        ({"kind": "regex", "pattern": "[a-z]+"}, "regex"),
        ({"kind": "lark", "grammar": 'start: "a"+'}, "lark"),
        ({"kind": "text"}, None),
    ):
        other = task(output=output, prompt__examples=[{"input": "x", "output": "aa"}])
        found = constraint(other)
        assert (found.kind if found else None) == kind
        assert [v.name for v in judges(other)] == (["form"] if kind else [])
        assert written(other, "aa") == result(other, "aa") == "aa"


def test_declared_schema_takes_the_place_of_the_outputs(task):
    """One schema verifier, the author's; others stand beside it."""
    sort = task(verifiers=[{"kind": "schema", "name": "mine", "schema": {"type": "object"}}, {"kind": "length"}])
    assert [v.name for v in judges(sort)] == ["form", "mine", "length"]
    assert [v.name for v in judges(task(verifiers=[{"kind": "length"}]))] == ["form", "schema", "length"]


def test_an_answer_that_ended_before_its_form_fails(task):
    """Whatever the other judges say of it: a number that was cut is a number too."""
    sort = task(**FREE, output__schema={"type": "integer"})
    verdicts = unfinished(sort, "1234", NOTHING)
    assert [(v.verifier, v.passed) for v in verdicts] == [("form", False), ("schema", True)]
    assert verdicts[0].reason == "the answer ended before its form did"


def test_calibration_is_taken_off_where_the_value_is_written(task):
    """After a blank in lines, after a quote in JSON."""
    calibration = {"category": {"equipment": 1.5, "building": -0.5}}
    assert biases(task(calibration=calibration)) == {" equipment": -1.5, " building": 0.5}
    assert biases(task(calibration=calibration, output__written="json")) == {"equipment": -1.5, "building": 0.5}
    assert biases(task()) == {}


EXAMPLE = load_task(ROOT / "examples" / "triage.yaml")
