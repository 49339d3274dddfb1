"""Streams: bytes as llama-server sends them, when it sends them, and clients that leave at every point."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.router_process import MakeRouter, RouterProcess, chat, until
from tests.streams import pieces_of

ASK = "/v1/chat/completions"
ENDLESS = 100_000


@pytest.fixture(scope="module")
def gates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gates")


@pytest.fixture(scope="module")
def router(
    make_shared_router: MakeRouter,
    gated_llama_server: Path,
    gates: Path,
    smollm2: Path,
    tiny_gguf: Path,
    tiny_long_gguf: Path,
    misfit_gguf: Path,
) -> RouterProcess:
    def behind(name: str) -> dict[str, Any]:
        return {"env": {"GATE": str(gates / name)}}

    return make_shared_router(
        {
            "smollm2": {"model_path": smollm2, "params": {"n_ctx": 1024}},
            "tiny": {"model_path": tiny_gguf},
            "two-slots": {"model_path": tiny_gguf, "parallel_requests": 2},
            "long": {"model_path": tiny_long_gguf, "params": {"n_ctx": 131072}},
            "late": {"model_path": tiny_gguf, **behind("late")},
            "later": {"model_path": tiny_gguf, **behind("later")},
            "misfit": {"model_path": misfit_gguf, **behind("misfit")},
        },
        binary=gated_llama_server,
        api={"stream_heartbeats": "comments"},
        system={"max_concurrent_models": 8},
    )


@asynccontextmanager
async def llama_server_of(router: RouterProcess, alias: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client that talks to the model's own process, past the router."""
    url, key = router.past_the_router(alias)
    async with httpx.AsyncClient(
        base_url=url,
        headers={"Authorization": f"Bearer {key}"},
        limits=httpx.Limits(max_keepalive_connections=0),  # it closes kept ones without a word
        timeout=60,
        trust_env=False,
    ) as client:
        yield client


# --- bytes and times ---------------------------------------------------------------------------------


def test_curl_sees_tokens_as_they_are_generated(router: RouterProcess) -> None:
    """Each of the first thirty while llama-server is still busy with the next eight hundred."""
    router.load("smollm2")
    with curl(router, chat("smollm2", max_tokens=900, stream=True)) as process:
        assert process.stdout is not None
        seen = 0
        for line in process.stdout:
            if line.startswith(b"data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                seen += 1
                assert router.metric("router_requests_in_flight", model="smollm2") == 1
            if seen == 30:
                break
        process.kill()
    assert seen == 30


def curl(router: RouterProcess, body: dict[str, Any]) -> subprocess.Popen[bytes]:
    """What a person types into a terminal."""
    line = ["curl", "-sN", f"{router.url}{ASK}", "-H", "Content-Type: application/json"]
    return subprocess.Popen([*line, "-d", json.dumps(body)], stdout=subprocess.PIPE)


VOLATILE = re.compile(
    r'"(id|created|created_at|completed_at|item_id|timings|message_id)":("[^"]*"|[\d.]+|\{[^{}]*\})'
    r"|(resp|msg|rs|fc|chatcmpl|item)[-_]\w+"
)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [ASK, "/v1/completions", "/v1/messages"])
async def test_an_answer_is_llama_servers_own_byte_for_byte(
    router: RouterProcess, http: httpx.AsyncClient, path: str, stream: bool
) -> None:
    """Except for what differs between any two answers: ids and times."""
    router.load("tiny")
    body = chat("tiny", max_tokens=12, stream=stream, prompt="Hello", input="Hello")
    if path != ASK and path != "/v1/messages":
        del body["messages"]
    async with llama_server_of(router, "tiny") as direct:
        for _ in range(2):  # the first fills the slot's cache, so that the next two find the same
            own = await direct.post(path, json=body)
    passed = await http.post(path, json=body)

    assert own.status_code == passed.status_code == 200, own.text
    assert own.headers["content-type"] == passed.headers["content-type"]
    assert VOLATILE.sub("~", passed.text) == VOLATILE.sub("~", own.text)
    assert len(passed.text) > 200


