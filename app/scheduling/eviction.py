"""What is free and who may be stopped for it, less what earlier turns of the same step have claimed. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from app.domain.status import Status, StopReason
from app.domain.views import NEVER_USED, DeviceView, ModelView, Placement
from app.scheduling.actions import NEVER, Limits, Refuse
from app.scheduling.capacity_refusals import refuse
from app.scheduling.placement import Capacity, fit
from app.scheduling.swap_cost import missed
from app.scheduling.turns import Loaded, Newcomer, cost, effective, loaded, may_be_taken_at, serves_first


@dataclass(frozen=True)
class Swap:
    """These must go, at `at` all of them may, and then the model goes there."""

    victims: tuple[Loaded, ...]
    at: float
    placement: Placement


class Claims:
    """The working accounts of one step: every decision takes its room, so the next one sees what is left."""

    def __init__(
        self, models: Sequence[ModelView], devices: Sequence[DeviceView], limits: Limits, now: float
    ) -> None:
        self._devices, self._limits, self._now = devices, limits, now
        live = sorted(loaded(models), key=cost)
        staying = [one for one in live if not one.process.is_leaving]
        self._stay = [one for one in staying if one.model.pinned]
        self.unclaimed = [one for one in staying if not one.model.pinned]
        self._least_missed_first = sorted(self.unclaimed, key=lambda one: missed(one.model))
        sizes = {d.id: d.total_mb for d in devices}
        shared = frozenset(d.id for d in devices if d.shares_host)
        free = {d.id: d.free_mb - d.min_free_mb for d in devices}
        self._room = Capacity(free, limits.max_models - len(live), sizes, shared)
        self._coming = Capacity({d.id: d.reclaiming_mb for d in devices}, 0, shared=shared)
        self._empty = Capacity({d.id: d.total_mb - d.min_free_mb for d in devices}, 1, sizes, shared)
        for one in live:
            if one.process.is_leaving:
                self._coming = self._coming.plus(one.process.reserved)
        self._unclaimed_room = self._room_without(())

    def take_free(self, model: ModelView) -> Placement | None:
        """Capacity that is free now, which is this model's from now on."""
        placement = self.free_for(model)
        if placement is not None:
            self._room = self._room.minus(placement)
        return placement

    def free_for(self, model: ModelView) -> Placement | None:
        return fit(model.need, self._room) if model.need is not None else None

    def best_swap(self, model: ModelView) -> Swap | None:
        """The cheapest victims that really make room: of those that may go now, else the soonest.

        Failing these, also those that first have to serve a request: nothing is stopped yet (`at` is NEVER),
        but nobody whose turn is later takes them. Else small models that load in turns keep a large one out.
        """
        assert model.need is not None
        if fit(model.need, self._empty) is None:
            return None  # whatever else is believed of the memory: nobody is stopped for it
        now, when = self._now, {}
        if fit(model.need, self._room_without(())) is not None:
            return self._swap(model, (), now)
        newcomer = self._newcomer(model)
        for victim in self.unclaimed:
            when[victim.alias] = may_be_taken_at(victim, newcomer, self._limits, now)
        victims = self._fewest(model, [v for v in self.unclaimed if when[v.alias] <= now])
        if not victims:
            by_time = sorted(
                (v for v in self.unclaimed if when[v.alias] < NEVER), key=lambda v: when[v.alias]
            )
            serve_first = [v for v in self.unclaimed if serves_first(v, newcomer, self._limits, now)]
            victims = self._fewest(model, by_time) or self._fewest(model, by_time + serve_first)
        return self._swap(model, victims, max(when[v.alias] for v in victims)) if victims else None

    def _newcomer(self, model: ModelView) -> Newcomer:
        """Whoever has claimed them: those that are missed least are the ones that all newcomers share."""
        head = effective(model, self._limits)
        assert head is not None
        least = _fewest(model, self._least_missed_first, self._unclaimed_room)
        ready = (one.process for one in self._least_missed_first if one.process.status is Status.READY)
        last_load = max((process.ready_since for process in ready), default=NEVER_USED)
        return Newcomer(model, head, [one.alias for one in least], last_load)

    def _fewest(self, model: ModelView, candidates: Sequence[Loaded]) -> tuple[Loaded, ...]:
        return _fewest(model, candidates, self._room_without(()))

    def _swap(self, model: ModelView, victims: tuple[Loaded, ...], at: float) -> Swap:
        assert model.need is not None
        placement = fit(model.need, self._room_without(victims))
        assert placement is not None
        return Swap(victims, at, placement)

    def claim(self, swap: Swap) -> None:
        """Nobody with a later turn may have these victims, nor the room that they and others will leave.

        What victims that go later leave over is nobody's yet: for it, others would be stopped too early.
        """
        claimed = {v.alias for v in swap.victims}
        self.unclaimed = [one for one in self.unclaimed if one.alias not in claimed]
        coming = self._coming
        for victim in swap.victims:
            coming = coming.plus(victim.process.reserved)
        self._room, coming = self._room.take(swap.placement, coming)
        self._coming = coming if swap.at <= self._now else coming.at_most(self._coming)

    def stop_reason(self, target: ModelView) -> StopReason:
        """Whether it is places that are missing or memory."""
        assert target.need is not None
        enough_places = replace(self._room_without(()), places=1)
        return StopReason.COUNT if fit(target.need, enough_places) is not None else StopReason.MEMORY

    def refusal(self, model: ModelView) -> Refuse | None:
        """Set if the model would have no room even with everything gone that is not pinned."""
        assert model.need is not None
        need, stay = model.need, self._stay
        best = self._room_beside_pinned(
            {d.id: d.total_mb - d.others_mb - d.min_free_mb for d in self._devices}
        )
        if fit(need, best) is None:
            ever = not self._devices or fit(need, self._empty) is not None
            without_others = self._room_beside_pinned(self._empty.free)
            refusal = refuse(model.alias, need, best, ever=ever)
            return replace(refusal, by_others=ever and fit(need, without_others) is not None)
        if len(stay) >= self._limits.max_models:
            return Refuse(model.alias, True, need.mb, best.most(need), ever=True)
        return None

    def _room_beside_pinned(self, free: Mapping[str, int]) -> Capacity:
        room = replace(self._empty, free=free, places=len(self._stay) + 1)
        for one in self._stay:
            room = room.minus(one.process.reserved)
        return room

    def _room_without(self, victims: Sequence[Loaded]) -> Capacity:
        return _without(self._room.plus_all(self._coming), victims)


def _without(room: Capacity, victims: Sequence[Loaded]) -> Capacity:
    for victim in victims:
        room = room.plus(victim.process.reserved)
    return room


def _fewest(model: ModelView, candidates: Sequence[Loaded], room: Capacity) -> tuple[Loaded, ...]:
    """Take candidates in order until it fits, then drop each one, dearest first, that was not needed."""
    assert model.need is not None
    chosen: list[Loaded] = []
    for victim in candidates:
        chosen.append(victim)
        if fit(model.need, _without(room, chosen)) is not None:
            break
    else:
        return ()
    for victim in reversed(chosen[:-1]):
        rest = [v for v in chosen if v is not victim]
        if fit(model.need, _without(room, rest)) is not None:
            chosen = rest
    return tuple(chosen)
