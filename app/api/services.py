"""What the routes work with, made once by `app/main.py`."""

from __future__ import annotations

from dataclasses import dataclass

import httpx
from starlette.requests import Request

from app.api.metrics_feed import MetricsFeed
from app.api.status_feed import StatusFeed
from app.core.config import Config
from app.core.health_monitor import HealthMonitor
from app.core.manager import ModelManager
from app.core.prometheus_metrics import Metrics
from app.core.vram_tracker import DeviceTracker
from app.domain.background import Background
from app.domain.event_bus import EventBus
from app.llama.output.writer import LogServer
from app.observability.telemetry import Telemetry
from app.proxy.body_reader import BodyReader
from app.proxy.upstream import Upstream


@dataclass
class Services:
    """A reload replaces `config`; everything else stays as long as the router runs."""

    config: Config
    manager: ModelManager
    tracker: DeviceTracker
    upstream: Upstream
    bodies: BodyReader
    http: httpx.AsyncClient
    bus: EventBus
    logs: LogServer
    background: Background
    health: HealthMonitor
    metrics: Metrics
    telemetry: Telemetry
    feed: StatusFeed
    metrics_feed: MetricsFeed
    started_at: float


def services_of(request: Request) -> Services:
    found: Services = request.app.state.services
    return found
