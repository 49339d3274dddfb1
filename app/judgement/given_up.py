"""Requests that were given up before their answer came: how long they keep their slots. Pure.

llama-server notices that a client has gone when a batch of its prompt has been read, and a second after it
told anybody anything: a look at its slots is such a telling, so looks stand further apart than that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from app.judgement.evidence import Evidence

FIRST_LOOK_S = 0.1
LOOK_S = 1.2
"""Between two looks, where its log does not say before that a slot is free."""

POLL_S = 0.1
"""How soon it is noticed that the log says so."""

LONGEST_S = 120.0
"""Then its slot is taken for free: another request may hold several, of which one seems to be this one's."""


def look_for_free_slots_in_s(evidence: Evidence, given_up: Sequence[float], now: float) -> float:
    """When the slots are to be looked at next. `given_up`: when each was, in order."""
    looked_at = evidence.slots_asked_at
    if evidence.freed_at > looked_at:
        return 0.0
    if looked_at < given_up[0]:
        return given_up[0] + FIRST_LOOK_S - now
    return looked_at + LOOK_S - now


def places_free_again(
    evidence: Evidence, given_up: Sequence[float], running: Iterable[tuple[float, bool]], now: float
) -> int:
    """How many of them hold no slot any more, the ones that were given up first.

    `running`: of each request that goes on, when it was granted and whether its answer has begun. One that
    has begun sits in a slot, and so does one that was there at the look before.
    """
    seen = sum(at <= evidence.slots_asked_at <= evidence.slots_at for at in given_up)
    expired = sum(at + LONGEST_S <= now for at in given_up)
    if not evidence.shows_slots:
        return len(given_up)
    others = sum(has_begun or granted_at < evidence.slots_before for granted_at, has_begun in running)
    still_there = min(max(len(evidence.slots or ()) - others, 0), seen)
    return max(seen - still_there, expired)
