"""At least 1,000 legitimate documents to replay: found on the machine, written by machines' rules, and sung.

Nothing is kept in the repository but songs and the rules. Found files come from Python's own library and packages, and
from /usr, where every Debian has them: sorted by path and chosen with a fixed seed, so one machine always gives the
same. Another machine has other files; the kinds that are made or sung are the same everywhere, and more than 1,000.

What this does NOT hold: text that another model made, or languages beside English (a few manuals apart).
"""

import gzip
import itertools
import random
import sysconfig
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.loops import generated
from bench.loops.songs import counting_songs, songs

MADE = 60
"""Documents of each kind that is made."""
FOUND = 40
"""Documents of each kind that is found, if there are so many."""
MAX_CHARACTERS = 8192
"""A piece of a file; `bench.loops.replay` cuts the tokens to MAX_TOKENS."""
MAX_TOKENS = 2048
PIECES = 2
"""Pieces taken from one file at most."""


@dataclass(frozen=True)
class Document:
    """A text in which nothing is wrong.

    Attributes:
        id: kind and number, or kind and file.
        request: what was asked, where the text is an answer that only the question makes right.
    """

    id: str
    kind: str
    text: str
    request: str | None = None


def _places() -> dict[str, list[tuple[Path, str]]]:
    """Where found kinds live: folder and pattern."""
    library, packages = Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib"))
    share = Path("/usr/share")
    return {
        "python": [(library, "*.py"), (library, "[a-jl-z]*/*.py")],
        "python, packages": [(packages, "*/*.py"), (packages, "*/*/*.py")],
        "c header": [(Path("/usr/include"), "*.h"), (Path("/usr/include"), "linux/*.h")],
        "json file": [(packages, "**/*.json"), (share, "*/*.json")],
        "yaml file": [(packages, "**/*.y*ml"), (share, "*/*.y*ml")],
        "toml and ini": [(packages, "**/*.toml"), (packages, "*.dist-info/RECORD"), (Path("/etc"), "*.conf")],
        "csv file": [(packages, "**/*.csv"), (share, "*/*.csv"), (share, "zoneinfo/*.tab")],
        "markdown and rst": [(packages, "**/*.md"), (packages, "**/*.rst"), (packages, "*.dist-info/METADATA")],
        "licence": [(share / "common-licenses", "*"), (packages, "*.dist-info/**/LICENSE*")],
        "manual": [(share / "man", "man[1-8]/*.gz")],
        "change log": [(share / "doc", "*/changelog*.gz"), (share / "doc", "*/copyright")],
        "shell": [(Path("/usr/bin"), "*.sh"), (Path("/etc"), "init.d/*"), (share, "bash-completion/completions/*")],
        "perl": [(Path("/usr/share/perl5"), "**/*.pm"), (Path("/usr/share/perl"), "*/*.pm")],
    }


def corpus() -> list[Document]:
    """Give all documents, kind by kind, none twice."""
    once: dict[str, Document] = {}
    for document in itertools.chain(_sung(), _said(), _made(), _found()):
        once.setdefault(document.text, document)
    return list(once.values())


def _made() -> Iterator[Document]:
    for kind, make in generated.KINDS.items():
        for number, text in enumerate(generated.documents(make, kind, MADE), 1):
            yield Document(f"{kind} {number}", kind, text[:MAX_CHARACTERS])


def _said() -> Iterator[Document]:
    for number in range(MADE):
        request, text = generated.said(random.Random(number))  # noqa: S311  varies documents, hides nothing
        yield Document(f"said {number + 1}", "said n times, as asked", text[:MAX_CHARACTERS], request)


def _sung() -> Iterator[Document]:
    for n, song in enumerate(counting_songs(), 1):
        request = f"Write out all the verses of the song {song.name}, with every refrain."
        yield Document(
            f"counting song {n}, {song.name}", "counting song, as asked", song.text[:MAX_CHARACTERS], request
        )
    for n, song in enumerate(songs(), 1):
        kind = "song, litany, poem"
        yield Document(f"song {n}, {song.name}", kind, song.text)
        yield Document(f"song {n}, {song.name}, in one line", kind, song.text.replace("\n", " "))


# --- files of this machine --------------------------------------------------------------------------------------------


def _found() -> Iterator[Document]:
    for kind, places in _places().items():
        rng = random.Random(kind)  # noqa: S311  chooses documents, hides nothing
        paths = sorted({path for folder, pattern in places if folder.is_dir() for path in folder.glob(pattern)})
        rng.shuffle(paths)
        seen: set[int] = set()
        count = 0
        for path in paths:
            text = _read(path)
            mark = zlib.crc32(text[:2000].encode())
            if len(text) < 800 or mark in seen:
                continue
            seen.add(mark)
            for start in _starts(text, rng):
                yield Document(f"{kind}, {path}:{start}", kind, text[start : start + MAX_CHARACTERS])
                count += 1
            if count >= FOUND:
                break


def _starts(text: str, rng: random.Random) -> list[int]:
    """Begin at the top; a long file gives a second piece from a line farther on."""
    if len(text) < 3 * MAX_CHARACTERS:
        return [0]
    somewhere = text.find("\n", rng.randrange(MAX_CHARACTERS, len(text) - MAX_CHARACTERS)) + 1
    return [0, somewhere][:PIECES]


def _read(path: Path) -> str:
    """Read a text file; empty if it is none."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()[: 1 << 20]
        return data[: 1 << 20].decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError):
        return ""
