"""Pairs of a better and a worse answer, kept for training if the site wants it; off by default.

    store = PreferenceStore(config.preferences_dir, config.preferences.max_bytes)
    store.record_break(messages, chosen, rejected, onset_token, alternatives, {"model": name})
    store.record_group(messages, chosen, [other, another], "schema")
    store.close()

A pair of a loop that was broken has the answer as it ended against the answer as it ran in circles, cut to the loop's
onset and three periods. A pair of a verified group has the answer that passed against one that did not. `pairs` gives
them in the form that TRL's DPOTrainer reads.

The pairs are lines of JSON in numbered files, mode 0600, in a directory that only the daemon's user opens. A file is
synced when it is closed, at 16 MiB or when the daemon ends, not for each pair: a power cut may cost the last ones,
which are no evidence of anything. Every start begins a new file, so that a half line of a crash stays alone; readers
leave such a line out. Nothing here raises into an answer: what cannot be kept is left out, and the log says why once.

What this does NOT do: ask. The text of prompts and answers is stored as it is, with whatever names and secrets people
typed, so it is the site's decision, made in its configuration. Nor does it delete: remove files when they are exported.

Source: TRL's documentation, "Dataset formats and types": preference, standard and conversational.
"""

import contextlib
import datetime
import logging
import os
import re
import stat
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from appliance import typed
from appliance.decoding.best_of import Candidate
from appliance.errors import FileProblem, PermissionDenied

if TYPE_CHECKING:
    from appliance.inferenced.models import Loaded
    from appliance.inferenced.responses import Answer

log = logging.getLogger("skerry.preferences")

FILE_BYTES = 16 << 20
"""Size at which a file is closed and the next one begun."""
LONGEST_RECORD = 1 << 20
"""Bytes of one record; a longer one is left out."""

