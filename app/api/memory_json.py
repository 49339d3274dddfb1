"""Devices and their memory as JSON, for `/vram`, `/metrics/stream` and the page."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from app.api.model_json import placement
from app.core.config import SystemConfig
from app.core.vram_tracker import DeviceTracker
from app.domain.views import HOST, DeviceView, ModelView, ProcessView


def device(view: DeviceView) -> dict[str, Any]:
    return {
        "index": view.index,
        "name": view.name,
        "total_mb": view.total_mb,
        "used_mb": view.used_mb,
        "free_mb": max(view.free_mb, 0),
        "reserved_mb": view.reserved_mb,
        "others_mb": view.others_mb,
        "source": view.source,
    }


def host(devices: Iterable[DeviceView]) -> dict[str, Any] | None:
    return next((device(d) for d in devices if d.id == HOST), None)


def gpu_trouble(tracker: DeviceTracker) -> str | None:
    """Why there is no GPU, or why it cannot be read."""
    return tracker.ledger.error or (None if tracker.ledger.has_gpu else tracker.probe.reason)


def vram(views: Iterable[ModelView], tracker: DeviceTracker, system: SystemConfig) -> dict[str, Any]:
    devices = tracker.ledger.devices()
    gpus = [d for d in devices if d.is_gpu]
    loaded = [(view, process) for view in views for process in view.processes]
    body: dict[str, Any] = {
        "status": _vram_status(gpus),
        "devices": [device(d) for d in gpus],
        "host": host(devices),
        "models": [_vram_of(view, process) for view, process in loaded],
        "loaded_models_count": len(loaded),
        "can_load_more": len(loaded) < system.max_concurrent_models,
    }
    if reason := gpu_trouble(tracker):
        body["reason"] = reason
    return body


def _vram_of(view: ModelView, process: ProcessView) -> dict[str, Any]:
    return {
        "model_alias": view.alias,
        "status": process.status.public,
        "port": process.port,
        "vram_used_mb": process.vram_mb,
        "estimated_mb": view.estimated_mb,
        "reserved_mb": process.reserved_mb,
        "host_mb": process.host_mb,
        "measured_mb": view.measured_mb,
        "devices": placement(process),
    }


def _vram_status(gpus: list[DeviceView]) -> str:
    if not gpus:
        return "no_gpu"
    if any(d.total_mb - d.used_mb < d.min_free_mb for d in gpus):
        return "critical"
    near = any(d.total_mb - d.used_mb < 2 * d.min_free_mb for d in gpus)
    return "warning" if near else "healthy"
