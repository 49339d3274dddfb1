"""Memory of stopped processes that the driver does not show as free yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from app.memory.ledger.reservation import LONG_AGO
from app.memory.probes.interface import Reading

RECLAIM_MAX_S = 3.0


@dataclass(frozen=True)
class _Reclaiming:
    expected_free_mb: int
    since: float
    deadline: float


class GivenBack:
    """By device, until a reading shows it, or for `RECLAIM_MAX_S`."""

    def __init__(self) -> None:
        self._reclaiming: dict[str, _Reclaiming] = {}

    def __bool__(self) -> bool:
        return bool(self._reclaiming)

    def expect(self, reading: Reading, coming_mb: int, now: float, *, crashed: bool) -> None:
        """More is on its way. What a crashed process held has been given back already."""
        deadline = now if crashed else now + RECLAIM_MAX_S
        self._reclaiming[reading.id] = _Reclaiming(reading.free_mb + coming_mb, now, deadline)

    def coming_mb(self, reading: Reading, ours_mb: int) -> int:
        """What is not shown as free yet; never more than is used, and by none of our models."""
        reclaiming = self._reclaiming.get(reading.id)
        if reclaiming is None:
            return 0
        return max(min(reclaiming.expected_free_mb - reading.free_mb, reading.used_mb - ours_mb), 0)

    def forget_shown(
        self, readings: dict[str, Reading], read_at: Mapping[str, float], now: float, *, is_blind: bool
    ) -> None:
        """After a reading. Where nobody tells any more, the ledger goes on by itself: `readings` follow."""
        for device, reclaiming in list(self._reclaiming.items()):
            reading = readings.get(device)
            if reading is None:
                del self._reclaiming[device]
                continue
            blind = is_blind or reading.error is not None
            fresh = blind or read_at.get(device, LONG_AGO) >= reclaiming.since
            shown = reading.free_mb >= reclaiming.expected_free_mb
            if fresh and (shown or now >= reclaiming.deadline):
                del self._reclaiming[device]
                if blind and not shown:
                    free = reclaiming.expected_free_mb
                    readings[device] = replace(reading, free_mb=free, used_mb=reading.total_mb - free)
