"""GPUs that others use too, and several of them: real llama-servers, cards that the NVML stub makes up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.nvml import Driver, gpu, nvml_library, with_cuda
from tests.router_process import MakeRouter, RouterProcess, chat, until

__all__ = ["nvml_library"]

MODEL_MB, LARGE_MB, SMALL_MB = 6000, 24_576, 8192
MakeGpuRouter = Callable[..., RouterProcess]


@pytest.fixture
def driver(nvml_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = Driver(nvml_library, tmp_path)
    for name, value in driver.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return driver


@pytest.fixture
def make_gpu_router(
    make_router: MakeRouter, llama_server: Path, tiny_gguf: Path, tmp_path: Path
) -> MakeGpuRouter:
    def make(models: dict[str, int], **system: Any) -> RouterProcess:
        entries = {
            alias: {"model_path": tiny_gguf, "vram_mb": mb, "params": {"n_gpu_layers": 99}}
            for alias, mb in models.items()
        }
        system = {"min_free_vram_mb": 500, **system}
        return make_router(entries, binary=with_cuda(tmp_path, llama_server), system=system)

    return make


def taken(used_mb: int) -> str:
    """One card of 8 GB; another program has this much of it."""
    return gpu(0, SMALL_MB, used_mb, mig=0)


async def test_memory_that_another_program_gives_back_is_waited_for(
    driver: Driver, make_gpu_router: MakeGpuRouter
) -> None:
    driver.show(taken(5000))
    router = make_gpu_router({"a": MODEL_MB})
    async with router.open_client() as client:
        asking = asyncio.create_task(client.post("/v1/chat/completions", json=chat("a", max_tokens=2)))

        async def waits() -> bool:
            found = (await client.get("/v1/models/a/status")).json()
            return bool(found["waits_because"] == "other programs hold the memory" and found["waits_until"])

        await until(waits)
        driver.show(taken(100))
        answer = await asking
    assert answer.status_code == 200, answer.text
    assert "refused" not in router.log()


async def test_memory_that_stays_taken_is_a_refusal_with_its_numbers(
    driver: Driver, make_gpu_router: MakeGpuRouter
) -> None:
    driver.show(taken(5000))
    router = make_gpu_router({"a": MODEL_MB, "huge": 9000}, foreign_wait_sec=1)
    async with router.open_client() as client:
        refused = await client.post("/v1/chat/completions", json=chat("a"))
        never = await client.post("/v1/chat/completions", json=chat("huge"))
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (503, "vram_exhausted")
    assert (error["required_mb"], error["available_mb"]) == (MODEL_MB, SMALL_MB - 5000 - 500)
    assert "retry-after" in refused.headers
    assert (never.status_code, never.headers["x-should-retry"]) == (424, "false")


async def test_what_the_driver_shows_now_counts_not_what_it_showed_before(
    driver: Driver, make_gpu_router: MakeGpuRouter
) -> None:
    """Each time between two of the router's own readings, with no time to wait."""
    driver.show(taken(5000))
    router = make_gpu_router({"a": MODEL_MB}, foreign_wait_sec=0)
    async with router.open_client() as client:

        async def ask() -> httpx.Response:
            return await client.post("/v1/chat/completions", json=chat("a", max_tokens=2))

        async def is_known() -> bool:
            (device,) = (await client.get("/vram")).json()["devices"]
            return bool(device["used_mb"] == 5000)

        for _ in range(3):
            driver.show(taken(5000))
            await until(is_known)
            refused = await ask()
            assert refused.status_code == 503, refused.text
            driver.show(taken(100))
            answer = await ask()
            assert answer.status_code == 200, answer.text
            await client.post("/v1/models/eject", json={"model": "a"})


def test_mixed_cards_take_one_or_both_and_never_more_than_they_have(
    driver: Driver, make_gpu_router: MakeGpuRouter
) -> None:
    driver.show(gpu(0, LARGE_MB, 300, mig=0), gpu(1, SMALL_MB, 300, mig=0))
    router = make_gpu_router({"six": 6000, "twenty": 20_000, "both": 28_000})
    for alias, indices in (("six", [1]), ("twenty", [0]), ("both", [0, 1])):
        router.load(alias)
        status = router.status(alias)
        assert sorted(d["index"] for d in status["devices"]) == indices
        for device in router.get("/vram")["devices"]:
            assert device["reserved_mb"] <= device["total_mb"] - 300 - 500
        environment = psutil.Process(status["pid"]).environ()
        assert sorted(environment["CUDA_VISIBLE_DEVICES"].split(",")) == [str(i) for i in indices]
    assert "--tensor-split" in psutil.Process(status["pid"]).cmdline()
    assert [router.state(alias) for alias in ("six", "twenty")] == ["off", "off"]


def test_cards_that_the_environment_hides_are_left_alone(
    driver: Driver, make_gpu_router: MakeGpuRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.show(gpu(0, LARGE_MB, 300, mig=0), gpu(1, SMALL_MB, 300, mig=0))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    router = make_gpu_router({"six": 6000, "seven": 7000, "twenty": 20_000})
    router.load("six", "seven")
    assert [d["index"] for d in router.status("seven")["devices"]] == [1]
    assert router.state("six") == "off"
    answer = router.client.post("/v1/chat/completions", json=chat("twenty"))
    assert answer.headers["x-should-retry"] == "false"
