"""One model as JSON. Times inside are those of the event loop; outside they are Unix seconds."""

from __future__ import annotations

import time
from typing import Any

from app.domain.priority import Priority
from app.domain.status import Status
from app.domain.views import ModelView, ProcessView
from app.models.instance import ModelInstance
from app.scheduling.actions import NEVER, Wait


def by_priority(view: ModelView) -> dict[str, int]:
    return {p.label: view.waiting_by_level[p] for p in Priority}


def placement(process: ProcessView) -> list[dict[str, Any]]:
    """What it holds of each device: a reservation while it loads, then what it was given."""
    return [{"index": int(d) if d.isdigit() else d, "used_mb": mb} for d, mb in process.on_devices.items()]


def model_status(view: ModelView, wait: Wait | None) -> dict[str, Any]:
    """One model in `/v1/models/status`, in its stream and on the page."""
    status: dict[str, Any] = {"status": view.status.public, "kind": view.kind.value, "pinned": view.pinned}
    process = view.process or NO_PROCESS
    if view.process is not None:
        status |= {"port": process.port, "pid": process.pid, "vram_mb": view.vram_mb}
        status |= {"devices": placement(process), "health": process.health}
    return status | {
        "estimated_mb": view.estimated_mb,
        "reserved_mb": process.reserved_mb,
        "host_mb": process.host_mb,
        "measured_mb": view.measured_mb,
        "keep_cache": view.kept.mode,
        "kept_tokens": view.kept.tokens,
        "kept_bytes": view.kept.bytes,
        "load_started": None if process.load_started is None else unix(process.load_started),
        "expected_load_sec": view.expected_load_s,
        "load_progress": process.load_progress,
        "load_stage": process.load_stage,
        "queue_depth": view.waiting,
        "by_priority": by_priority(view),
        "in_flight": view.in_flight,
        "slots": view.slots,
        "last_used": unix(view.last_used),
        "status_since": unix(view.since),
        "waits_for": None if wait is None else list(wait.victims),
        "waits_until": None if wait is None or wait.at == NEVER else unix(wait.at),
        "waits_because": None if wait is None else wait.why,
        "stop_reason": view.stop_reason.value if view.stop_reason else None,
        "stopped_for": view.stopped_for,
        "error": view.error,
        "warning": process.warning,
        "reason": view.reason,
    }


NO_PROCESS = ProcessView(Status.OFF)

_COMING = (Status.STARTING, Status.LOADING)


def router_mode_status(instance: ModelInstance) -> dict[str, Any]:
    if instance.status is Status.FAILED and instance.lifecycle.failure is not None:
        code = instance.lifecycle.failure.exit_code  # None where no process was started for it
        return {"value": "unloaded", "failed": True, "exit_code": 1 if code is None else code}
    if instance.status in _COMING:
        return {"value": "loading"}
    return {"value": "loaded" if instance.status is Status.READY else "unloaded"}


def unix(loop_time: float) -> float | None:
    """Unix seconds of a loop time; None for never."""
    if loop_time == float("-inf"):
        return None
    return round(time.time() - (time.monotonic() - loop_time), 3)
