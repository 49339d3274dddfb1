"""One thread for a driver that may hang."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from app.memory.probes.interface import GpuProbe, Reading

Answer = tuple[float, "Sequence[Reading] | Exception"]


class DriverThread:
    """Asks the probe in a thread: one at a time, so that a driver that hangs costs one and no more.

    A thread of its own, since a pool's would be waited for at the end of the program.
    """

    def __init__(self, probe: GpuProbe, read_host: Callable[[], Reading], clock: Callable[[], float]) -> None:
        self._probe, self._read_host, self._clock = probe, read_host, clock
        self._asked: asyncio.Future[Answer] | None = None

    async def read(self) -> Answer:
        """The answer to the question that is under way, or to a new one, with the time when it was asked."""
        if self._asked is None:
            self._asked = self._in_thread(self._read)
            self._asked.add_done_callback(self._answered)
        return await asyncio.shield(self._asked)

    async def close(self) -> None:
        if self._asked is None:
            await self._in_thread(self._close)

    def _answered(self, _: asyncio.Future[Answer]) -> None:
        self._asked = None

    def _read(self) -> Sequence[Reading]:
        return [*self._probe.read(), self._read_host()]

    def _close(self) -> Sequence[Reading]:
        self._probe.close()
        return ()

    def _in_thread(self, call: Callable[[], Sequence[Reading]]) -> asyncio.Future[Answer]:
        loop, asked_at = asyncio.get_running_loop(), self._clock()
        future: asyncio.Future[Answer] = loop.create_future()

        def resolve(answer: Sequence[Reading] | Exception) -> None:
            if not future.done():
                future.set_result((asked_at, answer))

        def run() -> None:
            answer: Sequence[Reading] | Exception
            try:
                answer = call()
            except Exception as error:  # a driver's library may raise anything
                answer = error
            with suppress(RuntimeError):  # the loop was closed while the driver hung
                loop.call_soon_threadsafe(resolve, answer)

        threading.Thread(target=run, name="gpu driver", daemon=True).start()
        return future
