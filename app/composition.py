"""Builds every object of the router, in order, each with its undo."""

from __future__ import annotations

import logging
import time
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import anyio.to_thread
import httpx

from app.api.dependencies import READ_AT_USE, Services
from app.api.live_stats import LiveStats
from app.api.metrics_feed import MetricsFeed
from app.api.router_mode_events import PeerFeed
from app.api.status_feed import StatusFeed
from app.api.status_json import StatusView
from app.configuration.reloadable_keys import Configuration
from app.core.config import Config
from app.core.health_monitor import HealthMonitor
from app.core.manager import ModelManager
from app.core.prometheus_metrics import Metrics
from app.core.vram_tracker import DeviceTracker
from app.core.warmup import Preload, warm_up
from app.domain.background import Background
from app.domain.event_bus import EventBus
from app.domain.units import MIB
from app.judgement.router_pauses import Pauses
from app.llama.binary import find_binary, inspect_binary
from app.llama.command_line import BinaryInfo
from app.llama.control_client import open_client
from app.llama.launcher import LlamaLauncher
from app.llama.orphans import PidFile, reap_orphans
from app.llama.output.writer import LogServer
from app.llama.runner_interface import Launcher
from app.memory.ledger.kept_free import KeptFree
from app.memory.load_history import FILE_NAME, LoadHistory
from app.memory.probes.choice import START_TIMEOUT_S, find_gpus
from app.memory.probes.interface import GpuProbe
from app.models.card_cache import Cards
from app.models.kv_cache import KvCache
from app.models.kv_store import KvStore
from app.observability.access_log import AccessLog
from app.observability.load_reporter import LoadReporter
from app.observability.telemetry import Telemetry
from app.proxy.admission import Admission
from app.proxy.body_thread import BodyThread
from app.proxy.dialects.anthropic_stream import MessagesTranslation
from app.proxy.dialects.ollama.chat_and_generate import ChatTranslation, GenerateTranslation
from app.proxy.dialects.ollama.embeddings import EmbeddingsTranslation, EmbedTranslation
from app.proxy.dialects.responses.stored_responses import StoredResponses
from app.proxy.dialects.responses.translation import ResponsesTranslation, TokensTranslation
from app.proxy.preparation import Backend
from app.proxy.request_memory_limit import ClientMemory
from app.proxy.upstream_pool import UpstreamPool

logger = logging.getLogger(__name__)


class Given(NamedTuple):
    """What is not found out or decided here: the two seams to the world where there are others than the real
    ones, a binary that was inspected already, and times in seconds."""

    launcher: Launcher | None
    probe: GpuProbe | None
    binary: BinaryInfo | None
    heartbeat_s: float
    batch_s: float


async def build(
    configuration: Configuration, stack: AsyncExitStack, given: Given, memory: ClientMemory
) -> Services:
    config, started_at = configuration.current, time.monotonic()
    launcher, binary = given.launcher, given.binary
    pauses = Pauses(started_at)
    bus = EventBus(given.batch_s)
    http = await stack.enter_async_context(open_client())
    logs = _logs(config.system.log_dir, stack)
    kv_cache = None
    if launcher is None:
        binary = binary or await _find_binary(config)
        kv_cache = KvCache(KvStore(Path(config.system.cache_dir)), http, binary, config)
        launcher = await _launcher(configuration, logs, pauses, stack, binary)
    else:
        binary = None  # nothing is known of other processes than llama-server's
    tracker = await _tracker(configuration, given.probe, binary, stack, bus)
    manager = ModelManager(
        config,
        launcher=launcher,
        tracker=tracker,
        bus=bus,
        clock=time.monotonic,
        history=await _load_history(config.system.log_dir, binary),
        kv_cache=kv_cache,
    )
    stack.push_async_callback(manager.stop_all)
    stored = StoredResponses(_stored_bytes(config), memory)
    memory.reclaim_by(stored.free)
    services = _services(
        configuration, launcher, manager, tracker, memory, stored, http, bus, logs, pauses, started_at,
        given.heartbeat_s,
    )  # fmt: skip
    _close_at_the_end(services, stack)
    _subscribe(services)
    _start(services)
    return services


def _services(
    configuration: Configuration,
    launcher: Launcher,
    manager: ModelManager,
    tracker: DeviceTracker,
    memory: ClientMemory,
    stored: StoredResponses,
    http: httpx.AsyncClient,
    bus: EventBus,
    logs: LogServer,
    pauses: Pauses,
    started_at: float,
    heartbeat_s: float,
) -> Services:
    system, telemetry = configuration.current.system, Telemetry(bus)
    status = StatusView(manager, configuration, started_at)
    live_stats = LiveStats(manager, tracker, telemetry, bus)
    return Services(
        configuration=configuration,
        launcher=launcher,
        manager=manager,
        tracker=tracker,
        upstream=UpstreamPool(),
        bodies=BodyThread(),
        stored=stored,
        http=http,
        bus=bus,
        logs=logs,
        background=Background(),
        cards=Cards(),
        health=HealthMonitor(lambda: manager.instances, system.health_check_interval_sec, bus, pauses),
        metrics=Metrics(bus, views=manager.views, devices=tracker.ledger.devices, clients=memory.figures),
        telemetry=telemetry,
        status=status,
        live_stats=live_stats,
        feed=StatusFeed(
            bus,
            full_status=status.full,
            model_status=status.model,
            server_status=status.server,
            heartbeat_s=heartbeat_s,
        ),
        metrics_feed=MetricsFeed(live_stats.snapshot, heartbeat_s),
        peer_feed=PeerFeed(bus, manager.instances),
        started_unix=int(time.time()),
    )


