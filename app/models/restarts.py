"""When a process that died may be started again. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from app.llama.exit_reason import FailureKind
from app.models.lifecycle_effects import Blame


@dataclass(frozen=True)
class RestartLimits:
    """More than `max_restarts` crashes within `window_s`, or `load_retries` loads in a row, are given up.

    A request that crashed its process twice is refused for `refuse_s`.
    """

    max_restarts: int
    window_s: float
    load_retries: int
    refuse_s: float = 600.0


class Restarts:
    """Counts what went wrong with one model, in seconds of one clock."""

    def __init__(self, limits: RestartLimits) -> None:
        self.limits = limits
        self.attempts = 0  # loads in a row that failed
        self.retry_at = 0.0
        self._crashes: list[float] = []
        self._by_requests: list[float] = []  # of these, since one was answered

    def after_crash(self, now: float, blame: Blame) -> bool:
        """Whether it may be started again, at `retry_at`.

        One for which a request may be to blame does not count as long as that is not known.
        """
        self._crashes = [when for when in self._crashes if now - when < self.limits.window_s]
        if blame in (Blame.MODEL, Blame.REQUEST):
            self._crashes.append(now)
        if blame is Blame.REQUEST:
            self._by_requests.append(now)
        self.retry_at = now + backoff_s(len(self._crashes))
        return len(self._crashes) <= self.limits.max_restarts

    def unexplained(self, crashes: Iterable[float]) -> None:
        """No request was to blame after all."""
        self._crashes += crashes

    def answered(self) -> None:
        """A request: so it was others that crashed the process, not whatever is asked."""
        if self._by_requests:
            self._crashes = [when for when in self._crashes if when not in self._by_requests]
            self._by_requests.clear()

    def after_failed_load(self, kind: FailureKind, now: float, *, counts: bool = True) -> bool:
        """Whether it may be tried again, at `retry_at`. One that does not count is no attempt."""
        self.attempts += counts
        self.retry_at = now + backoff_s(self.attempts)
        retries = self.limits.load_retries
        if kind is FailureKind.OUT_OF_MEMORY:
            retries = min(retries, 1)  # with a larger need; if that does not help, another time will not
        return kind.may_heal and self.attempts <= retries

    def loaded(self) -> None:
        self.attempts = 0

    def forgiven(self) -> None:
        """As if nothing had gone wrong yet."""
        self.attempts = 0
        self._crashes.clear()
        self._by_requests.clear()


def backoff_s(crashes: int) -> float:
    """Wait before the n-th restart in a row: 0.5 s, doubled each time, at most 30 s."""
    return float(min(0.5 * 2 ** max(crashes - 1, 0), 30.0))
