"""One proxied request: all that is known of it while it is under way. What happens to it is in `exchange`."""

from __future__ import annotations

from app.domain.errors import RouterError
from app.domain.request_fingerprint import Work
from app.domain.status import Status
from app.llama.runner_interface import Runner
from app.models.instance import ModelInstance
from app.proxy.answer_mode import Left
from app.proxy.exchange_interfaces import Link, Pending, Surroundings
from app.proxy.phase import AT_LLAMA_SERVER, Phase
from app.proxy.reply import Reply
from app.proxy.request_body import RequestBody
from app.proxy.request_record import RequestRecord, RoutedRequest
from app.proxy.timeouts_and_heartbeats import RequestTimeouts


class ExchangeState:
    """`phase` says where it is."""

    __slots__ = ("_beside", "_body", "_clock", "_error", "_is_paused", "_limits", "_link", "_links",
                 "_pending", "_runner", "_slots", "_timeouts", "_wake", "_work", "instance", "phase",
                 "record", "reply", "ticket")  # fmt: skip

    def __init__(
        self,
        instance: ModelInstance,
        record: RequestRecord,
        body: RequestBody,
        reply: Reply,
        around: Surroundings,
    ) -> None:
        self.instance, self.record, self.reply = instance, record, reply
        self.ticket = record.ticket
        self.phase = Phase.QUEUED
        self._body: RequestBody | None = body
        self._slots, self._links, self._beside, self._limits, self._clock, self._wake = around
        self._runner: Runner | None = None
        self._link: Link | None = None
        self._pending: Pending | None = None
        self._work: Pending | None = None
        self._error: RouterError | None = None
        self._is_paused = False
        self._timeouts = RequestTimeouts(around.limits, around.slots, is_stream=record.request.stream)

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

    def asks_for(self) -> Work | None:
        data = None if self._body is None else self._body.data
        return Work(self.request.path, data) if isinstance(data, (bytes, bytearray)) else None

    # --- what it holds

    def _let_go(self) -> None:
        """In `EXITING`, events that were being translated go on."""
        link, pending, self._link, self._pending = self._link, self._pending, None, None
        if self._work is not None and not (self.phase is Phase.EXITING and self.reply.left is Left.EVENTS):
            self._work.cancel()
            self._work = None
        if pending is not None:
            pending.cancel()
        if link is not None:
            link.release()

    def _open_ahead(self, runner: Runner | None) -> None:
        """A stream takes its connection along, so the next one needs another."""
        if self.request.keep_alive or runner is None or runner.phase is not Status.READY:
            return
        if waiting := self.instance.queue.waiting:
            self._links.open_ahead(runner.port, waiting)
