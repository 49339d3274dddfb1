"""Models, memory and clients in virtual time, around the router's own policy and queue.

It does what the manager and its instances do, without processes and without waiting: a day passes in seconds,
and the same seed gives the same day.
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
from app.domain.status import MOVES, Status, StopReason
from app.domain.views import NEVER_USED, DeviceView, ModelView, Need, ProcessView
from app.models.restarts import backoff_s
from app.scheduling import policy
from app.scheduling.demand import Demand
from app.scheduling.placement import Room
from app.scheduling.plan import Forget, Keep, Limits, Load, Plan, Stop

MAX_LOOKS_AT_ONCE = 50


@dataclass(frozen=True)
class Code:
    """The modules that decide; the mutation tests put changed ones here."""

    policy: ModuleType = policy
    queue: ModuleType = queue


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
    """A client: it waits, is served for `service_s`, and remembers how that went."""

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
    """What `ModelInstance` is in the router: status, queue and accounts of one model."""

    def __init__(self, spec: Spec, waiting: Any) -> None:
        self.spec, self.queue = spec, waiting
        self.status = Status.OFF
        self.need = Need(spec.mb, spec.devices, spec.overhead_mb)
        self.held: Mapping[str, int] = {}
        self.requests: dict[Any, Request] = {}
        self.life = 0  # tells the events of an earlier process from those of this one
        self.preload = False
        self.stop_reason: StopReason | None = None
        self.served = self.loads = self.crashes = self.failures = 0
        self.ready_since = self.last_used = self.yielded_at = NEVER_USED
        self.since = self.retry_at = 0.0

    def become(self, status: Status, now: float) -> None:
        assert status in MOVES[self.status], f"{self.spec.alias}: {self.status} -> {status}"
        self.status, self.since = status, now

    def view(self, demand: Demand) -> ModelView:
        spec, waiting = self.spec, self.queue
        high, normal, low = waiting.waiting_by_level
        return ModelView(
            spec.alias,
            self.status,
            slots=spec.slots,
            waiting_by_level=(high, normal, low),
            head=waiting.head,
            pinned=spec.pinned,
            idle_timeout_s=spec.idle_timeout_s,
            need=self.need,
            since=self.since,
            last_used=self.last_used,
            yielded_at=self.yielded_at,
            reload_s=spec.load_s,
            service_s=self.queue.service_s,
            asked_per_s=demand.per_s(spec.alias),
            preload=self.preload,
            retry_at=self.retry_at,
            processes=(self._process(),) if self.status.has_process else (),
        )

    def _process(self) -> ProcessView:
        return ProcessView(
            self.status,
            self.held,
            self.queue.in_flight,
            self.queue.best_in_flight,
            self.served,
            self.ready_since,
            self.stop_reason,
        )


class Device:
    def __init__(self, id: str, total_mb: int, min_free_mb: int) -> None:
        self.id, self.total_mb, self.min_free_mb = id, total_mb, min_free_mb
        self.others_mb = self.settling_mb = 0

    def view(self, ours_mb: int) -> DeviceView:
        used = ours_mb + self.others_mb + self.settling_mb
        return DeviceView(
            self.id,
            f"GPU {self.id}",
            self.total_mb,
            used,
            self.total_mb - used,
            ours_mb,
            min_free_mb=self.min_free_mb,
            others_mb=self.others_mb,
            settling_mb=self.settling_mb,
        )


class World:
    """The look-again loop in virtual time. `look` is called after every change, and when the plan says so."""

    max_events = math.inf

    def __init__(
        self,
        specs: Sequence[Spec],
        device_mb: Sequence[int],
        limits: Limits,
        *,
        min_free_mb: int = 0,
        settle_s: float = 0.1,
        queue_timeout_s: float = math.inf,
        max_waiting: int = 500,
        load_retries: int = 2,
        code: Code | None = None,
    ) -> None:
        self.code = code or Code()
        self.limits, self.settle_s, self.load_retries = limits, settle_s, load_retries
        self.queue_timeout_s = queue_timeout_s
        self.models = {s.alias: Model(s, self.code.queue.RequestQueue(s.slots, max_waiting)) for s in specs}
        self.devices = {str(i): Device(str(i), mb, min_free_mb) for i, mb in enumerate(device_mb)}
        self.requests: list[Request] = []
        self.demand = Demand()
        self.now = 0.0
        self.stops = self.killed = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._alarm = math.inf
        self._look_wanted = self._contended = False

    # --- time

    def at(self, when: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), do))

    def after(self, delay_s: float, do: Callable[[], None]) -> None:
        self.at(self.now + delay_s, do)

    def run(self, until: float = math.inf) -> None:
        """Everything that happens up to then; without a time, until nothing is left to happen."""
        self._settle()
        start = next(self._order)
        while (when := self.next_event()) <= until and when < math.inf:
            assert next(self._order) - start < self.max_events, "the world does not come to rest"
            self.now = when
            if when == self._alarm:
                self._alarm, self._look_wanted = math.inf, True
            else:
                heapq.heappop(self._events)[2]()
            self._settle()
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
            self._turn_away(request, Outcome.FAILED)
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
            self._turn_away(request, Outcome.REFUSED)
            return
        model.requests[request.ticket] = request
        self._serve_next(model)

    def _turn_away(self, request: Request, outcome: Outcome) -> None:
        """At the door: it holds no place."""
        assert request.outcome is None, "answered twice"
        request.outcome, request.ended = outcome, self.now

    def _end(self, request: Request, outcome: Outcome) -> None:
        assert request.outcome is None, "answered twice"
        request.outcome, request.ended = outcome, self.now
        self._take_back(request)

    def _take_back(self, request: Request) -> None:
        model = request.model
        model.requests.pop(request.ticket, None)
        if model.queue.finish(request.ticket, self.now):
            model.last_used = self.now
        self._stop_when_drained(model)

    def _serve_next(self, model: Model) -> None:
        if self._contended or model.status is not Status.READY:
            self.look_again()
        else:
            self.grant(model)

    def grant(self, model: Model) -> None:
        while self.grant_one(model):
            pass

    def grant_one(self, model: Model) -> bool:
        if model.status is not Status.READY or (ticket := model.queue.grant(self.now)) is None:
            return False
        request = model.requests[ticket]
        model.served += 1
        model.last_used = request.granted = self.now
        self.granted(request)
        self.after(request.service_s, partial(self._done, request, ticket))
        return True

    def _done(self, request: Request, ticket: Any) -> None:
        if request.outcome is None and request.ticket is ticket:
            self._end(request, Outcome.SERVED)
            self._serve_next(request.model)
            if request.then is not None:
                request.then()

    # --- the loop

    def look_again(self) -> None:
        self._look_wanted = True

    def look(self) -> None:
        views, devices = self.views(), self.device_views()
        plan = self.plan(views, devices)
        self.planned(views, devices, plan)
        self._alarm, self._contended = plan.wake_at, bool(plan.contended)
        self.demand.contended_by(plan.contended, self.now)
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
        return [d.view(sum(m.held.get(d.id, 0) for m in self.models.values())) for d in self.devices.values()]

    def live(self) -> list[Model]:
        return [m for m in self.models.values() if m.status.has_process]

    def free(self) -> Room:
        """What may be reserved now."""
        room = {d.id: d.total_mb - d.others_mb - d.settling_mb - d.min_free_mb for d in self.devices.values()}
        for model in self.live():
            room = {d: mb - model.held.get(d, 0) for d, mb in room.items()}
        return Room(room, self.limits.max_models - len(self.live()))

    def carry_out(self, action: Any) -> None:
        model = self.models[action.alias]
        if isinstance(action, Load):
            self.start(model, action.placement)
        elif isinstance(action, Stop):
            self.drain(model, action.reason)
        elif isinstance(action, Keep):
            model.stop_reason, model.yielded_at = None, NEVER_USED
            self._become(model, Status.READY)
        elif isinstance(action, Forget):
            model.preload = False
            if model.status is Status.CRASHED:
                self._become(model, Status.OFF)
        else:
            for request in self._waiting(model):
                self._end(request, Outcome.REFUSED)
            self.look_again()

    def _settle(self) -> None:
        for _ in range(MAX_LOOKS_AT_ONCE):
            if not self._look_wanted:
                return
            self._look_wanted = False
            self.look()
        raise AssertionError("the loop does not come to rest")

    # --- processes

    def start(self, model: Model, placement: Mapping[str, int]) -> None:
        model.held, model.preload, model.stop_reason = dict(placement), False, None
        model.served, model.ready_since = 0, NEVER_USED
        model.loads += 1
        self._become(model, Status.STARTING)
        self._later(model, model.spec.load_s / 10, self._port_answers)

    def drain(self, model: Model, reason: StopReason) -> None:
        if model.status in (Status.STARTING, Status.LOADING):
            self.stop(model, reason)
        if model.status is not Status.READY:
            return
        if model.queue.waiting and reason.is_swap:
            model.yielded_at = self.now
        model.stop_reason = reason
        self._become(model, Status.DRAINING)
        self._stop_when_drained(model)

    def stop(self, model: Model, reason: StopReason) -> None:
        """At once: running requests are cut, and count as failed."""
        model.stop_reason = reason
        self._become(model, Status.STOPPING)
        self.stopping(model)
        self.stops += 1
        for request in self._running(model):
            self.killed += 1
            self._end(request, Outcome.FAILED)
        self._later(model, model.spec.unload_s, self._exited)

    def crash(self, model: Model) -> None:
        """The process dies: unasked, or while it drains, which is what was wanted."""
        drained = model.status in (Status.DRAINING, Status.STOPPING)
        loaded = model.status is Status.READY
        self._release(model, settle=False)
        if drained:
            if model.status is Status.DRAINING:
                self._become(model, Status.STOPPING)
            self._become(model, Status.OFF)
        else:
            model.crashes, model.failures = model.crashes + loaded, model.failures + (not loaded)
            self._crashed(model)
        for request in self._running(model):
            self._replay(request)

    def _crashed(self, model: Model) -> None:
        if model.failures > self.load_retries:
            self._become(model, Status.FAILED)
            for request in self._waiting(model):
                self._end(request, Outcome.FAILED)
            return
        count = model.failures or 1 + (model.crashes - 1) % 3
        model.retry_at = self.now + backoff_s(count)
        self._become(model, Status.CRASHED)

    def _replay(self, request: Request) -> None:
        """Once more at the old place, as if the answer had not begun."""
        if request.replays:
            self._end(request, Outcome.FAILED)
            return
        old = request.ticket
        self._take_back(request)
        request.replays, request.ticket, request.granted = 1, old.again(), math.nan
        if request.model.status is Status.FAILED:
            self._turn_away(request, Outcome.FAILED)
        else:
            self._push(request)

    def reset(self, model: Model) -> None:
        model.failures = model.crashes = 0
        self._become(model, Status.OFF)

    def _port_answers(self, model: Model) -> None:
        self._become(model, Status.LOADING)
        self._later(model, model.spec.load_s * 9 / 10, self._loaded)

    def _loaded(self, model: Model) -> None:
        model.ready_since = model.last_used = self.now
        model.failures = 0
        self._become(model, Status.READY)
        self.grant(model)

    def _exited(self, model: Model) -> None:
        self._release(model, settle=True)
        self._become(model, Status.OFF)

    def _release(self, model: Model, *, settle: bool) -> None:
        """The driver shows a stopped process's memory as free a little later."""
        held, model.held, model.life = model.held, {}, model.life + 1
        if settle and self.settle_s:
            for id, mb in held.items():
                self._settling(self.devices[id], mb)
                self.after(self.settle_s, partial(self._settling, self.devices[id], -mb))

    def _settling(self, device: Device, mb: int) -> None:
        device.settling_mb += mb
        self.look_again()

    def _stop_when_drained(self, model: Model) -> None:
        if model.status is Status.DRAINING and not model.queue.in_flight:
            self.stop(model, model.stop_reason or StopReason.MANUAL)

    def _later(self, model: Model, delay_s: float, then: Callable[[Model], None]) -> None:
        """Unless that process has gone, or is on its way, by then."""
        life, stopping = model.life, model.status is Status.STOPPING

        def happen() -> None:
            if model.life == life and (model.status is Status.STOPPING) == stopping:
                then(model)

        self.after(delay_s, happen)

    def _become(self, model: Model, status: Status) -> None:
        model.become(status, self.now)
        self.look_again()

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
