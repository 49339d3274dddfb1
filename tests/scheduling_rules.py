"""The rules of docs/scheduling.md as checks on a world in virtual time, without the policy's arithmetic."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from app.domain.priority import Priority
from app.domain.status import Status, StopReason
from app.domain.views import DeviceView, ModelView, Placement
from app.scheduling.actions import Action, Load, Plan, Refuse, Resume, Stop, Wait
from app.scheduling.placement import Capacity, fit
from bench.world import Model, Request, World

BARELY = 1e-6
_UNLOADED = (Status.OFF, Status.CRASHED, Status.STOPPING)
_LOADS = (Status.STARTING, Status.LOADING)


@dataclass(frozen=True)
class Claim:
    """What a request may ask for: its level, and the key that rule 4 gives it."""

    level: Priority
    key: float
    arrived: float
    order: int


class CheckedWorld(World):
    """Asserts the rules at each plan, each start, each grant and each stop."""

    max_events = 20_000

    # --- what is true, from the world's own accounts

    def key(self, request: Request) -> tuple[float, int]:
        ticket = request.ticket
        return ticket.arrived + ticket.priority * self.limits.aging_s, self.order[request]

    @property
    def order(self) -> dict[Request, int]:
        if len(self._order_of) < len(self.requests):
            self._order_of = {r: i for i, r in enumerate(self.requests)}
        return self._order_of

    _order_of: dict[Request, int] = {}  # noqa: RUF012  (replaced, never changed)
    _waits: Mapping[str, Wait] = {}  # of the last plan

    def next_of(self, model: Model) -> Request | None:
        return min(self._waiting(model), key=self.key, default=None)

    def claim(self, model: Model) -> Claim:
        """A model that gave way asks as if its requests had arrived then."""
        request = self.next_of(model)
        assert request is not None
        level = request.ticket.priority
        arrived = max(request.ticket.arrived, model.life.preempted_at)
        return Claim(level, arrived + level * self.limits.aging_s, arrived, self.order[request])

    def candidates(self) -> list[Model]:
        """Whose requests wait for a load that may begin, first in turn first."""
        found = [m for m in self.models.values() if m.status in _UNLOADED and m.queue.waiting]
        ready = [m for m in found if m.status is not Status.CRASHED or m.life.restarts.retry_at <= self.now]
        return sorted(ready, key=lambda m: (self.claim(m).key, self.claim(m).order))

    def leaving(self) -> list[Model]:
        return [m for m in self.live() if _is_leaving(m)]

    def without(self, gone: Iterable[Model]) -> Capacity:
        """What may be reserved when these have gone, and all that leaves or is being reclaimed as well."""
        room = self.free()
        going = {m.spec.alias: m for m in (*gone, *self.leaving())}.values()
        free = {d: mb + self.devices[d].reclaiming_mb for d, mb in room.free.items()}
        for model in going:
            free = {d: mb + model.reserved.get(d, 0) for d, mb in free.items()}
        return Capacity(free, room.places + len(going))

    def entitled(self, claim: Claim, victim: Model, slack: float) -> bool:
        """Rules 1, 5 and 6: may that model be stopped for this claim, once nothing runs in it?

        With a negative slack: must it be, however much it is missed?
        """
        if victim.spec.pinned or not victim.status.has_process or _is_leaving(victim):
            return False
        head = self.next_of(victim)
        running = [self._request(victim, t).ticket.priority for t in victim.queue.running]
        if head is None and not running:
            expected = sum(self.demand.per_s(victim.spec.alias)[: claim.level + 1]) > 0
            return slack > 0 or not expected or self.now >= self._held_until(claim, victim, slack)
        if head is not None and not victim.life.served:
            return False
        if head is not None:
            level, key = head.ticket.priority, self.key(head)[0]
        else:
            level = min(running)
            key = self.now + level * self.limits.aging_s
        return self._goes_before(claim, victim, level, key, slack)

    def _goes_before(self, claim: Claim, victim: Model, level: Priority, key: float, slack: float) -> bool:
        """Rule 5: has this claim waited long enough for what the victim would serve next?"""
        in_turn = claim.key < key + slack
        if claim.level < level and in_turn:
            return True
        return (claim.level <= level or in_turn) and self.now >= self._held_until(claim, victim, slack)

    def _held_until(self, claim: Claim, victim: Model, slack: float) -> float:
        """The promise. It counts anew when a load is over, except for the model that is missed least."""
        since: float = max(claim.arrived, victim.life.ready_since)
        if slack < 0:
            ready = (m.life.ready_since for m in self.live() if m.status is Status.READY)
            since = max(since, *ready, since)
        assert self.limits.max_swap_wait_s is not None
        return since + self.limits.max_swap_wait_s - slack

    def _request(self, model: Model, ticket: object) -> Request:
        return model.requests[ticket]

    # --- at each plan

    def planned(self, views: Sequence[ModelView], devices: Sequence[DeviceView], plan: Plan) -> None:
        assert plan.wake_at > self.now, "the loop would spin"
        self._waits = plan.waits
        loads = {a.alias: a.placement for a in plan.actions if isinstance(a, Load)}
        stops = {a.alias: a for a in plan.actions if isinstance(a, Stop)}
        refused = {a.alias for a in plan.actions if isinstance(a, Refuse)}
        self._check_stops(stops)
        self._check_refusals(refused)
        kept = [self.models[a.alias] for a in plan.actions if isinstance(a, Resume)]
        assert not any(m.status is not Status.DRAINING or _is_leaving(m) for m in kept), "kept what leaves"
        unclaimed = [m for m in self.live() if m.status is Status.DRAINING and not _is_leaving(m)]
        in_one_order = sorted(kept, key=unclaimed.index)  # the order in which they are kept changes nothing
        assert in_one_order == unclaimed or self.candidates(), "rule 5: it drains for nobody"
        candidates = self.candidates()
        if candidates:
            going = {self.models[a]: s.target for a, s in stops.items()}
            draining = [m for m in self.live() if m.status is Status.DRAINING and m not in kept]
            self._check_first(candidates, loads, going, draining, refused)

    def _check_stops(self, stops: dict[str, Stop]) -> None:
        going = [self.models[a] for a in stops] + [m for m in self.live() if m.status is Status.DRAINING]
        for alias, stop in stops.items():
            victim, reason = self.models[alias], stop.reason
            assert not victim.spec.pinned, "rule 3: a pinned model is stopped"
            assert victim.status is Status.READY or victim.status in _LOADS
            if reason is StopReason.IDLE:
                self._check_idle(victim)
                continue
            assert stop.target is not None
            target = self.models[stop.target]
            assert target in self.candidates(), "rule 6: stopped for nobody"
            assert self.entitled(self.claim(target), victim, BARELY), "rule 1, 5 or 6: it may not go yet"
            room = self.without(going)
            assert fit(target.need, room) is not None, "rule 3: stopped in vain"

    def _check_idle(self, model: Model) -> None:
        assert model.status is Status.READY
        assert not model.requests, "idle with requests"
        assert model.spec.idle_timeout_s is not None
        assert self.now >= model.life.last_used + model.spec.idle_timeout_s

    def _most_room(self) -> Capacity:
        """With everything gone that is not pinned."""
        room = {d.id: d.total_mb - d.others_mb - d.min_free_mb for d in self.devices.values()}
        stay = [m for m in self.live() if m.spec.pinned and not _is_leaving(m)]
        for model in stay:
            room = {d: mb - model.reserved.get(d, 0) for d, mb in room.items()}
        return Capacity(room, self.limits.max_models - len(stay))

    def _check_refusals(self, refused: Collection[str]) -> None:
        for alias in refused:
            assert fit(self.models[alias].need, self._most_room()) is None, "rule 3: refused in vain"

    def _check_first(
        self,
        candidates: Sequence[Model],
        loads: dict[str, Placement],
        stops: dict[Model, str | None],
        draining: Sequence[Model],
        refused: Collection[str],
    ) -> None:
        """Whose turn it is gets what it may have, and the others do not get it instead."""
        first = candidates[0]
        free, alias = self.free(), first.spec.alias
        if first.status is Status.STOPPING:
            return
        if fit(first.need, free) is not None:
            assert alias in loads, "rule 4: not loaded although it is its turn and there is room"
            return
        assert alias not in loads, "rule 2: loaded without room"
        if fit(first.need, self._most_room()) is None:
            assert alias in refused, "rule 7: it waits for what cannot come"
            return
        if fit(first.need, self.without([])) is not None:
            assert not any(t == alias for t in stops.values()), "rule 3: stopped although memory is coming"
            return
        self._check_swap(first, stops, draining)

    def _check_swap(self, first: Model, stops: dict[Model, str | None], draining: Sequence[Model]) -> None:
        claim = self.claim(first)
        named = [m for m, target in stops.items() if target == first.spec.alias]
        idle = [m for m in self.live() if not m.requests and self.entitled(claim, m, -BARELY)]
        must = [m for m in self.live() if self.entitled(claim, m, -BARELY)]
        if fit(first.need, self.without(must)) is not None:
            going = self.without([*stops, *draining])
            assert fit(first.need, going) is not None, "rule 5: held back for too long"
        its_own = [m for m in draining if self.entitled(claim, m, -BARELY)]
        for victim in named:
            others = [m for m in (*named, *its_own) if m is not victim]
            assert fit(first.need, self.without(others)) is None, "rule 3: more stopped than needed"
            if victim.requests:
                enough = fit(first.need, self.without([*idle, *its_own])) is not None
                assert not enough, "rule 3: a busy model stopped before an idle one"

    # --- at each start, grant and stop

    def start(self, model: Model, placement: Placement) -> None:
        free = self.free()
        assert free.places > 0, "rule 2: more models than places"
        for device, mb in placement.items():
            assert free.free[device] >= mb, "rule 2: more memory than there is"
        assert sum(placement.values()) >= model.need.mb, "rule 2: less reserved than needed"
        super().start(model, placement)

    def granted(self, request: Request) -> None:
        model = request.model
        assert model.queue.in_flight <= model.spec.slots
        behind = [r for r in self._waiting(model) if self.key(r) < self.key(request)]
        assert not behind, "rule 4: granted before its turn"
        candidates = self.candidates()
        if candidates and candidates[0].status is not Status.STOPPING:
            self._check_grant(request, candidates[0])

    def _check_grant(self, request: Request, first: Model) -> None:
        """Rule 5: nothing new on a model that has to go for another."""
        claim, model = self.claim(first), request.model
        others = [m for m in self.live() if m is not model and self._goes_for(first, claim, m)]
        helps = fit(first.need, self.without([*others, model])) is not None
        if fit(first.need, self.without(others)) is not None or not helps or model.spec.pinned:
            return
        if model.spec.slots == 1 and model.life.served > 1:  # else it may be the second of several at once
            level, key = request.ticket.priority, self.key(request)[0]
            due = self._goes_before(claim, model, level, key, -BARELY)
            assert not due, "rule 5: granted although the hold is over"

    def _goes_for(self, first: Model, claim: Claim, victim: Model) -> bool:
        """It has to; or it may, and drains for it already: then nobody else has to go instead."""
        if self.entitled(claim, victim, -BARELY):
            return True
        wait = self._waits.get(first.spec.alias, Wait())
        drains = victim.status is Status.DRAINING and victim.spec.alias in wait.victims
        return drains and self.entitled(claim, victim, BARELY)

    def stopping(self, model: Model) -> None:
        if model.life.stop_reason is not StopReason.MANUAL:
            assert not model.queue.in_flight, "rule 1: stopped with requests in flight"

    # --- at any time

    def check_accounts(self) -> None:
        for model in self.models.values():
            waiting, running = list(self._waiting(model)), self._running(model)
            levels = [sum(1 for r in waiting if r.ticket.priority is p) for p in Priority]
            assert levels == list(model.queue.waiting_by_level), "waiting miscounted"
            assert len(running) == model.queue.in_flight, "in flight miscounted"
            assert all(r.outcome is None for r in (*waiting, *running))
            assert not running or model.status in (Status.READY, Status.DRAINING)
            assert not waiting or model.status is not Status.FAILED, "who waits is not told of the failure"
        ours = {id(r) for m in self.models.values() for r in m.requests.values()}
        assert ours == {id(r) for r in self.requests if r.outcome is None}, "lost or answered twice"

    def check_nothing_is_missed(self) -> None:
        """Level, not edge: whoever looks at any other time finds nothing left to do.

        But a busy model whose last waiting request has just been granted may be told to drain at its next
        event: until then it would only go on with what runs. And what has drained in its place is kept then.
        """
        views, devices = self.views(), self.device_views()
        plan = self.plan(views, devices)
        self.planned(views, devices, plan)
        stops = [a for a in plan.actions if isinstance(a, Stop)]
        served_first = {s.target for s in stops if self.models[s.alias].queue.in_flight}
        later: list[Action] = [stop for stop in stops if stop.target in served_first]
        later += [a for a in plan.actions if isinstance(a, Resume) and later]
        missed = [a for a in plan.actions if a not in later]
        assert not missed, f"nobody looked in time: {missed}"


def _is_leaving(model: Model) -> bool:
    swap = model.life.stop_reason is not None and model.life.stop_reason.is_swap
    return model.status is Status.STOPPING or (model.status is Status.DRAINING and not swap)
