"""The live streams on real sockets: signs of life, and a reader that does not read."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from fastapi import FastAPI

from app.api.dependencies import Services
from app.api.sse_broadcast import HEARTBEAT_S
from app.api.status_feed import StatusFeed
from app.configuration.file import parse
from app.domain.events import StatusChanged
from app.domain.status import Status
from app.main import create_app
from tests.fakes import FakeLauncher, FakeProbe
from tests.patience import WAIT_S
from tests.router_process import until
from tests.serving import serving

STATUS, METRICS = "/v1/models/status/stream", "/metrics/stream"
BEAT_S = 0.2
EVENTS, EVENT_BYTES = 4000, 16_000
MIB = 1 << 20


class Router:
    def __init__(self, app: FastAPI, port: int) -> None:
        self.port = port
        self._told = 0
        services: Services = app.state.services
        feed = StatusFeed(
            services.bus,
            full_status=lambda: {"number": self._told},
            model_status=self._large,
            server_status=services.status.server,
            heartbeat_s=BEAT_S,
        )
        self.services = app.state.services = replace(services, feed=feed)

    def tell(self) -> None:
        """One more event, a large one."""
        self._told += 1
        self.services.bus.publish(StatusChanged("m", Status.OFF, Status.STARTING, ""))

    def _large(self, alias: str) -> dict[str, Any]:
        return {"alias": alias, "number": self._told, "padding": "x" * EVENT_BYTES}

    @asynccontextmanager
    async def reader(self, path: str, buffer: int | None = None) -> AsyncIterator[asyncio.StreamReader]:
        """`buffer`: what the kernel takes for a reader that does not read."""
        connection = socket.socket()
        connection.setblocking(False)
        if buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", self.port))
        reader, writer = await asyncio.open_connection(sock=connection, limit=4 * EVENT_BYTES)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        try:
            yield reader
        finally:
            writer.close()


@pytest.fixture
async def router(tiny_gguf: Path, tmp_path: Path) -> AsyncIterator[Router]:
    tree = {"system": {"log_dir": str(tmp_path)}, "models": {"m": {"model_path": str(tiny_gguf)}}}
    config = parse(json.dumps(tree), tmp_path, {})
    app = create_app(config, launcher=FakeLauncher(), probe=FakeProbe(10_000), heartbeat_s=BEAT_S)
    async with serving(app) as port:
        yield Router(app, port)


async def events(reader: asyncio.StreamReader) -> AsyncIterator[tuple[int, str, dict[str, Any]]]:
    """Id, name and body, as they come."""
    fields: dict[str, str] = {}
    async for line in reader:
        name, _, value = line.decode().rstrip("\r\n").partition(": ")
        if name in ("id", "event", "data"):
            fields[name] = value
        elif line == b"\n" and "data" in fields:
            yield int(fields["id"]), fields["event"], json.loads(fields["data"])
            fields = {}


@pytest.mark.parametrize("path", [STATUS, METRICS])
async def test_a_silent_stream_gives_signs_of_life(router: Router, path: str) -> None:
    async with router.reader(path) as reader:
        beats, ids = [], []
        async for id_, name, body in events(reader):
            ids.append(id_)
            if name == "heartbeat":
                beats.append(body["timestamp"])
            if len(beats) == 3:
                break
    assert ids == sorted(set(ids))
    between = [later - earlier for earlier, later in itertools.pairwise(beats)]
    assert 0.5 * BEAT_S < min(between) < 10, "one of them may be late, with the machine"


def test_the_interval_is_that_of_the_contract() -> None:
    assert HEARTBEAT_S == 30


async def test_a_reader_that_does_not_read_costs_nobody_anything(router: Router) -> None:
    """Far more is told than any buffer holds: the other reader gets all of it, and the memory is bounded."""
    async with router.reader(STATUS, buffer=4096) as slow, router.reader(STATUS) as quick:
        await until(lambda: router.services.feed.subscribers == 2)
        others = events(quick)
        assert (await others.__anext__())[1] == "full_status"
        before = psutil.Process().memory_info().rss
        for number in range(1, EVENTS + 1):
            router.tell()
            assert await next_number(others) == number  # at once: nothing more is told before
        assert psutil.Process().memory_info().rss - before < 24 * MIB < EVENTS * EVENT_BYTES / 2

        router.tell()
        names: list[str] = []
        with anyio.fail_after(WAIT_S):
            async for _, name, body in events(slow):
                names.append(name)
                if body.get("number") == EVENTS + 1:  # in an event of its own or in a picture
                    break
        assert names[0] == "full_status"
        assert "full_status" in names[1:]  # instead of what it never got
        assert len(names) < EVENTS / 2


async def next_number(reader: AsyncIterator[tuple[int, str, dict[str, Any]]]) -> int:
    async for _, name, body in reader:
        if name == "model_update":
            number: int = body["number"]
            return number
    raise AssertionError("the stream ended")
