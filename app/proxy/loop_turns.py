"""Requests that take their turn: many that come at once keep the event loop from nobody else."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping

from app.proxy.routes import ENDPOINTS, TUNNEL, group_of

OWN_COST, MODEL_COST, PART_COST, READ_COST = 8, 2, 4, 2
"""Of a request that the router answers itself, of one to a model, until it waits for that, of a part of a
chunked body, and of a read of `LARGE_READ_BYTES` or more. To a model takes an eighth of a millisecond. An own
one takes half of one, but a login three times that, and a list of many models more; a part takes one where
each byte has a chunk of its own. A read takes a third of one: 256 KB, into memory that is new."""

LARGE_BODY_COST, LARGE_HEAD_COST = 8, 16
"""Of the end of a body over `LARGE_BODY_BYTES`: 64 KB of small fields take five milliseconds to read. And of
a head that is large, or will be refused: a path of 60 KB takes twelve where it is decoded."""

LARGE_BODY_BYTES = 16384

LARGE_READ_BYTES = 65536
"""Where a client sends as fast as that, uvloop reads up to 32 times 256 KB of it in one turn."""

LONGEST_PATH = 256
"""Of one that is known, in any spelling: of others, which may have 64 KB, no more is looked at."""

BODIES, LARGE_BODIES, LARGE_HEADS, READS = "chunked bodies", "large bodies", "large heads", "large reads"
"""The groups of their parts, of their ends, and of those. No path has a blank in it."""

TURN_COST = 16
"""Of what may go on in one turn of the event loop: two own requests, eight to models, four parts, or 2 MB."""

ROW_COST = 4
"""The same while connections come in a row: uvloop accepts one in each turn, so that the last one waits for
all these turns."""

FEW_IN_A_ROW, MANY_IN_A_ROW = 2, 8
"""Connections, from which on turns are short; and from which on large reads are put off, and what new ones
ask. A browser opens six at once."""

PUT_OFF_S = 0.02
"""So often `ROW_COST` of the reads that are put off, and of the requests, goes on all the same: 25 MB of
bodies in a second, whatever is asked. Meanwhile 200 connections are accepted."""

BURST_S = 1.0
"""A row that lasts longer is no burst, which waits to be accepted (a system keeps 2,048 connections, which
take a fifth of a second), but steady load. Then nothing is put off any more."""

_IN_A_ROW_TURNS = 2
"""A connection that comes within so many turns after another one comes with it."""

GoOn = Callable[[], bool]
"""False: there was nothing to go on with."""


def costs_of(own_paths: Iterable[str]) -> Mapping[str, int]:
    """Of all groups that there are. `own_paths`: what the router answers itself."""
    return {
        **{group_of(path): OWN_COST for path in own_paths},
        **{endpoint.path: MODEL_COST for endpoint in ENDPOINTS},
        group_of(TUNNEL): MODEL_COST,
        BODIES: PART_COST,
        LARGE_BODIES: LARGE_BODY_COST,
        LARGE_HEADS: LARGE_HEAD_COST,
        READS: READ_COST,
    }


class _Waiting:
    """Who is of the same group waits for those before; the groups go round."""

    def __init__(self) -> None:
        self._by_group: OrderedDict[str, deque[GoOn]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._by_group)

    def __len__(self) -> int:
        return sum(map(len, self._by_group.values()))

    def add(self, group: str, go_on: GoOn) -> None:
        self._by_group.setdefault(group, deque()).append(go_on)

    def next(self) -> tuple[str, GoOn]:
        group, same = self._by_group.popitem(last=False)
        go_on = same.popleft()
        if same:
            self._by_group[group] = same
        return group, go_on

    def take_over(self, others: _Waiting) -> None:
        for group, same in others._by_group.items():
            self._by_group.setdefault(group, deque()).extend(same)
        others._by_group.clear()


class LoopTurns:
    """Only some requests go on in a turn of the event loop, of each group one after the other.

    While many connect, what they ask is put off for a little: uvloop accepts one connection in each of its
    turns, so that the last of them would wait for all that those before it ask.
    """

    def __init__(self, costs: Mapping[str, int], now: Callable[[], float] = time.monotonic) -> None:
        """`costs`: by group. What is of none of them waits together, or each path that somebody makes up
        would go in between."""
        self._costs, self._now = costs, now
        self._waiting, self._put_off, self._put_off_reads = _Waiting(), _Waiting(), _Waiting()
        self._left = TURN_COST
        self._is_scheduled = False
        self._in_a_row = self._row_turns = 0
        self._row_began = 0.0
        self._put_off_until: float | None = None

    def connected(self) -> None:
        """A client has connected."""
        if not self._in_a_row:
            self._row_began = self._now()
        self._in_a_row += 1
        self._row_turns = _IN_A_ROW_TURNS
        self._schedule()

    def group_of(self, path: str) -> str:
        """That of requests for it; empty for what is not known."""
        group = path if path in self._costs else group_of(path[:LONGEST_PATH])
        return group if group in self._costs else ""

    def take(self, group: str, go_on: GoOn, *, can_wait: bool) -> bool:
        """Whether it may go on now; else `go_on` is called later. `can_wait`: until nobody connects any more,
        if many do. Either nothing was asked on that connection before, or it is but more of a large body."""
        is_put_off = can_wait and self._puts_off()
        if is_put_off or self._waiting or self._left <= 0:
            put_off = self._put_off_reads if group == READS else self._put_off
            (put_off if is_put_off else self._waiting).add(group, go_on)
            self._schedule()
            return False
        self._pay(group)
        return True

    def end(self) -> None:
        """All that waits goes on now, each of it once: the rest of a body waits again."""
        waiting, self._waiting = self._waiting, _Waiting()
        waiting.take_over(self._put_off)
        waiting.take_over(self._put_off_reads)
        while waiting:
            self._call(waiting.next()[1])

    @property
    def waiting(self) -> int:
        """Requests, parts of bodies, and reads."""
        return len(self._waiting) + len(self._put_off) + len(self._put_off_reads)

    # --- inside

    def _puts_off(self) -> bool:
        return self._in_a_row >= MANY_IN_A_ROW and self._now() < self._row_began + BURST_S

    def _pay(self, group: str) -> None:
        """What is left is for all turns together until it is used up: then one has to come."""
        self._left -= self._costs.get(group, OWN_COST)
        if self._left <= 0:
            self._schedule()

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._is_scheduled = False
        self._count_row()
        self._left = TURN_COST if self._in_a_row < FEW_IN_A_ROW else ROW_COST
        if not self._puts_off():
            self._put_off_until = None
            self._waiting.take_over(self._put_off)
            self._waiting.take_over(self._put_off_reads)
        elif self._put_off_until is None:
            self._put_off_until = self._now() + PUT_OFF_S
        elif self._now() >= self._put_off_until:
            self._put_off_until = None
            self._let_go_on(self._put_off_reads)
            self._left = ROW_COST
            self._let_go_on(self._put_off)
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
            group, go_on = waiting.next()
            if self._call(go_on):
                self._pay(group)

    @staticmethod
    def _call(go_on: GoOn) -> bool:
        try:
            return go_on()
        except Exception as error:  # a bug of ours: the others go on
            context = {"message": "a request could not go on", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)
            return True
