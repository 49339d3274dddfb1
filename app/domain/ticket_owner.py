"""Who holds a ticket."""

from __future__ import annotations

from typing import Protocol

from app.domain.errors import RouterError
from app.domain.request_fingerprint import Work


class TicketOwner(Protocol):
    """Is told what becomes of its ticket. None of these may raise."""

    @property
    def quiet_since(self) -> float | None:
        """When llama-server gave it something last, or was asked; None where nothing is expected of it."""
        ...

    @property
    def generated(self) -> int | None:
        """Tokens that have come of its answer, about; None where only llama-server knows."""
        ...

    def granted(self) -> None:
        """It has a slot."""

    def refused(self, error: RouterError) -> None:
        """It waits no more, and gets none."""

    def cut(self) -> None:
        """Its process is stopped without waiting for it."""

    def asks_for(self) -> Work | None:
        """None where that is not known any more."""
        ...
