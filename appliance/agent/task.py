"""A task: a named, versioned job with a prompt, the form of its answer, and judges of it, in one YAML file.

    task = load_task(Path("tasks/triage.yaml"))         # `installed` reads a whole directory of them
    prompt = render(task, "The pump is hot.")            # messages, or text to continue
    form = constraint(task)                              # for the grammar
    best = BestOf(judges(task), Context(input="The pump is hot."))
    best.offer(Candidate(text=result(task, answer), index=0))

The file is read strictly, like every other: an unknown key, a pattern that cannot be matched, an example that breaks
the schema are errors that name the place. A prompt is made by putting the input where the template says `{input}`, and
nothing else is replaced: what a caller sends is never looked at as a template.

An answer that a schema binds can be written by the model as JSON, or as lines (`written: lines`):

    About: pump
    Category: equipment

Small models write what looks like their examples, and words in lines have the tokens that they know best. `result`
makes JSON of it, which the same schema judges. Measured with SmolLM2 135M: see docs/reference/tasks.md.

What this does NOT do: run a task. The engine generates, `best_of` chooses. And nothing here keeps a model from doing
what an input tells it to do: bind the answer by a schema, and treat what is free in it as words of a stranger.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from appliance.agent import lines
from appliance.config import MAX_YAML_BYTES, convert, load_yaml
from appliance.decoding import json_schema
from appliance.decoding.conformity import byte_vocabulary, conforms
from appliance.decoding.grammar import Constraint, compile_grammar
from appliance.decoding.sampling import SamplingParams
from appliance.decoding.verifiers import Agreement, Context, Length, Schema, Verdict, Verifier, judge
from appliance.errors import ConfigError, SkerryError
from appliance.files import read_limited

INPUT = "{input}"
FORM = "form"
"""The verdict on whether an answer came to the end of its form."""

NAME_PATTERN = r"\A[a-z0-9][a-z0-9-]{0,63}\Z"
Name = Annotated[str, Meta(pattern=NAME_PATTERN)]
Text = Annotated[str, Meta(max_length=65_536)]
Bias = Annotated[float, Meta(ge=-100, le=100)]


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What all parts of a task have."""


# --- the prompt -------------------------------------------------------------------------------------------------------


class Example(_Part, frozen=True):
    """An input, and what should come of it: text, or for a schema the object."""

    input: Text
    output: Text | dict[str, Any]


class Prompt(_Part, frozen=True):
    """What the model reads.

    Attributes:
        form: `chat`: messages for the model's template; `text`: one text to continue, for base models and patterns.
        system: how to behave; in `text` form the first paragraph.
        template: how an input looks, with `{input}` once. In `text` form the answer comes directly after it.
        examples: inputs with their answers.
    """

    form: Literal["chat", "text"] = "chat"
    system: Text = ""
    template: Annotated[str, Meta(max_length=4096)] = INPUT
    examples: Annotated[tuple[Example, ...], Meta(max_length=64)] = ()

    def __post_init__(self) -> None:
        if self.template.count(INPUT) != 1:
            raise ValueError(f"template has {INPUT} {self.template.count(INPUT)} times, expected once")


# --- the answer -------------------------------------------------------------------------------------------------------


class SchemaOutput(_Part, frozen=True, tag_field="kind", tag="json_schema"):
    """JSON under a schema.

    Attributes:
        schema: JSON Schema.
        written: how the model writes it; `lines` is for objects of words and numbers, all of them required.
    """

    schema: dict[str, Any]
    written: Literal["json", "lines"] = "json"

    def __post_init__(self) -> None:
        try:
            json_schema.check(self.schema)
        except SkerryError as e:
            raise ValueError(e.message) from e
        if self.written == "lines":
            lines.check(self.schema)
            _refuse(Constraint("regex", lines.pattern(self.schema)))
        else:
            _refuse(Constraint("json_schema", json.dumps(self.schema)))


class RegexOutput(_Part, frozen=True, tag_field="kind", tag="regex"):
    """Text that a regular expression matches as a whole."""

    pattern: Annotated[str, Meta(min_length=1, max_length=65_536)]

    def __post_init__(self) -> None:
        _refuse(Constraint("regex", self.pattern))


class LarkOutput(_Part, frozen=True, tag_field="kind", tag="lark"):
    """Text of a Lark grammar, in llguidance's dialect."""

    grammar: Annotated[str, Meta(min_length=1, max_length=65_536)]

    def __post_init__(self) -> None:
        _refuse(Constraint("lark", self.grammar))


class TextOutput(_Part, frozen=True, tag_field="kind", tag="text"):
    """Any text."""


def _refuse(constraint: Constraint) -> None:
    """Refuse what no model could be held to, so that the file's author is told and not a caller."""
    try:
        compile_grammar(constraint, byte_vocabulary(()))
    except SkerryError as e:
        raise ValueError(e.message) from e


Output = SchemaOutput | RegexOutput | LarkOutput | TextOutput


