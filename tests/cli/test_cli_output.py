"""Text that is safe for a terminal, and layouts that fit it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.cli import output, terminal

DANGEROUS = [
    ("escape sequence", "\x1b[2J", "\\x1b[2J"),
    ("title and answer back", "\x1b]0;x\x07", "\\x1b]0;x\\x07"),
    ("the same in 8 bits", "\x9b2J\x9d0;x\x9c", "\\x9b2J\\x9d0;x\\x9c"),
    ("backspace hides", "rm -rf /\x08\x08", "rm -rf /\\x08\\x08"),
    ("carriage return overwrites", "bad\rgood", "badgood"),
    ("delete", "a\x7f", "a\\x7f"),
    ("right-to-left override", "\u202egpj.exe", "\\u202egpj.exe"),
    ("isolates", "\u2066a\u2069", "\\u2066a\\u2069"),
    ("line separator", "a\u2028b", "a\\u2028b"),
    ("vertical tab and form feed", "a\x0b\x0cb", "a\\x0b\\x0cb"),
    ("zero", "a\0b", "a\\x00b"),
    ("line feed and tab stay", "a\n\tb", "a\n\tb"),
    ("other scripts stay", "Grüße 日本 עברית 🦭", "Grüße 日本 עברית 🦭"),
]


@pytest.mark.parametrize(("name", "text", "shown"), DANGEROUS, ids=[d[0] for d in DANGEROUS])
def test_control_characters_are_shown_not_obeyed(name, text, shown):
    """Whatever could drive the terminal becomes visible."""
    assert terminal.safe(text) == shown


@given(st.text(), st.integers(0, 20))
def test_text_in_pieces_is_as_safe_as_whole(text, cut):
    """Where a streamed text is cut does not change what is shown."""
    assert terminal.safe(text[:cut]) + terminal.safe(text[cut:]) == terminal.safe(text)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_json_keeps_its_value_and_is_safe(text):
    """JSON is escaped for the terminal by JSON's own escapes, so nothing is lost."""
    shown = terminal.safe_json(json.dumps(text, ensure_ascii=False))
    assert json.loads(shown) == text
    assert terminal.safe(shown) == shown


def test_a_table_is_aligned(monkeypatch):
    """Numbers end at the right, text begins at the left, wide characters count as two."""
    monkeypatch.setenv("COLUMNS", "80")
    lines = output.table(["NAME", "SIZE"], [["a", "1"], ["日本", "100"]], right=["SIZE"])
    assert lines == ["NAME  SIZE", "a        1", "日本   100"]


def test_a_long_name_is_never_cut(monkeypatch):
    """A name that does not fit stands on its own line, whole, and the rest stays in its columns."""
    monkeypatch.setenv("COLUMNS", "40")
    long = "x" * 38
    lines = output.table(["NAME", "A", "B"], [[long, "aaaaa", "bbbbb"], ["y", "1", "2"]])
    assert lines[1] == long
    assert lines[2].startswith(" " * 10)
    assert lines[2].index("aaaaa") == lines[3].index("1")
    assert all(len(line) <= 40 for line in lines)


def test_fields_go_on_under_themselves(monkeypatch):
    """A long value is broken at blanks and aligned; a path in it is not broken."""
    monkeypatch.setenv("COLUMNS", "40")
    path = "/a/very/long/path/with-hyphens/" + "z" * 30
    lines = output.fields([("label", "some words that need more room than there is"), ("path", path)])
    assert lines[0].startswith("label  some")
    assert lines[1].startswith("       ")
    assert lines[-1].endswith(path)


