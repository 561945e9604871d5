"""Pages as files: their links lead somewhere, their lines are short, and the README's tree is the repository's."""

import re

import pytest

from tests.docs.blocks import ROOT, blocks, pages

PAGES = {str(p.relative_to(ROOT)): p for p in pages()}

# Parts of the repository that a reader meets; a new one must be explained.
TREE = [
    *(p.parent.name + "/" for p in (ROOT / "appliance").glob("*/__init__.py")),
    *(p.name for p in (ROOT / "appliance").glob("*.py") if p.name != "__init__.py"),
    *(
        "appliance/",
        "tui/",
        "kit/",
        "playbooks/",
        "images/",
        "models/",
        "examples/",
        "bench/",
        "tests/",
        "docs/",
        "scripts/",
    ),
    *("pyproject.toml", "Makefile"),
    *(p.name + "/" for p in (ROOT / "docs").iterdir()),
]


def anchors(text: str) -> set[str]:
    """The names that a page's headings can be linked by."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    """Every relative link names a file or folder, and a heading in it."""
    text = PAGES[name].read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = (PAGES[name].parent / path) if path else PAGES[name]
        assert there.exists(), f"{name} links to {target}, which is not there"
        assert not anchor or anchor in anchors(there.read_text(encoding="utf-8")), f"{name}: no heading for {target}"


@pytest.mark.parametrize("name", [n for n in PAGES if not n.startswith("examples/")])
def test_lines_are_short(name: str) -> None:
    """At most 120 characters; the rows of a table may be longer."""
    for number, line in enumerate(PAGES[name].read_text(encoding="utf-8").splitlines(), 1):
        assert len(line) <= 120 or line.startswith("|"), f"{name}:{number} has {len(line)} characters"
        assert line == line.rstrip(), f"{name}:{number} ends with a blank"


def test_readme_is_short_and_explains_every_part() -> None:
    """Under 160 lines, and its tree names every part of the repository that there is, and no other."""
    readme = ROOT / "README.md"
    assert len(readme.read_text(encoding="utf-8").splitlines()) < 160
    (tree,) = (b.code for b in blocks(readme) if b.language == "text")
    named = set(re.findall(r"^ *([\w.]+/?)(?= )", tree, re.MULTILINE)) | set(re.findall(r"[\w]+\.py\b", tree))
    named |= set(re.findall(r"[\w-]+/(?=  |\s|$)", tree))
    assert not set(TREE) - named, f"the README's tree lacks {sorted(set(TREE) - named)}"
    for name in named:
        places = (ROOT / name, ROOT / "appliance" / name, ROOT / "docs" / name, ROOT / "tests" / name)
        assert any(p.exists() for p in places), f"the README's tree has {name}, which is not there"
