"""One event stream for many readers: what is told is rendered once, and a slow reader never grows memory."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Any

from app.domain.alarm import Alarm

BACKLOG = 256
HEARTBEAT_S = 30.0

Snapshot = Callable[[], tuple[str, dict[str, Any]]]
"""The name and the body of the event that tells everything."""


class _Reader:
    def __init__(self) -> None:
        self.backlog: deque[bytes] = deque()
        self.needs_snapshot = True
        self.over = False
        self._waiter: asyncio.Future[None] | None = None

    def push(self, event: bytes) -> None:
        if len(self.backlog) >= BACKLOG:
            self.resync()
        if not self.needs_snapshot:
            self.backlog.append(event)
            self.wake()

    def resync(self) -> None:
        """Everything anew instead of what it has not read yet."""
        self.backlog.clear()
        self.needs_snapshot = True
        self.wake()

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def changed(self) -> None:
        """Waits on a bare future: for hundreds of readers a task each time would cost more than the rest."""
        if self.backlog or self.needs_snapshot or self.over:
            return
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None


class Broadcast:
    """A reader gets the snapshot first, then what is told; the snapshot again when it fell behind."""

    def __init__(self, snapshot: Snapshot, heartbeat_s: float | None = HEARTBEAT_S) -> None:
        self.closed = False
        self._snapshot, self._heartbeat_s = snapshot, heartbeat_s
        self._readers: set[_Reader] = set()
        self._ids = itertools.count(1)
        self._heartbeat = Alarm(self.beat)

    @property
    def readers(self) -> int:
        return len(self._readers)

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Server-sent events, ready to send. Ends with the last that was told before `close`."""
        reader = _Reader()
        reader.over = self.closed
        self._readers.add(reader)
        if self._heartbeat_s is not None:
            self._heartbeat.set_within(self._heartbeat_s)
        try:
            while not reader.over or reader.backlog or reader.needs_snapshot:
                for event in self._take(reader):
                    yield event
                await reader.changed()
        finally:
            self._readers.discard(reader)

    def tell(self, name: str, data: str) -> None:
        """To everybody; `data` is JSON. An event without a name is a message, and has no id either."""
        event = self._event(name, data)
        for reader in self._readers:
            reader.push(event)

    def resync(self) -> None:
        """A fresh snapshot for everybody."""
        for reader in self._readers:
            reader.resync()

    def beat(self) -> None:
        """A sign of life. Goes on by itself while somebody reads."""
        if self._readers and not self.closed and self._heartbeat_s is not None:
            self.tell("heartbeat", json.dumps({"timestamp": time.time()}))
            self._heartbeat.set_within(self._heartbeat_s)

    def close(self) -> None:
        """End every stream after what it still has to send, also those that begin later."""
        self.closed = True
        self.disconnect_all()
        self._heartbeat.cancel()

    def disconnect_all(self) -> None:
        """End the streams of now. Who is still welcome comes again by itself."""
        for reader in self._readers:
            reader.over = True
            reader.wake()

    def _take(self, reader: _Reader) -> list[bytes]:
        if reader.needs_snapshot:
            reader.needs_snapshot = False
            name, body = self._snapshot()
            return [self._event(name, json.dumps(body))]
        taken = list(reader.backlog)
        reader.backlog.clear()
        return taken

    def _event(self, name: str, data: str) -> bytes:
        if not name:
            return f"data: {data}\n\n".encode()
        return f"id: {next(self._ids)}\nevent: {name}\ndata: {data}\n\n".encode()
