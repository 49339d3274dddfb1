"""The head of the answer to one request: whose it is, and when it is sent."""

from __future__ import annotations

from collections.abc import Callable

from app.domain.config_types import Heartbeats
from app.domain.errors import RouterError
from app.proxy.answer_mode import AnswerMode
from app.proxy.dialects.dialect import Dialect
from app.proxy.dialects.shown_wait import ShowWait
from app.proxy.dialects.translation_interface import Asked, Translator
from app.proxy.exchange_interfaces import Downstream
from app.proxy.forwarded_headers import own_lines, stream_lines
from app.proxy.questions import AS_IT_CAME, Questions
from app.proxy.request_memory_limit import ClientMemory
from app.proxy.request_record import RequestRecord
from app.proxy.token_usage import UsageScanner
from app.proxy.translated_answer import InPieces
from app.proxy.translated_stream import TranslatedStream


class ReplyHead:
    """Writes to one `Downstream`."""

    __slots__ = ("_clock", "_dialect", "_downstream", "_heartbeats", "_is_event_stream", "_length",
                 "_lines", "_memory", "_mode", "_parts", "_record", "_rest", "_show_wait", "_stream",
                 "_usage", "events", "progress_at", "questions", "started")  # fmt: skip

    def __init__(
        self,
        downstream: Downstream,
        record: RequestRecord,
        clock: Callable[[], float],
        dialect: Dialect,
        *,
        heartbeats: Heartbeats = Heartbeats.COMMENTS,
        memory: ClientMemory,
        asked: Asked | None = None,
        show_wait: ShowWait | None = None,
    ) -> None:
        """`asked`: where the API is translated, without its body; else an answer of llama-server passes as it
        is. `memory`: in which a translated one takes its place. `show_wait` writes what the client shows of
        its wait, in the place of heartbeats."""
        self.started = False
        """A head has been sent."""
        self.progress_at = 0.0
        """When something last moved; comments in a stream do not count."""
        self.questions = AS_IT_CAME if asked is None else Questions(asked)
        self.events = 0
        """Of a stream, that have come from llama-server: about one a token."""
        self._downstream, self._record, self._clock = downstream, record, clock
        self._dialect, self._heartbeats = dialect, heartbeats
        self._memory, self._show_wait = memory, show_wait
        self._mode = AnswerMode.EMPTY
        self._stream: TranslatedStream | None = None
        self._rest: InPieces | RouterError | None = None
        self._is_event_stream = False
        self._lines = b""
        self._length: int | None = None
        self._parts: list[bytes] = []
        self._usage: UsageScanner | None = None

    @property
    def _translator(self) -> Translator | None:
        return None if self._stream is None else self._stream.translator

    # --- before the answer

    def heartbeat(self, text: str) -> None:
        """A stream that waits gets its head at once, and a sign of life."""
        if self._heartbeats is Heartbeats.OFF and self._show_wait is None:
            return
        if not self.started:
            self._is_event_stream, self._lines = True, stream_lines(self._dialect.stream_type)
            self._start(200, None)
        if self._show_wait is not None:
            sign = self._show_wait(text)
        else:
            sign = self._dialect.heartbeat(self._heartbeats, text)
        self._downstream.write(sign, False)

    def flush_head(self) -> None:
        """Of an event stream whose first event does not come."""
        if self._is_event_stream and self._mode is not AnswerMode.EMPTY and not self.started:
            self._start(self._record.status, None)
            self._downstream.write(b"", False)

    # --- the head

    def _start(self, status: int, length: int | None) -> None:
        record, lines = self._record, self._lines
        if self._translator is not None and self._is_event_stream:
            lines = stream_lines(self._dialect.stream_type)
        own = own_lines(record.request.request_id)
        self._downstream.start(status, b"%b%b%b" % (lines, record.lines(), own), length)
        self.started = True
