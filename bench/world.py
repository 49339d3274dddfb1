"""Clients, processes and memory in virtual time, around the router's own policy, lifecycle and queue.

Nothing is decided here: a process takes its time to load and to exit, and does what its model's lifecycle
says. A day passes in seconds, and the same seed gives the same day.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from types import ModuleType
from typing import Any

from app.core import queue
from app.domain.errors import QueueFull
from app.domain.priority import Priority
from app.domain.status import Status, StopReason
from app.domain.views import DeviceView, MemoryNeed, ModelView, ProcessView
from app.llama.exit_reason import Failure, FailureKind
from app.models import lifecycle
from app.models.lifecycle_effects import Effects, EndProcess, ProcessEnd, RejectWaiting
from app.models.restarts import RestartLimits
from app.scheduling import policy
from app.scheduling.actions import GiveUp, Limits, Load, Plan, Resume, Stop
from app.scheduling.demand import Demand
from app.scheduling.placement import Capacity

MAX_PASSES_AT_ONCE = 50
RESTARTS = RestartLimits(max_restarts=3, window_s=600, load_retries=2)
CRASHED = Failure(FailureKind.KILLED, "It crashed.", -9, ())


@dataclass(frozen=True)
class Code:
    """The modules that decide; the mutation tests put changed ones here."""

    policy: ModuleType = policy
    queue: ModuleType = queue
    lifecycle: ModuleType = lifecycle


@dataclass(frozen=True)
class Spec:
    alias: str
    mb: int
    load_s: float = 5.0
    unload_s: float = 0.2
    slots: int = 1
    pinned: bool = False
    idle_timeout_s: float | None = None
    devices: tuple[str, ...] = ("0",)
    overhead_mb: int = 0


class Outcome(Enum):
    SERVED = "served"
    LEFT = "left"
    REFUSED = "refused"
    FAILED = "failed"


class Request:
    """A client: it waits, is served for `service_s`, remembers how that went, then does `then`."""

    __slots__ = ("ended", "granted", "model", "outcome", "replays", "service_s", "then", "ticket")

    def __init__(self, model: Model, ticket: Any, service_s: float) -> None:
        self.model, self.ticket, self.service_s = model, ticket, service_s
        self.granted = self.ended = math.nan
        self.outcome: Outcome | None = None
        self.then: Callable[[], None] | None = None
        self.replays = 0

    @property
    def waited_s(self) -> float:
        return float(self.granted - self.ticket.arrived)


class Model:
    """A model's queue and lifecycle, as in the router, and what the world knows of its process."""

    def __init__(self, spec: Spec, waiting: Any, life: Any) -> None:
        self.spec, self.queue, self.life = spec, waiting, life
        self.need = MemoryNeed(spec.mb, spec.devices, spec.overhead_mb)
        self.reserved: Mapping[str, int] = {}
        self.requests: dict[Any, Request] = {}
        self.process = 0  # tells the events of an earlier process from those of this one
        self.loads = 0

    @property
    def status(self) -> Status:
        status: Status = self.life.status
        return status

    def view(self, demand: Demand) -> ModelView:
        spec, life = self.spec, self.life
        high, normal, low = self.queue.waiting_by_level
        return ModelView(
            spec.alias,
            self.status,
            slots=spec.slots,
            pinned=spec.pinned,
            idle_timeout_s=spec.idle_timeout_s,
            waiting_by_level=(high, normal, low),
            head=self.queue.head,
            need=self.need,
            since=life.since,
            last_used=life.last_used,
            preempted_at=life.preempted_at,
            reload_s=spec.load_s,
            service_s=self.queue.service_s,
            asked_per_s=demand.per_s(spec.alias),
            popularity=demand.popularity(spec.alias),
            preload=life.preload,
            retry_at=life.restarts.retry_at,
            processes=(self._process_view(),) if self.status.has_process else (),
        )

    def _process_view(self) -> ProcessView:
        return ProcessView(
            self.status,
            self.reserved,
            self.queue.in_flight,
            self.queue.best_in_flight,
            self.life.served,
            self.life.ready_since,
            self.life.stop_reason,
        )


