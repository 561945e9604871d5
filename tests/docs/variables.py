"""`docs/reference/variables.md`, made of the roles' argument specifications and defaults.

python -m tests.docs.variables > docs/reference/variables.md
"""

import re
import sys
import textwrap
from typing import Any

import yaml

from tests.docs.blocks import ROOT

ROLES = ROOT / "playbooks" / "roles"
ORDER = ("base", "runtime", "models", "console", "inference", "sandbox", "hardening")
"""As site.yml runs them."""

HEAD = """# Variables of the playbooks

Made of the roles' argument specifications by `python -m tests.docs.variables`; a test compares it with them.

Write what differs at your site into one YAML file and give it to `install.sh --site FILE`. The box keeps it as
`/etc/skerry/site.yaml` and uses it for later runs. For a fleet write it into the inventory's `group_vars`. A name that
no role knows, or a value of another type, is refused before anything changes.
"""


def render() -> str:
    """The whole page."""
    roles = [r for r in ORDER if (ROLES / r / "meta" / "argument_specs.yml").exists()]
    return "\n".join([HEAD, *(_section(role) for role in roles)])


def _section(role: str) -> str:
    spec = _load(role, "meta/argument_specs.yml")["argument_specs"]["main"]
    defaults = _load(role, "defaults/main.yml")
    about = textwrap.wrap(_one_line(spec.get("description") or spec["short_description"]), 118)
    lines = [f"## {role}", "", *about, ""]
    options = {k: o for k, o in (spec.get("options") or {}).items() if k.startswith(f"{role}_")}
    if options:
        lines += ["| variable | type | default | meaning |", "|---|---|---|---|"]
        lines += [_row(name, option, defaults) for name, option in options.items()]
        lines.append("")
    return "\n".join(lines)


def _row(name: str, option: dict[str, Any], defaults: dict[str, Any]) -> str:
    kind = option["type"] + (f" of {option['elements']}" if "elements" in option else "")
    if "choices" in option:
        kind = ", ".join(f"`{c}`" for c in option["choices"])
    default = f"`{_shown(defaults[name])}`" if name in defaults else ("required" if option.get("required") else "none")
    text = _one_line(option["description"])
    for key, part in (option.get("options") or {}).items():
        text += f" `{key}`: {_one_line(part['description'])}"
    return f"| `{name}` | {kind} | {default} | {text} |".replace("\n", " ")


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True, width=10_000).strip()
    return " ".join(text.removesuffix("\n...").split()).replace("|", "\\|") or '""'


def _one_line(text: str | list[str]) -> str:
    joined = text if isinstance(text, str) else " ".join(text)
    # C(...) is how Ansible's documents mark code.
    return re.sub(r"\bC\(([^)]*)\)", r"`\1`", " ".join(joined.split()).replace("|", "\\|"))


def _load(role: str, file: str) -> dict[str, Any]:
    path = ROLES / role / file
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.exists() else {}


if __name__ == "__main__":
    sys.stdout.write(render())
