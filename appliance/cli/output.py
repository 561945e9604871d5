"""How results look: tables, fields, bars, JSON on stdout; notes, errors and progress on stderr.

Everything fits 80 columns and says in words what it says; nothing is marked by colour, for nothing has one. All text
passes `terminal.safe`.
"""

import contextlib
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from typing import Any

from appliance.cli import terminal
from appliance.errors import SkerryError
from appliance.files import Progress, no_progress

# --- stdout -----------------------------------------------------------------------------------------------------------


def emit(text: str = "") -> None:
    """Print a line, or several, of the result."""
    print(terminal.safe(text))


def emit_json(value: Any) -> None:
    """Print a value as indented JSON."""
    import msgspec

    data = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    # The line feeds here are the indentation's; those in strings are escaped already.
    print("\n".join(terminal.safe_json(line) for line in data.split("\n")))


def fields(rows: Sequence[tuple[str, str]], label_width: int | None = None) -> list[str]:
    """Lay out `label  value` lines; long values go on under themselves."""
    room = label_width or max((terminal.width(label) for label, _ in rows), default=0)
    lines = []
    for label, value in rows:
        parts = _wrap(terminal.safe(value), terminal.columns() - room - 3)
        lines.append(f"{_pad(label, room)}  {parts[0]}".rstrip())
        lines += [" " * (room + 2) + part for part in parts[1:]]
    return lines


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> list[str]:
    """Lay out a table.

    Args:
        head: the columns' titles.
        rows: the cells.
        right: titles of the columns whose cells end at the right, numbers mostly.
    Returns:
        lines. A first cell that would make the line too long for the terminal stands on a line of its own, whole: it is
        a name that somebody will copy.
    """
    cells = [[terminal.safe(cell) for cell in row] for row in (head, *rows)]
    widths = [max(terminal.width(row[i]) for row in cells) for i in range(len(head))]
    rest = sum(widths[1:]) + 2 * len(widths[1:])
    widths[0] = max(len(head[0]), min(widths[0], terminal.columns() - 1 - rest))
    lines = []
    for row in cells:
        first = row[0]
        if terminal.width(first) > widths[0]:
            lines.append(first)
            first = ""
        padded = [_pad(first, widths[0])]
        padded += [
            _pad(cell, room, right=title in right)
            for cell, room, title in zip(row[1:], widths[1:], head[1:], strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    return lines


def bars(rows: Sequence[tuple[str, float, str]], bar_width: int = 30) -> list[str]:
    """Draw shares of a whole as bars.

    Args:
        rows: label, share from 0 to 1, and a text for the end of the line.
        bar_width: columns of a share of 1.
    """
    full, empty = ("\u2588", "\u2591") if terminal.has_unicode() else ("#", ".")
    room = max(terminal.width(label) for label, _, _ in rows)
    end = max(terminal.width(text) for _, _, text in rows)
    lines = []
    for label, share, text in rows:
        filled = round(share * bar_width)
        bar = full * filled + empty * (bar_width - filled)
        lines.append(f"{_pad(label, room)}  {bar}  {100 * share:5.1f}%  {_pad(text, end, right=True)}")
    return lines


def _pad(text: str, room: int, *, right: bool = False) -> str:
    blanks = " " * max(0, room - terminal.width(text))
    return blanks + text if right else text + blanks


def _wrap(text: str, room: int) -> list[str]:
    return [
        part
        for line in text.splitlines() or [""]
        for part in textwrap.wrap(line, max(20, room), break_on_hyphens=False, break_long_words=False) or [""]
    ]


# --- numbers ----------------------------------------------------------------------------------------------------------


def size(size_bytes: int | None) -> str:
    """139 MiB."""
    if size_bytes is None:
        return "-"
    value, unit = float(size_bytes), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1000 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.3g} {unit}"


def count(number: int | None) -> str:
    """134.5 M: parameters."""
    if number is None:
        return "-"
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.1f} {letter}"
    return str(number)


def number(value: int | None) -> str:
    """18,204."""
    return "-" if value is None else f"{value:,}"


def duration(seconds: float | None) -> str:
    """3 h 12 min."""
    if seconds is None:
        return "-"
    minutes, s = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {s} s" if minutes else f"{s} s"


# --- stderr -----------------------------------------------------------------------------------------------------------


def note(text: str) -> None:
    """Tell the operator something that is not the result."""
    sys.stdout.flush()  # so that result and notes stand in their order where both go to one place
    print(terminal.safe(text), file=sys.stderr, flush=True)


def report(error: SkerryError) -> None:
    """Print an error and the next step."""
    note(f"skerry: {error.message}")
    if error.hint:
        note(f"hint: {error.hint}")
    if error.retry_after_s is not None:
        note(f"try again in {error.retry_after_s:g} s")


@contextlib.contextmanager
def progress(after_s: float = 2.0) -> Iterator[Progress]:
    """Yield a callback that draws a bar, if a person looks and it takes longer than `after_s`.

    The bar is redrawn twice a second at most, with nothing but a carriage return; where even that does not work (a dumb
    terminal) a line is printed when the step changes, and every ten seconds.
    """
    if not sys.stderr.isatty():
        yield no_progress
        return
    line = _ProgressLine(after_s)
    try:
        yield line.update
    finally:
        line.clear()


class _ProgressLine:
    """One line that is written over and over."""

    def __init__(self, after_s: float) -> None:
        self._begin = time.monotonic()
        self._next = self._begin + after_s
        self._shown = ""
        self._what = ""

    def update(self, what: str, fraction: float) -> None:
        now = time.monotonic()
        dumb = terminal.is_dumb()
        if now < self._next and not (dumb and self._shown and what != self._what):
            return
        self._next, self._what = now + (10.0 if dumb else 0.5), what
        self._write(self._line(terminal.safe(what), min(max(fraction, 0.0), 1.0), now - self._begin), dumb)

    def clear(self) -> None:
        if self._shown and not terminal.is_dumb():
            self._write("", False)
            print("\r", end="", file=sys.stderr, flush=True)

    def _line(self, what: str, fraction: float, elapsed_s: float) -> str:
        full, empty = ("\u2588", "\u2591") if terminal.has_unicode(sys.stderr) else ("#", ".")
        filled = round(fraction * 20)
        end = f"  {full * filled}{empty * (20 - filled)} {100 * fraction:3.0f}%  {duration(elapsed_s)}"
        # One column stays free: many terminals wrap when the last one is written.
        room = terminal.columns() - 1 - terminal.width(end)
        return (what if terminal.width(what) <= room else what[: room - 3] + "...") + end

    def _write(self, text: str, dumb: bool) -> None:
        if dumb:
            print(text, file=sys.stderr, flush=True)
        else:
            blanks = " " * max(0, terminal.width(self._shown) - terminal.width(text))
            print(f"\r{text}{blanks}", end="", file=sys.stderr, flush=True)
        self._shown = text
