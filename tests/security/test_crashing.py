"""What crashes a real llama-server, sent with a plain key: it harms nobody else and shows nothing of them."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.router_process import MakeRouter, RouterProcess, chat

CHAT = "/v1/chat/completions"
GUEST = {"Authorization": "Bearer guest-secret"}
DEEP = "root ::= " + "(" * 100_000 + '"a"' + ")" * 100_000
"""Its parser calls itself for each parenthesis, until its stack ends."""


@pytest.fixture
def router(make_router: MakeRouter, tiny_gguf: Path) -> RouterProcess:
    keys: list[Any] = ["boss", {"key": "guest-secret", "name": "guest"}]
    entry = {"model_path": tiny_gguf, "parallel_requests": 2}
    return make_router({"m": entry}, api={"api_keys": keys}, system={"max_restarts": 1}, key="boss")


async def test_a_grammar_of_a_hundred_thousand_parentheses_harms_nobody_else(router: RouterProcess) -> None:
    async with router.open_client() as client:
        attack = asyncio.create_task(_ask_three_times(client))
        count = 0
        while not attack.done():
            good = await client.post(CHAT, json=chat("m", content=f"a private prompt, {count}"))
            assert good.status_code == 200, good.text
            count += 1
        answers = await attack
    assert count
    for answer in answers:
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (502, "request_crashes_model")
        assert answer.headers["x-should-retry"] == "false"
        assert "private" not in answer.text
        assert "log_tail" not in error
    assert len(re.findall("WARNING m: crashed", router.log())) == 2
    assert router.metric("router_requests_quarantined_total", model="m") == 3
    assert router.state("m") == "ready"


async def _ask_three_times(client: httpx.AsyncClient) -> list[httpx.Response]:
    body = chat("m", grammar=DEEP)
    return [await client.post(CHAT, json=body, headers=GUEST) for _ in range(3)]
