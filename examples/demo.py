"""The demo behind `make demo`: a real model, from its published weights to answers, with the commands that do it.

It builds, signs and verifies SmolLM2 135M, serves it from the folder `.demo/`, sorts the tickets and answers questions
on the handbook beside this file, counts what is right, and leaves you in `skerry chat` when you sit at a terminal. The
second run finds the package built and takes seconds. `make clean` removes what it made.

What it does NOT show: a box. On a box the daemon runs under systemd with a user of its own, and the private key is
elsewhere.
"""

# ruff: noqa: T201, S603
# T201: this is a program that talks. S603: it runs `skerry` from its own virtual environment, with its own arguments.

import contextlib
import hashlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from appliance.cli.terminal import safe
from appliance.client import Answer, Client, Message, ModelInfo, Options
from appliance.errors import DaemonTimeout, DaemonUnreachable, SkerryError

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
RECIPE = ROOT / "models" / "smollm2-135m-instruct.yaml"
TASK = EXAMPLES / "triage.yaml"
STATE = ROOT / ".demo"
SKERRY = Path(sys.executable).with_name("skerry")

TRIAGE_S, AT_LEAST_TICKETS = 30.0, 4
"""Time for tickets; then no new one is begun."""
ANSWERS_S, AT_LEAST_QUESTIONS = 5.0, 3
READY_S = 30.0
WIDTH = 80

T = TypeVar("T")


