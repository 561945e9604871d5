"""What is counted of an answer that ends as no caller may see it."""

import asyncio
from types import SimpleNamespace
from typing import Any

from appliance.config import Limits
from appliance.engine.scheduler import Load
from appliance.inferenced.completions import Completions, Run
from appliance.inferenced.metrics import Metrics
from appliance.inferenced.requests import TextRequest
from appliance.inferenced.responses import Answer
from appliance.inferenced.structure import Plan
from tests.inferenced.test_structured import FORM, deltas, shape


def test_an_answer_that_is_a_defect_is_counted() -> None:
    """The grammar let something invalid through: the stream ends with the error, and the counter has its kind."""
    scheduler: Any = SimpleNamespace(load=lambda: Load(0, 0, 0, 0, 0))
    metrics = Metrics(scheduler)
    host: Any = None
    completions = Completions(host, scheduler, Limits(), metrics)
    loaded: Any = SimpleNamespace(name="m")

    async def stream() -> bytes:
        run = Run(loaded, [], [Answer()], asyncio.Queue(), 1)
        for step in deltas('{"city": "Oslo"}'):
            run.steps.put_nowait((0, step))
        chunks = completions._stream(
            run, shape(Plan(FORM)), await run.next(), {}, closing=False, body=TextRequest(prompt="p")
        )
        return b"".join([chunk async for chunk in chunks])

    assert b'"kind":"internal_error"' in asyncio.run(stream())
    assert b'skerry_answers_total{model="m",outcome="internal_error"} 1.0' in metrics.text()
