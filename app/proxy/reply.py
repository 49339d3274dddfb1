"""The answer to one request as its client gets it: whose head it is, what is held back, how it ends."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from functools import partial

from app.access.request_id import own_headers
from app.domain.errors import RouterError
from app.proxy import http1
from app.proxy.headers import Headers, passed_back
from app.proxy.http1 import EVENT_STREAM
from app.proxy.record import RequestRecord
from app.proxy.seams import Downstream
from app.proxy.usage import UsageScanner, usage_in

HELD_BYTES = 65536
"""A plain answer of up to this announced length is held until it is whole, so that it can be replayed."""

MAX_ERROR_BYTES = 65536


class _Mode(Enum):
    EMPTY = "no head has come from llama-server"
    HELD = "a plain answer, held back until it is whole"
    PASSED = "bytes pass as they come"
    EVENT_STREAM = "events pass as they come"
    REFUSED = "llama-server's error, collected: it becomes an event, as our head has been sent"


class Reply:
    """Writes to one `Downstream`. Errors before the head are answers, later ones end an event stream."""

    __slots__ = ("_clock", "_downstream", "_headers", "_is_event_stream", "_length", "_mode", "_parts",
                 "_record", "_usage", "progress_at", "started")  # fmt: skip

    def __init__(self, downstream: Downstream, record: RequestRecord, clock: Callable[[], float]) -> None:
        self.started = False
        """A head has been sent."""
        self.progress_at = 0.0
        """When something last moved; comments in a stream do not count."""
        self._downstream, self._record, self._clock = downstream, record, clock
        self._mode = _Mode.EMPTY
        self._is_event_stream = False
        self._headers: Headers = []
        self._length: int | None = None
        self._parts: list[bytes] = []
        self._usage: UsageScanner | None = None

    @property
    def has_begun(self) -> bool:
        """A byte of the answer has been sent: from here on it cannot be replayed."""
        return self._record.first_byte_at is not None

    @property
    def holds_head(self) -> bool:
        """The head of an event stream waits for its first event."""
        return self._mode is _Mode.EVENT_STREAM and not self.started

    # --- before the answer

    def heartbeat(self, text: str) -> None:
        """A stream that waits gets its head at once, and comments."""
        if not self.started:
            self._is_event_stream, self._headers = True, [(b"content-type", EVENT_STREAM)]
            self._start(200, None)
        self._downstream.write(http1.comment(text), False)

    def restart(self) -> None:
        """Forget what was held back: the request is sent once more."""
        self._mode, self._usage = _Mode.EMPTY, None
        self._parts.clear()

    # --- the answer

    def head(self, status: int, headers: Headers, length: int | None) -> None:
        self._record.status = status
        streamed = any(n == b"content-type" and v.lower().startswith(EVENT_STREAM) for n, v in headers)
        if self.started:
            self._mode = _Mode.EVENT_STREAM if streamed and status == 200 else _Mode.REFUSED
            return
        self._headers, self._length, self._is_event_stream = headers, length, streamed
        has_body = self._record.request.method != "HEAD" and status not in (204, 304)
        if streamed:
            self._mode = _Mode.EVENT_STREAM
        elif has_body and length is not None and length <= HELD_BYTES:
            self._mode = _Mode.HELD
        else:
            self._mode = _Mode.PASSED

    def flush_head(self) -> None:
        """Of an event stream whose first event does not come."""
        if self.holds_head:
            self._start(self._record.status, None)
            self._downstream.write(b"", False)

    def body(self, data: bytes, last: bool) -> bool:
        """False: the client takes no more for now."""
        mode = self._mode
        if mode is _Mode.EVENT_STREAM:
            return self._pass_event(data, last)
        if mode is _Mode.PASSED:
            return self._pass(data, last)
        self._parts.append(data)
        if not last:
            self.progress_at = self._clock()
        elif mode is _Mode.HELD:
            self._pass_whole(b"".join(self._parts) if len(self._parts) > 1 else data)
        else:
            self._refuse_in_stream(b"".join(self._parts)[:MAX_ERROR_BYTES])
        return True

    def _pass_event(self, data: bytes, last: bool) -> bool:
        if data.startswith(b":") and http1.is_only_comments(data):
            if not self.started:
                self._start(self._record.status, None)
            return self._downstream.write(data, last)
        return self._pass(data, last)

    def _pass(self, data: bytes, last: bool) -> bool:
        self.progress_at = now = self._clock()
        if data:
            if self._usage is None:
                self._begin(data, now)
            self._usage.feed(data)  # type: ignore[union-attr]
        if not self.started:
            self._start(self._record.status, self._length)
        return self._downstream.write(data, last)

    def _begin(self, data: bytes, now: float) -> None:
        self._record.first_byte_at = now
        self._usage = UsageScanner()
        self._usage.start(data)
        self._record.usage = self._usage.usage

    def _pass_whole(self, data: bytes) -> None:
        record = self._record
        if data:
            record.first_byte_at = self._clock()
            record.usage = partial(usage_in, data, data)
        self._start(record.status, len(data))
        self._downstream.write(data, True)

    def _refuse_in_stream(self, text: bytes) -> None:
        path = self._record.request.endpoint
        self._downstream.write(http1.upstream_error_event(text, self._record.status, path), True)

    # --- its end

    def fail(self, error: RouterError) -> None:
        """The error as an answer, or as the last event. A plain answer that has begun is cut off."""
        path = self._record.request.endpoint
        if not self.started:
            headers, body = http1.error_answer(error, path, self._record.request.request_id)
            self._downstream.start(error.status, headers, len(body))
            self._downstream.write(body, True)
        elif self._is_event_stream:
            self._downstream.write(http1.error_event(error, path), True)
        else:
            self._downstream.abort()

    def abort(self) -> None:
        self._downstream.abort()

    # --- the head

    def _start(self, status: int, length: int | None) -> None:
        headers = passed_back(self._headers, self._is_event_stream) + self._record.headers()
        headers += own_headers(self._record.request.request_id)
        self._downstream.start(status, headers, length)
        self.started = True
