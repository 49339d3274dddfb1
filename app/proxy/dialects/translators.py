"""What translators of several APIs have in common. Pure."""

from __future__ import annotations

from typing import Any

from app.domain.errors import ModelCrashed, RouterError
from app.llama.llama_server_errors import read_error
from app.proxy.dialects.json_pieces import joined
from app.proxy.dialects.sse_format import Event, EventReader


class StreamTranslator:
    """Finds the events of a stream, and how it ends."""

    def __init__(self) -> None:
        self.failure: RouterError | None = None
        self.is_over = False
        self._reader = EventReader()

    @property
    def waiting(self) -> int:
        return len(self._reader.rest)

    @property
    def held(self) -> int:
        return len(self._reader.rest)

    def done(self) -> None:
        """Nothing is left."""

    def feed(self, data: bytes) -> bytes | bytearray:
        return joined([self._translated(found) for found in self._reader.feed(data)])

    def end(self) -> bytes | bytearray:
        rest = joined([self._translated(found) for found in self._reader.end()])
        if not self.is_over and self.failure is None:
            self.failure = ModelCrashed("llama-server ended its answer before it was complete; send it again")
        return rest

    def fail(self, error: RouterError) -> bytes:
        return b"" if self.is_over else self._error(error)

    def _translated(self, found: Event) -> bytes | bytearray:
        told = found.json()
        if told is None or self.is_over:
            return b""
        if told.get("error") is not None:
            self.failure = read_error(found.data, 200)
            return b""
        return self._events(told, len(found.data))

    def _events(self, told: dict[str, Any], size: int) -> bytes | bytearray:
        """Of one that llama-server tells in so many bytes."""
        raise NotImplementedError

    def _error(self, error: RouterError) -> bytes:
        """The last event of a stream that goes no further."""
        raise NotImplementedError


class WholeTranslator:
    """Of answers that never come as a stream."""

    failure, is_over = None, False
    waiting = held = 0

    def done(self) -> None:
        """Nothing is left."""

    def feed(self, _data: bytes) -> bytes:
        return b""

    def end(self) -> bytes:
        return b""

    def fail(self, _error: RouterError) -> bytes:
        return b""
