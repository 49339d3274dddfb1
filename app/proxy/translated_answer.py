"""A plain answer that is translated as a whole: it takes its place in memory, and is passed on in pieces."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from app.domain.errors import AnswerTooLarge, RequestTooLarge
from app.domain.events import Usage
from app.domain.units import MIB
from app.proxy.dialects.translation_interface import TRANSLATED_AT_ONCE, Translator
from app.proxy.request_body import RequestBody, Spool
from app.proxy.request_memory_limit import ClientMemory
from app.proxy.token_usage import FIRST_BYTES, LAST_BYTES, usage_in

PIECE_BYTES = 262144

Tell = Callable[[Any], None]


class LastWork(NamedTuple):
    """What is to be done with what llama-server has said."""

    size: int
    """Bytes that it goes through, about. Many are not for the event loop."""
    work: Callable[[], Any]
    tell: Tell
    """On the event loop, what `work` has returned."""
    needs_slot: bool
    """llama-server may be asked once more."""


class InPieces:
    """Something for a client that is passed on as it is taken. Counted as long as it lives."""

    __slots__ = ("_body", "_memory", "_sent")

    def __init__(self, memory: ClientMemory, data: bytes | bytearray = b"", *, announced: int = 0) -> None:
        """Raises what the client is told where there is no place, as all that makes it larger does."""
        self._memory, self._sent = memory, 0
        with self._place():
            self._body = RequestBody(memory, announced)
            self._body.replace(data)

    @property
    def _data(self) -> bytes | bytearray:
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

    def next_piece(self) -> tuple[bytes, bool]:
        """And whether it is the last."""
        data, begin = self._data, self._sent
        self._sent += PIECE_BYTES
        return bytes(data[begin : self._sent]), self._sent >= len(data)


class TranslatedAnswer(InPieces):
    """First what llama-server says, then what becomes of it."""

    __slots__ = ("translator",)

    def __init__(self, memory: ClientMemory, translator: Translator, length: int | None) -> None:
        """`length`: where it was announced."""
        super().__init__(memory, announced=length or 0)
        self.translator = translator

    def add(self, data: bytes) -> None:
        with self._place():
            self._body.add(data)

    def work(self, asked: RequestBody | None, tell: Tell, *, is_step: bool) -> LastWork:
        """`asked`: the request, of which the answer may repeat much."""
        size = len(self._body) + (0 if asked is None else len(asked))
        if size > TRANSLATED_AT_ONCE:
            with self._place():
                self._body.expect(size)
        return LastWork(size, partial(self.translator.whole, self._data), tell, needs_slot=is_step)

    def usage(self) -> Callable[[], Usage]:
        """Of llama-server's words; the rest of them is not kept for it."""
        data = self._data
        return partial(usage_in, bytes(data[:FIRST_BYTES]), bytes(data[-LAST_BYTES:]))

    def replace(self, data: bytes | bytearray) -> None:
        """By what the client gets."""
        self.translator.done()
        with self._place():
            self._body.replace(data)
