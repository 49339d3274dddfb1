"""The head of the answer to one request: which lines it has, and when it is sent."""

from __future__ import annotations

from app.domain.config_types import Heartbeats
from app.domain.errors import RouterError
from app.proxy import answer_writer
from app.proxy.dialects.dialect import Dialect
from app.proxy.dialects.shown_wait import ShowWait
from app.proxy.exchange_interfaces import Downstream
from app.proxy.forwarded_headers import own_lines, stream_lines
from app.proxy.request_record import RequestRecord


class ReplyHead:
    """Sent with the first byte of the answer, or with the first sign that a stream waits."""

    __slots__ = ("_dialect", "_downstream", "_heartbeats", "_lines", "_record", "_show_wait",
                 "is_event_stream", "length", "started")  # fmt: skip

    def __init__(
        self,
        downstream: Downstream,
        record: RequestRecord,
        dialect: Dialect,
        heartbeats: Heartbeats,
        show_wait: ShowWait | None,
    ) -> None:
        self.started = self.is_event_stream = False
        """`started`: it has been sent."""
        self._downstream, self._record, self._dialect = downstream, record, dialect
        self._heartbeats, self._show_wait = heartbeats, show_wait
        self._lines = b""
        self.length: int | None = None
        """Where it is announced."""

    def becomes(self, lines: bytes | None, length: int | None, *, is_event_stream: bool) -> None:
        """As llama-server's. Without `lines`: of a stream of this API."""
        self.is_event_stream, self.length = is_event_stream, None if is_event_stream else length
        self._lines = stream_lines(self._dialect.stream_type) if lines is None else lines

    def restart(self) -> None:
        """The request is sent once more."""
        self.is_event_stream = self.started and self.is_event_stream

    def flush(self) -> None:
        """Of an event stream whose first event does not come."""
        if self.is_event_stream and not self.started:
            self.send()
            self._downstream.write(b"", False)

    def send(self) -> None:
        self._start(self._record.status, self.length)

    def send_whole(self, length: int) -> None:
        """Of an answer of which that is all."""
        self._start(self._record.status, length)

    def _start(self, status: int, length: int | None) -> None:
        record = self._record
        own = own_lines(record.request.request_id)
        self._downstream.start(status, b"%b%b%b" % (self._lines, record.lines(), own), length)
        self.started = True

    def answer(self, error: RouterError) -> None:
        """Instead of it, with a body."""
        record = self._record
        status, lines, body = answer_writer.error_answer(error, self._dialect, record.request.request_id)
        self._downstream.start(status, lines + record.lines(), len(body))
        self._downstream.write(body, True)

    # --- of a stream that waits

    def heartbeat(self, text: str) -> None:
        """It gets its head at once, and a sign of life."""
        if self._heartbeats is Heartbeats.OFF and self._show_wait is None:
            return
        if not self.started:
            self.becomes(None, None, is_event_stream=True)
            self._start(200, None)
        sign = self.comment(text) if self._show_wait is None else self._show_wait(text)
        self._downstream.write(sign, False)

    def comment(self, text: str) -> bytes:
        return self._dialect.heartbeat(self._heartbeats, text)
