"""The picture of a run."""

import json
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from bench import picture
from bench.report import plain
from tests.bench.test_figures import EIGHT, OURS, SOURCE

SVG = "{http://www.w3.org/2000/svg}"


def test_bars_are_as_long_as_the_figures() -> None:
    """A third of the bound fills a third of the outline; every form is named, and what is odd in a name is escaped."""
    forms = plain([OURS, SOURCE, EIGHT])["forms"]
    root = ET.fromstring(picture.svg("a <b> & c", forms, 27e9))  # noqa: S314  our own
    texts = [t.text for t in root.iter(f"{SVG}text")]
    assert texts[0] == "a <b> & c"
    assert [t for t in texts if t and "of 270" in t] == ["90 of 270", "70 of 270", "100 of 270"]
    rects = [float(r.get("width", "0")) for r in root.iter(f"{SVG}rect")][1:]
    assert rects[1] / rects[0] == pytest.approx(90 / 270, abs=0.01)
    assert "Skerry q8, default" in texts


def test_a_file_of_figures_becomes_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a file without such a run is refused in words."""
    run = {**plain([OURS, SOURCE]), "bytes_per_s": 2e10}
    found = {"machine": {"processor": "a processor"}, "models": {"odd": {"not_run": "x"}, "m": {"threads": {"2": run}}}}
    (tmp_path / "f.json").write_text(json.dumps(found))
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path / "f.json"), str(tmp_path / "p.svg")])
    assert picture.main() == 0
    assert "m, 2 threads, 20.0 GB/s, a processor" in (tmp_path / "p.svg").read_text()
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path / "f.json"), str(tmp_path / "q.svg"), "--threads", "1"])
    assert picture.main() == 1
    assert not (tmp_path / "q.svg").exists()


@pytest.mark.parametrize("content", [None, "{", "\xff"])
def test_figures_that_cannot_be_read_end_in_words(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No file, no JSON, no text: what to give stands in the message, and there is no picture."""
    if content is not None:
        (tmp_path / "f.json").write_bytes(content.encode("latin-1"))
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path / "f.json"), str(tmp_path / "p.svg")])
    assert picture.main() == 1
    assert "python -m bench --out" in capsys.readouterr().err
    assert not (tmp_path / "p.svg").exists()
