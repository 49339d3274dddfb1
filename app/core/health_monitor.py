"""Probes loaded models: one that hangs is ended, and takes the way of a crash."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import anyio

from app.core.instance import ModelInstance
from app.core.model_status import Status
from app.core.runner import Runner

logger = logging.getLogger(__name__)

PROBE_TIMEOUT_S = 10.0
"""Generous: idle connections and long streams can hold every HTTP thread of llama-server for seconds."""

UNHEALTHY_AFTER = 3


class Verdict(str, Enum):
    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"


@dataclass(frozen=True)
class Record:
    """The probes of one process."""

    pid: int
    checks: int = 0
    failures: int = 0
    consecutive_failures: int = 0
    total_ms: float = 0.0
    last_check: float | None = None

    def after(self, ok: bool, took_ms: float, now: float) -> Record:
        return replace(
            self,
            checks=self.checks + 1,
            failures=self.failures + (not ok),
            consecutive_failures=0 if ok else self.consecutive_failures + 1,
            total_ms=self.total_ms + (took_ms if ok else 0.0),
            last_check=now,
        )


def judge(record: Record) -> Verdict:
    """One missed probe may be a busy machine; several in a row are a hang."""
    if record.consecutive_failures >= UNHEALTHY_AFTER:
        return Verdict.UNHEALTHY
    return Verdict.DEGRADED if record.consecutive_failures else Verdict.HEALTHY


class HealthMonitor:
    def __init__(self, instances: Callable[[], Iterable[ModelInstance]], interval_s: float) -> None:
        self._instances, self._interval_s = instances, interval_s
        self._records: dict[str, Record] = {}

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            await self.check_all()

    async def check_all(self) -> None:
        """One round, all models at the same time."""
        async with anyio.create_task_group() as group:
            for instance in list(self._instances()):
                if instance.runner is not None and instance.status is Status.READY:
                    group.start_soon(self._check, instance, instance.runner)

    def report(self) -> dict[str, Any]:
        """Of the models that are loaded now."""
        loaded = [i for i in self._instances() if i.status in (Status.READY, Status.DRAINING)]
        return {i.alias: _shown(self._record(i.alias, i.runner)) for i in loaded if i.runner is not None}

    def _record(self, alias: str, runner: Runner) -> Record:
        record = self._records.get(alias)
        return record if record is not None and record.pid == runner.pid else Record(runner.pid)

    async def _check(self, instance: ModelInstance, runner: Runner) -> None:
        started = time.monotonic()
        ok = await runner.healthy(PROBE_TIMEOUT_S)
        record = self._record(instance.alias, runner).after(
            ok, 1000 * (time.monotonic() - started), time.time()
        )
        self._records[instance.alias] = record
        if judge(record) is Verdict.UNHEALTHY and instance.runner is runner:
            logger.warning("%s: missed %d probes, ending it", instance.alias, record.consecutive_failures)
            await runner.stop(grace_s=0)


def _shown(record: Record) -> dict[str, Any]:
    good = record.checks - record.failures
    return {
        "status": judge(record).value,
        "uptime_percentage": round(100 * good / record.checks, 2) if record.checks else 100.0,
        "consecutive_failures": record.consecutive_failures,
        "avg_response_time_ms": round(record.total_ms / good, 2) if good else None,
        "last_check": record.last_check,
    }
