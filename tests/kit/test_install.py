"""What install.sh accepts: the part of it that runs before anything is installed, on tiny kits."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kit.openpgp import Signer
from tests.kit.conftest import INSTALL, Machine, Stick, make_stick

WHEEL = "wheels/one-1.0-py3-none-any.whl"
DEB = "debs/bookworm/libc6_2.36-9+deb12u14_amd64.deb"


def stage(machine: Machine, stick: Stick, *options: str, before: str = "") -> Machine:
    """Run the staging of a kit with the key that is on the operator's paper."""
    return machine.run(INSTALL, "--kit", str(stick.path), "--key", stick.key_sha256, *options, before=before)


def assert_refused(machine: Machine, code: int, words: str) -> None:
    """It ended with this code and these words, and there is no copy that a later run could take for a good one."""
    assert re.search(words, machine.output), machine.output
    assert machine.code == code, machine.output
    assert machine.copies == []


# --- a kit that nobody changed ----------------------------------------------------------------------------------------


def test_a_good_kit_is_copied(machine: Machine, stick: Stick) -> None:
    """A kit signed by the key on the paper is copied whole, under the digest of its manifest."""
    assert stage(machine, stick).code == 0, machine.output
    (name,) = machine.copies
    assert re.fullmatch("[0-9a-f]{64}", name)
    same = subprocess.run(["diff", "-r", stick.path, machine.kits / name], capture_output=True, text=True, check=False)
    assert same.stdout == ""


def test_what_sticks_gather_is_left_behind(machine: Machine, stick: Stick) -> None:
    """Droppings of operating systems, and the site's own file, do not spoil a kit, and are not copied."""
    (stick.path / "System Volume Information").mkdir()
    (stick.path / "System Volume Information" / "WPSettings.dat").write_bytes(b"x")
    (stick.path / "wheels" / "._one.whl").write_bytes(b"x")
    (stick.path / ".DS_Store").write_bytes(b"x")
    (stick.path / "site.yaml").write_text("console_operators: []\n")
    assert stage(machine, stick).code == 0, machine.output
    copy = machine.kits / machine.copies[0]
    assert not [
        p for p in copy.rglob("*") if p.name.startswith(".") or p.name in ("site.yaml", "System Volume Information")
    ]


def test_modes_do_not_come_from_the_stick(machine: Machine, stick: Stick) -> None:
    """Files of the copy are readable by all and writable by nobody but their owner, whatever the stick said."""
    (stick.path / WHEEL).chmod(0o4777)
    (stick.path / "wheels").chmod(0o777)
    assert stage(machine, stick).code == 0, machine.output
    copy = machine.kits / machine.copies[0]
    assert (copy / WHEEL).stat().st_mode & 0o7777 == 0o644
    assert (copy / "wheels").stat().st_mode & 0o7777 == 0o755
    assert (copy / "install.sh").stat().st_mode & 0o7777 == 0o755


def test_the_key_as_on_paper(machine: Machine, stick: Stick) -> None:
    """Spaces and capital letters of a digest that was typed from paper do not matter."""
    key = stick.key_sha256.upper()
    typed = " ".join(key[i : i + 4] for i in range(0, 64, 4))
    assert machine.run(INSTALL, "--kit", str(stick.path), "--key", typed).code == 0, machine.output


def test_the_key_as_a_file(machine: Machine, stick: Stick) -> None:
    """The key may be a file that came another way; a file with another key is refused."""
    other = stick.path.parent / "trusted.gpg"
    shutil.copy(stick.path / "kit.gpg", other)
    assert machine.run(INSTALL, "--kit", str(stick.path), "--key", str(other)).code == 0, machine.output
    other.write_bytes(b"another key")
    assert machine.run(INSTALL, "--kit", str(stick.path), "--key", str(other)).code == 5


def test_the_kits_own_key_proves_nothing(machine: Machine, stick: Stick) -> None:
    """--key with the stick's own kit.gpg is refused, by whatever path: it would accept every kit."""
    link = stick.path.parent / "link"
    link.symlink_to(stick.path)
    for path in (stick.path, link, stick.path / "wheels" / ".."):
        machine.run(INSTALL, "--kit", str(stick.path), "--key", str(path / "kit.gpg"))
        assert_refused(machine, 2, "it lies in the kit")