def _stored_bytes(config: Config) -> int:
    return config.api.stored_responses_mb * MIB


def backend(services: Services, memory: ClientMemory) -> Backend:
    """What requests to models are served with."""
    slots = Admission(services.manager, services.health, services.bus)
    return Backend(
        services.manager,
        slots,
        services.upstream,
        services.configuration,
        services.bodies,
        memory,
        {
            "/v1/messages": MessagesTranslation(services.cards.known),
            "/v1/responses": ResponsesTranslation(services.stored),
            "/v1/responses/input_tokens": TokensTranslation(services.stored),
            "/api/chat": ChatTranslation(services.cards.known),
            "/api/generate": GenerateTranslation(services.cards.known),
            "/api/embed": EmbedTranslation(),
            "/api/embeddings": EmbeddingsTranslation(),
        },
    )


def _close_at_the_end(services: Services, stack: AsyncExitStack) -> None:
    """The last one first."""
    stack.callback(services.upstream.close)
    stack.callback(services.bodies.close)
    stack.callback(services.bus.flush)
    stack.callback(services.feed.close)
    stack.callback(services.metrics_feed.close)
    stack.callback(services.peer_feed.close)
    stack.push_async_callback(services.background.stop)


def _subscribe(services: Services) -> None:
    """Who takes which keys of a changed configuration, in this order."""
    configuration = services.configuration
    configuration.subscribe(READ_AT_USE)
    configuration.subscribe(HealthMonitor.TAKES, services.health.apply)
    configuration.subscribe(ModelManager.TAKES, services.manager.apply)
    configuration.subscribe(("models",), lambda config: services.metrics.start_at_zero(config.models))
    configuration.subscribe(("api.stored_responses_mb",), lambda c: services.stored.limit(_stored_bytes(c)))
    configuration.subscribe(Preload.TAKES, Preload(services.manager, configuration.current).apply)
    configuration.subscribe(("api.api_keys",), lambda _: _disconnect_all(services))


def _disconnect_all(services: Services) -> None:
    """Streams were let in with a key of before; with one that still counts they come again by themselves."""
    services.feed.disconnect_all()
    services.metrics_feed.disconnect_all()
    services.peer_feed.disconnect_all()
    services.logs.end_followers()


def _start(services: Services) -> None:
    """What runs by itself."""
    manager = services.manager
    AccessLog(services.bus)
    LoadReporter(services.bus, lambda alias: manager.instances[alias].view(), time.monotonic)
    services.background.start("gpu readings", services.tracker.run)
    services.background.start("health monitor", services.health.run)
    services.background.start("time keeper", services.health.keep_time)
    services.background.once("model cards", partial(services.cards.read, services.config.specs()))
    services.background.once("warm-up", partial(warm_up, manager, services.config.preload()))


def _logs(folder: str, stack: AsyncExitStack) -> LogServer:
    logs = LogServer(folder)
    if error := logs.start():
        logger.warning("%s", error)
    stack.callback(logs.close)
    return logs


async def _find_binary(config: Config) -> BinaryInfo:
    path = find_binary(config.system.llama_server_path)
    return await anyio.to_thread.run_sync(inspect_binary, path)


async def _launcher(
    configuration: Configuration,
    logs: LogServer,
    pauses: Pauses,
    stack: AsyncExitStack,
    binary: BinaryInfo,
) -> LlamaLauncher:
    system = configuration.current.system
    log_dir = Path(system.log_dir)
    await anyio.to_thread.run_sync(reap_orphans, log_dir)
    pid_file = PidFile(log_dir)
    stack.callback(pid_file.close)
    launcher = LlamaLauncher(
        binary,
        logs,
        system.first_port,
        system.load_timeout_sec,
        pid_file=pid_file,
        pauses=pauses,
    )
    configuration.subscribe(LlamaLauncher.TAKES, launcher.apply)
    stack.callback(launcher.kill_all)
    return launcher


async def _load_history(log_dir: str, binary: BinaryInfo | None) -> LoadHistory:
    """What a real llama-server taught earlier routers."""
    if binary is None:
        return LoadHistory()
    history = LoadHistory(Path(log_dir) / FILE_NAME, binary.identity)
    await anyio.to_thread.run_sync(history.load)
    return history


async def _tracker(
    configuration: Configuration,
    probe: GpuProbe | None,
    binary: BinaryInfo | None,
    stack: AsyncExitStack,
    bus: EventBus,
) -> DeviceTracker:
    if probe is None:
        probe = await anyio.to_thread.run_sync(find_gpus, binary.path if binary is not None else None)
    kept_free = KeptFree.parse(configuration.current.system.min_free_vram_mb)
    tracker = DeviceTracker(probe, kept_free=kept_free, clock=time.monotonic, bus=bus)
    configuration.subscribe(DeviceTracker.TAKES, tracker.apply)
    stack.push_async_callback(tracker.close)
    await tracker.refresh(START_TIMEOUT_S)
    return tracker