@pytest.mark.parametrize(
    ("function", "value", "shown"),
    [
        (output.size, None, "-"),
        (output.size, 0, "0 B"),
        (output.size, 999, "999 B"),
        (output.size, 1023, "0.999 KiB"),
        (output.size, 145_752_064, "139 MiB"),
        (output.size, 1_073_000_000, "0.999 GiB"),
        (output.size, 3 << 30, "3 GiB"),
        (output.count, 134_515_008, "134.5 M"),
        (output.count, 35_136, "35.1 k"),
        (output.count, 7, "7"),
        (output.number, 18204, "18,204"),
        (output.duration, None, "-"),
        (output.duration, 59.9, "59 s"),
        (output.duration, 61, "1 min 1 s"),
        (output.duration, 11_520, "3 h 12 min"),
        (output.duration, 90_000, "1 d 1 h"),
    ],
)
def test_numbers(function, value, shown):
    """Numbers are short and have their unit."""
    assert function(value) == shown


def test_bars_are_drawn_with_what_the_terminal_has(monkeypatch):
    """Blocks where Unicode can be shown, plain characters on dumb terminals and in the C locale; figures always."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("LC_ALL", raising=False)
    monkeypatch.setattr(terminal.sys, "stdout", FakeStream("utf-8"))
    rows = [("embedding", 0.625, "170 M"), ("rest", 0.375, "98 M")]
    assert output.bars(rows, 8) == ["embedding  █████░░░   62.5%  170 M", "rest       ███░░░░░   37.5%   98 M"]
    plain = ["embedding  #####...   62.5%  170 M", "rest       ###.....   37.5%   98 M"]
    for name, value in (("TERM", "dumb"), ("LC_ALL", "C")):
        with monkeypatch.context() as m:
            m.setenv(name, value)
            assert output.bars(rows, 8) == plain
    monkeypatch.setattr(terminal.sys, "stdout", FakeStream("iso-8859-1"))
    assert output.bars(rows, 8) == plain


class FakeStream:
    """A terminal that remembers."""

    def __init__(self, encoding="utf-8", tty=True):
        self.encoding, self.tty, self.text = encoding, tty, ""

    def isatty(self):
        return self.tty

    def write(self, text):
        self.text += text

    def flush(self): ...


def draw(monkeypatch, steps, *, tty=True, term="xterm"):
    """Let a progress bar see steps of (seconds, what, fraction)."""
    stream, now = FakeStream(tty=tty), [0.0]
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(output.sys, "stderr", stream)
    monkeypatch.setattr(output.time, "monotonic", lambda: now[0])
    with output.progress() as update:
        for seconds, what, fraction in steps:
            now[0] = seconds
            update(what, fraction)
    return stream.text


def test_progress_waits_two_seconds(monkeypatch):
    """What ends soon draws nothing."""
    assert draw(monkeypatch, [(0.1, "a", 0.1), (1.9, "a", 0.9)]) == ""


def test_progress_goes_to_nobody_without_a_terminal(monkeypatch):
    """Logs and pipes get no bars."""
    assert draw(monkeypatch, [(5, "a", 0.5), (50, "a", 0.9)], tty=False) == ""


def test_progress_is_thrifty_and_leaves_no_trace(monkeypatch):
    """At most two redraws a second, one line, no escape sequences, blank at the end."""
    text = draw(monkeypatch, [(2 + i / 100, "quantizing layer " + "x" * 90, i / 200) for i in range(200)])
    drawn = text.split("\r")[1:]
    assert len(drawn) <= 7
    assert all(len(line) <= 79 for line in drawn)
    assert "..." in drawn[0]
    assert "%" in drawn[0]
    assert "\x1b" not in text
    assert "\n" not in text
    assert drawn[-2].strip() == drawn[-1] == ""


def test_progress_on_a_dumb_terminal_is_lines(monkeypatch):
    """A terminal without cursor movement gets a line for each step, none for each percent."""
    steps = [(3 + i / 10, "reading" if i < 50 else "writing", i / 100) for i in range(100)]
    lines = draw(monkeypatch, steps, term="dumb").splitlines()
    assert [line.split()[0] for line in lines] == ["reading", "writing"]
