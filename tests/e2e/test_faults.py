"""What a llama-server can do, and what clients see of it: deaths, hangs, closed ports, bad loads."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.gates import Gate
from tests.patience import exit_code
from tests.router_process import ROOT, MakeRouter, RouterProcess, chat, frozen, until, until_now
from tests.streams import pieces_of

ASK = "/v1/chat/completions"
SLOTS = 16
ENDLESS = 100_000


@dataclass
class Seen:
    """How one request ended."""

    status: int
    text: str

    @property
    def is_whole(self) -> bool:
        if self.text.lstrip("\n").startswith("data:"):
            return self.text.endswith("data: [DONE]\n\n")
        return self.status == 200 and "choices" in json.loads(self.text)

    @property
    def error(self) -> str:
        """The code of a well-formed error, as an event or as a body."""
        last = self.text.rstrip().split("\n\n")[-1].removeprefix("data: ")
        body = json.loads(last)
        assert set(body) == {"error"}, last
        code: str = body["error"]["code"]
        return code


class Asked:
    def __init__(self, http: httpx.AsyncClient, body: dict[str, Any]) -> None:
        self.text = ""
        self.task = asyncio.create_task(self._ask(http, body))

    async def _ask(self, http: httpx.AsyncClient, body: dict[str, Any]) -> Seen:
        async with http.stream("POST", ASK, json=body, timeout=None) as answer:  # the machine may be busy
            async for piece in pieces_of(answer):
                self.text += piece
        return Seen(answer.status_code, self.text)


NOTHING_MORE = 3
"""A limit of open files that lets nothing be opened: the three below it always are."""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits another process")
def test_a_router_without_files_harms_no_model(make_router: MakeRouter, tiny_gguf: Path) -> None:
    """Its probes fail too, and so does every start: none of that is a model's fault."""
    import resource

    router = make_router(
        {name: {"model_path": tiny_gguf} for name in "ab"}, system={"health_check_interval_sec": 1}
    )
    router.load("a")
    pid = router.status("a")["pid"]
    limits = resource.prlimit(router.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(router.pid, resource.RLIMIT_NOFILE, (NOTHING_MORE, limits[1]))
    for body, code in ((chat("a", stream=True), "overloaded"), (chat("b"), "load_failed")):
        answer = router.client.post(ASK, json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, code)
        assert "LimitNOFILE" in answer.json()["error"]["message"]
        assert answer.headers["retry-after"]
    probes: set[float] = set()

    def has_seen_five() -> bool:
        probes.add(router.get("/v1/health/models")["a"]["last_check"])
        return len(probes) > 4

    until_now(has_seen_five)
    assert router.get("/v1/health/models")["a"]["consecutive_failures"] == 0
    resource.prlimit(router.pid, resource.RLIMIT_NOFILE, limits)
    for alias in "ab":
        assert router.client.post(ASK, json=chat(alias, max_tokens=1)).status_code == 200
    assert router.status("a")["pid"] == pid


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Gate:
    """Of `wide`."""
    return Gate(tmp_path_factory.mktemp("gates") / "wide")


@pytest.fixture(scope="module")
def router(
    make_shared_router: MakeRouter, gated_llama_server: Path, gate: Gate, tiny_long_gguf: Path
) -> RouterProcess:
    wide = {"params": {"n_ctx": 8192}, "parallel_requests": 2 * SLOTS, "env": gate.env}
    return make_shared_router(
        {
            "wide": {"model_path": tiny_long_gguf, **wide},
            "one": {"model_path": tiny_long_gguf, "params": {"n_ctx": 131072}},
        },
        binary=gated_llama_server,
        system={"max_restarts": 1000, "health_check_interval_sec": 1, "request_timeout_sec": 600},
    )


# --- deaths ------------------------------------------------------------------------------------------


async def test_a_killed_model_under_32_requests_loses_only_the_answers_that_had_begun(
    router: RouterProcess, http: httpx.AsyncClient, gate: Gate
) -> None:
    """And those are told at once: the next process may not even start before they have been."""
    router.load("wide")
    victim = router.child("wide")
    begun = [Asked(http, chat("wide", max_tokens=6000, stream=True)) for _ in range(SLOTS)]
    await until(lambda: all("data: " in asked.text for asked in begun))
    with gate.closed(), frozen(victim):
        unbegun = [Asked(http, chat("wide", stream=i % 2 == 0)) for i in range(SLOTS)]
        await until(lambda: router.status("wide")["in_flight"] == 2 * SLOTS)
        victim.kill()
        cut = await asyncio.gather(*(asked.task for asked in begun))
    replayed = await asyncio.gather(*(asked.task for asked in unbegun))

    assert [seen.error for seen in cut] == ["model_crashed"] * SLOTS
    assert all(seen.is_whole for seen in replayed), replayed
    assert router.state("wide") == "ready"
    assert router.is_quiet("wide")
    assert router.metric("router_request_replays_total", model="wide") >= SLOTS
    assert router.metric("router_model_restarts_total", model="wide") >= 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGSEGV])
