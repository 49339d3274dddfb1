"""Whose turn it is: when a model may be stopped for another one's request, and who goes first. Pure."""

from __future__ import annotations

from dataclasses import replace

from app.domain.priority import Priority
from app.domain.status import Status
from app.domain.views import Head, ModelView
from app.scheduling.plan import NEVER, Limits

_TAKEABLE = frozenset({Status.STARTING, Status.LOADING, Status.READY, Status.DRAINING})


def may_be_taken_at(victim: ModelView, head: Head, limits: Limits, now: float) -> float:
    """When `victim` may be stopped for a request `head` of another model: now, later, or never as things are.

    Only a model without requests of its own goes at once. Else affinity holds the newcomer back, for at most
    `max_swap_wait_s` if it is as urgent or its turn has come, and not at all if it is strictly more urgent.
    """
    if victim.pinned or victim.status not in _TAKEABLE:
        return NEVER
    if not victim.busy:
        return now
    if victim.head and not victim.served:
        return NEVER  # it loads, or has just loaded, for somebody
    rival_level, rival_key = _rival(victim, limits, now)
    hold_end = max(head.arrived, victim.ready_since) + limits.max_swap_wait_s
    if head.key < rival_key:
        return now if head.level < rival_level else max(now, hold_end)
    if head.level <= rival_level:
        return max(now, hold_end)
    if victim.head:
        return NEVER  # until its head is another one: every grant leads to a new step
    return max(now, hold_end, head.key - rival_level * limits.aging_s)


def serves_first(victim: ModelView, head: Head, limits: Limits, now: float) -> bool:
    """It loads, or has loaded, for a request that it has not served yet; after that, `head` may have it."""
    if victim.head is None or victim.served:
        return False
    ready = replace(victim, status=Status.READY, served=1, ready_since=now)
    return may_be_taken_at(ready, head, limits, now) < NEVER


def turn(model: ModelView, limits: Limits) -> tuple[float, int]:
    head = effective(model, limits)
    assert head is not None
    return head.key, head.order


def effective(model: ModelView, limits: Limits) -> Head | None:
    """The head as other models see it: a model that gave way queues behind those that waited meanwhile.

    Without this a long backlog would win its memory back the moment it had left it.
    """
    head = model.head
    if head is None or model.yielded_at <= head.arrived:
        return head
    return replace(head, arrived=model.yielded_at, key=model.yielded_at + head.level * limits.aging_s)


def _rival(victim: ModelView, limits: Limits, now: float) -> tuple[Priority, float]:
    """Level and key of what the victim would serve next; its in-flight traffic is taken to go on."""
    if head := victim.head:
        return head.level, head.key
    level = victim.best_in_flight or Priority.HIGH
    return level, now + level * limits.aging_s


def cost(victim: ModelView) -> tuple[object, ...]:
    """Cheapest first: already leaving, idle, few and unimportant requests, long unused, quick to load."""
    importance = -victim.head.level if victim.head else -int(Priority.LOW)
    leaving = victim.status is Status.DRAINING
    return (
        not leaving,
        victim.busy,
        victim.waiting,
        importance,
        victim.last_used,
        victim.reload_s,
        victim.alias,
    )
