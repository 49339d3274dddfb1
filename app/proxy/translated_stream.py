"""A stream that is translated: what is large of it leaves the event loop, what is kept of it is counted."""

from __future__ import annotations

from functools import partial

from app.proxy.dialects.translation_interface import TRANSLATED_AT_ONCE, Translator
from app.proxy.request_body import RequestBody
from app.proxy.request_memory_limit import ClientMemory
from app.proxy.translated_answer import InPieces, LastWork, Tell

COUNTED_BYTES = 65536
"""In steps of so many: an event has some hundred."""


class TranslatedStream:
    """One event is translated with a few others, or by itself; never two at a time."""

    __slots__ = ("_counted", "_memory", "_place", "is_beside", "is_last", "translator", "work")

    def __init__(self, memory: ClientMemory, translator: Translator) -> None:
        self.translator = translator
        self.work: LastWork | None = None
        """What is to be done now."""
        self.is_beside = self.is_last = False
        """Another thread has the translator; with what that found the stream ends."""
        self._memory, self._place, self._counted = memory, RequestBody(memory), 0

    def takes_long(self, data: bytes) -> bool:
        """The rest of an event may be short, and complete a long one."""
        return len(data) + self.translator.waiting > TRANSLATED_AT_ONCE

    def feed(self, data: bytes, last: bool) -> bytes:
        translated = self.translator.feed(data)
        return translated + self.translator.end() if last else translated

    def work_on(self, data: bytes, last: bool, tell: Tell) -> LastWork:
        """`feed`, of what takes long."""
        self.is_beside = True
        size = len(data) + self.translator.waiting
        return LastWork(size, partial(self.feed, data, last), tell, needs_slot=False)

    def told(self, translated: bytes) -> InPieces:
        """What `work_on` has found. Raises what the client is told where there is no place for it."""
        self.settle()
        return InPieces(self._memory, translated)

    def settle(self) -> None:
        """On the event loop, behind `feed`. Raises what the client is told where there is no place for what
        the translator keeps."""
        self.translator.done()
        more = self.translator.held - self._counted
        if more > 0:
            more = max(more, COUNTED_BYTES)
            self._place.expect(more)
            self._counted += more
