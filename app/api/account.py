"""One request, from what was asked to what is said of it when it is over."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from app.core.queue import Ticket
from app.domain.errors import RouterError
from app.domain.events import Outcome, RequestFinished, Usage
from app.domain.priority import Priority
from app.models.supervisor import ModelInstance
from app.proxy.headers import Headers


class Call(NamedTuple):
    """What a client asked for, as far as the router needs to know; its body is kept apart."""

    endpoint: str
    method: str
    path: str  # llama-server's path, with the query
    headers: bytes  # for llama-server, as lines
    stream: bool  # the client asked for an event stream
    fresh: bool  # needs a connection of its own
    priority: Priority
    lowered: bool
    request_id: str
    client: str


class Account:
    """What the observers are told when it is over, and the client in the headers of its answer.

    Times are those of the monotonic clock. It holds no body, and is read a while after the end.
    """

    __slots__ = ("_ended_at", "_error", "alias", "call", "first_byte_at", "granted_at", "left",
                 "load_s", "status", "ticket",
                 "usage")  # fmt: skip

    def __init__(self, call: Call, alias: str, ticket: Ticket) -> None:
        self.call, self.alias, self.ticket = call, alias, ticket
        self.status = 200
        self.left = False  # the client has gone
        self.granted_at: float | None = None
        self.first_byte_at: float | None = None
        self.load_s = 0.0
        self.usage: Callable[[], Usage] = Usage
        self._error: RouterError | None = None
        self._ended_at = 0.0

    def granted(self, ticket: Ticket, instance: ModelInstance) -> None:
        """The wait is over; what it was spent on."""
        self.granted_at = ticket.granted_at
        waited_for_load_s = instance.ready_since - max(ticket.arrived, instance.load_started)
        if waited_for_load_s > 0:
            self.load_s += waited_for_load_s

    def headers(self) -> Headers:
        """What every answer tells of its way."""
        own = []
        if self.granted_at is not None:
            own.append((b"x-queue-wait-ms", b"%d" % (1000 * (self.granted_at - self.ticket.arrived))))
            own.append((b"x-model-load-ms", b"%d" % (1000 * self.load_s)))
        if self.call.lowered:
            own.append((b"x-priority-effective", self.call.priority.label.encode()))
        return own

    def close(self, error: RouterError | None = None) -> None:
        self._error, self._ended_at = error, time.monotonic()

    def event(self) -> RequestFinished:
        call, error, arrived = self.call, self._error, self.ticket.arrived
        status = 499 if self.left else error.status if error is not None else self.status
        return RequestFinished(
            request_id=call.request_id,
            alias=self.alias,
            endpoint=call.endpoint,
            client=call.client,
            priority=call.priority,
            outcome=_outcome(status),
            status=status,
            error=error.code if error is not None else None,
            duration_s=self._ended_at - arrived,
            queue_wait_s=None if self.granted_at is None else self.granted_at - arrived,
            load_s=self.load_s,
            ttft_s=None if self.first_byte_at is None else self.first_byte_at - arrived,
            usage=self.usage(),
        )


def _outcome(status: int) -> Outcome:
    if status < 400:
        return Outcome.SUCCESS
    return {499: Outcome.CANCELLED, 503: Outcome.REJECTED, 504: Outcome.TIMEOUT}.get(status, Outcome.ERROR)
