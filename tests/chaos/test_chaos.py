"""A chaos run over a real router: whatever happens around it, every request has a well-formed end.

CHAOS_SECONDS and CHAOS_SEED make it longer and another one; a failure names the seed.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

import psutil
import pytest

from tests.chaos.clients import Clients, Counted
from tests.chaos.environment import MODELS, ROOM_FOR, Environment
from tests.chaos.faults import HOUR_S, KINDS, Faults, schedule, stop_listening
from tests.router_process import chat, until

SECONDS = float(os.environ.get("CHAOS_SECONDS", "8"))
SEED = int(os.environ.get("CHAOS_SEED", "1"))
CLIENTS = 24
RUSH = 500 if SECONDS >= 30 else 50
RECOVERY_S = 90.0

pytestmark = pytest.mark.timeout(SECONDS + 4 * RECOVERY_S)


@pytest.fixture
def environment(tmp_path: Path, llama_server: Path) -> Iterator[Environment]:
    environment = Environment(
        tmp_path,
        llama_server,
        max_swap_wait_sec=0.2,
        health_check_interval_sec=1,
        queue_timeout_sec=60,
        drain_timeout_sec=2,
        log_level="info",
    )
    environment.router.start()
    try:
        environment.router.wait_until_it_answers()
        yield environment
    finally:
        environment.router.stop()


def test_a_seed_decides_which_fault_comes_when() -> None:
    def first(seed: int) -> list[tuple[str, float, float]]:
        return [(s.kind, s.pause_s, s.rng.random()) for s in islice(schedule(seed, (0, 1)), 200)]

    assert first(1) == first(1) != first(2)
    assert sorted(kind for kind, *_ in first(1)[: len(KINDS)]) == sorted(KINDS)


async def test_every_request_in_a_chaos_run_has_a_well_formed_end(environment: Environment) -> None:
    router, clients = environment.router, Clients(environment.router.url, MODELS, SEED, CLIENTS)
    me = psutil.Process(router.pid)
    beside = [asyncio.create_task(environment.show_card()), asyncio.create_task(environment.watch())]
    async with router.open_client() as http:
        await asyncio.gather(*(http.post("/v1/chat/completions", json=chat(model)) for model in MODELS))
        files, before = me.num_fds(), Counted.by(router)
        faults = Faults(http, environment, clients, SEED, RUSH)
        asking = asyncio.create_task(clients.run())
        await faults.run(SECONDS)
        clients.over.set()
        await asyncio.wait_for(asking, RECOVERY_S)
        await environment.has_recovered(http, RECOVERY_S)
        wrong = clients.tally.violations + clients.disagreement(before, Counted.by(router))
        for model in MODELS:
            await http.post(f"/v1/models/{model}/reset")
            answer = await http.post("/v1/chat/completions", json=chat(model))
            assert answer.status_code == 200, (model, answer.text)
    print(f"seed {SEED}: {dict(faults.injected)}; {clients.tally.total} requests: {dict(clients.tally.ends)}")

    assert wrong == [], f"CHAOS_SEED={SEED}"
    assert not [c for c in router.children() if c.status() == psutil.STATUS_ZOMBIE]
    assert len(router.children()) <= ROOM_FOR
    await until(lambda: me.num_fds() <= files + 8)
    for task in beside:
        assert not task.done(), task
        task.cancel()
    children = router.children()
    assert router.stop() == 0
    assert not any(child.is_running() for child in children)


async def test_a_router_that_is_stopped_when_nothing_works_ends_in_time(environment: Environment) -> None:
    router, clients = environment.router, Clients(environment.router.url, MODELS, SEED, CLIENTS)
    beside = asyncio.create_task(environment.show_card())
    async with router.open_client() as http:
        asking = asyncio.create_task(clients.run())
        await until(lambda: clients.tally.ends["whole"] > 10 and len(router.children()) == ROOM_FOR)
        children = router.children()
        environment.clock.jump_to(-HOUR_S)
        environment.trouble("hang memory")
        environment.fill_disk()
        for child, break_it in zip(children, (psutil.Process.suspend, stop_listening), strict=False):
            with suppress(psutil.Error, PermissionError):  # it is just being swapped out
                break_it(child)
        assert (await http.get("/v1/models/status")).status_code == 200
    clients.over.set()
    router.signal(signal.SIGTERM)
    assert await router.ended() == 0
    beside.cancel()
    await asyncio.wait_for(asking, RECOVERY_S)  # slow readers have much to read yet
    assert clients.tally.violations == [], f"CHAOS_SEED={SEED}"
    assert clients.tally.ends["shutting_down"] > 0
    assert not any(child.is_running() for child in children)
