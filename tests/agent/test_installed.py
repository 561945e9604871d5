"""The directory of tasks: what lies there is looked at again when it changes, and a bad file harms no other one."""

import os

import pytest

from appliance.agent import installed
from appliance.agent.installed import InstalledTasks
from appliance.errors import ConfigError

TASK = 'format: 1\nname: {}\nversion: "1"\nprompt: {{}}\n'


@pytest.fixture
def folder(tmp_path):
    """A directory with the tasks a and b."""
    folder = tmp_path / "tasks"
    folder.mkdir(mode=0o755)
    for name in ("b", "a"):
        (folder / f"{name}.yaml").write_text(TASK.format(name))
    return folder


def test_tasks_by_name_in_order(folder):
    """Other files are none; a directory that is not there has none."""
    (folder / "notes.txt").write_text("x")
    (folder / ".hidden.yaml").write_text("x")
    found = InstalledTasks(folder).all()
    assert (list(found.tasks), found.broken) == (["a", "b"], ())
    assert InstalledTasks(folder / "none").all() == installed.Found({}, ())
    assert InstalledTasks(folder / "none").get("a") is InstalledTasks(folder).get("c") is None


def secret(folder):
    file = folder.parent / "shadow"
    file.write_text("root:$6$secret:19000\nx: [\n")
    return file


def linked(folder):
    (folder / "c.yaml").symlink_to(secret(folder))


def shared(folder):
    (folder / "c.yaml").write_text(TASK.format("c"))
    (folder / "c.yaml").chmod(0o666)


# what is wrong | how | what callers are told | what the operator is told
BROKEN = [
    ("a link", linked, "expected a regular file", "expected a regular file"),
    ("a folder", lambda d: (d / "c.yaml").mkdir(), "expected a regular file", "Is a directory"),
    ("a pipe", lambda d: os.mkfifo(d / "c.yaml"), "not a regular file", "not a regular file"),
    ("a file that others may write", shared, "mode 0666 lets others", "mode 0666 lets others"),
    ("no YAML", lambda d: secret(d).rename(d / "c.yaml"), "error at line 2, column 2", "line 2"),
    ("a key twice", lambda d: (d / "c.yaml").write_text("secret: 1\nsecret: 2\n"), "has an error", "'secret' for the second"),  # noqa: E501
    ("an odd value", lambda d: (d / "c.yaml").write_text("format: secret\n"), "error at `$.format`", "Expected `int`"),
    ("an unknown key", lambda d: (d / "c.yaml").write_text(TASK.format("c") + "secret: 1\n"), "has an error", "secret"),
    ("another name", lambda d: (d / "c.yaml").write_text(TASK.format("secret")), "has an error", "expected c"),
    ("a name that is no text", lambda d: (d / os.fsdecode(b"\xff.yaml")).write_text(TASK.format("x")), "has an error", "expected"),  # noqa: E501
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "told", "details"), [b[1:] for b in BROKEN], ids=[b[0] for b in BROKEN])
def test_a_bad_file_is_told_by_name_and_harms_no_other(folder, spoil, told, details):
    """The good ones are there; what callers are told quotes nothing of the file, what the operator is told may."""
    spoil(folder)
    tasks = InstalledTasks(folder)
    for _ in range(2):  # the second time from what is known
        found = tasks.all()
        assert list(found.tasks) == ["a", "b"]
        (broken,) = found.broken
        assert broken.name in ("c", "\\udcff")
        assert told in broken.error.message
        assert "secret" not in broken.error.message
        assert broken.error.hint
        assert details in broken.details
        broken.error.message.encode()
    if broken.name == "c":
        with pytest.raises(ConfigError, match="cannot use"):
            tasks.get("c")
    assert tasks.get("a").name == "a"


def test_a_directory_that_others_change_is_not_used(folder, tmp_path):
    """Nor a link to one, nor a file: each would let somebody else say what is a task."""
    (tmp_path / "link").symlink_to(folder)
    for wrong in (tmp_path / "link", folder / "a.yaml"):
        with pytest.raises(ConfigError, match="cannot use tasks directory"):
            InstalledTasks(wrong).all()
    folder.chmod(0o777)
    with pytest.raises(ConfigError, match="mode 0777"):
        InstalledTasks(folder).get("a")


def test_a_file_is_parsed_once_until_it_changes(folder, monkeypatch):
    """A list of many tasks costs their reading once; a change is seen, also one of the same size."""
    parsed = []
    real = installed.parse_task
    monkeypatch.setattr(installed, "parse_task", lambda data, what, name: parsed.append(name) or real(data, what, name))
    tasks = InstalledTasks(folder)
    assert tasks.all().tasks["a"].version == "1"
    assert tasks.get("a").version == "1"
    tasks.all()
    assert parsed == ["a", "b"]
    (folder / "new").write_text(TASK.format("a").replace('"1"', '"2"'))
    (folder / "new").rename(folder / "a.yaml")
    assert tasks.all().tasks["a"].version == "2"
    assert parsed == ["a", "b", "a"]
    (folder / "a.yaml").unlink()
    assert list(tasks.all().tasks) == ["b"]
    assert tasks.get("a") is None
