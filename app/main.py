"""The composition root: builds every object, in order, each with its undo."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import anyio.to_thread
import httpx
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from app import reload
from app.access.rules import Rules
from app.access.sessions import Sessions
from app.api import documentation, errors, models, openai, ops, page, render
from app.api.errand import Errands
from app.api.event_channel import HEARTBEAT_S
from app.api.guard import Cors, Guard
from app.api.metrics_feed import MetricsFeed
from app.api.services import Services
from app.api.status_feed import StatusFeed
from app.core.config import Config
from app.core.health_monitor import HealthMonitor
from app.core.manager import ModelManager
from app.core.prometheus_metrics import Metrics
from app.core.vram_tracker import DeviceTracker
from app.core.warmup import warm_up
from app.domain.background import Background
from app.domain.event_bus import EventBus
from app.domain.spec import ModelSpec
from app.domain.status import ModelKind
from app.llama.binary import find_binary, inspect_binary
from app.llama.command import BinaryInfo
from app.llama.control_client import open_client
from app.llama.launcher import LlamaLauncher
from app.llama.orphans import PidFile, reap_orphans
from app.llama.output.writer import LogServer
from app.llama.runner import Launcher
from app.memory.history import FILE_NAME, LearnedFootprints
from app.memory.probes.choice import find_gpus
from app.memory.probes.interface import GpuProbe
from app.models.kv_cache import KvCache
from app.models.kv_store import KvStore
from app.observability.load_reporter import LoadReporter
from app.observability.telemetry import Telemetry
from app.proxy.body_reader import BodyReader
from app.proxy.upstream import Upstream

logger = logging.getLogger(__name__)


class RouterApp(FastAPI):
    """FastAPI behind the door: what is refused, or goes to a model, never reaches its machinery."""

    door: ASGIApp
    errands: Errands
    """`RouterProtocol` looks for it."""

    def take_rules(self, rules: Rules) -> None:
        """Of the configuration that counts from now on."""
        self.state.rules = self.errands.rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["app"] = self
            await self.door(scope, receive, send)
        else:
            await self.framework(scope, receive, send)

    async def framework(self, scope: Scope, receive: Receive, send: Send) -> None:
        await super().__call__(scope, receive, send)


def create_app(
    config: Config,
    *,
    launcher: Launcher | None = None,
    probe: GpuProbe | None = None,
    binary: BinaryInfo | None = None,
    config_path: Path | None = None,
    heartbeat_s: float = HEARTBEAT_S,
) -> RouterApp:
    """The router as an ASGI application; `launcher` and `probe` are the two seams to the world."""

    @asynccontextmanager
    async def lifespan(app: RouterApp) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            services = await _build(config, stack, launcher, probe, binary, heartbeat_s)
            app.state.services = router_app.errands.services = services
            if config_path is not None and config.system.watch_config:
                services.background.start("configuration watch", partial(reload.watch, app, config_path))
            yield

    router_app = app = RouterApp(
        title="RouterModelCustom", lifespan=lifespan, redirect_slashes=False, docs_url=None, redoc_url=None
    )
    for router in (openai.router, models.router, ops.router, page.router):
        app.include_router(router)
    app.mount("/ui", page.WholeFiles(directory=page.FOLDER), name="ui")
    app.openapi = partial(documentation.openapi, app)  # type: ignore[method-assign]
    errors.install(app)
    app.errands = Errands()
    app.take_rules(Rules(config.api, Sessions()))
    shortcut = openai.Shortcut(app.framework, lambda: app.state.services)
    app.door = Guard(shortcut, rules=lambda: app.state.rules)
    if config.api.cors_allow_origins:
        app.door = Cors(
            app.door,
            allow_origins=list(config.api.cors_allow_origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["X-Request-ID", "X-Queue-Wait-Ms", "X-Model-Load-Ms", "X-Priority-Effective"],
        )
    return app


async def drain(app: FastAPI) -> None:
    """The orderly end: streams of events end, waiting requests are refused, running ones finish."""
    services: Services = app.state.services
    services.manager.closing = True
    services.feed.server_update()
    services.feed.close()
    services.metrics_feed.close()
    services.logs.end_followers()
    await services.manager.shutdown(services.config.system.drain_timeout_sec)


async def _build(
    config: Config,
    stack: AsyncExitStack,
    launcher: Launcher | None,
    probe: GpuProbe | None,
    binary: BinaryInfo | None,
    heartbeat_s: float,
) -> Services:
    system, bus, started_at = config.system, EventBus(asyncio.get_running_loop().call_later), time.monotonic()
    http = await stack.enter_async_context(open_client())
    logs = _logs(system.log_dir, stack)
    kv_cache: KvCache | None = None
    if launcher is None:
        binary = binary or await _find_binary(config)
        kv_cache = KvCache(KvStore(Path(system.cache_dir)), http, binary, config)
        launcher = await _real_launcher(config, logs, http, stack, binary, kv_cache)
    tracker, manager = await _manager(config, stack, launcher, probe, bus, kv_cache)
    upstream, background = Upstream(), Background()
    feed, metrics_feed = StatusFeed(bus, heartbeat_s), MetricsFeed(heartbeat_s)
    stack.push_async_callback(upstream.close)
    stack.callback(bus.settle)
    stack.callback(feed.close)
    stack.callback(metrics_feed.close)
    stack.push_async_callback(background.stop)
    services = Services(
        config=config,
        manager=manager,
        tracker=tracker,
        upstream=upstream,
        bodies=BodyReader(),
        http=http,
        bus=bus,
        logs=logs,
        background=background,
        health=HealthMonitor(
            manager.instances.values, system.health_check_interval_sec, system.request_timeout_sec, bus
        ),
        metrics=Metrics(bus, views=manager.views, devices=tracker.devices),
        telemetry=Telemetry(bus),
        feed=feed,
        metrics_feed=metrics_feed,
        started_at=started_at,
    )
    _wire(services)
    return services


def _logs(folder: str, stack: AsyncExitStack) -> LogServer:
    logs = LogServer(folder)
    if error := logs.start():
        logger.warning("%s", error)
    stack.callback(logs.close)
    return logs


async def _manager(
    config: Config,
    stack: AsyncExitStack,
    launcher: Launcher,
    probe: GpuProbe | None,
    bus: EventBus,
    kv_cache: KvCache | None,
) -> tuple[DeviceTracker, ModelManager]:
    """The ledger of memory, and who decides by it."""
    asked = launcher.binary.path if isinstance(launcher, LlamaLauncher) else None
    tracker = await _tracker(config, probe, asked, stack, bus)
    manager = ModelManager(
        config,
        launcher=launcher,
        tracker=tracker,
        bus=bus,
        clock=time.monotonic,
        learned=await _learned(config.system.log_dir, launcher),
        kv_cache=kv_cache,
    )
    stack.push_async_callback(manager.stop_all)
    return tracker, manager


def _wire(services: Services) -> None:
    """Who hears of whom, and what runs by itself."""
    manager, feed = services.manager, services.feed
    feed.full_status = partial(render.full_status, services)
    feed.server_status = partial(render.server_status, services)
    feed.model_status = partial(render.model_update, services)
    services.metrics_feed.snapshot = partial(ops.snapshot, services)
    LoadReporter(services.bus, lambda alias: manager.instances[alias].view(), time.monotonic)
    services.background.start("gpu readings", services.tracker.run)
    services.background.start("health monitor", services.health.run)
    services.background.once("warm-up", partial(warm_up, manager, services.config.preload()))


async def _find_binary(config: Config) -> BinaryInfo:
    path = find_binary(config.system.llama_server_path)
    return await anyio.to_thread.run_sync(inspect_binary, path)


async def _real_launcher(
    config: Config,
    logs: LogServer,
    http: httpx.AsyncClient,
    stack: AsyncExitStack,
    binary: BinaryInfo,
    kv_cache: KvCache,
) -> LlamaLauncher:
    log_dir = Path(config.system.log_dir)
    await anyio.to_thread.run_sync(reap_orphans, log_dir)
    pid_file = PidFile(log_dir)
    stack.callback(pid_file.close)
    launcher = LlamaLauncher(
        binary,
        logs,
        http,
        config.system.first_port,
        config.system.load_timeout_sec,
        default_pooling=_default_pooling,
        pid_file=pid_file,
        slot_folders=kv_cache,
    )
    stack.callback(launcher.kill_all)
    return launcher


def _default_pooling(spec: ModelSpec) -> str | None:
    """llama-server refuses embeddings of a model without pooling metadata unless it is told how to pool."""
    return "mean" if spec.kind is ModelKind.EMBEDDING else None


async def _learned(log_dir: str, launcher: Launcher) -> LearnedFootprints:
    """What a real llama-server taught earlier routers."""
    if not isinstance(launcher, LlamaLauncher):
        return LearnedFootprints()
    learned = LearnedFootprints(Path(log_dir) / FILE_NAME, launcher.binary.identity)
    await anyio.to_thread.run_sync(learned.load)
    return learned


async def _tracker(
    config: Config,
    probe: GpuProbe | None,
    binary: Path | None,
    stack: AsyncExitStack,
    bus: EventBus,
) -> DeviceTracker:
    if probe is None:
        probe = await anyio.to_thread.run_sync(find_gpus, binary)
    tracker = DeviceTracker(probe, min_free_mb=config.system.min_free_vram_mb, clock=time.monotonic, bus=bus)
    stack.push_async_callback(tracker.close)
    await tracker.refresh()
    return tracker
