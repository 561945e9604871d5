"""`skerry disk`: what an operator and a timer see."""

import json

import pytest

from appliance.errors import FileProblem
from appliance.system import disk

FULL = disk.FileSystem(
    mount_point="/var",
    places=("data", "log"),
    size_bytes=10 << 30,
    free_bytes=1 << 29,
    used_percent=95,
    inodes_percent=3,
    level="critical",
    next_step=disk.next_step(["data", "log"]),
)
WELL = disk.FileSystem("/", ("root",), 20 << 30, 15 << 30, 25, None, "ok", None)
INODES = disk.FileSystem("/home", ("homes",), 1 << 30, 1 << 29, 50, 85, "warn", "remove what nobody needs")
BROKEN = FileProblem("cannot look at the file system of /data: Input/output error", hint="is its disk there?")


@pytest.fixture
def found(monkeypatch):
    """Set what the survey finds."""

    def set_to(*filesystems, problems=()):
        monkeypatch.setattr(disk, "survey", lambda settings: disk.Survey(filesystems, tuple(problems)))

    return set_to


def test_status(skerry, found):
    """A table that fits the screen, and the next step of what is not well."""
    found(WELL, FULL, INODES)
    result = skerry("disk", "status")
    lines = result.out.splitlines()
    assert (result.code, result.err) == (0, "")
    assert lines[1].split() == ["/", "root", "20", "GiB", "15", "GiB", "25%", "ok"]
    assert lines[2].split()[-2:] == ["95%", "critical"]
    assert "85% of inodes" in lines[3]
    assert "critical  /var" in lines
    assert "journalctl" in result.out
    assert max(map(len, lines)) <= 80


def test_status_json(skerry, found):
    """--json is the findings and the marks."""
    found(WELL, FULL)
    value = json.loads(skerry("disk", "status", "--json").out)
    assert [f["level"] for f in value["filesystems"]] == ["ok", "critical"]
    assert (value["warn_percent"], value["critical_percent"]) == (80, 90)


def test_watch_is_silent_when_all_is_well(skerry, found):
    """A timer's journal holds nothing about disks with room."""
    found(WELL)
    assert skerry("disk", "watch") == type(skerry("disk", "watch"))(0, "", "")


def test_watch_tells_what_fills_up(skerry, found, monkeypatch):
    """One line a file system, with the next step; in the journal with its priority; the code stays 0."""
    found(WELL, FULL, INODES)
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    plain = skerry("disk", "watch")
    assert (plain.code, plain.out) == (0, "")
    assert [line.partition(";")[0] for line in plain.err.splitlines()] == [
        "disk critical: /var (data, log) is 95% full, 512 MiB free",
        "disk warn: /home (homes) is 85% of inodes full, 512 MiB free",
    ]
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    assert [line[:3] for line in skerry("disk", "watch").err.splitlines()] == ["<2>", "<4>"]


@pytest.mark.parametrize("verb", ["status", "watch"])
def test_disk_that_cannot_be_read(skerry, found, verb):
    """It is an error, after what is known of the others."""
    found(FULL, problems=[BROKEN, BROKEN])
    result = skerry("disk", verb)
    assert result.code == 1
    assert "/var" in result.out + result.err
    assert result.err.count("Input/output error") == 2


def test_box_in_a_folder_has_its_data_there(skerry, tmp_path, monkeypatch):
    """--state-dir moves the place `data`, and no other."""
    seen = []
    monkeypatch.setattr(disk, "survey", lambda settings: seen.append(settings) or disk.Survey((), ()))
    assert skerry("--state-dir", tmp_path / "box", "disk", "status").code == 0
    assert seen[0].places == disk.PLACES | {"data": str(tmp_path / "box")}


def test_settings_that_cannot_be_used(skerry, tmp_path, monkeypatch):
    """A wrong disk.yaml is told by both commands and by doctor, and is no defect."""
    file = tmp_path / "disk.yaml"
    file.write_text("warn_percent: lots\n")
    monkeypatch.setattr(disk, "DISK_CONFIG_PATH", file)
    assert skerry("disk", "watch").code == skerry("disk", "status").code == 2
    findings = json.loads(skerry("--state-dir", tmp_path, "doctor", "--quick", "--json").out)["findings"]
    assert [f["level"] for f in findings if f["check"] == "filesystem"] == ["fail"]


def test_doctor_shows_the_levels(skerry, tmp_path, found):
    """A critical file system is a failure of the machine, a warning is one."""
    found(WELL, FULL, INODES)
    findings = json.loads(skerry("--state-dir", tmp_path, "doctor", "--quick", "--json").out)["findings"]
    told = {f["found"]: f for f in findings if f["check"] == "filesystem"}
    assert [f["level"] for f in told.values()] == ["ok", "fail", "warn"]
    assert told["/var (data, log): 95% full"]["mend"] == FULL.next_step
