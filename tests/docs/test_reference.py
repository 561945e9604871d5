"""The reference tells what the code does: its tables are compared with the code, row by row."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec
import pytest
import typer.main

from appliance.cli import console, main
from appliance.config import Config, Drafts, Limits, Preferences, Prefixes, load_config
from appliance.errors import SkerryError, VerificationFailed, every_error
from appliance.forge import recipe
from appliance.forge.quantize import DESCRIPTIONS
from appliance.inferenced.main import Daemon
from appliance.inferenced.requests import ChatRequest, TextRequest
from appliance.models import package
from appliance.models.card import Card
from appliance.receipt.statement import Predicate
from appliance.system import disk
from tests.docs import commands, variables
from tests.docs.blocks import ROOT, blocks

REFERENCE = ROOT / "docs" / "reference"

Rows = list[list[str]]


def table(page: str, heading: str) -> Rows:
    """The cells of the first table below a heading, without its head; backquotes are taken off."""
    lines = (REFERENCE / page).read_text(encoding="utf-8").splitlines()
    start = next((i for i, line in enumerate(lines) if line.lstrip("#") == f" {heading}" and line[0] == "#"), None)
    assert start is not None, f"{page} has no heading {heading!r}"
    rows = []
    for line in lines[start + 1 :]:
        if line.startswith("#") or (rows and not line.startswith("|")):
            break
        if line.startswith("|"):
            cells = re.split(r"(?<!\\)\|", line.strip()[1:-1])
            rows.append([re.sub(r"^`([^`]*)`$", r"\1", cell.strip()) for cell in cells])
    assert len(rows) > 2, f"{page}: no table below {heading!r}"
    return rows[2:]


def assert_same(found: list[Any], expected: list[Any], what: str) -> None:
    """The same entries, each once, in any order; says which are missing and which are too many."""
    missing, unknown = [e for e in expected if e not in found], [f for f in found if f not in expected]
    assert not missing, f"{what}: not documented: {missing}"
    assert not unknown, f"{what}: documented, but not there: {unknown}"
    assert len(found) == len(expected), f"{what}: something stands twice"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(Config.default(tmp_path))
    yield daemon
    daemon.scheduler.close()


def test_every_route_is_documented_with_its_role(daemon: Daemon) -> None:
    """Method, path and role of the route table."""
    found = [(method, path, role) for method, path, role, _ in table("api.md", "Routes")]
    expected = [(r.method, r.path, "anyone" if r.role is None else str(r.role)) for r in daemon.routes()]
    assert_same(found, expected, "routes")


def test_every_request_field_is_documented() -> None:
    """Fields of both bodies: those that they share, and those of one only."""
    chat, text = set(ChatRequest.__struct_fields__), set(TextRequest.__struct_fields__)
    for heading, expected in (
        ("Both inference routes", chat & text - {"logprobs"}),
        ("POST /v1/chat/completions, besides", chat - text | {"logprobs"}),
        ("POST /v1/completions, besides", text - chat | {"logprobs"}),
    ):
        assert_same([row[0] for row in table("api.md", heading)], sorted(expected), heading)


def test_every_error_is_documented_with_status_and_exit_code() -> None:
    """Kind, HTTP status and exit code of the whole tree of errors."""
    found = [(kind, int(status.strip("()")), int(code)) for kind, status, code, _ in table("api.md", "Errors")]
    # Tests of other modules may have made subclasses of their own.
    ours = [e for e in every_error() if e.__module__ == SkerryError.__module__]
    assert_same(found, [(e.kind, e.http_status, e.exit_code) for e in ours], "errors")


def test_every_refusal_of_a_package_is_documented() -> None:
    """The kinds of `VerificationFailed`."""
    found = [row[0] for row in table("model-package.md", "What is refused")]
    assert_same(found, [e.kind for e in every_error(VerificationFailed)], "refusals")


@pytest.mark.parametrize(
    ("heading", "struct"),
    [
        ("The daemon", Config),
        ("limits", Limits),
        ("preferences", Preferences),
        ("prefixes", Prefixes),
        ("drafts", Drafts),
    ],
)
def test_every_setting_is_documented_with_its_default(heading: str, struct: type[msgspec.Struct]) -> None:
    """Fields and defaults of the configuration."""
    found = [(name, default) for name, default, _ in table("configuration.md", heading)]
    assert_same(found, [(f.name, _default(f)) for f in msgspec.structs.fields(struct)], heading)


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.default is msgspec.NODEFAULT:
        return "required"
    if isinstance(field.default, msgspec.Struct):
        return "see below"
    if isinstance(field.default, bool):
        return str(field.default).lower()
    if isinstance(field.default, int | float):
        return f"{field.default:.0f}"
    return {(): "[]", None: "null"}[field.default]


def test_configuration_example_is_accepted(tmp_path: Path) -> None:
    """The example is a configuration, and none that says what the defaults say anyway."""
    example = next(b for b in blocks(REFERENCE / "configuration.md") if b.language == "yaml")
    file = tmp_path / "config.yaml"
    file.write_text(example.code)
    assert load_config(file).preload == ("smollm2-135m-instruct-w8a8",)


def test_every_metric_is_documented_with_type_and_labels(daemon: Daemon) -> None:
    """Name as it is exposed, type and labels."""
    found = [
        (name, kind, tuple(re.findall(r"\w+", labels))) for name, kind, labels, _ in table("metrics.md", "Metrics")
    ]
    expected = []
    for collector in daemon.metrics._registry._collector_to_names:
        (family,) = collector.describe()
        suffix = "_total" if family.type == "counter" else ""
        expected.append((family.name + suffix, family.type, tuple(collector._labelnames)))
    assert_same(found, expected, "metrics")


def test_every_file_of_a_package_is_documented() -> None:
    """Required, optional and the signature."""
    found = [(name, required) for name, required, _ in table("model-package.md", "Files")]
    expected = [
        *((f, "yes") for f in package.REQUIRED_FILES),
        *((f, "no") for f in package.OPTIONAL_FILES),
        (package.SIGNATURE_FILE, "to load"),
    ]
    assert_same(found, expected, "files")


@pytest.mark.parametrize(
    ("page", "heading", "struct"),
    [
        ("model-package.md", "The card", Card),
        ("recipes.md", "Fields", recipe._Fields),
        ("receipt.md", "What it says", Predicate),
    ],
)
def test_every_field_of_card_and_recipe_is_documented(page: str, heading: str, struct: type[msgspec.Struct]) -> None:
    """Paths of all fields; a list or an optional part has a row of its own and one for each field."""
    assert_same([row[0] for row in table(page, heading)], list(_paths(struct)), page)


def _paths(struct: type[msgspec.Struct], prefix: str = "") -> Iterator[str]:
    for field in msgspec.structs.fields(struct):
        inner, many = _struct_in(field.type)
        if inner is None or many or field.default is None:
            yield prefix + field.encode_name
        if inner is not None:
            yield from _paths(inner, f"{prefix}{field.encode_name}{'[]' if many else ''}.")


def _struct_in(annotation: Any) -> tuple[type[msgspec.Struct] | None, bool]:
    """The structure that a field holds, if it holds one, and whether it holds several."""
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return annotation, False
    for argument in get_args(annotation):
        inner, many = _struct_in(argument)
        if inner is not None:
            return inner, many or get_origin(annotation) is tuple
    return None, False


def test_every_quantization_is_documented() -> None:
    """Schemes, in the words that cards use."""
    assert_same([tuple(r) for r in table("recipes.md", "Quantization")], list(DESCRIPTIONS.items()), "schemes")


def test_every_recipe_is_documented() -> None:
    """The files of models/."""
    found = [row[0] for row in table("recipes.md", "Recipes")]
    assert_same(found, [p.name for p in (ROOT / "models").glob("*.yaml")], "recipes")


def test_every_command_of_the_console_is_documented() -> None:
    """Commands, options and arguments that the console offers."""
    tree = console.offered(typer.main.get_command(main.app))
    expected = []
    for words in console._OFFERED:
        command: Any = tree
        for word in words.split():
            command = command.commands[word]
        expected.append((words, {max(p.opts, key=len) if p.opts[0][0] == "-" else p.metavar for p in command.params}))
    found = [(words, set(options.replace("`", "").split())) for words, options in table("console.md", "Commands")]
    assert_same(found, expected, "console")


def test_every_watermark_is_documented() -> None:
    """Fields and defaults of disk.yaml."""
    found = [(name, default) for name, default, _ in table("configuration.md", "Watermarks of the disks")]
    s = disk.Settings()
    defaults = {"places": ", ".join(s.places)}
    assert_same(found, [(f, defaults.get(f, str(getattr(s, f)))) for f in s.__struct_fields__], "disk.yaml")


def test_commands_page_is_what_the_commands_say() -> None:
    """commands.md is generated: python -m tests.docs.commands > docs/reference/commands.md"""
    assert (REFERENCE / "commands.md").read_text(encoding="utf-8") == commands.render()


def test_variables_page_is_what_the_roles_say() -> None:
    """variables.md is generated: python -m tests.docs.variables > docs/reference/variables.md"""
    assert (REFERENCE / "variables.md").read_text(encoding="utf-8") == variables.render()


def test_every_dependency_is_documented() -> None:
    """Runtime, station and development requirements of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for heading, requirements in (
        ("On a box", project["dependencies"]),
        ("On a station", extras["station"]),
        ("For development", extras["dev"]),
    ):
        names = [re.split(r"[<>=!~\[; ]", r)[0] for r in requirements]
        assert_same([row[0] for row in table("dependencies.md", heading)], names, heading)
