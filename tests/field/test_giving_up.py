"""Clients that give up before their answer comes, as long prompts make them, and ask again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from app.domain.priority import Priority
from tests.router_process import MakeRouter, RouterProcess, chat, until

ASK = "/v1/chat/completions"
PRIORITY = "X-Request-Priority"


@pytest.fixture(scope="module")
def router(make_shared_router: MakeRouter, tiny_long_gguf: Path) -> RouterProcess:
    entry = {"model_path": tiny_long_gguf, "params": {"n_ctx": 65536}}
    models = {
        "giving-up": entry,
        "giving-up-silent": {**entry, "extra_args": ["-lv", "1"]},
        "giving-up-two": {**entry, "parallel_requests": 2},
    }
    return make_shared_router(models, system={"request_timeout_sec": 600})


@pytest.fixture
async def http(router: RouterProcess) -> AsyncIterator[httpx.AsyncClient]:
    async with router.open_client() as client:
        yield client


Asked = asyncio.Task[httpx.Response]


def ask(http: httpx.AsyncClient, alias: str, priority: Priority = Priority.NORMAL, *, stream: bool) -> Asked:
    body = chat(alias, max_tokens=1, stream=stream)
    return asyncio.create_task(http.post(ASK, json=body, headers={PRIORITY: priority.label}))


async def give_up(asked: Asked) -> None:
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)


async def at_llama_server(router: RouterProcess, alias: str, in_flight: int, waiting: int = 0) -> None:
    def counted() -> bool:
        status = router.status(alias)
        return (status["in_flight"], status["queue_depth"]) == (in_flight, waiting)

    await until(counted)


@contextmanager
def reads_a_prompt(router: RouterProcess, alias: str) -> Iterator[None]:
    """For as long as the test wants: its llama-server notices nothing meanwhile."""
    router.load(alias)
    with router.frozen(alias):
        yield


@pytest.mark.parametrize("alias", ["giving-up", "giving-up-silent"])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_place_is_given_to_the_next_one_only_when_llama_server_has_noticed(
    router: RouterProcess, http: httpx.AsyncClient, alias: str, stream: bool
) -> None:
    """Else who asks first would be next, whatever the priority, and a retry would wait behind itself."""
    with reads_a_prompt(router, alias):
        first = ask(http, alias, stream=stream)
        await at_llama_server(router, alias, 1)
        await give_up(first)
        low = ask(http, alias, Priority.LOW, stream=stream)
        await at_llama_server(router, alias, 0, waiting=1)
        high = ask(http, alias, Priority.HIGH, stream=stream)
        await at_llama_server(router, alias, 0, waiting=2)
    for answer in await asyncio.gather(low, high):
        assert answer.status_code == 200, answer.text
    waited = [int(answer.headers["X-Queue-Wait-Ms"]) for answer in (await high, await low)]
    assert stream or waited[0] < waited[1]
    await at_llama_server(router, alias, 0)


async def test_whoever_asks_again_and_again_is_never_there_twice(
    router: RouterProcess, http: httpx.AsyncClient
) -> None:
    alias = "giving-up"
    with reads_a_prompt(router, alias):
        await give_up_at_llama_server(router, http, alias)
        for _ in range(3):
            again = ask(http, alias, stream=False)
            await at_llama_server(router, alias, 0, waiting=1)
            await give_up(again)
            await at_llama_server(router, alias, 0)
    assert (await ask(http, alias, stream=False)).status_code == 200


async def test_the_other_places_are_given_away_meanwhile(
    router: RouterProcess, http: httpx.AsyncClient
) -> None:
    alias = "giving-up-two"
    with reads_a_prompt(router, alias):
        await give_up_at_llama_server(router, http, alias)
        others = [ask(http, alias, stream=False) for _ in range(2)]
        await at_llama_server(router, alias, 1, waiting=1)
    assert [answer.status_code for answer in await asyncio.gather(*others)] == [200, 200]


async def test_a_model_need_not_wait_for_those_who_gave_up_before_it_is_stopped(
    router: RouterProcess, http: httpx.AsyncClient
) -> None:
    alias = "giving-up"
    with reads_a_prompt(router, alias):
        await give_up_at_llama_server(router, http, alias)
        await http.post("/v1/models/eject", json={"model": alias})
        assert router.state(alias) == "off"
    assert (await ask(http, alias, stream=False)).status_code == 200


async def test_a_long_prompt_that_was_given_up_lets_the_next_one_in(
    router: RouterProcess, http: httpx.AsyncClient
) -> None:
    """Without anything frozen: a prompt that takes as long as it takes."""
    alias = "giving-up"
    router.load(alias)
    body = chat(alias, content="the " * 60_000, max_tokens=1)
    reading = asyncio.create_task(http.post(ASK, json=body))
    await at_llama_server(router, alias, 1)
    await give_up(reading)
    assert (await ask(http, alias, stream=True)).status_code == 200


async def give_up_at_llama_server(router: RouterProcess, http: httpx.AsyncClient, alias: str) -> None:
    asked = ask(http, alias, stream=False)
    await at_llama_server(router, alias, 1)
    await give_up(asked)
    await at_llama_server(router, alias, 0)
