"""Requests that were given up before their answer came: how long they keep their slots. Pure.

llama-server notices that a client has gone when a batch of its prompt has been read, and a second after it
told anybody anything: a look at its slots is such a telling, so looks stand further apart than that, and
where its log tells that a slot has become free, that is waited for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from app.judgement.evidence import Evidence

QUIET_LOOK_S = 0.1
"""When they are looked at first where its log has told of no slot so far."""

LOOK_S = 1.2
"""Between two looks, where its log does not say before that a slot is free."""

LONGEST_S = 120.0
"""Then its slot is taken for free: another request may hold more than is known, one of which seems to be this
one's."""


class GivenUpAt(NamedTuple):
    """One of them."""

    granted_at: float
    since: float


class Running(NamedTuple):
    """One that goes on."""

    granted_at: float
    has_begun: bool
    """Its answer."""
    slots: int = 1
    """The most that it holds."""


def look_for_free_slots_in_s(evidence: Evidence, given_up: Sequence[GivenUpAt], now: float) -> float:
    """When the slots are to be looked at next. `given_up`: in order."""
    looked_at, first = evidence.slots_asked_at, given_up[0]
    if evidence.freed_at > max(looked_at, first.granted_at):
        return 0.0
    if looked_at < first.since:
        return first.since + (LOOK_S if evidence.freed_at else QUIET_LOOK_S) - now
    return looked_at + LOOK_S - now


def places_free_again(
    evidence: Evidence, given_up: Sequence[GivenUpAt], running: Iterable[Running], now: float
) -> int:
    """How many of them hold no slot any more, the ones that were given up first.

    One of `running` that has begun sits in its slots, and so does one that was there at the look before.
    """
    if not evidence.shows_slots:
        return len(given_up)
    seen = sum(entry.since <= evidence.slots_asked_at <= evidence.slots_at for entry in given_up)
    expired = sum(entry.since + LONGEST_S <= now for entry in given_up)
    others = sum(r.slots for r in running if r.has_begun or r.granted_at < evidence.slots_before)
    still_there = min(max(len(evidence.slots or ()) - others, 0), seen)
    return max(seen - still_there, expired)
