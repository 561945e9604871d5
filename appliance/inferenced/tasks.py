"""Tasks on the wire: an input in, the best of several verified answers out.

    POST /skerry/v1/tasks/triage  {"input": "The pump is hot."}

A task's file says what the model reads, what form the answer has and who judges it; the caller sends the input. The
answer says which candidate won and what each verifier thinks of it, whether they passed it or not: it is the caller who
decides what to do with an answer that was not verified. One that nobody judged is not verified either.
"""

import asyncio
import itertools
import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from appliance.agent import task as tasks
from appliance.agent.installed import InstalledTasks
from appliance.agent.task import Task
from appliance.api.body import read_json
from appliance.decoding.asked import Asked
from appliance.decoding.best_of import BestOf, Candidate
from appliance.decoding.grammar import Grammar
from appliance.decoding.verifiers import Context
from appliance.engine.candidates import Finished, complete_until
from appliance.engine.completion import CompletionRequest
from appliance.engine.generate import warm
from appliance.engine.prefixes import SHORTEST, common
from appliance.errors import ConfigError, ContextTooLong, InvalidRequest, NoChatTemplate, SkerryError, TaskNotFound
from appliance.inferenced.completions import Completions
from appliance.inferenced.models import Loaded
from appliance.inferenced.preferences import keep_group
from appliance.inferenced.responses import loop_object

log = logging.getLogger("skerry.inferenced")

_NAME = re.compile(tasks.NAME_PATTERN)


class TaskRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of POST /skerry/v1/tasks/{name}."""

    input: Annotated[str, Meta(min_length=1, max_length=1 << 20)]
    sources: Annotated[tuple[Annotated[str, Meta(max_length=1 << 20)], ...], Meta(max_length=64)] = ()
    """Texts that citations are looked for in, besides the input."""
    model: Annotated[str, Meta(max_length=64)] | None = None
    store: bool | None = None
    """False keeps the candidates out of the pairs for training."""


class TaskRoutes:
    """Handlers of the routes of tasks. The files are looked at in each request, so that a new task needs no restart."""

    def __init__(self, completions: Completions, directory: Path) -> None:
        self._completions = completions
        self._installed = InstalledTasks(directory)
        self._warming: set[asyncio.Task[None]] = set()  # the loop itself holds tasks weakly

    async def list(self, request: Request) -> Response:
        """GET /skerry/v1/tasks."""
        found = await asyncio.to_thread(self._installed.all)
        fields = ("name", "version", "description", "model", "candidates")
        return JSONResponse(
            {
                "tasks": [{f: getattr(task, f) for f in fields} for task in found.tasks.values()],
                "broken": [{"name": one.name, "error": one.error.message} for one in found.broken],
            }
        )

    async def run(self, request: Request) -> Response:
        """POST /skerry/v1/tasks/{name}."""
        limits = self._completions.limits
        body = await read_json(request, TaskRequest, limit_bytes=limits.body_bytes, timeout_s=limits.body_timeout_s)
        task = await asyncio.to_thread(self._load, request.path_params["name"])
        loaded = await self._completions.host.get(
            body.model or task.model, chat=task.prompt.form == "chat" and body.model is None and task.model is None
        )
        with loaded.in_use():
            requests = await self._completions.prepare(request, lambda: _requests(task, body.input, loaded))
            context = Context(input=body.input, sources=body.sources)
            best = BestOf(tasks.judges(task), context)
            finished: list[Finished] = []

            def enough(one: Finished) -> bool:
                finished.append(one)
                return best.offer(_candidate(task, one, context))

            owner = self._completions.owner(request)
            steps = complete_until(
                loaded.session, loaded.words, [replace(one, owner=owner) for one in requests], enough
            )
            queue_s = await self._completions.compute(request, loaded, steps)
        self._completions.metrics.completed(loaded.name, [one.usage for one in finished], queue_s)
        winner = best.best()
        if self._completions.preferences is not None and body.store is not False:
            # Pairs for training hold what the model wrote, not what became of it.
            written = [replace(one, text=finished[one.index].text) for one in best.all()]
            prompt = tasks.render(task, body.input)
            keep_group(self._completions.preferences, prompt, written, written[winner.index], loaded.name)
        return JSONResponse(_answer(task, loaded, winner, finished, queue_s))

    def warm(self, loaded: Loaded) -> None:
        """Have the prompts of a model's tasks read up to where an input begins, before the first one comes."""
        warming = asyncio.get_running_loop().create_task(self._warm(loaded))
        self._warming.add(warming)
        warming.add_done_callback(self._warming.discard)

    async def _warm(self, loaded: Loaded) -> None:
        try:
            with loaded.in_use():
                found = await asyncio.to_thread(self._installed.all)
                mine = [task for task in found.tasks.values() if task.model == loaded.name]
                beginnings = await asyncio.to_thread(_beginnings, mine, loaded)
                if beginnings:
                    session = loaded.session
                    steps = itertools.chain.from_iterable(warm(session, beginning) for beginning in beginnings)
                    self._completions.warm(loaded, steps)
        except SkerryError as e:  # whoever runs a task is told
            log.info("the beginnings of tasks are not read beforehand: %s", e.kind)

    def _load(self, name: str) -> Task:
        task = self._installed.get(name) if _NAME.fullmatch(name) else None
        if task is None:
            raise TaskNotFound(
                f"cannot run task {name[:64]!r}: it is not installed",
                hint="list the tasks with: skerry task list",
                param="task",
            )
        return task


