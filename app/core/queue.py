"""Tickets and the heap in which they wait, in front of a model's slots."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import NamedTuple

from app.domain.errors import QueueFull, RouterError
from app.domain.priority import Priority, waiting_handicap_s
from app.domain.request_fingerprint import Fingerprint, Work
from app.domain.ticket_owner import TicketOwner
from app.domain.views import QueueHead

SWEEP_OVER = 64

_order = itertools.count()


class TicketState(Enum):
    NEW = "in no queue yet"
    WAITING = "waiting"
    GRANTED = "granted"
    DONE = "done"


class Ticket:
    """A request's place: first in a heap, then in a slot, then nowhere. Its key never changes."""

    __slots__ = ("_error", "_handicap_s", "arrived", "granted_at", "is_replay", "key", "lost_in_crash",
                 "order", "owner", "priority", "replays_left", "runs_alone", "slots", "state")  # fmt: skip

    def __init__(self, priority: Priority, arrived: float, aging_s: float) -> None:
        self.priority = priority
        self.arrived = arrived
        self._handicap_s = waiting_handicap_s(priority, aging_s)
        self.key = arrived + self._handicap_s
        self.order = next(_order)
        self.state = TicketState.NEW
        self.is_replay = False
        self.replays_left = 1  # for the end of its process that nobody can be blamed for
        self.runs_alone = False  # nothing else may run beside it
        self.lost_in_crash = False  # its process ended by itself
        self.granted_at = 0.0
        self.slots = 1  # of llama-server's, the most that its request holds at the same time
        self.owner: TicketOwner | None = None
        self._error: RouterError | None = None

    def __lt__(self, other: Ticket) -> bool:
        return (self.key, self.order) < (other.key, other.order)

    async def wait(self, timeout_s: float) -> bool:
        """True once granted, False after `timeout_s`. Raises the error that ended the wait instead."""
        if self.state is TicketState.WAITING:
            self.owner = waiter = _Waiter()
            try:
                await asyncio.wait((waiter.resolved,), timeout=timeout_s)
            finally:
                self.owner = None
        if self._error is not None:
            raise self._error
        return self.state is TicketState.GRANTED

    def for_replay(self) -> Ticket:
        """A fresh ticket at the old place."""
        fresh = Ticket(self.priority, self.arrived, 0.0)
        fresh.key, fresh.order, fresh.is_replay = self.key, self.order, True
        fresh._handicap_s, fresh.slots = self._handicap_s, self.slots
        fresh.replays_left = self.replays_left - (not self.lost_in_crash)
        return fresh

    def set_apart(self, now: float) -> None:
        """It runs alone, and after all that waits by now."""
        self.runs_alone = True
        self.key = now + self._handicap_s

    def grant(self, now: float) -> None:
        self.state, self.granted_at = TicketState.GRANTED, now
        if self.owner is not None:
            self.owner.granted()

    def refuse(self, error: RouterError) -> None:
        self.state, self._error = TicketState.DONE, error
        if self.owner is not None:
            self.owner.refused(error)


class GivenUp(NamedTuple):
    """A request that nobody wants any more, and for which llama-server may still work."""

    ticket: Ticket
    since: float
    fingerprint: Fingerprint | None


class _Waiter:
    """Owns the ticket of a task that waits."""

    def __init__(self) -> None:
        self.resolved: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def quiet_since(self) -> None:
        """It asks nothing."""

    @property
    def generated(self) -> None:
        """Of nothing."""

    def granted(self) -> None:
        if not self.resolved.done():
            self.resolved.set_result(None)

    def refused(self, error: RouterError) -> None:
        self.granted()

    def cut(self) -> None:
        """It has no slot yet."""

    def asks_for(self) -> Work | None:
        """For nothing."""
        return None


