"""Probes loaded models: one that hangs is ended, and takes the way of a crash."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import anyio

from app.core.config import Config
from app.domain.errors import UpstreamTimeout
from app.domain.event_bus import EventBus
from app.domain.events import Event, RequestFinished
from app.domain.status import Health, Status
from app.llama.runner import Runner
from app.models.instance import ModelInstance

logger = logging.getLogger(__name__)

PROBE_TIMEOUT_S = 10.0
"""Generous: idle connections and long streams can hold every HTTP thread of llama-server for seconds."""

UNHEALTHY_AFTER = 3
STUCK_AFTER = 2
SUSPECT_EVERY_S = 2.0
REFUSED_EVERY_S = 0.2
SILENT_SHARE = 0.9
"""Of a time-out: when the client of the one before was cut off, llama-server noted that in its log."""


@dataclass(frozen=True)
class Record:
    """What is known of the health of one process."""

    pid: int
    checks: int = 0
    failures: int = 0
    consecutive_failures: int = 0
    silent_timeouts: int = 0  # requests in a row that got no byte while the process said nothing at all
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

    def after_silence(self) -> Record:
        return replace(self, silent_timeouts=self.silent_timeouts + 1)

    def after_answer(self) -> Record:
        return replace(self, silent_timeouts=0)


def judge(record: Record) -> Health:
    """One missed probe may be a busy machine; several in a row are a hang.

    A stuck process can still answer probes: requests without a byte tell more, if it was silent meanwhile.
    """
    if record.consecutive_failures >= UNHEALTHY_AFTER or record.silent_timeouts >= STUCK_AFTER:
        return Health.UNHEALTHY
    failing = record.consecutive_failures or record.silent_timeouts
    return Health.DEGRADED if failing else Health.HEALTHY


class HealthMonitor:
    TAKES = ("system.health_check_interval_sec", "system.request_timeout_sec")

    def __init__(
        self,
        instances: Callable[[], Iterable[ModelInstance]],
        interval_s: float,
        request_timeout_s: float,
        bus: EventBus,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._instances, self._interval_s, self._clock = instances, interval_s, clock
        self._silence_s = SILENT_SHARE * request_timeout_s
        self._records: dict[str, Record] = {}
        self._hurry = asyncio.Event()
        bus.subscribe(self._on_event, RequestFinished)

    def apply(self, config: Config) -> None:
        self._interval_s = config.system.health_check_interval_sec
        self._silence_s = SILENT_SHARE * config.system.request_timeout_sec
        self._hurry.set()  # the next round may be due

    async def run(self) -> None:
        while True:
            with anyio.move_on_after(self._pause_s()):
                await self._hurry.wait()
            self._hurry.clear()
            await self.check_all()

    async def check_all(self) -> None:
        """One round, all models at the same time."""
        async with anyio.create_task_group() as group:
            for instance, runner in self._loaded():
                group.start_soon(self._check, instance, runner)

    async def suspect(self, instance: ModelInstance, runner: Runner) -> None:
        """A connection failed although the process lives: returns when it answers, or is gone."""
        while instance.runner is runner:
            if await self._check(instance, runner):
                return
            await asyncio.sleep(REFUSED_EVERY_S)

    def report(self) -> dict[str, Any]:
        """Of the models that are loaded now."""
        return {i.alias: _shown(self._record(i.alias, runner)) for i, runner in self._loaded()}

    # --- inside

    def _loaded(self) -> list[tuple[ModelInstance, Runner]]:
        serving = [i for i in self._instances() if i.status in (Status.READY, Status.DRAINING)]
        return [(i, i.runner) for i in serving if i.runner is not None]

    def _pause_s(self) -> float:
        well = all(judge(self._record(i.alias, r)) is Health.HEALTHY for i, r in self._loaded())
        return self._interval_s if well else min(self._interval_s, SUSPECT_EVERY_S)

    def _record(self, alias: str, runner: Runner) -> Record:
        record = self._records.get(alias)
        return record if record is not None and record.pid == runner.pid else Record(runner.pid)

    def _keep(self, instance: ModelInstance, record: Record) -> None:
        self._records[instance.alias] = record
        if instance.runner is not None and instance.runner.pid == record.pid:
            instance.health_changed(judge(record))

    async def _check(self, instance: ModelInstance, runner: Runner) -> bool:
        started = self._clock()
        ok = await runner.healthy(PROBE_TIMEOUT_S)
        took_ms = 1000 * (self._clock() - started)
        record = self._record(instance.alias, runner).after(ok, took_ms, time.time())
        self._keep(instance, record)
        if judge(record) is Health.UNHEALTHY and instance.runner is runner:
            await self._end(instance, runner, record)
        return ok

    async def _end(self, instance: ModelInstance, runner: Runner, record: Record) -> None:
        if record.consecutive_failures >= UNHEALTHY_AFTER:
            await instance.kill_unresponsive(
                runner, f"it missed {record.consecutive_failures} probes in a row"
            )
        elif not instance.view().vram_mb and await runner.working():
            logger.info("%s: no answer for long, but it computes: a long prompt, most likely", instance.alias)
            self._keep(instance, record.after_answer())
        else:
            await instance.kill_unresponsive(
                runner, f"{record.silent_timeouts} requests in a row got no answer"
            )

    def _on_event(self, event: Event) -> None:
        if not isinstance(event, RequestFinished):
            return
        known = self._records.get(event.alias)
        if event.ttft_s is not None and (known is None or not known.silent_timeouts):
            return  # the usual case
        for instance, runner in self._loaded():
            if instance.alias == event.alias:
                self._learn(event, instance, runner)

    def _learn(self, event: RequestFinished, instance: ModelInstance, runner: Runner) -> None:
        record = self._record(event.alias, runner)
        if event.ttft_s is not None:
            self._keep(instance, record.after_answer())
        elif event.error == UpstreamTimeout.code and self._clock() - runner.last_output >= self._silence_s:
            self._keep(instance, record.after_silence())
            self._hurry.set()


def _shown(record: Record) -> dict[str, Any]:
    good = record.checks - record.failures
    return {
        "status": judge(record).value,
        "uptime_percentage": round(100 * good / record.checks, 2) if record.checks else 100.0,
        "consecutive_failures": record.consecutive_failures + record.silent_timeouts,
        "avg_response_time_ms": round(record.total_ms / good, 2) if good else None,
        "last_check": record.last_check,
    }
