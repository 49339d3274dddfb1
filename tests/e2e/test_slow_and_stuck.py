"""Real llama-servers that are slow, and are left alone; real ones that hang, and are replaced in time.

The time-out is a second or two, so that what lasts minutes elsewhere lasts seconds here.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.freezing import frozen_thread
from tests.router_process import MakeRouter, RouterProcess, chat, until, until_now
from tests.serving import soon

ASK = "/v1/chat/completions"
LIMIT_S = 2
FOUND_WITHIN_S = 2 * LIMIT_S + 10
"""Of the time in which the machine did not stand still itself."""

LONG = {"n_ctx": 65536, "n_batch": 128}
"""Small batches: llama-server tells nothing before one is read, on a busy machine not even that it lives."""


@pytest.fixture(scope="module")
def router(make_shared_router: MakeRouter, tiny_long_gguf: Path) -> RouterProcess:
    quiet = {"extra_args": ["-lv", "1"], "parallel_requests": 2}
    return make_shared_router(
        {
            "one": {"model_path": tiny_long_gguf, "params": LONG},
            "two": {"model_path": tiny_long_gguf, "params": LONG, **quiet},
            "ever": {"model_path": tiny_long_gguf, "params": LONG, "request_timeout_sec": 0},
        },
        system={"max_restarts": 1000, "request_timeout_sec": LIMIT_S, "health_check_interval_sec": 600},
    )


def lasting(alias: str) -> dict[str, object]:
    """An answer that takes longer than the limit, whatever the machine: it is stopped by its client."""
    return chat(alias, max_tokens=60_000, ignore_eos=True)


def is_replaced(router: RouterProcess, alias: str, pid: int) -> bool:
    return bool(router.status(alias).get("pid") not in (pid, None))


# --- stuck


@pytest.mark.parametrize("alias", ["one", "two"])
def test_a_main_loop_that_hangs_is_found_although_health_answers(router: RouterProcess, alias: str) -> None:
    router.load(alias)
    pid = router.status(alias)["pid"]
    with frozen_thread(pid):
        lost = router.client.post(ASK, json=chat(alias))
        assert (lost.status_code, lost.json()["error"]["code"]) == (504, "upstream_timeout")
        assert lost.headers["x-should-retry"] == "false"
        until_now(lambda: is_replaced(router, alias, pid), FOUND_WITHIN_S)
        assert router.client.post(ASK, json=chat(alias)).status_code == 200
    assert is_replaced(router, alias, pid)
    assert "hung (nothing has moved for " in router.log()


def test_clients_that_give_up_early_tell_of_a_hang_too(router: RouterProcess) -> None:
    router.load("one")
    pid = router.status("one")["pid"]

    def is_told_of() -> bool:
        with suppress(httpx.TimeoutException):
            router.client.post(ASK, json=chat("one"), timeout=0.4)
        return is_replaced(router, "one", pid)

    with frozen_thread(pid):
        until_now(is_told_of, FOUND_WITHIN_S)


def test_a_stopped_process_is_replaced(router: RouterProcess) -> None:
    router.load("two")
    pid = router.status("two")["pid"]
    os.kill(pid, signal.SIGSTOP)
    assert router.client.post(ASK, json=chat("two")).status_code == 504
    until_now(lambda: is_replaced(router, "two", pid), FOUND_WITHIN_S)
    assert router.client.post(ASK, json=chat("two")).status_code == 200
    assert is_replaced(router, "two", pid)


# --- slow


async def test_answers_that_take_longer_than_the_limit_are_given(router: RouterProcess) -> None:
    """Plain ones, with a log that says nothing; and the process stays."""
    router.load("two")
    pid, loads = router.status("two")["pid"], router.loads("two")
    async with router.open_client() as http:
        asked = [asyncio.create_task(http.post(ASK, json=lasting("two"))) for _ in range(2)]
        done, _ = await asyncio.wait(asked, timeout=4 * LIMIT_S)
        for task in done:
            assert task.result().status_code == 200, task.result().text
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    assert (router.status("two")["pid"], router.loads("two")) == (pid, loads)
    assert "upstream_timeout" not in router.log().split("two: ready")[-1].split("one: ")[0]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_long_answer_is_seen_to_move(router: RouterProcess, stream: bool) -> None:
    router.load("one")
    begun = time.time()
    async with router.open_client() as http:
        asked = asyncio.create_task(http.post(ASK, json={**lasting("one"), "stream": stream}))
        first = await until(lambda: generated(router.status("one")))
        await until(lambda: generated(router.status("one")) > first)
        stats = router.get("/v1/queue/stats")["per_model"]["one"]
        assert generated(stats) > first
        assert begun < stats["requests"][0]["since"] < time.time()
        assert stream or stats["progress"]["generated"] >= first
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
    await until(lambda: router.status("one")["requests"] == [])


def generated(status: dict[str, Any]) -> int:
    return int(sum(request["generated"] or 0 for request in status["requests"]))


async def test_a_prompt_that_takes_long_to_read_is_read(router: RouterProcess) -> None:
    router.load("one")
    pid = router.status("one")["pid"]
    async with router.open_client() as http:
        body = chat("one", content="the " * 12_000, max_tokens=1, stream=True)
        answer = await http.post(ASK, json=body)
    assert answer.status_code == 200 and answer.text.rstrip().endswith("[DONE]"), answer.text[-500:]
    assert router.status("one")["pid"] == pid


def test_without_a_limit_nothing_is_given_up(router: RouterProcess) -> None:
    router.load("ever")
    with frozen_thread(router.status("ever")["pid"]), pytest.raises(httpx.TimeoutException):
        router.client.post(ASK, json=chat("ever"), timeout=3 * LIMIT_S)
    assert router.client.post(ASK, json=chat("ever")).status_code == 200


# --- pauses of the router


async def test_after_a_pause_of_the_router_whatever_was_answered_meanwhile_is_passed_on(
    router: RouterProcess,
) -> None:
    router.load("one", "two")
    pids = [router.status(alias)["pid"] for alias in ("one", "two")]
    resting = await rest(router)
    async with router.open_client() as http:
        # Long enough to be seen in flight, whenever that is asked.
        bodies = [chat("one", max_tokens=5000), chat("two", max_tokens=5000, stream=True), chat("two")]
        asked = [asyncio.create_task(http.post(ASK, json=body)) for body in bodies]
        await until(lambda: router.status("one")["in_flight"] + router.status("two")["in_flight"] > 0)
        os.kill(router.pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(3 * LIMIT_S)
        finally:
            os.kill(router.pid, signal.SIGCONT)
        answers = await asyncio.gather(*asked)
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert answers[1].text.rstrip().endswith("[DONE]")
    assert [router.status(alias)["pid"] for alias in ("one", "two")] == pids
    for reader, writer in resting:
        writer.write(request_on_a_kept_connection())
        assert (await soon(reader.readline())).startswith(b"HTTP/1.1 200")
        writer.close()
    assert "the router stood still for " in router.log()


async def rest(router: RouterProcess) -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connections on which a request was answered and none follows yet: for a model, and for the router."""
    made = []
    for request in (request_on_a_kept_connection(), b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"):
        reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
        await reader.readexactly(int(length.split(b":")[1]))
        made.append((reader, writer))
    return made


def request_on_a_kept_connection() -> bytes:
    return b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
