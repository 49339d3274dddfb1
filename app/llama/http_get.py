"""One GET to a process of ours, on a connection of its own.

A general client spends 2 ms on one; while a model loads there are twenty a second.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from typing import NamedTuple

import anyio
import httptools

HOST = "127.0.0.1"
MAX_BODY_BYTES = 1 << 20
READ_BYTES = 1 << 16


class NoAnswer(Exception):
    """A connection stood, but what came on it is no answer."""


class Answer(NamedTuple):
    status: int
    body: bytes


async def http_get(
    port: int, path: str, api_key: str | None, timeout_s: float, on_connected: Callable[[], object]
) -> Answer:
    """Raises `NoAnswer`, or `OSError` where there is no connection, or `TimeoutError`."""
    loop = asyncio.get_running_loop()
    # Of its own socket, which nobody else closes: an event loop that is given one closes it when it is
    # cancelled, and uvloop before 0.23 leaves it to be closed once more, when its number may be another's.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        is_connected = _connect(connection, port)
        with anyio.fail_after(timeout_s):
            if not is_connected:
                await _writable(loop, connection)
            on_connected()
            # One connection each: an idle one holds a thread of the server, and dies after 5 s anyway.
            key = f"Authorization: Bearer {api_key}\r\n" if api_key is not None else ""
            request = f"GET {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\n{key}Connection: close\r\n\r\n"
            await loop.sock_sendall(connection, request.encode())
            reader = _Reader()
            while not reader.is_complete:
                reader.feed(await loop.sock_recv(connection, READ_BYTES))
            return reader.answer


def may_listen(port: int) -> bool:
    """Whether somebody listens there, as far as that is known at once. Without asking anything: this costs a
    fiftieth of what a question costs."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
            connection.setblocking(False)
            connection.connect_ex((HOST, port))  # on its way, it says; but it has been answered by now
            return connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != errno.ECONNREFUSED
    except OSError:  # who asks will see why
        return True


def _connect(connection: socket.socket, port: int) -> bool:
    """False: under way. On this machine it is known at once that nobody listens, and costs next to nothing;
    the event loop's own way costs six times as much."""
    error = connection.connect_ex((HOST, port))
    if error not in (0, errno.EINPROGRESS, errno.EWOULDBLOCK):
        raise OSError(error, os.strerror(error))
    return error == 0


async def _writable(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
    """Once the connection stands, or has failed."""
    writable: asyncio.Future[None] = loop.create_future()
    loop.add_writer(connection, _resolve, writable)
    try:
        await writable
    finally:
        loop.remove_writer(connection)
    if error := connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise OSError(error, os.strerror(error))


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class _Reader:
    """Raises `NoAnswer` where what comes is none."""

    def __init__(self) -> None:
        self.is_complete = False
        self._parser = httptools.HttpResponseParser(self)
        self._body = b""
        self._has_head = False

    @property
    def answer(self) -> Answer:
        return Answer(self._parser.get_status_code(), self._body)

    def feed(self, data: bytes) -> None:
        """No data: the connection has ended."""
        if not data:
            if not self._has_head:
                raise NoAnswer("the connection ended without an answer")
            self.is_complete = True  # one whose length was not announced ends with its connection
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise NoAnswer(str(error)) from error
        if len(self._body) > MAX_BODY_BYTES:
            raise NoAnswer("its answer is too long")

    # --- what the parser tells

    def on_headers_complete(self) -> None:
        self._has_head = True

    def on_body(self, data: bytes) -> None:
        self._body += data

    def on_message_complete(self) -> None:
        self.is_complete = True
