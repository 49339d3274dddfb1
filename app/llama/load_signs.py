"""Whether a load goes on: output, bytes read and memory that grows are signs of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import anyio.to_thread

from app.domain.units import MIB
from app.judgement.evidence import Evidence
from app.llama.load_output import LoadLog
from app.llama.os_calls import share_read, usage

LOOK_S = 0.5
LOOK_SHARE = 0.05  # of the time may be spent looking: at a mapping of 100 GB one look takes half a second
SPEAKS_S = 1.0  # since it told its progress: it need not be looked at
RSS_STEP = MIB


class LoadSigns:
    """Sees that a load goes on, also where its log says nothing."""

    def __init__(
        self,
        files: Sequence[Path],
        log: LoadLog,
        evidence: Evidence,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._files, self._log, self._evidence, self._clock = files, log, evidence, clock
        self._read = self._resident = 0
        self._next_look = clock()

    async def look(self, pid: int) -> bool:
        """At the process, where that is due. True if more of its file was seen to be read."""
        begun = self._clock()
        speaks = self._log.state is not None and begun - self._evidence.moved_at < SPEAKS_S
        if begun < self._next_look or speaks:
            return False
        changed = await self._look(pid)
        now = self._clock()
        self._next_look = now + max(LOOK_S, (now - begun) / LOOK_SHARE)
        return changed

    async def _look(self, pid: int) -> bool:
        read, resident = await anyio.to_thread.run_sync(usage, pid)
        if read > self._read or resident >= self._resident + RSS_STEP:
            self._read, self._resident = max(read, self._read), max(resident, self._resident)
            self._evidence.moved(self._clock())
        if self._log.state is not None:
            return False
        # it does not speak the protocol, or not yet
        share = await anyio.to_thread.run_sync(share_read, pid, self._files)
        return share is not None and self._log.measured(share)
