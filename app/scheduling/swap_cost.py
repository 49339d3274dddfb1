"""What a swap costs those who use the models, and how long it may be put off. Pure."""

from __future__ import annotations

from app.domain.priority import Priority
from app.domain.views import ModelView
from app.scheduling.actions import Limits

PROMISE_SWAPS = 2.0  # "auto": nobody is held back for longer than this many swaps take
LEAST_PROMISE_S = 10.0  # and quick loads are no reason to cut a backlog into pieces


def swap_s(model: ModelView) -> float:
    """From the decision to its first free slot: what runs ends, and the model loads."""
    return model.reload_s + model.service_s


def expected_away(victim: ModelView, newcomer: ModelView, level: Priority) -> float:
    """Requests, at least as urgent as `level`, that would come for it while it is away: there and back."""
    return sum(victim.asked_per_s[: level + 1]) * (swap_s(victim) + swap_s(newcomer))


def missed(model: ModelView) -> float:
    """Requests that are expected to come for it during one load of it."""
    return model.popularity * swap_s(model)


def loss(model: ModelView) -> float:
    """Who would wait for its next load: those who are expected, and those who are there."""
    return missed(model) + model.in_flight + model.waiting


def promise_s(newcomer: ModelView, limits: Limits) -> float:
    """The longest time for which others' requests, there or expected, hold it back when its turn has come."""
    if limits.max_swap_wait_s is not None:
        return limits.max_swap_wait_s
    return max(LEAST_PROMISE_S, PROMISE_SWAPS * swap_s(newcomer))


def patience_s(newcomer: ModelView, limits: Limits) -> float:
    """The same for an idle model of those that are missed least.

    The newcomer then waits for about two swaps in all, as does who comes for a model that has just left.
    """
    return min(promise_s(newcomer, limits), limits.patience_swaps * swap_s(newcomer))
