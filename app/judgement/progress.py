"""How far the requests of a process are, as far as that is known. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from app.judgement.evidence import Evidence, Slot


def slot_of(evidence: Evidence, place: int, in_flight: int) -> Slot | None:
    """Of the request that was started at this place among those that the process has.

    llama-server does not say which request sits in which slot, but it starts them in the order in which they
    come. None where the numbers do not fit.
    """
    slots = sorted(evidence.slots or (), key=lambda slot: slot.task)
    return slots[place] if len(slots) == in_flight and place < in_flight else None


@dataclass(frozen=True)
class Running:
    """A request in a slot. Tokens are None where nobody knows them.

    `since`: when it got the slot. `generated` of a stream is what has come of it, about: events are counted.
    """

    since: float
    prompt: int | None = None
    read: int | None = None
    generated: int | None = None


def known(requests: Iterable[tuple[float, int | None]], evidence: Evidence) -> tuple[Running, ...]:
    """In the order of their start. Of each, since when it has its slot, and what has come of a stream."""
    asked = sorted(requests, key=lambda request: request[0])
    is_news = bool(asked) and evidence.slots_at > asked[-1][0]
    return tuple(
        _known(since, came, slot_of(evidence, place, len(asked)) if is_news else None)
        for place, (since, came) in enumerate(asked)
    )


def _known(since: float, came: int | None, slot: Slot | None) -> Running:
    if slot is None:
        return Running(since, generated=came)
    generated = slot.generated if came is None else max(came, slot.generated)
    return Running(since, slot.prompt, min(slot.read, slot.prompt), generated)


def of_process(evidence: Evidence, since: float) -> Slot | None:
    """Of all its slots together, when they were seen last; None where they have not been since then."""
    if not evidence.slots or evidence.slots_at <= since:
        return None
    return Slot(
        task=0,
        prompt=sum(slot.prompt for slot in evidence.slots),
        read=sum(min(slot.read, slot.prompt) for slot in evidence.slots),
        generated=sum(slot.generated for slot in evidence.slots),
    )