async def test_a_signal_from_outside_never_looks_like_a_good_end(
    router: RouterProcess, http: httpx.AsyncClient, number: signal.Signals
) -> None:
    router.load("one")
    # Each its own body: one that runs alone at two deaths of its process is blamed, and rightly.
    asked = Asked(http, chat("one", content=number.name, max_tokens=ENDLESS, stream=True))
    await until(lambda: "data: " in asked.text)
    victim = router.child("one")
    signals = chain([number] * 10, repeat(signal.SIGKILL))

    async def is_over() -> bool:
        """llama-server waits for the running request at the first SIGTERM, and ends at the second one; seen
        once: a hundred did not end it."""
        with suppress(psutil.NoSuchProcess):
            victim.send_signal(next(signals))
        await asyncio.wait({asked.task}, timeout=0.3)
        return asked.task.done()

    await until(is_over)
    assert asked.task.result().error == "model_crashed"
    await until(lambda: router.state("one") == "ready")


# --- hangs -------------------------------------------------------------------------------------------


async def test_a_stopped_model_is_ended_and_every_request_has_an_end(
    router: RouterProcess, http: httpx.AsyncClient
) -> None:
    router.load("wide")
    hung = router.child("wide")
    begun = [Asked(http, chat("wide", max_tokens=6000, stream=True)) for _ in range(4)]
    await until(lambda: all("data: " in asked.text for asked in begun))
    hung.suspend()
    unbegun = [Asked(http, chat("wide", stream=i % 2 == 0)) for i in range(4)]

    ended = await asyncio.gather(*(asked.task for asked in (*begun, *unbegun)))

    assert [seen.error for seen in ended[:4]] == ["model_crashed"] * 4
    assert all(seen.is_whole for seen in ended[4:]), ended[4:]
    assert not hung.is_running()
    assert router.state("wide") == "ready"
    assert "hung (it missed 3 probes in a row)" in router.log()
    assert router.get("/v1/health/models")["wide"]["status"] == "healthy"


async def test_a_long_prompt_is_no_hang(router: RouterProcess, http: httpx.AsyncClient) -> None:
    router.load("one")
    pid = router.status("one")["pid"]
    asked = Asked(http, chat("one", content="the " * 20_000, max_tokens=1))
    seen = await asked.task
    assert seen.is_whole
    assert router.status("one")["pid"] == pid


# --- clients -----------------------------------------------------------------------------------------