class Sampling(_Part, frozen=True):
    """How the answers are drawn; what is left out is the model card's default.

    `temperature` is for the candidates after the first, which is always greedy, unless the examples' order makes them
    differ (`shuffle`): then all are.
    """

    temperature: Annotated[float, Meta(ge=0, le=2)] = 0.7
    top_p: Annotated[float, Meta(ge=0, le=1)] = 1.0
    top_k: Annotated[int, Meta(ge=0)] = 0
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=10)] = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        try:
            self.params().validate(0)
        except SkerryError as e:
            raise ValueError(e.message) from e

    def params(self, logit_bias: Mapping[int, float] | None = None) -> SamplingParams:
        """What the engine is told.

        Args:
            logit_bias: added to logits, by token.
        """
        return SamplingParams(**msgspec.structs.asdict(self), logit_bias=logit_bias or {})


# --- the task ---------------------------------------------------------------------------------------------------------


class Task(_Part, frozen=True, kw_only=True):
    """One task.

    Attributes:
        format: of the file.
        name: the file's name without its ending.
        version: in the author's words; it stands in every answer.
        description: one line for people.
        model: for which it was made; None: the caller says.
        prompt: what the model reads.
        output: the form of the answer.
        verifiers: judges, besides the schema, which is always judged.
        candidates: answers to choose from.
        shuffle: whether every candidate reads the examples in another order.
        sampling: how they are drawn.
        max_tokens: longest answer.
        stop: texts that end it.
        calibration: field -> value -> nats that the model likes this value too much; taken off where it writes it.
    """

    format: Literal[1]
    name: Name
    version: Annotated[str, Meta(min_length=1, max_length=64)]
    description: Annotated[str, Meta(max_length=1024)] = ""
    model: Annotated[str, Meta(max_length=64)] | None = None
    prompt: Prompt
    output: Output = TextOutput()
    verifiers: Annotated[tuple[Verifier, ...], Meta(max_length=16)] = ()
    candidates: Annotated[int, Meta(ge=1, le=8)] = 1
    shuffle: bool = False
    sampling: Sampling = Sampling()
    max_tokens: Annotated[int, Meta(ge=1, le=1 << 20)] = 256
    stop: Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=256)], ...], Meta(max_length=16)] = ()
    calibration: dict[str, dict[str, Bias]] = {}

    def __post_init__(self) -> None:
        names = [v.name for v in judges(self)]
        if len(set(names)) != len(names):
            raise ValueError("two verifiers have the same name, expected one name each")
        if self.shuffle and len(self.prompt.examples) < 2:
            raise ValueError(f"shuffle needs two examples, found {len(self.prompt.examples)}")
        for verifier in self.verifiers:
            _check_verifier(verifier, self.candidates)
        for i, example in enumerate(self.prompt.examples, 1):
            self._check_example(i, example)
        for field, values in self.calibration.items():
            known = _choices(self.output, field)
            for value in values:
                if value not in known:
                    raise ValueError(f"calibration of {field} has {value!r}, which is none of its enum")
                if not value:
                    raise ValueError(f"calibration of {field} has an empty value, expected one that has a first token")

    def _check_example(self, number: int, example: Example) -> None:
        if isinstance(self.output, SchemaOutput):
            given = example.output if isinstance(example.output, str) else json.dumps(example.output)
            form = Constraint("json_schema", json.dumps(self.output.schema))
        elif not isinstance(example.output, str):
            raise ValueError(f"example {number} has an object as output, expected text")  # noqa: TRY004  msgspec's way
        elif (plain := constraint(self)) is None:
            return
        else:
            given, form = example.output, plain
        if (reason := conforms(form, given)) is not None:
            raise ValueError(f"the output of example {number} has not the task's form: {reason}")


def load_task(path: Path) -> Task:
    """Read a task.

    Raises:
        FileProblem: the file cannot be read.
        ConfigError: as `parse_task`.
    """
    return parse_task(read_limited(path, MAX_YAML_BYTES), str(path), path.stem)


def parse_task(data: bytes, what: str, name: str) -> Task:
    """Read a task from its file's bytes.

    Args:
        data: of the file.
        what: the file, for errors.
        name: that the task must have.
    Raises:
        ConfigError: it is no task, it could not work, or its name is another one.
    """
    plain = load_yaml(data, what)
    try:
        _refuse_values(plain, "$")
        task = convert(plain, Task, what)
    except msgspec.ValidationError as e:
        raise ConfigError(f"cannot use {what}: {e}", hint=_HINT) from e
    except ConfigError as e:
        raise ConfigError(e.message, hint=_HINT) from e.__cause__
    if task.name != name:
        raise ConfigError(f"cannot use {what}: its name is {task.name}, expected {name} as the file's", hint=_HINT)
    return task


_HINT = "docs/reference/tasks.md says what a task file may hold"


def _refuse_values(value: Any, place: str) -> None:
    """Refuse what YAML has and JSON has not: a date that was meant as text, and numbers that are none."""
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            _refuse_values(part, f"{place}.{key}" if isinstance(key, str) else f"{place}[{key}]")
    elif isinstance(value, float | int):
        if not json_schema.is_double(value):
            raise msgspec.ValidationError(f"{str(value)[:16]}, expected a number that a double can hold - at `{place}`")
    elif not isinstance(value, str | None):
        raise msgspec.ValidationError(f"a {type(value).__name__}, expected text in quotes - at `{place}`")


