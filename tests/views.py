"""Models and devices as the policy sees them."""

from __future__ import annotations

from typing import Any

from app.domain.priority import Priority
from app.domain.status import Status
from app.domain.views import NEVER_USED, DeviceView, MemoryNeed, ModelView, ProcessView, QueueHead
from app.scheduling.actions import Limits

OFF, STARTING, LOADING, READY = Status.OFF, Status.STARTING, Status.LOADING, Status.READY


DRAINING, STOPPING, CRASHED = Status.DRAINING, Status.STOPPING, Status.CRASHED


HIGH, NORMAL, LOW = Priority.HIGH, Priority.NORMAL, Priority.LOW


NOW = 1000.0


HOLD, AGING = 10.0, 30.0


LIMITS = Limits(max_models=9, max_swap_wait_s=HOLD, aging_s=AGING)


def head(level: Priority = NORMAL, arrived: float = NOW) -> QueueHead:
    return QueueHead(arrived + level * AGING, level, arrived)


def model(
    alias: str,
    status: Status = OFF,
    *,
    mb: int = 6000,
    on: str = "0",
    devices: tuple[str, ...] = ("0",),
    waits: QueueHead | None = None,
    **rest: Any,
) -> ModelView:
    """A model of 6,000 MB. `waits` is its next request; what runs in it is of normal priority."""
    by_level = [0, 0, 0]
    if waits is not None:
        by_level[waits.level] = 1
    of_process = {key: rest.pop(key) for key in OF_PROCESS & rest.keys()}
    process = process_of(status, **{"reserved": {on: mb}, **of_process})
    fields: dict[str, Any] = {
        "waiting_by_level": tuple(by_level),
        "need": MemoryNeed(mb, devices),
        "last_used": NOW - 60 if status in (READY, DRAINING) else NEVER_USED,
        **rest,
    }
    return ModelView(alias, status, head=waits, processes=(process,) if status.has_process else (), **fields)


OF_PROCESS = {"in_flight", "best_in_flight", "served", "reserved", "ready_since", "stop_reason"}


def process_of(status: Status, *, in_flight: int = 0, **rest: Any) -> ProcessView:
    defaults: dict[str, Any] = {
        "best_in_flight": NORMAL if in_flight else None,
        "served": 1 if status in (READY, DRAINING) else 0,
    }
    return ProcessView(status, in_flight=in_flight, **{**defaults, **rest})


def gpu(free_mb: int, id: str = "0", total_mb: int = 10_000, **rest: Any) -> DeviceView:
    return DeviceView(id, f"GPU {id}", total_mb, total_mb - free_mb, free_mb, 0, **rest)
