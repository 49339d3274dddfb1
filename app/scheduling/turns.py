"""Whose turn it is: when a model may be stopped for another one's request, and who goes first. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from app.domain.priority import Priority
from app.domain.status import Status
from app.domain.views import ModelView, ProcessView, QueueHead
from app.scheduling.plan import NEVER, Limits

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


def may_be_taken_at(victim: Loaded, head: QueueHead, limits: Limits, now: float) -> float:
    """When `victim` may be stopped for a request `head` of another model: now, later, or never as things are.

    Only a model without requests of its own goes at once. Else affinity holds the newcomer back, for at most
    `max_swap_wait_s` if it is as urgent or its turn has come, and not at all if it is strictly more urgent.
    """
    if victim.model.pinned or victim.process.status not in _TAKEABLE:
        return NEVER
    if not victim.busy:
        return now
    if victim.model.head and not victim.process.served:
        return NEVER  # it loads, or has just loaded, for somebody
    rival_level, rival_key = _rival(victim, limits, now)
    hold_end = max(head.arrived, victim.process.ready_since) + limits.max_swap_wait_s
    if head.key < rival_key:
        return now if head.level < rival_level else max(now, hold_end)
    if head.level <= rival_level:
        return max(now, hold_end)
    if victim.model.head:
        return NEVER  # until its head is another one: every grant leads to a new step
    return max(now, hold_end, head.key - rival_level * limits.aging_s)


def serves_first(victim: Loaded, head: QueueHead, limits: Limits, now: float) -> bool:
    """It loads, or has loaded, for a request that it has not served yet; after that, `head` may have it."""
    if victim.model.head is None or victim.process.served:
        return False
    ready = replace(victim.process, status=Status.READY, served=1, ready_since=now)
    return may_be_taken_at(replace(victim, process=ready), head, limits, now) < NEVER


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
    """Cheapest first: already leaving, idle, few and unimportant requests, long unused, quick to load."""
    importance = -victim.model.head.level if victim.model.head else -int(Priority.LOW)
    leaving = victim.process.status is Status.DRAINING
    return (
        not leaving,
        victim.busy,
        victim.model.waiting,
        importance,
        victim.model.last_used,
        victim.model.reload_s,
        victim.alias,
    )
