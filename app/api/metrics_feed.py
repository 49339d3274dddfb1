"""The live figures: one snapshot every 2 s for everybody who looks, and no work while nobody does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from app.api.event_channel import HEARTBEAT_S, Channel

EVERY_S = 2.0


class MetricsFeed:
    """Serves `/metrics/stream`."""

    def __init__(self, heartbeat_s: float = HEARTBEAT_S) -> None:
        self.snapshot: Callable[[], dict[str, Any]] = dict
        self._channel = Channel(lambda: ("metrics", self.snapshot()), heartbeat_s)
        self._timer: asyncio.TimerHandle | None = None

    async def stream(self) -> AsyncIterator[bytes]:
        if self._timer is None:
            self._again()
        async for event in self._channel.stream():
            yield event

    def tick(self) -> None:
        """A snapshot to everybody. Goes on by itself while somebody reads."""
        self._timer = None
        if self._channel.readers and not self._channel.closed:
            self._channel.tell("metrics", json.dumps(self.snapshot()))
            self._again()

    def hang_up(self) -> None:
        self._channel.hang_up()

    def close(self) -> None:
        self._channel.close()
        if self._timer is not None:
            self._timer.cancel()

    def _again(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(EVERY_S, self.tick)