def _check_verifier(verifier: Verifier, candidates: int) -> None:
    """Refuse one that no answer can pass."""
    if isinstance(verifier, Agreement) and verifier.votes > candidates:
        found = f"candidates is {candidates}, expected at least the {verifier.votes} votes that it needs"
        raise ValueError(f"verifier {verifier.name}: {found}")
    if isinstance(verifier, Length):
        for what in ("chars", "words"):
            least, most = getattr(verifier, f"min_{what}"), getattr(verifier, f"max_{what}")
            if most is not None and least > most:
                raise ValueError(f"verifier {verifier.name}: min_{what} is {least}, expected at most max_{what} {most}")


def render(task: Task, text: str, order: int = 0) -> list[dict[str, str]] | str:
    """Write what the model reads.

    Args:
        task: whose prompt.
        text: the input; it is put in as it is.
        order: which candidate this is for: with `shuffle` each number above 0 is another order of the examples.
    Returns:
        messages for the chat template, or in `text` form the text to continue.
    """
    prompt = task.prompt
    shown = [(_fill(prompt, e.input), written(task, e.output)) for e in _ordered(task, order)]
    if prompt.form == "text":
        head = [prompt.system] if prompt.system else []
        return "\n\n".join([*head, *(question + answer for question, answer in shown), _fill(prompt, text)])
    messages = [{"role": "system", "content": prompt.system}] if prompt.system else []
    for question, answer in shown:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return [*messages, {"role": "user", "content": _fill(prompt, text)}]


def _fill(prompt: Prompt, text: str) -> str:
    before, _, after = prompt.template.partition(INPUT)
    return f"{before}{text}{after}"


def _ordered(task: Task, order: int) -> list[Example]:
    """The examples, in an order that is the same everywhere for the same number."""
    if not task.shuffle or not order:
        return list(task.prompt.examples)
    keyed = [(hashlib.sha256(f"{order} {i}".encode()).digest(), e) for i, e in enumerate(task.prompt.examples)]
    return [e for _, e in sorted(keyed, key=lambda pair: pair[0])]


def written(task: Task, output: str | Mapping[str, Any]) -> str:
    """Write an example's output as the model is to write its own."""
    if isinstance(task.output, SchemaOutput) and task.output.written == "lines":
        value = json.loads(output) if isinstance(output, str) else output
        return lines.write(task.output.schema, value)
    return output if isinstance(output, str) else json.dumps(output, ensure_ascii=False)


def constraint(task: Task) -> Constraint | None:
    """The form that the engine holds the answer to; None if it is free."""
    match task.output:
        case SchemaOutput(schema=schema, written="lines"):
            return Constraint("regex", lines.pattern(schema))
        case SchemaOutput(schema=schema):
            return Constraint("json_schema", json.dumps(schema))
        case RegexOutput(pattern=pattern):
            return Constraint("regex", pattern)
        case LarkOutput(grammar=grammar):
            return Constraint("lark", grammar)
    return None


def result(task: Task, answer: str) -> str:
    """Make the task's result of what the model wrote: JSON of lines, else the text itself.

    Lines that are not as they must be stay what they are; the schema's verdict says so.
    """
    if isinstance(task.output, SchemaOutput) and task.output.written == "lines":
        value = lines.read(task.output.schema, answer)
        return answer if value is None else json.dumps(value, ensure_ascii=False)
    return answer


def judges(task: Task) -> tuple[Verifier, ...]:
    """The task's verifiers: its form comes first, then the schema of its output, if no other one is declared."""
    declared = task.verifiers
    if isinstance(task.output, SchemaOutput) and not any(isinstance(v, Schema) for v in declared):
        declared = (Schema(schema=task.output.schema), *declared)
    # It passes any text: whether the form came to its end only the engine knows, and then `unfinished` is asked.
    return declared if constraint(task) is None else (Length(name=FORM), *declared)


def unfinished(task: Task, text: str, context: Context) -> tuple[Verdict, ...]:
    """What the judges say of an answer that ended before its form did."""
    _, *others = judge(judges(task), text, context)
    return (Verdict(False, FORM, "the answer ended before its form did"), *others)


def biases(task: Task) -> dict[str, float]:
    """What is added to the logit of the first token of each of these texts, to make up for `calibration`.

    The texts stand as the model writes them: after a blank in lines, after a quote in JSON.
    """
    blank = " " if isinstance(task.output, SchemaOutput) and task.output.written == "lines" else ""
    return {blank + value: -nats for values in task.calibration.values() for value, nats in values.items()}


def _choices(output: Output, field: str) -> list[str]:
    if not isinstance(output, SchemaOutput):
        raise ValueError("calibration is for enums of a json_schema output")  # noqa: TRY004  msgspec's way
    part = output.schema.get("properties", {}).get(field, {})
    return [str(v) for v in part.get("enum", ())] if isinstance(part, dict) else []
