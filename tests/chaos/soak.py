"""Mixed traffic over more models than fit, for SOAK_MINUTES, with or without faults: is anything growing?

`python -m tests.chaos.soak` prints a line a minute and ends with 1 if memory, open files, threads, tasks or
children have grown, if a request had no proper end, or if a counter disagrees with what the clients saw.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import psutil

from app.core.binary import find_binary
from tests.chaos.crowd import Crowd
from tests.chaos.faults import Faults
from tests.ggufs import make_tiny
from tests.router_process import RouterProcess, chat, until

MINUTES = float(os.environ.get("SOAK_MINUTES", "30"))
SEED = int(os.environ.get("SOAK_SEED", "1"))
FAULTS = os.environ.get("SOAK_FAULTS", "1") != "0"
CLIENTS = 16
PLACES = 2
MODELS = ("one", "two", "three", "four")
SAMPLE_S = 60.0
CALM_S = 120.0
FAULT_PAUSE_S = (0.2, 2.0)

MAY_GROW_MB = 40
"""Python's allocator keeps what one busy moment needed; a leak of 1 KB a request shows within minutes."""


@dataclass(frozen=True)
class Sample:
    """What must be the same after the traffic as after its first minutes. Taken when nobody asks."""

    rss_mb: int
    fds: int
    threads: int
    tasks: int
    children: int

    @classmethod
    def of(cls, router: RouterProcess) -> Sample:
        process = psutil.Process(router.pid)
        memory = process.memory_info().rss >> 20
        tasks = router.get("/health")["checks"]["manager"]["asyncio_tasks"]
        return cls(memory, process.num_fds(), process.num_threads(), tasks, len(router.children()))

    def grown(self, before: Sample) -> list[str]:
        allowed = {"rss_mb": MAY_GROW_MB, "fds": 8, "threads": 2, "tasks": 8, "children": 0}
        pairs = [(f.name, getattr(before, f.name), getattr(self, f.name)) for f in fields(self)]
        return [f"{name}: {old} -> {new}" for name, old, new in pairs if new > old + allowed[name]]


def start(folder: Path) -> RouterProcess:
    model = make_tiny(folder / "tiny.gguf")
    lost = make_tiny(folder / "lost-and-found.gguf")
    models: dict[str, dict[str, Any]] = {
        "one": {"model_path": model, "parallel_requests": 4},
        "two": {"model_path": model, "parallel_requests": 2},
        "three": {"model_path": model},
        "four": {"model_path": lost},
    }
    system = {
        "max_concurrent_models": PLACES,
        "max_swap_wait_sec": 1,
        "max_restarts": 1_000_000,
        "restart_window_sec": 2,
        "health_check_interval_sec": 2,
        "queue_timeout_sec": 90,
        "drain_timeout_sec": 5,
        "log_level": "warning",
    }
    router = RouterProcess(folder / "router", find_binary(None), models, system=system)
    router.start()
    return router.wait_until_it_answers()


async def storm(router: RouterProcess, lost: Path, minutes: float, seed: int) -> list[str]:
    """So long of traffic and, if wanted, faults; what was wrong."""
    crowd = Crowd(router.url, MODELS, seed, CLIENTS)
    before = router.metric("router_requests_total")
    clients = asyncio.create_task(crowd.run())
    async with router.open_client() as http:
        faults = Faults(http, MODELS, lost, crowd, seed)
        if FAULTS:
            await faults.run(60 * minutes, FAULT_PAUSE_S)
        else:
            await asyncio.sleep(60 * minutes)
        crowd.over.set()
        await asyncio.wait_for(clients, CALM_S)
        await until(lambda: all(router.is_quiet(model) for model in MODELS), CALM_S)
        counted = router.metric("router_requests_total") - before
        for model in MODELS[:PLACES]:
            await http.post(f"/v1/models/{model}/reset")
            (await http.post("/v1/chat/completions", json=chat(model))).raise_for_status()
    total, left = crowd.tally.total, crowd.tally.ends["left"]
    print(f"  {total} requests {dict(crowd.tally.ends)}; {sum(faults.struck.values())} faults", flush=True)
    wrong = [f"counted {counted}, seen {total}"] if not total - left <= counted <= total else []
    return wrong + crowd.tally.violations


async def soak(router: RouterProcess, lost: Path) -> list[str]:
    """The first round only warms up: pools, caches and the allocator reach their size there."""
    wrong = await storm(router, lost, min(2.0, MINUTES / 5), SEED)
    before = Sample.of(router)
    print(f"  after warming up: {asdict(before)}", flush=True)
    deadline = time.monotonic() + 60 * MINUTES
    seed = SEED
    while (rest := deadline - time.monotonic()) > 0:
        seed += 1
        wrong += await storm(router, lost, min(rest, 5 * SAMPLE_S) / 60, seed)
        print(f"  {asdict(Sample.of(router))}", flush=True)
    await asyncio.sleep(3)  # idle connections are dropped after two seconds
    return wrong + Sample.of(router).grown(before)


def main() -> int:
    print(f"soak: {MINUTES:g} minutes, seed {SEED}, {'with' if FAULTS else 'without'} faults", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        router = start(folder)
        try:
            wrong = asyncio.run(soak(router, folder / "lost-and-found.gguf"))
            children = router.children()
            code = router.stop()
            wrong += [f"exit code {code}"] if code else []
            wrong += [f"left behind: {child}" for child in children if child.is_running()]
        finally:
            router.bury()
    print("\n".join(wrong) if wrong else "nothing has grown, every request had its end, the counters agree")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
