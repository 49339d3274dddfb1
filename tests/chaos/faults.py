"""What goes wrong in a storm. The same seed makes the same faults in the same order."""

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

from tests.chaos.crowd import Crowd
from tests.chaos.stage import MODELS, Stage
from tests.nvml import GPU_LOST, NOT_LOADED, UNINITIALIZED, UNKNOWN

PIDFD_GETFD = 438
HOUR_S = 3600.0
KINDS = {
    "kill": 4,
    "terminate": 2,
    "crash": 1,
    "pause": 3,
    "hang": 1,
    "deafen": 1,
    "eject": 3,
    "load": 2,
    "lose_file": 1,
    "rush": 1,
    "driver_fails": 2,
    "driver_hangs": 1,
    "clock_jumps": 2,
    "disk_full": 1,
}
"""Each is a method of `Faults`; the number is how often it strikes beside the others."""

DRIVER_ERRORS = (
    (f"fail memory GPU-0 {UNKNOWN}",),
    (f"fail memory GPU-0 {GPU_LOST}",),
    (f"fail memory * {UNINITIALIZED}",),
    (f"count 1 {UNKNOWN}", f"init {NOT_LOADED}"),
    (f"count 0 {UNKNOWN}",),
)


@dataclass(frozen=True)
class Strike:
    """`dice` is its own: what one strike makes of it does not change the next one."""

    kind: str
    pause_s: float
    dice: random.Random


def strikes(seed: int, pause_s: tuple[float, float]) -> Iterator[Strike]:
    """Each kind once, in any order, then by weight, for ever."""
    first = random.Random(f"{seed}").sample(list(KINDS), len(KINDS))
    number = 0
    while True:
        dice = random.Random(f"{seed} {number}")
        pause = dice.uniform(*pause_s)
        kind = dice.choices(list(KINDS), list(KINDS.values()))[0]
        yield Strike(first[number] if number < len(first) else kind, pause, dice)
        number += 1


class Faults:
    """Strikes at the llama-servers, files, clients, driver, clock and disk of one router."""

    def __init__(self, http: httpx.AsyncClient, stage: Stage, crowd: Crowd, seed: int, rush: int) -> None:
        self.struck: Counter[str] = Counter()
        self._http, self._stage, self._crowd = http, stage, crowd
        self._seed, self._rush = seed, rush
        self._stopped: set[psutil.Process] = set()
        self._ends: dict[str, asyncio.TimerHandle] = {}

    async def run(self, seconds: float, pause_s: tuple[float, float] = (0.05, 0.4)) -> None:
        """Strike again and again; in the end everything that was stopped or taken away is given back."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        try:
            for strike in strikes(self._seed, pause_s):
                if loop.time() >= deadline:
                    return
                await asyncio.sleep(strike.pause_s)
                await getattr(self, strike.kind)(strike.dice)
                self.struck[strike.kind] += 1
                await self._repair()
        finally:
            for end in self._ends.values():
                end.cancel()
            self._stage.calm()
            for process in self._stopped:
                with suppress(psutil.Error):
                    process.resume()

    # --- processes

    async def kill(self, dice: random.Random) -> None:
        await self._signal(dice, signal.SIGKILL)

    async def terminate(self, dice: random.Random) -> None:
        """From outside. llama-server waits for its requests after the first one."""
        for _ in range(dice.choice((1, 2))):
            await self._signal(dice, signal.SIGTERM)

    async def crash(self, dice: random.Random) -> None:
        await self._signal(dice, signal.SIGSEGV)

    async def pause(self, dice: random.Random) -> None:
        """Too short for a hang."""
        process = await self._signal(dice, signal.SIGSTOP)
        await asyncio.sleep(dice.uniform(0, 1))
        if process is not None:
            with suppress(psutil.Error):
                process.resume()

    async def hang(self, dice: random.Random) -> None:
        """Until the health monitor finds out, or the storm is over."""
        process = await self._signal(dice, signal.SIGSTOP)
        if process is not None:
            self._stopped.add(process)

    async def deafen(self, dice: random.Random) -> None:
        """It goes on running, and its port is closed."""
        process = await self._victim(dice)
        if process is not None:
            try:
                stop_listening(process)
            except PermissionError:  # as in a container: seen in the count, and the rest goes on
                self.struck["deafen (not permitted)"] += 1
            except psutil.Error:
                pass

    async def _signal(self, dice: random.Random, number: signal.Signals) -> psutil.Process | None:
        process = await self._victim(dice)
        if process is not None:
            with suppress(psutil.Error):
                process.send_signal(number)
                return process
        return None

    async def _victim(self, dice: random.Random) -> psutil.Process | None:
        status = (await self._http.get("/v1/models/status")).json()["models"]
        pids = sorted(model["pid"] for model in status.values() if model.get("pid"))
        with suppress(psutil.Error, IndexError):
            return psutil.Process(dice.choice(pids))
        return None

    # --- the machine

    async def driver_fails(self, dice: random.Random) -> None:
        self._for_a_while("driver", dice.uniform(0, 4), self._stage.trouble)
        self._stage.trouble(*dice.choice(DRIVER_ERRORS))

    async def driver_hangs(self, dice: random.Random) -> None:
        """Now and then for longer than the router waits for it."""
        self._for_a_while("driver", dice.choice((0.3, 1, 2, 8)), self._stage.trouble)
        self._stage.trouble(f"hang {dice.choice(('memory', 'count', 'compute'))}")

    async def clock_jumps(self, dice: random.Random) -> None:
        offset_s = dice.choice((-1, 1)) * dice.choice((1, HOUR_S, 30 * HOUR_S)) * dice.uniform(0.5, 1)
        self._stage.clock.jump_to(offset_s)
        seen = await self._stage.sees_clock(self._http)
        assert abs(seen - offset_s) < 30, f"the clock jumped by {offset_s} s, the router sees {seen} s"

    async def disk_full(self, dice: random.Random) -> None:
        self._for_a_while("disk", dice.uniform(0, 3), self._stage.empty_disk)
        self._stage.fill_disk()

    def _for_a_while(self, what: str, seconds: float, end: Callable[[], None]) -> None:
        if what in self._ends:
            self._ends[what].cancel()
        self._ends[what] = asyncio.get_running_loop().call_later(seconds, end)

    # --- everything else

    async def eject(self, dice: random.Random) -> None:
        mode = dice.choice(("", "?mode=now"))
        await self._manage(dice, f"/v1/models/eject{mode}")

    async def load(self, dice: random.Random) -> None:
        await self._manage(dice, "/v1/models/load")

    async def lose_file(self, dice: random.Random) -> None:
        file = self._stage.model_file
        away = file.with_suffix(".away")
        file.rename(away)
        await asyncio.sleep(dice.uniform(0, 0.5))
        away.rename(file)

    async def rush(self, dice: random.Random) -> None:
        await self._crowd.rush(self._rush, dice)

    async def _repair(self) -> None:
        """What an operator does: else the storm would soon rage over models that have failed for good."""
        for failed in (await self._http.get("/v1/models/failed")).json()["failed_models"]:
            await self._http.post(f"/v1/models/{failed['model']}/reset")

    async def _manage(self, dice: random.Random, path: str) -> None:
        body = {"model": dice.choice(MODELS)}
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
