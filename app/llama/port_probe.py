"""What answers on the port of a process: nobody, a model that loads, ours that serves, or another program.

All that is seen becomes evidence. What follows from it is decided in `app/judgement`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum

import anyio.to_thread

from app.domain.alarm import Alarm
from app.judgement.evidence import Evidence
from app.judgement.judge import PROBE_TIMEOUT_S
from app.judgement.router_pauses import Pauses
from app.llama.http_get import Answer, NoAnswer, http_get, may_listen
from app.llama.os_calls import out_of_files, processor_use
from app.llama.slots_endpoint import working_slots

SLOTS = "/slots"
_NO_ANSWER = (NoAnswer, OSError, TimeoutError)


class PortAnswer(Enum):
    NOTHING = "nothing"
    LOADING = "loading"
    SERVES = "serves"
    NOT_OURS = "not ours"


class PortProbe:
    """Asks one process, one question at a time."""

    def __init__(
        self,
        port: int,
        api_key: str,
        evidence: Evidence,
        pauses: Pauses,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._port, self._api_key = port, api_key
        self._evidence, self._pauses, self._clock = evidence, pauses, clock
        self._looking: asyncio.Task[None] | None = None
        self._at_slots = False

    @contextmanager
    def waiting(self, look_in_s: float, look: Callable[[], object]) -> Iterator[None]:
        """Calls `look` in so many seconds, and after that as soon as somebody may have bound the port."""

        def knock() -> None:
            if self._evidence.accepted_at is not None or may_listen(self._port):
                look()
            else:
                alarm.set_within(look_in_s)

        alarm = Alarm(knock)
        alarm.set_within(look_in_s)
        try:
            yield
        finally:
            alarm.cancel()

    async def load_step(self) -> PortAnswer:
        """While it loads."""
        health = await self._ask("/health")
        if health is None:
            return PortAnswer.NOTHING
        if health.status == 503:
            return PortAnswer.LOADING
        # Only our process asks for our key. /health is public, /props is not.
        stranger, ours = await self._ask("/props", key=False), await self._ask("/props")
        if stranger is None or ours is None:
            return PortAnswer.NOTHING
        serves = health.status == 200 and stranger.status == 401 and ours.status == 200
        return PortAnswer.SERVES if serves else PortAnswer.NOT_OURS

    async def look(self, pid: int, *, at_slots: bool) -> None:
        """At a process that serves. Who comes while one is under way waits for that, but for a look at the
        slots: it says more than one at the health, which may take long, and takes its place. `stop` ends the
        wait."""
        if self._looking is not None and at_slots and not self._at_slots:
            self._looking.cancel()
            self._looking = None
        if self._looking is None or self._looking.done():
            self._at_slots = at_slots
            self._looking = asyncio.create_task(self._look(pid, at_slots), name=f"look at pid {pid}")
        while not self._looking.done():
            await asyncio.wait({self._looking})  # a cancelled look must not look like a cancelled asker
        if not self._looking.cancelled():
            self._looking.result()

    async def sample(self, pid: int) -> None:
        cpu_s, is_stopped = await anyio.to_thread.run_sync(processor_use, pid)
        self._evidence.used_processor(self._clock(), cpu_s, is_stopped=is_stopped)

    def stop(self) -> None:
        if self._looking is not None:
            self._looking.cancel()

    # --- inside

    async def _look(self, pid: int, at_slots: bool) -> None:
        await self.sample(pid)
        if not at_slots:
            await self._ask("/health")
        elif (answer := await self._ask(SLOTS)) is not None:
            working = working_slots(answer.body) if answer.status == 200 else None
            self._evidence.saw_slots(self._clock(), working)

    def _connected(self) -> None:
        self._evidence.port_accepted(self._clock())

    async def _ask(self, path: str, *, key: bool = True) -> Answer | None:
        evidence, begun = self._evidence, self._clock()
        evidence.probe_begun(begun, at_slots=path == SLOTS)
        try:
            key_for_it = self._api_key if key else None
            answer = await http_get(self._port, path, key_for_it, PROBE_TIMEOUT_S, self._connected)
        except ConnectionRefusedError:
            evidence.port_refused(self._clock())
            evidence.probe_missed(self._clock())
        except _NO_ANSWER as error:
            now = self._clock()
            evidence.probe_missed(now, is_void=out_of_files(error) or self._pauses.interrupted(begun, now))
        except BaseException:  # cancelled, too: what it would have answered is not known
            evidence.probe_missed(self._clock(), is_void=True)
            raise
        else:
            evidence.probe_answered(self._clock())
            return answer
        return None
