"""What an exchange needs of its surroundings, and what they may call. None of these methods may raise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from app.core.config import SystemConfig
from app.core.queue import Ticket
from app.domain.errors import RouterError
from app.domain.ticket_owner import TicketOwner
from app.llama.runner_interface import Runner
from app.models.instance import ModelInstance
from app.proxy.answer_reader import AnswerHead
from app.proxy.request_body import Data
from app.proxy.request_record import RequestRecord, RoutedRequest


class UpstreamGone(Exception):
    """The connection failed: the process died, or was stopped, or does not speak HTTP.

    `stale`: it had been open before this request and ended without a byte, so it says nothing of the process.
    """

    def __init__(self, message: str, *, stale: bool = False) -> None:
        super().__init__(message)
        self.stale = stale


class Pending(Protocol):
    """Something that was begun and will call back."""

    def cancel(self) -> object: ...


class Downstream(Protocol):
    """The client's end. Frames what it is given."""

    def start(self, status: int, lines: bytes, length: int | None) -> None:
        """The head, its headers as lines. It is sent with the first `write`. `length` is None where it is not
        known yet."""

    def write(self, data: bytes, last: bool) -> bool:
        """Some of the body; after the last piece the answer is complete. False: `writable` will be called."""
        ...

    def cut(self) -> None:
        """End the connection in `CUT_AFTER_S` without completing the answer: its client is reading it."""

    def abort(self) -> None:
        """As `cut`, but at once: its client has no use for what it has not read."""


class Listener(Protocol):
    """Who has asked on a connection."""

    def head(self, head: AnswerHead, length: int | None) -> None:
        """`length` is that of the body, where it was announced."""

    def body(self, data: bytes, last: bool) -> bool:
        """At least a byte, or the end. False: no more until `resume`."""
        ...

    def broken(self, error: UpstreamGone) -> None:
        """Nothing more comes. The connection is closed."""

    def bug(self, bug: Exception) -> None:
        """As `broken`, by a mistake of ours in reading. Log it."""


class Link(Protocol):
    """A connection to llama-server."""

    def ask(
        self, request: RoutedRequest, api_key: str, body: Data, listener: Listener, *, is_fresh: bool
    ) -> None: ...

    def release(self) -> None: ...

    def resume(self) -> None: ...


class LinkUser(Protocol):
    """Who needs a connection."""

    def connected(self, link: Link, is_fresh: bool) -> None:
        """`is_fresh`: opened for this user."""

    def broken(self, error: UpstreamGone) -> None:
        """Nothing listens on that port."""

    def refused(self, error: RouterError) -> None:
        """The router itself cannot open one."""


class Links(Protocol):
    """Where connections come from."""

    def take(self, port: int) -> Link | None:
        """One that is open and that nobody uses, if there is one."""
        ...

    def open(self, port: int, user: LinkUser) -> Pending:
        """A new one, which the user gets later."""
        ...

    def open_ahead(self, port: int, wanted: int) -> None: ...


class Entrant(TicketOwner, Protocol):
    """Who wants a slot: an exchange."""

    instance: ModelInstance
    ticket: Ticket
    record: RequestRecord

    def process_gone(self, error: RouterError | None) -> None:
        """With what it ends; None: it is asked once more."""

    def bug(self, bug: Exception) -> None: ...


class Slots(Protocol):
    """The queue in front of a model's slots."""

    def enter(self, entrant: Entrant) -> Pending | None:
        """Leads to `granted` or `refused`, perhaps before this returns."""
        ...

    def leave(self, entrant: Entrant) -> None:
        """Gives the ticket back. Safe to call twice."""

    def given_up(self, entrant: Entrant) -> None:
        """It ends, and llama-server works on: its place stays taken until that has noticed."""

    def waits_because(self, entrant: Entrant) -> str | None:
        """Why its model is not loaded yet, for people; None where nothing stands in its way."""
        ...

    def patience_s(self, entrant: Entrant, runner: Runner, quiet_since: float) -> float:
        """How long to wait for it until this is asked again; 0: its slot has stood still for too long."""
        ...

    def awake_s(self, since: float, now: float) -> float:
        """The part of this time in which this program itself did not stand still."""
        ...

    def lost(self, entrant: Entrant, runner: Runner | None) -> Pending | None:
        """Leads to `process_gone` when this process has ended; until then its slot stays taken."""
        ...

    def ended(self, entrant: Entrant) -> None:
        """As `leave`, and the record is complete."""


class Beside(Protocol):
    """Where that is done which takes long."""

    def do(self, work: Callable[[], Any], tell: Callable[[Any], None], *, next_: bool) -> Pending:
        """`tell` gets what `work` returns, or the error that it raises. `next_`: before all that waits."""
        ...


class Surroundings(NamedTuple):
    """All of these, for one exchange."""

    slots: Slots
    links: Links
    beside: Beside
    limits: SystemConfig
    clock: Callable[[], float]
    wake: Callable[[float], None]
    """Asks for one call of `due` after so many seconds, instead of the one asked for before."""
