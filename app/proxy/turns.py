"""Requests that take their turn: many that come at once keep the event loop from nobody else."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection

AT_ONCE = 4
"""That go on in one turn of the event loop: the router's own answers take a quarter of a millisecond each,
some of them milliseconds."""

MANY = 8
"""Connections in a row, after which requests are put off."""

PUT_OFF_S = 0.02
"""Then some go on all the same: a connection takes a tenth of a millisecond to accept."""

_IN_A_ROW_TURNS = 2
"""A connection that comes within so many turns after another one comes with it."""

GoOn = Callable[[], None]


class Turns:
    """Who asks for the same path as others waits for those before; other paths go in between.

    While many connect, requests are put off for a little: uvloop accepts one connection in each of its turns,
    so that the last of them would wait for all that those before it ask.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.paths: Collection[str] = ()
        """Those that there are: all others wait together, or each would be one that goes in between."""
        self._waiting: OrderedDict[str, deque[GoOn]] = OrderedDict()
        self._left = AT_ONCE
        self._is_scheduled = False
        self._now = now
        self._in_a_row = self._row_turns = 0
        self._put_off_until: float | None = None

    def connected(self) -> None:
        """Somebody has."""
        self._in_a_row += 1
        self._row_turns = _IN_A_ROW_TURNS
        self._look_again()

    def take(self, path: str, go_on: GoOn) -> bool:
        """Whether it may go on now; else `go_on` is called later."""
        if self._waiting or self._in_a_row >= MANY or not self._left:
            self._waiting.setdefault(path if path in self.paths else "", deque()).append(go_on)
            self._look_again()
            return False
        self._count()
        return True

    def _count(self) -> None:
        self._left -= 1
        if not self._left:
            self._look_again()

    def _look_again(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._is_scheduled = False
        if self._puts_off():
            return
        self._left = AT_ONCE
        while self._waiting and self._left:
            self._count()
            path, same = self._waiting.popitem(last=False)
            go_on = same.popleft()
            if same:
                self._waiting[path] = same
            go_on()

    def _puts_off(self) -> bool:
        if self._row_turns:
            self._row_turns -= 1
            self._look_again()
            if not self._row_turns:
                self._in_a_row = 0
        if self._in_a_row < MANY:
            self._put_off_until = None
            return False
        if self._put_off_until is None:
            self._put_off_until = self._now() + PUT_OFF_S
        if self._now() < self._put_off_until:
            return True
        self._put_off_until = None
        return False
