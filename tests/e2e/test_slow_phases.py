"""A llama-server that is slow in one phase of its life is waited for, and keeps its process."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import httpx
import pytest

from tests.router_process import MakeRouter, RouterProcess, chat
from tests.slowness.server import Plan, stand_in
from tests.streams import pieces_of

ASK = "/v1/chat/completions"
STREAMS = 4
HEALTH_S = 6.0
"""More than a general HTTP client waits for, and less than a probe may take."""


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("starts") / "starts"


@pytest.fixture(scope="module")
def router(
    make_shared_router: MakeRouter,
    llama_server: Path,
    tiny_gguf: Path,
    starts: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> RouterProcess:
    plans = {
        "slow": Plan(slots=2 * STREAMS, health_s=(HEALTH_S,), step_s=(0.2,)),
        "ends": Plan(ends_with=0, counts=str(starts)),
    }
    return make_shared_router(
        {
            alias: {"model_path": tiny_gguf, "env": plan.env(), "parallel_requests": plan.slots}
            for alias, plan in plans.items()
        },
        binary=stand_in(tmp_path_factory.mktemp("stand-in"), llama_server),
        system={"request_timeout_sec": 60, "load_max_retries": 1},
    )


async def test_streams_that_break_at_one_moment_are_one_reason_to_ask_however_slow_the_answer(
    router: RouterProcess,
) -> None:
    router.load("slow")
    pid = router.status("slow")["pid"]
    async with router.open_client() as http:
        begun = [asyncio.Event() for _ in range(STREAMS)]
        asked = [asyncio.create_task(stream(http, event)) for event in begun]
        await asyncio.gather(*(event.wait() for event in begun))
        os.kill(pid, signal.SIGHUP)
        assert all("model_crashed" in text for text in await asyncio.gather(*asked))
        answer = await http.post(ASK, json=chat("slow", max_tokens=2))
    assert answer.status_code == 200
    assert (router.status("slow")["pid"], router.loads("slow")) == (pid, 1)


async def stream(http: httpx.AsyncClient, begun: asyncio.Event) -> str:
    text = ""
    body = chat("slow", max_tokens=10_000, stream=True)
    async with http.stream("POST", ASK, json=body) as answer:
        async for piece in pieces_of(answer):
            text += piece
            if "data: " in text:
                begun.set()
    return text


def test_a_load_that_ends_as_if_all_were_well_is_tried_again(router: RouterProcess, starts: Path) -> None:
    assert router.client.post(ASK, json=chat("ends")).status_code == 200
    assert starts.stat().st_size == 2
