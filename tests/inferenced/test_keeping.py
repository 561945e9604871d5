"""Which breaks and which candidates become pairs for training, and with what."""

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.decoding.best_of import Candidate
from appliance.decoding.breaker import Break
from appliance.decoding.verifiers import Verdict
from appliance.inferenced import preferences
from appliance.inferenced.preferences import PreferenceStore, Record, keep_breaks, keep_group, records

WORDS = [f" w{n}".encode() for n in range(100)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "preferences"


@pytest.fixture
def store(folder: Path) -> Any:
    store = PreferenceStore(folder, 1 << 22)
    yield store
    store.close()


def said(tokens: Any) -> str:
    return b"".join(WORDS[token] for token in tokens).decode()


# The answer w1 ... w4, then the loop w5 w6 w7 from w5 on, which was taken back; w8 was drawn instead.
TOKENS = [1, 2, 3, 4, 8, 9]
LOOP, RIVALS = (5, 6, 7) * 3, ((5, -0.1), (8, -2.5))
BROKEN = Break("resample", "drift", 4, 3, 6.0, 0.9, at=20, length=4, rejected=LOOP, alternatives=RIVALS, replacement=8)


def kept(store: PreferenceStore, folder: Path, *breaks: Break, reason: str = "stop") -> list[Record]:
    """What is kept of an answer with these breaks."""
    answer: Any = SimpleNamespace(finish_reason=reason, text=["so it", " was"], tokens=TOKENS, breaks=list(breaks))
    loaded: Any = SimpleNamespace(name="m", tokenizer=SimpleNamespace(token_bytes=WORDS))
    keep_breaks(store, "p", answer, loaded)
    return list(records(folder))


def test_a_broken_loop_is_a_pair(store: PreferenceStore, folder: Path) -> None:
    """The whole answer against its beginning and the loop as it ran, with what else could have come."""
    (record,) = kept(store, folder, BROKEN)
    assert (record.chosen, record.rejected) == ("so it was", [said([1, 2, 3, 4, *LOOP])])
    assert (record.onset_token, record.alternatives) == (5, [(5, -0.1), (8, -2.5)])
    assert record.meta == {"model": "m", "rung": "resample", "loop": "drift", "period": 3}


@pytest.mark.parametrize("reason", ["length", "loop"])
def test_an_answer_without_an_end_of_its_own_is_no_example(store: PreferenceStore, folder: Path, reason: str) -> None:
    """What was cut may have been about to go wrong."""
    assert kept(store, folder, BROKEN, reason=reason) == []


def changed(**fields: Any) -> Break:
    return replace(BROKEN, **fields)


# breaks | lengths of those that are kept
BREAKS = {
    "no other token was drawn": ([changed(replacement=None)], []),
    "its beginning was taken back": ([BROKEN, changed(length=2, onset=2)], [2]),
    "the same place again": ([BROKEN, BROKEN], [4, 4]),
    "a later place": ([changed(length=2, onset=2), BROKEN], [2, 4]),
}


@pytest.mark.parametrize("name", BREAKS)
def test_breaks_whose_text_is_known_are_kept(store: PreferenceStore, folder: Path, name: str) -> None:
    """Of those that a later rewind went behind it is not."""
    breaks, lengths = BREAKS[name]
    loops = said(LOOP)
    assert [r.rejected[0] for r in kept(store, folder, *breaks)] == [said(TOKENS[:n]) + loops for n in lengths]


# --- candidates -------------------------------------------------------------------------------------------------------


def candidate(index: int, text: str, **passed: bool) -> Candidate:
    verdicts = tuple(Verdict(ok, name) for name, ok in passed.items())
    return Candidate(text=text, index=index, verdicts=verdicts)


def test_only_who_failed_a_verifier_is_worse(store: PreferenceStore, folder: Path) -> None:
    """By the verifier's name, with the model's; others that passed as well are no worse."""
    judged = [
        candidate(0, "wordy", schema=True, brief=False),
        candidate(1, "also good", schema=True, brief=True),
        candidate(2, "good", schema=True, brief=True),
    ]
    keep_group(store, "p", judged, judged[2], "m")
    (record,) = records(folder)
    assert (record.chosen, record.rejected, record.verifier) == ("good", ["wordy"], "brief")
    assert record.meta == {"model": "m"}


def test_the_best_of_bad_ones_is_no_example(store: PreferenceStore, folder: Path) -> None:
    """A winner that nobody verified teaches nothing, even where it did better than another."""
    judged = [candidate(0, "half", schema=True, brief=False), candidate(1, "bad", schema=False, brief=False)]
    keep_group(store, "p", judged, judged[0], "m")
    assert list(records(folder)) == []


# --- the store's edges ------------------------------------------------------------------------------------------------


def line_bytes(chosen: str) -> int:
    """Of a record with this answer."""
    record = Record(kind="break", time="2026-01-01T00:00:00Z", prompt="p", chosen=chosen, rejected=["b"], onset_token=7)
    return len(preferences.msgspec.json.encode(record)) + 1


def test_a_record_and_a_store_may_be_as_long_as_they_may_be(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """To the byte; one byte more is left out."""
    monkeypatch.setattr(preferences, "_now", lambda: "2026-01-01T00:00:00Z")
    monkeypatch.setattr(preferences, "LONGEST_RECORD", line_bytes("good"))
    store = PreferenceStore(folder, 2 * line_bytes("good"))
    for chosen in ("good", "better", "good", "good"):
        store.record_break("p", chosen, "b", 7)
    store.close()
    assert [r.chosen for r in records(folder)] == ["good", "good"]
    assert len(caplog.records) == 2


def test_after_a_failure_nothing_more_is_tried(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also when the disk would take it again: a reader would not know what is missing."""
    store = PreferenceStore(folder, 1 << 20)
    store.record_break("p", "good", "b", 7)

    def refuse(*_args: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", refuse)
        store.record_break("p", "better", "b", 7)
    store.record_break("p", "best", "b", 7)
    store.close()
    assert [r.chosen for r in records(folder)] == ["good"]
    assert len(caplog.records) == 1


def test_a_new_file_has_a_number_of_its_own(folder: Path) -> None:
    """Higher than any that was there, though some were exported and removed; the last number ends the keeping."""
    folder.mkdir(mode=0o700)
    (folder / "pairs-000007.jsonl").touch(0o600)
    store = PreferenceStore(folder, 1 << 20)
    store.record_break("p", "good", "b", 7)
    store.close()
    assert sorted(os.listdir(folder)) == ["pairs-000007.jsonl", "pairs-000008.jsonl"]
    (folder / "pairs-999999.jsonl").touch(0o600)
    last = PreferenceStore(folder, 1 << 20)
    last.record_break("p", "good", "b", 7)
    last.close()
    assert len(os.listdir(folder)) == 3


def test_files_that_were_closed_count(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of this run too: the bound is one of all files together."""
    monkeypatch.setattr(preferences, "FILE_BYTES", 200)
    store = PreferenceStore(folder, 600)
    for _ in range(20):
        store.record_break("p", "good", "b", 7)
    store.close()
    assert 400 < sum(file.stat().st_size for file in folder.iterdir()) <= 600


def test_a_line_without_its_end_is_no_record(folder: Path, store: PreferenceStore) -> None:
    """Whole JSON or not: its writer did not come to say so."""
    store.record_break("p", "good", "b", 7)
    store.close()
    (file,) = folder.iterdir()
    file.write_bytes(file.read_bytes().removesuffix(b"\n"))
    assert list(records(folder)) == []


def test_a_longest_record_is_read_as_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was written, its line's end included."""
    store = PreferenceStore(folder, 1 << 20)
    store.record_break("p", "good", "b", 7)
    store.close()
    (file,) = folder.iterdir()
    monkeypatch.setattr(preferences, "LONGEST_RECORD", file.stat().st_size)
    assert [r.chosen for r in records(folder)] == ["good"]


def test_of_a_turn_only_what_was_said_is_kept(folder: Path, store: PreferenceStore) -> None:
    """Its role and its words, as trainers read them."""
    store.record_break([{"role": "user", "content": "Hi", "name": "Ann"}], "good", "b", 7)
    (file,) = folder.iterdir()
    assert json.loads(file.read_text())["prompt"] == [{"role": "user", "content": "Hi"}]


def test_a_folder_of_another_user_is_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever made it could read what is kept there."""
    folder.mkdir(mode=0o700)
    store = PreferenceStore(folder, 1 << 20)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    store.record_break("p", "good", "b", 7)
    store.close()
    assert os.listdir(folder) == []


def test_a_file_that_cannot_be_synced_is_closed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is told; the descriptor does not stay open."""
    store = PreferenceStore(folder, 1 << 20)
    store.record_break("p", "good", "b", 7)
    synced: list[int] = []

    def refuse(fd: int) -> None:
        synced.append(fd)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        store.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(synced[0])


def test_what_is_left_out_is_told_once(
    store: PreferenceStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A site that asks for long texts has no line in its log for each of them."""
    monkeypatch.setattr(preferences, "LONGEST_RECORD", 10)
    for _ in range(3):
        store.record_break("p", "good", "b", 7)
    assert len(caplog.records) == 1
