"""The status of one model, and why it has it. Pure."""

from __future__ import annotations

import logging

from app.domain.events import StatusChanged
from app.domain.status import MOVES, InvalidMove, Status, StopReason


class Lifecycle:
    """`move` is the only way from one status to another."""

    def __init__(self, alias: str, now: float) -> None:
        self.status, self.since, self.reason = Status.OFF, now, ""
        self._alias = alias

    def move(self, new: Status, reason: str, now: float) -> StatusChanged:
        """Raises `InvalidMove` for what cannot follow the status of now."""
        old = self.status
        if new not in MOVES[old]:
            raise InvalidMove(f"{self._alias}: {old.value} -> {new.value} ({reason})")
        self.status, self.since = new, now
        self.reason = reason or self.reason if new is Status.STOPPING else reason
        return StatusChanged(self._alias, old, new, self.reason)


def log_level(move: StatusChanged) -> int:
    """What an operator would tell a colleague."""
    if move.new in (Status.CRASHED, Status.FAILED):
        return logging.WARNING
    return logging.DEBUG if move.old.public == move.new.public else logging.INFO


_WHY = {
    StopReason.IDLE: "idle",
    StopReason.MANUAL: "ejected",
    StopReason.CONFIG: "its configuration changed",
    StopReason.SHUTDOWN: "the router shuts down",
}


def why_stopped(reason: StopReason, target: str | None) -> str:
    """In words, for the log, the page and the status. Empty: what was said before still holds."""
    return f"evicted for {target}" if target is not None else _WHY.get(reason, "")
