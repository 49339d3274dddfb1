"""The rules of other routers, to play the same traffic in front of them: models of them, and no more."""

from __future__ import annotations

from collections.abc import Mapping

from app.domain.priority import Priority
from app.domain.status import Status, StopReason
from app.scheduling.placement import fit
from bench.world import Model, Outcome, Request, World


class FifoWorld(World):
    """Whoever came first is served first; nobody passes, and nobody is cut."""

    def grant(self, model: Model) -> None:
        self.reconcile_soon()

    def reconcile(self) -> None:
        while (first := self._oldest()) is not None and self.grant_one(first):
            pass
        if first is not None and first.status is Status.OFF:
            self._load(first)

    def _oldest(self) -> Model | None:
        waiting = [m for m in self.models.values() if m.queue.waiting]
        return min(waiting, key=arrival_of_head, default=None)

    def _load(self, model: Model) -> None:
        if (placement := fit(model.need, self.free())) is not None:
            self.start(model, placement)
        elif not self._memory_is_coming():
            self._make_room(model)

    def _make_room(self, _model: Model) -> None:
        idle = [m for m in self.live() if m.status is Status.READY and not m.queue.in_flight]
        if idle:
            self.drain(min(idle, key=lambda m: m.life.last_used), StopReason.MEMORY)

    def _wanted_and_off(self) -> list[Model]:
        """What is waited for and not loaded, by arrival. Whoever waits for a loaded model is served first."""
        wanted = [m for m in self.models.values() if m.queue.waiting]
        for model in wanted:
            while self.grant_one(model):
                pass
        return sorted((m for m in wanted if m.status is Status.OFF), key=arrival_of_head)

    def _memory_is_coming(self) -> bool:
        leaving = any(m.status is Status.STOPPING for m in self.live())
        return leaving or any(d.reclaiming_mb for d in self.devices.values())


class LruWorld(FifoWorld):
    """An eviction does not wait: what the victim runs, and what waits for it, gets an error."""

    def arrive(self, alias: str, priority: Priority = Priority.NORMAL, service_s: float = 1.0) -> Request:
        self.models[alias].life.last_used = self.now
        return super().arrive(alias, priority, service_s)

    def reconcile(self) -> None:
        for model in self._wanted_and_off():
            self._load(model)

    def _make_room(self, _model: Model) -> None:
        if loaded := self.live():
            self._kill(min(loaded, key=lambda m: m.life.last_used))

    def _kill(self, victim: Model) -> None:
        self.stop(victim, StopReason.MEMORY)
        for request in self._waiting(victim):
            self._end(request, Outcome.FAILED)


class FirstComeWorld(FifoWorld):
    """Requests for a loaded model pass; the others stand in one line (Ollama with a limit on the models).

    For the first of them an idle model goes, the first by name. With none idle the first by name is told to
    go when it is free; until then whoever comes for it is still served.
    """

    _expiring: Model | None = None

    def reconcile(self) -> None:
        out = self._wanted_and_off()
        if out and not any(m.status in (Status.STARTING, Status.LOADING) for m in self.live()):
            self._load(out[0])  # one at a time

    def start(self, model: Model, placement: Mapping[str, int]) -> None:
        self._expiring = None
        super().start(model, placement)

    def _make_room(self, _model: Model) -> None:
        going = self._expiring or self._next_to_go()
        if going is not None and going.status is Status.READY:
            self._expiring = going
            if not is_busy(going):
                self.drain(going, StopReason.MEMORY)

    def _next_to_go(self) -> Model | None:
        loaded = sorted(self.live(), key=lambda m: m.spec.alias)
        return next(iter([m for m in loaded if not is_busy(m)] or loaded), None)


class FixedSetsWorld(FifoWorld):
    """Which models may be loaded together is configured (llama-swap): here, any that fit.

    Of equal sets the first is taken, so the first models of the list stay. A request for another one waits
    until the one that must go is free, however long, while whoever asks for that is still served.
    """

    def reconcile(self) -> None:
        for model in self._wanted_and_off():
            self._load(model)

    def _make_room(self, model: Model) -> None:
        going = self._who_must_go(model)
        if going is not None and going.status is Status.READY and not is_busy(going):
            self.drain(going, StopReason.MEMORY)

    def _who_must_go(self, model: Model) -> Model | None:
        """The last of the list: what stays is the first set that holds the model."""
        last_first = reversed(list(self.models.values()))
        return next((m for m in last_first if m is not model and m.status.has_process), None)


class CountedWorld(FixedSetsWorld):
    """While another one waits, a model serves at most so many requests. The least recently used goes."""

    in_a_row = 8

    def reconcile(self) -> None:
        out = [m for m in self.models.values() if m.queue.waiting and m.status is Status.OFF]
        for model in self.models.values():
            while (not out or model.life.served < self.in_a_row) and self.grant_one(model):
                pass
        for model in sorted(out, key=arrival_of_head):
            self._load(model)

    def grant(self, model: Model) -> None:
        self.reconcile_soon()

    def _make_room(self, _model: Model) -> None:
        ready = [m for m in self.live() if m.status is Status.READY and not m.queue.in_flight]
        may_go = [m for m in ready if not m.queue.waiting or m.life.served >= self.in_a_row]
        if may_go:
            self.drain(min(may_go, key=lambda m: m.life.last_used), StopReason.MEMORY)


def arrival_of_head(model: Model) -> tuple[float, int]:
    head = model.queue.head
    return head.arrived, head.order


def is_busy(model: Model) -> bool:
    return bool(model.queue.in_flight or model.queue.waiting)
