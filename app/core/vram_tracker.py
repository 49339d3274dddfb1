"""What memory there is: the devices' own word, and the ledger of what was reserved for which process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import anyio

from app.core.config import Config
from app.domain.event_bus import EventBus
from app.domain.events import ReadingTaken
from app.domain.views import HOST, DeviceView, Placement
from app.memory.ledger.kept_free import KeptFree
from app.memory.ledger.reclaiming import GivenBack
from app.memory.ledger.reservation import LONG_AGO, Reservation
from app.memory.probes.driver_thread import DriverThread
from app.memory.probes.host import host_reading
from app.memory.probes.interface import GpuProbe, Reading, offers_gpu, resolve

logger = logging.getLogger(__name__)

REFRESH_S = 2.0
WATCH_S = 0.25  # while somebody waits for memory that other programs hold
READING_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 1.0


class DeviceTracker:
    """Readings, refreshed in a thread, and the ledger. The smaller free memory of the two is believed."""

    TAKES = ("system.min_free_vram_mb",)

    def __init__(
        self,
        probe: GpuProbe,
        *,
        kept_free: KeptFree,
        clock: Callable[[], float],
        bus: EventBus,
        read_host: Callable[[Sequence[int]], Reading] = host_reading,
        reading_timeout_s: float = READING_TIMEOUT_S,
    ) -> None:
        self.probe, self.reading_timeout_s = probe, reading_timeout_s
        self._driver_error: str | None = None
        self._kept_free = kept_free
        self._clock = clock
        self._bus = bus
        self._driver = DriverThread(probe, lambda: read_host(self._pids()), clock)
        self._readings: dict[str, Reading] = {}
        self._read_at: dict[str, float] = {}
        self._asked_at = LONG_AGO
        self._watching = False
        self._reservations: dict[str, Reservation] = {}
        self._given_back = GivenBack()
        self._events = 0  # comings and goings: a change of use between two of them is one model's
        self._refreshed = asyncio.Event()

    def apply(self, config: Config) -> None:
        self._kept_free = KeptFree.parse(config.system.min_free_vram_mb)
        self._bus.publish(ReadingTaken(is_news=True))

    # --- readings

    @property
    def error(self) -> str | None:
        """Why the driver, or a device, cannot be read."""
        return self._driver_error or next((r.error for r in self._readings.values() if r.error), None)

    async def refresh(self) -> None:
        """Ask the driver. A driver that fails or hangs is a state that is reported, not a crash."""
        waited_for, error = bool(self._given_back) or self._watching, self.error
        begun = self._clock()
        try:
            with anyio.fail_after(self.reading_timeout_s):
                asked_at, found = await self._driver.read()
        except TimeoutError:
            self._report(f"the GPU driver did not answer within {self.reading_timeout_s:.0f} s")
        else:
            if isinstance(found, Exception):
                self._report(f"the GPU driver failed: {found}")
            else:
                self._report(None)
                self._take(found, asked_at)
            begun = asked_at
        self._asked_at = max(self._asked_at, begun)
        blind = self._driver_error is not None
        self._given_back.forget_shown(self._readings, self._read_at, self._clock(), is_blind=blind)
        self._bus.publish(ReadingTaken(is_news=waited_for or error != self.error))

    async def run(self) -> None:
        """Keep the readings fresh: seldom, and often while freed memory is awaited."""
        while True:
            with anyio.move_on_after(self._pause_s()):
                await self._refreshed.wait()
            self._refreshed = asyncio.Event()
            if self._given_back or self._watching:
                self.probe.expire()
            await self.refresh()

    def watch(self, wanted: bool) -> None:
        """Read again now, and often, while somebody waits for what other programs hold."""
        if wanted and not self._watching:
            self._refreshed.set()
        self._watching = wanted

    def _pause_s(self) -> float:
        if self._given_back:
            return self.probe.poll_s
        return max(self.probe.poll_s, WATCH_S) if self._watching else REFRESH_S

    async def close(self) -> None:
        """Let the driver go, unless it hangs."""
        with anyio.move_on_after(CLOSE_TIMEOUT_S):
            await self._driver.close()

    def _take(self, readings: Iterable[Reading], asked_at: float) -> None:
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

    def _report(self, error: str | None) -> None:
        if error is not None and self._driver_error != error:
            logger.warning("%s; deciding by what was reserved so far", error)
        if error is None and self._driver_error is not None:
            logger.info("the GPU driver answers again")
        self._driver_error = error

    # --- ledger

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
        self.probe.expire()
        self._refreshed.set()

    def release(self, alias: str, *, crashed: bool) -> None:
        """The process is gone. Until the driver shows its memory as free, that is on its way, not lost.

        What a crashed one held has been given back already: the next reading shows all that will come.
        """
        reservation = self._reservations.pop(alias, None)
        if reservation is None:
            return
        self._events += 1
        for device, mb in reservation.placement.items():
            reading = self._readings.get(device)
            if reading is not None and (device != HOST or reservation.pid in reading.by_pid):
                coming_mb = reservation.used_mb(reading, mb) * 9 // 10 + self._still_coming(reading)
                self._given_back.expect(reading, coming_mb, self._clock(), crashed=crashed)
        self.probe.expire()
        self._refreshed.set()

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

    def reserved(self, alias: str) -> Placement:
        reservation = self._reservations.get(alias)
        return reservation.placement if reservation else {}

    def measured(self, alias: str) -> Placement:
        """What the driver says that this model's process uses of each GPU; empty where it does not tell."""
        reservation = self._reservations.get(alias)
        return reservation.measured if reservation else {}

    def measured_mb(self, alias: str) -> int | None:
        """The same, over all GPUs."""
        found = self.measured(alias)
        return sum(found.values()) if found else None

    def peak_mb(self, alias: str) -> int:
        """The most that it was seen to use, over all GPUs; 0 where the driver does not tell."""
        reservation = self._reservations.get(alias)
        return reservation.peak_mb if reservation else 0

    def has_reading_since_load(self, alias: str) -> bool:
        """Its load is over, and read since."""
        reservation = self._reservations.get(alias)
        return reservation is not None and reservation.is_shown(self._read_at)

    # --- views

    @property
    def has_gpu(self) -> bool:
        return any(device != HOST for device in self._readings)

    def devices(self) -> tuple[DeviceView, ...]:
        return tuple(self._view(r) for r in self._readings.values())

    def resolve(self, wanted: Iterable[int | str] | None) -> tuple[str, ...]:
        """Device ids for indices or UUIDs, all for None; what is not there is left out."""
        return resolve(self._gpus(), wanted)

    def offers_gpu(self, wanted: Iterable[int | str] | None) -> bool:
        """Whether a model that may use these is one for GPUs; else it runs on the CPU."""
        return offers_gpu(self._gpus(), wanted)

    def readings(self, devices: Iterable[str]) -> tuple[Reading, ...]:
        """The last ones of these devices."""
        return tuple(self._readings[d] for d in devices if d in self._readings and d != HOST)

    def room_mb(self, device: str) -> int:
        """What may still be reserved there."""
        reading = self._readings.get(device)
        return self._view(reading).free_mb - self._kept_free.of(reading) if reading else 0

    def most_mb(self, devices: Iterable[str]) -> int:
        """What the largest of these could ever give."""
        found = [self._readings[d] for d in devices if d in self._readings]
        return max((r.total_mb - self._kept_free.of(r) for r in found), default=0)

    def others_mb(self, devices: Iterable[str], without: str | None = None) -> int:
        """What programs other than our models use of these; the model `without` has no process any more."""
        gone = self._reservations.get(without) if without is not None else None
        found = [self._readings[d] for d in devices if d in self._readings]
        return sum(max(r.used_mb - self._ours_mb(r, gone) - self._still_coming(r), 0) for r in found)

    def _view(self, reading: Reading) -> DeviceView:
        read_at = self._read_at.get(reading.id, LONG_AGO)
        here = [r for r in self._reservations.values() if reading.id in r.placement]
        held_mb = sum(reservation.placement[reading.id] for reservation in here)
        pending = [(h, max(h.placement[reading.id] - h.shown_mb(reading, read_at), 0)) for h in here]
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
            min_free_mb=self._kept_free.of(reading),
            others_mb=reading.total_mb if reading.lost else others,
            reclaiming_mb=self._still_coming(reading),
            asked_at=self._asked_at,
            utilization=reading.utilization,
            is_gpu=reading.id != HOST,
            error=self._driver_error or reading.error,
            source=reading.source,
        )

    def _still_coming(self, reading: Reading) -> int:
        return self._given_back.coming_mb(reading, self._ours_mb(reading))

    def _ours_mb(self, reading: Reading, gone: Reservation | None = None) -> int:
        """What our models use of this device, as far as the driver tells."""
        here = [h for h in self._reservations.values() if reading.id in h.placement and h is not gone]
        ours = [reservation for reservation in here if not reservation.unkillable]
        return sum(reservation.used_mb(reading, reservation.placement[reading.id]) for reservation in ours)

    def _gpus(self) -> list[Reading]:
        return [reading for reading in self._readings.values() if reading.id != HOST]

    def _pids(self) -> list[int]:
        return [reservation.pid for reservation in self._reservations.values() if reservation.pid is not None]
