"""The answer to one request as its client gets it: what is held back of its body, and how it ends."""

from __future__ import annotations

from functools import partial

from app.domain.errors import RouterError
from app.llama.llama_server_errors import ERROR_IN_STREAM, read_error
from app.proxy import answer_writer
from app.proxy.answer_mode import MAX_ERROR_BYTES, AnswerMode, untranslated
from app.proxy.answer_reader import AnswerHead
from app.proxy.dialects.sse_format import is_only_comments
from app.proxy.dialects.translation_interface import Asked
from app.proxy.questions import Found
from app.proxy.reply_head import ReplyHead
from app.proxy.request_body import RequestBody
from app.proxy.token_usage import LAST_BYTES, UsageScanner, usage_of
from app.proxy.translated_answer import InPieces, LastWork, TranslatedAnswer
from app.proxy.translated_stream import TranslatedStream

EVENT = b"data: {"


class Reply(ReplyHead):
    """Errors before the head are answers, later ones end an event stream."""

    __slots__ = ()

    def restart(self) -> None:
        """Forget what was held back: the request is sent once more."""
        self._mode, self._usage, self._rest, self._stream = AnswerMode.EMPTY, None, None, None
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
            self._stream = TranslatedStream(self._memory, made(self._record.times(self._clock)))
            return AnswerMode.TRANSLATED if streamed else AnswerMode.WHOLE
        return untranslated(self._record.request.method, status, length, is_event_stream=streamed)

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
        stream = self._stream
        assert stream is not None
        if stream.takes_long(data):
            stream.work = stream.work_on(data, last, partial(self._tell_events, data, last))
            return False
        translated = stream.feed(data, last)
        stream.settle()
        if not last:
            return self._pass(data, translated, False)
        if (failure := stream.translator.failure) is None:
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
            self._usage.feed(data if len(data) <= LAST_BYTES else data[-LAST_BYTES:])  # type: ignore[union-attr]
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

    # --- what takes long

    def work(self, body: RequestBody | None) -> LastWork | None:
        """`body`: as llama-server was asked. None: its client knows all that has come. Raises what it is to
        be told."""
        if self._stream is not None and (work := self._stream.work) is not None:
            self._stream.work = None
            return work
        rest = self._rest
        if isinstance(rest, TranslatedAnswer):
            return rest.work(body, partial(self._tell, rest), is_step=self.questions.is_step)
        if not isinstance(rest, RouterError) or body is None:
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

    def work_is_done(self) -> None:
        """Whatever it has found."""
        if self._stream is not None:
            self._stream.is_beside = False

    def _tell_events(self, data: bytes, last: bool, translated: bytes) -> None:
        assert self._stream is not None
        self._rest, self._stream.is_last = self._stream.told(translated), last
        if last and (failure := self._stream.translator.failure) is not None:
            self._record.status = failure.status
        self._pass(data, b"", False)

    def tell_more(self) -> bool:
        """Of what took long. False: the client takes no more for now."""
        if not isinstance(self._rest, InPieces):
            return True
        self.progress_at = self._clock()
        piece, is_told = self._rest.next_piece()
        self._rest = None if is_told else self._rest
        if self._mode is AnswerMode.WHOLE:
            return self._downstream.write(piece, is_told)
        assert self._stream is not None
        is_end = is_told and self._stream.is_last
        failure = self._stream.translator.failure if is_end else None
        go_on = self._downstream.write(piece, is_end and failure is None)
        if failure is not None:
            self.fail(failure)
        return go_on

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
        return told is not None and told.is_over and not self._is_within_event

    def fail(self, error: RouterError) -> None:
        """The error as an answer, or as the last event. A plain answer that has begun is cut off."""
        if not self.started:
            id_ = self._record.request.request_id
            status, lines, body = answer_writer.error_answer(error, self._dialect, id_)
            self._downstream.start(status, lines + self._record.lines(), len(body))
            self._downstream.write(body, True)
        elif not self._is_event_stream or self._is_within_event:
            self._downstream.abort()
        else:
            cut, translator = self._dialect.cuts_failed_streams, self._translator
            last = self._dialect.last_event(error) if translator is None else translator.fail(error)
            self._downstream.write(last, not cut)
            if cut:
                self._downstream.cut()

    @property
    def _is_within_event(self) -> bool:
        """Of a translated stream: no other one may follow."""
        return self._stream is not None and (self._stream.is_beside or self._rest is not None)

    def abort(self) -> None:
        self._downstream.abort()
