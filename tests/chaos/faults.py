"""What goes wrong in a storm. The same seed makes the same faults in the same order."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path

import httpx
import psutil

from tests.chaos.crowd import Crowd

Fault = Callable[[], Awaitable[None]]


class Faults:
    """Strikes at the llama-servers, model files and clients of one router."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        models: Sequence[str],
        file: Path,
        crowd: Crowd,
        seed: int,
        rush: int = 50,
    ) -> None:
        self.struck: Counter[str] = Counter()
        self._http, self._models, self._file, self._crowd = http, models, file, crowd
        self._dice, self._rush = random.Random(seed), rush
        self._stopped: set[psutil.Process] = set()
        self._kinds: list[tuple[Fault, int]] = [
            (self.kill, 4),
            (self.terminate, 2),
            (self.crash, 1),
            (self.pause, 3),
            (self.hang, 1),
            (self.eject, 3),
            (self.load, 2),
            (self.lose_file, 1),
            (self.rush, 1),
        ]

    async def run(self, seconds: float, pause_s: tuple[float, float] = (0.05, 0.6)) -> None:
        """Strike again and again; in the end everything that was stopped or taken away is given back."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        faults, weights = zip(*self._kinds, strict=True)
        try:
            while loop.time() < deadline:
                await asyncio.sleep(self._dice.uniform(*pause_s))
                fault = self._dice.choices(faults, weights)[0]
                await fault()
                self.struck[fault.__name__] += 1
        finally:
            for process in self._stopped:
                with suppress(psutil.Error):
                    process.resume()

    # --- processes

    async def kill(self) -> None:
        await self._signal(signal.SIGKILL)

    async def terminate(self) -> None:
        """From outside. llama-server waits for its requests after the first one."""
        for _ in range(self._dice.choice((1, 2))):
            await self._signal(signal.SIGTERM)

    async def crash(self) -> None:
        await self._signal(signal.SIGSEGV)

    async def pause(self) -> None:
        """Too short for a hang."""
        process = await self._signal(signal.SIGSTOP)
        await asyncio.sleep(self._dice.uniform(0, 1))
        if process is not None:
            with suppress(psutil.Error):
                process.resume()

    async def hang(self) -> None:
        """Until the health monitor finds out, or the storm is over."""
        process = await self._signal(signal.SIGSTOP)
        if process is not None:
            self._stopped.add(process)

    async def _signal(self, number: signal.Signals) -> psutil.Process | None:
        status = (await self._http.get("/v1/models/status")).json()["models"]
        pids = sorted(model["pid"] for model in status.values() if model.get("pid"))
        with suppress(psutil.Error, IndexError):
            process = psutil.Process(self._dice.choice(pids))
            process.send_signal(number)
            return process
        return None

    # --- everything else

    async def eject(self) -> None:
        mode = self._dice.choice(("", "?mode=now"))
        await self._manage(f"/v1/models/eject{mode}")

    async def load(self) -> None:
        await self._manage("/v1/models/load")

    async def lose_file(self) -> None:
        away = self._file.with_suffix(".away")
        self._file.rename(away)
        await asyncio.sleep(self._dice.uniform(0, 0.5))
        away.rename(self._file)
        for model in self._models:  # what an operator does who has brought the file back
            await self._http.post(f"/v1/models/{model}/reset")

    async def rush(self) -> None:
        await self._crowd.rush(self._rush, self._dice)

    async def _manage(self, path: str) -> None:
        body = {"model": self._dice.choice(self._models)}
        answer = await self._http.post(path, json=body)
        assert answer.status_code < 500 or "error" in answer.json(), answer.text
