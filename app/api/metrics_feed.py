"""The live figures: one snapshot every 2 s for everybody who looks, and no work while nobody does."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from app.api.sse_broadcast import HEARTBEAT_S, Broadcast
from app.domain.alarm import Alarm

EVERY_S = 2.0


class MetricsFeed:
    """Serves `/metrics/stream`."""

    def __init__(self, snapshot: Callable[[], dict[str, Any]], heartbeat_s: float = HEARTBEAT_S) -> None:
        self._snapshot = snapshot
        self._channel = Broadcast(lambda: ("metrics", snapshot()), heartbeat_s)
        self._next = Alarm(self.tick)

    async def stream(self) -> AsyncIterator[bytes]:
        self._next.set_within(EVERY_S)
        async for event in self._channel.stream():
            yield event

    def tick(self) -> None:
        """A snapshot to everybody. Goes on by itself while somebody reads."""
        if self._channel.readers and not self._channel.closed:
            self._channel.tell("metrics", json.dumps(self._snapshot()))
            self._next.set_within(EVERY_S)

    def disconnect_all(self) -> None:
        self._channel.disconnect_all()

    def close(self) -> None:
        self._channel.close()
        self._next.cancel()
