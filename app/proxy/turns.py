"""Requests that take their turn: many that come at once keep the event loop from nobody else."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping

TURN_COST = 16
"""Of what goes on in one turn of the event loop: a few milliseconds."""

OWN_COST, MODEL_COST = 4, 2
"""Of a request that the router answers itself, which takes a quarter of a millisecond, and some of them
milliseconds; and of one to a model."""

MANY = 8
"""Connections in a row, after which what new ones ask is put off."""

PUT_OFF_S = 0.02
"""Then some of it goes on all the same: a connection takes a tenth of a millisecond to accept."""

_IN_A_ROW_TURNS = 2
"""A connection that comes within so many turns after another one comes with it."""

GoOn = Callable[[], bool]
"""False: there was nothing to go on with."""


class _Waiting:
    """Who asks for the same path waits for those before; the paths go round."""

    def __init__(self) -> None:
        self._by_path: OrderedDict[str, deque[GoOn]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._by_path)

    def add(self, path: str, go_on: GoOn) -> None:
        self._by_path.setdefault(path, deque()).append(go_on)

    def next(self) -> tuple[str, GoOn]:
        path, same = self._by_path.popitem(last=False)
        go_on = same.popleft()
        if same:
            self._by_path[path] = same
        return path, go_on

    def take_over(self, others: _Waiting) -> None:
        for path, same in others._by_path.items():
            self._by_path.setdefault(path, deque()).extend(same)
        others._by_path.clear()


class Turns:
    """Only some requests go on in a turn of the event loop, of each path one after the other.

    While many connect, what they ask is put off for a little: uvloop accepts one connection in each of its
    turns, so that the last of them would wait for all that those before it ask.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.costs: Mapping[str, int] = {}
        """By the path, of those that there are: all others wait together, or each would go in between."""
        self._waiting, self._new = _Waiting(), _Waiting()
        self._left = TURN_COST
        self._is_scheduled = False
        self._now = now
        self._in_a_row = self._row_turns = 0
        self._put_off_until: float | None = None

    def connected(self) -> None:
        """Somebody has."""
        self._in_a_row += 1
        self._row_turns = _IN_A_ROW_TURNS
        self._schedule()

    def take(self, path: str, go_on: GoOn, *, is_new: bool) -> bool:
        """Whether it may go on now; else `go_on` is called later. `is_new`: nothing was asked on that
        connection before."""
        path = path if path in self.costs else ""
        is_put_off = is_new and self._in_a_row >= MANY
        if is_put_off or self._waiting or self._left <= 0:
            (self._new if is_put_off else self._waiting).add(path, go_on)
            self._schedule()
            return False
        self._pay(path)
        return True

    def end(self) -> None:
        """All that waits goes on now."""
        self._waiting.take_over(self._new)
        while self._waiting:
            self._waiting.next()[1]()

    def _pay(self, path: str) -> None:
        self._left -= self.costs.get(path, OWN_COST)
        if self._left <= 0:
            self._schedule()

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._is_scheduled, self._left = False, TURN_COST
        self._count_row()
        if self._in_a_row < MANY:
            self._put_off_until = None
            self._waiting.take_over(self._new)
        elif self._put_off_until is None:
            self._put_off_until = self._now() + PUT_OFF_S
        elif self._now() >= self._put_off_until:
            self._put_off_until = None
            self._let_go_on(self._new)
        self._let_go_on(self._waiting)
        if self._waiting:
            self._schedule()

    def _count_row(self) -> None:
        if self._row_turns:
            self._row_turns -= 1
            self._schedule()
            if not self._row_turns:
                self._in_a_row = 0

    def _let_go_on(self, waiting: _Waiting) -> None:
        while waiting and self._left > 0:
            path, go_on = waiting.next()
            if go_on():
                self._pay(path)
