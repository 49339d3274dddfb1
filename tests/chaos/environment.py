"""What a chaos run works on: a router, its models, its GPU, its clock and its disk, all within reach.

The GPU is the stub of NVIDIA's library, with room for two of the four models; the ledger decides, as it would
on a real one. The llama-servers are real, and compute on the CPU.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests import nvml
from tests.ggufs import make_tiny
from tests.router_process import RouterProcess, until
from tests.shared_library import compile_library
from tests.wall_clock import WallClock

CARD_MB = 2048
NEEDS_MB = {"one": 900, "two": 1000, "three": 950, "full-disk": 850}
MODELS = tuple(NEEDS_MB)
ROOM_FOR = 2
GROWS_LATER_MB = 50
LOOK_EVERY_S = 0.1


class Environment:
    """`router` is not started yet; `show_card` must run while it lives."""

    def __init__(self, folder: Path, llama_server: Path, **system: Any) -> None:
        library = compile_library(nvml.SOURCE, folder / nvml.LIBRARY)
        self.clock = WallClock(folder)
        self.model_file = folder / "lost-and-found.gguf"
        self._driver = nvml.Driver(library.parent, folder)
        self._trouble: tuple[str, ...] = ()
        logs = folder / "logs"
        logs.mkdir()
        (logs / "full-disk.log").symlink_to("/dev/full")
        self.router = RouterProcess(
            folder / "router",
            nvml.with_cuda(folder, llama_server),
            self._models(make_tiny(folder / "tiny.gguf")),
            system={**SYSTEM, "log_dir": str(logs), **system},
            env={**self._driver.env, **self.clock.env},
        )
        self.show()

    def _models(self, tiny: Path) -> dict[str, dict[str, Any]]:
        shutil.copy(tiny, self.model_file)
        files = dict.fromkeys(MODELS, tiny) | {"three": self.model_file}
        slots = {"one": 4, "two": 2}
        return {
            alias: {
                "model_path": files[alias],
                "vram_mb": mb,
                "parallel_requests": slots.get(alias, 1),
                "params": {"n_gpu_layers": 99},
            }
            for alias, mb in NEEDS_MB.items()
        }

    # --- what can be done to it

    def trouble(self, *lines: str) -> None:
        """What the driver does wrong from now on, in the words of `nvml_stub.c`."""
        self._trouble = lines
        self.show()

    def fill_disk(self) -> None:
        """The router cannot write a byte more to any file, its own log included."""
        self._limit_files(0)

    def empty_disk(self) -> None:
        self._limit_files(None)

    def _limit_files(self, soft: int | None) -> None:
        import resource

        _, hard = resource.prlimit(self.router.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self.router.pid, resource.RLIMIT_FSIZE, (hard if soft is None else soft, hard))

    def recover(self) -> None:
        """Whatever was done is undone."""
        self.trouble()
        self.clock.jump_to(0)
        self.empty_disk()

    # --- what it does meanwhile

    async def show_card(self) -> None:
        """Never returns. A llama-server takes its memory soon after its start, and has it until its death."""
        while True:
            self.show()
            await asyncio.sleep(LOOK_EVERY_S)

    def show(self) -> None:
        children = self.router.children() if self.router.running else []
        uses = [f"live GPU-0 {c.pid} {mb}" for c in children if (mb := _uses_mb(c))]
        self._driver.show(nvml.gpu(0, CARD_MB, 0, mig=0), *uses, *self._trouble)

    async def watch(self) -> None:
        """Never returns. Models may fall, the router stands, and no memory is promised twice."""
        async with self.router.open_client() as http:
            while True:
                checks = (await http.get("/health")).json()["checks"]
                ill = {name for name, check in checks.items() if check["status"] != "ok"}
                assert ill <= {"gpu"}, checks
                (device,) = (await http.get("/vram")).json()["devices"]
                assert device["reserved_mb"] <= device["total_mb"], device
                await asyncio.sleep(0.5)

    async def has_recovered(self, http: httpx.AsyncClient, timeout_s: float) -> None:
        """Nobody waits, and what was broken is seen to be whole."""

        async def is_well() -> bool:
            return (await http.get("/health")).status_code == 200

        await until(lambda: all(self.router.is_quiet(model) for model in MODELS), timeout_s)
        await until(is_well, timeout_s)

    async def sees_clock(self, http: httpx.AsyncClient, offset_s: float) -> None:
        """Until the router's answers are dated so far from our clock: it writes a date for each second."""

        async def is_seen() -> bool:
            date = parsedate_to_datetime((await http.get("/v1/models")).headers["date"])
            return abs(date.timestamp() - time.time() - offset_s) < 30

        await until(is_seen)


SYSTEM: dict[str, Any] = {
    "max_concurrent_models": 3,
    "restart_window_sec": 2,
    "max_restarts": 1_000_000,
    "load_timeout_sec": 20,  # what was stopped during its load hangs for that long
}


def _uses_mb(process: psutil.Process) -> int:
    try:
        words = process.cmdline()
        return NEEDS_MB[words[words.index("--alias") + 1]] - GROWS_LATER_MB
    except (psutil.Error, ValueError):  # it has just gone, or is not llama-server yet
        return 0
