"""How often each model is asked for while another one waits for room: who would miss it. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from app.domain.priority import Priority

MEMORY_S = 60.0  # what was that long ago counts for a third
LONG_LOAD_S = MEMORY_S / 12  # beyond this the time of loads is no small part of what is remembered
DOUBT_S = 5.0  # of contention without a request that every model is credited with: nobody is popular at once
LARGEST_WEIGHT = 1e12

_ALL = 3
_NOTHING = (0.0, 0.0, 0.0, 0.0)


class Demand:
    """Requests by model and level, in relation to the time of contention. Both are forgotten slowly.

    `per_s` is what would come for a model that is kept while another one waits: only what came while others
    waited for room counts. Who uses several models, one request after the other, competes with nobody.

    `popularity` is for comparing models: all that came while anybody waited for room. People who wait do
    not ask, so the time for which a model's own requests wait for room, or for a long load, is left out of
    both: else one that is asked for often, and waits often, would seem to be wanted less than one that
    happens to be loaded. Whoever has not asked yet comes during a wait, too, so it is seen as wanted a little
    more; the time of short loads, which stays in, makes up for that.

    Rates change at arrivals only, so that what the policy has decided holds until something happens. Instead
    of shrinking all that is old, what is new weighs more.
    """

    def __init__(self) -> None:
        self._counts: dict[str, list[float]] = {}  # high, normal, low, and all
        self._contended_s = 0.0
        self._waited_s: dict[str, float] = {}
        self._waiting_for_room: Collection[str] = ()
        self._held_up: Collection[str] = ()
        self._passed: list[
            tuple[float, float, Collection[str]]
        ] = []  # since the last arrival: when, how long, who
        self._since = self._began = self._weighed_at = 0.0

    def contended_by(self, aliases: Collection[str], held_up: Collection[str], now: float) -> None:
        """These models wait for room from now on; `held_up` are they and those that load for long."""
        self._pass(now)
        self._waiting_for_room, self._held_up = aliases, held_up

    def asked(self, alias: str, level: Priority, now: float) -> None:
        """A request has come."""
        if not (self._waiting_for_room or self._passed):  # the usual case
            self._since = self._weighed_at = now
            return
        self._pass(now)
        self._weigh_anew(now)
        if not self._waiting_for_room:
            return
        counts = self._counts.setdefault(alias, [0.0, 0.0, 0.0, 0.0])
        counts[_ALL] += self._weight(now)
        if any(other != alias for other in self._waiting_for_room):
            counts[level] += self._weight(now)

    def per_s(self, alias: str) -> tuple[float, float, float]:
        """Requests per second by level, as of the last arrival at any model."""
        high, normal, low, _ = self._rates(alias)
        return high, normal, low

    def popularity(self, alias: str) -> float:
        """Requests per second, those included that came while only the model itself waited for room."""
        return self._rates(alias)[_ALL]

    def _rates(self, alias: str) -> Sequence[float]:
        counts = self._counts.get(alias)
        if counts is None:
            return _NOTHING
        asking_s = self._contended_s - self._waited_s.get(alias, 0.0)
        exposure = max(asking_s, 0.0) + DOUBT_S * self._weight(self._weighed_at)
        return [count / exposure for count in counts]

    def forget(self, aliases: Collection[str]) -> None:
        """These models are no more."""
        for alias in aliases:
            self._counts.pop(alias, None)
            self._waited_s.pop(alias, None)

    # --- inside

    def _pass(self, now: float) -> None:
        if self._waiting_for_room and now > self._since:
            self._passed.append((now, now - self._since, self._held_up))
        self._since = now

    def _weigh_anew(self, now: float) -> None:
        for when, duration_s, aliases in self._passed:
            weighted_s = duration_s * self._weight(when)
            self._contended_s += weighted_s
            for alias in aliases:
                self._waited_s[alias] = self._waited_s.get(alias, 0.0) + weighted_s
        self._passed.clear()
        self._weighed_at = now
        if (weight := self._weight(now)) > LARGEST_WEIGHT:
            self._contended_s /= weight
            self._waited_s = {alias: s / weight for alias, s in self._waited_s.items()}
            self._counts = {alias: [count / weight for count in c] for alias, c in self._counts.items()}
            self._began = now

    def _weight(self, when: float) -> float:
        return math.exp(min((when - self._began) / MEMORY_S, 700.0))
