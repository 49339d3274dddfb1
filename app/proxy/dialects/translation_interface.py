"""An API that llama-server does not speak, or not as clients expect: what it is asked and answers. Pure.

An endpoint without a translation costs nothing: its bodies and answers pass byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from app.domain.errors import RouterError
from app.domain.model_spec import ModelSpec
from app.domain.units import MIB
from app.proxy.dialects.json_pieces import MAX_PARTS_READ, PIECE, fields_in_pieces

TRANSLATED_AT_ONCE = 16384
"""Bytes, on the event loop: an item of a conversation may be short, and takes some microseconds."""

OBJECT_BYTES = 64
"""What a short text takes in memory beside itself."""


class Translator(Protocol):
    """One answer of status 200 on its way to the client. A request that is sent once more gets another."""

    def whole(self, body: bytes | bytearray) -> bytes | bytearray | Asked:
        """The answer to a request that asked for no stream. A large one comes in another thread.

        One that `is_step` may be followed by another question in the same slot. Raises a `RouterError` that
        is the answer instead.
        """
        ...

    def done(self) -> None:
        """On the event loop, behind `whole`, and behind `feed` and `end`."""

    def feed(self, data: bytes) -> bytes | bytearray:
        """Some of a stream, cut anywhere. Empty: nothing to be told yet."""
        ...

    def end(self) -> bytes | bytearray:
        """llama-server's stream has ended. If there is a failure now, `fail` follows."""
        ...

    def fail(self, error: RouterError) -> bytes:
        """The end of a stream that goes no further."""
        ...

    @property
    def waiting(self) -> int:
        """Bytes that come to what is fed next: of an event that is not complete yet, and of what the end of
        one tells once more."""
        ...

    @property
    def held(self) -> int:
        """Bytes that it keeps of the stream, with those, about."""
        ...

    @property
    def is_over(self) -> bool:
        """The last event of a stream has been told. What llama-server says now is of no interest."""
        ...

    @property
    def failure(self) -> RouterError | None:
        """The error that llama-server told in its stream, if it has."""
        ...


class Times(NamedTuple):
    """When what happened to a request: seconds of the clock `now`."""

    now: Callable[[], float]
    arrived: float
    granted: float
    """There was a process, and a place on it."""


class Asked(NamedTuple):
    """What llama-server is asked in the place of what the client asked, or of what it was asked before."""

    body: bytes | bytearray
    stream: bool
    translator: Callable[[Times], Translator] | None = None
    path: str | None = None
    """llama-server's, where it is another one."""
    again: Again | None = None
    kept_bytes: int = 0
    """Of what the client sent, that its translator keeps."""
    keeps_ttl: bool = False
    """A request that says nothing of it leaves it as it is how long its model stays loaded."""
    is_step: bool = False
    """Its answer is not the client's: there is more to be asked, or something is wrong with the request."""


Again = Callable[[RouterError, Any], bytes | bytearray | Asked | None]
"""What to ask in the place of a body, in the same slot, where llama-server refuses it so: another body, or
something else; None: it stands. Of a large one it is called in another thread."""


class Told(NamedTuple):
    """What the router answers by itself: its model is not asked."""

    body: bytes


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
    is_loaded: bool = False
    """Its model."""
    ttl_s: float | None = None
    """How long its model stays loaded after it; None: it does not say."""
    most_bytes: int = 64 * MIB
    """Of a body, with all that it refers to."""

    def all_fields(self) -> Mapping[str, Any]:
        """With what was left out."""
        return self.fields if len(self.body) <= PIECE else fields_in_pieces(self.body, MAX_PARTS_READ)


class Translation(Protocol):
    """Of one endpoint."""

    @property
    def edits(self) -> bool:
        """It needs all of the body."""
        ...

    def fields(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """With `model`, `stream` and `keep_alive` as OpenAI's API has them: by these it finds its way."""
        ...

    def size(self, incoming: Incoming) -> int:
        """Bytes that `ask` goes through. Many are not for the event loop: it is called in another thread."""
        ...

    def ask(self, incoming: Incoming) -> Asked | Told:
        """Raises a `RouterError` that is the answer instead."""
        ...
