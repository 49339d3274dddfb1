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


class LastWork(NamedTuple):
    """What is to be done when llama-server has said all."""

    size: int
    """Bytes that it goes through, about. Many are not for the event loop."""
    work: Callable[[], Any]
    tell: Callable[[Any], None]
    """On the event loop, what `work` has returned."""
    needs_slot: bool
    """llama-server may be asked once more."""


class TranslatedAnswer:
    """Counted as long as it lives."""

    __slots__ = ("_body", "_memory", "_sent", "translator")

    def __init__(self, memory: ClientMemory, translator: Translator, length: int | None) -> None:
        """`length`: where it was announced. Raises what the client is told where there is no place, as `add`
        and `work` do."""
        self.translator, self._memory = translator, memory
        with self._place():
            self._body, self._sent = RequestBody(memory, length or 0), 0

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

    def add(self, data: bytes) -> None:
        with self._place():
            self._body.add(data)

    def work(self, asked: RequestBody | None, tell: Callable[[Any], None], *, is_step: bool) -> LastWork:
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

    def next_piece(self) -> tuple[bytes, bool]:
        """And whether it is the last."""
        data, begin = self._data, self._sent
        self._sent += PIECE_BYTES
        return bytes(data[begin : self._sent]), self._sent >= len(data)