class Ticket(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of tickets.jsonl: what came in, and how a person sorted it."""

    id: str
    received: str
    site: str
    subject: str
    body: str
    category: str
    priority: str


class Sorted(msgspec.Struct, frozen=True):
    """What comes of the task, as far as it is looked at."""

    category: str


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of questions.jsonl: a question on one page of the handbook, and what counts as its answer."""

    id: str
    question: str
    page: str
    answer: str
    accept: str
    """Regular expression, without regard to case, that a right answer contains."""

    def is_right(self, said: str) -> bool:
        """Judge an answer by its key words; a person would be stricter with some sentences."""
        return re.search(self.accept, said, re.IGNORECASE) is not None


# --- prompts ----------------------------------------------------------------------------------------------------------

GREEDY: Options = {"temperature": 0, "repetition_penalty": 1, "stop": "\n"}
"""Always the likeliest token: the same answers every time. The words that are wanted stand in the prompt already, so
the card's penalty on repeating them must be off."""
ONE_SENTENCE: Options = {**GREEDY, "max_tokens": 32}

CATEGORIES = ("equipment", "building", "computer", "supplies")

ANSWERING = "Answer the question from the page, in one short sentence."
ANSWERED = (
    "Page:\n# Canteen\n\nThe canteen is open from 11:00 to 14:00.\n\n- Closed on Sundays.\n- Guests pay at the till.\n"
    "\nQuestion: When is the canteen closed?",
    "The canteen is closed on Sundays.",
)


def ticket_text(ticket: Ticket) -> str:
    """Write a ticket as the task reads it."""
    return f"{ticket.subject}. {ticket.body}"


def question_messages(question: Question, page: str) -> list[Message]:
    """Write the conversation whose next turn is the answer."""
    return [
        Message("system", ANSWERING),
        Message("user", ANSWERED[0]),
        Message("assistant", ANSWERED[1]),
        Message("user", f"Page:\n{page}\nQuestion: {question.question}"),
    ]


def read_lines(path: Path, kind: type[T]) -> list[T]:
    """Read a file of one JSON object a line."""
    return [msgspec.json.decode(line, type=kind) for line in path.read_bytes().splitlines()]


# --- the demo ---------------------------------------------------------------------------------------------------------


def main() -> int:
    """Run all steps; the daemon is stopped at the end, whatever happens."""
    # So that the daemon is stopped too when the terminal is closed or somebody kills the demo.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda n, _: sys.exit(128 + n))
    started = time.monotonic()
    try:
        package = prepare()
        with daemon(), Client(STATE / "run" / "inference.sock") as client:
            model = load(client, package.name)
            triage(client)
            show_figures(client, model, answer(client, model))
            print(f"\nThe demo took {time.monotonic() - started:.0f} s.")
            talk(model)
    except SkerryError as e:
        print(f"demo: {e.message}" + (f"\nhint: {e.hint}" if e.hint else ""), file=sys.stderr)
        return e.exit_code
    except subprocess.CalledProcessError as e:
        print(f"demo: the command above failed, so the demo ends here (exit {e.returncode})", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def prepare() -> Path:
    """Build, sign and verify the package; what is there already is only verified."""
    package = STATE / "models" / _package_name()
    with step("Build a model package from published weights"):
        if _is_current(package):
            print(f"built before: {_shown(package)}")
        else:
            skerry(
                "model",
                "build",
                _shown(RECIPE),
                "--out",
                _shown(package.parent),
                *(["--force"] if package.exists() else []),
            )
            _stamp().write_text(_builder_hash() + "\n")
    public = STATE / "keys" / "demo.pub"
    with step("Sign it: the private key stays on the station, the box trusts keys/*.pub"):
        if not public.exists():
            shutil.rmtree(STATE / "station", ignore_errors=True)
            skerry("key", "new", "demo", "--out", _shown(STATE / "station"))
            public.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            print(f"$ cp {_shown(STATE / 'station' / 'demo.pub')} {_shown(public.parent)}/")
            shutil.copy(STATE / "station" / "demo.pub", public)
            (package / "model.sig").unlink(missing_ok=True)
        if (package / "model.sig").exists():
            print("signed before")
        else:
            skerry("model", "sign", _shown(package), "--key", _shown(STATE / "station" / "demo.key"))
    with step("Verify it, as the daemon will at every load"):
        skerry("model", "verify", _shown(package), "--keys", _shown(public.parent))
    return package


@contextlib.contextmanager
def daemon() -> Iterator[None]:
    """Run `skerry serve` in the background; it is ended with the block."""
    socket, log = STATE / "run" / "inference.sock", STATE / "serve.log"
    with step("Serve it on a Unix socket"):
        if _answers(socket):
            raise DaemonUnreachable(
                f"cannot serve {_shown(STATE)}: another daemon serves it", hint="end the other demo, then try again"
            )
        print(f"$ skerry serve --state-dir {_shown(STATE)} &")
        process = _start(log)
        try:
            _wait_until_ready(process, socket, log)
        except BaseException:
            _stop(process)
            raise
    try:
        yield
    finally:
        _stop(process)
        print("\nThe daemon is stopped.")


def load(client: Client, name: str) -> ModelInfo:
    """Load the model, and look at what it consists of."""
    with step("Load it, and look at what it consists of"):
        skerry("--state-dir", _shown(STATE), "model", "load", name)
        print(f"$ skerry model inspect {_shown(STATE / 'models' / name)} | tail")
        shown = skerry_output("model", "inspect", _shown(STATE / "models" / name))
        print(shown[shown.find("parameters:") :].split("\n\n")[0])
    return client.model(name)


def triage(client: Client) -> None:
    """Sort tickets into categories with a task: its schema holds the answer, its verifiers judge it."""
    tickets = read_lines(EXAMPLES / "tickets.jsonl", Ticket)
    right = verified = asked = 0
    until = time.monotonic() + TRIAGE_S
    with step("Sort tickets with a task: a prompt, a schema and verifiers in one file"):
        task = STATE / "tasks" / TASK.name
        task.parent.mkdir(exist_ok=True)
        print(f"$ cp {_shown(TASK)} {_shown(task.parent)}/")
        shutil.copy(TASK, task)
        print(f"$ skerry --state-dir {_shown(STATE)} task run {TASK.stem} --file TICKET")
        for ticket in tickets:
            if time.monotonic() > until and asked >= AT_LEAST_TICKETS:
                break
            result = client.run_task(TASK.stem, ticket_text(ticket))
            category = msgspec.json.decode(result.output, type=Sorted).category if result.verified else "not verified"
            asked, verified, right = asked + 1, verified + result.verified, right + (category == ticket.category)
            verdict = "right" if category == ticket.category else f"WRONG: {ticket.category}"
            print(f"  {ticket.id}  {ticket.subject[:40]:40}  {category:12}  {verdict}")
        print(
            f"{right} of {asked} right, {verified} verified; guessing would get {asked / len(CATEGORIES):.0f}.", end=""
        )
        print(f" Not asked for lack of time: {len(tickets) - asked}.")


def answer(client: Client, model: ModelInfo) -> list[Answer]:
    """Answer questions, each with its page of the handbook in the prompt."""
    questions = read_lines(EXAMPLES / "questions.jsonl", Question)
    answers: list[Answer] = []
    right, until = 0, time.monotonic() + ANSWERS_S
    with step("Answer questions on the handbook, with the right page in the prompt"):
        for question in questions:
            if time.monotonic() > until and len(answers) >= AT_LEAST_QUESTIONS:
                break
            page = (EXAMPLES / "handbook" / question.page).read_text()
            said = client.chat(question_messages(question, page), model.name, **ONE_SENTENCE)
            answers.append(said)
            right += question.is_right(said.text)
            verdict = "right" if question.is_right(said.text) else f"WRONG: {question.answer}"
            print(f"  {question.question}")
            print(
                textwrap.fill(
                    f"{safe(said.text).strip()} [{verdict}]",
                    WIDTH - 4,
                    initial_indent=" " * 4,
                    subsequent_indent=" " * 4,
                )
            )
        print(f"{right} of {len(answers)} right. Not asked for lack of time: {len(questions) - len(answers)}.")
    return answers


def show_figures(client: Client, model: ModelInfo, answers: Sequence[Answer]) -> None:
    """Add up what the daemon measured."""
    timings = [a.timings for a in answers if a.timings]
    with step(f"What it took; see also: skerry --state-dir {_shown(STATE)} status"):
        steps, decode_s = sum(max(0, (t.completion_tokens or 0) - 1) for t in timings), _total(timings, "decode_s")
        prompt, prompt_s = _total(timings, "prompt_tokens"), _total(timings, "prompt_s")
        rows = []
        if steps and decode_s:
            rows.append(("writing", f"{steps / decode_s:.0f} tokens/s"))
        if prompt and prompt_s:
            rows.append(("reading prompts", f"{prompt / prompt_s:.0f} tokens/s"))
        if first := [t.first_token_s for t in timings if t.first_token_s is not None]:
            size = statistics.median(t.prompt_tokens or 0 for t in timings)
            rows.append(
                ("first token", f"{statistics.median(first):.2f} s, after prompts of {size:.0f} tokens (medians)")
            )
        if resident := client.status().memory.resident_bytes:
            rows.append(("daemon's memory", f"{resident / 1e6:.0f} MB, package {(model.size_bytes or 0) / 1e6:.0f} MB"))
        if model.parameters:
            p = model.parameters
            share = 100 * p.embedding / p.total
            rows.append(("parameters", f"{p.total / 1e6:.0f} million, {share:.0f} % of them the embedding table"))
        for name, text in rows:
            print(f"  {name:16} {text}")
        print(
            "A model this small picks a label or finds a sentence on a page that it is shown.\n"
            "It knows few facts, does not count, and writes poor summaries: check it. The\n"
            "prompts were tuned on these very files, see examples/README.md."
        )


def talk(model: ModelInfo) -> None:
    """Leave the operator in a chat, if there is one at a terminal."""
    command = ["--state-dir", _shown(STATE), "chat", "--model", model.name]
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        print(f"To talk with it: skerry serve --state-dir {_shown(STATE)} & skerry {' '.join(command[:3])}")
        return
    print("Now you. /help lists the commands, Ctrl-D ends.")
    print(f"$ skerry {' '.join(command)}")
    # The chat has its own use for Ctrl-C. A handler, unlike SIG_IGN, is not inherited by it.
    before = signal.signal(signal.SIGINT, lambda _number, _frame: None)
    try:
        subprocess.run([SKERRY, *command], cwd=ROOT, check=False)
    finally:
        signal.signal(signal.SIGINT, before)


# --- small things -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def step(title: str) -> Iterator[None]:
    """Frame a step with its title and its time."""
    print(f"\n== {title}", flush=True)
    start = time.monotonic()
    yield
    print(f"{f'-- {time.monotonic() - start:.1f} s':>{WIDTH}}", flush=True)


def skerry(*arguments: str) -> None:
    """Show a command and run it.

    Raises:
        CalledProcessError: it failed; it has said why.
    """
    print(f"$ skerry {' '.join(arguments)}", flush=True)
    subprocess.run([SKERRY, *arguments], cwd=ROOT, check=True)


def skerry_output(*arguments: str) -> str:
    """Run a command that only reads, and give what it prints."""
    done = subprocess.run([SKERRY, *arguments], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


def _start(log: Path) -> subprocess.Popen[bytes]:
    command = [str(SKERRY), "serve", "--state-dir", str(STATE)]
    with log.open("wb") as out:
        # A session of its own: Ctrl-C in the chat is for the answer, not for the daemon.
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], socket: Path, log: Path) -> None:
    until = time.monotonic() + READY_S
    while not _answers(socket):
        if process.poll() is not None or time.monotonic() > until:
            why = (
                f"it ended with {process.returncode}" if process.poll() is not None else f"no answer in {READY_S:.0f} s"
            )
            tail = " ".join(log.read_text(errors="replace").split())[-400:]
            raise DaemonUnreachable(f"cannot start the daemon: {why}", hint=f"{_shown(log)} says: {tail or 'nothing'}")
        time.sleep(0.05)


def _answers(socket: Path) -> bool:
    if not socket.exists():
        return False
    try:
        with Client(socket, timeout_s=2.0) as client:
            return client.health().status == "ok"
    except (DaemonUnreachable, DaemonTimeout):
        return False


def _package_name() -> str:
    from appliance.forge.recipe import load as load_recipe

    recipe = load_recipe(RECIPE)
    return f"{recipe.name}-{recipe.quantization}"


def _builder_hash() -> str:
    """Hash what makes the package, so that a newer checkout does not run on an older package."""
    hasher = hashlib.sha256(RECIPE.read_bytes())
    for path in sorted((ROOT / "appliance" / "forge").glob("*.py")):
        hasher.update(path.read_bytes())
    return hasher.hexdigest()


def _stamp() -> Path:
    return STATE / "built-from"


def _is_current(package: Path) -> bool:
    return package.is_dir() and _stamp().is_file() and _stamp().read_text().strip() == _builder_hash()


def _total(timings: Sequence[msgspec.Struct], name: str) -> float:
    return sum(getattr(t, name) or 0 for t in timings)


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


if __name__ == "__main__":
    sys.exit(main())
