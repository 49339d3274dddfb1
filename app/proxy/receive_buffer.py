"""What a client has sent and nobody has taken yet: it is counted, and there is an end to it."""

from __future__ import annotations

import asyncio

from app.proxy.request_head import KnownHeads, RequestHead
from app.proxy.request_memory_limit import ClientMemory
from app.proxy.request_reader import BodyPart, RequestReader

MAX_AHEAD_BYTES = 65536
"""What may wait behind a request that is answered, before nothing more is read. Until then it is noticed that
the client leaves."""


class ReceiveBuffer:
    """Of one connection."""

    __slots__ = (
        "_counted",
        "_has_moved",
        "_heads",
        "_is_paused",
        "_memory",
        "_transport",
        "reader",
    )

    def __init__(self, transport: asyncio.Transport, memory: ClientMemory, heads: KnownHeads) -> None:
        self._heads, self.reader = heads, RequestReader(heads)
        self._transport, self._memory = transport, memory
        self._is_paused = self._has_moved = False
        self._counted = 0

    # --- in

    def feed(self, data: bytes) -> None:
        self.reader.feed(data)

    def has_stalled(self) -> bool:
        """A request has begun, and since this was asked last no head was complete and no body went on."""
        has_moved, self._has_moved = self._has_moved, False
        return not (has_moved or self.reader.is_between)

    # --- out

    def next(self) -> RequestHead | BodyPart | None:
        """As the reader's."""
        event = self.reader.next()
        self._has_moved = self._has_moved or event is not None
        return event

    # --- the rest

    def settle(self, *, is_taken: bool, beside: int) -> bool:
        """What cannot be dealt with yet is left in the client's hands, but for a little.

        `is_taken`: what waits would be dealt with if it were complete; `beside`: bytes that wait elsewhere.
        False: there is no place for what has come, and it is the beginning of a request.
        """
        waiting, has_place = self.reader.waiting + beside, True
        if not (waiting or self._counted or self._is_paused):  # the usual case
            return True
        if waiting != self._counted:
            has_place = self._memory.count(waiting - self._counted)
            self._counted = waiting
        self._pause(not is_taken and (self.reader.waiting > MAX_AHEAD_BYTES or not has_place))
        return has_place or not is_taken

    def _pause(self, is_paused: bool) -> None:
        if is_paused == self._is_paused or self._transport.is_closing():
            return
        self._is_paused = is_paused
        if is_paused:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def close(self) -> None:
        """The connection is gone."""
        self._memory.count(-self._counted)
        self._counted, self.reader = 0, RequestReader(self._heads)
