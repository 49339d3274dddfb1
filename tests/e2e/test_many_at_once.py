"""What strangers can do to a router's process: watchers, half requests, reloads, pages of others."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import psutil
import pytest
from aiohttp import web

from tests.e2e.browser import browser, chromium
from tests.router_process import MakeRouter, RouterProcess, chat, until, until_now

WATCHERS, HALVES = 500, 5000
WATCHERS_MB, HALVES_MB = 60, 120
"""What they may take: some 10 KB each, and what an allocator rounds up."""

HALF = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX: "


@contextlib.contextmanager
def many_files() -> Iterator[int]:
    """As many as the system lets this process have open; how many that are."""
    if sys.platform == "win32":
        pytest.skip("no such limit")
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = HALVES + 1000 if hard == resource.RLIM_INFINITY else min(HALVES + 1000, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        yield wanted
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def saying(router: RouterProcess, data: bytes, count: int) -> Iterator[None]:
    """So many connections, each with these bytes, and nobody who reads."""
    connections = []
    try:
        for _ in range(count):
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connections.append(connection)
            connection.connect(("127.0.0.1", router.port))
            with contextlib.suppress(ConnectionError):
                connection.sendall(data)
        yield
    finally:
        for connection in connections:
            connection.close()


def rss_mb(router: RouterProcess) -> float:
    size: int = psutil.Process(router.pid).memory_info().rss
    return size / 2**20


def connections_of(router: RouterProcess) -> int:
    """Those that it has accepted on its port, whatever else it has open."""
    held = psutil.Process(router.pid).net_connections("tcp")
    return sum(c.laddr.port == router.port and c.status != psutil.CONN_LISTEN for c in held)


def test_watchers_that_do_not_read_take_little_and_hold_up_nobody(
    make_router: MakeRouter, tiny_gguf: Path
) -> None:
    router = make_router({"m": {"model_path": tiny_gguf}})
    before = rss_mb(router)
    with saying(router, b"GET /v1/models/status/stream HTTP/1.1\r\nHost: localhost\r\n\r\n", WATCHERS):
        until_now(lambda: connections_of(router) >= WATCHERS)
        for _ in range(2):
            router.load("m")
            router.eject("m")
        assert router.get("/health")["status"] == "ok"
        assert rss_mb(router) - before < WATCHERS_MB
    until_now(lambda: connections_of(router) < 20)


@pytest.mark.parametrize("size", [50, 30_000], ids=["short", "long"])
def test_half_heads_take_little_and_hold_up_nobody(
    make_router: MakeRouter, tiny_gguf: Path, size: int
) -> None:
    router = make_router({"m": {"model_path": tiny_gguf}}, api={"max_memory_mb": 64})
    router.load("m")
    with many_files() as most:
        count = min(HALVES if size == 50 else HALVES // 5, most - 500)
        before = rss_mb(router)
        with saying(router, HALF + b"a" * size, count):
            if size == 50:
                until_now(lambda: connections_of(router) >= count)
            assert router.metric("router_host_memory_bytes", kind="clients") <= 2 * 64 * 2**20 / 16
            assert router.client.post("/v1/chat/completions", json=chat("m")).status_code == 200
            assert rss_mb(router) - before < HALVES_MB
        until_now(lambda: connections_of(router) < 20)
        until_now(lambda: router.metric("router_host_memory_bytes", kind="clients") == 0)


async def test_no_request_without_a_key_is_let_in_while_keys_are_changed(
    make_router: MakeRouter, tiny_gguf: Path
) -> None:
    keys = [f"key-{number}" for number in range(12)]
    router = make_router({"m": {"model_path": tiny_gguf}}, api={"api_keys": keys[:1]}, key=keys[0])
    statuses: list[int] = []

    async def ask(key: str | None, stop: asyncio.Event) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {"Authorization": ""}
        while not stop.is_set():
            for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("GET", "/vram")):
                body = chat("m") if method == "POST" else None
                answer = await client.request(method, path, json=body, headers=headers)
                statuses.append(answer.status_code)

    async def works(key: str) -> bool:
        headers = {"Authorization": f"Bearer {key}"}
        return (await client.get("/v1/models", headers=headers)).status_code == 200

    async with router.open_client() as client:
        stop = asyncio.Event()
        strangers = [asyncio.create_task(ask(key, stop)) for key in (None, "wrong", "key-", None)]
        for key in keys[1:]:
            tree = json.loads(router.config_path.read_text())
            tree["api"]["api_keys"] = [key]
            router.config_path.write_text(json.dumps(tree))
            router.signal(signal.SIGHUP)
            await until(partial(works, key))
        await until(lambda: len(statuses) > 100)
        stop.set()
        await asyncio.gather(*strangers)
    assert set(statuses) == {401}


PAGE = """<title>waiting</title><script>
let left = 0;
const done = () => { if (--left === 0) document.title = "done"; };
for (const [tag, where] of [["img", "src"], ["script", "src"], ["iframe", "src"], ["embed", "src"]])
  for (const path of ["health", "", "v1/models", "props"]) {
    const element = document.createElement(tag);
    left += 1;
    element.onload = element.onerror = done;
    element[where] = `ROUTER/upstream/m/${path}`;
    addEventListener("load", () => document.body.append(element));
  }
</script><body>"""


@asynccontextmanager
async def strangers_page(router: RouterProcess) -> AsyncIterator[int]:
    """Its port."""
    text = PAGE.replace("ROUTER", f"http://router.lan:{router.port}")

    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=text, content_type="text/html")

    app = web.Application()
    app.router.add_get("/", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
    finally:
        await runner.cleanup()


async def test_a_page_of_the_lan_loads_no_model_by_what_it_embeds(
    make_router: MakeRouter, tiny_gguf: Path
) -> None:
    """Browsers send neither Origin nor Sec-Fetch-Site from plain HTTP, so nothing tells whose page it is."""
    router = make_router({"m": {"model_path": tiny_gguf}})
    rules = "--host-resolver-rules=MAP *.lan 127.0.0.1"
    async with strangers_page(router) as port, browser(chromium(), rules) as page:
        await page.open(f"http://news.lan:{port}/")

        async def is_done() -> bool:
            return bool(await page.js("document.title") == "done")

        await until(is_done)
    assert router.state("m") == "off"
    assert router.loads("m") == 0
    answer = router.client.get("/upstream/m/health", headers={"Host": "router.lan"})
    assert answer.json()["error"]["code"] == "model_not_loaded", "it is what the page was told, too"
