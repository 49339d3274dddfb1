"""A llama-server's end of connections, byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct

from tests.serving import soon

MB = 2**20


OK = b"HTTP/1.1 200 OK\r\n"


SIZED = OK + b"Content-Length: 2\r\n\r\nhi"


class Line:
    """One connection, seen from the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer

    async def head(self) -> bytes:
        return await soon(self._reader.readuntil(b"\r\n\r\n"))

    async def asked(self) -> bytes:
        """The next request, whole."""
        head = await self.head()
        length = re.search(rb"content-length: (\d+)", head)
        return head + await soon(self._reader.readexactly(int(length[1]) if length else 0))

    def say(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self, data: bytes = SIZED) -> bytes:
        asked = await self.asked()
        self.say(data)
        return asked

    def hang_up(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """As the kernel does for a process that died with unread bytes."""
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()

    async def ended(self) -> None:
        """Until the client has closed it."""
        with contextlib.suppress(ConnectionError):
            while await soon(self._reader.read(MB)):
                pass
