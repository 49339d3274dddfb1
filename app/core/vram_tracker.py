"""When devices are read, and what happens if the driver hangs. What a reading means is for the ledger."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import anyio

from app.core.config import Config
from app.domain.event_bus import EventBus
from app.domain.events import ReadingTaken
from app.memory.ledger.kept_free import KeptFree
from app.memory.ledger.memory_ledger import MemoryLedger
from app.memory.probes.driver_thread import Answer, DriverThread
from app.memory.probes.host_memory import host_reading
from app.memory.probes.interface import GpuProbe, Reading

logger = logging.getLogger(__name__)

REFRESH_S = 2.0
WATCH_S = 0.25  # while somebody waits for memory that other programs hold
READING_TIMEOUT_S = 5.0
WAITS = 5
"""For one reading."""

CLOSE_TIMEOUT_S = 1.0


class DeviceTracker:
    """Asks the driver in a thread, every `REFRESH_S` and when something happened, and tells the `ledger`."""

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
        self.ledger = ledger = MemoryLedger(kept_free, clock, self._read_soon)
        self._clock, self._bus = clock, bus
        self._driver = DriverThread(probe, lambda: read_host(ledger.pids()), clock)
        self._driver_error: str | None = None
        self._watching = False
        self._wanted = asyncio.Event()

    def apply(self, config: Config) -> None:
        self.ledger.kept_free = KeptFree.parse(config.system.min_free_vram_mb)
        self._bus.publish(ReadingTaken(is_news=True))

    async def refresh(self, timeout_s: float | None = None) -> None:
        """Ask the driver. A driver that fails or hangs is a state that is reported, not a crash."""
        ledger, timeout_s = self.ledger, timeout_s or self.reading_timeout_s
        waited_for, error_before = bool(ledger.given_back) or self._watching, ledger.error
        error: str | None = None
        asked_at = self._clock()
        try:
            asked_at, found = await self._answer(timeout_s)
        except TimeoutError:
            error = f"the GPU driver did not answer within {timeout_s:.0f} s"
        else:
            if isinstance(found, Exception):
                error = f"the GPU driver failed: {found}"
            else:
                ledger.take(found, asked_at)
        self._report(error)
        ledger.asked(asked_at, error)
        self._bus.publish(ReadingTaken(is_news=waited_for or error_before != ledger.error))

    async def run(self) -> None:
        """Keep the readings fresh: seldom, and often while freed memory is awaited."""
        while True:
            with anyio.move_on_after(self._pause_s()):
                await self._wanted.wait()
            self._wanted = asyncio.Event()
            if self.ledger.given_back or self._watching:
                self.probe.expire()
            await self.refresh()

    def watch(self, wanted: bool) -> None:
        """Read again now, and often, while somebody waits for what other programs hold."""
        if wanted and not self._watching:
            self._wanted.set()
        self._watching = wanted

    async def close(self) -> None:
        """Let the driver go, unless it hangs."""
        with anyio.move_on_after(CLOSE_TIMEOUT_S):
            await self._driver.close()

    # --- inside

    async def _answer(self, timeout_s: float) -> Answer:
        """Raises `TimeoutError`. Waits in steps: if this program stands still, that uses up one of them, and
        the answer that came meanwhile is there before the next one is over."""
        for _ in range(WAITS):
            with anyio.move_on_after(timeout_s / WAITS):
                return await self._driver.read()
        raise TimeoutError

    def _read_soon(self) -> None:
        self.probe.expire()
        self._wanted.set()

    def _pause_s(self) -> float:
        if self.ledger.given_back:
            return self.probe.poll_s
        return max(self.probe.poll_s, WATCH_S) if self._watching else REFRESH_S

    def _report(self, error: str | None) -> None:
        if error is not None and self._driver_error != error:
            logger.warning("%s; deciding by what was reserved so far", error)
        if error is None and self._driver_error is not None:
            logger.info("the GPU driver answers again")
        self._driver_error = error
