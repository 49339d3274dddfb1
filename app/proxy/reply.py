"""The answer to one request as its client gets it: whose head it is, what is held back, how it ends."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from app.domain.config_types import Heartbeats
from app.domain.errors import RouterError
from app.llama.llama_server_errors import ERROR_IN_STREAM, read_error
from app.proxy import answer_writer
from app.proxy.answer_mode import MAX_ERROR_BYTES, AnswerMode, untranslated
from app.proxy.answer_reader import AnswerHead
from app.proxy.dialects.dialect import Dialect
from app.proxy.dialects.shown_wait import ShowWait
from app.proxy.dialects.sse_format import is_only_comments
from app.proxy.dialects.translation_interface import Asked, Translator
from app.proxy.exchange_interfaces import Downstream
from app.proxy.forwarded_headers import own_lines, stream_lines
from app.proxy.questions import AS_IT_CAME, Found, Questions
from app.proxy.request_body import RequestBody
from app.proxy.request_memory_limit import ClientMemory
from app.proxy.request_record import RequestRecord
from app.proxy.token_usage import UsageScanner, usage_of
from app.proxy.translated_answer import LastWork, TranslatedAnswer

EVENT = b"data: {"


class Reply:
    """Writes to one `Downstream`. Errors before the head are answers, later ones end an event stream."""

    __slots__ = ("_clock", "_dialect", "_downstream", "_heartbeats", "_is_event_stream", "_length",
                 "_lines", "_memory", "_mode", "_parts", "_record", "_rest", "_show_wait", "_translator",
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
        self._translator: Translator | None = None
        self._rest: TranslatedAnswer | RouterError | None = None
        self._is_event_stream = False
        self._lines = b""
        self._length: int | None = None
        self._parts: list[bytes] = []
        self._usage: UsageScanner | None = None

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

    def restart(self) -> None:
        """Forget what was held back: the request is sent once more."""
        self._mode, self._usage, self._translator, self._rest = AnswerMode.EMPTY, None, None, None
        self.events, self.questions.next = 0, None
        self._parts.clear()

    # --- the answer

    def head(self, head: AnswerHead, length: int | None) -> bool:
        """True: it is that of an event stream, and waits for the first event, or for `flush_head`."""
        self._record.status = head.status
        self._mode = mode = self._mode_for(head.status, length, head.is_event_stream)
        if self.started:
            return False
        self._is_event_stream = head.is_event_stream and mode is not AnswerMode.REFUSED
        self._lines, self._length = head.lines, length
        return self._is_event_stream

    def _mode_for(self, status: int, length: int | None, streamed: bool) -> AnswerMode:
        if self.started:
            if not streamed or status != 200:
                return AnswerMode.REFUSED
        elif status >= 400 and not self._dialect.keeps_model_errors:
            return AnswerMode.REFUSED
        if status == 200 and (made := self.questions.translator) is not None:
            self._translator = made(self._record.times(self._clock))
            return AnswerMode.TRANSLATED if streamed else AnswerMode.WHOLE
        return untranslated(self._record.request.method, status, length, is_event_stream=streamed)

    def flush_head(self) -> None:
        """Of an event stream whose first event does not come."""
        if self._is_event_stream and self._mode is not AnswerMode.EMPTY and not self.started:
            self._start(self._record.status, None)
            self._downstream.write(b"", False)

    def body(self, data: bytes, last: bool) -> bool:
        """False: the client takes no more for now."""
        mode = self._mode
        if mode is AnswerMode.EVENT_STREAM:
            return self._pass_event(data, last)
        if mode is AnswerMode.PASSED:
            return self._pass(data, data, last)
        if mode is AnswerMode.TRANSLATED:
            return self._pass_translated(data, last)
        self._collect(data)
        if not last:
            self.progress_at = self._clock()
        elif mode is AnswerMode.HELD:
            self._pass_whole(b"".join(self._parts))
        elif mode is AnswerMode.REFUSED:
            error = read_error(b"".join(self._parts), self._record.status)
            if self.questions.may_be_changed:
                self._rest = error
            else:
                self._refuse(error)
        return True

    def _collect(self, data: bytes) -> None:
        if self._mode is AnswerMode.WHOLE:
            assert self._translator is not None
            if not isinstance(self._rest, TranslatedAnswer):
                self._rest = TranslatedAnswer(self._memory, self._translator, self._length)
            self._rest.add(data)
            return
        if self._mode is AnswerMode.REFUSED:  # of an error nobody reads more
            data = data[: MAX_ERROR_BYTES - sum(map(len, self._parts))]
        if data or not self._parts:
            self._parts.append(data)

    def _pass_event(self, data: bytes, last: bool) -> bool:
        if data.startswith(b":") and is_only_comments(data):
            return self._pass_comment(last)
        if ERROR_IN_STREAM in data and not self._dialect.keeps_model_errors:
            return self._refuse_in_stream(data, last)
        return self._pass(data, data, last)

    def _refuse_in_stream(self, data: bytes, last: bool) -> bool:
        """The error is the last that llama-server says."""
        begin = data.index(ERROR_IN_STREAM)
        go_on = self._pass(data[:begin], data[:begin], False) if begin else True
        self._mode = AnswerMode.REFUSED
        return self.body(data[begin + len(b"data: ") :], last) and go_on

    def _pass_comment(self, last: bool) -> bool:
        """llama-server's own sign of life."""
        if not self.started:
            self._start(self._record.status, None)
        return self._downstream.write(self._dialect.heartbeat(self._heartbeats, ""), last)

    def _pass_translated(self, data: bytes, last: bool) -> bool:
        if data.startswith(b":") and not last and is_only_comments(data):
            return self._pass_comment(last)
        assert self._translator is not None
        translated = self._translator.feed(data)
        if not last:
            return self._pass(data, translated, False)
        translated += self._translator.end()
        if (failure := self._translator.failure) is None:
            return self._pass(data, translated, True)
        self._record.status = failure.status
        self._pass(data, translated, False)
        self.fail(failure)
        return True

    def _pass(self, data: bytes, translated: bytes, last: bool) -> bool:
        """`data` is llama-server's, and what is counted."""
        self.progress_at = now = self._clock()
        if data:
            if self._usage is None:
                self._begin(data, now)
            self._usage.feed(data)  # type: ignore[union-attr]
            self.events += data.count(EVENT)
        if not self.started:
            self._start(self._record.status, self._length)
        return self._downstream.write(translated, last)

    def _begin(self, data: bytes, now: float) -> None:
        self._record.first_byte_at = now
        self._usage = UsageScanner()
        self._usage.start(data)
        self._record.usage = self._usage.usage

    def _pass_whole(self, data: bytes) -> None:
        record = self._record
        if data:
            record.first_byte_at = self._clock()
            record.usage = partial(usage_of, data)
        self._start(record.status, len(data))
        self._downstream.write(data, True)

    # --- what is to be done when all has come

    def last_work(self, body: RequestBody | None) -> LastWork | None:
        """`body`: as llama-server was asked. None: its client knows all. Raises what it is to be told."""
        rest = self._rest
        if isinstance(rest, TranslatedAnswer):
            return rest.work(body, partial(self._tell, rest), is_step=self.questions.is_step)
        if rest is None or body is None:
            return None
        return self.questions.changed(rest, body, partial(self._ask_again, rest))

    def _tell(self, answer: TranslatedAnswer, translated: bytes | bytearray | Asked) -> None:
        if isinstance(translated, Asked):
            self._rest = None
            self.questions.ask(translated)
            return
        record = self._record
        record.first_byte_at, record.usage = self._clock(), answer.usage()
        answer.replace(translated)
        self._start(record.status, len(translated))

    def tell_more(self) -> bool:
        """Of a translated answer. False: the client takes no more for now."""
        if not isinstance(self._rest, TranslatedAnswer):
            return True
        self.progress_at = self._clock()
        piece, is_last = self._rest.next_piece()
        self._rest = None if is_last else self._rest
        return self._downstream.write(piece, is_last)

    @property
    def is_told(self) -> bool:
        return self._rest is None and self.questions.next is None

    def _ask_again(self, refusal: RouterError, found: Found) -> None:
        self._rest = None
        if found is None:
            self._refuse(refusal)
        else:
            self.questions.ask(found)

    def _refuse(self, error: RouterError) -> None:
        self._record.first_byte_at = self._record.first_byte_at or self._clock()
        self._record.status = error.status
        self.fail(error)

    # --- its end

    @property
    def has_last_event(self) -> bool:
        """All of a stream has been sent but that its connection ends: some clients do not wait for that."""
        told = self._translator or self._usage
        return told is not None and told.is_over

    def fail(self, error: RouterError) -> None:
        """The error as an answer, or as the last event. A plain answer that has begun is cut off."""
        if not self.started:
            id_ = self._record.request.request_id
            status, lines, body = answer_writer.error_answer(error, self._dialect, id_)
            self._downstream.start(status, lines + self._record.lines(), len(body))
            self._downstream.write(body, True)
        elif not self._is_event_stream:
            self._downstream.abort()
        else:
            cut, translator = self._dialect.cuts_failed_streams, self._translator
            last = self._dialect.last_event(error) if translator is None else translator.fail(error)
            self._downstream.write(last, not cut)
            if cut:
                self._downstream.cut()

    def abort(self) -> None:
        self._downstream.abort()

    # --- the head

    def _start(self, status: int, length: int | None) -> None:
        record, lines = self._record, self._lines
        if self._translator is not None and self._is_event_stream:
            lines = stream_lines(self._dialect.stream_type)
        own = own_lines(record.request.request_id)
        self._downstream.start(status, b"%b%b%b" % (lines, record.lines(), own), length)
        self.started = True
