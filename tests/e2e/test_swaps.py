"""Several models and room for one: every way in which other routers strand, kill or repeat requests."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gates import Gate
from tests.router_process import MakeRouter, RouterProcess, chat, frozen, until

ASK = "/v1/chat/completions"
MAX_SWAP_WAIT_S = 2
HIGH = {"X-Request-Priority": "high"}


@pytest.fixture(scope="module")
def gate_of_a(tmp_path_factory: pytest.TempPathFactory) -> Gate:
    return Gate(tmp_path_factory.mktemp("gates") / "a")


@pytest.fixture(scope="module")
def shared(
    make_shared_router: MakeRouter,
    gated_llama_server: Path,
    gate_of_a: Gate,
    models_dir: Path,
    tiny_gguf: Path,
    tiny_long_gguf: Path,
    truncated_gguf: Path,
    garbage_gguf: Path,
    misfit_gguf: Path,
) -> RouterProcess:
    """Room for one."""
    return make_shared_router(
        {
            "a": {
                "model_path": tiny_long_gguf,
                "params": {"n_ctx": 131072},
                "env": gate_of_a.env,
            },
            "b": {"model_path": tiny_gguf},
            "truncated": {"model_path": truncated_gguf},
            "garbage": {"model_path": garbage_gguf},
            "missing": {"model_path": models_dir / "there-is-no-such.gguf"},
            "misfit": {"model_path": misfit_gguf},
        },
        binary=gated_llama_server,
        system={"max_concurrent_models": 1, "max_swap_wait_sec": MAX_SWAP_WAIT_S},
    )


@pytest.fixture
def router(shared: RouterProcess) -> RouterProcess:
    """With nothing loaded."""
    shared.eject("a", "b")
    return shared


def ask(http: httpx.AsyncClient, body: dict[str, Any], **options: Any) -> asyncio.Task[httpx.Response]:
    return asyncio.create_task(http.post(ASK, json=body, **options))


class Loads:
    """How many loads were begun since this was made, abandoned ones included."""

    def __init__(self, router: RouterProcess) -> None:
        self._router = router
        self._before = self._now()

    def _now(self) -> dict[str, int]:
        return {
            alias: int(self._router.metric("router_model_loads_total", model=alias)) for alias in ("a", "b")
        }

    def since(self) -> dict[str, int]:
        return {alias: count - self._before[alias] for alias, count in self._now().items()}


async def test_a_model_just_loaded_serves_its_own_request_before_a_queued_model_may_evict_it(
    router: RouterProcess, http: httpx.AsyncClient, gate_of_a: Gate
) -> None:
    loads = Loads(router)
    with gate_of_a.closed():
        first = ask(http, chat("a"))
        await until(lambda: router.state("a") == "starting")
        second = ask(http, chat("b"))
        await until(lambda: router.status("b")["queue_depth"] == 1)

    assert [(await task).status_code for task in (first, second)] == [200, 200]
    assert loads.since() == {"a": 1, "b": 1}


async def test_a_model_that_is_loading_for_a_request_is_not_evicted_even_for_a_high_priority(
    router: RouterProcess, http: httpx.AsyncClient, gate_of_a: Gate
) -> None:
    loads = Loads(router)
    with gate_of_a.closed():
        first = ask(http, chat("a"), headers={"X-Request-Priority": "low"})
        await until(lambda: router.state("a") == "starting")
        loading = await until(lambda: router.status("a")["pid"])
        urgent = ask(http, chat("b"), headers=HIGH)
        await until(lambda: router.status("b")["queue_depth"] == 1)
        assert router.get("/v1/models/b/plan")["wait_sec"] > 0
        assert (router.state("a"), router.status("a")["pid"]) == ("starting", loading)

    assert [(await task).status_code for task in (first, urgent)] == [200, 200]
    assert loads.since() == {"a": 1, "b": 1}


async def test_a_load_that_nobody_waits_for_any_more_makes_room_at_once(
    router: RouterProcess, http: httpx.AsyncClient, gate_of_a: Gate
) -> None:
    abandoned = router.metric("router_model_loads_total", model="a", result="abandoned")
    with gate_of_a.closed():
        leaves = ask(http, chat("a"))
        await until(lambda: router.state("a") == "starting")
        leaves.cancel()
        with suppress(asyncio.CancelledError):
            await leaves

        assert (await http.post(ASK, json=chat("b"))).status_code == 200
        assert router.state("a") == "off"

    assert router.metric("router_model_loads_total", model="a", result="abandoned") == abandoned + 1


async def test_two_models_asked_for_at_once_with_room_for_one_are_both_served(
    router: RouterProcess, http: httpx.AsyncClient
) -> None:
    for first, second in (("a", "b"), ("b", "a"), ("a", "b")):
        answers = await asyncio.gather(ask(http, chat(first)), ask(http, chat(second)))

        assert [answer.status_code for answer in answers] == [200, 200]
        assert [answer.json()["model"] for answer in answers] == [first, second]


@pytest.mark.parametrize("headers", [{}, HIGH], ids=["normal", "high"])
async def test_a_request_for_another_model_does_not_kill_a_running_stream(
    router: RouterProcess, http: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    router.load("a")
    tokens, process = 1500, router.child("a")
    async with http.stream("POST", ASK, json=chat("a", max_tokens=tokens, stream=True)) as stream:
        pieces = stream.aiter_text()
        text = await pieces.__anext__()
        with frozen(process):
            other = ask(http, chat("b"), headers=headers)
            await until(lambda: router.status("b")["queue_depth"] == 1)
            if headers:
                await until(lambda: router.state("a") == "stopping")
        async for piece in pieces:
            text += piece

    assert text.endswith("data: [DONE]\n\n")
    assert f'"completion_tokens":{tokens}' in text or f'"predicted_n":{tokens}' in text
    assert (await other).status_code == 200
    assert router.metric("router_request_replays_total", model="a") == 0


async def test_a_new_request_for_a_model_on_its_way_out_is_served_after_the_swap(
    router: RouterProcess, http: httpx.AsyncClient
) -> None:
    router.load("a")
    loads = Loads(router)
    with router.frozen("a"):
        running = ask(http, chat("a"))
        await until(lambda: router.status("a")["in_flight"] == 1)
        urgent = ask(http, chat("b"), headers=HIGH)
        await until(lambda: router.state("a") == "stopping")
        late = ask(http, chat("a", content="late"))
        await until(lambda: router.status("a")["queue_depth"] == 1)
        assert router.status("a")["in_flight"] == 1

    answers = await asyncio.gather(running, urgent, late)
    assert [answer.status_code for answer in answers] == [200] * 3
    assert [answer.json()["model"] for answer in answers] == ["a", "b", "a"]
    assert loads.since() == {"a": 1, "b": 1}
    assert router.is_quiet("a") and router.is_quiet("b")


async def test_a_model_on_its_way_out_stays_when_nobody_needs_its_place_any_more(
    router: RouterProcess, http: httpx.AsyncClient
) -> None:
    router.load("a")
    loads = Loads(router)
    with router.frozen("a") as process:
        running = ask(http, chat("a"))
        await until(lambda: router.status("a")["in_flight"] == 1)
        urgent = ask(http, chat("b"), headers=HIGH)
        await until(lambda: router.state("a") == "stopping")
        late = ask(http, chat("a", content="late"))
        await until(lambda: router.status("a")["queue_depth"] == 1)
        urgent.cancel()
        with suppress(asyncio.CancelledError):
            await urgent
        await until(lambda: router.state("a") == "ready")

    assert [(await task).status_code for task in (running, late)] == [200, 200]
    assert router.status("a")["pid"] == process.pid
    assert loads.since() == {"a": 0, "b": 0}


@pytest.mark.parametrize("model", ["truncated", "garbage", "missing"])
async def test_nothing_healthy_is_evicted_for_a_model_that_cannot_be_loaded(
    router: RouterProcess, http: httpx.AsyncClient, model: str
) -> None:
    router.load("a")
    before = router.status("a")["pid"]
    evictions = router.metric("router_model_evictions_total", model="a")

    first = await http.post(ASK, json=chat(model))
    second = await http.post(ASK, json=chat(model))

    assert [first.json()["error"]["code"], second.json()["error"]["code"]] == ["load_failed", "model_failed"]
    assert (router.state("a"), router.status("a")["pid"]) == ("ready", before)
    assert router.metric("router_model_evictions_total", model="a") == evictions
    assert router.metric("router_model_loads_total", model=model) == 0


async def test_a_model_that_only_llama_server_refuses_costs_one_eviction_not_one_a_request(
    router: RouterProcess, http: httpx.AsyncClient
) -> None:
    router.load("a")
    assert (await http.post(ASK, json=chat("misfit"))).json()["error"]["code"] == "load_failed"
    router.load("a")
    before = router.status("a")["pid"]
    attempts = router.metric("router_model_loads_total", model="misfit")

    for _ in range(3):
        assert (await http.post(ASK, json=chat("misfit"))).json()["error"]["code"] == "model_failed"

    assert router.status("a")["pid"] == before
    assert router.metric("router_model_loads_total", model="misfit") == attempts >= 1


async def test_24_requests_for_two_models_in_turn_need_one_load_of_each(
    make_router: MakeRouter, gated_llama_server: Path, tiny_gguf: Path, tmp_path: Path
) -> None:
    """With patience for the first model's twelve, however slow the machine is."""
    gate = Gate(tmp_path / "gate")
    router = make_router(
        {"a": {"model_path": tiny_gguf, "env": gate.env}, "b": {"model_path": tiny_gguf}},
        binary=gated_llama_server,
        system={"max_concurrent_models": 1, "max_swap_wait_sec": 600},
    )
    loads = Loads(router)
    async with router.open_client() as http:
        with gate.closed():
            asked = [ask(http, chat("a", content="number 0"))]
            await until(lambda: router.state("a") == "starting")
            asked += [ask(http, chat("ab"[n % 2], content=f"number {n}")) for n in range(1, 24)]
            await until(lambda: [router.status(alias)["queue_depth"] for alias in "ab"] == [12, 12])
        answers = await asyncio.gather(*asked)

    assert [answer.status_code for answer in answers] == [200] * 24
    assert [answer.json()["model"] for answer in answers] == ["a", "b"] * 12
    assert loads.since() == {"a": 1, "b": 1}
    assert router.is_quiet("a") and router.is_quiet("b")


