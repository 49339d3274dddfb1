"""When this program itself stood still: stopped by a signal, frozen with its container or its machine. Pure.

What was seen before a pause says nothing about the time of it: the answers of meanwhile lie in the sockets.
"""

from __future__ import annotations

from collections import deque

from app.domain.alarm import LATE_S

TICK_S = 0.5
GRACE_S = 2.0
"""After a pause: until what came meanwhile has been read."""

KEPT = 64


class Pauses:
    """Told by `tick`, at least every `TICK_S`. Seconds of one monotonic clock."""

    def __init__(self, now: float) -> None:
        self.count, self.last_s = 0, 0.0
        """How many there were, and how long the last one was."""
        self._last_tick = now
        self._pauses: deque[tuple[float, float]] = deque(maxlen=KEPT)

    def tick(self, now: float) -> None:
        """Call it before anything is judged: other timers may ring before the one that ticks."""
        begun, self._last_tick = self._last_tick, max(now, self._last_tick)
        if now - begun > TICK_S + LATE_S:
            self._pauses.append((begun, now + GRACE_S))
            self.last_s, self.count = now - begun, self.count + 1

    def waking_s(self, now: float) -> float:
        """What is left of the time after a pause in which nothing is judged; 0 where there was none."""
        self.tick(now)
        return max(self._pauses[-1][1] - now, 0.0) if self._pauses else 0.0

    def awake_s(self, since: float, now: float) -> float:
        """The part of this time in which there was no pause."""
        self.tick(now)
        asleep, seen = 0.0, since
        for begun, ended in self._pauses:  # in order, but the grace of one may reach into the next
            begun, ended = max(begun, seen), min(ended, now)
            if ended > begun:
                asleep += ended - begun
                seen = ended
        return max(now - since - asleep, 0.0)

    def interrupted(self, since: float, now: float) -> bool:
        """There was a pause in this time. What was begun after it was not, also in the grace."""
        self.tick(now)
        return any(begun < now and ended - GRACE_S > since for begun, ended in self._pauses)
