"""The answer to one request as its client gets it: what is held back of it, and how it ends."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from app.domain.config_types import Heartbeats
from app.domain.errors import RouterError
from app.llama.llama_server_errors import ERROR_IN_STREAM, read_error
from app.proxy.answer_mode import MAX_ERROR_BYTES, AnswerMode, Left, untranslated
from app.proxy.answer_reader import AnswerHead
from app.proxy.dialects.dialect import Dialect
from app.proxy.dialects.shown_wait import ShowWait
from app.proxy.dialects.sse_format import is_only_comments
from app.proxy.dialects.translation_interface import Asked
from app.proxy.exchange_interfaces import Downstream
from app.proxy.questions import AS_IT_CAME, Found, Questions
from app.proxy.reply_head import ReplyHead
from app.proxy.request_body import RequestBody
from app.proxy.request_memory_limit import ClientMemory
from app.proxy.request_record import RequestRecord
from app.proxy.token_usage import LAST_BYTES, UsageScanner, usage_of
from app.proxy.translated_answer import ReplyWork, Tell, TranslatedAnswer

EVENT = b"data: {"


class Reply:
    """Writes to one `Downstream`. Errors before the head are answers, later ones end an event stream."""

    __slots__ = ("_clock", "_dialect", "_downstream", "_kept", "_memory", "_mode", "_parts",
                 "_record", "_refusal", "_translated", "_usage", "events", "own_head", "progress_at",
                 "questions")  # fmt: skip

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
        is. `memory`: in which what is translated or kept takes its place. `show_wait` writes what the client
        shows of its wait, in the place of heartbeats."""
        self.progress_at = 0.0
        """When something last moved; comments in a stream do not count."""
        self.questions = AS_IT_CAME if asked is None else Questions(asked)
        self.events = 0
        """Of a stream, that have come from llama-server: about one a token."""
        self._downstream, self._record, self._clock, self._dialect = downstream, record, clock, dialect
        self.own_head = ReplyHead(downstream, record, dialect, heartbeats, show_wait)
        self._memory = memory
        self._kept = None if asked is None else RequestBody(memory, asked.kept_bytes)
        self._mode = AnswerMode.EMPTY
        self._translated: TranslatedAnswer | None = None
        self._refusal: RouterError | None = None
        self._parts: list[bytes] = []
        self._usage: UsageScanner | None = None

    def restart(self) -> None:
        """Forget what was held back: the request is sent once more."""
        self._mode, self._usage, self._translated, self._refusal = AnswerMode.EMPTY, None, None, None
        self.events, self.questions.next = 0, None
        self._parts.clear()
        self.own_head.restart()

    # --- the answer

    def head(self, head: AnswerHead, length: int | None) -> bool:
        """True: it is that of an event stream, and waits for the first event, or for its `flush`."""
        self._record.status = head.status
        self._mode = mode = self._mode_for(head.status, length, head.is_event_stream)
        if self.own_head.started:
            return False
        is_event_stream = head.is_event_stream and mode is not AnswerMode.REFUSED
        lines = None if mode is AnswerMode.TRANSLATED else head.lines
        self.own_head.becomes(lines, length, is_event_stream=is_event_stream)
        return is_event_stream

    def _mode_for(self, status: int, length: int | None, streamed: bool) -> AnswerMode:
        if self.own_head.started:
            if not streamed or status != 200:
                return AnswerMode.REFUSED
        elif status >= 400 and not self._dialect.keeps_model_errors:
            return AnswerMode.REFUSED
        if status == 200 and (made := self.questions.translator) is not None:
            assert self._kept is not None
            translator = made(self._record.times(self._clock))
            self._translated = TranslatedAnswer(self._memory, self._kept, translator, is_stream=streamed)
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
                self._refusal = error
            else:
                self._refuse(error)
        return True

    def _collect(self, data: bytes) -> None:
        if self._mode is AnswerMode.WHOLE:
            assert self._translated is not None
            self._translated.collect(data, self.own_head.length or 0)
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
        if not self.own_head.started:
            self.own_head.send()
        return self._downstream.write(self.own_head.comment(""), last)

    def _pass_translated(self, data: bytes, last: bool) -> bool:
        if data.startswith(b":") and not last and is_only_comments(data):
            return self._pass_comment(last)
        assert self._translated is not None
        translated = self._translated.feed(data, last=last)
        if translated is None:
            return False
        failure = self._failure() if last else None
        go_on = self._pass(data, translated, last and failure is None)
        if failure is not None:
            self.fail(failure)
        return go_on

    def _failure(self) -> RouterError | None:
        """At the end of a stream: what llama-server has told as an error in it."""
        assert self._translated is not None
        failure = self._translated.translator.failure
        if failure is not None:
            self._record.status = failure.status
        return failure

    def _pass(self, data: bytes, translated: bytes, last: bool) -> bool:
        """`data` is llama-server's, and what is counted."""
        self.progress_at = now = self._clock()
        if data:
            if self._usage is None:
                self._record.first_byte_at, self._usage = now, UsageScanner()
                self._usage.start(data)
                self._record.usage = self._usage.usage
            self._usage.feed(data if len(data) <= LAST_BYTES else data[-LAST_BYTES:])
            self.events += data.count(EVENT)
        if not self.own_head.started:
            self.own_head.send()
        return self._downstream.write(translated, last)

    def _pass_whole(self, data: bytes) -> None:
        record = self._record
        if data:
            record.first_byte_at = self._clock()
            record.usage = partial(usage_of, data)
        self.own_head.send_whole(len(data))
        self._downstream.write(data, True)

    # --- what may take long

    def work(self, body: RequestBody | None) -> ReplyWork | None:
        """`body`: as llama-server was asked. None: its client has been told all that has come. Raises what it
        is to be told."""
        translated = self._translated
        if translated is not None and translated.part is not None:
            tell = self._tell_whole if self._mode is AnswerMode.WHOLE else self._tell_events
            return translated.work(body, tell, needs_slot=self.questions.is_step)
        if self._refusal is None or body is None:
            return None
        return self.questions.changed(self._refusal, body, partial(self._ask_again, self._refusal))

    def told(self, tell: Tell, found: Any) -> None:
        """What that has found. Raises it where it is an error."""
        if isinstance(found, (Exception, Asked)) and self._translated is not None:
            self._translated.part = None
        self._refusal = None
        if isinstance(found, Exception):
            raise found
        tell(found)

    def _tell_whole(self, found: bytes | bytearray | Asked) -> None:
        if isinstance(found, Asked):
            self.questions.ask(found)
            return
        record, translated = self._record, self._translated
        assert translated is not None and translated.part is not None
        record.first_byte_at, record.usage = self._clock(), translated.part.usage()
        translated.replace(found)
        self.own_head.send_whole(len(found))

    def _tell_events(self, found: bytes | bytearray) -> None:
        translated = self._translated
        assert translated is not None and translated.part is not None
        data, last = bytes(translated.part.data), translated.part.is_last
        translated.replace(found)
        if last:
            self._failure()
        self._pass(data, b"", False)

    def tell_more(self) -> bool:
        """Of what was translated. False: the client takes no more for now."""
        if self._translated is None or self._translated.part is None:
            return True
        self.progress_at = self._clock()
        piece, last = self._translated.next_piece()
        failure = self._failure() if last else None
        go_on = self._downstream.write(piece, last and failure is None)
        if failure is not None:
            self.fail(failure)
        return go_on

    @property
    def left(self) -> Left:
        if self._translated is not None and self._translated.part is not None:
            is_stream = self._mode is AnswerMode.TRANSLATED and self.own_head.started
            return Left.EVENTS if is_stream else Left.ANSWER
        return Left.NOTHING if self._refusal is None and self.questions.next is None else Left.ANSWER

    def _ask_again(self, refusal: RouterError, found: Found) -> None:
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
        if self._translated is not None:
            return self._translated.translator.is_over and not self._translated.is_within_event
        return self._usage is not None and self._usage.is_over

    def fail(self, error: RouterError) -> None:
        """The error as an answer, or as the last event. A plain answer that has begun is cut off."""
        translated = self._translated
        if not self.own_head.started:
            self.own_head.answer(error)
        elif not self.own_head.is_event_stream or (translated is not None and translated.is_within_event):
            self._downstream.abort()
        else:
            cut = self._dialect.cuts_failed_streams
            last_event = self._dialect.last_event if translated is None else translated.translator.fail
            self._downstream.write(last_event(error), not cut)
            if cut:
                self._downstream.cut()

    def abort(self) -> None:
        self._downstream.abort()

    def let_go(self) -> None:
        """Of what has a place in memory: its exchange is over, and may be referred to for a while."""
        self._kept = self._translated = None