def test_the_key_that_was_accepted_before(machine: Machine, stick: Stick) -> None:
    """Without --key the key counts that the machine accepted before; if there is none, the command is wrong."""
    assert machine.run(INSTALL, "--kit", str(stick.path)).code == 2
    assert "no --key" in machine.output
    (machine.folder / "etc").mkdir()
    shutil.copy(stick.path / "kit.gpg", machine.folder / "etc" / "kit.gpg")
    assert machine.run(INSTALL, "--kit", str(stick.path)).code == 0, machine.output


# --- tampering --------------------------------------------------------------------------------------------------------


def edit(path: str, change: Callable[[bytes], bytes]) -> Callable[[Stick, Signer], None]:
    """Change the bytes of one file."""

    def spoil(stick: Stick, _: Signer) -> None:
        (stick.path / path).write_bytes(change((stick.path / path).read_bytes()))

    return spoil


def add(path: bytes | str, content: bytes = b"x") -> Callable[[Stick, Signer], None]:
    """Add a file that nobody signed."""

    def spoil(stick: Stick, _: Signer) -> None:
        file = os.path.join(os.fsencode(stick.path), os.fsencode(path))
        os.makedirs(os.path.dirname(file), exist_ok=True)
        with open(file, "wb") as f:
            f.write(content)

    return spoil


def replace(path: str, make: Callable[[Path], None]) -> Callable[[Stick, Signer], None]:
    """Put something else in a file's or folder's place."""

    def spoil(stick: Stick, _: Signer) -> None:
        (stick.path / path).rename(stick.path.parent / "real")
        make(stick.path / path)

    return spoil


def signed(change: Callable[[bytes], bytes]) -> Callable[[Stick, Signer], None]:
    """Another manifest, with a good signature of the kit's own key: what a station with a defect might make."""
    return lambda stick, _: stick.sign_again(change(stick.manifest))


def sort_backwards(manifest: bytes) -> bytes:
    lines = manifest.splitlines(keepends=True)
    head = [line for line in lines if line.startswith(b"#")]
    return b"".join(head + sorted(lines[len(head) :], reverse=True))


def by_a_stranger(stick: Stick, stranger: Signer) -> None:
    stick.sign_again(stick.manifest, stranger)


def with_the_strangers_key(stick: Stick, stranger: Signer) -> None:
    make_stick(stick.path, stranger)


def with_both_keys(stick: Stick, stranger: Signer) -> None:
    (stick.path / "kit.gpg").write_bytes((stick.path / "kit.gpg").read_bytes() + stranger.public())
    stick.sign_again(stick.manifest, stranger)


def with_an_index_for_signature(stick: Stick, _: Signer) -> None:
    """Something else that the same key signed: gpg once took it and did not look at the manifest."""
    (stick.path / "manifest.asc").write_bytes(stick.signer.clearsign(b"Origin: Skerry\n"))
    (stick.path / "manifest").write_bytes(stick.manifest + b"0" * 64 + b"  evil\n")


