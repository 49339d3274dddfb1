"""An answer that is translated, as a whole or some events at a time: what is large of it has its place in
memory, and is passed on in pieces."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from app.domain.errors import AnswerTooLarge, RequestTooLarge
from app.domain.events import Usage
from app.domain.units import MIB
from app.proxy.dialects.json_pieces import joined
from app.proxy.dialects.translation_interface import TRANSLATED_AT_ONCE, Translator
from app.proxy.request_body import STEP_BYTES, RequestBody, Spool
from app.proxy.request_memory_limit import ClientMemory
from app.proxy.token_usage import FIRST_BYTES, LAST_BYTES, usage_in

PIECE_BYTES = 262144

Tell = Callable[[Any], None]


class ReplyWork(NamedTuple):
    """What is to be done with what llama-server has said."""

    size: int
    """Bytes that it goes through, about. Many are not for the event loop."""
    work: Callable[[], Any]
    tell: Tell
    """On the event loop, what `work` has returned."""
    needs_slot: bool
    """llama-server may be asked once more."""


class TranslatedAnswer:
    """Small events are translated at once. Of the rest one `part` at a time is under way: first what
    llama-server says, then what becomes of it."""

    __slots__ = ("_is_stream", "_kept", "_memory", "_uncounted", "part", "translator")

    def __init__(
        self, memory: ClientMemory, kept: RequestBody, translator: Translator, *, is_stream: bool
    ) -> None:
        """`kept`: has a place for what the translator keeps."""
        self.translator = translator
        self.part: TranslatedPart | None = None
        self._memory, self._kept, self._is_stream = memory, kept, is_stream
        self._uncounted = 0

    def collect(self, data: bytes, announced: int) -> None:
        """Some of one that is translated as a whole. Raises what the client is told where there is no place
        for it, as all does that makes it larger."""
        if self.part is None:
            self.part = TranslatedPart(self._memory, self.translator.whole, announced)
        self.part.add(data)

    def feed(self, data: bytes, *, last: bool) -> bytes | None:
        """Some of a stream. None: that takes long, and is a `part` now."""
        translator = self.translator
        if len(data) + translator.waiting <= TRANSLATED_AT_ONCE:  # it may complete a long event
            translated = bytes(_events(translator, data, last=last))
            self._uncounted += len(data)
            if translator.is_over or self._uncounted >= STEP_BYTES:
                self._settle()
            return translated
        self.part = TranslatedPart(self._memory, partial(_events, translator, last=last), is_last=last)
        self.part.add(data)
        return None

    def _settle(self) -> None:
        """Behind the last event, and now and then: it keeps about as much as comes."""
        self._uncounted = 0
        self.translator.done()
        self._kept.hold(self.translator.held)

    # --- its part

    def work(self, asked: RequestBody | None, tell: Tell, *, needs_slot: bool) -> ReplyWork:
        """`asked`: the request, of which a whole answer may repeat much."""
        assert self.part is not None
        more = self.translator.waiting if self._is_stream else len(asked or b"")
        return self.part.work(more, tell, needs_slot=needs_slot)

    def replace(self, translated: bytes | bytearray) -> None:
        """The part by what the client gets."""
        part, self.part = self.part, None
        assert part is not None
        self._settle()
        part.replace(translated)
        self.part = part

    def next_piece(self) -> tuple[bytes, bool]:
        """Of the part, and whether that is the end of the answer."""
        part = self.part
        assert part is not None
        piece, is_told = part.next_piece()
        self.part = None if is_told else part
        return piece, is_told and part.is_last

    @property
    def is_within_event(self) -> bool:
        """No other one may follow now."""
        return self.part is not None and self.part.is_under_way


def _events(translator: Translator, data: bytes, *, last: bool) -> bytes | bytearray:
    translated = translator.feed(data)
    return joined([translated, translator.end()]) if last else translated


class TranslatedPart:
    """All of an answer, or some events. Counted as long as it lives."""

    __slots__ = ("_body", "_memory", "_sent", "_translate", "is_last", "is_under_way")

    def __init__(
        self,
        memory: ClientMemory,
        translate: Callable[[bytes | bytearray], Any],
        announced: int = 0,
        *,
        is_last: bool = True,
    ) -> None:
        """`is_last`: of its answer."""
        self._memory, self._translate, self._sent, self.is_last = memory, translate, 0, is_last
        self.is_under_way = False
        """Another thread has it, or the client has some of it."""
        with self._place():
            self._body = RequestBody(memory, announced)

    @property
    def data(self) -> bytes | bytearray:
        data = self._body.data
        assert not isinstance(data, Spool)
        return data

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        """What is too large is no mistake of its client's."""
        try:
            yield
        except RequestTooLarge:
            raise AnswerTooLarge(
                f"llama-server's answer takes more than the {self._memory.limit // MIB} MB that there are "
                "for all clients: ask for less of it, or raise api.max_memory_mb"
            ) from None

    def add(self, data: bytes) -> None:
        with self._place():
            self._body.add(data)

    def work(self, more: int, tell: Tell, *, needs_slot: bool) -> ReplyWork:
        """To translate it. `more`: bytes that come to it, about: what it may repeat, or completes."""
        size = len(self._body) + more
        if size > TRANSLATED_AT_ONCE:
            with self._place():
                self._body.expect(size)
        self.is_under_way = True
        return ReplyWork(size, partial(self._translate, self.data), tell, needs_slot)

    def usage(self) -> Callable[[], Usage]:
        """Of llama-server's words; the rest of them is not kept for it."""
        data = self.data
        return partial(usage_in, bytes(data[:FIRST_BYTES]), bytes(data[-LAST_BYTES:]))

    def replace(self, data: bytes | bytearray) -> None:
        """By what the client gets."""
        with self._place():
            self._body.replace(data)

    def next_piece(self) -> tuple[bytes, bool]:
        """And whether it is the last."""
        data, begin = self.data, self._sent
        self._sent += PIECE_BYTES
        return bytes(data[begin : self._sent]), self._sent >= len(data)