class Device:
    def __init__(self, id: str, total_mb: int, min_free_mb: int) -> None:
        self.id, self.total_mb, self.min_free_mb = id, total_mb, min_free_mb
        self.others_mb = self.reclaiming_mb = 0

    def view(self, ours_mb: int) -> DeviceView:
        used = ours_mb + self.others_mb + self.reclaiming_mb
        return DeviceView(
            self.id,
            f"GPU {self.id}",
            self.total_mb,
            used,
            self.total_mb - used,
            ours_mb,
            min_free_mb=self.min_free_mb,
            others_mb=self.others_mb,
            reclaiming_mb=self.reclaiming_mb,
        )


class World:
    """The scheduler's loop in virtual time: it reconciles after every change, and when the plan says so."""

    max_events = math.inf

    def __init__(
        self,
        specs: Sequence[Spec],
        device_mb: Sequence[int],
        limits: Limits,
        *,
        min_free_mb: int = 0,
        reclaim_s: float = 0.1,
        queue_timeout_s: float = math.inf,
        max_waiting: int = 500,
        restarts: RestartLimits = RESTARTS,
        code: Code | None = None,
    ) -> None:
        self.code = code or Code()
        self.limits, self.reclaim_s, self.queue_timeout_s = limits, reclaim_s, queue_timeout_s
        self.models = {s.alias: self._model(s, max_waiting, restarts) for s in specs}
        self.devices = {str(i): Device(str(i), mb, min_free_mb) for i, mb in enumerate(device_mb)}
        self.requests: list[Request] = []
        self.demand = Demand()
        self.now = 0.0
        self.stops = self.killed = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._alarm = math.inf
        self._is_wanted = self._contended = False

    def _model(self, spec: Spec, max_waiting: int, restarts: RestartLimits) -> Model:
        waiting = self.code.queue.RequestQueue(spec.slots, max_waiting)
        return Model(spec, waiting, self.code.lifecycle.Lifecycle(spec.alias, restarts, 0.0))

    # --- time

    def at(self, when: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), do))

    def after(self, delay_s: float, do: Callable[[], None]) -> None:
        self.at(self.now + delay_s, do)

    def run(self, until: float = math.inf) -> None:
        """Everything that happens up to then; without a time, until nothing is left to happen."""
        self._reconcile_until_stable()
        start = next(self._order)
        while (when := self.next_event()) <= until and when < math.inf:
            assert next(self._order) - start < self.max_events, "the world does not come to rest"
            self.now = when
            if when == self._alarm:
                self._alarm, self._is_wanted = math.inf, True
            else:
                heapq.heappop(self._events)[2]()
            self._reconcile_until_stable()
        if until < math.inf:
            self.now = max(self.now, until)

    def next_event(self) -> float:
        return min(self._events[0][0] if self._events else math.inf, self._alarm)

    # --- clients

    def arrive(self, alias: str, priority: Priority = Priority.NORMAL, service_s: float = 1.0) -> Request:
        model = self.models[alias]
        request = Request(model, self.code.queue.Ticket(priority, self.now, self.limits.aging_s), service_s)
        self.requests.append(request)
        self.demand.asked(alias, priority, self.now)
        if model.status is Status.FAILED:
            self._reject(request, Outcome.FAILED)
        else:
            self._push(request)
            if self.queue_timeout_s < math.inf:
                self.after(self.queue_timeout_s, partial(self._give_up, request))
        return request

    def leave(self, request: Request) -> None:
        """The client hangs up, wherever it is."""
        if request.outcome is None:
            self._end(request, Outcome.LEFT)
            self._serve_next(request.model)

    def _give_up(self, request: Request) -> None:
        if request.outcome is None and math.isnan(request.granted):
            self._end(request, Outcome.FAILED)
            self._serve_next(request.model)

    def _push(self, request: Request) -> None:
        model = request.model
        try:
            model.queue.push(request.ticket)
        except QueueFull:
            self._reject(request, Outcome.REFUSED)
            return
        model.requests[request.ticket] = request
        self._serve_next(model)

    def _reject(self, request: Request, outcome: Outcome) -> None:
        """It never gets a place in the queue."""
        assert request.outcome is None, "answered twice"
        request.outcome, request.ended = outcome, self.now
        if request.then is not None:
            self.after(0.0, request.then)

    def _end(self, request: Request, outcome: Outcome) -> None:
        self._reject(request, outcome)
        self._take_back(request)

    def _take_back(self, request: Request) -> None:
        model = request.model
        model.requests.pop(request.ticket, None)
        if model.queue.finish(request.ticket, self.now):
            model.life.finished(self.now)
        if not model.queue.in_flight:
            self._do(model, model.life.drained(self.now))

    def _serve_next(self, model: Model) -> None:
        if self._contended or model.status is not Status.READY:
            self.reconcile_soon()
        else:
            self.grant(model)

    def grant(self, model: Model) -> None:
        while self.grant_one(model):
            pass

    def grant_one(self, model: Model) -> bool:
        if model.status is not Status.READY or (ticket := model.queue.grant(self.now)) is None:
            return False
        request = model.requests[ticket]
        model.life.granted(self.now)
        request.granted = self.now
        self.granted(request)
        self.after(request.service_s, partial(self._done, request, ticket))
        return True

    def _done(self, request: Request, ticket: Any) -> None:
        if request.outcome is None and request.ticket is ticket:
            self._end(request, Outcome.SERVED)
            self._serve_next(request.model)

    # --- the loop

    def reconcile_soon(self) -> None:
        self._is_wanted = True

    def reconcile(self) -> None:
        views, devices = self.views(), self.device_views()
        plan = self.plan(views, devices)
        self.planned(views, devices, plan)
        self._alarm, self._contended = plan.wake_at, bool(plan.contended)
        self.demand.contended_by(plan.contended, plan.held_up, self.now)
        for action in plan.actions:
            self.carry_out(action)
        for model in self.models.values():
            if model.queue.waiting:
                self.grant(model)

    def plan(self, views: Sequence[ModelView], devices: Sequence[DeviceView]) -> Plan:
        found: Plan = self.code.policy.plan(views, devices, self.limits, self.now)
        return found

    def views(self) -> list[ModelView]:
        return [m.view(self.demand) for m in self.models.values()]

    def device_views(self) -> list[DeviceView]:
        return [
            d.view(sum(m.reserved.get(d.id, 0) for m in self.models.values())) for d in self.devices.values()
        ]

    def live(self) -> list[Model]:
        return [m for m in self.models.values() if m.status.has_process]

    def free(self) -> Capacity:
        """What may be reserved now."""
        room = {d.id: d.view(0).free_mb - d.min_free_mb for d in self.devices.values()}
        for model in self.live():
            room = {d: mb - model.reserved.get(d, 0) for d, mb in room.items()}
        return Capacity(room, self.limits.max_models - len(self.live()))

    def carry_out(self, action: Any) -> None:
        model = self.models[action.alias]
        if isinstance(action, Load):
            self.start(model, action.placement)
        elif isinstance(action, Stop):
            self.drain(model, action.reason, action.target)
        elif isinstance(action, Resume):
            self._do(model, model.life.resume(self.now))
        elif isinstance(action, GiveUp):
            self._do(model, model.life.give_up(action.reason, self.now))
        else:
            for request in self._waiting(model):
                self._end(request, Outcome.REFUSED)
            self.reconcile_soon()

    def _reconcile_until_stable(self) -> None:
        for _ in range(MAX_PASSES_AT_ONCE):
            if not self._is_wanted:
                return
            self._is_wanted = False
            self.reconcile()
        raise AssertionError("the loop does not come to rest")

    # --- processes

    def start(self, model: Model, placement: Mapping[str, int]) -> None:
        model.reserved, model.loads = dict(placement), model.loads + 1
        self._do(model, model.life.start(self.now, is_wanted=model.queue.waiting > 0))
        self._later(model, model.spec.load_s / 10, self._port_answers)

    def drain(self, model: Model, reason: StopReason, target: str | None = None) -> None:
        waits, runs = model.queue.waiting > 0, model.queue.in_flight
        self._do(model, model.life.drain(reason, target, now=self.now, has_waiting=waits, in_flight=runs))

    def stop(self, model: Model, reason: StopReason) -> None:
        """At once: running requests are cut, and count as failed."""
        self._do(model, model.life.stop(reason, now=self.now))

    def crash(self, model: Model) -> None:
        """The process dies: unasked, or while it drains, which is what was wanted."""
        self._release(model, reclaim=False)
        self._do(model, model.life.process_ended(ProcessEnd(CRASHED), self.now))
        for request in self._running(model):
            self._replay(request)

    def reset(self, model: Model) -> None:
        self._do(model, model.life.reset(self.now))

    def _do(self, model: Model, effects: Effects) -> None:
        """What a lifecycle says: as the router's instance does it."""
        for effect in effects:
            if isinstance(effect, EndProcess):
                self._end_process(model)
            elif isinstance(effect, RejectWaiting):
                for request in self._waiting(model):
                    self._end(request, Outcome.FAILED)
            else:
                self.reconcile_soon()

    def _end_process(self, model: Model) -> None:
        self.stopping(model)
        self.stops += 1
        for request in self._running(model):
            self.killed += 1
            self._end(request, Outcome.FAILED)
        self._later(model, model.spec.unload_s, self._exited)

    def _replay(self, request: Request) -> None:
        """Once more at the old place, as if the answer had not begun."""
        if request.replays:
            self._end(request, Outcome.FAILED)
            return
        old = request.ticket
        self._take_back(request)
        request.replays, request.ticket, request.granted = 1, old.for_replay(), math.nan
        if request.model.status is Status.FAILED:
            self._reject(request, Outcome.FAILED)
        else:
            self._push(request)

    def _port_answers(self, model: Model) -> None:
        self._do(model, model.life.port_answers(self.now))
        self._later(model, model.spec.load_s * 9 / 10, self._loaded)

    def _loaded(self, model: Model) -> None:
        self._do(model, model.life.loaded(self.now))
        self.grant(model)

    def _exited(self, model: Model) -> None:
        self._release(model, reclaim=True)
        self._do(model, model.life.process_ended(ProcessEnd(), self.now))

    def _release(self, model: Model, *, reclaim: bool) -> None:
        """The driver shows a stopped process's memory as free a little later."""
        reserved, model.reserved, model.process = model.reserved, {}, model.process + 1
        if reclaim and self.reclaim_s:
            for id, mb in reserved.items():
                self._reclaiming(self.devices[id], mb)
                self.after(self.reclaim_s, partial(self._reclaiming, self.devices[id], -mb))

    def _reclaiming(self, device: Device, mb: int) -> None:
        device.reclaiming_mb += mb
        self.reconcile_soon()

    def _later(self, model: Model, delay_s: float, then: Callable[[Model], None]) -> None:
        """Unless that process has gone, or is on its way, by then."""
        process, stopping = model.process, model.status is Status.STOPPING

        def happen() -> None:
            if model.process == process and (model.status is Status.STOPPING) == stopping:
                then(model)

        self.after(delay_s, happen)

    def _running(self, model: Model) -> list[Request]:
        return [model.requests[t] for t in sorted(model.queue.running)]

    def _waiting(self, model: Model) -> Iterator[Request]:
        running = model.queue.running
        yield from [r for t, r in tuple(model.requests.items()) if t not in running]

    # --- for those who watch

    def planned(self, views: Sequence[ModelView], devices: Sequence[DeviceView], plan: Plan) -> None:
        """Before a plan is carried out."""

    def granted(self, request: Request) -> None:
        """After a request has got its slot."""

    def stopping(self, model: Model) -> None:
        """When a process has been told to exit."""
