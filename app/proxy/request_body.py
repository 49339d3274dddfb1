"""The body of a request, from its announcement to the end of its exchange."""

from __future__ import annotations

from app.proxy.client_memory import ClientMemory


class RequestBody:
    """In memory, as a whole: `model` and `stream` are read from it, and it may have to be sent twice.

    It is counted as long as it lives, so that no way on which a request can end has to think of it: what is
    counted is what is there.
    """

    __slots__ = ("_memory", "_taken", "data")

    def __init__(self, memory: ClientMemory, announced: int = 0) -> None:
        """Takes a place for what was announced, the rest as it comes. Raises what a client without a place is
        to be told, as `add` does."""
        self._memory, self._taken = memory, 0
        self.data: bytes | bytearray = b""
        self._take(announced)

    def __len__(self) -> int:
        return len(self.data)

    def add(self, piece: bytes) -> None:
        size = len(self.data) + len(piece)
        if size > self._taken:
            self._take(size - self._taken)
        if not self.data:
            self.data = piece
        elif isinstance(self.data, bytearray):
            self.data += piece
        else:  # it grows in its place: joined pieces would be there twice, and made in one long turn
            self.data = bytearray(self.data)
            self.data += piece

    def replace(self, data: bytes | bytearray) -> None:
        """By what is sent on in its place."""
        if data is self.data:
            return
        if len(data) > self._taken:
            self._take(len(data) - self._taken)
        self.data = data

    def _take(self, size: int) -> None:
        self._memory.take(size)
        self._taken += size

    def __del__(self) -> None:
        self._memory.give_back(self._taken, self.data)
