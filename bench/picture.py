"""The roofline of one run of the benchmark as a picture: `python -m bench.picture FIGURES.json PICTURE.svg`.

FIGURES.json is what `python -m bench --out` wrote. For each form a bar as long as reading its weights once a token
would allow on that machine, filled as far as it decodes: at 128 tokens of context, and paler at 1,024.

Source of the idea: Williams, Waterman, Patterson 2009, "Roofline". One token does two operations for each byte that is
read, far below what a processor computes in that time: so the roof is memory.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from appliance.errors import SkerryError
from appliance.files import read_limited, write_durably

_MAX_FIGURES_BYTES = 16 << 20
WIDTH, LEFT, RIGHT, ROW, BAR, TOP = 760, 190, 120, 34, 18, 58


def svg(title: str, forms: Sequence[Mapping[str, Any]], bandwidth: float) -> str:
    """Draw the bars.

    Args:
        title: the model and the machine.
        forms: as `bench.report.plain` has them.
        bandwidth: bytes a second.
    """
    bounds = [bandwidth / form["package_bytes"] for form in forms]
    scale = (WIDTH - LEFT - RIGHT) / max(bounds)
    parts = []
    for number, (form, bound) in enumerate(zip(forms, bounds, strict=True)):
        y = TOP + number * ROW
        near, far = (form["speeds"][f"decode_{context}"]["per_s"] for context in (128, 1024))
        name = f"{form['engine']} {form['form']}" + (", default" if form["default"] else "")
        parts += [
            f'<text x="{LEFT - 10}" y="{y + 14}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{LEFT}" y="{y}" width="{bound * scale:.1f}" height="{BAR}" fill="none" stroke="#777"/>',
            f'<rect x="{LEFT}" y="{y}" width="{min(near, bound) * scale:.1f}" height="{BAR}" fill="#9fc3e0"/>',
            f'<rect x="{LEFT}" y="{y}" width="{min(far, bound) * scale:.1f}" height="{BAR}" fill="#2f6f9f"/>',
            f'<text x="{LEFT + bound * scale + 8:.1f}" y="{y + 14}">{near:.0f} of {bound:.0f}</text>',
        ]
    height = TOP + len(forms) * ROW + 12
    said = "tokens a second: outlined what memory allows, filled what is decoded at 128 (pale) and 1,024 (dark)"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
            'font-size="13" fill="#222">',
            f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
            f'<text x="16" y="22" font-weight="bold">{escape(title)}</text>',
            f'<text x="16" y="42" fill="#555">{said}</text>',
            *parts,
            "</svg>\n",
        ]
    )


def main() -> int:
    """Read, draw, write."""
    parser = argparse.ArgumentParser(prog="python -m bench.picture", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("figures", type=Path, help="what `python -m bench --out` wrote")
    parser.add_argument("picture", type=Path, help="the SVG to write")
    parser.add_argument("--threads", default="2", help="which of its thread counts (2)")
    options = parser.parse_args()
    try:
        found = json.loads(read_limited(options.figures, _MAX_FIGURES_BYTES))
    except (SkerryError, ValueError) as e:
        print(
            f"bench.picture: cannot read {options.figures}: {e}; give what `python -m bench --out` wrote",
            file=sys.stderr,
        )
        return 1
    measured = {name: model for name, model in found["models"].items() if options.threads in model.get("threads", {})}
    if not measured:
        print(f"bench.picture: {options.figures} holds no run with {options.threads} threads", file=sys.stderr)
        return 1
    name, model = next(iter(measured.items()))
    run = model["threads"][options.threads]
    title = f"{name}, {options.threads} threads, {run['bytes_per_s'] / 1e9:.1f} GB/s, {found['machine']['processor']}"
    write_durably(options.picture, svg(title, run["forms"], run["bytes_per_s"]).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
