"""What the policy says to pictures of models on one device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from app.domain.status import Status
from app.domain.views import DeviceView, ModelView
from app.scheduling.actions import Action, Limits, Load, Plan, Stop
from app.scheduling.policy import plan
from tests.views import LIMITS, NOW, gpu


def changed(view: ModelView, status: Status | None = None, **of_process: Any) -> ModelView:
    """The same model with its process in another state, or without one."""
    status = status or view.status
    processes = tuple(replace(process, status=status, **of_process) for process in view.processes)
    return replace(view, status=status, processes=processes if status.has_process else ())


def only_gpu(models: Sequence[ModelView], free_mb: int) -> DeviceView:
    ours = sum(process.reserved.get("0", 0) for m in models for process in m.processes)
    return gpu(free_mb, others_mb=max(10_000 - free_mb - ours, 0))


def look(*models: ModelView, free: int = 4000, limits: Limits = LIMITS, now: float = NOW) -> Plan:
    """One device of 10,000 MB: beside one model of 6,000 MB there is no room for another.

    What is neither free nor held by one of the models belongs to other programs.
    """
    return plan(models, [only_gpu(models, free)], limits, now)


def decide(*models: ModelView, free: int = 4000, limits: Limits = LIMITS, now: float = NOW) -> list[Action]:
    return list(look(*models, free=free, limits=limits, now=now).actions)


def stopped(actions: list[Action]) -> list[str]:
    return [a.alias for a in actions if isinstance(a, Stop)]


def loaded(actions: list[Action]) -> list[str]:
    return [a.alias for a in actions if isinstance(a, Load)]
