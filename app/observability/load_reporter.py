"""Tells the log how far a load is, so that nobody wonders whether a big model hangs."""

from __future__ import annotations

import logging
from collections.abc import Callable

from app.domain.event_bus import EventBus
from app.domain.events import Event, ModelChanged, StatusChanged
from app.domain.status import Status
from app.domain.views import ModelView

logger = logging.getLogger(__name__)

EVERY_S = 5.0
"""A quick load says nothing between its start and its end."""


class LoadReporter:
    def __init__(self, bus: EventBus, view: Callable[[str], ModelView], clock: Callable[[], float]) -> None:
        self._view, self._clock = view, clock
        self._next: dict[str, float] = {}
        bus.subscribe(self._on_event, StatusChanged, ModelChanged)

    def _on_event(self, event: Event) -> None:
        if isinstance(event, StatusChanged):
            if event.new is Status.STARTING:
                self._next[event.alias] = self._clock() + EVERY_S
            elif event.new is not Status.LOADING:
                self._next.pop(event.alias, None)
        elif isinstance(event, ModelChanged) and self._clock() >= self._next.get(event.alias, float("inf")):
            self._report(self._view(event.alias))

    def _report(self, view: ModelView) -> None:
        progress = view.process.load_progress if view.process is not None else None
        if progress is None:
            return
        self._next[view.alias] = self._clock() + EVERY_S
        logger.info("%s: loading, %.0f %%", view.alias, 100 * progress)
