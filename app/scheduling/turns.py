"""Whose turn it is: when a model may be stopped for another one's request, and who goes first. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from app.domain.priority import Priority
from app.domain.status import Status
from app.domain.views import NEVER_USED, ModelView, ProcessView, QueueHead
from app.scheduling.actions import NEVER, Limits
from app.scheduling.swap_cost import expected_away, loss, patience_s, promise_s

RETURN_TRIPS = 2  # a model that is missed more than others will be fetched back, which costs two swaps more

_TAKEABLE = frozenset({Status.STARTING, Status.LOADING, Status.READY, Status.DRAINING})


@dataclass(frozen=True)
class Loaded:
    """A process, and the model whose requests it serves: what may have to go."""

    model: ModelView
    process: ProcessView

    @property
    def alias(self) -> str:
        return self.model.alias

    @property
    def busy(self) -> bool:
        return bool(self.process.in_flight or self.model.head)


def loaded(models: Iterable[ModelView]) -> list[Loaded]:
    return [Loaded(model, process) for model in models for process in model.processes]


@dataclass(frozen=True)
class Newcomer:
    """A model that needs the room of others, and the request that asks for it.

    `least_missed` are the loaded models that would make room for it at the lowest expected loss. `turn_since`
    is when the last load among those that may go was over.
    """

    model: ModelView
    head: QueueHead
    least_missed: Collection[str] = ()
    turn_since: float = NEVER_USED


def may_be_taken_at(victim: Loaded, newcomer: Newcomer, limits: Limits, now: float) -> float:
    """When `victim` may be stopped for a newcomer: now, later, or never as things are.

    An idle model goes at once if at least as many wait for the newcomer as would come for it while it is
    away. Else it is kept for some time: shortly if it is one of those that are missed least. So is one with
    requests of its own, if the newcomer is as urgent or its turn has come, and not at all if that is strictly
    more urgent.
    """
    if victim.model.pinned or victim.process.status not in _TAKEABLE:
        return NEVER
    if not victim.busy:
        return max(now, _kept_until(victim, newcomer, limits))
    if victim.model.head and not victim.process.served:
        return NEVER  # it loads, or has just loaded, for somebody
    head = newcomer.head
    rival_level, rival_key = _rival(victim, limits, now)
    hold_end = _held_since(victim, newcomer) + promise_s(newcomer.model, limits)
    if head.key < rival_key:
        return now if head.level < rival_level else max(now, hold_end)
    if head.level <= rival_level:
        return max(now, hold_end)
    if victim.model.head:
        return NEVER  # until its head is another one: every grant leads to a new step
    return max(now, hold_end, head.key - rival_level * limits.aging_s)


def _kept_until(victim: Loaded, newcomer: Newcomer, limits: Limits) -> float:
    model, head = newcomer.model, newcomer.head
    expected = expected_away(victim.model, model, head.level)
    is_least_missed = victim.alias in newcomer.least_missed
    if expected * (1 if is_least_missed else RETURN_TRIPS) <= max(model.waiting, 1):
        return head.arrived
    if is_least_missed:
        return head.arrived + patience_s(model, limits)
    return _held_since(victim, newcomer) + promise_s(model, limits)


def _held_since(victim: Loaded, newcomer: Newcomer) -> float:
    """While those that are missed least are swapped in turn, the others stay: nobody is held back by them."""
    since = max(newcomer.head.arrived, victim.process.ready_since)
    return since if victim.alias in newcomer.least_missed else max(since, newcomer.turn_since)


def serves_first(victim: Loaded, newcomer: Newcomer, limits: Limits, now: float) -> bool:
    """It loads, or has loaded, for a request that it has not served yet; after that, it may give way."""
    if victim.model.head is None or victim.process.served:
        return False
    ready = replace(victim.process, status=Status.READY, served=1, ready_since=now)
    return may_be_taken_at(replace(victim, process=ready), newcomer, limits, now) < NEVER


def turn(model: ModelView, limits: Limits) -> tuple[float, int]:
    head = effective(model, limits)
    assert head is not None
    return head.key, head.order


def effective(model: ModelView, limits: Limits) -> QueueHead | None:
    """The head as other models see it: a model that gave way queues behind those that waited meanwhile.

    Without this a long backlog would win its memory back the moment it had left it.
    """
    head = model.head
    if head is None or model.preempted_at <= head.arrived:
        return head
    return replace(head, arrived=model.preempted_at, key=model.preempted_at + head.level * limits.aging_s)


def _rival(victim: Loaded, limits: Limits, now: float) -> tuple[Priority, float]:
    """Level and key of what the victim would serve next; its in-flight traffic is taken to go on."""
    if head := victim.model.head:
        return head.level, head.key
    level = victim.process.best_in_flight or Priority.HIGH
    return level, now + level * limits.aging_s


def cost(victim: Loaded) -> tuple[object, ...]:
    """Cheapest first: already leaving, least missed, of less importance, long unused, quick to load."""
    importance = -victim.model.head.level if victim.model.head else -int(Priority.LOW)
    leaving = victim.process.status is Status.DRAINING
    return (
        not leaving,
        loss(victim.model),
        importance,
        victim.model.last_used,
        victim.model.reload_s,
        victim.alias,
    )
