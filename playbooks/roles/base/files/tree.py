"""Bring the files of a role's tree into place on the machine: one process instead of one Ansible task a file.

    python3 tree.py --tree TREE [--root /] [--check] [--diff] < JSON

Every task costs about 0.4 s on a small machine and a role ships twenty files, so the roles keep their files as they lie
on the machine, below `files/root`, and one task calls this. What differs is replaced by rename and named on stdout, one
line a path; nothing is printed when nothing differs, which is what `changed_when` looks at. With `--diff` the
differences are shown on stderr.

stdin may hold JSON: `{"values": {NAME: text}, "files": {PATH: content}}`. Files come on top of the tree: the play
renders its templates into them. A value replaces `@NAME@` in the files NAME.in.

Kinds of file: an ordinary one is copied. `NAME.in` has values replaced. `NAME.keys` sets single lines `KEY VALUE` in
the file NAME, which belongs to a Debian package: the last line of that key is replaced, others are put out of use, a
missing one is added. `NAME.lines` adds whole lines, keyed by their second word (a mount point), to the file NAME.

Modes come from the place, since a FAT32 stick keeps none: programs 0755, what only root reads 0600 or 0440, all else
0644. A mode that was changed later is not looked at here: tmpfiles.d does that, at every boot.

What this does NOT do: remove files that a former version shipped. `RETIRED` lists those.
"""

import argparse
import difflib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

MODES = (
    ("etc/sudoers.d/", 0o440),
    ("etc/audit/", 0o640),
    ("etc/usbguard/", 0o600),
    ("usr/local/sbin/", 0o755),
    ("usr/local/bin/", 0o755),
)
"""The mode by the first part of the path; the rest is 0644."""

RETIRED: tuple[str, ...] = ()
"""Paths that a former version of a role brought and that must go."""


def main(argv: list[str]) -> int:
    """Bring one tree into place; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tree", type=Path, required=True)
    parser.add_argument("--root", type=Path, default=Path("/"))
    parser.add_argument("--check", action="store_true", help="change nothing")
    parser.add_argument("--diff", action="store_true", help="show what differs, on stderr")
    options = parser.parse_args(argv)
    given = json.loads(sys.stdin.read() or "{}")
    wanted = {**read_tree(options.tree, given.get("values", {})), **rendered(given.get("files", {}))}
    for path, old, new in differences(wanted, options.root):
        if options.diff:
            show(path, old, new)
        if not options.check:
            replace(options.root / path, new, mode_of(path))
        print(f"/{path}")
    for path in RETIRED:
        if (options.root / path).exists():
            if not options.check:
                (options.root / path).unlink()
            print(f"/{path} (gone)")
    return 0


def read_tree(tree: Path, values: Mapping[str, str]) -> dict[str, bytes]:
    """Read the files of a tree, with values replaced; the names keep `.keys` and `.lines`.

    Raises:
        KeyError: a file names a value that was not given.
    """
    wanted = {}
    for source in (path for path in tree.rglob("*") if path.is_file()):
        path, content = source.relative_to(tree).as_posix(), source.read_bytes()
        if path.endswith(".in"):
            path = path.removesuffix(".in")
            content = re.sub(r"@([a-z_]+)@", lambda found: str(values[found[1]]), content.decode()).encode()
        wanted[path] = content
    return wanted


def rendered(files: Mapping[str, str]) -> dict[str, bytes]:
    """Files that the play rendered, as those of a tree."""
    return {path.lstrip("/"): content.encode() for path, content in files.items()}


def differences(wanted: Mapping[str, bytes], root: Path) -> Iterator[tuple[str, bytes | None, bytes]]:
    """Yield path, present content and wanted content of each file that is not as wanted."""
    for name, content in sorted(wanted.items()):
        path, kind = name.rsplit(".", 1) if name.endswith((".keys", ".lines")) else (name, "")
        old = (root / path).read_bytes() if (root / path).is_file() else None
        text = (old or b"").decode(errors="surrogateescape")
        if kind == "keys":
            new = set_keys(text, content.decode()).encode(errors="surrogateescape")
        elif kind == "lines":
            new = set_lines(text, content.decode()).encode(errors="surrogateescape")
        else:
            new = content
        if old != new:
            yield path, old, new


def set_keys(text: str, wanted: str) -> str:
    """Set `KEY VALUE` lines; a key that stands twice stands once afterwards."""
    values = {line.split()[0]: line for line in _content(wanted)}
    lines: list[str] = []
    for line in reversed(text.splitlines()):
        key = line.split()[0] if line.split() else ""
        if key not in values:
            lines.append(line)
        elif values[key]:
            lines.append(values[key])
            values[key] = ""
        else:
            lines.append(f"# {line}")
    lines.reverse()
    return _text([*lines, *(line for line in values.values() if line)])


def set_lines(text: str, wanted: str) -> str:
    """Set lines that are known by their second word, as those of fstab are."""
    values = {line.split()[1]: line for line in _content(wanted)}
    kept = [line for line in text.splitlines() if line.startswith("#") or [*line.split(), "", ""][1] not in values]
    lines = [*kept, *values.values()]
    # In place if nothing is new: an order that an administrator chose stays.
    if set(lines) == set(text.splitlines()):
        return text
    return _text(lines)


def mode_of(path: str) -> int:
    """The mode that a new file gets."""
    return next((mode for start, mode in MODES if path.startswith(start)), 0o644)


def replace(path: Path, content: bytes, mode: int) -> None:
    """Write a file so that a power cut leaves the old one or the new one; an existing file keeps mode and owner."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.skerry-new")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as f:
        f.write(content)
        if path.is_file() and mode == 0o644:
            status = path.stat()
            os.fchown(f.fileno(), status.st_uid, status.st_gid)
            os.fchmod(f.fileno(), status.st_mode & 0o7777)
        else:
            os.fchmod(f.fileno(), mode)
        f.flush()
        os.fsync(f.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def show(path: str, old: bytes | None, new: bytes) -> None:
    """Print a unified diff on stderr."""
    lines = difflib.unified_diff(
        (old or b"").decode(errors="replace").splitlines(),
        new.decode(errors="replace").splitlines(),
        f"before: /{path}" if old is not None else "before: nothing",
        f"after: /{path}",
        lineterm="",
    )
    sys.stderr.write("".join(f"{line}\n" for line in lines))


def _content(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _text(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main(sys.argv[1:]))
