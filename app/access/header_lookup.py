"""The headers of a request."""

from __future__ import annotations

from collections.abc import KeysView, Sequence
from typing import Protocol, overload

Raw = list[tuple[bytes, bytes]]


class Headers(Protocol):
    """What is asked of headers; Starlette's can tell it, too. Names in lower case."""

    @property
    def raw(self) -> Sequence[tuple[bytes, bytes]]: ...

    @overload
    def get(self, name: str, /) -> str | None: ...

    @overload
    def get(self, name: str, default: str, /) -> str: ...

    def getlist(self, name: str, /) -> list[str]: ...

    def __contains__(self, name: object, /) -> bool: ...


class RequestHeaders:
    """Read in one pass, where Starlette's make one, and often an exception, for each question."""

    __slots__ = ("_first", "raw")

    def __init__(self, raw: Raw) -> None:
        self.raw = raw
        self._first = {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(raw)}

    @overload
    def get(self, name: str, /) -> str | None: ...

    @overload
    def get(self, name: str, default: str, /) -> str: ...

    def get(self, name: str, default: str | None = None, /) -> str | None:
        """The first of several of one name, as Starlette does."""
        return self._first.get(name, default)

    def getlist(self, name: str, /) -> list[str]:
        wanted = name.encode("latin-1")
        return [value.decode("latin-1") for found, value in self.raw if found == wanted]

    def keys(self) -> KeysView[str]:
        return self._first.keys()

    def __contains__(self, name: object, /) -> bool:
        return name in self._first
