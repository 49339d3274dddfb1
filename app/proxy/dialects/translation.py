"""An API that llama-server does not speak, or not as clients expect: what it is asked and answers. Pure.

An endpoint without a translation costs nothing: its bodies and answers pass byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from app.domain.errors import RouterError
from app.domain.spec import ModelSpec


class Translator(Protocol):
    """One answer of status 200 on its way to the client. A request that is sent once more gets another."""

    def whole(self, body: bytes) -> bytes:
        """The answer to a request that asked for no stream."""
        ...

    def feed(self, data: bytes) -> bytes:
        """Some of a stream, cut anywhere. Empty: nothing to be told yet."""
        ...

    def end(self) -> bytes:
        """llama-server's stream has ended. If there is a failure now, `fail` follows."""
        ...

    def fail(self, error: RouterError) -> bytes:
        """The end of a stream that goes no further."""
        ...

    @property
    def failure(self) -> RouterError | None:
        """The error that llama-server told in its stream, if it has."""
        ...


class Asked(NamedTuple):
    """What llama-server is asked in the place of what the client asked."""

    body: bytes | bytearray
    stream: bool
    translator: Callable[[], Translator] | None = None
    path: str | None = None
    """llama-server's, where it is another one."""


class Incoming(NamedTuple):
    """A request as its client sent it."""

    fields: Mapping[str, Any]
    """All of its body where the translation `edits`; else long values of large bodies are left out."""
    body: bytes | bytearray
    owner: str
    """Whose key was shown."""
    spec: ModelSpec
    stream: bool
    """As its field of this name says."""
    now: float
    """Unix seconds."""


class Translation(Protocol):
    """Of one endpoint."""

    @property
    def edits(self) -> bool:
        """It needs all of the body."""
        ...

    def ask(self, incoming: Incoming) -> Asked:
        """Raises what the client is to be told instead."""
        ...