async def test_traffic_without_a_pause_does_not_keep_another_model_waiting_for_ever(
    router: RouterProcess, http: httpx.AsyncClient
) -> None:
    """So many wait that the model is never idle, even where these clients stand still for a while."""
    router.load("a")
    failed: list[httpx.Response] = []

    async def client_of_a() -> None:
        while True:
            answer = await http.post(ASK, json=chat("a", max_tokens=2000))
            if answer.status_code != 200:
                failed.append(answer)

    clients = [asyncio.create_task(client_of_a()) for _ in range(50)]
    await until(lambda: router.status("a")["queue_depth"] > 40)
    answer = await asyncio.wait_for(http.post(ASK, json=chat("b")), 60)
    for client in clients:
        client.cancel()
    await asyncio.gather(*clients, return_exceptions=True)

    assert answer.status_code == 200
    assert int(answer.headers["x-queue-wait-ms"]) >= 1000 * MAX_SWAP_WAIT_S
    assert failed == []


async def test_a_long_backlog_of_low_priority_does_not_hold_back_an_urgent_request(
    router: RouterProcess, http: httpx.AsyncClient
) -> None:
    """The urgent one is next on the one slot, whatever waits there."""
    router.load("a")
    order: list[str] = []

    async def one(name: str, priority: str) -> None:
        answer = await http.post(
            ASK, json=chat("a", max_tokens=1, content=name), headers={"X-Request-Priority": priority}
        )
        assert answer.status_code == 200
        order.append(name)

    with router.frozen("a"):
        tasks = [asyncio.create_task(one("running", "normal"))]
        await until(lambda: router.status("a")["in_flight"] == 1)
        tasks += [asyncio.create_task(one(f"low {number}", "low")) for number in range(50)]
        await until(lambda: router.status("a")["queue_depth"] == 50)
        tasks.append(asyncio.create_task(one("urgent", "high")))
        await until(lambda: router.status("a")["queue_depth"] == 51)
        depths = router.get("/v1/queue/stats")["per_model"]["a"]["by_priority"]
    await asyncio.gather(*tasks)

    assert depths == {"high": 1, "normal": 0, "low": 50}
    assert order[:2] == ["running", "urgent"]
