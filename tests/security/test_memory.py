"""What clients send has a bound in bytes, whoever they are and however many: over it they are told so."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from app.configuration.file import parse
from app.domain.status import ModelKind
from app.domain.units import MIB
from app.main import RouterApp, create_app
from app.proxy.http_server import ProxyProtocol
from app.proxy.json_fields import SMALL_BYTES
from app.proxy.request_memory_limit import STRANGERS_PART
from app.proxy.routes import ENDPOINTS, Endpoint
from tests.fakes import FakeLauncher, FakeProbe
from tests.router_process import until
from tests.serving import Client, Reply, serving
from tests.stand_in import StandIn

CHAT = "/v1/chat/completions"
FIELDS = b'{"model":"m","x":"'
BIG = FIELDS + b"a" * (MIB * 3 // 5) + b'"}'
"""Two of them are more than the megabyte that there is."""


def head(length: int, target: str = CHAT, *lines: str) -> bytes:
    first = [f"POST {target} HTTP/1.1", "Host: localhost", *lines]
    framing = f"Content-Length: {length}" if length else "Transfer-Encoding: chunked"
    return "\r\n".join([*first, framing, "", ""]).encode()


class Router:
    """On a socket, with a megabyte for clients."""

    def __init__(self, app: RouterApp, port: int, stack: AsyncExitStack) -> None:
        self.memory, self.bodies = app.gateway.memory, app.gateway.backend.bodies
        self._port, self._stack = port, stack

    async def client(self, way: str = "short", buffer: int | None = None) -> Client:
        """`way`: "long" on a connection that uvicorn has."""
        client = await Client.connect(self._port, buffer)
        self._stack.callback(client.leave)
        if way == "long":
            reply = await client.ask(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", method="GET")
            assert reply.status == 200
        return client

    async def holds(self, size: int) -> None:
        await until(lambda: self.memory.held == size)


@pytest.fixture
async def router(tiny_gguf: Path, tmp_path: Path, upstream: StandIn) -> AsyncIterator[Router]:
    tree = {
        "api": {"max_memory_mb": 1, "max_body_mb": 0.9},
        "system": {"log_dir": str(tmp_path / "logs")},
        "models": {
            "m": {"model_path": str(tiny_gguf)},
            "embed": {"model_path": str(tiny_gguf), "params": {"embedding": True}},
            "rerank": {"model_path": str(tiny_gguf), "params": {"rerank": True}},
        },
    }
    app = create_app(
        parse(json.dumps(tree), tmp_path, {}), launcher=FakeLauncher(upstream.port), probe=FakeProbe(10_000)
    )
    async with AsyncExitStack() as stack:
        yield Router(app, await stack.enter_async_context(serving(app)), stack)


def check_overloaded(reply: Reply) -> None:
    assert (reply.status, reply.code) == (503, "overloaded"), reply.body
    assert int(reply[b"retry-after"]) > 0


@pytest.mark.parametrize("way", ["short", "long"])
async def test_a_body_without_a_place_is_refused_before_it_comes(router: Router, way: str) -> None:
    first, second = await router.client(way), await router.client(way)
    first.say(head(len(BIG)) + BIG[:1000])
    await router.holds(len(BIG))
    check_overloaded(await second.ask(head(len(BIG))))
    second.say(BIG)  # is read, and kept nowhere
    assert (await first.ask(BIG[1000:])).status == 200
    assert (await second.ask(head(len(BIG)) + BIG)).status == 200
    await router.holds(0)


@pytest.mark.parametrize("way", ["short", "long"])
async def test_a_body_in_chunks_is_refused_when_its_place_ends(router: Router, way: str) -> None:
    first, second = await router.client(way), await router.client(way)
    first.say(head(len(BIG)) + BIG[:1000])
    await router.holds(len(BIG))
    second.say(head(0))
    second.say(b"%x\r\n%b\r\n" % (len(BIG), BIG))
    check_overloaded(await second.reply())
    assert (await first.ask(BIG[1000:])).status == 200
    await router.holds(0)


@pytest.mark.parametrize("way", ["short", "long"])
async def test_a_packed_body_has_a_place_for_what_it_becomes_before_it_is_unpacked(
    router: Router, way: str
) -> None:
    first, second = await router.client(way), await router.client(way)
    packed = gzip.compress(BIG)
    request = head(len(packed), CHAT, "Content-Encoding: gzip") + packed
    go_on = threading.Event()
    router.bodies._thread.submit(go_on.wait)
    first.say(request)
    await router.holds(len(packed) + len(BIG))
    check_overloaded(await second.ask(request))
    go_on.set()
    assert (await first.reply()).status == 200
    assert (await second.ask(request)).status == 200
    await router.holds(0)


async def test_a_packed_body_that_becomes_more_than_it_says_is_refused(router: Router) -> None:
    packed = gzip.compress(BIG)[:-4] + (1000).to_bytes(4, "little")
    client = await router.client()
    reply = await client.ask(head(len(packed), CHAT, "Content-Encoding: gzip") + packed)
    assert (reply.status, reply.code) == (400, "invalid_request")
    await router.holds(0)


@pytest.mark.parametrize("way", ["short", "long"])
async def test_a_client_that_leaves_leaves_its_place(router: Router, way: str) -> None:
    first = await router.client(way)
    first.say(head(len(BIG)) + BIG[:1000])
    await router.holds(len(BIG))
    first.leave()
    await router.holds(0)


ENDS = {
    "answered": (BIG, 200),
    "no model": (BIG.replace(b'"m"', b'"x"'), 404),
    "no json": (BIG[:-1], 400),
    "nothing else": (FIELDS[:-1] + b"[" * 300_000, 400),
    "too many parts": (b"[" + b"[]," * 250_000, 400),
    "short": (b'{"model":"m"}', 200),
    "short, no json": (b'{"model":', 400),
}


@pytest.mark.parametrize("way", ["short", "long"])
@pytest.mark.parametrize(("body", "status"), ENDS.values(), ids=ENDS.keys())
async def test_however_a_request_ends_nothing_is_left_of_it(
    router: Router, way: str, body: bytes, status: int
) -> None:
    """Also while its client keeps the connection."""
    client = await router.client(way)
    assert (await client.ask(head(len(body)) + body)).status == status
    await router.holds(0)


WRONG_VALUES: list[object] = [None, True, -1, "", "x", [5], {"type": 5}]
FIELD_NAMES = [
    "model", "messages", "prompt", "input", "stream", "options", "tools", "tool_choice", "format", "think",
    "keep_alive", "truncate", "dimensions", "images", "system", "suffix", "top_logprobs", "instructions",
    "context", "n", "id_slot", "text", "reasoning", "include", "previous_response_id",
]  # fmt: skip


@pytest.mark.parametrize("way", ["short", "long"])
@pytest.mark.parametrize(
    "endpoint",
    [endpoint for endpoint in ENDPOINTS if not endpoint.is_upload],
    ids=lambda endpoint: endpoint.path,
)
async def test_a_refused_body_is_freed_at_once_and_not_by_the_garbage_collection(
    router: Router, endpoint: Endpoint, way: str
) -> None:
    model = {ModelKind.EMBEDDING: "embed", ModelKind.RERANK: "rerank"}.get(min(endpoint.kinds), "m")
    client = await router.client(way)
    gc.disable()
    try:
        for name in FIELD_NAMES:
            for value in WRONG_VALUES:
                body = json.dumps({**endpoint.example, "model": model, name: value}).encode()
                reply = await client.ask(head(len(body), endpoint.path) + body)
                assert b"internal_error" not in reply.body, body
                await asyncio.sleep(0)  # the answer is there before the request has ended
                assert router.memory.held == 0, body
    finally:
        gc.enable()


@pytest.mark.parametrize("body", [b'{"model":', b'{"model":"x"}', b'{"model":"m"}', b"a" * 70_000], ids=len)
async def test_a_request_to_the_router_itself_leaves_nothing(router: Router, body: bytes) -> None:
    client = await router.client()
    await client.ask(head(len(body), "/v1/models/load") + body)
    await router.holds(0)


async def test_a_client_that_leaves_while_its_body_is_read_leaves_nothing(router: Router) -> None:
    go_on = threading.Event()
    router.bodies._thread.submit(go_on.wait)
    body = FIELDS + b"a" * 2 * SMALL_BYTES + b'"}'
    for before in (0, len(body)):  # the first one is read until that is over, the next one waits for it
        client = await router.client()
        client.say(head(len(body)) + body)
        await router.holds(before + len(body))
        client.writer.transport.abort()
    await router.holds(len(body))
    go_on.set()
    await router.holds(0)


async def test_half_heads_have_a_tiny_part_and_then_an_answer(router: Router) -> None:
    half = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 20_000
    clients = [await router.client() for _ in range(10)]
    for client in clients[:3]:
        client.say(half)
    await router.holds(3 * len(half))
    for client in clients[3:]:
        check_overloaded(await client.ask(half))
        assert await client.rest() == b"", "nobody knows where the next one would begin"
    assert router.memory.held == 3 * len(half)
    whole = await router.client()
    body = b'{"model":"m"}'
    assert (await whole.ask(head(len(body)) + body)).status == 200
    for client in clients[:3]:
        client.leave()
    await router.holds(0)


async def test_what_is_sent_behind_a_request_is_left_with_its_client(router: Router) -> None:
    """While there is no place, nothing more is read; it is answered all the same."""
    half = b"GET / HTTP/1.1\r\nX: " + b"a" * 60_000
    stranger = await router.client()
    stranger.say(half)
    await router.holds(len(half))
    client, body = await router.client(), b'{"model":"m"}'
    count = 50
    client.say((head(len(body)) + body) * count)
    replies = [await client.reply() for _ in range(count)]
    assert {reply.status for reply in replies} == {200}
    assert router.memory.held == len(half)


@pytest.mark.parametrize("way", ["short", "long"])
async def test_who_has_nothing_waiting_any_more_is_served_although_others_have_too_much(
    router: Router, way: str
) -> None:
    client, stranger, busy = await router.client(way), await router.client(), await router.client()
    body = b'{"model":"m"}'
    request = head(len(body)) + body
    client.say(request[:20])
    await router.holds(20)
    stranger.say(b"GET / HTTP/1.1\r\nX: " + b"a" * 60_000)
    packed, go_on = gzip.compress(body), threading.Event()
    router.bodies._thread.submit(go_on.wait)
    busy.say(head(len(packed), CHAT, "Content-Encoding: gzip") + packed + head(1)[:-1] + b"a" * 20_000)
    await until(lambda: router.memory.strangers > router.memory.limit // STRANGERS_PART)
    assert (await client.ask(request[20:])).status == 200
    assert (await client.ask(request)).status == 200
    client.say(request[:-1])  # then the end of its body
    await asyncio.sleep(0)
    assert (await client.ask(request[-1:])).status == 200
    go_on.set()
    for one in (client, stranger, busy):
        one.leave()
    await router.holds(0)


async def test_a_connection_that_stalls_in_a_request_is_given_up(
    router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[ProxyProtocol] = []
    begin = ProxyProtocol.connection_made

    def connection_made(self: ProxyProtocol, transport: asyncio.BaseTransport) -> None:
        made.append(self)
        begin(self, transport)

    monkeypatch.setattr(ProxyProtocol, "connection_made", connection_made)
    for way in ("short", "long"):
        client = await router.client(way)
        client.say(head(len(BIG)) + BIG[:1000])
        await router.holds(len(BIG))
        connection = made[-1]
        connection._ring()  # something has come since the last time
        await asyncio.sleep(0)
        assert router.memory.held == len(BIG)
        connection._ring()
        await router.holds(0)
        assert await client.rest() == b""
