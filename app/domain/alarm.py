"""The one timer: a call that is wanted at a time, and that may be wanted at another one later."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol


class _Handle(Protocol):
    def cancel(self) -> None: ...


class Timers(Protocol):
    """The part of an event loop that an alarm needs; times in seconds of its own clock."""

    def time(self) -> float: ...

    def call_at(self, when: float, callback: Callable[[], object], /) -> _Handle: ...


LATE_S = 1.0
"""Of a timer: this program stood still, stopped by a signal or with its machine."""

READ_FIRST_S = 0.25
"""A late alarm waits for this long, so that what came meanwhile is read before it rings."""


class Alarm:
    """Calls `ring` once, at the time that was set last, on the event loop.

    Putting it off is cheap, however often that happens: the loop's timer stays where it is, and is set anew
    when it fires too early. A timer cancelled and made for each byte of a stream would fill the loop's heap.
    """

    __slots__ = ("_handle", "_ring", "_timer_at", "_timers", "at")

    def __init__(self, ring: Callable[[], object], timers: Timers | None = None) -> None:
        """`timers`: the running event loop, unless a test moves the clock."""
        self._ring, self._timers = ring, timers
        self.at: float | None = None
        """When it rings; None while it is not set. To be read."""
        self._handle: _Handle | None = None
        self._timer_at = 0.0

    def set(self, when: float) -> None:
        """Ring at `when`, in the event loop's time, and at no time set before. A past one is: very soon."""
        self.at = when
        if self._handle is None or when < self._timer_at:
            self._start_timer(when)

    def set_within(self, delay_s: float) -> None:
        """Ring in `delay_s` seconds, or earlier if that was set already."""
        when = self._loop().time() + delay_s
        if self.at is None or when < self.at:
            self.set(when)

    def cancel(self) -> None:
        """Do not ring. It may be set again. Safe to call twice."""
        self.at = None
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _loop(self) -> Timers:
        return self._timers if self._timers is not None else asyncio.get_running_loop()

    def _start_timer(self, when: float) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._handle, self._timer_at = self._loop().call_at(when, self._fired), when

    def _fired(self) -> None:
        """Compares coarsely with the clock: uvloop's timers fire up to half a millisecond early."""
        self._handle = None
        at, now = self.at, self._loop().time()
        if at is None:
            return
        if now - self._timer_at > LATE_S:  # uvloop rings before it reads
            self.at = max(at, now + READ_FIRST_S)
            self._start_timer(self.at)
            return
        if at > self._timer_at:
            self._start_timer(at)
        else:
            self.at = None
            self._ring()
