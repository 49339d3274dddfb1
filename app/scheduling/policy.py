"""Every scheduling decision, as a pure function of a picture and the time.

A step looks at all models and devices and says what to do next. It is called again after every change, so a
decision never has to be remembered: what should still happen is decided again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from app.domain.priority import Priority
from app.domain.status import Status, StopReason
from app.domain.views import NEVER_USED, DeviceView, Head, ModelView, Placement
from app.scheduling.placement import Room, fit
from app.scheduling.plan import NEVER, Action, Forget, Keep, Limits, Load, Plan, Preview, Refuse, Stop, Wait
from app.scheduling.refusals import refuse
from app.scheduling.turns import cost, effective, may_be_taken_at, serves_first, turn


def plan(models: Sequence[ModelView], devices: Sequence[DeviceView], limits: Limits, now: float) -> Plan:
    """What to do next, and when to look again if nothing else happens before."""
    step = _Step(models, devices, limits, now)
    for candidate in sorted((m for m in models if _wants_to_be_loaded(m)), key=lambda m: turn(m, limits)):
        step.serve(candidate)
    step.resume_what_nobody_claims()
    step.restart_or_forget_crashed()
    step.preload()
    step.unload_idle()
    return Plan(tuple(step.actions), step.wake_at, step.waits)


def preview(
    models: Sequence[ModelView], devices: Sequence[DeviceView], limits: Limits, now: float, alias: str
) -> Preview:
    """What `plan` would do for one more normal request for a model that is not loaded."""
    head = Head(now + Priority.NORMAL * limits.aging_s, Priority.NORMAL, now)
    asked = next(m for m in models if m.alias == alias)
    leaving = Status.STOPPING if asked.status.has_process else asked.status
    asked = replace(asked, head=asked.head or head, status=leaving)
    step = _Step([asked if m.alias == alias else m for m in models], devices, limits, now)
    return step.preview(asked)


_UNLOADED = frozenset({Status.OFF, Status.CRASHED, Status.STOPPING})


def _wants_to_be_loaded(model: ModelView) -> bool:
    return model.head is not None and model.status in _UNLOADED and model.need is not None


@dataclass(frozen=True)
class _Swap:
    """These must go, at `at` all of them may, and then the model goes there."""

    victims: tuple[ModelView, ...]
    at: float
    placement: Placement


class _Step:
    """The working picture of one step: every decision takes its room, so the next one sees what is left."""

    def __init__(
        self, models: Sequence[ModelView], devices: Sequence[DeviceView], limits: Limits, now: float
    ) -> None:
        self.actions: list[Action] = []
        self.waits: dict[str, Wait] = {}
        self.wake_at = NEVER
        self._models, self._devices, self._limits, self._now = models, devices, limits, now
        self._live = live = sorted((m for m in models if m.status.has_process), key=cost)
        self._stay = [m for m in live if m.pinned and not _is_leaving(m)]
        self._unclaimed = [m for m in live if not m.pinned and not _is_leaving(m)]
        sizes = {d.id: d.total_mb for d in devices}
        free = {d.id: d.free_mb - d.min_free_mb for d in devices}
        self._room = Room(free, limits.max_models - len(live), sizes)
        self._coming = Room(free={d.id: d.settling_mb for d in devices}, places=0)
        self._empty = Room({d.id: d.total_mb - d.min_free_mb for d in devices}, 1, sizes)
        for model in live:
            if _is_leaving(model):
                self._coming = self._coming.plus(model.held)

    # --- decisions

    def serve(self, model: ModelView) -> None:
        """Load it now, or make room for it, or wait for room, or refuse it."""
        assert model.need is not None
        if model.status is Status.CRASHED and model.retry_at > self._now:
            self._look_at(model.retry_at)
            return
        placement = fit(model.need, self._room)
        if placement is not None:
            self._room = self._room.minus(placement)
            if model.status is not Status.STOPPING:
                self.actions.append(Load(model.alias, placement))
            return
        if swap := self._best_swap(model):
            self.waits[model.alias] = Wait(tuple(v.alias for v in swap.victims), swap.at)
            self._carry_out(swap, model)
            self._claim(swap)
        elif refusal := self._refusal(model):
            self._refuse_in_time(model, refusal)
        else:
            self.waits[model.alias] = Wait()

    def resume_what_nobody_claims(self) -> None:
        for model in self._unclaimed:
            if model.status is Status.DRAINING:
                self.actions.append(Keep(model.alias))

    def restart_or_forget_crashed(self) -> None:
        for model in self._models:
            if model.status is not Status.CRASHED or model.head is not None:
                continue
            used = model.last_used if model.last_used > NEVER_USED else model.since
            expires = used + model.idle_timeout_s if model.idle_timeout_s is not None else NEVER
            if expires <= self._now:
                self.actions.append(Forget(model.alias, "not restarted: nobody used it lately"))
            elif model.retry_at > self._now:
                self._look_at(min(model.retry_at, expires))
            elif model.need is None:
                continue  # its file is being looked at
            elif not self._load_into_free_room(model):
                self.actions.append(Forget(model.alias, "not restarted: its memory is in use"))

    def preload(self) -> None:
        for model in self._models:
            if not model.preload or model.head is not None or model.status is not Status.OFF:
                continue
            if model.need is None:
                return  # its file is being read, and those behind it keep their places
            if not self._load_into_free_room(model):
                self.actions.append(Forget(model.alias, "not preloaded: no room left"))

    def unload_idle(self) -> None:
        for model in self._unclaimed:
            if model.status is not Status.READY or model.idle_timeout_s is None:
                continue
            expires = (self._now if model.busy else model.last_used) + model.idle_timeout_s
            if expires <= self._now:
                self.actions.append(Stop(model.alias, StopReason.IDLE))
            else:  # a request in between only makes that look come too early
                self._look_at(expires)

    def preview(self, model: ModelView) -> Preview:
        if model.need is None:
            return Preview(False, {})
        if (placement := fit(model.need, self._room)) is not None:
            return Preview(True, placement)
        if (swap := self._best_swap(model)) is None:
            refusal = self._refusal(model)
            return Preview(refusal is None, {}, wait_s=self._limits.max_swap_wait_s, refusal=refusal)
        wait_s = swap.at - self._now if swap.at < NEVER else self._limits.max_swap_wait_s
        return Preview(True, swap.placement, tuple(v.alias for v in swap.victims), wait_s)

    # --- making room

    def _best_swap(self, model: ModelView) -> _Swap | None:
        """The cheapest victims that really make room: of those that may go now, else the soonest.

        Failing these, also those that first have to serve a request: nothing is stopped yet (`at` is NEVER),
        but nobody whose turn is later takes them. Else small models that load in turns keep a large one out.
        """
        head = effective(model, self._limits)
        assert head is not None
        assert model.need is not None
        if fit(model.need, self._empty) is None:
            return None  # whatever else is believed of the memory: nobody is stopped for it
        now, when = self._now, {}
        if fit(model.need, self._room_without(())) is not None:
            return self._swap(model, (), now)
        for victim in self._unclaimed:
            when[victim.alias] = may_be_taken_at(victim, head, self._limits, now)
        victims = self._fewest(model, [v for v in self._unclaimed if when[v.alias] <= now])
        if not victims:
            by_time = sorted(
                (v for v in self._unclaimed if when[v.alias] < NEVER), key=lambda v: when[v.alias]
            )
            serve_first = [v for v in self._unclaimed if serves_first(v, head, self._limits, now)]
            victims = self._fewest(model, by_time) or self._fewest(model, by_time + serve_first)
        return self._swap(model, victims, max(when[v.alias] for v in victims)) if victims else None

    def _fewest(self, model: ModelView, candidates: Sequence[ModelView]) -> tuple[ModelView, ...]:
        """Take candidates in order until it fits, then drop each one, dearest first, that was not needed."""
        assert model.need is not None
        chosen: list[ModelView] = []
        room = self._room_without(())
        for victim in candidates:
            chosen.append(victim)
            room = room.plus(victim.held)
            if fit(model.need, room) is not None:
                break
        else:
            return ()
        for victim in reversed(chosen[:-1]):
            rest = [v for v in chosen if v is not victim]
            if fit(model.need, self._room_without(rest)) is not None:
                chosen = rest
        return tuple(chosen)

    def _swap(self, model: ModelView, victims: tuple[ModelView, ...], at: float) -> _Swap:
        assert model.need is not None
        placement = fit(model.need, self._room_without(victims))
        assert placement is not None
        return _Swap(victims, at, placement)

    def _claim(self, swap: _Swap) -> None:
        """Nobody with a later turn may have these victims, nor the room that they and others will leave.

        What victims that go later leave over is nobody's yet: for it, others would be stopped too early.
        """
        claimed = {v.alias for v in swap.victims}
        self._unclaimed = [m for m in self._unclaimed if m.alias not in claimed]
        coming = self._coming
        for victim in swap.victims:
            coming = coming.plus(victim.held)
        self._room, coming = self._room.take(swap.placement, coming)
        self._coming = coming if swap.at <= self._now else coming.at_most(self._coming)

    def _carry_out(self, swap: _Swap, target: ModelView) -> None:
        if swap.at > self._now:
            self._look_at(swap.at)
            return
        for victim in swap.victims:
            if victim.status is not Status.DRAINING:
                self.actions.append(Stop(victim.alias, self._reason(target), target.alias))

    def _reason(self, target: ModelView) -> StopReason:
        """Whether it is places that are missing or memory."""
        assert target.need is not None
        enough_places = replace(self._room_without(()), places=1)
        return StopReason.COUNT if fit(target.need, enough_places) is not None else StopReason.MEMORY

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
            self._look_at(until)

    def _refusal(self, model: ModelView) -> Refuse | None:
        """Set if the model would have no room even with everything gone that is not pinned."""
        assert model.need is not None
        need, stay = model.need, self._stay
        best = self._room_beside_pinned(
            {d.id: d.total_mb - d.others_mb - d.min_free_mb for d in self._devices}
        )
        if fit(need, best) is None:
            ever = fit(need, self._empty) is not None
            without_others = self._room_beside_pinned(self._empty.free)
            refusal = refuse(model.alias, need, best, ever=ever)
            return replace(refusal, by_others=ever and fit(need, without_others) is not None)
        if len(stay) >= self._limits.max_models:
            return Refuse(model.alias, True, need.mb, best.most(need), ever=True)
        return None

    def _room_beside_pinned(self, free: Mapping[str, int]) -> Room:
        room = Room(free, len(self._stay) + 1, self._empty.sizes)
        for model in self._stay:
            room = room.minus(model.held)
        return room

    # --- small things

    def _room_without(self, victims: Sequence[ModelView]) -> Room:
        room = self._room.plus_all(self._coming)
        for victim in victims:
            room = room.plus(victim.held)
        return room

    def _load_into_free_room(self, model: ModelView) -> bool:
        placement = fit(model.need, self._room) if model.need else None
        if placement is None:
            return False
        self._room = self._room.minus(placement)
        self.actions.append(Load(model.alias, placement))
        return True

    def _look_at(self, when: float) -> None:
        self.wake_at = min(self.wake_at, when)


def _is_leaving(model: ModelView) -> bool:
    """On its way out, and no decision of ours keeps it."""
    if model.status is Status.STOPPING:
        return True
    swap = model.stop_reason is not None and model.stop_reason.is_swap
    return model.status is Status.DRAINING and not swap
