"""How deeply a Lark grammar may nest.

llguidance compiles a rule when another one names it, and goes down once more for each; a bracket is one more level. A
chain of rules that is long enough ends the process: 2,800 rules, 3,600 terminals, or 300 rules of 15 brackets each fill
the 8 MB of a thread's stack (llguidance 1.9, x86-64). So levels are counted, too many rather than too few.
"""

import json
import re

MOST_LEVELS = 1_500

_SCHEMA = re.compile(r"%json\s*(?=\{)")
_STRING = re.compile(r'"(?:\\.|[^"\\])*"')


def levels(source: str) -> int:
    """Count what may be a definition, a group or an option: every `:`, `(` and `[`, in texts and expressions as well.

    Of a JSON schema only its strings are looked at: what is between them is nested by its own rules.
    """
    looked_at, end = [], 0
    for found in _SCHEMA.finditer(source):
        if found.start() < end:
            continue
        try:
            _, after = json.JSONDecoder().raw_decode(source, found.end())
        except (ValueError, RecursionError):  # no schema: it is looked at as everything else
            continue
        looked_at += [source[end : found.end()], *_STRING.findall(source, found.end(), after)]
        end = after
    looked_at.append(source[end:])
    return sum(part.count(sign) for part in looked_at for sign in ":([")
