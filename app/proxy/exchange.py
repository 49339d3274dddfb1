"""One proxied request as a state machine: no sockets, no tasks, no clock of its own.

Everything that happens to a request is a call of a plain method here: its ticket is granted, a connection is
there, bytes come, its client leaves, time passes. None of them waits, none of them raises.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from app.domain.errors import RouterError
from app.llama.runner_interface import Runner
from app.proxy import timeout_and_crash_errors
from app.proxy.answer_mode import Left
from app.proxy.answer_reader import AnswerHead
from app.proxy.catch_bugs import catch_bugs, internal_error
from app.proxy.dialects.translation_interface import TRANSLATED_AT_ONCE, Asked
from app.proxy.exchange_interfaces import Link, UpstreamGone
from app.proxy.exchange_state import ExchangeState
from app.proxy.heartbeat_text import heartbeat_text
from app.proxy.phase import AT_LLAMA_SERVER, Phase
from app.proxy.timeouts_and_heartbeats import HEAD_WAITS_S
from app.proxy.translated_answer import ReplyWork, Tell

logger = logging.getLogger(__name__)


class Exchange(ExchangeState):
    """From the complete request to the end of its answer."""

    __slots__ = ()

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
        if error is None:
            self.reply.restart()
            self._let_go()
            self.ticket = self.ticket.for_replay()
            self._enter(since=self._clock())
        elif self.reply.left is Left.EVENTS:  # they are told first
            self.phase, self._is_paused, self._error = Phase.TRANSLATING, False, error
            self._wake(0)
        else:
            self._fail(error)

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
        try:
            go_on = self.reply.body(data, last)
            if last:
                self._complete()
            elif not go_on:
                self._pause()
        except RouterError as error:  # there is no place for it
            self._fail(error)
            return True
        return go_on or last

    def _pause(self) -> None:
        """Of llama-server's connection: until the client takes more, or what it got is translated."""
        self._is_paused = True
        if (work := self.reply.work(self._body)) is not None:
            self._do_beside(work)

    def _complete(self) -> None:
        """llama-server has said all."""
        work = self.reply.work(self._body)
        if work is None:
            self._end()
            return
        self._let_go()
        if work.size <= TRANSLATED_AT_ONCE:
            self.translated(work.tell, work.work())
        else:
            if not work.needs_slot:
                self._slots.leave(self)
            self._do_beside(work)

    def _do_beside(self, work: ReplyWork) -> None:
        self.phase, self._is_paused = Phase.TRANSLATING, False
        self._work = self._beside.do(work.work, partial(self.translated, work.tell), next_=True)

    @catch_bugs
    def translated(self, tell: Tell, found: Any) -> None:
        self._work = None
        try:
            self.reply.told(tell, found)
            if (asked := self.reply.questions.next) is not None:
                self._ask_again(asked)
            elif self.phase is not Phase.EXITING:
                self._tell_more()
        except RouterError as error:  # of its work, or there is no place for what is to be asked
            self._fail(error)

    def _tell_more(self) -> None:
        """A piece in each turn of the event loop."""
        self._is_paused = not self.reply.tell_more()
        if self.reply.left is not Left.NOTHING:
            self.phase = Phase.TRANSLATING
            self._wake(self._timeouts.first_look_s(self.instance.spec) if self._is_paused else 0)
        elif self._link is None:
            self._end() if self._error is None else self._fail(self._error)
        else:  # of a stream more comes
            self.phase = Phase.ANSWERING
            self._wake(self._timeouts.first_look_s(self.instance.spec))
            if not self._is_paused:
                self._link.resume()

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
        if self._is_paused and self.phase is Phase.TRANSLATING:
            self._tell_more()
        elif self._is_paused and self._link is not None:
            self.reply.progress_at = self._clock()
            self._is_paused = False
            self._link.resume()

    @catch_bugs
    def client_left(self) -> None:
        if self.phase is not Phase.ENDED:
            self.record.client_left = self._is_paused or not self.reply.has_last_event
            self._give_up()
            self._end()

    # --- time

    @catch_bugs
    def due(self, now: float) -> None:
        """Every time-out of a request, and its heartbeat. Asks to be called again."""
        if self.phase is Phase.QUEUED:
            self._due_in_queue(now)
        elif self.phase is Phase.TRANSLATING and not self._is_paused:
            if self._work is None:
                self._tell_more()
        elif self.phase in AT_LLAMA_SERVER or self.phase is Phase.TRANSLATING:
            self.reply.own_head.flush()
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
            self.reply.own_head.heartbeat(heartbeat_text(self.instance, self.ticket, reason))
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

    def _ask_again(self, asked: Asked) -> None:
        """In its slot: llama-server has refused what it was asked, or that was a step."""
        self._let_go()
        if self._body is None or self._runner is None:
            self._lost()
            return
        self._body.replace(asked.body)
        self.record.request = self.request.as_asked(asked)
        self.reply.restart()
        self.phase = Phase.CONNECTING
        self._connect(self._runner)

    def _lost(self) -> None:
        """The process failed under it."""
        self.phase = Phase.EXITING
        self._let_go()
        self._pending = self._slots.lost(self, self._runner)

    def _fail(self, error: RouterError) -> None:
        self.reply.fail(error)
        self._end(error.without_frames())

    def _end(self, error: RouterError | None = None) -> None:
        if self.phase is Phase.ENDED:
            return
        quiet_since, self.phase = self.quiet_since, Phase.ENDED
        self._let_go()
        self.record.close(error, quiet_since)
        self._slots.ended(self)
        self._body = None
        self.reply.let_go()

    def _give_up(self) -> None:
        """llama-server notices at once that nobody reads the events of a stream, and nothing else."""
        if self._link is not None and not (self.request.stream and self.record.has_begun):
            self._slots.given_up(self)

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
