"""The rules of other routers as worlds, to play the same traffic in front of them. Models of them, no more."""

from __future__ import annotations

from collections.abc import Sequence

from app.domain.status import Status, StopReason
from app.scheduling.placement import fit
from bench.simulate import FifoWorld, _arrival_of_head
from bench.world import Model


class FirstComeWorld(FifoWorld):
    """Requests for a loaded model pass; the others queue in one line, whose first waits for an idle model to
    go: the one that is first by name (Ollama with a limit on the models). With none idle that one is told
    to go when it is free; until then whoever comes for it is still served.
    """

    _expiring: Model | None = None

    def look(self) -> None:
        wanted = [m for m in self.models.values() if m.queue.waiting]
        for model in wanted:
            while self.grant_one(model):
                pass
        out = [m for m in wanted if m.status is Status.OFF]
        if any(m.status in (Status.STARTING, Status.LOADING) for m in self.live()):
            return  # one at a time
        if out:
            self._load(min(out, key=_arrival_of_head))

    def _load(self, model: Model) -> None:
        if (placement := fit(model.need, self.free())) is not None:
            self._expiring = None
            self.start(model, placement)
        elif not self._memory_is_coming():
            going = self._expiring or self._next_to_go()
            if going is not None and going.status is Status.READY:
                self._expiring = going
                if not going.queue.in_flight and not going.queue.waiting:
                    self.drain(going, StopReason.MEMORY)

    def _next_to_go(self) -> Model | None:
        loaded = sorted((m for m in self.live()), key=lambda m: m.spec.alias)
        idle = [m for m in loaded if not m.queue.in_flight and not m.queue.waiting]
        return (idle or loaded or [None])[0]


class FixedSetsWorld(FifoWorld):
    """Which models may be loaded together is configured (llama-swap): here, any that fit, and of equal sets the
    first of the list, so the first models of the list stay. A request for another one waits until those that
    must go are free, however long, while whoever asks for them is still served.
    """

    def look(self) -> None:
        wanted = [m for m in self.models.values() if m.queue.waiting]
        for model in wanted:
            while self.grant_one(model):
                pass
        for model in sorted((m for m in wanted if m.status is Status.OFF), key=_arrival_of_head):
            self._load(model)

    def _load(self, model: Model) -> None:
        if (placement := fit(model.need, self.free())) is not None:
            self.start(model, placement)
            return
        if self._memory_is_coming():
            return
        going = self._who_must_go(model)
        if going is not None and going.status is Status.READY and not (going.queue.in_flight or going.queue.waiting):
            self.drain(going, StopReason.MEMORY)

    def _who_must_go(self, model: Model) -> Model | None:
        """The last of the list: what stays is the first set that holds the model."""
        order: Sequence[Model] = list(self.models.values())
        return next((m for m in reversed(order) if m is not model and m.status.has_process), None)
