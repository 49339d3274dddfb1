"""The loop that looks at everything and carries out what the policy says."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from functools import partial

from app.core.vram_tracker import DeviceTracker
from app.domain.alarm import Alarm
from app.domain.errors import RouterError
from app.domain.event_bus import EventBus
from app.domain.events import Event, ModelChanged, ReadingTaken
from app.domain.jobs import Jobs
from app.llama.runner_interface import Launcher
from app.models.fleet import Fleet
from app.models.instance import ModelInstance
from app.models.load_inspection import Inspection
from app.scheduling import policy
from app.scheduling.actions import (
    NEVER,
    Action,
    GiveUp,
    Inspect,
    Limits,
    Load,
    Preview,
    Refuse,
    Resume,
    Stop,
    Wait,
)
from app.scheduling.capacity_refusals import refusal_error
from app.scheduling.demand import Demand

logger = logging.getLogger(__name__)

RETRY_AFTER_BUG_S = 1.0


class Scheduler:
    """Every event only asks for another pass; a lost or doubled one harms nothing."""

    def __init__(
        self,
        fleet: Fleet,
        limits: Limits,
        *,
        launcher: Launcher,
        inspection: Inspection,
        tracker: DeviceTracker,
        bus: EventBus,
        jobs: Jobs,
        clock: Callable[[], float],
    ) -> None:
        self.limits = limits
        self.waits: Mapping[str, Wait] = {}  # who waits for whom, as of the last pass
        self.error: str | None = None  # why the last pass failed: a bug, shown by /health
        self.contended: Collection[str] = ()  # as the last plan says: no slot may be given past the policy
        self.demand = Demand()
        self._fleet, self._launcher, self._inspection = fleet, launcher, inspection
        self._tracker, self._bus, self._jobs, self._clock = tracker, bus, jobs, clock
        self._reads_ahead: str | None = None
        self._is_stopped = False
        self._next_pass: asyncio.Handle | None = None
        self._alarm = Alarm(self.reconcile_soon)
        bus.subscribe(self._on_reading, ReadingTaken)

    def reconcile_soon(self) -> None:
        """Something changed. Any number of changes in one turn of the event loop lead to one pass."""
        if self._next_pass is None and not self._is_stopped:
            self._next_pass = asyncio.get_running_loop().call_soon(self._reconcile)

    def stop(self) -> None:
        self._is_stopped = True
        self._alarm.cancel()
        if self._next_pass is not None:
            self._next_pass.cancel()
            self._next_pass = None

    async def preview(self, alias: str) -> Preview:
        """What a load would do now."""
        found = self._preview(alias)
        if found.refusal is not None and found.refusal.by_others:
            await self._tracker.refresh()  # perhaps they have let go
            found = self._preview(alias)
        return found

    def _preview(self, alias: str) -> Preview:
        return policy.preview(
            self._fleet.views(), self._tracker.ledger.devices(), self.limits, self._clock(), alias
        )

    def refusal_error(self, refusal: Refuse) -> RouterError:
        """`no_capacity` or `vram_exhausted`, with the numbers."""
        loaded = [i.alias for i in self._fleet.instances.values() if i.status.has_process]
        return refusal_error(refusal, self.limits.max_models, loaded)

    async def inspect(self, instance: ModelInstance) -> None:
        await self._inspection.run(instance)
        self.reconcile_soon()

    def forget_removed(self) -> None:
        gone = self._fleet.forget_removed()
        self.demand.forget(gone)
        for alias in gone:
            self._bus.publish(ModelChanged(alias))

    # --- one pass

    def _reconcile(self) -> None:
        self._next_pass = None
        if self._is_stopped:
            return
        try:
            self._set_alarm(self._decide())
            self.error = None
        except Exception as error:  # a bug of ours must not wedge the models that serve
            self._report(f"{type(error).__name__}: {error}")
            self._set_alarm(self._clock() + RETRY_AFTER_BUG_S)
        self._grant_all()

    def _decide(self) -> float:
        """Carry out what the policy says; when the next pass is due."""
        self.forget_removed()
        now = self._clock()
        plan = policy.plan(self._fleet.views(), self._tracker.ledger.devices(), self.limits, now)
        self.waits = plan.waits
        self._tracker.watch(plan.watches_others)
        self.contended = plan.contended
        self.demand.contended_by(plan.contended, plan.held_up, now)
        self._read_ahead(plan.read_ahead)
        for action in plan.actions:
            self._carry_out(action)
        return plan.wake_at

    def _read_ahead(self, alias: str | None) -> None:
        """One model at a time, and each once."""
        if alias == self._reads_ahead:
            return
        self._jobs.cancel(f"read ahead {self._reads_ahead}")
        self._reads_ahead = alias
        if alias is not None:
            spec = self._fleet.instances[alias].spec
            self._jobs.start(f"read ahead {alias}", partial(self._launcher.prepare, spec))

    def _report(self, error: str) -> None:
        if error != self.error:
            logger.exception("scheduling failed; trying again every %.0f s", RETRY_AFTER_BUG_S)
        self.error = error

    def _grant_all(self) -> None:
        for instance in self._fleet.instances.values():
            if instance.queue.waiting:
                instance.grant()
                self._bus.publish(ModelChanged(instance.alias))

    def _carry_out(self, action: Action) -> None:
        instance = self._fleet.instances[action.alias]
        if isinstance(action, Load):
            instance.start(action.placement)
        elif isinstance(action, Stop):
            instance.drain(action.reason, action.target)
        elif isinstance(action, Resume):
            instance.resume()
        elif isinstance(action, GiveUp):
            instance.give_up(action.reason)
        elif isinstance(action, Inspect):
            self._jobs.start(f"inspect {instance.alias}", partial(self.inspect, instance))
        else:
            self._refuse(instance, action)

    def _refuse(self, instance: ModelInstance, refusal: Refuse) -> None:
        error = self.refusal_error(refusal)
        logger.info("%s: refused: %s", instance.alias, error.message)
        instance.queue.fail_waiting(error, arrived_by=refusal.arrived_by)
        self._bus.publish(ModelChanged(instance.alias))

    def _set_alarm(self, when: float) -> None:
        self._alarm.cancel()
        if when < NEVER:
            self._alarm.set_within(max(when - self._clock(), 0.0))

    def _on_reading(self, event: Event) -> None:
        models = self._fleet.instances.values()
        changed = [model.memory.look(has_served=model.lifecycle.has_served) for model in models]
        if any(changed) or (isinstance(event, ReadingTaken) and event.is_news):
            self.reconcile_soon()
