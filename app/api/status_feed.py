"""The live status stream: a full snapshot, then what changes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from app.api.sse_broadcast import HEARTBEAT_S, Broadcast
from app.domain.alarm import Alarm
from app.domain.event_bus import EventBus
from app.domain.events import Event, ModelChanged, StatusChanged

TOUCH_S = 0.5
"""Queue depth and progress change all the time: they are sent at most this often."""

STATUS_DEBOUNCE_S = 0.05
"""A change of status moves the queue a moment later: those who waited are granted, or refused."""


class StatusFeed:
    """Listens to the bus and serves `/v1/models/status/stream`."""

    def __init__(
        self,
        bus: EventBus,
        *,
        full_status: Callable[[], dict[str, Any]],
        model_status: Callable[[str], dict[str, Any] | None],
        server_status: Callable[[], dict[str, Any]],
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        """`model_status` of an alias is None when it is not configured any more."""
        self._full_status, self._model_status = full_status, model_status
        self._server_status = server_status
        self._channel = Broadcast(self._snapshot, heartbeat_s)
        self._touched: set[str] = set()
        self._flush = Alarm(self.flush)
        self._shown: dict[str, str] = {}
        self._server_shown = ""
        bus.subscribe(self._on_event, StatusChanged, ModelChanged)

    @property
    def subscribers(self) -> int:
        return self._channel.readers

    def stream(self) -> AsyncIterator[bytes]:
        return self._channel.stream()

    def server_update(self) -> None:
        """Tell the server's status, if it is another one than last time."""
        body = self._server_status()
        if body["status"] != self._server_shown:
            self._server_shown = body["status"]
            self._channel.tell("server_update", json.dumps(body))

    def disconnect_all(self) -> None:
        self._channel.disconnect_all()

    def close(self) -> None:
        self._channel.close()
        self._flush.cancel()

    def flush(self) -> None:
        """Tell what was touched. Comes by itself."""
        self._flush.cancel()
        touched, self._touched = self._touched, set()
        for alias in touched:
            self._update(alias)
        self.server_update()

    def _snapshot(self) -> tuple[str, dict[str, Any]]:
        self._shown.clear()  # whoever gets the snapshot has not seen what others were shown before
        return "full_status", self._full_status()

    def _on_event(self, event: Event) -> None:
        if isinstance(event, StatusChanged):
            self._update(event.alias)
            self.server_update()
            self._flush_within(STATUS_DEBOUNCE_S, event.alias)
        elif isinstance(event, ModelChanged):
            self._flush_within(TOUCH_S, event.alias)

    def _flush_within(self, delay_s: float, alias: str) -> None:
        if self.subscribers:
            self._touched.add(alias)
            self._flush.set_within(delay_s)

    def _update(self, alias: str) -> None:
        if not self.subscribers:
            return
        body = self._model_status(alias)
        if body is None:  # it was removed from the configuration
            self._channel.resync()
            return
        data = json.dumps(body)
        if self._shown.get(alias) != data:
            self._shown[alias] = data
            self._channel.tell("model_update", data)
