"""Code blocks of the documentation, found and run.

A block of `sh` or `python` runs; a block of any other language (`console`, `text`, `yaml`, ...) is only shown. What a
block must print stands in a comment in the line before it, which readers do not see:

    <!-- expect: REGULAR EXPRESSION -->     somewhere in the output, several lines of it are one text
    <!-- expect nothing -->                 no output at all

The blocks of a page run in order in one shell, as a reader would type them, each Python block in an interpreter of its
own. The first command that fails ends the page.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
RUN = frozenset({"sh", "python"})
SHOWN = frozenset({"console", "text", "yaml", "json", "ini"})
TIMEOUT_S = 240

_FENCE = re.compile(r"^```(.*)$")
_EXPECT = re.compile(r"^<!-- expect(?:: (?P<pattern>.+)| nothing) -->$")


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        page: the file, relative to the repository.
        line: of the opening fence, from 1.
        language: the word after the fence.
        code: what stands between the fences.
        expect: regular expression; "" for no output; None where nothing is said.
    """

    page: str
    line: int
    language: str
    code: str
    expect: str | None

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """Every page of the documentation."""
    return sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])


def blocks(page: Path) -> list[Block]:
    """Find the blocks of a page."""
    found, start, before = [], None, ""
    lines = page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        fence = _FENCE.match(line)
        if fence and start is None:
            start, language, expect = number, fence[1], _expectation(before)
        elif fence and start is not None:
            code = "".join(f"{one}\n" for one in lines[start : number - 1])
            found.append(Block(str(page.relative_to(ROOT)), start, language, code, expect))
            start = None
        before = line
    assert start is None, f"{page}:{start}: the block does not end"
    return found


def _expectation(line: str) -> str | None:
    match = _EXPECT.match(line)
    return (match["pattern"] or "") if match else None


def run(pages: Sequence[Path], folder: Path, environment: Mapping[str, str]) -> None:
    """Run the blocks of some pages, one page after the other, and compare what they print.

    Args:
        pages: in the order in which a reader goes through them; each begins in `folder`.
        folder: to run in.
        environment: beside a plain one, whose home is empty.
    """
    wanted = [b for page in pages for b in blocks(page) if b.language in RUN]
    code, output = _shell(_script(wanted, folder), folder, environment)
    parts = re.split(r"^@@ (\d+)\n", output, flags=re.MULTILINE)[1:]
    printed = dict(zip(map(int, parts[::2]), parts[1::2], strict=True))
    for index, block in enumerate(wanted):
        assert index in printed, f"{block.where} was not reached"
        assert code == 0 or index + 1 in printed, f"{block.where} failed:\n{printed[index]}"
        said = printed[index].rstrip("\n")
        if block.expect == "":
            assert said == "", f"{block.where} printed, expected nothing:\n{said}"
        else:
            assert block.expect is not None, f"{block.where} runs, but does not say what it prints"
            assert re.search(block.expect, said, re.DOTALL), f"{block.where} printed, expected {block.expect}:\n{said}"
    assert code == 0, f"exit code {code} at the end:\n{output[-2000:]}"


def _script(wanted: Sequence[Block], folder: Path) -> str:
    parts = ["set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n"]
    page = ""
    for index, block in enumerate(wanted):
        if block.page != page:
            page = block.page
            parts.append(f"cd '{folder}'\n")
        code = block.code if block.language == "sh" else f"python - <<'END_OF_BLOCK'\n{block.code}END_OF_BLOCK\n"
        # A line of its own, even after output that does not end with a line feed.
        parts.append(f"printf '\\n@@ {index}\\n'\n{code}")
    parts.append(f"printf '\\n@@ {len(wanted)}\\n'\n")
    return "".join(parts)


def _shell(script: str, folder: Path, environment: Mapping[str, str]) -> tuple[int, str]:
    home = folder / "home"
    home.mkdir(exist_ok=True)
    plain = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(home),
        "LC_ALL": "C.UTF-8",
        "COLUMNS": "100",
        "PYTHONPATH": "",
    }
    # In a file: bash must not read its script from the standard input that commands read too.
    file = home / "script"
    file.write_text(script)
    with subprocess.Popen(
        ["bash", str(file)],
        cwd=folder,
        env=plain | dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=TIMEOUT_S)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, output
