"""What was reserved for which process, beside what the devices say of themselves. No driver, no event loop.

The smaller free memory of the two counts: a process that loads takes its memory later than it is planned for,
and a driver may show late, or not at all, what has been given back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from app.domain.views import HOST, DeviceView, Placement
from app.memory.ledger.kept_free import KeptFree
from app.memory.ledger.reclaiming import GivenBack
from app.memory.ledger.reservation import LONG_AGO, Reservation
from app.memory.probes.interface import Reading

_NOTHING = Reservation({}, {}, 0)
"""Of a model without a process. Never changed."""


class MemoryLedger:
    """The last readings, and the reservations by alias. MB everywhere; times are those of `clock`."""

    def __init__(
        self, kept_free: KeptFree, clock: Callable[[], float], read_again: Callable[[], None]
    ) -> None:
        """`read_again` is called when a process came or went: what was read before is no longer true."""
        self.kept_free = kept_free
        self.given_back = GivenBack()
        self._clock, self._read_again = clock, read_again
        self._driver_error: str | None = None
        self._asked_at = LONG_AGO
        self._readings: dict[str, Reading] = {}
        self._read_at: dict[str, float] = {}
        self._reservations: dict[str, Reservation] = {}
        self._events = 0  # comings and goings: a change of use between two of them is one model's

    # --- readings

    @property
    def error(self) -> str | None:
        """Why the driver, or a device, cannot be read."""
        return self._driver_error or next((r.error for r in self._readings.values() if r.error), None)

    def take(self, readings: Iterable[Reading], asked_at: float) -> None:
        """What the devices answered when they were asked then."""
        found = {r.id: r for r in readings}
        for device, reading in found.items():
            before = self._readings.get(device)
            if reading.error is None:
                self._read_at[device] = asked_at
            elif before is not None:  # as the ledger has carried it on since
                found[device] = replace(before, error=reading.error, lost=reading.lost, by_pid={})
        self._readings = found
        for reservation in self._reservations.values():
            alone = reservation.events_before == self._events
            reservation.measure(self._readings, self._read_at, alone)

    def asked(self, at: float, driver_error: str | None) -> None:
        """The devices were asked then; without an answer the ledger goes on alone, by what was reserved."""
        self._asked_at, self._driver_error = max(self._asked_at, at), driver_error
        is_blind = driver_error is not None
        self.given_back.forget_shown(self._readings, self._read_at, self._clock(), is_blind=is_blind)

    # --- reservations

    def reserve(self, alias: str, placement: Placement) -> None:
        self._events += 1
        used = {d: self._readings[d].used_mb for d in placement if d in self._readings}
        self._reservations[alias] = Reservation(dict(placement), used, self._events)

    def adjust(self, alias: str, placement: Placement) -> None:
        """Reserve another amount for it, now that more is known about it."""
        self._reservations[alias].placement = dict(placement)

    def spawned(self, alias: str, pid: int) -> None:
        self._reservations[alias].pid = pid

    def loaded(self, alias: str) -> None:
        """The model is in memory: from the next reading on the driver's figure contains it."""
        reservation = self._reservations[alias]
        reservation.loaded_at = self._clock()
        self._events += 1
        reservation.events_before += 1
        self._read_again()

    def release(self, alias: str, *, crashed: bool) -> None:
        """The process is gone. Until the driver shows its memory as free, that is on its way, not lost.

        What a crashed one held has been given back already: the next reading shows all that will come.
        """
        reservation = self._reservations.pop(alias, None)
        if reservation is None:
            return
        self._events += 1
        for reading in self._readings.values():
            parts = [part for part in _parts(reading, self._readings) if _is_given_back(reservation, part)]
            if parts:
                used_mb = sum(reservation.used_mb(part) for part in parts)
                coming_mb = used_mb * 9 // 10 + self._still_coming(reading)
                self.given_back.expect(reading, coming_mb, self._clock(), crashed=crashed)
        self._read_again()

    def keep_unkillable(self, alias: str, pid: int) -> str:
        """Its process does not die: what it holds stays reserved, under the name that is returned.

        `release` that name when it has died after all.
        """
        reservation = self._reservations.pop(alias)
        reservation.unkillable = True
        name = f"{alias} (pid {pid})"
        self._reservations[name] = reservation
        return name

    @property
    def unkillable(self) -> tuple[str, ...]:
        """What is held by processes that outlived SIGKILL, by name."""
        return tuple(name for name, reservation in self._reservations.items() if reservation.unkillable)

    def of(self, alias: str) -> Reservation:
        """The reservation of its process; an empty one without a process."""
        return self._reservations.get(alias, _NOTHING)

    def has_reading_since_load(self, alias: str) -> bool:
        """Its load is over, and read since."""
        return alias in self._reservations and self.of(alias).is_shown(self._read_at)

    def pids(self) -> list[int]:
        return [reservation.pid for reservation in self._reservations.values() if reservation.pid is not None]

    # --- devices

    def gpus(self) -> tuple[Reading, ...]:
        """The last readings of all but the machine's own memory."""
        return tuple(reading for reading in self._readings.values() if reading.id != HOST)

    @property
    def has_gpu(self) -> bool:
        return bool(self.gpus())

    def devices(self) -> tuple[DeviceView, ...]:
        return tuple(self._view(r) for r in self._readings.values())

    def room_mb(self, device: str) -> int:
        """What may still be reserved there."""
        reading = self._readings.get(device)
        return self._view(reading).free_mb - self.kept_free.of(reading) if reading else 0

    def most_mb(self, devices: Iterable[str]) -> int:
        """What the largest of these could ever give."""
        found = [self._readings[d] for d in devices if d in self._readings]
        return max((r.total_mb - self.kept_free.of(r) for r in found), default=0)

    def others_mb(self, devices: Iterable[str], without: str | None = None) -> int:
        """What programs other than our models use of these; the model `without` has no process any more."""
        gone = self._reservations.get(without) if without is not None else None
        stores = {_store(self._readings[d], self._readings) for d in devices if d in self._readings}
        found = [self._readings[d] for d in stores]
        return sum(max(r.used_mb - self._ours_mb(r, gone) - self._still_coming(r), 0) for r in found)

    # --- inside

    def _view(self, reading: Reading) -> DeviceView:
        view = self._view_of_itself(reading)
        if _store(reading, self._readings) == reading.id:
            return view
        host = self._view_of_itself(self._readings[HOST])
        free_mb = min(view.free_mb, host.free_mb)
        return replace(
            view,
            free_mb=free_mb,
            others_mb=host.others_mb,
            reclaiming_mb=host.reclaiming_mb,
            shares_host=True,
        )

    def _view_of_itself(self, reading: Reading) -> DeviceView:
        parts = _parts(reading, self._readings)
        held = [
            (r, r.held_mb(parts), r.shown_of_mb(parts, self._read_at)) for r in self._reservations.values()
        ]
        held_mb = sum(mb for _, mb, _ in held)
        pending = [(h, max(mb - shown_mb, 0)) for h, mb, shown_mb in held]
        free = min(reading.total_mb - held_mb, reading.free_mb - sum(mb for _, mb in pending))
        others = max(reading.used_mb - self._ours_mb(reading) - self._still_coming(reading), 0)
        others += sum(mb for reservation, mb in pending if reservation.unkillable)
        return DeviceView(
            id=reading.id,
            name=reading.name,
            total_mb=reading.total_mb,
            used_mb=reading.used_mb,
            free_mb=0 if reading.lost else free,
            reserved_mb=held_mb,
            min_free_mb=self.kept_free.of(reading),
            others_mb=reading.total_mb if reading.lost else others,
            reclaiming_mb=self._still_coming(reading),
            asked_at=self._asked_at,
            utilization=reading.utilization,
            is_gpu=reading.id != HOST,
            error=self._driver_error or reading.error,
            source=reading.source,
        )

    def _still_coming(self, reading: Reading) -> int:
        return self.given_back.coming_mb(reading, self._ours_mb(reading))

    def _ours_mb(self, reading: Reading, gone: Reservation | None = None) -> int:
        """What our models use of this device, as far as the driver tells."""
        ours = [r for r in self._reservations.values() if r is not gone and not r.unkillable]
        parts = _parts(reading, self._readings)
        return sum(r.used_mb(part) for r in ours for part in parts if part.id in r.placement)


def _is_given_back(reservation: Reservation, reading: Reading) -> bool:
    """Of the machine's memory only what is known to be its own: the rest was reserved, perhaps never used."""
    if reading.id not in reservation.placement:
        return False
    return reading.id != HOST or reservation.pid in reading.by_pid


def _parts(reading: Reading, readings: Mapping[str, Reading]) -> list[Reading]:
    """Whose use is taken from this memory: the machine's also serves the devices that share it."""
    if reading.id != HOST:
        return [reading]
    return [reading, *(other for other in readings.values() if other.shares_host)]


def _store(reading: Reading, readings: Mapping[str, Reading]) -> str:
    """Where its memory is."""
    return HOST if reading.shares_host and HOST in readings else reading.id
