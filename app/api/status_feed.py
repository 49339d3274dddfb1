"""The live status stream: what changed goes to every subscriber once, and a slow one never grows memory."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from app.core.events import Event, EventBus, StatusChanged, Touched

BACKLOG = 256
HEARTBEAT_S = 30.0
TOUCH_S = 0.25
"""Queue depth and progress change all the time: they are sent at most this often."""


@dataclass(frozen=True)
class Sent:
    """An event as it goes out; rendered once for all subscribers."""

    id: int
    name: str
    data: str

    def sse(self) -> dict[str, Any]:
        return {"id": str(self.id), "event": self.name, "data": self.data}


class _Subscriber:
    def __init__(self) -> None:
        self.backlog: deque[Sent] = deque()
        self.overflowed = False
        self.wake = asyncio.Event()

    def push(self, sent: Sent) -> None:
        if len(self.backlog) >= BACKLOG:  # it will get a fresh picture instead of all that it missed
            self.backlog.clear()
            self.overflowed = True
        if not self.overflowed:
            self.backlog.append(sent)
        self.wake.set()


class StatusFeed:
    """Listens to the bus and serves `/v1/models/status/stream`."""

    def __init__(self, bus: EventBus) -> None:
        self.full_status: Callable[[], dict[str, Any]] = dict
        self.model_status: Callable[[str], dict[str, Any]] = lambda alias: {"alias": alias}
        self.server_status: Callable[[], dict[str, Any]] = lambda: {"status": "ready"}
        self.closed = asyncio.Event()
        self._subscribers: set[_Subscriber] = set()
        self._ids = itertools.count(1)
        self._touched: set[str] = set()
        self._flush: asyncio.TimerHandle | None = None
        self._shown: dict[str, str] = {}
        self._server_shown = "ready"
        bus.subscribe(self._on_event)

    @property
    def subscribers(self) -> int:
        return len(self._subscribers)

    async def stream(self) -> AsyncIterator[dict[str, Any]]:
        """A full picture, then what changes, until the router stops."""
        subscriber = _Subscriber()
        subscriber.overflowed = True
        subscriber.wake.set()
        self._subscribers.add(subscriber)
        try:
            while not self.closed.is_set() or subscriber.backlog:
                for sent in self._take(subscriber):
                    yield sent.sse()
                if not self.closed.is_set() and not await _woken(subscriber.wake, HEARTBEAT_S):
                    yield self._sent("heartbeat", {"timestamp": time.time()}).sse()
        finally:
            self._subscribers.discard(subscriber)

    def server_update(self) -> None:
        """Tell the server's status, if it is another one than last time."""
        body = self.server_status()
        if body["status"] != self._server_shown:
            self._server_shown = body["status"]
            self._broadcast(self._sent("server_update", body))

    async def closes_within(self, timeout_s: float) -> bool:
        """Sleep, but not into the end."""
        return await _woken(self.closed, timeout_s)

    def close(self) -> None:
        """End every stream after what it still has to send."""
        self.closed.set()
        for subscriber in self._subscribers:
            subscriber.wake.set()
        if self._flush is not None:
            self._flush.cancel()

    def _take(self, subscriber: _Subscriber) -> list[Sent]:
        subscriber.wake.clear()
        if subscriber.overflowed:
            subscriber.overflowed = False
            return [self._sent("full_status", self.full_status())]
        taken = list(subscriber.backlog)
        subscriber.backlog.clear()
        return taken

    def _on_event(self, event: Event) -> None:
        if isinstance(event, StatusChanged):
            self._update(event.alias)
            self.server_update()
        elif isinstance(event, Touched) and self._subscribers:
            self._touched.add(event.alias)
            if self._flush is None:
                self._flush = asyncio.get_running_loop().call_later(TOUCH_S, self._flush_touched)

    def _flush_touched(self) -> None:
        self._flush = None
        touched, self._touched = self._touched, set()
        for alias in touched:
            self._update(alias)
        self.server_update()

    def _update(self, alias: str) -> None:
        if not self._subscribers:
            return
        data = json.dumps(self.model_status(alias))
        if self._shown.get(alias) == data:
            return
        self._shown[alias] = data
        self._broadcast(Sent(next(self._ids), "model_update", data))

    def _broadcast(self, sent: Sent) -> None:
        for subscriber in self._subscribers:
            subscriber.push(sent)

    def _sent(self, name: str, body: dict[str, Any]) -> Sent:
        return Sent(next(self._ids), name, json.dumps(body))


async def _woken(event: asyncio.Event, timeout_s: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), timeout_s)
    except asyncio.TimeoutError:  # not the built-in one on Python 3.10
        return False
    return True
