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
    transport: asyncio.Transport | None = None
    connection = _begin_to_connect(port)
    try:
        with anyio.fail_after(timeout_s):
            await _connected(loop, connection)
            transport, reader = await loop.create_connection(lambda: _Reader(loop), sock=connection)
            on_connected()
            # One connection each: an idle one holds a thread of the server, and dies after 5 s anyway.
            key = f"Authorization: Bearer {api_key}\r\n" if api_key is not None else ""
            request = f"GET {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\n{key}Connection: close\r\n\r\n"
            transport.write(request.encode())
            return await reader.answer
    finally:
        if transport is not None:
            transport.abort()
        else:
            connection.close()


def _begin_to_connect(port: int) -> socket.socket:
    """Raises `ConnectionRefusedError`: on this machine it is known at once that nobody listens, and costs
    next to nothing."""
    connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    connection.setblocking(False)
    try:
        error = connection.connect_ex((HOST, port))
        _check(connection, 0 if error in _UNDER_WAY else error)
    except OSError:
        connection.close()
        raise
    return connection


async def _connected(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
    writable: asyncio.Future[None] = loop.create_future()
    loop.add_writer(connection, _resolve, writable)
    try:
        await writable
    finally:
        loop.remove_writer(connection)
    _check(connection)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _check(connection: socket.socket, error: int = 0) -> None:
    if error := error or connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise OSError(error, os.strerror(error))


_UNDER_WAY = (0, errno.EINPROGRESS, errno.EWOULDBLOCK)


class _Reader(asyncio.Protocol):
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.answer: asyncio.Future[Answer] = loop.create_future()
        self.answer.add_done_callback(lambda done: done.cancelled() or done.exception())  # perhaps unwanted
        self._parser = httptools.HttpResponseParser(self)
        self._body = b""
        self._has_head = False

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(str(error))

    def on_headers_complete(self) -> None:
        self._has_head = True

    def on_body(self, data: bytes) -> None:
        self._body += data
        if len(self._body) > MAX_BODY_BYTES:
            self._fail("its answer is too long")

    def on_message_complete(self) -> None:
        self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._has_head:  # one whose length was not announced ends with its connection
            self._finish()
        self._fail(f"the connection ended: {exc or 'without an answer'}")

    def _finish(self) -> None:
        if not self.answer.done():
            self.answer.set_result(Answer(self._parser.get_status_code(), self._body))

    def _fail(self, why: str) -> None:
        if not self.answer.done():
            self.answer.set_exception(NoAnswer(why))
