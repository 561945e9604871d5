"""What can be said of the playbooks without running them."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PLAYBOOKS = ROOT / "playbooks"
ROLES = PLAYBOOKS / "roles"
FILES = sorted(p for p in PLAYBOOKS.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
TASK_FILES = sorted(p for p in ROLES.glob("*/*/*.yml") if p.parent.name in ("tasks", "handlers"))
MOST_TASKS = 90
"""The time of a run follows the number of its tasks."""

URL = re.compile(r"\b(https?|ftp|rsync|git|ssh)://|\bgit@|\b(apt_repository|get_url|uri)\b")
# Written where a man page or a unit's own documentation is named; nothing fetches it.
DOCUMENTATION = re.compile(r"^Documentation=(man:|file:)")


def tasks_of(content: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All tasks, those inside of blocks too."""
    found = []
    for task in content or []:
        if "block" in task:
            for part in ("block", "rescue", "always"):
                found += tasks_of(task.get(part, []))
        else:
            found.append(task)
    return found


ALL_TASKS = [(p, t) for p in TASK_FILES for t in tasks_of(yaml.safe_load(p.read_text()))]


@pytest.mark.parametrize("file", FILES, ids=lambda p: str(p.relative_to(PLAYBOOKS)))
def test_no_url_in_any_role(file: Path) -> None:
    """A box has nothing to fetch: no address of a server, and no module that could ask one."""
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not DOCUMENTATION.match(line):
            assert not URL.search(line), f"{file.relative_to(ROOT)}:{number}: {line.strip()}"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("  url: https://deb.debian.org/debian", True),
        ("  - ansible.builtin.get_url:", True),
        ("  - ansible.builtin.uri:", True),
        ("  repo: git@server:x", True),
        ("  # the kit's own folder, copy:/var/lib", False),
    ],
)
def test_the_search_for_urls_finds_them(line: str, found: bool) -> None:
    """The pattern of the test above sees what it is for."""
    assert bool(URL.search(line)) is found


def test_only_builtin_modules() -> None:
    """Every task names a module of ansible.builtin in full: nothing else is in the kit."""
    words = {
        "name", "when", "register", "tags", "vars", "loop", "loop_control", "changed_when", "failed_when", "notify",
        "check_mode", "delegate_to", "become", "become_user", "no_log", "args", "environment", "until", "retries",
        "delay", "diff", "run_once", "listen", "any_errors_fatal", "ignore_errors", "async", "poll",
    }  # fmt: skip
    for path, task in ALL_TASKS:
        modules = [k for k in task if k not in words]
        assert modules, f"{path}: {task.get('name')} names no module"
        assert all(m.startswith("ansible.builtin.") for m in modules), f"{path}: {task.get('name')}: {modules}"


def test_no_error_is_silenced() -> None:
    """No task goes on after an error that nobody looked at."""
    for path, task in ALL_TASKS:
        assert "ignore_errors" not in task, f"{path}: {task['name']}"


def test_names_say_the_area() -> None:
    """Every task is named `Area | What it does`, so that the output of a run is evidence."""
    for path, task in ALL_TASKS:
        assert re.match(r"[A-Z][\w -]* \| \S", task.get("name", "")), f"{path}: {task.get('name')}"


def test_as_few_tasks_as_promised() -> None:
    """At most 90 tasks make an appliance."""
    count = sum(1 for p, _ in ALL_TASKS if p.parent.name == "tasks")
    assert 30 < count <= MOST_TASKS, f"{count} tasks"


@pytest.mark.parametrize("role", sorted(p for p in ROLES.iterdir() if p.is_dir()), ids=lambda p: p.name)
def test_defaults_are_specified(role: Path) -> None:
    """Every default has an argument specification with a description, and every variable has the role's prefix."""
    defaults = role / "defaults" / "main.yml"
    values = yaml.safe_load(defaults.read_text()) or {} if defaults.exists() else {}
    spec = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text())["argument_specs"]["main"]
    options = spec.get("options") or {}
    assert set(values) <= set(options), "a default that is not specified"
    for name, option in options.items():
        assert name.startswith((f"{role.name}_", "skerry_")), name
        assert option.get("description"), f"{name} has no description"
        assert option.get("type"), f"{name} has no type"


def parse(play: str, *options: str, folder: Path = PLAYBOOKS) -> "subprocess.CompletedProcess[str]":
    """Let ansible-playbook read a playbook."""
    command = [Path(sys.executable).with_name("ansible-playbook"), "--syntax-check", *options, play]
    return subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("play", ["site.yml", "fleet.yml", "check.yml", "reset.yml"])
def test_playbooks_parse(play: str) -> None:
    """ansible-playbook accepts every playbook."""
    found = parse(play, "-i", "localhost,")
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("options", [(), ("-i", "."), ("-i", "roles/base/files/spy.sh")])
def test_an_inventory_is_never_a_program(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Whatever is named as an inventory, or not named, none of the roles' programs is run by Ansible reading it."""
    shutil.copytree(PLAYBOOKS, tmp_path / "playbooks")
    for program in (tmp_path / "playbooks").rglob("*"):
        if program.is_file():
            program.chmod(0o644)  # lest the test does to this machine what it forbids
    spy = tmp_path / "playbooks" / "roles" / "base" / "files" / "spy.sh"
    spy.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\necho '{{}}'\n")
    spy.chmod(0o755)
    parse("check.yml", *options, folder=tmp_path / "playbooks")
    assert not (tmp_path / "ran").exists()
