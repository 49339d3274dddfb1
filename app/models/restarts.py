"""When a process that died may be started again. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from app.llama.exit_reason import FailureKind


@dataclass(frozen=True)
class RestartLimits:
    """More than `max_restarts` crashes within `window_s`, or `load_retries` loads in a row, are given up."""

    max_restarts: int
    window_s: float
    load_retries: int


class Restarts:
    """Counts what went wrong with one model, in seconds of one clock."""

    def __init__(self, limits: RestartLimits) -> None:
        self.limits = limits
        self.attempts = 0  # loads in a row that failed
        self.retry_at = 0.0
        self._crashes: list[float] = []

    def after_crash(self, now: float, *, counts: bool = True) -> bool:
        """Whether it may be started again, at `retry_at`.

        One that does not count against the model is no reason to give it up, nor to wait for long.
        """
        self._crashes = [when for when in self._crashes if now - when < self.limits.window_s]
        if counts:
            self._crashes.append(now)
        self.retry_at = now + backoff_s(len(self._crashes))
        return not counts or len(self._crashes) <= self.limits.max_restarts

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


def backoff_s(crashes: int) -> float:
    """Wait before the n-th restart in a row: 0.5 s, doubled each time, at most 30 s."""
    return float(min(0.5 * 2 ** max(crashes - 1, 0), 30.0))
