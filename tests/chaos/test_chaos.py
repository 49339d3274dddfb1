"""A storm over a real router: whatever happens around it, every request has a well-formed end.

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

from tests.chaos.crowd import Counted, Crowd
from tests.chaos.faults import HOUR_S, KINDS, Faults, stop_listening, strikes
from tests.chaos.stage import MODELS, ROOM_FOR, Stage
from tests.router_process import chat, until

SECONDS = float(os.environ.get("CHAOS_SECONDS", "8"))
SEED = int(os.environ.get("CHAOS_SEED", "1"))
CLIENTS = 24
RUSH = 500 if SECONDS >= 30 else 50
CALM_S = 90.0

pytestmark = pytest.mark.timeout(SECONDS + 4 * CALM_S)


@pytest.fixture
def stage(tmp_path: Path, llama_server: Path) -> Iterator[Stage]:
    stage = Stage(
        tmp_path,
        llama_server,
        max_swap_wait_sec=0.2,
        health_check_interval_sec=1,
        queue_timeout_sec=60,
        drain_timeout_sec=2,
        log_level="info",
    )
    stage.router.start()
    try:
        stage.router.wait_until_it_answers()
        yield stage
    finally:
        stage.router.stop()


def test_a_seed_decides_what_strikes_and_when() -> None:
    def first(seed: int) -> list[tuple[str, float, float]]:
        return [(s.kind, s.pause_s, s.dice.random()) for s in islice(strikes(seed, (0, 1)), 200)]

    assert first(1) == first(1) != first(2)
    assert sorted(kind for kind, *_ in first(1)[: len(KINDS)]) == sorted(KINDS)


async def test_every_request_in_a_storm_has_a_well_formed_end(stage: Stage) -> None:
    router, crowd = stage.router, Crowd(stage.router.url, MODELS, SEED, CLIENTS)
    me = psutil.Process(router.pid)
    beside = [asyncio.create_task(stage.show_card()), asyncio.create_task(stage.watch())]
    async with router.open_client() as http:
        await asyncio.gather(*(http.post("/v1/chat/completions", json=chat(model)) for model in MODELS))
        files, before = me.num_fds(), Counted.by(router)
        faults = Faults(http, stage, crowd, SEED, RUSH)
        clients = asyncio.create_task(crowd.run())
        await faults.run(SECONDS)
        crowd.over.set()
        await asyncio.wait_for(clients, CALM_S)
        await stage.has_calmed(http, CALM_S)
        wrong = crowd.tally.violations + crowd.disagreement(before, Counted.by(router))
        for model in MODELS:
            await http.post(f"/v1/models/{model}/reset")
            answer = await http.post("/v1/chat/completions", json=chat(model))
            assert answer.status_code == 200, (model, answer.text)
    print(f"seed {SEED}: {dict(faults.struck)}; {crowd.tally.total} requests: {dict(crowd.tally.ends)}")

    assert wrong == [], f"CHAOS_SEED={SEED}"
    assert not [c for c in router.children() if c.status() == psutil.STATUS_ZOMBIE]
    assert len(router.children()) <= ROOM_FOR
    await until(lambda: me.num_fds() <= files + 8, 30)
    for task in beside:
        assert not task.done(), task
        task.cancel()
    children = router.children()
    assert router.stop() == 0
    assert not any(child.is_running() for child in children)


async def test_a_router_that_is_stopped_when_nothing_works_ends_in_time(stage: Stage) -> None:
    router, crowd = stage.router, Crowd(stage.router.url, MODELS, SEED, CLIENTS)
    beside = asyncio.create_task(stage.show_card())
    async with router.open_client() as http:
        clients = asyncio.create_task(crowd.run())
        await until(lambda: crowd.tally.ends["whole"] > 10 and len(router.children()) == ROOM_FOR)
        children = router.children()
        stage.clock.jump_to(-HOUR_S)
        stage.trouble("hang memory")
        stage.fill_disk()
        for child, break_it in zip(children, (psutil.Process.suspend, stop_listening), strict=False):
            with suppress(psutil.Error, PermissionError):  # it is just being swapped out
                break_it(child)
        assert (await http.get("/v1/models/status")).status_code == 200
    crowd.over.set()
    router.signal(signal.SIGTERM)
    assert await router.ended(20) == 0
    beside.cancel()
    await asyncio.wait_for(clients, CALM_S)  # slow readers have much to read yet
    assert crowd.tally.violations == [], f"CHAOS_SEED={SEED}"
    assert crowd.tally.ends["shutting_down"] > 0
    assert not any(child.is_running() for child in children)
