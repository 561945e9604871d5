"""The folder of receipts: what is added, when nothing is, and what is refused."""

import datetime
import json
import os
from pathlib import Path

import msgspec
import pytest

from appliance.errors import FileProblem, InvalidRequest, SkerryError, UnknownKey, UnsafeFile, VerificationFailed
from appliance.receipt import folder as receipts
from appliance.receipt.statement import State, peek, verify
from appliance.system import clock
from appliance.trust.keys import KeySet, PrivateKey, PublicKey, generate
from tests.receipt.test_receipt_statement import STATE

NOW = datetime.datetime(2026, 11, 22, 18, 0, 0, tzinfo=datetime.UTC)
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
HOUR = datetime.timedelta(hours=1)


def state(n: int) -> State:
    """Different states for different numbers."""
    return msgspec.structs.replace(STATE, files={f"/etc/skerry/{n}.yaml": "c" * 64})


def write_some(folder: Path, key: PrivateKey, count: int = 3) -> list[str]:
    for n in range(count):
        receipts.write(folder, state(n), key, NOW + n * HOUR)
    return receipts.names(folder)


def test_first_receipt(folder: Path, key: PrivateKey) -> None:
    """It is numbered, verifies with the key that lies beside it, and can be read by all."""
    done = receipts.write(folder, STATE, key, NOW)
    assert done.changed
    assert sorted(os.listdir(folder)) == ["box.pub", "receipt-000001-2026-11-22T180000Z.json"]
    found = verify(done.path.read_bytes(), KeySet.of(PublicKey.load(folder / "box.pub")))
    assert (found.predicate.serial, found.predicate.previous, found.predicate.state) == (1, None, STATE)
    assert done.path.stat().st_mode & 0o777 == 0o644


def test_same_state_writes_nothing(folder: Path, key: PrivateKey) -> None:
    """A second provisioning that changed nothing leaves the folder as it is, to the byte and the time of change."""
    receipts.write(folder, STATE, key, NOW)
    before = {name: os.stat(folder / name).st_mtime_ns for name in os.listdir(folder)}
    done = receipts.write(folder, STATE, key, NOW + HOUR)
    assert not done.changed
    assert done.path.name.startswith("receipt-000001-")
    assert {name: os.stat(folder / name).st_mtime_ns for name in os.listdir(folder)} == before


def test_receipts_name_the_ones_before(folder: Path, key: PrivateKey) -> None:
    """Each new one counts on and holds its predecessor's digest; names sort in the order of writing."""
    names = write_some(folder, key)
    assert [n[:14] for n in names] == ["receipt-000001", "receipt-000002", "receipt-000003"]
    found = [peek((folder / n).read_bytes()).predicate for n in names]
    assert [p.previous for p in found[1:]] == [receipts._digest(folder / n) for n in names[:-1]]


@pytest.mark.parametrize(
    ("name", "now", "said"),
    [
        ("an hour later", NOW + HOUR, "plausible"),
        ("an hour earlier", NOW - HOUR, "doubtful: earlier than the receipt before"),
        ("a dead battery", EPOCH, f"wrong: before this release of {clock.RELEASED}"),
        ("far in the future", NOW + datetime.timedelta(days=9000), "wrong: 20 years after this release"),
    ],
)
def test_clock_is_judged_and_never_trusted(
    folder: Path, key: PrivateKey, name: str, now: datetime.datetime, said: str
) -> None:
    """A wrong clock does not stop a receipt, and does not change the order of the names; it is said in the receipt."""
    receipts.write(folder, state(1), key, NOW)
    done = receipts.write(folder, state(2), key, now)
    assert done.predicate.clock.startswith(said)
    assert receipts.names(folder)[-1] == done.path.name


def test_new_key_is_a_new_receipt(folder: Path, key: PrivateKey) -> None:
    """After a new key the same state is signed again; the old public key stays for the old receipts."""
    receipts.write(folder, STATE, key, NOW)
    other = generate()
    done = receipts.write(folder, STATE, other, NOW + HOUR)
    assert (done.changed, done.key_id) == (True, other.public().key_id)
    assert PublicKey.load(folder / "box.pub") == other.public()
    assert PublicKey.load(folder / f"box-{key.public().key_id[:16]}.pub") == key.public()
    assert not receipts.write(folder, STATE, other, NOW + HOUR).changed


def test_missing_public_key_is_written_again(folder: Path, key: PrivateKey) -> None:
    """Also where there is no new receipt to write."""
    receipts.write(folder, STATE, key, NOW)
    (folder / "box.pub").unlink()
    assert not receipts.write(folder, STATE, key, NOW).changed
    assert PublicKey.load(folder / "box.pub") == key.public()


