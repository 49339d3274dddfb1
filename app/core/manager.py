"""Leases for requests, and the models that they are for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

import anyio
import anyio.to_thread

from app.core.config import SPEC_KEYS, Config
from app.core.queue import RequestQueue, Ticket
from app.core.vram_tracker import DeviceTracker
from app.domain.errors import QueueTimeout, ShuttingDown
from app.domain.event_bus import EventBus
from app.domain.events import ModelChanged
from app.domain.jobs import Jobs
from app.domain.model_spec import ModelSpec
from app.domain.priority import Priority
from app.domain.status import Status, StopReason
from app.domain.views import ModelView
from app.llama.runner_interface import Launcher
from app.memory.amount_to_reserve import Footprint, inspect
from app.memory.load_history import LoadHistory
from app.models.fleet import Fleet
from app.models.instance import ModelInstance
from app.models.kv_cache import KvCache
from app.models.load_errors import load_failed, model_failed
from app.models.load_inspection import Inspection
from app.models.restarts import RestartLimits
from app.models.scheduler_loop import Scheduler
from app.scheduling.actions import Limits, Preview


class ModelManager:
    """All models. Bookkeeping is synchronous: on one event loop it needs no lock."""

    TAKES = (
        *SPEC_KEYS,
        *KvCache.TAKES,
        "system.aging_sec",
        "system.crash_quarantine_sec",
        "system.default_model",
        "system.foreign_wait_sec",
        "system.load_max_retries",
        "system.max_concurrent_models",
        "system.max_queue_size_per_model",
        "system.max_restarts",
        "system.max_swap_wait_sec",
        "system.queue_timeout_sec",
        "system.restart_window_sec",
        "system.vram_multiplier",
    )

    def __init__(
        self,
        config: Config,
        *,
        launcher: Launcher,
        tracker: DeviceTracker,
        bus: EventBus,
        clock: Callable[[], float],
        inspect_file: Callable[[ModelSpec], Footprint] = inspect,
        history: LoadHistory | None = None,
        kv_cache: KvCache | None = None,
    ) -> None:
        self._history = history = history or LoadHistory()
        multiplier = config.system.vram_multiplier
        self.inspection = Inspection(launcher, tracker.ledger, history, inspect_file, multiplier)
        self.closing = False
        self._launcher, self._clock, self._bus, self._tracker = launcher, clock, bus, tracker
        self._kv_cache = kv_cache
        history.subscribe(self._save_history)
        self._jobs, self._config = Jobs(), config
        self.fleet = Fleet(self._instance)
        self.scheduler = Scheduler(
            self.fleet,
            _limits(config),
            launcher=launcher,
            inspection=self.inspection,
            tracker=tracker,
            bus=bus,
            jobs=self._jobs,
            clock=clock,
        )
        self.apply(config)

    @property
    def instances(self) -> dict[str, ModelInstance]:
        """By alias, in the order of the configuration; those that are leaving it, too."""
        return self.fleet.instances

    def apply(self, config: Config) -> None:
        """Take a configuration, by difference."""
        system = config.system
        if system.vram_multiplier != self.inspection.vram_multiplier:
            self._estimate_again(system.vram_multiplier)
        self._config = config
        self.scheduler.limits = _limits(config)
        restarts = RestartLimits(
            system.max_restarts,
            system.restart_window_sec,
            system.load_max_retries,
            system.crash_quarantine_sec,
        )
        self.fleet.define(config.specs(), restarts, system.max_queue_size_per_model, system.default_model)
        self.scheduler.forget_removed()
        for alias in self.instances:
            self._bus.publish(ModelChanged(alias))
        if self._kv_cache is not None:
            self._kv_cache.apply(config)
            self._jobs.start("clean kept conversations", self._kv_cache.clean)

    # --- requests

    def ticket(self, priority: Priority) -> Ticket:
        return Ticket(priority, self._clock(), self.scheduler.limits.aging_s)

    def enter(self, instance: ModelInstance, ticket: Ticket) -> None:
        """Queue the ticket, or grant it at once. Whoever enters calls `leave`, however its wait or run ends.

        Raises `ShuttingDown`, `ModelFailed`, `RequestCrashesModel` or `QueueFull`: it has not entered.
        """
        self._check_open(instance)
        if instance.crash_inquiry.is_open:
            instance.crash_inquiry.judge(ticket)
        if not ticket.is_replay:
            self.scheduler.demand.asked(instance.alias, ticket.priority, ticket.arrived)
        if not self.scheduler.contended and instance.grant_at_once(ticket):
            self._bus.model_changed(instance.alias)
            return
        instance.queue.push(ticket)
        try:
            if instance.status is Status.OFF and instance.queue.waiting == 1:
                instance.need = None  # look at the file again: it may have changed since the last time
            self._serve_next(instance)
        except BaseException:  # else it would keep a place that nobody gives back
            self.leave(instance, ticket)
            raise

    def leave(self, instance: ModelInstance, ticket: Ticket) -> None:
        instance.finish(ticket)
        self._serve_next(instance)

    async def revive(self, instance: ModelInstance) -> None:
        """Clear `failed` if the model file is another one than that which failed."""
        if instance.status is Status.FAILED and await self.inspection.is_another_file(instance):
            instance.reset()

    # --- management

    async def load(self, instance: ModelInstance, *, wait: bool) -> None:
        """Load without a request: a ticket that leaves as soon as it is granted."""
        await self.revive(instance)
        self._check_open(instance)
        if instance.status is Status.READY:
            return
        task = self._jobs.start(f"load {instance.alias}", partial(self._hold_place, instance))
        if wait:
            await asyncio.shield(task)

    async def eject(self, instance: ModelInstance, *, now: bool, timeout_s: float) -> bool:
        """Free its memory; False if it holds none. Waiting requests stay and load it again."""
        process = instance.process
        if process is None:
            if instance.status is Status.CRASHED or instance.lifecycle.preload:
                instance.give_up("ejected")  # it would come back by itself
            return False
        if now or timeout_s <= 0:
            instance.stop(StopReason.MANUAL)
        else:
            instance.drain(StopReason.MANUAL)
        with anyio.move_on_after(timeout_s):
            await process.over.wait()
        if not process.over.is_set():
            instance.stop(StopReason.MANUAL)
            await process.over.wait()
        return True

    async def preview(self, instance: ModelInstance) -> Preview:
        """What a load would do now. Raises `LoadFailed` for a file that cannot be loaded."""
        if instance.need is None:
            await self.scheduler.inspect(instance)
        if instance.status is Status.FAILED:
            raise load_failed(instance.alias, instance.lifecycle.failure)
        return await self.scheduler.preview(instance.alias)

    def preload(self, aliases: Sequence[str]) -> None:
        """Load those that are off as soon as there is room."""
        for alias in aliases:
            self.instances[alias].lifecycle.want_preload()
        self.scheduler.reconcile_soon()

    def views(self) -> list[ModelView]:
        return self.fleet.views()

    # --- life

    def close(self) -> None:
        """Take nobody new, and decide nothing more."""
        self.closing = True
        self.scheduler.stop()

    async def shutdown(self, drain_timeout_s: float) -> None:
        """Nobody new, nobody waiting; running requests may finish; then every process is stopped."""
        self.close()
        error = ShuttingDown()
        for instance in self.instances.values():
            instance.queue.fail_waiting(error)
        self._jobs.cancel_all()
        with anyio.move_on_after(drain_timeout_s):
            async with anyio.create_task_group() as group:
                for instance in self.instances.values():
                    instance.drain(StopReason.SHUTDOWN)
                    group.start_soon(instance.until_gone)
        await self.stop_all()

    async def stop_all(self) -> None:
        """Stop every process at once."""
        self.close()
        for instance in self.instances.values():
            instance.stop(StopReason.SHUTDOWN)
        for instance in self.instances.values():
            await instance.until_gone()
        await self._history.save()

    # --- inside

    def _instance(self, spec: ModelSpec, restarts: RestartLimits) -> ModelInstance:
        return ModelInstance(
            spec,
            RequestQueue(spec.slots, self._config.system.max_queue_size_per_model),
            launcher=self._launcher,
            tracker=self._tracker,
            bus=self._bus,
            limits=restarts,
            clock=self._clock,
            reconcile_soon=self.scheduler.reconcile_soon,
            history=self._history,
            demand=self.scheduler.demand,
            kv_cache=self._kv_cache,
        )

    def _estimate_again(self, vram_multiplier: float) -> None:
        """What a load would take, the next time that it is asked for."""
        self.inspection.vram_multiplier = vram_multiplier
        for instance in self.instances.values():
            instance.need = None

    def _check_open(self, instance: ModelInstance) -> None:
        if self.closing:
            raise ShuttingDown()
        if instance.status is Status.FAILED:
            raise model_failed(instance.alias, instance.lifecycle.failure)

    def _serve_next(self, instance: ModelInstance) -> None:
        """Grant at once, unless somebody else may have a better claim: then the next look decides."""
        if self.scheduler.contended or instance.status is not Status.READY:
            self.scheduler.reconcile_soon()
        elif instance.queue.has_waiting:
            instance.grant()
        self._bus.model_changed(instance.alias)

    def _save_history(self) -> None:
        if not self.closing:  # `stop_all` saves by itself
            self._jobs.start("save footprints", self._history.save)

    async def _hold_place(self, instance: ModelInstance) -> None:
        timeout_s = self._config.system.queue_timeout_sec
        ticket = self.ticket(instance.spec.priority)
        self.enter(instance, ticket)
        try:
            if not await ticket.wait(timeout_s):
                raise QueueTimeout(f"{instance.alias} was not loaded within {timeout_s} s; try again later")
        finally:
            self.leave(instance, ticket)


def _limits(config: Config) -> Limits:
    s = config.system
    hold_s = None if s.max_swap_wait_sec == "auto" else s.max_swap_wait_sec
    return Limits(s.max_concurrent_models, hold_s, s.aging_sec, s.foreign_wait_sec)
