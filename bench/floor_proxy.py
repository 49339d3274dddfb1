"""What the language costs: a proxy that parses, reads the body's JSON once, and relays. It decides nothing.

`python -m bench.floor_proxy LISTEN_PORT SERVER_PORT`, beside which `bench/floor.py` measures the router.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import httptools
import uvloop


class Server(asyncio.Protocol):
    """A connection to the server: one answer at a time goes to one client, as it comes."""

    def __init__(self, idle: list[Server]) -> None:
        self._idle, self._is_over = idle, False
        self._client: Client | None = None
        self._transport: Any = None
        self._parser: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if self in self._idle:
            self._idle.remove(self)
        elif not self._is_over and self._client is not None:  # it was closed under our hands
            self._client.open()

    def ask(self, client: Client, data: bytes) -> None:
        self._client, self._is_over = client, False
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        assert self._client is not None
        self._client.transport.write(data)
        self._parser.feed_data(data)
        if self._is_over:
            self._client = None
            self._idle.append(self)

    def on_message_complete(self) -> None:
        self._is_over = True


class Client(asyncio.Protocol):
    """A client's connection: each request is passed on when it is whole."""

    def __init__(self, idle: list[Server], port: int) -> None:
        self._idle, self._port = idle, port
        self._pieces: list[bytes] = []
        self._body: list[bytes] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self._pieces.append(data)
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None: ...

    def on_header(self, name: bytes, value: bytes) -> None: ...

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._request, body = b"".join(self._pieces), b"".join(self._body)
        self._pieces, self._body = [], []
        assert json.loads(body)["model"]
        if self._idle:
            self._idle.pop().ask(self, self._request)
        else:
            self.open()

    def open(self) -> None:
        self._opening = asyncio.get_running_loop().create_task(self._open())

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        _, server = await loop.create_connection(lambda: Server(self._idle), "127.0.0.1", self._port)
        server.ask(self, self._request)


async def main(listen: int, port: int) -> None:
    idle: list[Server] = []
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Client(idle, port), "127.0.0.1", listen, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.install()
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