TAMPERED = {
    "one byte changed": (edit(WHEEL, lambda b: b"O" + b[1:]), f"{WHEEL} was changed"),
    "truncated": (edit(DEB, lambda b: b[:-1]), r"libc6_2\.36-9\+deb12u14_amd64\.deb was changed"),
    "emptied": (edit(DEB, lambda b: b""), r"libc6_2\.36-9\+deb12u14_amd64\.deb was changed"),
    "longer": (edit(DEB, lambda b: b + b"\n"), r"libc6_2\.36-9\+deb12u14_amd64\.deb was changed"),
    "install.sh changed": (edit("install.sh", lambda b: b + b"\n"), r"install\.sh was changed"),
    "missing": (lambda s, _: (s.path / WHEEL).unlink(), f"{WHEEL} is missing"),
    "a folder missing": (lambda s, _: shutil.rmtree(s.path / "models"), "models/small-q8/card.yaml is missing"),
    "extra": (add("wheels/evil-9.0-py3-none-any.whl"), "wheels/evil-9.0-py3-none-any.whl is not in the manifest"),
    "extra playbook": (add("playbooks/roles/base/tasks/main.yml"), "roles/base/tasks/main.yml is not in the manifest"),
    "extra with a point": (add(".hidden"), r"\.hidden is no name of a kit"),
    "case differs": (lambda s, _: (s.path / WHEEL).rename(s.path / "wheels" / "ONE.whl"), f"{WHEEL} is missing"),
    "link to a file": (replace(WHEEL, lambda p: p.symlink_to("../../real")), f"{WHEEL} is no plain file"),
    "link to a folder": (replace("wheels", lambda p: p.symlink_to("../real")), "wheels is no plain file"),
    "fifo": (replace(WHEEL, os.mkfifo), f"{WHEEL} is no plain file"),
    "folder for a file": (replace(WHEEL, Path.mkdir), f"{WHEEL} is missing"),
    "line feed in a name": (add("wheels/a\nb.whl"), r"wheels/a\\nb\.whl.* is no name"),
    "forged line by a name": (add(b"wheels/a.whl\n0000  b"), "is no name of a kit"),
    "space in a name": (add("wheels/a b.whl"), r"wheels/a\\ b\.whl is no name"),
    "bytes that are no text": (add(b"wheels/\xff\xfe.whl"), "is no name of a kit"),
    "option as a name": (add("wheels/--target=x"), "is no name of a kit"),
    "points as a name": (add("wheels/..."), r"wheels/\.\.\. is no name"),
    "no manifest": (lambda s, _: (s.path / "manifest").unlink(), "manifest is missing"),
    "no signature": (lambda s, _: (s.path / "manifest.asc").unlink(), r"manifest\.asc is missing"),
    "empty signature": (edit("manifest.asc", lambda b: b""), "not what the key signed"),
    "no key": (lambda s, _: (s.path / "kit.gpg").unlink(), r"kit\.gpg is missing"),
    "manifest is a link": (replace("manifest", lambda p: p.symlink_to("../real")), "manifest is missing"),
    "manifest changed": (edit("manifest", lambda b: b.replace(b"9", b"8", 1)), "not what the key signed"),
    "manifest cut": (edit("manifest", lambda b: b[:-70]), "not what the key signed"),
    "manifest sorted otherwise": (edit("manifest", sort_backwards), "not what the key signed"),
    "signed by a stranger": (by_a_stranger, "not what the key signed"),
    "a stranger's kit": (with_the_strangers_key, "its key is [0-9a-f]{64}, expected"),
    "a stranger's key beside ours": (with_both_keys, "its key is [0-9a-f]{64}, expected"),
    "an index as signature": (with_an_index_for_signature, "not what the key signed"),
    "signed, not sorted": (signed(sort_backwards), "not sorted"),
    "signed, a line twice": (signed(lambda b: b + b.splitlines(keepends=True)[-1]), "not sorted"),
    "signed, path goes up": (signed(lambda b: b + b"0" * 64 + b"  x/../../etc/passwd\n"), "cannot read the manifest"),
    "signed, whole path": (signed(lambda b: b + b"0" * 64 + b"  /etc/passwd\n"), "cannot read the manifest"),
    "signed, hidden path": (signed(lambda b: b + b"0" * 64 + b"  x/.y\n"), "cannot read the manifest"),
    "signed, escaped name": (signed(lambda b: b + b"\\" + b"0" * 64 + b"  x\\ny\n"), "cannot read the manifest"),
    "signed, zero byte": (signed(lambda b: b + b"0" * 64 + b"  y\0z\n"), "cannot read the manifest"),
    "signed, without install.sh": (
        signed(lambda b: b"".join(x for x in b.splitlines(keepends=True) if b"install.sh" not in x)),
        "cannot read the manifest",
    ),
    "signed, another format": (signed(lambda b: b.replace(b"kit 1", b"kit 2", 1)), "cannot read the manifest"),
    "signed, no time": (signed(lambda b: re.sub(rb"# built .*\n", b"", b)), "nothing of when it was built"),
    "signed, lists itself": (
        signed(lambda b: b.replace(b"\n", b"\n" + b"0" * 64 + b"  manifest\n", 1)),
        "cannot read the manifest|manifest is missing",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TAMPERED)
def test_tampering_is_refused(machine: Machine, stick: Stick, stranger: Signer, name: str) -> None:
    """A kit that is not what the key signed is refused with exit code 5, and what is wrong is named."""
    spoil, words = TAMPERED[name]
    spoil(stick, stranger)
    assert_refused(stage(machine, stick), 5, words)


def test_another_digest_is_refused(machine: Machine, stick: Stick) -> None:
    """A good kit is refused when the digest on the paper is another one, and both are shown."""
    machine.run(INSTALL, "--kit", str(stick.path), "--key", "0" * 64)
    assert_refused(machine, 5, f"its key is {stick.key_sha256}, expected 0000")


def test_several_problems_are_counted(machine: Machine, stick: Stick) -> None:
    """Five of many problems are shown, and all are counted."""
    for n in range(7):
        add(f"wheels/extra-{n}.whl")(stick, stick.signer)
    assert_refused(stage(machine, stick), 5, "7 of its files")
    assert machine.output.count("is not in the manifest") == 5


# --- a stick that changes, a run that was cut off ---------------------------------------------------------------------


def first(function: str, command: str) -> str:
    """Shell code that has a function of the script run a command before it does its own work."""
    return f"""
        eval "$(declare -f {function} | sed '1s/{function}/real_{function}/')"
        {function}() {{ {command}; real_{function} "$@"; }}
    """


def test_a_stick_that_changes_before_it_is_read(machine: Machine, stick: Stick) -> None:
    """What changes between the look at the stick and its copying is found in the copy."""
    change = first("copy_files", f"echo evil >{stick.path}/{WHEEL}")
    assert_refused(stage(machine, stick, before=change), 5, f"{WHEEL} was changed")


def test_a_stick_that_becomes_a_link(machine: Machine, stick: Stick) -> None:
    """A file that becomes a link to a secret of this machine before it is copied is not followed."""
    swap = first("copy_files", f"ln -sf /etc/hostname {stick.path}/{WHEEL}")
    assert_refused(stage(machine, stick, before=swap), 5, f"{WHEEL} is no plain file")


def test_a_key_that_changes_after_it_was_looked_at(machine: Machine, stick: Stick, stranger: Signer) -> None:
    """The key that is kept is the one that was compared with the paper."""
    (stick.path.parent / "other.gpg").write_bytes(stranger.public())
    swap = first("copy_files", f"cp {stick.path.parent}/other.gpg {stick.path}/kit.gpg")
    assert_refused(stage(machine, stick, before=swap), 5, r"kit\.gpg was changed")


def test_a_stick_that_changes_afterwards(machine: Machine, stick: Stick) -> None:
    """Once the copy is verified the stick is not read again: the same copy is used, though the stick is gone."""
    assert stage(machine, stick).code == 0, machine.output
    (name,) = machine.copies
    shutil.rmtree(stick.path)
    copy = machine.kits / name
    machine.run(copy / "install.sh", "--key", stick.key_sha256, work='stage; echo "uses $COPY"')
    assert machine.code == 0, machine.output
    assert f"uses {copy}" in machine.output


def test_a_second_run_copies_nothing(machine: Machine, stick: Stick) -> None:
    """The same kit is not copied twice, but the copy is verified again."""
    stage(machine, stick)
    before = {p: p.stat().st_ino for p in machine.kits.rglob("*")}
    assert stage(machine, stick).code == 0, machine.output
    assert {p: p.stat().st_ino for p in machine.kits.rglob("*")} == before
    assert "Copying" not in machine.output


def test_a_copy_that_was_changed_is_made_anew(machine: Machine, stick: Stick) -> None:
    """A change to the copy is reported, and the stick's own files take its place."""
    stage(machine, stick)
    wheel = machine.kits / machine.copies[0] / WHEEL
    wheel.write_bytes(b"evil")
    assert stage(machine, stick).code == 0, machine.output
    assert (
        f"WARNING: the copy on the disk is not what was signed; making it anew: {WHEEL} was changed" in machine.output
    )
    assert wheel.read_bytes() == (stick.path / WHEEL).read_bytes()


def test_a_copy_that_was_changed_is_not_used_without_a_stick(machine: Machine, stick: Stick) -> None:
    """Started from the copy, as skerry-setup does, a changed copy is refused: there is nothing better here."""
    stage(machine, stick)
    copy = machine.kits / machine.copies[0]
    (copy / WHEEL).write_bytes(b"evil")
    machine.run(copy / "install.sh", "--key", stick.key_sha256)
    assert machine.code == 5
    assert f"{WHEEL} was changed" in machine.output


def test_a_copy_under_another_name_is_refused(machine: Machine, stick: Stick) -> None:
    """A folder among the kits must be named after its manifest."""
    stage(machine, stick)
    copy = machine.kits / machine.copies[0]
    copy = copy.rename(copy.with_name("f" * 64))
    machine.run(copy / "install.sh", "--key", stick.key_sha256)
    assert machine.code == 5


def test_half_a_copy_is_cleaned(machine: Machine, stick: Stick) -> None:
    """What a run left that was killed while it copied is removed, and the copy is made from the start."""
    half = machine.kits / "incoming.partial"
    (half / "wheels").mkdir(parents=True)
    (half / "wheels" / "evil.whl").write_bytes(b"evil")
    assert stage(machine, stick).code == 0, machine.output
    assert len(machine.copies) == 1
    assert not list(machine.kits.rglob("evil.whl"))


def test_an_interrupted_run_may_be_repeated(machine: Machine, stick: Stick) -> None:
    """A run that is ended while it copies leaves no half copy and says what to do; the next run succeeds."""
    stage(machine, stick, before=first("size_of_part", "kill -TERM $$; sleep 0.2"))
    assert_refused(machine, 130, "interrupted next: run it again")
    assert stage(machine, stick).code == 0, machine.output


@pytest.mark.parametrize(
    "broken",
    [
        "sort() { case $1 in -cu) ;; *) return 2 ;; esac; }",
        'xargs() { case $1 in -0) return 127 ;; *) command xargs "$@" ;; esac; }',
        "comm() { return 1; }",
        'find() { case $* in *%s*) return 1 ;; *) command find "$@" ;; esac; }',
        "cmp() { return 2; }",
    ],
)
def test_a_tool_that_fails_is_no_success(machine: Machine, stick: Stick, broken: str) -> None:
    """If what compares cannot work, on a full disk say, a bad kit is refused all the same."""
    (stick.path / WHEEL).write_bytes(b"evil")
    stage(machine, stick, before=broken)
    assert machine.code in (1, 5), machine.output
    assert machine.copies == []


# --- the machine ------------------------------------------------------------------------------------------------------


def test_a_clock_before_the_kit_is_refused(machine: Machine, signer: Signer, tmp_path: Path) -> None:
    """A clock that is before the kit was built is refused with exit code 4, and how to set it is shown."""
    future = make_stick(tmp_path / "future", signer, time.time() + 3600)
    assert_refused(stage(machine, future), 4, "the clock says 20.* the kit was built 20.* date -u -s")


@pytest.mark.parametrize(
    ("release", "words"),
    [
        ("ID=debian\nVERSION_CODENAME=trixie\n", "cannot install on debian trixie: the kit is for debian bookworm"),
        ("ID=debian\n", "cannot install on debian unknown"),
        ("ID=ubuntu\nID_LIKE=debian\nVERSION_CODENAME=bookworm\n", "cannot install on ubuntu bookworm"),
        ("ID=debian\nVERSION_CODENAME=book\n", "cannot install on debian book:"),
    ],
)
def test_another_system_is_refused(machine: Machine, stick: Stick, release: str, words: str) -> None:
    """Only the releases of Debian that the kit has packages for will do."""
    write = f"printf %s {release!r} | sed 's/\\\\n/\\n/g' >$OS_RELEASE"
    assert_refused(stage(machine, stick, before=write), 4, words)


def test_another_processor_is_refused(machine: Machine, stick: Stick) -> None:
    """A machine of another architecture is named."""
    assert_refused(
        stage(machine, stick, before="dpkg() { echo arm64; }"), 4, "cannot install on arm64: the kit is for amd64"
    )


def test_a_small_disk_is_refused(machine: Machine, stick: Stick) -> None:
    """Too little space is refused before the copying, with what is needed."""
    little = r"df() { printf 'Avail\n7000000\n'; }"
    assert_refused(stage(machine, stick, before=little), 4, r"has 7 MB free, expected \d+ MB")


def test_two_runs_at_once(machine: Machine, stick: Stick) -> None:
    """A second run is refused with exit code 4 while another one works, and does not disturb it."""
    (machine.kits / "incoming.partial").mkdir(parents=True)
    other = 'exec 8>"$RUN/skerry-install.lock"; flock 8; id() { echo 0; }'
    machine.run(INSTALL, "--kit", str(stick.path), "--key", stick.key_sha256, before=other, work='main "$@"')
    assert machine.code == 4, machine.output
    assert "another install.sh is under way" in machine.output
    assert machine.copies == ["incoming.partial"]


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--key"], "nothing follows it"),
        (["--keys", "x"], "no such option"),
        (["install"], "no such option"),
        (["--key", "abc"], "neither 64 digits of SHA-256 nor a file"),
        (["--key", "0" * 63], "neither 64 digits"),
        (["--site", "/nonexistent"], "cannot read --site"),
        (["--site", "/"], "expected a file"),
        (["--inventory", "/nonexistent"], "cannot read --inventory"),
        (["--tags", "base;reboot"], "expected names and commas"),
        (["--reset", "uninstall"], "expected --reset uninstall"),
        (["--reset", "all", "--data", "keep", "--confirm", "box"], "expected --reset uninstall"),
        (["--reset", "factory", "--data", "wipe", "--confirm", "a b"], "expected --reset uninstall"),
    ],
)
def test_usage(machine: Machine, stick: Stick, arguments: list[str], words: str) -> None:
    """What cannot be understood is refused with exit code 2, before anything is done."""
    machine.run(INSTALL, "--kit", str(stick.path), *arguments)
    assert_refused(machine, 2, words)


