"""What operators and dashboards ask: metrics, memory, queues, telemetry, the health of models."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api import memory_json
from app.api.dependencies import Services, services_of
from app.api.management import event_stream
from app.api.openapi import FOR_MONITORING
from app.core import prometheus_metrics

router = APIRouter(tags=["monitoring"], responses=FOR_MONITORING)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Prometheus text. With `?model=` it is llama-server's own, of that model while it is loaded."""
    text = await _flushed(request).metrics.render()
    return Response(text, media_type=prometheus_metrics.CONTENT_TYPE)


@router.get("/metrics/stream")
async def metrics_stream(request: Request) -> Response:
    """Server-sent events: `metrics` every 2 s, `heartbeat` every 30 s."""
    return event_stream(services_of(request).metrics_feed.stream())


@router.get("/vram")
async def vram(request: Request) -> dict[str, Any]:
    services = services_of(request)
    return memory_json.vram(services.manager.views(), services.tracker, services.config.system)


def _flushed(request: Request) -> Services:
    """With figures that count every request that has ended."""
    services = services_of(request)
    services.bus.flush()
    return services


@router.get("/v1/queue/stats")
async def queue_stats(request: Request) -> dict[str, Any]:
    return services_of(request).live_stats.queues()


@router.get("/v1/telemetry/summary")
async def telemetry(request: Request) -> dict[str, Any]:
    return _flushed(request).telemetry.summary()


@router.get("/v1/health/models")
async def models_health(request: Request) -> dict[str, Any]:
    return services_of(request).health.report()