class RequestQueue:
    """The waiting tickets of one model, and the count of those in its slots.

    Ordered by key, then arrival. A ticket that leaves is only marked, unless it stands on top: what is on top
    waits. The heap is swept when more than half of it is dead, so that leaving costs nothing and memory stays
    in proportion to who is really waiting.
    """

    def __init__(self, slots: int, max_waiting: int) -> None:
        self.slots = slots
        self.max_waiting = max_waiting
        self.waiting_by_level = [0, 0, 0]
        self.running: set[Ticket] = set()
        self.given_up: list[GivenUp] = []
        """Their places stay taken until llama-server has noticed; nothing else waits for them."""
        self._heap: list[Ticket] = []
        self._has_one_alone = False  # in a slot: a ticket beside which nothing may run
        self._service_s = 0.0

    @property
    def waiting(self) -> int:
        high, normal, low = self.waiting_by_level
        return high + normal + low

    @property
    def has_waiting(self) -> bool:
        return bool(self._heap)

    @property
    def in_flight(self) -> int:
        return len(self.running)

    @property
    def at_llama_server(self) -> set[Ticket]:
        """All for which it may work."""
        return self.running.union(given_up.ticket for given_up in self.given_up)

    @property
    def best_in_flight(self) -> Priority | None:
        return min((t.priority for t in self.running), default=None)

    def push(self, ticket: Ticket) -> None:
        """Raises `QueueFull` when as many wait as may. A replay has been let in once already."""
        if self.waiting >= self.max_waiting and not ticket.is_replay:
            raise QueueFull(
                f"{self.waiting} requests wait for this model already; try again later, or raise "
                "system.max_queue_size_per_model",
                retry_after_s=self.expected_wait_s(),
            )
        ticket.state = TicketState.WAITING
        heapq.heappush(self._heap, ticket)
        self.waiting_by_level[ticket.priority] += 1

    def peek(self) -> Ticket | None:
        return self._heap[0] if self._heap else None

    @property
    def head(self) -> QueueHead | None:
        ticket = self.peek()
        if ticket is None:
            return None
        return QueueHead(ticket.key, ticket.priority, ticket.arrived, ticket.order)

    def grant(self, now: float) -> Ticket | None:
        """Give a free slot to the next ticket, if there are both."""
        if self._is_full or (ticket := self.peek()) is None:
            return None
        if self._has_one_alone or (ticket.runs_alone and (self.running or self.given_up)):
            return None
        self._has_one_alone = ticket.runs_alone
        self.waiting_by_level[ticket.priority] -= 1
        self.running.add(ticket)
        heapq.heappop(self._heap)
        self._clear_top()
        ticket.grant(now)
        return ticket

    def try_grant(self, ticket: Ticket, now: float) -> bool:
        """As `push` and `grant`, where it would be granted at once; else nothing happens."""
        if self._heap or self._has_one_alone or self._is_full or ticket.runs_alone:
            return False
        self.running.add(ticket)
        ticket.grant(now)
        return True

    def finish(self, ticket: Ticket, now: float) -> bool:
        """Take the ticket back, whatever became of it: one that never entered as well. True if it held a
        slot. Safe to call twice."""
        held = ticket.state is TicketState.GRANTED
        if held:
            self.running.discard(ticket)
            self._has_one_alone = self._has_one_alone and bool(self.running or self.given_up)
            took = now - ticket.granted_at
            self._service_s = took if not self._service_s else 0.8 * self._service_s + 0.2 * took
        elif ticket.state is TicketState.WAITING:
            self.waiting_by_level[ticket.priority] -= 1
        ticket.state = TicketState.DONE
        self._clear_top()
        if len(self._heap) > SWEEP_OVER:
            self._sweep()
        return held

    def give_up(self, ticket: Ticket, now: float, fingerprint: Fingerprint | None) -> None:
        """It is about to be finished, and its place to stay taken until `free`."""
        self.given_up.append(GivenUp(ticket, now, fingerprint))

    def free(self, count: int) -> list[GivenUp]:
        """The places of those that were given up first."""
        freed, self.given_up = self.given_up[:count], self.given_up[count:]
        self._has_one_alone = self._has_one_alone and bool(self.running or self.given_up)
        return freed

    def waiting_tickets(self) -> list[Ticket]:
        """In no order."""
        return [t for t in self._heap if t.state is TicketState.WAITING]

    def set_apart(self, tickets: Iterable[Ticket], now: float) -> None:
        """Of those that wait."""
        for ticket in tickets:
            ticket.set_apart(now)
        heapq.heapify(self._heap)

    def fail_waiting(self, error: RouterError, arrived_by: float = math.inf) -> int:
        """End every wait, of those that arrived by then, with this error; how many there were."""
        failed = [t for t in self.waiting_tickets() if t.arrived <= arrived_by]
        self.fail(failed, error)
        return len(failed)

    def fail(self, failed: Sequence[Ticket], error: RouterError) -> None:
        """End the wait of these."""
        for ticket in failed:
            self.waiting_by_level[ticket.priority] -= 1
            ticket.state = TicketState.DONE
        self._heap = self.waiting_tickets()
        heapq.heapify(self._heap)
        for ticket in failed:  # all are out by now: an owner may leave, and others be granted, in between
            ticket.refuse(error)

    def position(self, ticket: Ticket) -> int:
        """1 for the ticket that is served next."""
        return 1 + sum(1 for t in self._heap if t.state is TicketState.WAITING and t < ticket)

    def oldest_arrival(self) -> float | None:
        return min((t.arrived for t in self._heap if t.state is TicketState.WAITING), default=None)

    @property
    def service_s(self) -> float:
        """What a request takes, from its slot to its end, as seen lately. 0: nobody knows yet."""
        return self._service_s

    def expected_wait_s(self) -> float:
        """How long a newcomer would wait, from the service times seen lately: between 1 and 300 s."""
        expected = math.ceil((self.waiting + 1) * (self._service_s or 1.0) / self.slots)
        return float(min(max(expected, 1), 300))

    @property
    def _is_full(self) -> bool:
        return len(self.running) + len(self.given_up) >= self.slots

    def _clear_top(self) -> None:
        while self._heap and self._heap[0].state is not TicketState.WAITING:
            heapq.heappop(self._heap)

    def _sweep(self) -> None:
        if len(self._heap) > 2 * self.waiting:
            self._heap = [t for t in self._heap if t.state is TicketState.WAITING]
            heapq.heapify(self._heap)
