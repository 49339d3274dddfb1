"""A llama-server that costs nothing: what remains is the router. It answers chats with fixed bytes."""

from __future__ import annotations

import sys
from pathlib import Path


def stub(folder: Path, llama_server: Path) -> Path:
    """As `system.llama_server_path`. Streams have `max_tokens` events, EVENTS_PER_S of them a second if that
    is set in the environment, else as fast as they go."""
    path = folder / "stub-llama-server"
    path.write_text(
        f"""#!{sys.executable}
import os, sys
if "--port" not in sys.argv:  # asked what it is
    os.execv({str(llama_server)!r}, [{str(llama_server)!r}, *sys.argv[1:]])
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from bench.stub import serve
serve(int(sys.argv[sys.argv.index("--port") + 1]), float(os.environ.get("EVENTS_PER_S", 0)))
"""
    )
    path.chmod(0o755)
    return path


def serve(port: int, events_per_s: float) -> None:
    """Until SIGTERM."""
    import asyncio
    import json

    import httptools
    import uvloop

    usage = '"usage":{"prompt_tokens":10,"completion_tokens":1,"total_tokens":11}'
    answer = b'{"object":"chat.completion","model":"a","choices":[{"message":{"content":"x"}}],%b}' % (
        usage.encode()
    )
    event = b'data: {"choices":[{"delta":{"content":"x"}}],"model":"a","object":"chat.completion.chunk"}\n\n'
    chunk = b"%x\r\n%b\r\n" % (len(event), event)
    stream_head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    stream_head += b"transfer-encoding: chunked\r\n\r\n"
    last = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"

    class Protocol(asyncio.Protocol):
        transport: asyncio.Transport

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport  # type: ignore[assignment]
            self.parser, self.body, self.has_key = httptools.HttpRequestParser(self), b"", False

        def data_received(self, data: bytes) -> None:
            self.parser.feed_data(data)

        def on_url(self, url: bytes) -> None:
            self.url = url

        def on_header(self, name: bytes, value: bytes) -> None:
            self.has_key |= name.lower() == b"authorization"

        def on_body(self, body: bytes) -> None:
            self.body += body

        def on_message_complete(self) -> None:
            body, self.body = self.body, b""
            if b'"stream":true' in body.replace(b" ", b""):
                self.transport.write(stream_head)
                self.events(json.loads(body)["max_tokens"])
            else:
                known = self.has_key or self.url != b"/props"  # by which the router knows its own
                status = b"200 OK" if known else b"401 Unauthorized"
                head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
                self.transport.write(head % (status, len(answer)) + answer)
            self.has_key = False

        def events(self, left: int) -> None:
            if self.transport.is_closing():
                return
            if left == 0:
                self.transport.write(last)
                self.transport.close()
                return
            self.transport.write(chunk)
            loop = asyncio.get_running_loop()
            if events_per_s:
                loop.call_later(1 / events_per_s, self.events, left - 1)
            else:
                loop.call_soon(self.events, left - 1)

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Protocol, "127.0.0.1", port, backlog=1024)
        await server.serve_forever()

    uvloop.install()
    asyncio.run(main())
