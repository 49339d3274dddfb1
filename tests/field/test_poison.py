"""A request that crashes llama-server, sent again and again beside people whose requests are good."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.router_process import MakeRouter, RouterProcess, chat, until, until_now
from tests.shared_library import compile_library

ABORT, EXIT, KILL = "CRASH-BY-ABORT", "CRASH-BY-EXIT", "KILLED-FROM-OUTSIDE"
CHAT = "/v1/chat/completions"
Fragile = Callable[..., RouterProcess]


@pytest.fixture(scope="session")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = Path(__file__).parents[1] / "fragile.c"
    return compile_library(source, tmp_path_factory.mktemp("fragile") / "fragile.so")


@pytest.fixture
def fragile(make_router: MakeRouter, tiny_long_gguf: Path, preloaded: Path) -> Fragile:
    """A router with one model, whose llama-server can be crashed."""

    def make(slots: int = 4, **system: Any) -> RouterProcess:
        entry = {
            "model_path": str(tiny_long_gguf),
            "parallel_requests": slots,
            "env": {"LD_PRELOAD": str(preloaded)},
            "params": {"n_ctx": 2048},
        }
        return make_router({"m": entry}, system=system)

    return make


def bad(marker: str = ABORT, **more: Any) -> dict[str, Any]:
    return chat("m", content=f"a secret prompt, {marker}", **more)


def code_of(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["code"])


def deaths(router: RouterProcess) -> int:
    return len(re.findall(r"WARNING m: crashed", router.log()))


async def post(client: httpx.AsyncClient, body: dict[str, Any]) -> httpx.Response:
    return await client.post(CHAT, json=body)


async def beside_five_clients(router: RouterProcess, attack: Any) -> list[httpx.Response]:
    """What an attack is answered while five clients ask; each of their requests has to be answered well."""
    over = asyncio.Event()

    async def ask(client: httpx.AsyncClient, number: int) -> int:
        count = 0
        while not over.is_set():
            answer = await post(client, chat("m", max_tokens=30, content=f"client {number}, {count}"))
            assert answer.status_code == 200, answer.text
            count += 1
        return count

    async with router.open_client() as client:
        good = [asyncio.create_task(ask(client, number)) for number in range(5)]
        answers: list[httpx.Response] = await attack(client)
        over.set()
        assert all(await asyncio.gather(*good)), "a client was never answered"
    return answers


async def test_the_same_crashing_request_fifty_times_kills_twice(fragile: Fragile) -> None:
    router = fragile()

    async def attack(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [await post(client, bad()) for _ in range(50)]

    answers = await beside_five_clients(router, attack)
    for answer in answers:
        assert (answer.status_code, code_of(answer)) == (502, "request_crashes_model")
        assert answer.headers["x-should-retry"] == "false"
        assert "retry-after" not in answer.headers
    assert deaths(router) == 2
    assert router.metric("router_requests_quarantined_total", model="m") == 50
    assert router.status("m")["status"] == "ready"


async def test_fifty_crashing_requests_at_once_kill_twice(fragile: Fragile) -> None:
    router = fragile()

    async def attack(client: httpx.AsyncClient) -> list[httpx.Response]:
        return await asyncio.gather(*(post(client, bad(EXIT)) for _ in range(50)))

    answers = await beside_five_clients(router, attack)
    assert {code_of(answer) for answer in answers} == {"request_crashes_model"}
    assert deaths(router) <= 3
    assert router.status("m")["status"] == "ready"


async def test_many_different_crashing_requests_do_not_fail_the_model_of_others(fragile: Fragile) -> None:
    router = fragile(max_restarts=1)

    async def attack(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [await post(client, bad(seed=number)) for number in range(4)]

    answers = await beside_five_clients(router, attack)
    assert {code_of(answer) for answer in answers} == {"request_crashes_model"}
    assert deaths(router) == 8
    assert router.status("m")["status"] == "ready"


def test_a_model_that_every_request_crashes_has_failed(fragile: Fragile) -> None:
    router = fragile(max_restarts=1)
    codes = [code_of(router.client.post(CHAT, json=bad(seed=number))) for number in range(3)]
    assert codes[0] == "request_crashes_model"
    assert codes[-1] in ("load_failed", "model_failed")
    assert router.status("m")["status"] == "failed"


@pytest.mark.parametrize("path", [CHAT, "/v1/messages"])
def test_a_crashing_stream_is_told_why_it_ends(fragile: Fragile, path: str) -> None:
    router = fragile(slots=1)
    for _ in range(2):
        answer = router.client.post(path, json=bad(stream=True))
        assert "this request crashed llama-server for m twice" in answer.text
    assert deaths(router) == 2


def test_what_is_refused_can_be_reproduced_and_no_prompt_is_in_the_log(fragile: Fragile) -> None:
    router = fragile()
    body = httpx.Request("POST", router.url, json=bad()).content
    for _ in range(3):
        answer = router.client.post(CHAT, content=body, headers={"Content-Type": "application/json"})
        assert "secret" not in answer.text
    (line,) = re.findall(r"^.*is refused for.*$", router.log(), re.M)
    assert f"POST {CHAT}, {len(body)} bytes, sha256 {hashlib.sha256(body).hexdigest()}" in line
    assert "secret" not in router.log()


def test_a_refusal_ends_after_its_time(fragile: Fragile) -> None:
    router = fragile(crash_quarantine_sec=1)
    assert code_of(router.client.post(CHAT, json=bad())) == "request_crashes_model"
    until_now(lambda: router.client.post(CHAT, json=bad()).status_code == 502 and deaths(router) > 2)


def test_what_is_killed_from_outside_is_held_against_no_request(fragile: Fragile) -> None:
    """By the kernel, for instance, when memory runs out: the next time there may be enough."""
    router = fragile(slots=1, max_restarts=20)
    for _ in range(2):
        answer = router.client.post(CHAT, json=bad(KILL))
        assert (answer.status_code, code_of(answer)) == (502, "model_crashed")
    assert "is refused for" not in router.log()
    assert deaths(router) == 4
    assert router.metric("router_requests_quarantined_total", model="m") == 0


async def test_a_good_stream_that_waits_is_served_although_it_was_there_at_the_crash(
    fragile: Fragile,
) -> None:
    router = fragile(slots=2)
    async with router.open_client() as client:
        await post(client, chat("m"))
        with router.frozen("m"):
            crashing = [asyncio.create_task(post(client, bad(seed=1)))]
            good = asyncio.create_task(post(client, chat("m", stream=True)))
            await until(lambda: router.status("m")["in_flight"] == 2)
        answer = await good
        assert answer.status_code == 200
        assert answer.text.endswith("data: [DONE]\n\n")
        assert code_of(await crashing[0]) == "request_crashes_model"
    assert deaths(router) == 2