def test_oldest_may_be_taken_away(folder: Path, key: PrivateKey) -> None:
    """Room can be made from the old end."""
    names = write_some(folder, key)
    (folder / names[0]).unlink()
    assert receipts.write(folder, state(9), key, NOW).predicate.serial == 4


def test_left_over_of_a_killed_writer_is_no_receipt(folder: Path, key: PrivateKey) -> None:
    """A temporary file, or one of somebody else's, is not looked at."""
    receipts.write(folder, STATE, key, NOW)
    (folder / ".receipt-000002-2026-11-22T190000Z.json.x7").write_text("{")
    (folder / "notes.txt").write_text("bring a cable")
    assert not receipts.write(folder, STATE, key, NOW).changed


def cut(folder: Path, names: list[str]) -> None:
    (folder / names[-1]).write_bytes((folder / names[-1]).read_bytes()[:-40])


def edit(folder: Path, names: list[str]) -> None:
    envelope = json.loads((folder / names[-1]).read_text())
    envelope["payload"] = json.loads((folder / names[0]).read_text())["payload"]
    (folder / names[-1]).write_text(json.dumps(envelope))


def edit_older(folder: Path, names: list[str]) -> None:
    (folder / names[0]).write_bytes((folder / names[0]).read_bytes() + b" ")


def forge(folder: Path, names: list[str]) -> None:
    other = generate()
    again = folder.parent / "again"
    again.mkdir(mode=0o755)
    for n in range(3):
        receipts.write(again, state(n), other, NOW + n * HOUR)
    for name in names:
        (folder / name).write_bytes((again / name).read_bytes())


SPOILS = [
    ("the newest is cut off", cut),
    ("the newest has another one's content", edit),
    ("an older one was changed", edit_older),
    ("one in the middle is missing", lambda f, n: (f / n[1]).unlink()),
    ("the newest is copied to a higher number", lambda f, n: (f / n[2]).rename(f / n[2].replace("000003", "000007"))),
    ("all were made by somebody else", forge),
]


@pytest.mark.parametrize(("name", "spoil"), SPOILS, ids=[name for name, _ in SPOILS])
def test_broken_folder_is_refused(folder: Path, key: PrivateKey, name: str, spoil: object) -> None:
    """Nothing is added to receipts that are not as they were written, also if there would be nothing to add."""
    names = write_some(folder, key)
    spoil(folder, names)  # type: ignore[operator]
    before = sorted(os.listdir(folder))
    for n in (2, 9):
        with pytest.raises(VerificationFailed):
            receipts.write(folder, state(n), key, NOW + 9 * HOUR)
    assert sorted(os.listdir(folder)) == before


def test_lost_old_key_is_named(folder: Path, key: PrivateKey) -> None:
    """With a new key and without the old public one, the newest receipt cannot be verified."""
    receipts.write(folder, STATE, key, NOW)
    (folder / "box.pub").unlink()
    with pytest.raises(UnknownKey, match=key.public().key_id[:16]):
        receipts.write(folder, STATE, generate(), NOW)


def test_folder_that_cannot_be_used(tmp_path: Path, folder: Path, key: PrivateKey) -> None:
    """Missing, a file, a link, or open to others."""
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(folder)
    for name in ("missing", "file", "link"):
        with pytest.raises(FileProblem):
            receipts.write(tmp_path / name, STATE, key, NOW)
    folder.chmod(0o777)
    with pytest.raises(UnsafeFile, match="lets others change it"):
        receipts.write(folder, STATE, key, NOW)


def test_finding_a_receipt(folder: Path, key: PrivateKey) -> None:
    """The newest, or one by its name; a name is never a path."""
    with pytest.raises(FileProblem, match="there is none"):
        receipts.find(folder, None)
    names = write_some(folder, key)
    assert receipts.find(folder, None).name == names[-1]
    assert receipts.find(folder, names[0]) == folder / names[0]
    for name in ("../box.pub", "/etc/passwd", "box.pub", "receipt-1.json"):
        with pytest.raises(InvalidRequest):
            receipts.find(folder, name)


def test_two_writers_do_not_collide(folder: Path, key: PrivateKey) -> None:
    """Writers at the same time get numbers of their own, and the chain holds."""
    import threading

    problems: list[SkerryError] = []

    def run(n: int) -> None:
        try:
            receipts.write(folder, state(n), key, NOW)
        except SkerryError as e:
            problems.append(e)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert [int(n[8:14]) for n in receipts.names(folder)] == list(range(1, 9))
    receipts._check(folder, key.public())
