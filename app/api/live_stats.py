"""Queues and live figures, for the routes and for the stream."""

from __future__ import annotations

import time
from typing import Any

from app.api.memory_json import device, gpu_trouble, host
from app.api.model_json import by_priority
from app.api.progress_json import progress
from app.core.manager import ModelManager
from app.core.vram_tracker import DeviceTracker
from app.domain.event_bus import EventBus
from app.domain.events import Outcome
from app.domain.views import ModelView
from app.observability.telemetry import Telemetry


class LiveStats:
    """Counts every request that has ended."""

    def __init__(
        self, manager: ModelManager, tracker: DeviceTracker, telemetry: Telemetry, bus: EventBus
    ) -> None:
        self._manager, self._tracker, self._telemetry, self._bus = manager, tracker, telemetry, bus

    def queues(self) -> dict[str, Any]:
        self._bus.flush()
        return self._queues()

    def _queues(self) -> dict[str, Any]:
        now = time.monotonic()
        per_model = {view.alias: self._queue(view, now) for view in self._manager.views()}
        outcome = self._telemetry.outcome
        return {
            "summary": {
                "total_queued": sum(q["queue_length"] for q in per_model.values()),
                "total_processing": sum(q["current_processing"] for q in per_model.values()),
                "total_processed": outcome(Outcome.SUCCESS) + outcome(Outcome.ERROR),
                "total_rejected": outcome(Outcome.REJECTED),
                "total_cancelled": outcome(Outcome.CANCELLED),
                "total_timeouts": outcome(Outcome.TIMEOUT),
            },
            "per_model": per_model,
        }

    def snapshot(self) -> dict[str, Any]:
        """What `/metrics/stream` shows; queues and memory too, so that no page has to ask for them."""
        self._bus.flush()
        devices = self._tracker.ledger.devices()
        return {
            "timestamp": time.time(),
            "devices": [{**device(d), "utilization": d.utilization} for d in devices if d.is_gpu],
            "host": host(devices),
            "reason": gpu_trouble(self._tracker),
            "models": {view.alias: self._model(view) for view in self._manager.views()},
            "queues": self._queues(),
        }

    def _model(self, view: ModelView) -> dict[str, Any]:
        totals = self._telemetry.totals(view.alias)
        return {
            "requests_total": totals.requests,
            "errors_total": totals.errors,
            "queue_depth": view.waiting,
            "in_flight": view.in_flight,
            "tokens_per_second": totals.last_tps,
            "tokens_generated": totals.tokens_generated,
            "vram_mb": view.vram_mb,
        }

    def _queue(self, view: ModelView, now: float) -> dict[str, Any]:
        outcomes = self._telemetry.totals(view.alias).outcomes
        instance = self._manager.instances[view.alias]
        oldest = instance.queue.oldest_arrival()
        return {
            **progress(instance),
            "queue_length": view.waiting,
            "by_priority": by_priority(view),
            "current_processing": view.in_flight,
            "slots": view.slots,
            "oldest_wait_sec": 0.0 if oldest is None else round(now - oldest, 3),
            "total_processed": outcomes[Outcome.SUCCESS] + outcomes[Outcome.ERROR],
            "total_rejected": outcomes[Outcome.REJECTED],
            "total_cancelled": outcomes[Outcome.CANCELLED],
            "total_timeouts": outcomes[Outcome.TIMEOUT],
        }
