"""What a client has sent and nobody has taken yet: it is counted, and there is an end to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from app.proxy.loop_turns import (
    BODIES,
    LARGE_BODIES,
    LARGE_BODY_BYTES,
    LARGE_HEADS,
    LARGE_READ_BYTES,
    READS,
    LoopTurns,
)
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
    that all connections share, and so does reading on after much was read: what follows takes time."""

    __slots__ = (
        "_counted",
        "_go_on",
        "_group",
        "_has_moved",
        "_has_place",
        "_has_read_much",
        "_has_turn",
        "_heads",
        "_is_new",
        "_is_paused",
        "_memory",
        "_rests",
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
        self._counted, self._has_place = 0, True
        self._waits, self._is_new = False, True
        """`_waits`: for a turn, which comes."""
        self._has_turn = False
        """One came, and was not used yet: it is for what is next."""
        self._has_read_much = self._rests = False
        """`_rests`: nothing more is read before a turn comes for that."""
        self._group = ""

    # --- in

    def feed(self, data: bytes) -> None:
        self.reader.feed(data)
        self._has_read_much = len(data) >= LARGE_READ_BYTES

    @property
    def is_between(self) -> bool:
        """No part of a request has come that has not been taken."""
        return self.reader.is_between

    @property
    def in_body(self) -> bool:
        """The next event is a part of a body."""
        return self.reader.in_body

    def has_stalled(self) -> bool:
        """A request has begun, and since this was asked last no head was complete and no body went on, and
        that is up to the client."""
        has_moved, self._has_moved = self._has_moved, False
        return not (has_moved or self._waits or self._rests or self.is_between)

    # --- out

    def next(self) -> Event | None:
        """As the reader's, of what has its turn: it is read when that has come. The first event of a body
        that is not large shares that of its head, where it comes with it."""
        if self._waits or not (self._has_turn or self._needs_none() or self._gets_turn()):
            return None
        event = self.reader.next()
        if event is None:
            return None
        self._has_moved = True
        if isinstance(event, RequestHead):
            is_large = event.length is not None and event.length > LARGE_BODY_BYTES
            self._has_turn, self._is_new = event.length != 0 and not is_large, False
            if is_large:
                self._group = LARGE_BODIES
        elif event.last or event.is_chunked:
            self._has_turn = False
        return event

    def _needs_none(self) -> bool:
        """What waits is not much work: a piece of a sized body that is not its end, or of a small head."""
        if self.reader.has_chunks:
            self._group = BODIES
        elif not self.reader.has_end:
            path = self.reader.path()
            if path is None:
                return True
            self._group = self._turns.group_of(path) if path else LARGE_HEADS
        return False

    def _gets_turn(self) -> bool:
        self._has_turn = self._turns.take(self._group, self._on_turn, can_wait=self._is_new)
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
        False: there is no place for what has come, and it is the beginning of a request. One that waits for
        its turn keeps what it has, but for a large head: of many that are put off none would be refused.
        """
        if not self._waits:
            self._has_turn = False
        waiting = self.reader.waiting + beside
        if not (waiting or self._counted or self._is_paused or self._has_read_much):  # the usual case
            return True
        if waiting != self._counted or not self._has_place:
            self._has_place = self._memory.count(waiting - self._counted) or waiting < self._counted
            self._counted = waiting
        is_left = self._waits or not is_taken
        is_full = is_left and (self.reader.waiting > MAX_AHEAD_BYTES or not self._has_place)
        self._pause(is_full or self._has_to_rest())
        return self._has_place or not is_taken or (self._waits and self._group != LARGE_HEADS)

    def _has_to_rest(self) -> bool:
        if self._has_read_much and not self._rests:
            self._rests = not self._turns.take(READS, self._on_rested, can_wait=True)
        self._has_read_much = False
        return self._rests

    def _on_rested(self) -> bool:
        if not self._rests:  # its client has left
            return False
        self._rests = False
        self._go_on()
        return True

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
        self._waits = self._rests = self._has_read_much = False
        self._go_on = _nothing  # each holds the other
