"""Every time-out of a request, and its heartbeat: how long each is, and when the next of them is due.

`Exchange.due` is called then, and does what follows.
"""

from __future__ import annotations

from typing import Protocol

from app.core.config import SystemConfig
from app.domain.model_spec import ModelSpec
from app.judgement.judge import LOOKS

FIRST_HEAD_S = 75.0
"""From a connection's beginning to that of its first request."""

CUT_AFTER_S = 1.0
"""From the error that ends a stream to the end of its connection. Many HTTP clients drop what they hold and
nobody has read yet when their connection breaks."""

HEARTBEAT_S = 5.0
"""A stream that waits gets its head after this time, and a comment each time it passes again."""

CLIENT_STALLS_S = 120.0
"""How long a client may leave its answer unread where no time-out is configured."""

HEAD_WAITS_S = 0.01
"""llama-server sends a stream's head when it begins with the prompt. A short prompt's first event follows at
once, and reaches a client later that is woken for the head before."""


class Awake(Protocol):
    def awake_s(self, since: float, now: float) -> float:
        """The part of this time in which this program itself did not stand still."""
        ...


class RequestTimeouts:
    """Of one request. Times are those of the monotonic clock."""

    __slots__ = ("_awake", "_heartbeat_at", "_is_stream", "_limits", "_queue_deadline")

    def __init__(self, limits: SystemConfig, awake: Awake, *, is_stream: bool) -> None:
        """`limits` are those that held when it came."""
        self._limits, self._awake, self._is_stream = limits, awake, is_stream
        self._queue_deadline = self._heartbeat_at = 0.0

    # --- in the queue

    def queued(self, since: float) -> None:
        self._queue_deadline = since + self._limits.queue_timeout_sec
        self._heartbeat_at = since + HEARTBEAT_S

    def has_waited_too_long(self, now: float) -> bool:
        """The time in which this program stood still does not count."""
        if now >= self._queue_deadline:
            timeout_s = self._limits.queue_timeout_sec
            waited_s = self._awake.awake_s(self._queue_deadline - timeout_s, now)
            self._queue_deadline = now + timeout_s - waited_s
        return now >= self._queue_deadline

    def heartbeat_is_due(self, now: float) -> bool:
        """Once: the next one is due `HEARTBEAT_S` later."""
        if not self._is_stream or now < self._heartbeat_at:
            return False
        self._heartbeat_at = now + HEARTBEAT_S
        return True

    def queue_wait_s(self, now: float) -> float:
        """Until the next of these two."""
        first = min(self._queue_deadline, self._heartbeat_at) if self._is_stream else self._queue_deadline
        return max(first - now, 0.0)

    # --- with a slot

    @staticmethod
    def first_look_s(spec: ModelSpec) -> float:
        """After its grant: then `Slots.patience_s` says whether llama-server works on it."""
        return spec.request_timeout_s / LOOKS or CLIENT_STALLS_S

    def client_patience_s(self, spec: ModelSpec, progress_at: float, now: float) -> float:
        """For a client that takes no more; 0: it has taken nothing for too long."""
        limit_s = spec.request_timeout_s or CLIENT_STALLS_S
        return max(limit_s - self._awake.awake_s(progress_at, now), 0.0)
