"""Documents that look like loops and are in order, as machines and people write them: logs, tables, zeros, rulers.

Each kind is a function of a source of chance, so that the same number gives the same document everywhere. What varies
is what varies in life: formats, lengths, how much of a line is constant. Every name and number is invented.
"""

import json
import random
from collections.abc import Callable, Sequence

Make = Callable[[random.Random], str]
_HOSTS = ("pump-gw", "ward7", "teller-03", "hist01", "boiler", "scada-a", "mail", "db2", "kiosk", "gate")
_NAMES = (
    "Berg", "Lind", "Tanaka", "Okafor", "Salas", "Novak", "Weiss", "Haddad", "Fischer", "Moreau", "Rossi", "Dahl",
    "Costa", "Kowal", "Patel", "Marin", "Holm", "Brandt", "Demir", "Walsh", "Popov", "Ortega", "Lang", "Nasser",
)  # fmt: skip
_WARDS = ("Surgery", "Medicine", "Children", "Maternity", "Intensive care", "Dialysis", "Eye clinic", "Outpatients")
_STATES = ("ok", "OK", "normal", "closed", "0", "running", "PASS", "active")


def _clock(second: int, form: int) -> str:
    second += 23 * 3600 * 5
    day, hour, minute = 1 + second // 86400, second // 3600 % 24, second // 60 % 60
    time = f"{hour:02d}:{minute:02d}:{second % 60:02d}"
    return (f"2026-03-{day:02d}T{time}Z", f"Mar {day:2d} {time}", f"[{second:>8}.{second * 7919 % 1000000:06d}]", time)[
        form
    ]


def log(rng: random.Random) -> str:
    """A log whose messages are few or one, with times, hosts and process numbers."""
    messages = rng.sample(
        (
            "heartbeat ok", "connection from 10.0.4.17 closed", "temperature within limits",
            "session opened for user backup by (uid=0)", "GET /health 200 2ms", "watchdog: all services are up",
            "no new records to send, waiting 60 seconds", "DHCPACK on 10.0.4.17 to 52:54:00:12:34:56 via eth0",
            "sensor TI-4711 read 21.4 degrees", "retrying in 5 seconds", "INFO poll cycle finished without errors",
        ),
        rng.choice((1, 1, 1, 2, 3)),
    )  # fmt: skip
    form, host, step, pid = rng.randrange(4), rng.choice(_HOSTS), rng.choice((1, 5, 60, 300)), rng.randrange(300, 30000)
    with_pid = f"agent[{pid}]: " if rng.random() < 0.6 else ""
    return "\n".join(
        f"{_clock(n * step, form)} {host} {with_pid}{messages[n % len(messages)]}" for n in range(rng.randrange(25, 70))
    )


def csv_constant(rng: random.Random) -> str:
    """CSV whose columns are constant, all but one or two."""
    width = rng.randrange(3, 9)
    fixed = [rng.choice((*_STATES, *_HOSTS, *_WARDS, "EUR", "", "0.0", "1", "n/a")) for _ in range(width)]
    mark, quote = rng.choice(",;\t"), rng.choice(("", "", '"'))
    heads = rng.sample(
        ("time", "tag", "state", "unit", "ward", "amount", "currency", "host", "flag", "note"), width + 1
    )
    rows = [mark.join(heads)]
    second = rng.randrange(10**6)
    for n in range(rng.randrange(30, 90)):
        key = rng.choice((_clock(second + 60 * n, 0), str(n + 1))) if n == 0 else key_of(rows[1], n, second)
        cells = [key, *fixed]
        if rng.random() < 0.03:
            cells[1] = rng.choice(_STATES)
        rows.append(mark.join(f"{quote}{c}{quote}" for c in cells))
    return "\n".join(rows)


def key_of(first: str, n: int, second: int) -> str:
    """Go on in the first column as the first row began."""
    return _clock(second + 60 * n, 0) if first.lstrip('"').startswith("2026") else str(n + 1)


def zeros(rng: random.Random) -> str:
    """An array of one number, as programs and tools write it."""
    value, count = (
        rng.choice(("0", "0.0", "1", "255", "0x00", "-1", "1.0e+00", "false", "null")),
        rng.randrange(64, 480),
    )
    wrap = rng.choice((8, 10, 12, 16, 10**6))
    rows = [", ".join([value] * min(wrap, count - i)) for i in range(0, count, wrap)]
    body = ",\n    ".join(rows)
    return rng.choice(
        (
            f"static const int table[{count}] = {{\n    {body}\n}};\n",
            f"weights = np.array([\n    {body}\n])\n",
            f'{{"name": "mask", "size": {count}, "data": [{body}]}}\n',
            "\n".join(row.replace(",", "") for row in rows),
            f"A matrix of {count} elements:\n\n[{body}]\n",
        )
    )


