"""Mixed traffic over more models than fit, for SOAK_MINUTES, with or without faults: is anything growing?

`python -m tests.chaos.soak` prints two lines every five minutes and ends with 1 if memory, open files,
threads, tasks or children have grown, if a request had no proper end, or if a counter disagrees with what
the clients saw.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import psutil

from tests import llama_build
from tests.chaos.clients import Clients, Counted
from tests.chaos.environment import MODELS, ROOM_FOR, Environment
from tests.chaos.faults import Faults
from tests.router_process import RouterProcess, chat
from tests.soaks import ended

MINUTES = float(os.environ.get("SOAK_MINUTES", "30"))
SEED = int(os.environ.get("SOAK_SEED", "1"))
FAULTS = os.environ.get("SOAK_FAULTS", "1") != "0"
CLIENTS = 16
RUSH = 500
ROUND_S = 300.0
RECOVERY_S = 120.0
FAULT_PAUSE_S = (0.05, 0.8)
"""More than a thousand faults in half an hour: one lasts for a second itself, on average."""

SYSTEM = {
    "max_swap_wait_sec": 1,
    "health_check_interval_sec": 2,
    "queue_timeout_sec": 90,
    "drain_timeout_sec": 5,
    "log_level": "info",
}

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


async def chaos_run(environment: Environment, minutes: float, seed: int, injected: Counter[str]) -> list[str]:
    """So long of traffic and, if wanted, faults; what was wrong."""
    router, clients = environment.router, Clients(environment.router.url, MODELS, seed, CLIENTS)
    before = Counted.by(router)
    asking = asyncio.create_task(clients.run())
    async with router.open_client() as http:
        faults = Faults(http, environment, clients, seed, RUSH)
        if FAULTS:
            await faults.run(60 * minutes, FAULT_PAUSE_S)
        else:
            await asyncio.sleep(60 * minutes)
        clients.over.set()
        await asyncio.wait_for(asking, RECOVERY_S)
        await environment.has_recovered(http, RECOVERY_S)
        after = Counted.by(router)
        for model in MODELS[:ROOM_FOR]:
            await http.post(f"/v1/models/{model}/reset")
            (await http.post("/v1/chat/completions", json=chat(model))).raise_for_status()
    injected.update(faults.injected)
    tally = clients.tally
    print(f"  {tally.total} requests {dict(tally.ends)}; {injected.total()} faults", flush=True)
    return tally.violations + clients.disagreement(before, after)


async def soak(environment: Environment) -> list[str]:
    """The first round only warms up: pools, caches and the allocator reach their size there."""
    watchers = (environment.show_card, environment.watch)
    beside = [asyncio.create_task(run(), name=run.__name__) for run in watchers]
    injected: Counter[str] = Counter()
    wrong = await chaos_run(environment, min(2.0, MINUTES / 5), SEED, injected)
    injected.clear()
    before = Sample.of(environment.router)
    print(f"  after warming up: {asdict(before)}", flush=True)
    deadline = time.monotonic() + 60 * MINUTES
    seed = SEED
    while (rest := deadline - time.monotonic()) > 0:
        seed += 1
        wrong += await chaos_run(environment, min(rest, ROUND_S) / 60, seed, injected)
        print(f"  {asdict(Sample.of(environment.router))}", flush=True)
    await asyncio.sleep(3)  # idle connections are dropped after two seconds
    print(f"  struck: {dict(sorted(injected.items()))}, {injected.total()} in all", flush=True)
    wrong += [f"{task.get_name()} ended: {task.exception()!r}" for task in beside if task.done()]
    return wrong + Sample.of(environment.router).grown(before)


def main() -> int:
    print(f"soak: {MINUTES:g} minutes, seed {SEED}, {'with' if FAULTS else 'without'} faults", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    environment = Environment(folder, llama_build.of(), **SYSTEM)
    router = environment.router
    router.start()
    try:
        router.wait_until_it_answers()
        wrong = asyncio.run(soak(environment))
        children = router.children()
        code = router.stop()
        wrong += [f"exit code {code}"] if code else []
        wrong += [f"left behind: {child}" for child in children if child.is_running()]
    finally:
        router.clean_up()
    return ended(wrong, folder, "nothing has grown, every request had its end, the counters agree")


if __name__ == "__main__":
    sys.exit(main())
