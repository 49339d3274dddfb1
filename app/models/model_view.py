"""The snapshot of one model and its process."""

from __future__ import annotations

import math
from typing import Protocol

from app.core.queue import RequestQueue
from app.domain.model_spec import ModelSpec
from app.domain.status import Health
from app.domain.views import HOST, NEVER_USED, KeptView, MemoryNeed, ModelView, ProcessView
from app.llama.runner_interface import Runner
from app.memory.amount_to_reserve import Footprint
from app.memory.ledger.memory_ledger import MemoryLedger
from app.memory.model_memory import ModelMemory
from app.models.conversations import Conversations
from app.models.lifecycle import LOADS, Lifecycle
from app.scheduling.demand import Demand

ON_CPU = "runs on the CPU, although a GPU was planned for it; its log says why"


class Viewed(Protocol):
    """What the snapshot shows of a model."""

    spec: ModelSpec
    queue: RequestQueue
    lifecycle: Lifecycle
    memory: ModelMemory
    conversations: Conversations
    footprint: Footprint | None
    need: MemoryNeed | None
    ttl_s: float | None
    health: Health | None

    @property
    def runner(self) -> Runner | None: ...


def model_view(model: Viewed, ledger: MemoryLedger, demand: Demand) -> ModelView:
    life, spec, kept = model.lifecycle, model.spec, model.conversations.kept
    high, normal, low = model.queue.waiting_by_level
    return ModelView(
        alias=spec.alias,
        status=life.status,
        kind=spec.kind,
        slots=model.queue.slots,
        pinned=spec.pinned,
        idle_timeout_s=_idle_timeout_s(model),
        waiting_by_level=(high, normal, low),
        head=model.queue.head,
        need=model.need,
        since=life.since,
        last_used=life.last_used,
        preempted_at=life.preempted_at,
        reload_s=_reload_s(model),
        expected_load_s=model.memory.load_s,
        service_s=model.queue.service_s,
        asked_per_s=demand.per_s(spec.alias),
        popularity=demand.popularity(spec.alias),
        preload=life.preload,
        retry_at=life.restarts.retry_at,
        reason=life.reason,
        stop_reason=life.stop_reason,
        stopped_for=life.stopped_for,
        error=life.failure.message if life.failure else None,
        estimated_mb=model.memory.estimated_mb,
        measured_mb=model.memory.measured_mb,
        kept=KeptView(spec.keep_cache, *((kept.tokens, kept.size) if kept else ())),
        processes=(_process_view(model, ledger),) if life.status.has_process else (),
    )


def _process_view(model: Viewed, ledger: MemoryLedger) -> ProcessView:
    life, queue, runner = model.lifecycle, model.queue, model.runner
    loads = life.status in LOADS
    log = runner.load_log if runner is not None and loads else None
    return ProcessView(
        status=life.status,
        reserved=ledger.of(model.spec.alias).placement,
        in_flight=queue.in_flight,
        best_in_flight=queue.best_in_flight,
        served=life.served,
        ready_since=life.ready_since,
        stop_reason=life.stop_reason,
        health=model.health if runner is not None else None,
        port=runner.port if runner is not None else None,
        pid=runner.pid or None if runner is not None else None,  # 0: it is just being spawned
        vram_mb=_vram_mb(model, ledger),
        load_started=life.load_started if loads else None,
        load_progress=log.progress if log is not None else None,
        load_stage=log.stage if log is not None else None,
        warning=ON_CPU if model.memory.is_on_cpu and life.ready_since > NEVER_USED else None,
    )


def _vram_mb(model: Viewed, ledger: MemoryLedger) -> int:
    """As the driver tells it, else what was reserved for it on GPUs."""
    measured = ledger.of(model.spec.alias).measured_mb
    if measured is not None:
        return measured
    return sum(mb for device, mb in ledger.of(model.spec.alias).placement.items() if device != HOST)


def _idle_timeout_s(model: Viewed) -> float | None:
    """None: it stays. Pinned models stay whatever their users say."""
    if model.ttl_s is None or model.spec.pinned:
        return model.spec.idle_timeout_s
    return None if math.isinf(model.ttl_s) else model.ttl_s


def _reload_s(model: Viewed) -> float:
    """What it would cost to have it again: seconds, guessed from its size where nothing was measured."""
    if (load_s := model.memory.load_s) is not None:
        return load_s + model.conversations.save_s
    return model.footprint.file_mb / 1000 if model.footprint else 1.0
