"""Ollama's API: what loads a model, shares it, and lets it go, as seen from outside."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.router_process import MakeRouter, RouterProcess, until, until_now

HI = {"messages": [{"role": "user", "content": "Hello"}], "options": {"num_predict": 4, "temperature": 0}}


@pytest.fixture(scope="module")
def router(make_shared_router: MakeRouter, tiny_gguf: Path) -> RouterProcess:
    one = {"model_path": tiny_gguf, "aliases": ["first:7b"], "parallel_requests": 2}
    return make_shared_router({"one": one})


async def chat(http: httpx.AsyncClient, model: str) -> dict[str, Any]:
    answer = await http.post("/api/chat", json={"model": model, "stream": False, **HI})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_letting_go_of_a_model_that_answers_cuts_nothing_and_keeps_nobody_out(
    router: RouterProcess,
) -> None:
    """The process stands still meanwhile, so that what runs cannot have ended before."""
    async with router.open_client() as http:
        await chat(http, "one")
        loads = router.loads("one")
        with router.frozen("one"):
            running = asyncio.create_task(chat(http, "one"))
            await until(lambda: router.metric("router_requests_in_flight") == 1)
            told = (await http.post("/api/generate", json={"model": "one", "keep_alive": 0})).json()
            assert (told["done"], told["done_reason"]) == (True, "unload")
            later = asyncio.create_task(chat(http, "one"))
            await until(lambda: router.metric("router_requests_in_flight") == 2)
        assert [answer["done"] for answer in await asyncio.gather(running, later)] == [True, True]
        assert router.loads("one") == loads
        await until(lambda: router.get("/api/ps")["models"] == [])


async def test_names_of_one_model_share_a_process_and_each_answer_has_the_name_asked_for(
    router: RouterProcess,
) -> None:
    async with router.open_client() as http:
        told = [await chat(http, name) for name in ("one", "First:7B", "one:latest")]
        assert [answer["model"] for answer in told] == ["one", "First:7B", "one:latest"]
    assert [model["name"] for model in router.get("/api/ps")["models"]] == ["one:latest"]
    assert len(router.children()) == 1


async def test_a_process_that_was_killed_while_idle_is_started_again(router: RouterProcess) -> None:
    async with router.open_client() as http:
        await chat(http, "one")
        killed = router.child("one")
        killed.kill()
        until_now(lambda: not killed.is_running())
        assert (await chat(http, "one"))["done"]
    assert router.child("one") != killed
