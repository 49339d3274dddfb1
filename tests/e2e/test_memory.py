"""Memory end to end: real llama-servers on a GPU that the NVML stub makes up, and what they teach us."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.nvml import UNKNOWN, Driver, gpu, nvml_library, with_cuda
from tests.router_process import MakeRouter, RouterProcess, chat, until, until_now

__all__ = ["nvml_library"]

TOTAL_MB, MODEL_MB, USED_MB = 8192, 3000, 2900
MODELS = ("a", "b", "c", "d")
MakeGpuRouter = Callable[..., RouterProcess]


class Card:
    """The stub's only GPU: each llama-server of the router uses `USED_MB` of it as soon as it runs."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self.update({})

    def update(self, models: Mapping[str, Mapping[str, Any]], *trouble: str) -> None:
        pids = [model["pid"] for model in models.values() if model.get("pid")]
        lines = [f"proc GPU-0 {pid} {USED_MB}" for pid in pids]
        self._driver.show(gpu(0, TOTAL_MB, USED_MB * len(pids), mig=0), *lines, *trouble)


@pytest.fixture
def card(nvml_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Card:
    driver = Driver(nvml_library, tmp_path)
    for name, value in driver.env.items():
        monkeypatch.setenv(name, value)
    return Card(driver)


@pytest.fixture
def make_gpu_router(
    card: Card, make_router: MakeRouter, llama_server: Path, tiny_gguf: Path, tmp_path: Path
) -> MakeGpuRouter:
    def make(models: Mapping[str, int], **system: Any) -> RouterProcess:
        entries = {
            alias: {"model_path": tiny_gguf, "vram_mb": mb, "params": {"n_gpu_layers": 99}}
            for alias, mb in models.items()
        }
        return make_router(entries, binary=with_cuda(tmp_path, llama_server), system=system)

    return make


def models_of(router: RouterProcess) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = router.get("/v1/models/status")["models"]
    return found


async def watch(router: RouterProcess, card: Card, seen: list[dict[str, Any]]) -> None:
    """Sample the ledger, and let the card show what runs, for ever."""
    async with router.open_client() as client:
        while True:
            models = (await client.get("/v1/models/status")).json()["models"]
            card.update(models)
            seen.append((await client.get("/vram")).json())


async def test_four_models_share_a_gpu_for_two_and_every_request_is_served(
    make_gpu_router: MakeGpuRouter, card: Card
) -> None:
    router = make_gpu_router(dict.fromkeys(MODELS, MODEL_MB), max_swap_wait_sec=0.2, max_concurrent_models=4)
    seen: list[dict[str, Any]] = []
    watching = asyncio.create_task(watch(router, card, seen))
    async with router.open_client() as client:

        async def ask(alias: str) -> httpx.Response:
            return await client.post("/v1/chat/completions", json=chat(alias, max_tokens=4))

        answers = await asyncio.gather(*(ask(alias) for _ in range(5) for alias in MODELS))
        await until(lambda: any(len(sample["models"]) == 2 for sample in seen[-20:]))
    watching.cancel()
    assert [answer.status_code for answer in answers] == [200] * 20, [a.text for a in answers]
    reserved = [sample["devices"][0]["reserved_mb"] for sample in seen]
    assert max(reserved) == 2 * MODEL_MB, "two fit, and never more are promised"
    assert all(sample["loaded_models_count"] <= 2 for sample in seen)
    assert sum(router.loads(alias) for alias in MODELS) >= 4


def test_two_that_do_not_fit_together_swap_and_a_third_that_never_fits_evicts_nobody(
    make_gpu_router: MakeGpuRouter, card: Card
) -> None:
    router = make_gpu_router({"a": 5000, "b": 5000, "huge": 9000})
    for alias, other in (("a", "b"), ("b", "a"), ("a", "b")):
        router.load(alias)
        card.update(models_of(router))
        assert (router.state(alias), router.state(other)) == ("ready", "off")
    answer = router.client.post("/v1/chat/completions", json=chat("huge"))
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (424, "vram_exhausted")
    assert error["required_mb"] == 9000 and error["available_mb"] <= TOTAL_MB
    assert answer.headers["x-should-retry"] == "false"
    assert router.state("a") == "ready"


def test_estimate_reservation_and_measurement_stand_side_by_side(
    make_gpu_router: MakeGpuRouter, card: Card
) -> None:
    router = make_gpu_router({"a": MODEL_MB})
    router.load("a")
    card.update(models_of(router))

    def model() -> dict[str, Any]:
        found: dict[str, Any] = router.get("/vram")["models"][0]
        return found

    until_now(lambda: model()["measured_mb"] == USED_MB)
    assert (model()["estimated_mb"], model()["reserved_mb"]) == (MODEL_MB, MODEL_MB)
    assert model()["vram_used_mb"] == USED_MB
    (device,) = router.get("/vram")["devices"]
    assert (device["total_mb"], device["used_mb"], device["reserved_mb"]) == (TOTAL_MB, USED_MB, MODEL_MB)
    assert router.metric("router_gpu_memory_bytes", gpu="0", kind="reserved") == MODEL_MB * 2**20
    assert router.metric("router_model_memory_estimate_bytes", model="a") == MODEL_MB * 2**20
    assert router.metric("router_model_memory_reserved_bytes", model="a") == MODEL_MB * 2**20
    assert router.metric("router_model_vram_bytes", model="a") == USED_MB * 2**20


@pytest.mark.parametrize("trouble", ["hang memory", f"count 1 {UNKNOWN}"])
def test_a_driver_in_trouble_is_reported_and_requests_go_on(
    make_gpu_router: MakeGpuRouter, card: Card, trouble: str
) -> None:
    router = make_gpu_router({"a": MODEL_MB, "b": MODEL_MB})
    router.load("a")
    card.update(models_of(router), trouble)
    until_now(lambda: router.get("/health")["status"] == "degraded")
    assert router.get("/health")["checks"]["gpu"]["status"] == "degraded"
    assert router.get("/vram")["reason"]
    for alias in ("a", "b"):
        answer = router.client.post("/v1/chat/completions", json=chat(alias))
        assert answer.status_code == 200, answer.text
    card.update(models_of(router))
    until_now(lambda: router.get("/health")["status"] == "ok")


def test_a_hanging_driver_does_not_keep_the_router_from_ending(
    make_gpu_router: MakeGpuRouter, card: Card
) -> None:
    router = make_gpu_router({"a": MODEL_MB})
    card.update({}, "hang memory")
    until_now(lambda: router.get("/health")["status"] == "degraded")
    assert router.stop() == 0


def test_what_a_real_load_took_is_known_after_a_restart(
    make_router: MakeRouter, tiny_gguf: Path, tmp_path: Path
) -> None:
    models, system = {"tiny": {"model_path": tiny_gguf}}, {"log_dir": str(tmp_path / "logs")}
    router = make_router(models, system=system)
    router.load("tiny")
    status = router.status("tiny")
    assert 0 < status["measured_mb"] <= status["reserved_mb"]
    history = tmp_path / "logs" / "footprints.json"
    until_now(history.exists)
    (entry,) = json.loads(history.read_text())["models"].values()
    assert entry["host_mb"] == status["measured_mb"]
    assert router.stop() == 0
    plan = make_router(models, system=system).get("/v1/models/tiny/plan")
    assert plan["measured_mb"] == entry["host_mb"]
    assert plan["need_note"] == "measured at an earlier load"


def test_a_promise_grows_to_what_llama_server_announces(
    make_router: MakeRouter, tiny_long_gguf: Path
) -> None:
    """The header cannot know that `extra_args` double the cache."""
    model = {"model_path": tiny_long_gguf, "params": {"n_ctx": 131072}}
    double = ["-ctk", "f32", "-ctv", "f32"]
    router = make_router({"plain": model, "double": {**model, "extra_args": double}})
    router.load("plain", "double")
    plain, doubled = router.status("plain"), router.status("double")
    assert plain["reserved_mb"] == plain["estimated_mb"] == doubled["estimated_mb"]
    assert doubled["reserved_mb"] >= doubled["measured_mb"] > plain["measured_mb"]
    assert doubled["reserved_mb"] > doubled["estimated_mb"]
    assert "double: needs" in router.log()