def _candidate(task: Task, one: Finished, context: Context) -> Candidate:
    cut = one.complete is False
    text = one.text if cut else tasks.result(task, one.text)
    return Candidate(
        text=text,
        index=one.index,
        looped=one.finish_reason == "loop",
        finish_reason=one.finish_reason,
        verdicts=tasks.unfinished(task, text, context) if cut else (),
    )


def _requests(task: Task, text: str, loaded: Loaded) -> list[CompletionRequest]:
    """One engine request for each candidate."""
    grammar = _grammar(task, loaded)
    bias = {loaded.tokenizer.encode(said, bos=False)[0]: value for said, value in tasks.biases(task).items()}
    warm = task.sampling.params(bias)
    warm.validate(loaded.session.card.vocabulary_size)
    greedy = replace(warm, temperature=0.0)
    # Without shuffling all candidates read the same. What comes before the input is likely to come again.
    orders = range(task.candidates) if task.shuffle else (0,)
    prompts = [_tokens(task, text, order, loaded) for order in orders]
    boundaries = [
        common(prompt, _tokens(task, "", order, loaded)) for order, prompt in zip(orders, prompts, strict=True)
    ]
    return [
        CompletionRequest(
            prompt=prompts[index % len(prompts)],
            boundary=boundaries[index % len(prompts)],
            sampling=greedy if index == 0 or task.shuffle else warm,
            max_tokens=task.max_tokens,
            stop=task.stop,
            index=index,
            grammar=grammar,
            streamed=False,
            asked=Asked.of(task.prompt.system),
        )
        for index in range(task.candidates)
    ]


def _beginnings(found: Sequence[Task], loaded: Loaded) -> list[NDArray[np.int64]]:
    """What the prompts of tasks begin with, whatever the input; as many as half of what may be kept has room for."""
    beginnings, room = list[NDArray[np.int64]](), loaded.session.prefixes.max_bytes // 2
    for task in found:
        for order in range(task.candidates) if task.shuffle else (0,):
            try:
                prompt = _tokens(task, "x", order, loaded)
                beginning = np.array(prompt[: common(prompt, _tokens(task, "", order, loaded))], np.int64)
            except SkerryError:  # whoever runs it is told
                break
            room -= loaded.session.cache_bytes(len(beginning))
            if room < 0:
                return beginnings
            if len(beginning) >= SHORTEST:
                beginnings.append(beginning)
    return beginnings


def _grammar(task: Task, loaded: Loaded) -> Grammar | None:
    form = tasks.constraint(task)
    try:
        return loaded.grammar(form) if form else None
    except InvalidRequest as e:  # the file's fault, not the caller's
        raise ConfigError(
            f"cannot run task {task.name}: {loaded.name} cannot be held to its output",
            hint="correct the output in the task's file, or name another model",
        ) from e


def _tokens(task: Task, text: str, index: int, loaded: Loaded) -> tuple[int, ...]:
    card = loaded.session.card
    rendered = tasks.render(task, text, index)
    if isinstance(rendered, str):
        prompt = loaded.tokenizer.encode(rendered)
    elif loaded.template is None:
        raise NoChatTemplate(
            f"cannot run task {task.name} with {loaded.name}: it is a base model without a chat template",
            hint="choose another model",
            param="model",
        )
    else:
        prompt = loaded.template.encode(rendered)
    if len(prompt) + task.max_tokens > card.context_length:
        raise ContextTooLong(
            f"cannot run task {task.name}: the prompt has {len(prompt)} tokens and the answer up to {task.max_tokens}, "
            f"the context of {loaded.name} is {card.context_length}",
            hint="shorten the input",
            param="input",
        )
    return tuple(prompt)


def _answer(task: Task, loaded: Loaded, winner: Candidate, finished: list[Finished], queue_s: float) -> dict[str, Any]:
    chosen = finished[winner.index]
    return {
        "task": task.name,
        "version": task.version,
        "model": loaded.name,
        "output": winner.text,
        "finish_reason": chosen.finish_reason,
        "verified": winner.verified and bool(winner.verdicts),
        "verdicts": [asdict(verdict) for verdict in winner.verdicts],
        "candidates": len(finished),
        "chosen": winner.index,
        "loop": loop_object(chosen.breaks, stopped=chosen.finish_reason == "loop"),
        "usage": {
            "prompt_tokens": chosen.usage.prompt_tokens,
            "completion_tokens": sum(one.usage.completion_tokens for one in finished),
        },
        "timings": {
            "queue_s": round(queue_s, 4),
            "total_s": round(sum(one.usage.prompt_s + one.usage.decode_s for one in finished), 4),
        },
    }
