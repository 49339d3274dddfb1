"""`GET /health`: whether the router works, and what keeps it from doing all that it should."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from app.api.dependencies import Services, services_of
from app.api.openapi import FOR_MONITORING
from app.domain.status import Status
from app.memory.probes.interface import resolve

router = APIRouter(tags=["monitoring"], responses=FOR_MONITORING)


@router.get("/health")
async def health(request: Request) -> Response:
    """200 while requests can be served; 503 only when the router itself cannot work, or is being stopped.

    What restarts a router that does not answer with 200 must not end models that serve: a GPU that cannot be
    read, or a preload that has failed, is `degraded` with 200. Other models that failed are no news.
    """
    services = services_of(request)
    checks, works = _checks(services), _works(services)
    ok = works and all(check["status"] == "ok" for check in checks.values())
    return JSONResponse(
        {"status": "ok" if ok else "degraded", "checks": checks}, status_code=200 if works else 503
    )


def _works(services: Services) -> bool:
    manager = services.manager
    return not (manager.closing or manager.scheduler.error or services.upstream.closed)


def _checks(services: Services) -> dict[str, dict[str, Any]]:
    closed = services.upstream.closed
    return {
        "gpu": _gpu(services),
        "manager": _manager(services),
        "http_client": {"status": "degraded" if closed else "ok"},
        "preload": _preload(services),
    }


def _gpu(services: Services) -> dict[str, Any]:
    """No GPU at all is not degraded."""
    ledger, trouble = services.tracker.ledger, _device_trouble(services)
    gpu = {"status": "degraded" if trouble else "ok", "available": ledger.has_gpu}
    if detail := trouble or (None if ledger.has_gpu else services.tracker.probe.reason):
        gpu["detail"] = detail
    return gpu


def _manager(services: Services) -> dict[str, Any]:
    tasks = {name: task.error for name, task in services.background.health.items() if task.error}
    if services.manager.scheduler.error:
        tasks["scheduling"] = services.manager.scheduler.error
    manager: dict[str, Any] = {
        "status": "degraded" if tasks else "ok",
        "models": len(services.manager.instances),
        "asyncio_tasks": len(asyncio.all_tasks()),
    }
    if tasks:
        manager["failed_tasks"] = tasks
    if unkillable := list(services.tracker.ledger.unkillable):  # their memory is lost until they die
        manager["unkillable_processes"] = unkillable
        manager["undead_processes"] = unkillable  # its earlier name, for one release
    return manager


def _preload(services: Services) -> dict[str, Any]:
    """Models that are to be there from the start, and are not for good."""
    instances = services.manager.instances
    wanted = [instances[alias] for alias in services.config.preload() if alias in instances]
    failed = [instance.alias for instance in wanted if instance.status is Status.FAILED]
    return {"status": "degraded", "failed": failed} if failed else {"status": "ok"}


def _device_trouble(services: Services) -> str | None:
    """A device that cannot be read, or is configured and not there; without any GPU none is missed."""
    ledger = services.tracker.ledger
    if ledger.error or not ledger.has_gpu:
        return ledger.error
    wanted = services.config.system.gpu_devices or ()
    missing = [d for d in wanted if not resolve(ledger.gpus(), [d])]
    return f"system.gpu_devices names {missing}, which the driver does not show" if missing else None
