"""One proxied request: what was asked for, and what observers are told of it when it is over."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from app.core.queue import Ticket
from app.domain.errors import RouterError
from app.domain.events import Outcome, RequestFinished, Usage
from app.domain.priority import Priority
from app.models.instance import ModelInstance
from app.proxy.dialects.translation_interface import Asked, Times


class RoutedRequest(NamedTuple):
    """What a client asked for, as far as the router needs to know; its body is kept apart."""

    endpoint: str
    method: str
    path: str
    """llama-server's path, encoded, with the query."""
    headers: bytes
    """For llama-server, as lines."""
    stream: bool
    """The client asked for an event stream."""
    keep_alive: bool
    """llama-server may keep the connection after its answer; after a stream it closes it anyway."""
    priority: Priority
    lowered: bool
    """The key's ceiling made the priority lower than what was asked for."""
    request_id: str
    client: str
    only_reads: bool = False
    """It takes no slot, and counts as no use of its model."""
    ttl_s: float | None = None
    """How long its model stays loaded after it; None: as configured."""
    slots: int = 1
    """The most of llama-server's slots that it holds at the same time."""
    keeps_ttl: bool = False
    """Without `ttl_s` it is as it was before."""

    def as_asked(self, asked: Asked) -> RoutedRequest:
        """llama-server may be asked on another path, and for a stream where the client's API says so."""
        path = self.path if asked.path is None else asked.path
        return self._replace(
            path=path, stream=asked.stream, keep_alive=not asked.stream, keeps_ttl=asked.keeps_ttl
        )


class RequestRecord:
    """Made when the request is routed, completed by `close`, read by observers up to `BATCH_S` later.

    Times are those of the monotonic clock. It holds no body.
    """

    __slots__ = ("_ended_at", "_error", "_quiet_since", "alias", "client_left", "first_byte_at", "granted_at",
                 "load_s", "request", "status", "ticket", "usage")  # fmt: skip

    def __init__(self, request: RoutedRequest, alias: str, ticket: Ticket) -> None:
        self.request, self.alias, self.ticket = request, alias, ticket
        self.status = 200
        self.client_left = False
        self.granted_at: float | None = None
        self.first_byte_at: float | None = None
        """Of the answer: heads and comments do not count. From here on it cannot be replayed."""
        self.load_s = 0.0
        self.usage: Callable[[], Usage] = Usage
        self._error: RouterError | None = None
        self._ended_at = 0.0
        self._quiet_since: float | None = None

    @property
    def has_begun(self) -> bool:
        """A byte of the answer has been sent: from here on it cannot be replayed."""
        return self.first_byte_at is not None

    @property
    def is_answered(self) -> bool:
        """By llama-server, to the end; said when it is over."""
        return self._error is None and not self.client_left

    def times(self, clock: Callable[[], float]) -> Times:
        arrived = self.ticket.arrived
        return Times(clock, arrived, arrived if self.granted_at is None else self.granted_at)

    def granted(self, ticket: Ticket, instance: ModelInstance) -> None:
        """The wait is over; the part of it that the model was loading is added to `load_s`."""
        self.granted_at = ticket.granted_at
        life = instance.lifecycle
        waited_for_load_s = life.ready_since - max(ticket.arrived, life.load_started)
        if waited_for_load_s > 0:
            self.load_s += waited_for_load_s

    def lines(self) -> bytes:
        """What the head of the answer tells of its way."""
        own = b""
        if self.granted_at is not None:
            waited_ms = 1000 * (self.granted_at - self.ticket.arrived)
            own = b"x-queue-wait-ms: %d\r\nx-model-load-ms: %d\r\n" % (waited_ms, 1000 * self.load_s)
        if self.request.lowered:
            own += b"x-priority-effective: %b\r\n" % self.request.priority.label.encode()
        return own

    def close(self, error: RouterError | None = None, quiet_since: float | None = None) -> None:
        self._error, self._ended_at, self._quiet_since = error, time.monotonic(), quiet_since

    def event(self) -> RequestFinished:
        request, error, arrived = self.request, self._error, self.ticket.arrived
        status = 499 if self.client_left else error.status if error is not None else self.status
        granted_at, first_byte_at = self.granted_at, self.first_byte_at
        return RequestFinished(  # by position: names cost as much as the object
            request.request_id,
            self.alias,
            request.endpoint,
            request.client,
            request.priority,
            Outcome.SUCCESS if status < 400 else _OUTCOMES.get(status, Outcome.ERROR),
            status,
            error.code if error is not None else None,
            self._ended_at - arrived,
            None if granted_at is None else granted_at - arrived,
            self.load_s,
            None if first_byte_at is None else first_byte_at - arrived,
            self.usage(),
            0.0 if self._quiet_since is None else max(self._ended_at - self._quiet_since, 0.0),
        )


_OUTCOMES = {499: Outcome.CANCELLED, 503: Outcome.REJECTED, 504: Outcome.TIMEOUT}