async def test_many_streams_over_two_slots_all_arrive_whole(
    router: RouterProcess, http: httpx.AsyncClient
) -> None:
    """llama-server closes the connection after every stream although it promises to keep it."""
    router.load("two-slots")

    async def ask(number: int) -> str:
        body = chat("two-slots", max_tokens=4, stream=number % 3 > 0, content=f"number {number}")
        answer = await http.post(ASK, json=body)
        assert answer.status_code == 200, answer.text
        return answer.text if number % 3 > 0 else "data: [DONE]\n\n"

    texts = await asyncio.gather(*(ask(number) for number in range(60)))

    assert all(text.endswith("data: [DONE]\n\n") for text in texts)
    await until(lambda: router.is_quiet("two-slots"))


# --- clients that leave ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [ASK, f"/upstream/long{ASK}"])
@pytest.mark.parametrize("headers", [{}, {"X-Conversation-Id": "mine"}], ids=["plain", "conversation"])
async def test_leaving_a_stream_ends_the_generation(
    router: RouterProcess, http: httpx.AsyncClient, path: str, headers: dict[str, str]
) -> None:
    """Also where llama-server would go on for the sake of a header."""
    router.load("long")
    cancelled = router.metric("router_requests_total", model="long", status="cancelled")
    errors = router.log().count("ERROR")
    body = chat("long", max_tokens=ENDLESS, stream=True)
    async with http.stream("POST", path, json=body, headers=headers) as answer:
        assert await anext_of(answer.aiter_bytes())
        assert router.status("long")["in_flight"] == 1

    await until(lambda: router.is_quiet("long"))
    async with llama_server_of(router, "long") as direct:
        await until(lambda: _no_slot_is_busy(direct))
    assert router.metric("router_requests_total", model="long", status="cancelled") == cancelled + 1
    assert router.log().count("ERROR") == errors


def test_curl_interrupted_in_a_stream_frees_the_only_slot(router: RouterProcess) -> None:
    router.load("long")
    with curl(router, chat("long", max_tokens=ENDLESS, stream=True)) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.terminate()

    answer = router.client.post(ASK, json=chat("long", max_tokens=1))
    assert answer.status_code == 200


async def test_leaving_a_plain_request_ends_the_generation(
    router: RouterProcess, http: httpx.AsyncClient
) -> None:
    router.load("long")
    async with leaving(http, chat("long", max_tokens=ENDLESS)):
        await until(lambda: router.status("long")["in_flight"] == 1)
        async with llama_server_of(router, "long") as direct:
            await until(lambda: _some_slot_is_busy(direct))

    await until(lambda: router.is_quiet("long"))
    answer = await http.post(ASK, json=chat("long", max_tokens=1))
    assert answer.status_code == 200


async def test_leaving_the_queue_leaves_no_trace(router: RouterProcess, http: httpx.AsyncClient) -> None:
    router.load("tiny")
    with router.frozen("tiny"):
        first = asyncio.create_task(http.post(ASK, json=chat("tiny")))
        await until(lambda: router.status("tiny")["in_flight"] == 1)
        async with leaving(http, chat("tiny", content="leaves"), chat("tiny", stream=True)):
            await until(lambda: router.status("tiny")["queue_depth"] == 2)
        await until(lambda: router.status("tiny")["queue_depth"] == 0)
        assert router.status("tiny")["in_flight"] == 1

    assert (await first).status_code == 200
    assert router.is_quiet("tiny")
    assert router.metric("router_queue_depth", model="tiny") == 0
    stats = router.get("/v1/queue/stats")["per_model"]["tiny"]
    assert stats["by_priority"] == {"high": 0, "normal": 0, "low": 0}


async def test_leaving_during_a_load_leaves_no_lease(
    router: RouterProcess, http: httpx.AsyncClient, gates: Path
) -> None:
    async with leaving(http, chat("later"), chat("later", stream=True)):
        await until(lambda: router.status("later")["queue_depth"] == 2)
        await until(lambda: router.state("later") == "starting")
    await until(lambda: router.status("later")["queue_depth"] == 0)

    (gates / "later").touch()
    await until(lambda: router.state("later") == "ready")
    assert router.is_quiet("later")
    assert router.metric("router_requests_total", model="later", status="cancelled") == 2
    assert router.loads("later") == 1
    eject = await http.post("/v1/models/eject", json={"model": "later"})  # drains: nobody holds a lease
    assert eject.json()["status"] == "success"


@asynccontextmanager
async def leaving(http: httpx.AsyncClient, *bodies: dict[str, Any]) -> AsyncIterator[None]:
    """These requests are on their way until the end of the block, where their clients hang up."""
    tasks = [asyncio.create_task(http.post(ASK, json=body)) for body in bodies]
    try:
        yield
        assert not any(task.done() for task in tasks)
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task