Kind = Literal["break", "group"]
Messages = Sequence[Mapping[str, str]]
_NAME = re.compile(r"pairs-([0-9]{6})\.jsonl")
_LAST = 999_999


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the store.

    Attributes:
        kind: `break`: a loop was broken; `group`: verifiers preferred one candidate.
        time: in UTC.
        prompt: messages of a chat, or text.
        chosen: the better answer.
        rejected: worse ones; a break has one.
        onset_token: id of the token with which the loop began.
        alternatives: token and logprob of its likeliest rivals there.
        verifier: which one preferred.
        meta: the model and what else may matter.
    """

    kind: Kind
    time: str
    prompt: str | list[dict[str, str]]
    chosen: str
    rejected: list[str]
    onset_token: int | None = None
    alternatives: list[tuple[int, float]] = []
    verifier: str | None = None
    meta: dict[str, str | int | float] = {}

    @property
    def chat(self) -> bool:
        """Whether the prompt is a conversation."""
        return not isinstance(self.prompt, str)


class PreferenceStore:
    """The writing side. Safe to use from several threads."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        """Prepare to write below `directory`, which is made with the first pair.

        Args:
            directory: nothing else lies in it.
            max_bytes: of all files together; nothing is kept beyond.
        """
        self._directory = directory
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._fd: int | None = None
        self._file_bytes = 0
        self._others_bytes = 0
        self._stopped = False
        self._told: set[str] = set()

    def record_break(
        self,
        prompt: str | Messages,
        chosen: str,
        rejected: str,
        onset_token: int,
        alternatives: Sequence[tuple[int, float]] = (),
        meta: Mapping[str, str | int | float] | None = None,
    ) -> None:
        """Keep what came of a broken loop.

        Args:
            prompt: messages, or text.
            chosen: the whole answer as it ended.
            rejected: the answer that ran in circles, from its beginning, cut to the onset and three periods.
            onset_token: with which the loop began.
            alternatives: (token, logprob) at the onset, best first.
            meta: the model, the rung, ...
        """
        self._keep(
            lambda: Record(
                kind="break",
                time=_now(),
                prompt=_plain(prompt),
                chosen=chosen,
                rejected=[rejected],
                onset_token=onset_token,
                alternatives=[(int(t), float(p)) for t, p in alternatives],
                meta=dict(meta or {}),
            )
        )

    def record_group(
        self,
        prompt: str | Messages,
        chosen: str,
        rejected: Sequence[str],
        verifier: str,
        meta: Mapping[str, str | int | float] | None = None,
    ) -> None:
        """Keep what verifiers preferred.

        Args:
            prompt: messages, or text.
            chosen: the candidate that passed.
            rejected: candidates that did not; one that equals `chosen` teaches nothing and is left out.
            verifier: by which they differ.
            meta: the model, the task, ...
        """
        worse = list(dict.fromkeys(r for r in rejected if r != chosen))
        self._keep(
            lambda: Record(
                kind="group",
                time=_now(),
                prompt=_plain(prompt),
                chosen=chosen,
                rejected=worse,
                verifier=verifier,
                meta=dict(meta or {}),
            )
        )

    def close(self) -> None:
        """Make what was kept durable. A later pair begins another file."""
        with self._lock:
            self._close()

    # --- details ------------------------------------------------------------------------------------------------------

    def _keep(self, make: Any) -> None:
        try:
            record = make()
            line = msgspec.json.encode(record) + b"\n"
        except (ValueError, TypeError) as e:  # half a character, a number that is none
            self._tell("encode", "cannot keep a pair: %s", type(e).__name__)
            return
        if record.chosen in record.rejected or not record.rejected:
            return
        if len(line) > LONGEST_RECORD:
            self._tell("long", "cannot keep a pair: %d bytes, expected at most %d", len(line), LONGEST_RECORD)
            return
        with self._lock:
            if self._stopped:
                return
            try:
                self._write(line)
            except OSError as e:
                self._stopped = True
                self._tell("disk", "no more pairs are kept: cannot write in %s: %s", self._directory, e.strerror)
                with contextlib.suppress(OSError):
                    self._close()

    def _write(self, line: bytes) -> None:
        if self._fd is not None and self._file_bytes + len(line) > FILE_BYTES:
            self._close()
        if self._fd is None:
            self._open()
        if self._others_bytes + self._file_bytes + len(line) > self._max_bytes:
            self._stopped = True
            self._close()
            self._tell(
                "full",
                "no more pairs are kept: %s is full, its limit is %d bytes; next: skerry preferences export, then"
                " remove its files",
                self._directory,
                self._max_bytes,
            )
            return
        assert self._fd is not None  # noqa: S101  opened above
        if (written := os.write(self._fd, line)) != len(line):
            os.ftruncate(self._fd, self._file_bytes)
            raise OSError(None, f"{written} of {len(line)} bytes were written")
        self._file_bytes += len(line)

    def _open(self) -> None:
        with contextlib.suppress(FileExistsError):
            self._directory.mkdir(mode=0o700)
        info = self._directory.lstat()
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o077:
            raise OSError(None, f"expected a directory of uid {os.geteuid()} with mode 0700")
        numbers = [int(m[1]) for p in self._directory.iterdir() if (m := _NAME.fullmatch(p.name))]
        self._others_bytes = sum(p.lstat().st_size for p in self._directory.iterdir())
        number = max(numbers, default=0) + 1
        if number > _LAST:
            raise OSError(None, "the numbers of files are used up")
        path = self._directory / f"pairs-{number:06}.jsonl"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o600)
        self._file_bytes = 0

    def _close(self) -> None:
        if self._fd is None:
            return
        fd, self._fd = self._fd, None
        self._others_bytes += self._file_bytes
        self._file_bytes = 0
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _tell(self, what: str, message: str, *values: object) -> None:
        if what not in self._told:
            self._told.add(what)
            log.warning(message, *values)


# --- what an answer teaches -------------------------------------------------------------------------------------------


def keep_breaks(store: PreferenceStore, prompt: str | Messages, answer: "Answer", loaded: "Loaded") -> None:
    """Keep each broken loop of a complete answer, if the answer came to an end of its own.

    Left out is a break of which the beginning was taken back later: its text is no longer known.
    """
    if answer.finish_reason != "stop":
        return
    words = loaded.tokenizer.token_bytes
    chosen = "".join(answer.text)
    for i, done in enumerate(answer.breaks):
        if done.replacement is None or any(later.length < done.length for later in answer.breaks[i + 1 :]):
            continue
        tokens = [*answer.tokens[: done.length], *done.rejected]
        rejected = b"".join(words[token] for token in tokens).decode("utf-8", "replace")
        meta: dict[str, str | int | float] = {
            "model": loaded.name,
            "rung": done.rung,
            "loop": done.kind,
            "period": done.period,
        }
        # Where an answer began anew, its rivals are those of its first token.
        rivals = () if done.length < done.onset else done.alternatives
        store.record_break(prompt, chosen, rejected, tokens[max(done.length, done.onset)], rivals, meta)


def keep_group(
    store: PreferenceStore, prompt: str | Messages, judged: Sequence[Candidate], winner: Candidate, model: str
) -> None:
    """Keep a verified candidate against those that a verifier did not pass, each once: with the first of these."""
    if not winner.verified:
        return
    kept: set[str] = set()
    for verdict in winner.verdicts:
        name = verdict.verifier
        failed = [c.text for c in judged if any(v.verifier == name and not v.passed for v in c.verdicts)]
        worse = [text for text in failed if text not in kept]
        kept.update(worse)
        if worse:
            store.record_group(prompt, winner.text, worse, name, {"model": model})


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kept:
    """What lies in a store.

    Attributes:
        breaks: records of broken loops.
        groups: records of verified groups.
        pairs: what an export would write.
        skipped: lines that are no record: half ones of a crash.
        size_bytes: of all files.
    """

    breaks: int
    groups: int
    pairs: int
    skipped: int
    size_bytes: int


def survey(directory: Path) -> Kept:
    """Count what is kept; nothing, if there is no such directory.

    Raises:
        PermissionDenied: the directory is not this user's to read.
        FileProblem: it cannot be read for another reason.
    """
    breaks = groups = pairs_there = skipped = 0
    for record in _lines(directory):
        if record is None:
            skipped += 1
            continue
        breaks += record.kind == "break"
        groups += record.kind == "group"
        pairs_there += len(record.rejected)
    return Kept(breaks, groups, pairs_there, skipped, sum(size for _, size in _files(directory)))


def records(directory: Path, kind: Kind | None = None) -> Iterator[Record]:
    """Read what is kept, oldest first.

    Args:
        directory: of the store.
        kind: None for both.
    Raises:
        PermissionDenied, FileProblem: as `survey`.
    """
    for record in _lines(directory):
        if record is not None and kind in (None, record.kind):
            yield record


def pairs(record: Record, *, details: bool = False) -> Iterator[dict[str, Any]]:
    """Write a record as TRL reads it: one line for each worse answer.

    Args:
        record: of the store.
        details: whether what trainers do not need comes too.
    """
    for worse in record.rejected:
        pair: dict[str, Any] = {
            "prompt": record.prompt,
            "chosen": _said(record, record.chosen),
            "rejected": _said(record, worse),
        }
        if details:
            pair |= {
                "kind": record.kind,
                "time": record.time,
                "onset_token": record.onset_token,
                "alternatives": record.alternatives,
                "verifier": record.verifier,
                "meta": record.meta,
            }
        yield pair


def _said(record: Record, answer: str) -> str | list[dict[str, str]]:
    return [{"role": "assistant", "content": answer}] if record.chat else answer


def _files(directory: Path) -> list[tuple[Path, int]]:
    try:
        found = [(p, p.lstat().st_size) for p in sorted(directory.iterdir()) if _NAME.fullmatch(p.name)]
    except FileNotFoundError:
        return []
    except OSError as e:
        raise _cannot_read(directory, e) from e
    return found


def _lines(directory: Path) -> Iterator[Record | None]:
    """The records, and None for each line that is none."""
    for path, _ in _files(directory):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            with os.fdopen(fd, "rb") as file:
                while line := file.readline(LONGEST_RECORD + 1):
                    try:
                        yield typed.decode(line, Record) if line.endswith(b"\n") else None
                    except (msgspec.DecodeError, UnicodeDecodeError):
                        yield None
        except OSError as e:
            raise _cannot_read(path, e) from e


def _cannot_read(path: Path, error: OSError) -> PermissionDenied | FileProblem:
    if isinstance(error, PermissionError):
        return PermissionDenied(
            f"cannot read {path}: it is open to the daemon's user and root only", hint="run the command with sudo"
        )
    return FileProblem(f"cannot read {path}: {error.strerror}", hint="check preferences.directory in the configuration")


def _plain(prompt: str | Messages) -> str | list[dict[str, str]]:
    if isinstance(prompt, str):
        return prompt
    return [{"role": m["role"], "content": m["content"]} for m in prompt]


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
