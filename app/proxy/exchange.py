"""One proxied request as a state machine: no sockets, no tasks, no clock of its own.

Everything that happens to a request is a call of a plain method here: its ticket is granted, a connection is
there, bytes come, its client leaves, time passes. None of them waits, none of them raises.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from app.core.config import SystemConfig
from app.domain.errors import RouterError
from app.domain.request_fingerprint import Work
from app.domain.status import Status
from app.llama.runner_interface import Runner
from app.models.instance import ModelInstance
from app.proxy import timeout_and_crash_errors
from app.proxy.answer_reader import AnswerHead
from app.proxy.catch_bugs import catch_bugs, internal_error
from app.proxy.exchange_interfaces import Link, Links, Pending, Slots, UpstreamGone
from app.proxy.heartbeat_text import heartbeat_text
from app.proxy.phase import AT_LLAMA_SERVER, Phase
from app.proxy.reply import Reply
from app.proxy.request_body import RequestBody
from app.proxy.request_record import RequestRecord, RoutedRequest
from app.proxy.timeouts_and_heartbeats import HEAD_WAITS_S, RequestTimeouts

logger = logging.getLogger(__name__)


class Exchange:
    """From the complete request to the end of its answer. `phase` says where it is."""

    __slots__ = ("_body", "_clock", "_is_paused", "_limits", "_link", "_links", "_pending", "_runner",
                 "_slots", "_timeouts", "_wake", "instance", "phase", "record",
                 "reply", "ticket")  # fmt: skip

    def __init__(
        self,
        instance: ModelInstance,
        record: RequestRecord,
        body: RequestBody,
        reply: Reply,
        *,
        slots: Slots,
        links: Links,
        limits: SystemConfig,
        clock: Callable[[], float],
        wake: Callable[[float], None],
    ) -> None:
        """`wake(delay_s)` asks for one call of `due`, instead of the one asked for before."""
        self.instance, self.record, self.reply = instance, record, reply
        self.ticket = record.ticket
        self.phase = Phase.QUEUED
        self._body: RequestBody | None = body
        self._slots, self._links, self._limits = slots, links, limits
        self._clock, self._wake = clock, wake
        self._runner: Runner | None = None
        self._link: Link | None = None
        self._pending: Pending | None = None
        self._is_paused = False
        self._timeouts = RequestTimeouts(limits, slots, is_stream=record.request.stream)

    @property
    def request(self) -> RoutedRequest:
        return self.record.request

    @property
    def quiet_since(self) -> float | None:
        """When llama-server gave it something last, or was asked; None where nothing is expected of it."""
        return self.reply.progress_at if self.phase in AT_LLAMA_SERVER and not self._is_paused else None

    @property
    def generated(self) -> int | None:
        """Tokens of a stream that have come, about: its events."""
        return self.reply.events if self.request.stream else None

    # --- the queue

    @catch_bugs
    def begin(self) -> None:
        self._enter(since=self.ticket.arrived)

    @catch_bugs
    def granted(self) -> None:
        self._pending = None
        runner = self._runner = self.instance.runner
        if runner is None:
            self._lost()
            return
        self.phase, self.reply.progress_at = Phase.CONNECTING, self.ticket.granted_at
        self.record.granted(self.ticket, self.instance)
        self._wake(self._timeouts.first_look_s(self.instance.spec))
        self._connect(runner)

    @catch_bugs
    def refused(self, error: RouterError) -> None:
        """No slot, or no connection: the router's own word."""
        self._pending = None
        self._fail(error)

    @catch_bugs
    def process_gone(self, error: RouterError | None) -> None:
        """Without an error: once more, at the old place in the queue."""
        self._pending = None
        self._slots.leave(self)
        if error is not None:
            self._fail(error)
            return
        self.ticket = self.ticket.for_replay()
        self.reply.restart()
        self._enter(since=self._clock())

    def asks_for(self) -> Work | None:
        data = None if self._body is None else self._body.data
        return Work(self.request.path, data) if isinstance(data, (bytes, bytearray)) else None

    # --- the connection to llama-server

    @catch_bugs
    def connected(self, link: Link, is_fresh: bool) -> None:
        self._pending = None
        if self.phase is Phase.CONNECTING and self._runner is not None:
            self._ask(link, self._runner, is_fresh=is_fresh)
        else:
            link.release()

    @catch_bugs
    def head(self, head: AnswerHead, length: int | None) -> None:
        self.phase = Phase.ANSWERING
        if self.reply.head(head, length):
            self._wake(HEAD_WAITS_S)

    @catch_bugs
    def body(self, data: bytes, last: bool) -> bool:
        go_on = self.reply.body(data, last)
        if last:
            if self.reply.instead is None:
                self._end()
            else:
                self._ask_again(self.reply.instead)
            return True
        self._is_paused = not go_on
        return go_on

    @catch_bugs
    def broken(self, error: UpstreamGone) -> None:
        self._link = self._pending = None
        if error.stale and self._runner is not None:
            self.phase = Phase.CONNECTING
            self._pending = self._links.open(self._runner.port, self)
            self._open_ahead(self._runner)
            return
        logger.info("%s: the connection to llama-server failed: %s", self.instance.alias, error)
        self._lost()

    @catch_bugs
    def cut(self) -> None:
        """The process is stopped without waiting for this request."""
        self._lost()

    # --- the client

    @catch_bugs
    def writable(self) -> None:
        """The client takes more. That says something of its slot only where the slot waited for it."""
        if self._is_paused and self._link is not None:
            self.reply.progress_at = self._clock()
            self._is_paused = False
            self._link.resume()

    @catch_bugs
    def client_left(self) -> None:
        if self.phase is not Phase.ENDED:
            self.record.client_left = True
            self._give_up()
            self._end()

    # --- time

    @catch_bugs
    def due(self, now: float) -> None:
        """Every time-out of a request, and its heartbeat. Asks to be called again."""
        if self.phase is Phase.QUEUED:
            self._due_in_queue(now)
        elif self.phase in AT_LLAMA_SERVER:
            self.reply.flush_head()
            if self.record.has_begun and self.instance.crash_inquiry.may_forget(len(self._body or b"")):
                self._body = None  # it cannot be sent once more
            if (left_s := self._patience_s(now)) > 0:
                self._wake(left_s)
            elif self._is_paused:
                logger.info("%s: a client stopped reading; its slot is taken back", self.instance.alias)
                self.record.client_left = True
                self.reply.abort()
                self._end()
            else:
                self._give_up()
                self._fail(timeout_and_crash_errors.upstream_timeout(self.instance))

    def _patience_s(self, now: float) -> float:
        """Until this is to be asked again; 0: it has stood still for too long, or its client has."""
        since = self.quiet_since
        if since is None or self._runner is None:
            return self._timeouts.client_patience_s(self.instance.spec, self.reply.progress_at, now)
        return self._slots.patience_s(self, self._runner, since)

    def _due_in_queue(self, now: float) -> None:
        if self._timeouts.has_waited_too_long(now):
            self._fail(timeout_and_crash_errors.queue_timeout(self.instance, self._limits))
            return
        if self._timeouts.heartbeat_is_due(now):
            reason = self._slots.waits_because(self)
            self.reply.heartbeat(heartbeat_text(self.instance, self.ticket, reason))
        self._wake(self._timeouts.queue_wait_s(now))

    # --- inside

    def _enter(self, since: float) -> None:
        self.phase = Phase.QUEUED
        self._timeouts.queued(since)
        pending = self._slots.enter(self)
        if self.phase is Phase.QUEUED:
            self._pending = pending
            self._due_in_queue(self._clock())
            self._open_ahead(self.instance.runner)

    def _connect(self, runner: Runner) -> None:
        if (kept := self._links.take(runner.port)) is not None:
            self._ask(kept, runner, is_fresh=False)
        else:
            self._pending = self._links.open(runner.port, self)
        self._open_ahead(runner)

    def _ask(self, link: Link, runner: Runner, *, is_fresh: bool) -> None:
        assert self._body is not None
        self.phase, self._link = Phase.ASKED, link
        link.ask(self.request, runner.api_key, self._body.data, self, is_fresh=is_fresh)

    def _ask_again(self, instead: bytes) -> None:
        """In its slot: llama-server has refused what it was asked."""
        self._let_go()
        if self._body is None or self._runner is None:
            self._lost()
            return
        self._body.replace(instead)
        self.reply.restart()
        self.phase = Phase.CONNECTING
        self._connect(self._runner)

    def _open_ahead(self, runner: Runner | None) -> None:
        """A stream takes its connection along, so the next one needs another."""
        if self.request.keep_alive or runner is None or runner.phase is not Status.READY:
            return
        if waiting := self.instance.queue.waiting:
            self._links.open_ahead(runner.port, waiting)

    def _lost(self) -> None:
        """The process failed under it."""
        self._let_go()
        self.phase = Phase.EXITING
        self._pending = self._slots.lost(self, self._runner)

    def _fail(self, error: RouterError) -> None:
        self.reply.fail(error)
        self._end(error)

    def _end(self, error: RouterError | None = None) -> None:
        if self.phase is Phase.ENDED:
            return
        quiet_since, self.phase = self.quiet_since, Phase.ENDED
        self._let_go()
        self.record.close(error, quiet_since)
        self._slots.ended(self)
        self._body = None

    def _give_up(self) -> None:
        """llama-server notices at once that nobody reads the events of a stream, and nothing else."""
        if self._link is not None and not (self.request.stream and self.record.has_begun):
            self._slots.given_up(self)

    def _let_go(self) -> None:
        link, pending, self._link, self._pending = self._link, self._pending, None, None
        if pending is not None:
            pending.cancel()
        if link is not None:
            link.release()

    def bug(self, bug: Exception) -> None:
        logger.error("%s %s failed", self.request.method, self.request.endpoint, exc_info=bug)
        if self.phase is Phase.ENDED:
            return
        error = internal_error()
        try:
            self.reply.fail(error)
        except Exception:  # a second bug of ours: the connection ends
            logger.exception("and could not say so")
            self.reply.abort()
        self._end(error)