async def _some_slot_is_busy(direct: httpx.AsyncClient) -> bool:
    return any(slot["is_processing"] for slot in (await direct.get("/slots")).json())


async def _no_slot_is_busy(direct: httpx.AsyncClient) -> bool:
    return not await _some_slot_is_busy(direct)


async def anext_of(pieces: AsyncIterator[bytes]) -> bytes:
    return await pieces.__anext__()


# --- streams that wait -------------------------------------------------------------------------------


SHOWN = {"X-Progress": "reasoning"}


class Reader:
    """Reads a stream in the background."""

    def __init__(self, http: httpx.AsyncClient, path: str, body: dict[str, Any], **headers: str) -> None:
        self.text = ""
        self.answer: httpx.Response | None = None
        self._http, self._path, self._headers = http, path, headers
        self._body = {**body, "stream": True}
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        asked = self._http.stream("POST", self._path, json=self._body, headers=self._headers)
        async with asked as self.answer:
            async for piece in pieces_of(self.answer):
                self.text += piece

    @property
    def events(self) -> list[str]:
        return [block for block in self.text.split("\n\n") if block and not block.startswith(":")]


async def test_a_stream_that_waits_is_told_where_it_stands(
    router: RouterProcess, http: httpx.AsyncClient, gates: Path
) -> None:
    """Headers and a comment after 5 s; then the answer, or the error as an event, in the same stream."""
    router.load("tiny")
    with router.frozen("tiny"):
        first = asyncio.create_task(http.post(ASK, json=chat("tiny")))
        await until(lambda: router.status("tiny")["in_flight"] == 1)
        queued = Reader(http, ASK, chat("tiny"))
        await until(lambda: router.status("tiny")["queue_depth"] == 1)
        too_long = Reader(http, ASK, chat("tiny", content="the " * 3000))
        loading = Reader(http, ASK, chat("late"))
        failing = Reader(http, ASK, chat("misfit"))
        failing_messages = Reader(http, "/v1/messages", chat("misfit"))
        comments = [queued, too_long, loading, failing, failing_messages]
        shown, shown_failing = (Reader(http, ASK, chat(name), **SHOWN) for name in ("late", "misfit"))
        everyone = [*comments, shown, shown_failing]
        await until(lambda: all(reader.text for reader in everyone))
        waits = [reader.text.partition("\n\n")[0] for reader in comments]  # the first: more may have come
    for gate in ("late", "misfit"):
        (gates / gate).touch()
    await asyncio.gather(first, *(reader.task for reader in everyone))

    assert waits[:2] == [": queued position=1", ": queued position=2"]
    assert all(re.fullmatch(r": loading( progress=[\d.]+)?", wait) for wait in waits[2:])
    for reader in everyone:
        assert reader.answer is not None
        assert reader.answer.status_code == 200
        assert reader.answer.headers["content-type"].startswith("text/event-stream")
        assert reader.answer.headers["x-accel-buffering"] == "no"
        assert reader.answer.headers["x-request-id"]
        assert "x-queue-wait-ms" not in reader.answer.headers
        assert reader.text.endswith("\n\n")
    for reader in (queued, loading, shown):
        assert reader.events[-1] == "data: [DONE]"
        assert '"delta":{"content"' in reader.text
    assert "exceed_context_size_error" in single_error(too_long)["type"]
    assert single_error(failing)["code"] == "load_failed"
    (event,) = failing_messages.events
    assert event.startswith("event: error\ndata: ")
    assert json.loads(event.partition("data: ")[2])["type"] == "error"
    for reader in (shown, shown_failing):
        assert thoughts(reader).startswith("loading")
    assert json.loads(shown_failing.events[-1][6:])["error"]["code"] == "load_failed"


def thoughts(reader: Reader) -> str:
    """What a chat page shows of them."""
    chunks = [json.loads(event[6:]) for event in reader.events if event.startswith('data: {"id"')]
    return "".join(chunk["choices"][0]["delta"].get("reasoning_content", "") for chunk in chunks)


def single_error(reader: Reader) -> dict[str, Any]:
    (event,) = reader.events
    assert event.startswith("data: ")
    body: dict[str, Any] = json.loads(event[6:])
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    return error
