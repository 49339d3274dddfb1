"""Every scheduling decision, as a pure function of a snapshot and the time.

A step looks at all models and devices and says what to do next. It is called again after every change, so a
decision never has to be remembered: what should still happen is decided again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from app.domain.priority import Priority
from app.domain.status import Status, StopReason
from app.domain.views import NEVER_USED, DeviceView, ModelView, QueueHead
from app.scheduling.actions import (
    NEVER,
    Action,
    GiveUp,
    Inspect,
    Limits,
    Load,
    Plan,
    Preview,
    Refuse,
    Resume,
    Stop,
    Wait,
)
from app.scheduling.demand import LONG_LOAD_S
from app.scheduling.eviction import Claims, Swap
from app.scheduling.swap_cost import promise_s
from app.scheduling.turns import turn


def plan(models: Sequence[ModelView], devices: Sequence[DeviceView], limits: Limits, now: float) -> Plan:
    """What to do next, and when to look again if nothing else happens before."""
    step = _Step(models, devices, limits, now)
    for candidate in sorted((m for m in models if _wants_to_be_loaded(m)), key=lambda m: turn(m, limits)):
        step.serve(candidate)
    step.resume_what_nobody_claims()
    step.restart_or_forget_crashed()
    step.preload()
    step.unload_idle()
    step.inspect()
    return step.decided()


def preview(
    models: Sequence[ModelView], devices: Sequence[DeviceView], limits: Limits, now: float, alias: str
) -> Preview:
    """What `plan` would do for one more normal request for a model that is not loaded."""
    head = QueueHead(now + Priority.NORMAL * limits.aging_s, Priority.NORMAL, now)
    asked = next(m for m in models if m.alias == alias)
    leaving = tuple(replace(process, status=Status.STOPPING) for process in asked.processes)
    status = Status.STOPPING if leaving else asked.status
    asked = replace(asked, head=asked.head or head, status=status, processes=leaving)
    step = _Step([asked if m.alias == alias else m for m in models], devices, limits, now)
    return step.preview(asked)


_UNLOADED = frozenset({Status.OFF, Status.CRASHED, Status.STOPPING})
_LOADS = frozenset({Status.STARTING, Status.LOADING})
_HAS_ITS_ROOM = _LOADS | {Status.READY}


def _wants_to_be_loaded(model: ModelView) -> bool:
    return model.head is not None and model.status in _UNLOADED and model.need is not None


class _Step:
    """The decisions of one step. Each claims its room, so that the next one sees what is left."""

    def __init__(
        self, models: Sequence[ModelView], devices: Sequence[DeviceView], limits: Limits, now: float
    ) -> None:
        self.actions: list[Action] = []
        self.waits: dict[str, Wait] = {}
        self.wake_at = NEVER
        self._models, self._devices, self._limits, self._now = models, devices, limits, now
        self._claims = Claims(models, devices, limits, now)

    # --- decisions

    def serve(self, model: ModelView) -> None:
        """Load it now, or make room for it, or wait for room, or refuse it."""
        assert model.need is not None
        if model.status is Status.CRASHED and model.retry_at > self._now:
            self._wake_by(model.retry_at)
            return
        placement = self._claims.take_free(model)
        if placement is not None:
            if model.status is not Status.STOPPING:
                self.actions.append(Load(model.alias, placement))
            return
        if swap := self._claims.best_swap(model):
            self.waits[model.alias] = Wait(tuple(v.alias for v in swap.victims), swap.at)
            self._carry_out(swap, model)
            self._claims.claim(swap)
        elif refusal := self._claims.refusal(model):
            self._refuse_in_time(model, refusal)
        else:
            self.waits[model.alias] = Wait()

    def resume_what_nobody_claims(self) -> None:
        for one in self._claims.unclaimed:
            if one.process.status is Status.DRAINING:
                self.actions.append(Resume(one.alias))

    def restart_or_forget_crashed(self) -> None:
        for model in self._models:
            if model.status is not Status.CRASHED or model.head is not None:
                continue
            used = model.last_used if model.last_used > NEVER_USED else model.since
            expires = used + model.idle_timeout_s if model.idle_timeout_s is not None else NEVER
            if expires <= self._now:
                self.actions.append(GiveUp(model.alias, "not restarted: nobody used it lately"))
            elif model.retry_at > self._now:
                self._wake_by(min(model.retry_at, expires))
            elif model.need is None:
                continue  # its file is being looked at
            elif not self._load_into_free_room(model):
                self.actions.append(GiveUp(model.alias, "not restarted: its memory is in use"))

    def preload(self) -> None:
        for model in self._models:
            if not model.preload or model.head is not None or model.status is not Status.OFF:
                continue
            if model.need is None:
                return  # its file is being read, and those behind it keep their places
            if not self._load_into_free_room(model):
                self.actions.append(GiveUp(model.alias, "not preloaded: no room left"))

    def unload_idle(self) -> None:
        for one in self._claims.unclaimed:
            timeout_s = one.model.idle_timeout_s
            if one.process.status is not Status.READY or timeout_s is None:
                continue
            if one.busy:
                self._wake_by(self._now + max(timeout_s, 1.0))
                continue
            expires = one.model.last_used + timeout_s
            if expires <= self._now:
                self.actions.append(Stop(one.alias, StopReason.IDLE))
            else:  # a request in between only makes that look come too early
                self._wake_by(expires)

    def inspect(self) -> None:
        """What may be loaded soon is looked at before: its file, its flags and what it would take."""
        forgotten = {action.alias for action in self.actions if isinstance(action, GiveUp)}
        for model in self._models:
            if model.need is None and model.alias not in forgotten and _may_be_loaded_soon(model):
                self.actions.append(Inspect(model.alias))

    def decided(self) -> Plan:
        next_in_turn = next((alias for alias, wait in self.waits.items() if wait.victims), None)
        contended = self._contended()
        held_up = contended | self._loading_for_long()
        return Plan(tuple(self.actions), self.wake_at, self.waits, next_in_turn, contended, held_up)

    def preview(self, model: ModelView) -> Preview:
        if model.need is None:
            return Preview(False, {})
        if (placement := self._claims.free_for(model)) is not None:
            return Preview(True, placement)
        if (swap := self._claims.best_swap(model)) is None:
            refusal = self._claims.refusal(model)
            return Preview(refusal is None, {}, wait_s=promise_s(model, self._limits), refusal=refusal)
        wait_s = swap.at - self._now if swap.at < NEVER else promise_s(model, self._limits)
        return Preview(True, swap.placement, tuple(v.alias for v in swap.victims), wait_s)

    # --- making room

    def _carry_out(self, swap: Swap, target: ModelView) -> None:
        if swap.at > self._now:
            self._wake_by(swap.at)
            return
        for victim in swap.victims:
            if victim.process.status is not Status.DRAINING:
                self.actions.append(Stop(victim.alias, self._claims.stop_reason(target), target.alias))

    def _refuse_in_time(self, model: ModelView, refusal: Refuse) -> None:
        """At once, unless it is other programs' memory that is missing: they get some time to let go.

        And what they hold is read once more when that time is over, so that nobody is refused for what was.
        """
        if not refusal.by_others:
            self.actions.append(refusal)
            return
        assert model.head is not None
        wait_s = self._limits.foreign_wait_s
        until = max(model.head.arrived, model.since) + wait_s
        if until <= self._now and all(device.asked_at >= until for device in self._devices):
            self.actions.append(replace(refusal, arrived_by=self._now - wait_s))
            return
        self.waits[model.alias] = Wait(at=until, for_others=True)
        if until > self._now:
            self._wake_by(until)

    def _contended(self) -> frozenset[str]:
        """Models that, after these actions, have requests waiting and no room of their own."""
        helped = {a.alias for a in self.actions if isinstance(a, Load | Resume)}
        helped |= {a.alias for a in self.actions if isinstance(a, Refuse) and a.arrived_by == NEVER}
        going = {a.alias for a in self.actions if isinstance(a, Stop)}
        waiting = (m for m in self._models if m.head is not None and m.alias not in helped)
        return frozenset(m.alias for m in waiting if m.alias in going or m.status not in _HAS_ITS_ROOM)

    def _loading_for_long(self) -> frozenset[str]:
        waiting = (m for m in self._models if m.head is not None and m.reload_s >= LONG_LOAD_S)
        return frozenset(m.alias for m in waiting if m.status in _LOADS)

    # --- small things

    def _load_into_free_room(self, model: ModelView) -> bool:
        placement = self._claims.take_free(model)
        if placement is None:
            return False
        self.actions.append(Load(model.alias, placement))
        return True

    def _wake_by(self, when: float) -> None:
        self.wake_at = min(self.wake_at, when)


def _may_be_loaded_soon(model: ModelView) -> bool:
    if model.status is Status.CRASHED:
        return True
    return model.status is Status.OFF and (model.preload or model.head is not None)
