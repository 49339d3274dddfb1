"""Requests that take their turn: many that come at once keep the event loop from nobody else."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable

AT_ONCE = 4
"""That begin in one turn of the event loop: the router's own answers take a quarter of a millisecond each,
some of them milliseconds."""

Begin = Callable[[], None]


class Turns:
    """Who asks for the same path as others waits for those before; other paths go in between."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[Begin]] = OrderedDict()
        self._left = AT_ONCE

    def take(self, path: str, begin: Begin) -> bool:
        """Whether it may begin now; else `begin` is called later."""
        if self._waiting or not self._left:
            self._waiting.setdefault(path, deque()).append(begin)
            return False
        self._count()
        return True

    def _count(self) -> None:
        if self._left == AT_ONCE:
            asyncio.get_running_loop().call_soon(self._next_turn)
        self._left -= 1

    def _next_turn(self) -> None:
        self._left = AT_ONCE
        while self._waiting and self._left:
            self._count()
            path, same = self._waiting.popitem(last=False)
            begin = same.popleft()
            if same:
                self._waiting[path] = same
            begin()
