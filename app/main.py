"""The router as an ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import config_watcher, kinds_from_files
from app.access.api_keys import Client, Rules
from app.access.sessions import Sessions
from app.api import (
    framework_errors,
    health,
    login,
    management,
    model_endpoints,
    monitoring,
    openapi,
    page,
    stored_responses,
)
from app.api.cors import CorsGate
from app.api.dependencies import Services
from app.api.guard import Guard
from app.api.head_as_get import HeadAsGet
from app.api.ollama import endpoints as ollama
from app.api.sse_broadcast import HEARTBEAT_S
from app.composition import Given, backend, build
from app.configuration.reloadable_keys import Configuration
from app.core.config import Config
from app.domain.errors import Refused
from app.domain.event_bus import BATCH_S
from app.llama.command_line import BinaryInfo
from app.llama.runner_interface import Launcher
from app.memory.probes.host_memory import machine_mb
from app.memory.probes.interface import GpuProbe
from app.observability.refusal_log import Refusal, RefusalLog
from app.proxy.asgi import ERROR_KEY, AsgiProxy
from app.proxy.gateway import Gateway
from app.proxy.loop_turns import LoopTurns, costs_of
from app.proxy.request_memory_limit import ClientMemory
from app.proxy.routes import normal


class RouterApp(FastAPI):
    """FastAPI behind the guard: what is refused, or goes to a model, never reaches its machinery."""

    entry: ASGIApp
    gateway: Gateway
    """To the models, for both entrances: `app/uvicorn_server.py` gives it to the protocol in front."""

    sessions: Sessions
    refusals: RefusalLog

    def apply(self, config: Config) -> None:
        """Who may come in, from now on."""
        self.state.rules = rules = Rules(config.api, self.sessions)
        self.gateway.admit_by(rules, browsers_elsewhere=bool(config.api.cors_allow_origins))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["app"], scope["path"] = self, normal(scope["path"])
            await self.entry(scope, receive, send)
            if isinstance(error := scope.get(ERROR_KEY), Refused):
                self.refusals.tell(refusal(scope, error))
        else:
            await self.framework(scope, receive, send)

    async def framework(self, scope: Scope, receive: Receive, send: Send) -> None:
        await super().__call__(scope, receive, send)

    async def build_routes(self) -> None:
        """FastAPI builds them when it is asked for the first time, for 60 ms: not while others are served."""
        nowhere = {"type": "http", "method": "GET", "path": "", "query_string": b"", "headers": []}
        await self.framework(nowhere, _nothing, _nobody)


async def _nothing() -> Message:
    return {"type": "http.request"}


async def _nobody(message: Message) -> None:
    """Takes an answer that is for nobody."""


def refusal(scope: Scope, error: Refused) -> Refusal:
    """What the log is to say of it; one of another site's preflights has no id."""
    client: Client | None = scope.get("router.client")
    return Refusal(
        method=scope["method"],
        path=scope["path"],
        address=scope["client"][0] if scope.get("client") else "?",
        client=client.name if client is not None else "",
        request_id=scope.get("router.request_id", "-"),
        error=error,
    )


def create_app(
    config: Config,
    *,
    launcher: Launcher | None = None,
    probe: GpuProbe | None = None,
    binary: BinaryInfo | None = None,
    config_path: Path | None = None,
    heartbeat_s: float = HEARTBEAT_S,
    batch_s: float = BATCH_S,
) -> RouterApp:
    """The router as an ASGI application; `launcher` and `probe` are the two seams to the world.

    `heartbeat_s`: of the event streams for dashboards. `batch_s`: how long the records of finished requests
    are collected.
    """
    configuration = Configuration(config)
    given = Given(launcher, probe, binary, heartbeat_s, batch_s)
    lifespan = _lifespan(configuration, given, config_path)
    app = RouterApp(title="RouterModelCustom", lifespan=lifespan, redirect_slashes=False, openapi_url=None)
    app.state.configuration = configuration
    _add_routes(app)
    _set_entrance(app, configuration)
    return app


def _lifespan(
    configuration: Configuration, given: Given, config_path: Path | None
) -> Callable[[RouterApp], AbstractAsyncContextManager[None]]:
    """From the first object to the undoing of the last one."""

    @asynccontextmanager
    async def lifespan(app: RouterApp) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            services = await build(configuration, stack, given, app.gateway.memory)
            app.state.services = services
            app.gateway.backend = backend(services, app.gateway.memory)
            kinds = partial(kinds_from_files.watch, configuration)
            services.background.start("kinds of models", kinds)
            if config_path is not None:
                configuration.subscribe(config_watcher.TAKES)
                watch = partial(config_watcher.watch, configuration, config_path)
                services.background.start("configuration watch", watch)
            yield

    return lifespan


def _add_routes(app: RouterApp) -> None:
    """All that are not for a model, and the descriptions of those that are."""
    for router in (
        model_endpoints.router,
        model_endpoints.ollama,
        stored_responses.router,
        ollama.router,
        ollama.store,
        management.router,
        health.router,
        monitoring.router,
        page.router,
        login.router,
    ):
        app.router.routes += router.routes  # if included, all are made once more, at the first request
    app.mount("/ui", page.WholeFiles(directory=page.FOLDER), name="ui")
    app.openapi = partial(openapi.openapi, app)  # type: ignore[method-assign]
    app.state.openapi_json = b""
    framework_errors.install(app)


def _set_entrance(app: RouterApp, configuration: Configuration) -> None:
    """What a request meets before the routes: who may come in, and the way to a model."""
    config = configuration.current
    memory = ClientMemory(config, machine_mb())
    app.sessions, app.refusals = Sessions(), RefusalLog()
    turns = LoopTurns(costs_of(getattr(route, "path", "") for route in app.routes))
    app.gateway = Gateway(app.refusals, memory, turns)
    app.apply(config)
    proxy = AsgiProxy(HeadAsGet(app.framework), app.gateway)
    app.entry = cors = CorsGate(Guard(proxy, rules=lambda: app.state.rules), config)
    configuration.subscribe(ClientMemory.TAKES, memory.apply)
    configuration.subscribe(Rules.TAKES, app.apply)
    configuration.subscribe(CorsGate.TAKES, cors.apply)


async def drain(app: RouterApp) -> None:
    """The orderly end: streams of events end, waiting requests are refused, running ones finish.

    Then all connections have to be ended in the same turn of the event loop: a request that comes later still
    waits for its turn when its connection is closed as an idle one.
    """
    services: Services = app.state.services
    services.configuration.close()
    services.manager.close()
    services.feed.server_update()
    services.feed.close()
    services.metrics_feed.close()
    services.peer_feed.close()
    services.logs.end_followers()
    await services.manager.shutdown(services.config.system.drain_timeout_sec)
    app.gateway.turns.end()  # who has asked is answered
