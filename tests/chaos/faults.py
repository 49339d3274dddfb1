"""What goes wrong in a chaos run. The same seed makes the same faults in the same order."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import random
import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import httpx
import psutil

from tests.chaos.clients import Clients
from tests.chaos.environment import MODELS, Environment
from tests.nvml import GPU_LOST, NOT_LOADED, UNINITIALIZED, UNKNOWN

PIDFD_GETFD = 438
HOUR_S = 3600.0
KINDS = {
    "kill": 4,
    "terminate": 2,
    "crash": 1,
    "pause": 3,
    "hang": 1,
    "close_port": 1,
    "eject": 3,
    "load": 2,
    "lose_file": 1,
    "rush": 1,
    "driver_fails": 2,
    "driver_hangs": 1,
    "clock_jumps": 2,
    "disk_full": 1,
}
"""Each is a method of `Faults`; the number is how often it is chosen beside the others."""

DRIVER_ERRORS = (
    (f"fail memory GPU-0 {UNKNOWN}",),
    (f"fail memory GPU-0 {GPU_LOST}",),
    (f"fail memory * {UNINITIALIZED}",),
    (f"count 1 {UNKNOWN}", f"init {NOT_LOADED}"),
    (f"count 0 {UNKNOWN}",),
)


@dataclass(frozen=True)
class ScheduledFault:
    """`rng` is its own: what one fault draws from it does not change the next one."""

    kind: str
    pause_s: float
    rng: random.Random


def schedule(seed: int, pause_s: tuple[float, float]) -> Iterator[ScheduledFault]:
    """Each kind once, in any order, then by weight, for ever."""
    first = random.Random(f"{seed}").sample(list(KINDS), len(KINDS))
    number = 0
    while True:
        rng = random.Random(f"{seed} {number}")
        pause = rng.uniform(*pause_s)
        kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
        yield ScheduledFault(first[number] if number < len(first) else kind, pause, rng)
        number += 1


class Faults:
    """Faults of the llama-servers, files, clients, driver, clock and disk of one router."""

    def __init__(
        self, http: httpx.AsyncClient, environment: Environment, clients: Clients, seed: int, rush: int
    ) -> None:
        self.injected: Counter[str] = Counter()
        self._http, self._environment, self._clients = http, environment, clients
        self._seed, self._rush = seed, rush
        self._stopped: set[psutil.Process] = set()
        self._ends: dict[str, asyncio.TimerHandle] = {}

    async def run(self, seconds: float, pause_s: tuple[float, float] = (0.05, 0.4)) -> None:
        """One fault after the other; in the end all that was stopped or taken away is given back."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        try:
            for fault in schedule(self._seed, pause_s):
                if loop.time() >= deadline:
                    return
                await asyncio.sleep(fault.pause_s)
                await getattr(self, fault.kind)(fault.rng)
                self.injected[fault.kind] += 1
                await self._repair()
        finally:
            for end in self._ends.values():
                end.cancel()
            self._environment.recover()
            for process in self._stopped:
                with suppress(psutil.Error):
                    process.resume()

    # --- processes

    async def kill(self, rng: random.Random) -> None:
        await self._signal(rng, signal.SIGKILL)

    async def terminate(self, rng: random.Random) -> None:
        """From outside. llama-server waits for its requests after the first one."""
        for _ in range(rng.choice((1, 2))):
            await self._signal(rng, signal.SIGTERM)

    async def crash(self, rng: random.Random) -> None:
        await self._signal(rng, signal.SIGSEGV)

    async def pause(self, rng: random.Random) -> None:
        """Too short for a hang."""
        process = await self._signal(rng, signal.SIGSTOP)
        await asyncio.sleep(rng.uniform(0, 1))
        if process is not None:
            with suppress(psutil.Error):
                process.resume()

    async def hang(self, rng: random.Random) -> None:
        """Until the health monitor finds out, or the run is over."""
        process = await self._signal(rng, signal.SIGSTOP)
        if process is not None:
            self._stopped.add(process)

    async def close_port(self, rng: random.Random) -> None:
        """It goes on running, and its port is closed."""
        process = await self._victim(rng)
        if process is not None:
            try:
                stop_listening(process)
            except PermissionError:  # as in a container: seen in the count, and the rest goes on
                self.injected["close_port (not permitted)"] += 1
            except psutil.Error:
                pass

    async def _signal(self, rng: random.Random, number: signal.Signals) -> psutil.Process | None:
        process = await self._victim(rng)
        if process is not None:
            with suppress(psutil.Error):
                process.send_signal(number)
                return process
        return None

    async def _victim(self, rng: random.Random) -> psutil.Process | None:
        status = (await self._http.get("/v1/models/status")).json()["models"]
        pids = sorted(model["pid"] for model in status.values() if model.get("pid"))
        with suppress(psutil.Error, IndexError):
            return psutil.Process(rng.choice(pids))
        return None

    # --- the machine

    async def driver_fails(self, rng: random.Random) -> None:
        self._for_a_while("driver", rng.uniform(0, 4), self._environment.trouble)
        self._environment.trouble(*rng.choice(DRIVER_ERRORS))

    async def driver_hangs(self, rng: random.Random) -> None:
        """Now and then for longer than the router waits for it."""
        self._for_a_while("driver", rng.choice((0.3, 1, 2, 8)), self._environment.trouble)
        self._environment.trouble(f"hang {rng.choice(('memory', 'count', 'compute'))}")

    async def clock_jumps(self, rng: random.Random) -> None:
        offset_s = rng.choice((-1, 1)) * rng.choice((1, HOUR_S, 30 * HOUR_S)) * rng.uniform(0.5, 1)
        self._environment.clock.jump_to(offset_s)
        await self._environment.sees_clock(self._http, offset_s)

    async def disk_full(self, rng: random.Random) -> None:
        self._for_a_while("disk", rng.uniform(0, 3), self._environment.empty_disk)
        self._environment.fill_disk()

    def _for_a_while(self, what: str, seconds: float, end: Callable[[], None]) -> None:
        if what in self._ends:
            self._ends[what].cancel()
        self._ends[what] = asyncio.get_running_loop().call_later(seconds, end)

    # --- everything else

    async def eject(self, rng: random.Random) -> None:
        mode = rng.choice(("", "?mode=now"))
        await self._manage(rng, f"/v1/models/eject{mode}")

    async def load(self, rng: random.Random) -> None:
        await self._manage(rng, "/v1/models/load")

    async def lose_file(self, rng: random.Random) -> None:
        file = self._environment.model_file
        away = file.with_suffix(".away")
        file.rename(away)
        await asyncio.sleep(rng.uniform(0, 0.5))
        away.rename(file)

    async def rush(self, rng: random.Random) -> None:
        await self._clients.rush(self._rush, rng)

    async def _repair(self) -> None:
        """What an operator does: else all models would soon have failed for good."""
        for failed in (await self._http.get("/v1/models/failed")).json()["failed_models"]:
            await self._http.post(f"/v1/models/{failed['model']}/reset")

    async def _manage(self, rng: random.Random, path: str) -> None:
        body = {"model": rng.choice(MODELS)}
        answer = await self._http.post(path, json=body)
        assert answer.status_code < 500 or "error" in answer.json(), answer.text


def stop_listening(process: psutil.Process) -> None:
    """Shut the listening socket of another process, which takes the right to trace it.

    Nothing happens if it ends, or closes the socket itself, in the same moment.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    listening = [c.fd for c in process.net_connections("tcp4") if c.status == psutil.CONN_LISTEN]
    try:
        owner = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        for number in listening:
            copy = libc.syscall(PIDFD_GETFD, owner, number, 0)
            if copy < 0 and ctypes.get_errno() in (errno.EPERM, errno.ENOSYS):
                raise PermissionError("pidfd_getfd: no right to trace llama-server")
            if copy >= 0:
                with socket.socket(fileno=copy) as shared, suppress(OSError):
                    shared.shutdown(socket.SHUT_RDWR)
    finally:
        os.close(owner)
