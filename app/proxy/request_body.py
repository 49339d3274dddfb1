"""The body of a request, from its announcement to the end of its exchange."""

from __future__ import annotations

from collections.abc import Callable
from typing import IO

from app.proxy.request_memory_limit import ClientMemory


class Spool:
    """Bytes in a file, read by slices. The file ends with it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._size = file, 0

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self._size)
        self._file.seek(start)
        return self._file.read(stop - start)

    def append(self, data: bytes | bytearray) -> None:
        self._file.seek(self._size)
        self._file.write(data)
        self._size += len(data)


STEP_BYTES = 65536

Data = bytes | bytearray | Spool
"""Of a body, as a whole."""


class RequestBody:
    """In memory, as a whole: `model` and `stream` are read from it, and it may have to be sent twice.

    It is counted as long as it lives, so that no way on which a request can end has to think of it: what is
    counted is what is there.
    """

    __slots__ = ("_check", "_memory", "_taken", "data")

    def __init__(
        self, memory: ClientMemory, announced: int = 0, *, check: Callable[[int], None] = lambda _: None
    ) -> None:
        """Takes a place for what was announced, the rest as it comes. Raises `RequestTooLarge` or
        `Overloaded` where there is none, as `add` does.

        `check` raises for a size that is too large; what was announced has been checked.
        """
        self._memory, self._taken, self._check = memory, 0, check
        self.data: Data = b""
        memory.take(announced)
        self._taken = announced

    def __len__(self) -> int:
        return len(self.data)

    def add(self, piece: bytes) -> None:
        size = len(self.data) + len(piece)
        if size > self._taken:
            self._check(size)
            self._take(size - self._taken)
        if not self.data:
            self.data = piece
        elif isinstance(self.data, bytearray):
            self.data += piece
        elif isinstance(self.data, bytes):
            # It grows in its place: joined pieces would be there twice, and made in one long turn.
            self.data = bytearray(self.data)
            self.data += piece

    def expect(self, more: int) -> None:
        """Take a place for so much beside it, which will `replace` it."""
        self._take(more)

    def hold(self, size: int) -> None:
        """Have a place for so many bytes, at least: it grows in steps."""
        if size > self._taken:
            self._take(max(size - self._taken, STEP_BYTES))

    def replace(self, data: Data) -> None:
        """By what is sent on in its place."""
        if data is self.data:
            return
        if len(data) > self._taken:
            self._take(len(data) - self._taken)
        before, self.data = self.data, data
        surplus, self._taken = self._taken - len(data), len(data)
        self._memory.give_back(surplus, b"" if isinstance(before, Spool) else before)

    def _take(self, size: int) -> None:
        self._memory.take(size)
        self._taken += size

    def __del__(self) -> None:
        self._memory.give_back(self._taken, b"" if isinstance(self.data, Spool) else self.data)
