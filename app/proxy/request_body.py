"""The body of a request that was let in, while it comes."""

from __future__ import annotations

from app.proxy.gateway import Accepted


class RequestBody:
    """In memory, as a whole: `model` and `stream` are read from it, and it may have to be sent twice."""

    __slots__ = ("_parts", "accepted", "size")

    def __init__(self, accepted: Accepted) -> None:
        self.accepted, self.size = accepted, 0
        self._parts: list[bytes] = []

    def add(self, data: bytes) -> None:
        self._parts.append(data)
        self.size += len(data)

    def whole(self) -> bytes:
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
