"""Pairs are kept whole, only for the daemon's user, within their bound, and never at an answer's cost."""

import json
import logging
import os
import stat
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.decoding.best_of import Candidate
from appliance.decoding.verifiers import Verdict
from appliance.errors import FileProblem, PermissionDenied
from appliance.inferenced import preferences
from appliance.inferenced.preferences import PreferenceStore, keep_group, pairs, records, survey

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Count."}]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "preferences"


@pytest.fixture
def store(folder):
    store = PreferenceStore(folder, 1 << 20)
    yield store
    store.close()


def a_break(store, prompt="p", chosen="good", rejected="bad bad bad", **more):
    store.record_break(prompt, chosen, rejected, 7, [(7, -0.1), (9, -2.5)], **more)


def test_break_is_kept_with_all_that_is_known(store, folder):
    """Prompt, both answers, the token at the onset and its rivals, the model; a group has its verifier."""
    a_break(store, CHAT, meta={"model": "m", "period": 12})
    store.record_group("text", "right", ["wrong", "right", "wrong", "other"], "schema", {"task": "triage"})
    first, second = records(folder)
    assert (first.kind, first.prompt, first.chosen, first.rejected) == ("break", CHAT, "good", ["bad bad bad"])
    assert (first.onset_token, first.alternatives) == (7, [(7, -0.1), (9, -2.5)])
    assert first.meta == {"model": "m", "period": 12}
    assert (second.kind, second.rejected, second.verifier) == ("group", ["wrong", "other"], "schema")
    assert first.time.endswith("Z")
    assert [r.kind for r in records(folder, "group")] == ["group"]


def test_pairs_have_the_fields_of_trl(store, folder):
    """A conversation's answers are turns of the assistant, a text's are texts; one line for each worse answer."""
    a_break(store, CHAT)
    store.record_group("The sky is", " blue.", [" green.", " red."], "one_of")
    chat, text = records(folder)
    assert list(pairs(chat)) == [
        {
            "prompt": CHAT,
            "chosen": [{"role": "assistant", "content": "good"}],
            "rejected": [{"role": "assistant", "content": "bad bad bad"}],
        }
    ]
    assert list(pairs(text)) == [
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " red."},
    ]
    (detailed,) = pairs(chat, details=True)
    assert (detailed["kind"], detailed["onset_token"]) == ("break", 7)


def test_candidate_that_fails_twice_is_kept_once(store, folder):
    """A trainer would count it twice: each worse answer stands in one row, with the first verifier that it fails."""

    def candidate(index, text, *passed):
        verdicts = tuple(Verdict(ok, name) for name, ok in zip(("schema", "brief"), passed, strict=True))
        return Candidate(text=text, index=index, verdicts=verdicts)

    judged = [
        candidate(0, "both", False, False),
        candidate(1, "long", True, False),
        candidate(2, "both", False, False),
        candidate(3, "good", True, True),
    ]
    keep_group(store, "p", judged, judged[3], "m")
    assert [(r.verifier, r.rejected) for r in records(folder)] == [("schema", ["both"]), ("brief", ["long"])]


def test_files_are_the_daemons_alone(store, folder):
    """Directory 0700, file 0600, whatever the umask; nothing is made before the first pair."""
    assert not folder.exists()
    before = os.umask(0)
    try:
        a_break(store)
    finally:
        os.umask(before)
    (file,) = folder.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_folder_that_others_open_is_not_used(store, folder, caplog):
    """Somebody prepared it wrongly: nothing is written, and the log says it once."""
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    a_break(store), a_break(store)
    assert list(folder.iterdir()) == []
    assert [r.message for r in caplog.records if "mode 0700" in r.message] == [caplog.records[0].message]


def test_link_in_the_folders_place_is_not_followed(store, folder, tmp_path):
    """A link to another directory is no directory."""
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    a_break(store)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_bound_holds_and_is_told_once(folder, caplog):
    """The files together never exceed it, other runs' included; later pairs are left out in silence."""
    store = PreferenceStore(folder, 2000)
    for _ in range(50):
        a_break(store)
    store.close()
    again = PreferenceStore(folder, 2000)
    a_break(again, rejected="x" * 900)
    again.close()
    size = sum(p.stat().st_size for p in folder.iterdir())
    assert 1000 < size <= 2000
    assert survey(folder).size_bytes == size
    told = [r.message for r in caplog.records]
    assert len(told) == 2
    assert "limit is 2000 bytes" in told[0]
    assert "good" not in str(told)


