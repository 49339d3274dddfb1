"""What was reserved for one process, and what the driver shows of it: arithmetic, pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from app.domain.views import HOST, Placement
from app.memory.probes.interface import Reading

LONG_AGO = float("-inf")
NOT_YET = float("inf")


@dataclass
class Reservation:
    """What one process may use. It counts as pending until a reading shows it."""

    placement: Placement
    used_before: Placement
    events_before: int
    pid: int | None = None
    loaded_at: float = NOT_YET
    measured: dict[str, int] = field(default_factory=dict)
    """MB that the process uses of each GPU; empty where the driver does not tell."""
    peak_mb: int = 0
    """The most that it was seen to use, over all GPUs; 0 where the driver does not tell."""
    unkillable: bool = False  # nobody can end its process: to us it is another program's

    @property
    def measured_mb(self) -> int | None:
        """What it uses of all GPUs together; None where the driver does not tell."""
        return sum(self.measured.values()) if self.measured else None

    def is_shown(self, read_at: Mapping[str, float]) -> bool:
        """Its load is over, and each of its devices has been read since."""
        return all(self.loaded_at <= read_at.get(device, LONG_AGO) for device in self.placement)

    def held_mb(self, parts: Iterable[Reading]) -> int:
        """What is reserved on these."""
        return sum(self.placement.get(part.id, 0) for part in parts)

    def shown_of_mb(self, parts: Iterable[Reading], read_at: Mapping[str, float]) -> int:
        """How much of that the drivers' figures contain already."""
        here = (part for part in parts if part.id in self.placement)
        return sum(self.shown_mb(part, read_at.get(part.id, LONG_AGO)) for part in here)

    def shown_mb(self, reading: Reading, read_at: float) -> int:
        """How much of the reservation the driver's figure contains already."""
        if self.pid is not None and self.pid in reading.by_pid:
            return reading.by_pid[self.pid]
        return self.placement[reading.id] if self.loaded_at <= read_at else 0

    def used_mb(self, reading: Reading) -> int:
        """What the last reading counts as used by the process, of a device where it has reserved some.

        Where it does not tell: once it is loaded the whole reservation, before that what was taken since.
        """
        if self.pid is not None and self.pid in reading.by_pid:
            return reading.by_pid[self.pid]
        reserved_mb = self.placement[reading.id]
        if self.loaded_at < NOT_YET:
            return min(self.measured.get(reading.id, reserved_mb), reading.used_mb)
        grown_mb = reading.used_mb - self.used_before.get(reading.id, 0)
        return min(max(grown_mb, 0), reserved_mb)

    def measure(self, readings: Mapping[str, Reading], read_at: Mapping[str, float], alone: bool) -> None:
        """By process where the driver tells; else by the change of the device's use, if that was its alone.

        In a container the driver names processes by the host's numbers, which are not ours.
        """
        own = [readings[d] for d in self.placement if d in readings and d != HOST]
        if self.pid is not None and any(self.pid in r.by_pid for r in own):
            self.measured = {r.id: r.by_pid[self.pid] for r in own if self.pid in r.by_pid}
        elif alone and not self.measured and self._was_read(own, read_at) and not _is_shared(own):
            grown = {r.id: r.used_mb - self.used_before.get(r.id, 0) for r in own}
            self.measured = grown if min(grown.values(), default=0) > 0 else {}
        self.peak_mb = max(self.peak_mb, sum(self.measured.values()))

    def _was_read(self, own: Sequence[Reading], read_at: Mapping[str, float]) -> bool:
        return all(self.loaded_at <= read_at.get(reading.id, LONG_AGO) for reading in own)


def _is_shared(readings: Sequence[Reading]) -> bool:
    """How the machine's memory changes says nothing of one process."""
    return any(reading.shares_host for reading in readings)
