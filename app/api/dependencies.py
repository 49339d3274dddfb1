"""What the routes work with, made once by `app/composition.py`."""

from __future__ import annotations

from dataclasses import dataclass

import httpx
from starlette.requests import Request

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
from app.domain.background import Background
from app.domain.event_bus import EventBus
from app.llama.output.writer import LogServer
from app.llama.runner_interface import Launcher
from app.models.card_cache import Cards
from app.observability.telemetry import Telemetry
from app.proxy.body_thread import BodyThread
from app.proxy.dialects.responses.stored_responses import StoredResponses
from app.proxy.upstream_pool import UpstreamPool

READ_AT_USE = (
    "api.list_aliases",
    "api.stream_heartbeats",
    "system.drain_timeout_sec",
    "system.queue_timeout_sec",
)
"""Keys that routes and requests read from `config` each time."""


@dataclass(frozen=True)
class Services:
    configuration: Configuration
    launcher: Launcher
    manager: ModelManager
    tracker: DeviceTracker
    upstream: UpstreamPool
    bodies: BodyThread
    stored: StoredResponses
    http: httpx.AsyncClient
    bus: EventBus
    logs: LogServer
    background: Background
    cards: Cards
    health: HealthMonitor
    metrics: Metrics
    telemetry: Telemetry
    status: StatusView
    live_stats: LiveStats
    feed: StatusFeed
    metrics_feed: MetricsFeed
    peer_feed: PeerFeed
    started_unix: int
    """What the clock said when the router was started; it stays so when the clock is set."""

    @property
    def config(self) -> Config:
        """The one that counts now."""
        return self.configuration.current


def services_of(request: Request) -> Services:
    found: Services = request.app.state.services
    return found