def test_files_are_rotated_and_synced(folder, monkeypatch):
    """At its size a file is synced and closed, and the next number begun; so at the end."""
    synced = []
    monkeypatch.setattr(preferences, "FILE_BYTES", 500)
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")[-18:]))
    store = PreferenceStore(folder, 1 << 20)
    for _ in range(7):
        a_break(store)
    store.close()
    names = sorted(p.name for p in folder.iterdir())
    assert len(names) > 2
    assert names == [f"pairs-{n:06}.jsonl" for n in range(1, len(names) + 1)]
    assert [s.lstrip("/") for s in synced] == names
    assert len(list(records(folder))) == 7
    assert max(p.stat().st_size for p in folder.iterdir()) <= 500


def test_half_line_of_a_crash_is_left_out(store, folder):
    """The next start writes a file of its own, so that the half line stays alone; it is counted."""
    a_break(store), a_break(store)
    store.close()
    (file,) = folder.iterdir()
    file.write_bytes(file.read_bytes()[:-20])
    later = PreferenceStore(folder, 1 << 20)
    a_break(later)
    later.close()
    assert len(list(folder.iterdir())) == 2
    kept = survey(folder)
    assert (kept.breaks, kept.pairs, kept.skipped) == (2, 2, 1)


@pytest.mark.parametrize("call", ["open", "write", "mkdir"])
def test_disk_that_refuses_costs_no_answer(folder, monkeypatch, caplog, call):
    """An error of the disk ends the keeping, with one line in the log and nothing raised."""

    def refuse(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    store = PreferenceStore(folder, 1 << 20)
    if call != "mkdir":
        a_break(store)
    monkeypatch.setattr(os, call, refuse)
    if call == "open":
        store.close()
    for _ in range(3):
        a_break(store)
    store.close()
    assert [r.message.count("No space left") for r in caplog.records] == [1]


def test_short_write_leaves_no_half_line(store, folder, monkeypatch):
    """What a full disk took of a line is taken back."""
    a_break(store)
    size = survey(folder).size_bytes
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:10]))
    a_break(store)
    monkeypatch.undo()
    assert survey(folder).size_bytes == size
    assert survey(folder).skipped == 0


def test_what_cannot_be_written_is_left_out(store, folder, caplog):
    """Half a character, a record beyond its bound, a pair of equals, a group without a loser."""
    a_break(store, "\ud800")
    a_break(store, "x" * (1 << 20))
    a_break(store, chosen="same", rejected="same")
    store.record_group("p", "a", ["a"], "v")
    assert not folder.exists()
    assert len(caplog.records) == 2
    assert "x" * 50 not in caplog.text
    a_break(store)
    assert survey(folder).pairs == 1


def test_threads_do_not_mix_their_lines(folder):
    """Many writers, whole lines."""
    store = PreferenceStore(folder, 1 << 20)
    threads = [threading.Thread(target=lambda n=n: [a_break(store, str(n)) for _ in range(20)]) for n in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    store.close()
    assert (survey(folder).breaks, survey(folder).skipped) == (160, 0)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=st.text(max_size=30), chosen=st.text(max_size=30), rejected=st.text(max_size=30))
def test_any_text_comes_back_as_it_was(tmp_path_factory, prompt, chosen, rejected):
    """Line breaks, NUL, any character: one record, one line, the same text."""
    folder = tmp_path_factory.mktemp("any") / "p"
    store = PreferenceStore(folder, 1 << 20)
    a_break(store, prompt, chosen, rejected)
    store.close()
    found = list(records(folder))
    if chosen == rejected:
        assert found == []
        return
    assert [(r.prompt, r.chosen, r.rejected) for r in found] == [(prompt, chosen, [rejected])]
    assert all(line.count(b"\n") == 1 for p in folder.iterdir() for line in p.read_bytes().splitlines(keepends=True))


def test_nothing_kept_is_no_error(folder):
    """A box that never kept anything has no directory."""
    assert survey(folder) == preferences.Kept(0, 0, 0, 0, 0)
    assert list(records(folder)) == []


def test_reading_needs_the_right(store, folder, monkeypatch):
    """Who may not read is told who may; another trouble is told as it is."""
    a_break(store)

    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionDenied, match="daemon's user and root"):
        survey(folder)
    monkeypatch.undo()
    file = folder / "pairs-000009.jsonl"
    file.symlink_to("/etc/passwd")
    with pytest.raises(FileProblem, match="pairs-000009"):
        survey(folder)


def test_log_and_lines_hold_no_more_than_promised(store, folder, caplog):
    """The store's text is in its files and nowhere else."""
    caplog.set_level(logging.DEBUG)
    a_break(store, "secret question", "secret answer", "secret secret")
    assert "secret" not in caplog.text
    (file,) = folder.iterdir()
    assert set(json.loads(file.read_text())) == {
        *("kind", "time", "prompt", "chosen", "rejected", "onset_token", "alternatives"),
    }
