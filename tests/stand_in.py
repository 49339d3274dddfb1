"""What stands for llama-server where a test wants to see the bytes that reach it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from app.configuration.file import parse
from app.main import RouterApp, create_app
from tests.fakes import FakeLauncher, FakeProbe

KEPT = 1000


class StandIn:
    """Gives every request the same answer, on connections that it keeps."""

    def __init__(self, body: bytes, status: bytes) -> None:
        self.requests: deque[bytes] = deque(maxlen=KEPT)
        """The last ones, byte for byte."""
        self.port = 0
        self.says(body, status)

    def says(self, body: bytes, status: bytes = b"200 OK") -> None:
        """From now on."""
        self._body = body
        self._head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (
            status,
            len(body),
        )

    @property
    def targets(self) -> list[str]:
        return [request.split(b" ")[1].decode() for request in self.requests]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head, re.I)
                request = head + await reader.readexactly(int(length[1]) if length else 0)
                self.requests.append(request)
                writer.write(self.answer(request))
        writer.close()

    def answer(self, request: bytes) -> bytes:
        """Head and body."""
        return self._head + (b"" if request.startswith(b"HEAD") else self._body)


@asynccontextmanager
async def llama_server_stand_in(body: bytes = b"{}", status: bytes = b"200 OK") -> AsyncIterator[StandIn]:
    """One that listens."""
    async with listening(StandIn(body, status)) as made:
        yield made


StandInT = TypeVar("StandInT", bound=StandIn)


@asynccontextmanager
async def listening(made: StandInT) -> AsyncIterator[StandInT]:
    async with await asyncio.start_server(made.serve, "127.0.0.1", 0) as server:
        made.port = server.sockets[0].getsockname()[1]
        yield made


def router_before(
    stand_in: StandIn, model: Path, folder: Path, api: dict[str, Any], **entry: Any
) -> RouterApp:
    """A router whose only model is served by the stand-in: this file, under the name `tiny`."""
    tree = {
        "api": api,
        "system": {"log_dir": str(folder / "logs")},
        "models": {"tiny": {"model_path": str(model), **entry}},
    }
    config = parse(json.dumps(tree), folder, {})
    return create_app(config, launcher=FakeLauncher(stand_in.port), probe=FakeProbe(10_000))