def test_help_needs_nothing() -> None:
    """--help explains every option to anybody."""
    done = subprocess.run(["bash", INSTALL, "--help"], capture_output=True, text=True, check=True)
    known = set(re.findall(r"--[a-z]+", INSTALL.read_text().partition("parse() {")[2].partition("\n}")[0]))
    assert known == set(re.findall(r"--[a-z]+", done.stdout)) | {"--help", "--confirm", "--data"}
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_a_user_is_told_to_become_root(stick: Stick) -> None:
    """Without root it ends with exit code 3 before it does anything."""
    command = ["bash", INSTALL, "--kit", stick.path, "--key", stick.key_sha256]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("not run: setpriv missing, install util-linux")
        copy = Path("/tmp") / f"skerry-install-{os.getpid()}.sh"  # noqa: S108  where nobody may read
        shutil.copy(INSTALL, copy)
        command = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "bash", copy, *command[2:]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "expected root" in done.stderr


def test_sh_starts_bash() -> None:
    """`sh install.sh` works too: at night nobody remembers which shell."""
    done = subprocess.run(["sh", INSTALL, "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_environment_changes_nothing(machine: Machine, stick: Stick) -> None:
    """No variable of the environment moves where the script looks for keys and keeps its copies."""
    names = re.findall(r"^([A-Z_]+)=", INSTALL.read_text(), re.MULTILINE)
    assert {"STATE", "KITS", "ETC", "OPT", "OS_RELEASE", "RUN"} <= set(names)
    given = {**os.environ, **dict.fromkeys(names, "/elsewhere")}
    code = f"source {INSTALL}; echo $RUN $STATE $KITS $ETC $OPT $OS_RELEASE"
    done = subprocess.run(["bash", "-c", code], env=given, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [
        "/run",
        "/var/lib/skerry",
        "/var/lib/skerry/kit",
        "/etc/skerry",
        "/opt/skerry",
        "/etc/os-release",
    ]
