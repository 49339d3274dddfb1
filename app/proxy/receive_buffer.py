"""What a client has sent and nobody has taken yet: it is counted, and there is an end to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from app.proxy.loop_turns import BODIES, LoopTurns
from app.proxy.request_head import KnownHeads, RequestHead
from app.proxy.request_memory_limit import ClientMemory
from app.proxy.request_reader import BodyPart, RequestReader

MAX_AHEAD_BYTES = 65536
"""What may wait behind a request that is answered, before nothing more is read. Until then it is noticed that
the client leaves."""


Event = RequestHead | BodyPart


def _nothing() -> None:
    """Of a connection that is gone."""


class ReceiveBuffer:
    """Of one connection. A head, the end of a sized body and each part of a chunked one need a turn, of those
    that all connections share: what follows them takes time, or reading them does."""

    __slots__ = (
        "_counted",
        "_event",
        "_go_on",
        "_group",
        "_has_moved",
        "_has_turn",
        "_heads",
        "_is_new",
        "_is_paused",
        "_memory",
        "_transport",
        "_turns",
        "_waits",
        "reader",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        memory: ClientMemory,
        heads: KnownHeads,
        turns: LoopTurns,
        go_on: Callable[[], None],
    ) -> None:
        """`go_on` is called when there is an event whose turn has come."""
        self._transport, self._memory = transport, memory
        self._heads, self.reader = heads, RequestReader(heads)
        self._turns, self._go_on = turns, go_on
        self._is_paused = self._has_moved = False
        self._counted = 0
        self._event: Event | None = None
        """The next one, where it was read before its turn came."""
        self._waits, self._is_new = False, True
        """`_waits`: for a turn, which comes."""
        self._has_turn = False
        """One came, and was not used yet: it is for what is next."""
        self._group = ""

    # --- in

    def feed(self, data: bytes) -> None:
        self.reader.feed(data)

    @property
    def is_between(self) -> bool:
        """No part of a request has come that has not been taken."""
        return self._event is None and self.reader.is_between

    @property
    def in_body(self) -> bool:
        """The next event is a part of a body."""
        return self.reader.in_body if self._event is None else isinstance(self._event, BodyPart)

    def has_stalled(self) -> bool:
        """A request has begun, and since this was asked last no head was complete and no body went on."""
        has_moved, self._has_moved = self._has_moved, False
        return not (has_moved or self.is_between)

    # --- out

    def next(self) -> Event | None:
        """As the reader's, of what has its turn. The first event of a body shares that of its head, where it
        comes with it."""
        if self._waits or (self._event is None and self.reader.has_chunks and not self._gets_turn(BODIES)):
            return None
        event, self._event = self._event or self.reader.next(), None
        if event is None:
            return None
        self._has_moved = True
        if isinstance(event, RequestHead):
            self._group, has_more = self._turns.group_of(event.path), event.length != 0
        elif event.is_chunked:
            self._has_turn = False
            return event
        elif not event.last:
            return event
        else:
            has_more = False
        if not self._gets_turn(self._group):
            self._event = event
            return None
        self._has_turn, self._is_new = has_more, False
        return event

    def _gets_turn(self, group: str) -> bool:
        if not self._has_turn:
            self._has_turn = self._turns.take(group, self._on_turn, is_new=self._is_new)
            self._waits = not self._has_turn
        return self._has_turn

    def _on_turn(self) -> bool:
        if not self._waits:  # its client has left
            return False
        self._waits, self._has_turn = False, True
        self._go_on()
        return True

    # --- the rest

    def settle(self, *, is_taken: bool, beside: int) -> bool:
        """What cannot be dealt with yet is left in the client's hands, but for a little.

        `is_taken`: what waits would be dealt with if it were complete; `beside`: bytes that wait elsewhere.
        False: there is no place for what has come, and it is the beginning of a request.
        """
        if self._event is not None:
            is_taken, beside = False, beside + len(self._event.raw)
        elif self._waits:
            is_taken = False
        else:
            self._has_turn = False
        waiting, has_place = self.reader.waiting + beside, True
        if not (waiting or self._counted or self._is_paused):  # the usual case
            return True
        if waiting != self._counted:
            has_place = self._memory.count(waiting - self._counted) or waiting < self._counted
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
        self._counted, self._event, self.reader = 0, None, RequestReader(self._heads)
        self._waits = False
        self._go_on = _nothing  # each holds the other
