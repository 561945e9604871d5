"""`skerry preferences`: what an operator sees, and what a trainer gets."""

import json
import stat

import pytest

from appliance.inferenced.preferences import PreferenceStore

CHAT = [{"role": "user", "content": "Count."}]


@pytest.fixture
def kept(public_path):
    """A box in a folder that has kept a break of a chat and a group of a text."""

    def keep(*, text=True):
        (public_path / "box").mkdir()
        store = PreferenceStore(public_path / "box" / "preferences", 1 << 20)
        store.record_break(CHAT, "one, two", "one one \u202e\x9bone", 7, [(7, -0.1)], {"model": "m"})
        if text:
            store.record_group("The sky is", " blue", [" green", " red"], "one_of")
        store.close()
        return public_path / "box"

    return keep


def test_status(skerry, kept):
    """Counts, place and bound; that nothing more is kept now stands first."""
    result = skerry("--state-dir", kept(), "preferences", "status")
    assert result.code == 0
    assert "no; set preferences.enabled" in result.out
    assert "broken loops  1" in result.out
    assert "pairs         3" in result.out
    assert "64 MiB" in result.out
    assert max(map(len, result.out.splitlines())) <= 80


def test_status_json(skerry, kept):
    """--json has all of it."""
    box = kept()
    value = json.loads(skerry("--state-dir", box, "preferences", "status", "--json").out)
    assert value.pop("size_bytes") > 100
    assert value == {
        "enabled": False,
        "directory": str(box / "preferences"),
        "max_bytes": 64 << 20,
        "breaks": 1,
        "groups": 1,
        "pairs": 3,
        "skipped": 0,
    }


def test_a_configuration_says_where(skerry, kept, tmp_path):
    """A daemon that runs with `--config` and a directory of its own can be looked at and exported."""
    box = kept(text=False)
    file = tmp_path / "config.yaml"
    file.write_text(
        "models_dir: /m\nkeys_dir: /k\nsocket: /s\n"
        f"preferences: {{enabled: true, directory: {box}/preferences, max_bytes: 4096}}\n"
    )
    value = json.loads(skerry("preferences", "status", "--config", file, "--json").out)
    assert (value["directory"], value["enabled"], value["max_bytes"], value["pairs"]) == (
        f"{box}/preferences",
        True,
        4096,
        1,
    )
    assert len(skerry("preferences", "export", "-", "--config", file).out.splitlines()) == 1
    both = skerry("--state-dir", box, "preferences", "export", "-", "--config", file)
    assert (both.code, both.out) == (2, "")
    assert "both --state-dir and --config" in both.err


def test_status_of_a_box_that_kept_nothing(skerry, tmp_path):
    """No directory is no error."""
    assert json.loads(skerry("--state-dir", tmp_path, "preferences", "status", "--json").out)["pairs"] == 0


def test_status_tells_of_lines_that_are_not_whole(skerry, kept):
    """A crash's half line is counted."""
    box = kept()
    (file,) = (box / "preferences").iterdir()
    file.write_bytes(file.read_bytes() + b'{"kind": "br')
    assert "1 lines that are not whole" in skerry("--state-dir", box, "preferences", "status").out


def test_export_is_what_trl_reads(skerry, kept, tmp_path):
    """Prompt, chosen and rejected, one pair a line, in a file of the operator's alone."""
    file = tmp_path / "dpo.jsonl"
    result = skerry("--state-dir", kept(), "preferences", "export", file, "--form", "chat")
    assert (result.code, result.out) == (0, "")
    assert "1 pairs from" in result.err
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        {
            "prompt": CHAT,
            "chosen": [{"role": "assistant", "content": "one, two"}],
            "rejected": [{"role": "assistant", "content": "one one \u202e\x9bone"}],
        }
    ]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_export_to_standard_output(skerry, kept):
    """- is for a pipe: only lines of JSON, with nothing that could play with a terminal."""
    box = kept()
    result = skerry("--state-dir", box, "preferences", "export", "-", "--kind", "group")
    assert [json.loads(line)["rejected"] for line in result.out.splitlines()] == [" green", " red"]
    chat = skerry("--state-dir", box, "preferences", "export", "-", "--kind", "break", "--details")
    assert "\u202e" not in chat.out
    value = json.loads(chat.out)
    assert value["rejected"][0]["content"] == "one one \u202e\x9bone"
    assert (value["onset_token"], value["meta"]) == (7, {"model": "m"})


def test_conversations_and_texts_do_not_mix(skerry, kept):
    """A trainer's file has one form; with one only, nothing needs to be said."""
    box = kept()
    result = skerry("--state-dir", box, "preferences", "export", "-")
    assert (result.code, result.out) == (2, "")
    assert "--form chat" in result.err
    assert len(skerry("--state-dir", box, "preferences", "export", "-", "--form", "text").out.splitlines()) == 2


def test_one_form_needs_no_choice(skerry, kept):
    """All pairs are of chats."""
    result = skerry("--state-dir", kept(text=False), "preferences", "export", "-")
    assert (result.code, len(result.out.splitlines())) == (0, 1)


def test_export_replaces_nothing(skerry, kept, tmp_path):
    """A file that is there stays."""
    file = tmp_path / "mine"
    file.write_text("mine")
    result = skerry("--state-dir", kept(), "preferences", "export", file, "--kind", "break")
    assert result.code == 1
    assert "it exists" in result.err
    assert file.read_text() == "mine"


def test_export_of_nothing_says_so(skerry, tmp_path):
    """An empty result is a result."""
    result = skerry("--state-dir", tmp_path, "preferences", "export", "-")
    assert (result.code, result.out) == (0, "")
    assert "no pairs" in result.err


def test_wrong_kind_is_usage(skerry, tmp_path):
    """The parser's own words, exit code 2."""
    assert skerry("--state-dir", tmp_path, "preferences", "export", "-", "--kind", "loop").code == 2
