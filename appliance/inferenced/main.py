"""The inference daemon: configuration in, a served socket out.

One process, three kinds of threads: the event loop talks, the engine's thread computes, helpers load and tokenize.
"""

import asyncio
import contextlib
import datetime
import logging
import os
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from appliance import __version__
from appliance.api.caller import Role
from appliance.api.routes import Route, assemble, caller_of
from appliance.api.server import listen, serve
from appliance.config import Config
from appliance.engine.scheduler import Scheduler
from appliance.inferenced.completions import Completions
from appliance.inferenced.metrics import CONTENT_TYPE, Metrics
from appliance.inferenced.models import ModelHost
from appliance.inferenced.preferences import PreferenceStore
from appliance.inferenced.tasks import TaskRoutes
from appliance.system.confine import deny_network
from appliance.system.host import resident_bytes, usable_cpus
from appliance.system.watchdog import Watchdog

log = logging.getLogger("skerry.inferenced")

STALL_S = 180.0
"""No step of the engine takes that long: the longest, 256 tokens of a prompt, takes seconds on a slow processor; on
one that is emulated and busy it was seen to take more than a minute."""


class Daemon:
    """Everything that the routes share."""

    def __init__(self, config: Config) -> None:
        self.config = config
        limits = config.limits
        self.host = ModelHost(
            Path(config.models_dir),
            Path(config.keys_dir),
            config.threads,
            slots=limits.running,
            prefix_bytes=config.prefixes.max_bytes,
            draft_tokens=config.drafts.max_tokens,
        )
        self.scheduler = Scheduler(running=limits.running, queued=limits.queued, per_caller=limits.per_caller)
        self.metrics = Metrics(self.scheduler)
        kept = config.preferences
        self.preferences = PreferenceStore(config.preferences_dir, kept.max_bytes) if kept.enabled else None
        self.completions = Completions(
            self.host, self.scheduler, limits, self.metrics, self.preferences, shared_prefixes=config.prefixes.shared
        )
        self.tasks = TaskRoutes(self.completions, config.tasks)
        self.host.on_load = self.tasks.warm
        self.draining = False
        self._started = time.time()

    def routes(self) -> list[Route]:
        """The table that decides who may do what."""
        return [
            Route("GET", "/healthz", None, self.health),
            Route("GET", "/metrics", Role.VIEWER, self.read_metrics),
            Route("GET", "/v1/models", Role.CLIENT, self.openai_models),
            Route("GET", "/v1/models/{name}", Role.CLIENT, self.openai_model),
            Route("POST", "/v1/chat/completions", Role.CLIENT, self.completions.chat),
            Route("POST", "/v1/completions", Role.CLIENT, self.completions.text),
            Route("GET", "/skerry/v1/tasks", Role.CLIENT, self.tasks.list),
            Route("POST", "/skerry/v1/tasks/{name}", Role.CLIENT, self.tasks.run),
            Route("GET", "/skerry/v1/status", Role.VIEWER, self.status),
            Route("GET", "/skerry/v1/models", Role.VIEWER, self.models),
            Route("GET", "/skerry/v1/models/{name}", Role.VIEWER, self.model),
            Route("POST", "/skerry/v1/models/{name}/load", Role.OPERATOR, self.load),
            Route("POST", "/skerry/v1/models/{name}/unload", Role.OPERATOR, self.unload),
            Route("POST", "/skerry/v1/models/{name}/verify", Role.OPERATOR, self.verify),
        ]

    def app(self) -> Starlette:
        """The application; its lifespan ends the engine."""
        return assemble(self.routes(), self._lifespan)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        for loaded in self.host.loaded.values():
            self.tasks.warm(loaded)
        yield
        self.scheduler.close()
        self.host.close()
        if self.preferences is not None:
            self.preferences.close()

    def drain(self) -> None:
        """From now on health says so; what is not complete after the drain's time ends with an error that says why."""
        self.draining = True
        end = threading.Thread(target=self.scheduler.close, name="end", daemon=True)
        asyncio.get_running_loop().call_later(self.config.limits.drain_timeout_s, end.start)

    # --- handlers -----------------------------------------------------------------------------------------------------

    async def health(self, request: Request) -> Response:
        """GET /healthz."""
        return JSONResponse({"status": "draining" if self.draining else "ok"}, 503 if self.draining else 200)

    async def read_metrics(self, request: Request) -> Response:
        """GET /metrics."""
        return Response(self.metrics.text(), media_type=CONTENT_TYPE)

    async def openai_models(self, request: Request) -> Response:
        """GET /v1/models."""
        return JSONResponse({"object": "list", "data": [self._openai_model(n) for n in self.host.store.names()]})

    async def openai_model(self, request: Request) -> Response:
        """GET /v1/models/{name}."""
        name = request.path_params["name"]
        self.host.store.path(name)
        return JSONResponse(self._openai_model(name))

    def _openai_model(self, name: str) -> dict[str, Any]:
        loaded = self.host.loaded.get(name)
        created = int(loaded.loaded_at.timestamp()) if loaded else 0
        return {"id": name, "object": "model", "created": created, "owned_by": "skerry"}

    async def models(self, request: Request) -> Response:
        """GET /skerry/v1/models."""
        return JSONResponse({"models": [self.host.describe(n) for n in self.host.store.names()]})

    async def model(self, request: Request) -> Response:
        """GET /skerry/v1/models/{name}."""
        return JSONResponse(self.host.describe(request.path_params["name"]))

    async def load(self, request: Request) -> Response:
        """POST /skerry/v1/models/{name}/load."""
        loaded = await self.host.get(request.path_params["name"])
        return JSONResponse(self.host.describe(loaded.name))

    async def unload(self, request: Request) -> Response:
        """POST /skerry/v1/models/{name}/unload."""
        return JSONResponse(self.host.unload(request.path_params["name"]))

    async def verify(self, request: Request) -> Response:
        """POST /skerry/v1/models/{name}/verify."""
        return JSONResponse(await self.host.verify(request.path_params["name"]))

    async def status(self, request: Request) -> Response:
        """GET /skerry/v1/status."""
        caller, load, limits = caller_of(request), self.scheduler.load(), self.config.limits
        started = datetime.datetime.fromtimestamp(self._started, datetime.UTC)
        return JSONResponse(
            {
                "version": __version__,
                "state": "draining" if self.draining else "ready",
                "started_at": started.isoformat(timespec="seconds").replace("+00:00", "Z"),
                "uptime_s": round(time.time() - self._started, 1),
                "pid": os.getpid(),
                "socket": self.config.socket,
                "caller": {
                    "uid": caller.uid,
                    "gid": caller.gid,
                    "pid": caller.pid,
                    "unit": caller.unit,
                    "roles": sorted(caller.roles),
                },
                "memory": {"resident_bytes": resident_bytes()},
                "threads": self.config.threads or usable_cpus(),
                "limits": {"running": limits.running, "queued": limits.queued, "per_caller": limits.per_caller},
                "requests": {
                    "running": load.running,
                    "queued": load.queued,
                    "total": load.finished,
                    "rejected": load.rejected,
                    "cancelled": load.cancelled,
                },
                "tokens": {"prompt": self.metrics.prompt_tokens, "generated": self.metrics.generated_tokens},
                "models": [self.host.describe(n) for n in self.host.store.names()],
            }
        )


def run(config: Config) -> None:
    """Serve until SIGTERM or SIGINT, then drain and return.

    Raises:
        FileProblem: the socket cannot be had.
        SkerryError: a model to preload cannot be loaded.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    # The door logs defects itself, without the text that an exception may quote.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    if not deny_network():
        log.warning("this kernel cannot deny the daemon the network: leave that to the service manager")
    listener = listen(Path(config.socket))
    try:
        daemon = Daemon(config)
        for name in config.preload:
            loaded = daemon.host.preload(name)
            log.info("loaded %s, signed by %s, in %.2f s", name, loaded.session.model.key_id[:16], loaded.load_s)
        log.info("skerry %s listens on %s", __version__, listener.socket.getsockname())
        serve(daemon.app(), listener, config.limits, daemon.drain, Watchdog(daemon.scheduler.silent_s, STALL_S).beat)
    finally:
        listener.close()
