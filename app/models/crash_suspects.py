"""Which requests may have crashed a model's process, and which one did. Pure.

A process that ends by itself while requests run may have been ended by any of them. Each of these is run once
more, by itself: the one under which the process ends again is the culprit, and the others are cleared.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum

from app.domain.request_fingerprint import Fingerprint

MAX_REFUSED = 1000
"""Of one model; the one that was found first is forgotten first."""


class Suspicion(Enum):
    """Of a request, before it is run."""

    CLEAR = "nothing speaks against it"
    SUSPECT = "it ran when a process ended by itself: it is to run alone"
    REFUSED = "a process ended by itself under it, twice, and the second time nothing else ran"


@dataclass
class _Crash:
    when: float
    suspects: set[Fingerprint]


class Suspects:
    """Of one model."""

    def __init__(self) -> None:
        self._open: list[_Crash] = []
        self._refused: dict[Fingerprint, float] = {}
        self.sizes: frozenset[int] = frozenset()
        """Of the bodies that are known; empty in a model that never crashed. Others need no fingerprint."""

    def suspicion(self, fingerprint: Fingerprint, now: float) -> Suspicion:
        if self._refused.get(fingerprint, now) > now:
            return Suspicion.REFUSED
        return Suspicion.SUSPECT if self._is_suspect(fingerprint) else Suspicion.CLEAR

    def crashed(
        self, running: Collection[Fingerprint], now: float, refuse_until: float
    ) -> Fingerprint | None:
        """A process ended by itself while these ran. The culprit, where there is no doubt."""
        among = set(running)
        alone = next(iter(among)) if len(running) == 1 else None
        if alone is None or not self._is_suspect(alone):
            if among:
                self._open.append(_Crash(now, among))
            alone = None
        else:
            self._open = [crash for crash in self._open if alone not in crash.suspects]
            self._refused[alone] = refuse_until
            if len(self._refused) > MAX_REFUSED:
                del self._refused[next(iter(self._refused))]
        self._count_sizes()
        return alone

    def cleared(self, fingerprint: Fingerprint) -> list[float]:
        """It ran to its end. The times of those crashes for which nobody is left who could be blamed."""
        for crash in self._open:
            crash.suspects.discard(fingerprint)
        unexplained = [crash.when for crash in self._open if not crash.suspects]
        self._open = [crash for crash in self._open if crash.suspects]
        self._count_sizes()
        return unexplained

    def forget(self, now: float, before: float) -> None:
        """Drop refusals that are over by now, and crashes that happened `before`."""
        self._open = [crash for crash in self._open if crash.when > before]
        self._refused = {known: until for known, until in self._refused.items() if until > now}
        self._count_sizes()

    def _is_suspect(self, fingerprint: Fingerprint) -> bool:
        return any(fingerprint in crash.suspects for crash in self._open)

    def _count_sizes(self) -> None:
        suspects = {known.size for crash in self._open for known in crash.suspects}
        self.sizes = frozenset(suspects | {known.size for known in self._refused})