async def test_a_client_that_stops_reading_loses_its_slot(
    make_router: MakeRouter, tiny_long_gguf: Path
) -> None:
    router = make_router(
        {"one": {"model_path": tiny_long_gguf, "params": {"n_ctx": 131072}}},
        system={"request_timeout_sec": 2},
    )
    router.load("one")
    # All sockets on the way are full after few tokens, however slowly they come.
    every_word: dict[str, Any] = {"logprobs": True, "top_logprobs": 400}
    body = json.dumps(chat("one", max_tokens=ENDLESS, stream=True, **every_word)).encode()
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect(("127.0.0.1", router.port))
        reader.sendall(b"POST %s HTTP/1.1\r\nHost: localhost\r\n" % ASK.encode())
        reader.sendall(b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await until(lambda: router.status("one")["in_flight"] == 1)
        await until(lambda: "a client stopped reading" in router.log(), 60)
        await until(lambda: router.is_quiet("one"))
        assert router.client.post(ASK, json=chat("one")).status_code == 200


# --- shutdown ----------------------------------------------------------------------------------------


async def test_a_router_with_a_stopped_model_ends_all_the_same(
    make_router: MakeRouter, tiny_gguf: Path
) -> None:
    router = make_router({"one": {"model_path": tiny_gguf}}, system={"drain_timeout_sec": 1})
    router.load("one")
    async with router.open_client() as http:
        with router.frozen("one") as process:
            asked = Asked(http, chat("one", stream=True))
            await until(lambda: router.status("one")["in_flight"] == 1)
            router.signal(signal.SIGTERM)
            assert await router.ended() == 0
        assert not process.is_running()
        assert (await asked.task).error == "shutting_down"


async def test_a_router_that_is_stopped_while_it_loads_leaves_nothing(
    make_router: MakeRouter, gated_llama_server: Path, tiny_gguf: Path
) -> None:
    router = make_router(
        {"never": {"model_path": tiny_gguf, "env": {"GATE": "/nonexistent/gate"}}},
        binary=gated_llama_server,
        system={"preload_models": ["never"]},
    )
    children = await until(router.children)
    router.signal(signal.SIGTERM)
    assert await router.ended() == 0
    await until(lambda: not any(child.is_running() for child in children))


@pytest.mark.parametrize("sign", ["RouterModelCustom", "starting, to be preloaded", "one: loading"])
async def test_a_signal_during_the_start_is_obeyed(
    tmp_path: Path, llama_server: Path, tiny_gguf: Path, sign: str
) -> None:
    router = RouterProcess(
        tmp_path, llama_server, {"one": {"model_path": tiny_gguf}}, system={"preload_models": ["one"]}
    )
    router.start()
    try:
        await until(lambda: sign in router.log() or "one: ready" in router.log(), timeout_s=120)
        children = router.children()
        router.signal(signal.SIGTERM)
        assert await router.ended() in (0, -signal.SIGTERM)
        await until(lambda: not any(child.is_running() for child in children))
        assert not list((tmp_path / "logs").glob("children-*.json"))
    finally:
        router.clean_up()


HANGING = """
import sys, time
import anyio.to_thread
from app import composition, uvicorn_server
import run
uvicorn_server.STUCK_S = 1
async def hang(*_):
    await anyio.to_thread.run_sync(time.sleep, 600)
composition.warm_up = hang
sys.exit(run.main(["-c", sys.argv[1]]))
"""


def test_a_thread_that_hangs_does_not_keep_the_router_from_ending(
    tmp_path: Path, llama_server: Path, tiny_gguf: Path
) -> None:
    router = RouterProcess(
        tmp_path, llama_server, {"one": {"model_path": tiny_gguf}}, system={"drain_timeout_sec": 1}
    )
    command = [sys.executable, "-c", HANGING, str(router.config_path)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    try:
        until_now(lambda: answers(router))
        router.load("one")
        child = router.child("one")
        process.terminate()
        assert exit_code(process) == 1
        assert not child.is_running()
        assert "something hangs" in (tmp_path / "log").read_text()
    finally:
        process.kill()
        process.wait()
        router.client.close()


def answers(router: RouterProcess) -> bool:
    try:
        return bool(router.client.get("/health").status_code == 200)
    except httpx.TransportError:
        return False
