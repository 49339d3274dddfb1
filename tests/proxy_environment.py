"""A router whose every byte is seen, on both sides."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from app.api.dependencies import Services
from app.configuration.file import parse
from app.domain.events import RequestFinished
from app.main import RouterApp, create_app
from app.models.instance import ModelInstance
from app.proxy.http_server import ProxyProtocol
from tests.fakes import FakeLauncher, FakeProbe
from tests.patience import WAIT_S
from tests.router_process import until
from tests.serving import Client, port_of, soon, start_server, stop_server
from tests.upstreams import OK, Line

CHAT = "/v1/chat/completions"


USAGE = b'{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":5}}'


ANSWER = OK + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(USAGE), USAGE)


def request(
    body: object = None, *headers: str, target: str = CHAT, version: str = "1.1", length: int | None = None
) -> bytes:
    """A POST as a program sends it."""
    content = body if isinstance(body, bytes) else json.dumps(body or {"model": "m"}).encode()
    lines = [f"POST {target} HTTP/{version}", "Host: localhost", *headers]
    lines.append(f"Content-Length: {len(content) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + content


class Tasks(set["asyncio.Task[None]"]):
    """uvicorn's tasks; counts them."""

    started = 0

    def add(self, task: asyncio.Task[None]) -> None:
        self.started += 1
        super().add(task)


class Router:
    """A router and the llama-server behind it; each connection to that is a `Line`."""

    def __init__(self, launcher: FakeLauncher) -> None:
        self.launcher = launcher
        self.app: RouterApp
        self.server: uvicorn.Server
        self.tasks = Tasks()
        self.answers: bytes | None = None
        """What every new line answers by itself."""
        self.finished: asyncio.Queue[RequestFinished] = asyncio.Queue()
        self.lines: list[Line] = []
        self.clients: list[Client] = []
        self._new: asyncio.Queue[Line] = asyncio.Queue()
        self._pumps: list[asyncio.Task[None]] = []

    @property
    def services(self) -> Services:
        services: Services = self.app.state.services
        return services

    @property
    def port(self) -> int:
        return port_of(self.server)

    @property
    def connections(self) -> list[ProxyProtocol]:
        found: Any = self.server.server_state.connections
        return list(found)

    def instance(self, alias: str = "m") -> ModelInstance:
        return self.services.manager.instances[alias]

    async def client(self, buffer: int | None = None) -> Client:
        """`buffer`: what the kernel takes for one that does not read."""
        client = await Client.connect(self.port, buffer)
        self.clients.append(client)
        return client

    async def line(self) -> Line:
        """The next connection to llama-server."""
        return await soon(self._new.get())

    async def warm(self, *headers: str, model: str = "m") -> tuple[Client, Line]:
        """A client, and a kept connection to llama-server."""
        client = await self.client()
        client.say(request({"model": model}, *headers))
        line = await self.line()
        await line.answer()
        await client.reply()
        await self.account()
        self.tasks.started = 0
        return client, line

    async def one_runs_and_one_waits(self) -> tuple[Client, Line, Client]:
        """The client that is served, its connection to llama-server, and the client that waits."""
        first, line = await self.warm()
        first.say(request())
        await line.asked()
        second = await self.client()
        second.say(request())
        await self.waiting()
        return first, line, second

    async def account(self) -> RequestFinished:
        """Of the next request that ends."""
        return await soon(self.finished.get())

    async def waiting(self, count: int = 1, alias: str = "m") -> None:
        """Until so many wait for a slot."""
        await until(lambda: self.instance(alias).queue.waiting == count)

    def on_connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = Line(reader, writer)
        self.lines.append(line)
        if self.answers is None:
            self._new.put_nowait(line)
        else:
            self._pumps.append(asyncio.ensure_future(self._pump(line, self.answers)))

    async def _pump(self, line: Line, answer: bytes) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await line.answer(answer)

    async def start(self, app: RouterApp, keep_alive_s: int) -> None:
        self.app = app
        # Tasks are cancelled when that time is over: none is left only if the machine does not stand still.
        times = {"timeout_keep_alive": keep_alive_s, "timeout_graceful_shutdown": WAIT_S}
        self.server = await start_server(app, **times)
        self.server.server_state.tasks = self.tasks
        self.services.bus.subscribe(self._on_finished, RequestFinished)

    def _on_finished(self, event: Any) -> None:
        self.finished.put_nowait(event)

    async def shutdown(self) -> None:
        """As `RouterServer` does it."""
        await stop_server(self.app, self.server)

    async def close(self) -> None:
        """Nothing may be left, whatever the test did."""
        for client in self.clients:
            client.leave()
        if self.connections or not self.services.manager.closing:
            await self.shutdown()
        assert not self.tasks, "a task was left"
        for instance in self.services.manager.instances.values():
            assert (instance.queue.in_flight, instance.queue.waiting) == (0, 0), "a slot was lost"
            assert instance.queue.waiting_by_level == [0, 0, 0]
        for line in self.lines:
            if self.answers is None:
                await line.ended()
            line.hang_up()
        await asyncio.gather(*self._pumps)


MakeRouter = Callable[..., Awaitable[Router]]


@pytest.fixture
async def make_router(tiny_gguf: Path, tmp_path: Path) -> AsyncIterator[MakeRouter]:
    async with AsyncExitStack() as stack:

        async def make(api: dict[str, Any] | None = None, keep_alive_s: int = 75, **system: Any) -> Router:
            tree = {
                "api": api or {},
                "system": {"log_dir": str(tmp_path / "logs"), **system},
                "models": {"m": {"model_path": str(tiny_gguf)}},
            }
            launcher = FakeLauncher()
            router = Router(launcher)
            server = await asyncio.start_server(router.on_connect, "127.0.0.1", 0, limit=2**25)
            await stack.enter_async_context(server)
            launcher.port = server.sockets[0].getsockname()[1]
            config = parse(json.dumps(tree), tmp_path, {})
            app = create_app(config, launcher=launcher, probe=FakeProbe(10_000), batch_s=0.0)
            await router.start(app, keep_alive_s)
            router.services.upstream.idle_s = 60.0  # what ends, ends for another reason
            stack.push_async_callback(router.close)
            return router

        yield make


@pytest.fixture
async def router(make_router: MakeRouter) -> Router:
    return await make_router()


STREAM = OK + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
