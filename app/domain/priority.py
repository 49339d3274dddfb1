"""How urgent a request is, and how waiting makes up for it."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

from pydantic_core import core_schema


class Priority(IntEnum):
    """Smaller is more urgent. The number is the level of the queue's key."""

    HIGH = 0
    NORMAL = 1
    LOW = 2

    label: str

    def __init__(self, _level: int) -> None:
        self.label = self.name.lower()

    @classmethod
    def parse(cls, text: str) -> Priority | None:
        """`high`, `normal`, `low` or `1`, `2`, `3`, in any case; None for anything else."""
        return _PRIORITIES.get(text.strip().lower())

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> core_schema.CoreSchema:
        """In a configuration a priority is its name."""
        names = core_schema.literal_schema([p.label for p in cls])
        return core_schema.no_info_after_validator_function(
            lambda name: cls[name.upper()],
            names,
            serialization=core_schema.plain_serializer_function_ser_schema(lambda p: p.label),
        )


_PRIORITIES = {key: p for p in Priority for key in (p.label, str(p.value + 1))}


def waiting_handicap_s(priority: Priority, aging_s: float) -> float:
    """A request waits in the order of its arrival and this: it goes before those of the next higher level
    that came more than `aging_s` after it."""
    return priority * aging_s
