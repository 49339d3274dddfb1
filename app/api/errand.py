"""Short requests without a task, for as long as nothing has to be waited for but a turn and an answer.

Between two requests a model computes, and the processor's caches forget the router: what a short request
costs is the number of different things that are done for it (docs/benchmarks.md). An errand is three
callbacks: the body is complete, the ticket is granted, the answer is there. Whatever else comes up, a process
that dies, a long answer, a wait of seconds, is for a `Relay` in a task, which goes on where the errand was.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any, NamedTuple

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT

from app.access.headers import RequestHeaders as Head
from app.access.request_id import own_headers, request_id
from app.access.rules import Rules
from app.api import openai
from app.api.account import Account, Call
from app.api.http_protocol import RouterProtocol
from app.api.openai import Endpoint, Sender
from app.api.relay import EVENT_STREAM, HEARTBEAT_S, Relay, request_to
from app.api.services import Services
from app.core.manager import Stay
from app.core.queue import TicketState
from app.domain.errors import RouterError
from app.models.supervisor import ModelInstance
from app.proxy.body import fields_of
from app.proxy.headers import passed_back
from app.proxy.upstream import Answer
from app.proxy.usage import usage_in

MAX_KNOWN_HEADS = 256
MAX_KNOWN_BYTES = 4096
"""Of one head: so much at most is kept of what clients send."""

MAX_ID_BYTES = 128
"""A longer id is like any other header: looked at with the rest."""

_NO_ERRAND = frozenset({"cookie", "expect", "origin", "upgrade"})
"""In these headers stands what an errand knows nothing of: sessions, CORS, another protocol."""


Raw = list[tuple[bytes, bytes]]
Known = tuple[Head, Sender]


class Opening(NamedTuple):
    """A request that was let in, before its body."""

    endpoint: Endpoint
    request_id: str
    headers: Head
    sender: Sender

    @property
    def scope(self) -> dict[str, Any]:
        """What `Guard` would find."""
        return {
            "router.headers": self.headers,
            "router.request_id": self.request_id,
            "router.client": self.sender.client,
        }


class Errands:
    """Begins them, and ends those that take too long."""

    services: Services
    _rules: Rules

    def __init__(self) -> None:
        self._known: dict[tuple[tuple[bytes, bytes], ...], Known] = {}
        self._under_way: dict[Errand, float] = {}
        self._patrol: asyncio.TimerHandle | None = None
        self._patrol_at = 0.0

    @property
    def rules(self) -> Rules:
        """Who may come in."""
        return self._rules

    @rules.setter
    def rules(self, rules: Rules) -> None:
        self._rules = rules
        self._known.clear()

    def open(self, target: bytes, headers: Raw) -> Opening | None:
        """A POST of this target with this head. None for what is not for an errand, or has to be refused.

        A client's requests differ in length and id; the rest of their head is looked at once.
        """
        endpoint = _ENDPOINTS.get(target)
        if endpoint is None:
            return None
        given, rest = None, []
        for header in headers:
            name, value = header
            if name == b"content-length":
                if not self._may_be_short(value):
                    return None
            elif name == b"x-request-id" and given is None and len(value) <= MAX_ID_BYTES:
                given = value.decode("latin-1")
            else:
                rest.append(header)
        key = tuple(rest)
        known = self._known.get(key) or self._look(endpoint, headers, key)
        return None if known is None else Opening(endpoint, request_id(given), *known)

    def _may_be_short(self, length: bytes) -> bool:
        """What is too large for us the door refuses before it comes, and what is too large for an errand
        need not pass through one."""
        return len(length) <= 5 and int(length) <= min(HIGH_WATER_LIMIT, self._rules.max_body_bytes)

    def _look(self, endpoint: Endpoint, raw: Raw, key: tuple[tuple[bytes, bytes], ...]) -> Known | None:
        headers = Head(raw)
        if not _NO_ERRAND.isdisjoint(headers.keys()):
            return None
        try:
            known = headers, Sender.of(headers, self._rules.check("POST", endpoint.path, headers))
        except Exception:  # told on the long way
            return None
        if sum(len(name) + len(value) for name, value in raw) <= MAX_KNOWN_BYTES:
            if len(self._known) >= MAX_KNOWN_HEADS:
                self._known.clear()
            self._known[key] = known
        return known

    def begin(self, opening: Opening, body: bytes, connection: RouterProtocol) -> None:
        """Its body is complete."""
        services = self.services
        endpoint, name, _, sender = opening
        if len(body) > self._rules.max_body_bytes:
            connection.long_way(opening, body)
            return
        try:
            instance, call = openai.read(services, sender, name, fields_of(body), endpoint)
        except Exception:  # told on the long way
            connection.long_way(opening, body)
            return
        if call.fresh:
            connection.long_way(opening, b"", Relay(services, instance, call, body))
            return
        limits = services.config.system
        patience_s = min(HEARTBEAT_S, limits.queue_timeout_sec, limits.request_timeout_sec)
        Errand(self, services, instance, call, opening, body, connection).begin(patience_s)

    # --- those under way

    def add(self, errand: Errand, patience_s: float) -> None:
        """After `patience_s` it is handed over."""
        until = self._under_way[errand] = asyncio.get_running_loop().time() + patience_s
        if self._patrol is None or until < self._patrol_at:
            self._look_after_at(until)

    def discard(self, errand: Errand) -> None:
        self._under_way.pop(errand, None)

    def _look_after(self) -> None:
        """Not by age: a reload may have given the younger ones less patience."""
        self._patrol = None
        now = asyncio.get_running_loop().time()
        for errand in [errand for errand, until in self._under_way.items() if until <= now]:
            errand.hand_over()
        if self._under_way:
            self._look_after_at(min(self._under_way.values()))

    def _look_after_at(self, when: float) -> None:
        if self._patrol is not None:
            self._patrol.cancel()
        self._patrol, self._patrol_at = asyncio.get_running_loop().call_at(when, self._look_after), when


class Errand:
    """One request on its way. `connection` tells it when its client leaves."""

    __slots__ = ("_account", "_answer", "_body", "_connection", "_errands", "_instance", "_opening",
                 "_services")  # fmt: skip

    def __init__(
        self,
        errands: Errands,
        services: Services,
        instance: ModelInstance,
        call: Call,
        opening: Opening,
        body: bytes,
        connection: RouterProtocol,
    ) -> None:
        self._errands, self._services, self._instance = errands, services, instance
        self._opening, self._body, self._connection = opening, body, connection
        self._account = Account(call, instance.alias, services.manager.ticket(call.priority))
        self._answer: Answer | None = None

    def begin(self, patience_s: float) -> None:
        ticket = self._account.ticket
        try:
            self._services.manager.enter(self._instance, ticket)
        except RouterError:  # told on the long way
            self._connection.long_way(self._opening, b"", self._relay())
            return
        self._connection.errand = self
        self._errands.add(self, patience_s)
        if ticket.state is TicketState.WAITING:
            ticket.on_settled = self._settled
        else:
            self._settled()

    def _settled(self) -> None:
        """Granted, or refused."""
        account, instance = self._account, self._instance
        ticket, runner = account.ticket, instance.runner
        try:
            if runner is not None and ticket.state is TicketState.GRANTED:
                request = request_to(runner, account.call, self._body)
                self._answer = answer = self._services.upstream.ask(request, runner.port)
                if answer is not None:
                    account.granted(ticket, instance)
                    ticket.on_cut = self._cut
                    answer.on_news = self._heard
                    return
            self.hand_over()
        except Exception as error:
            self.hand_over(error)

    def _heard(self) -> None:
        """All of the answer, or something else."""
        answer = self._answer
        assert answer is not None
        try:
            if not answer.ended and not answer.needs_reader and not _is_stream(answer):
                return
            if not answer.ended or not self._pass_on(answer):
                self.hand_over()
                return
        except Exception as error:
            self.hand_over(error)
            return
        self._end()

    def _pass_on(self, answer: Answer) -> bool:
        """False, and nothing done, for what is not an answer for an errand."""
        connection, account, status = self._connection, self._account, answer.status
        if not connection.takes(status) or _is_stream(answer):
            return False
        body = answer.take()
        account.status, account.first_byte_at = status, time.monotonic()
        account.usage = partial(usage_in, body, body)
        headers = passed_back(answer.headers, event_stream=False)
        headers += account.headers()
        headers += own_headers(account.call.request_id)
        connection.respond(status, headers, body)
        return True

    def _cut(self) -> None:
        if self._answer is not None:
            self._answer.cut("its process is stopped without waiting for it")

    def left(self) -> None:
        """The client has gone."""
        self._account.left = True
        self._end()

    def _end(self) -> None:
        self._let_go()
        if self._answer is not None:
            self._answer.close()
        self._services.manager.leave(self._instance, self._account.ticket)
        self._account.close()
        self._services.bus.finished(self._account.event)

    def hand_over(self, bug: Exception | None = None) -> None:
        """A task goes on from here."""
        self._let_go()
        relay = self._relay()
        relay.stay = Stay(self._services.manager, self._instance, self._account.ticket, is_inside=True)
        relay.asked, relay.bug = self._answer, bug
        self._connection.long_way(self._opening, b"", relay)

    def _relay(self) -> Relay:
        return Relay(self._services, self._instance, self._account.call, self._body, self._account)

    def _let_go(self) -> None:
        ticket = self._account.ticket
        ticket.on_settled = ticket.on_cut = None
        if self._answer is not None:
            self._answer.on_news = None
        self._connection.errand = None
        self._errands.discard(self)


def _is_stream(answer: Answer) -> bool:
    return answer.content_type.lower().startswith(EVENT_STREAM)


_ENDPOINTS = {endpoint.path.encode(): endpoint for endpoint in openai.ENDPOINTS}