def ruler(rng: random.Random) -> str:
    """Lines of one character, dotted leaders, forms to fill in."""
    mark, width = rng.choice("-=_*#~."), rng.choice((40, 72, 80, 120, 200, 400))
    line = mark * width
    titles = rng.sample(("SCOPE", "RESULTS", "MATERIAL", "SIGNATURES", "NOTES", "APPENDIX", "CONTENTS", "REMARKS"), 5)
    kind = rng.randrange(4)
    if kind == 0:
        return "\n".join(f"{line}\n{title}\n{line}\n\nNo entries this month.\n" for title in titles)
    if kind == 1:
        return "\n".join(f"{n}. {t.capitalize()} {'.' * (60 - len(t))} {n * 7}" for n, t in enumerate(titles * 4, 1))
    if kind == 2:
        return "\n".join(f"{name}: {'_' * 40}\n\nDate: {'_' * 20}\n" for name in rng.sample(_NAMES, 12))
    return "\n".join([line] * rng.randrange(2, 12)) + f"\n{titles[0]}\n" + line


def table(rng: random.Random) -> str:
    """A Markdown table with cells that repeat."""
    heads = rng.sample(
        ("Bed", "Name", "Ward", "State", "Checked by", "Time", "Dose", "Unit", "Remark"), rng.randrange(3, 6)
    )
    columns = [rng.choice((_STATES, _WARDS, ("mg",), ("yes", "no"), ("-",), _NAMES)) for _ in heads[1:]]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    lines += [
        f"| {n} | {' | '.join(rng.choice(c) if rng.random() < 0.4 else c[0] for c in columns)} |"
        for n in range(1, rng.randrange(20, 60))
    ]
    return "\n".join(lines)


def sql(rng: random.Random) -> str:
    """Inserts into one table."""
    name, form = rng.choice(("measurements", "patients", "bookings", "alarms")), rng.randrange(2)
    columns = "id, name, ward, day, value, state"
    rows = [
        f"({n}, '{rng.choice(_NAMES)}', '{rng.choice(_WARDS)}', '2026-03-{n % 28 + 1:02d}', "
        f"{rng.choice(('0', '0', 'NULL'))}, '{_STATES[0]}')"
        for n in range(1, rng.randrange(20, 50))
    ]
    if form == 0:
        return "\n".join(f"INSERT INTO {name} ({columns}) VALUES {row};" for row in rows)  # noqa: S608  text, not run
    return f"INSERT INTO {name} ({columns}) VALUES\n" + ",\n".join(rows) + ";"


def json_records(rng: random.Random) -> str:
    """A list of records with the same keys, and many the same values."""
    records = [
        {
            "id": n,
            "tag": f"TI-{rng.randrange(1000, 9999) if rng.random() < 0.7 else 1000}",
            "unit": "degC",
            "enabled": True,
            "limits": {"low": 0, "high": 100},
            "state": rng.choice(_STATES) if rng.random() < 0.2 else "ok",
        }
        for n in range(rng.randrange(12, 40))
    ]
    form = rng.randrange(3)
    if form == 0:
        return json.dumps(records, indent=2)
    return "\n".join(map(json.dumps, records)) if form == 1 else json.dumps({"sensors": records})


def yaml_inventory(rng: random.Random) -> str:
    """Hosts with the same settings, and lists of the same kind of thing."""
    domain, group = (
        rng.choice(("plant.example", "bank.example", "clinic.example")),
        rng.choice(("boxes", "pumps", "gates")),
    )
    keys = rng.sample(
        (
            "enabled: true",
            "timeout_s: 30",
            "retries: 3",
            "ntp: false",
            "zone: a",
            "model: smollm2",
            "owner: shift-lead",
        ),
        rng.randrange(2, 6),
    )
    hosts = [
        f"    {group[:-1]}-{n:02d}:\n      ansible_host: 10.0.{n // 16}.{n}\n"
        f"      fqdn: {group[:-1]}-{n:02d}.{domain}\n" + "".join(f"      {key}\n" for key in keys)
        for n in range(1, rng.randrange(12, 40))
    ]
    return f"{group}:\n  hosts:\n" + "".join(hosts)


