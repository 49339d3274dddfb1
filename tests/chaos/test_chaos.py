"""A storm over a real router: whatever happens to its llama-servers, every request has a well-formed end.

CHAOS_SECONDS and CHAOS_SEED make it longer and another one; a failure names the seed.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import psutil
import pytest

from tests.chaos.crowd import Crowd
from tests.chaos.faults import Faults
from tests.router_process import MakeRouter, RouterProcess, chat, until

SECONDS = float(os.environ.get("CHAOS_SECONDS", "8"))
SEED = int(os.environ.get("CHAOS_SEED", "1"))
CLIENTS = 24
RUSH = 500 if SECONDS >= 30 else 50
MODELS = ("one", "two", "three", "full-disk")
CALM_S = 90.0

pytestmark = pytest.mark.timeout(SECONDS + 4 * CALM_S)


@pytest.fixture
def model_file(tmp_path: Path, tiny_gguf: Path) -> Path:
    """Of its own, for it goes away now and then."""
    return Path(shutil.copy(tiny_gguf, tmp_path / "lost-and-found.gguf"))


@pytest.fixture
def router(make_router: MakeRouter, tiny_gguf: Path, model_file: Path, tmp_path: Path) -> RouterProcess:
    """Four models with room for two."""
    logs = tmp_path / "logs"
    logs.mkdir()
    if Path("/dev/full").exists():
        (logs / "full-disk.log").symlink_to("/dev/full")
    return make_router(
        {
            "one": {"model_path": tiny_gguf, "parallel_requests": 4},
            "two": {"model_path": tiny_gguf, "parallel_requests": 2},
            "three": {"model_path": model_file},
            "full-disk": {"model_path": tiny_gguf},
        },
        system={
            "max_concurrent_models": 2,
            "max_swap_wait_sec": 0.2,
            "max_restarts": 100_000,
            "restart_window_sec": 2,
            "health_check_interval_sec": 1,
            "queue_timeout_sec": 60,
            "drain_timeout_sec": 2,
            "log_level": "info",
            "log_dir": str(logs),
        },
    )


async def test_every_request_in_a_storm_has_a_well_formed_end(
    router: RouterProcess, model_file: Path
) -> None:
    me = psutil.Process(router.pid)
    crowd = Crowd(router.url, MODELS, SEED, CLIENTS)
    watch = asyncio.create_task(stays_healthy(router))
    async with router.open_client() as http:
        await asyncio.gather(*(http.post("/v1/chat/completions", json=chat(model)) for model in MODELS))
        before = me.num_fds()
        faults = Faults(http, MODELS, model_file, crowd, SEED, RUSH)
        clients = asyncio.create_task(crowd.run())
        await faults.run(SECONDS)
        crowd.over.set()
        await asyncio.wait_for(clients, CALM_S)
        await until(lambda: all(router.is_quiet(model) for model in MODELS), CALM_S)
        for model in MODELS:
            await http.post(f"/v1/models/{model}/reset")
            answer = await http.post("/v1/chat/completions", json=chat(model))
            assert answer.status_code == 200, (model, answer.text)
            crowd.tally.ends["whole"] += 1
    assert not watch.done(), watch
    watch.cancel()
    print(f"seed {SEED}: {dict(faults.struck)}; {crowd.tally.total} requests: {dict(crowd.tally.ends)}")

    assert crowd.tally.violations == [], f"CHAOS_SEED={SEED}"
    assert_counters_agree(router, crowd, warm_up=len(MODELS))
    assert not [c for c in router.children() if c.status() == psutil.STATUS_ZOMBIE]
    assert len(router.children()) <= 2
    await until(lambda: me.num_fds() <= before + 8, 30)
    children = router.children()
    assert router.stop() == 0
    assert not any(child.is_running() for child in children)


async def stays_healthy(router: RouterProcess) -> None:
    """Models may fall, the router stands."""
    async with router.open_client() as http:
        while True:
            assert (await http.get("/health")).json()["status"] == "ok"
            await asyncio.sleep(0.5)


def assert_counters_agree(router: RouterProcess, crowd: Crowd, warm_up: int) -> None:
    """With what the clients saw; one who left may have been answered in the same moment, or not heard."""
    left, counted = crowd.tally.ends["left"], router.metric("router_requests_total")
    assert crowd.tally.total + warm_up - left <= counted <= crowd.tally.total + warm_up
    success = router.metric("router_requests_total", status="success")
    whole = crowd.tally.ends["whole"] + warm_up
    assert whole <= success <= whole + left