def multiplication(rng: random.Random) -> str:
    """A table of products, as a list or as a square."""
    last, form = rng.randrange(9, 25), rng.randrange(3)
    if form == 0:
        first = rng.randrange(2, 13)
        return "\n".join(
            f"{a} x {b} = {a * b}" for a in range(first, first + rng.randrange(3, 6)) for b in range(1, last + 1)
        )
    if form == 1:
        return "\n".join(" ".join(f"{a * b:4d}" for b in range(1, last + 1)) for a in range(1, last + 1))
    factor = rng.randrange(2, 40)
    return "\n".join(f"{factor} times {b} is {factor * b}." for b in range(1, last * 2))


def drawing(rng: random.Random) -> str:
    """Boxes, trees and bars of characters."""
    form, width = rng.randrange(4), rng.randrange(10, 40)
    if form == 0:
        return "\n".join(" " * (width - n) + "*" * (2 * n + 1) for n in range(width // 2))
    if form == 1:
        row = "+" + ("-" * 8 + "+") * 5
        return "\n".join([row, "|" + "        |" * 5] * rng.randrange(6, 14) + [row])
    if form == 2:
        return "\n".join(f"{name:<10} {'#' * rng.randrange(5, 60)}" for name in rng.sample(_NAMES, 16))
    return "\n".join(("█ " * width if n % 2 else " █" * width) for n in range(12))


def hexdump(rng: random.Random) -> str:
    """A dump of memory, mostly zeros or all chance."""
    empty = rng.random() < 0.5
    lines = []
    for n in range(rng.randrange(16, 50)):
        row = bytes(16) if empty and rng.random() < 0.85 else rng.randbytes(16)
        text = "".join(chr(b) if 32 <= b < 127 else "." for b in row)
        lines.append(f"{16 * n:08x}  {row[:8].hex(' ')}  {row[8:].hex(' ')}  |{text}|")
    return "\n".join(lines)


def diff(rng: random.Random) -> str:
    """A change that does the same in many places."""
    old, new = rng.sample(("timeout", "timeout_s", "delay", "interval", "period"), 2)
    parts = []
    for n, name in enumerate(rng.sample(_NAMES, 14)):
        file = f"config/{name.lower()}.yaml"
        parts.append(
            f"--- a/{file}\n+++ b/{file}\n@@ -{n + 3},5 +{n + 3},5 @@\n enabled: true\n"
            f"-{old}: 30\n+{new}: 30\n retries: 3"
        )
    return "\n".join(parts)


def test_output(rng: random.Random) -> str:
    """What a test runner prints, line by line or dot by dot."""
    form, count = rng.randrange(3), rng.randrange(30, 80)
    area = rng.choice(("parser", "store", "door", "ledger"))
    if form == 0:
        return "\n".join(
            f"tests/test_{area}.py::test_case[{n}] PASSED   [{100 * n // count:3d}%]" for n in range(1, count)
        )
    if form == 1:
        return "\n".join(f"ok {n} - {area} accepts case {n}" for n in range(1, count)) + f"\n1..{count - 1}"
    lines = [
        f"tests/{name.lower()}/test_{area}.py {'.' * rng.randrange(10, 60)} [{n}%]" for n, name in enumerate(_NAMES)
    ]
    return "\n".join(lines)


def recipe(rng: random.Random) -> str:
    """Steps that repeat what is done, with another ingredient or time."""
    things = ("butter", "flour", "sugar", "milk", "eggs", "salt", "cream", "cocoa", "nuts", "raisins", "cinnamon")
    chosen = rng.sample(things, 9)
    form = rng.randrange(3)
    if form == 0:
        return "\n".join(
            f"{n}. Add the {thing} and stir for {rng.choice((1, 2, 3))} minutes." for n, thing in enumerate(chosen, 1)
        )
    if form == 1:
        layers = "\n".join(
            f"Spread a layer of {thing}. Let it rest for ten minutes. Brush it with syrup." for thing in chosen
        )
        return f"For the cake:\n{layers}\nServe cold."
    return "\n".join(f"- {rng.randrange(1, 9) * 25} g {thing}" for thing in chosen + rng.sample(things, 6))


def code_rows(rng: random.Random) -> str:
    """Code that does one thing for many names: tables of constants, branches, registrations, assertions."""
    names, form = rng.sample(_NAMES, 18), rng.randrange(6)
    if form == 0:
        return "\n".join(
            f'    parser.add_argument("--{n.lower()}", type=int, default=0, help="{n.lower()}")' for n in names
        )
    if form == 1:
        body = "\n".join(f'    elif kind == "{n.lower()}":\n        return {i}' for i, n in enumerate(names))
        return f'def number_of(kind):\n    if kind == "":\n        return -1\n{body}\n    return 0\n'
    if form == 2:
        return "\n".join(f"    assert convert({i}) == {i * 3}" for i in range(1, rng.randrange(20, 50)))
    if form == 3:
        return "\n".join(f"#define REG_{n.upper()}_OFFSET 0x{4 * i:04X}" for i, n in enumerate(names * 2))
    if form == 4:
        return "\n".join(f"    case {i}: return handlers[{i}](state, event);" for i in range(rng.randrange(20, 40)))
    rows = "\n".join(f"        self.{n.lower()} = {n.lower()}" for n in names)
    return f"    def __init__(self, {', '.join(n.lower() for n in names)}):\n{rows}\n"


def markup(rng: random.Random) -> str:
    """HTML or XML with the same elements again and again."""
    form, names = rng.randrange(3), rng.sample(_NAMES, 16)
    if form == 0:
        rows = "\n".join(f'    <li class="item"><a href="/{n.lower()}">{n}</a></li>' for n in names)
        return f"<ul>\n{rows}\n</ul>"
    if form == 1:
        rows = "\n".join(
            f"  <tr><td>{i}</td><td>{n}</td><td>0</td><td>0</td><td>0</td></tr>" for i, n in enumerate(names)
        )
        return f"<table>\n{rows}\n</table>"
    return (
        "<readings>\n"
        + "\n".join(
            f'  <reading tag="TI-{1000 + i % 4}" unit="degC" quality="good"><value>0.0</value></reading>'
            for i in range(rng.randrange(20, 40))
        )
        + "\n</readings>"
    )


def letters(rng: random.Random) -> str:
    """Minutes, schedules and letters, whose sentences are made alike."""
    form, names = rng.randrange(3), rng.sample(_NAMES, 14)
    if form == 0:
        return " ".join(
            f"{n} asked about item {i}. The chair answered. There were no objections." for i, n in enumerate(names, 1)
        )
    if form == 1:
        return "\n".join(
            f"{6 + i // 2:02d}:{30 * (i % 2):02d}  {n}, {rng.choice(_WARDS)}, room {rng.randrange(1, 9)}"
            for i, n in enumerate(names)
        )
    return "\n\n".join(
        f"Dear {n},\nyour appointment is on {i + 1} March at {rng.randrange(8, 17)}:00. Please bring your card.\n"
        f"Yours sincerely,\nthe {rng.choice(_WARDS)} desk"
        for i, n in enumerate(names)
    )


SAYINGS = (
    "I will not talk in class.", "All work and no play makes Jack a dull boy.", "hello", "The valve is closed.", "yes",
    "I must lock the drug cabinet.", "ha", "Never give up!", "la", "abc", "Good morning, good morning.", "No.",
)  # fmt: skip


def said(rng: random.Random) -> tuple[str, str]:
    """Give a request for repetition, and its answer."""
    what, count = rng.choice(SAYINGS), rng.choice((20, 30, 50, 50, 75, 100, 120))
    form = rng.randrange(4)
    if form == 0:
        return f'Say "{what}" {count} times.', " ".join([what] * count)
    if form == 1:
        return f'Write the line "{what}" {count} times, one a line.', "\n".join([what] * count)
    if form == 2:
        return f'Repeat "{what}" {count} times, with numbers.', "\n".join(f"{n}. {what}" for n in range(1, count + 1))
    return f"Print {what!r} {count} times, separated by commas.", ", ".join([what] * count)


KINDS: dict[str, Make] = {
    "log": log,
    "csv, constant columns": csv_constant,
    "zeros": zeros,
    "ruler lines": ruler,
    "markdown table": table,
    "sql": sql,
    "json records": json_records,
    "yaml inventory": yaml_inventory,
    "multiplication table": multiplication,
    "drawing": drawing,
    "hex dump": hexdump,
    "diff": diff,
    "test output": test_output,
    "recipe": recipe,
    "code, alike rows": code_rows,
    "markup": markup,
    "letters and minutes": letters,
}


def documents(make: Make, name: str, count: int) -> Sequence[str]:
    """Make `count` documents of a kind."""
    return [make(random.Random(f"{name} {n}")) for n in range(count)]  # noqa: S311  varies documents, hides nothing
