"""Bytes of all sizes up to the limits, over raw sockets, for as long as one likes: `make fuzz-sockets`.

Several clients send what no client library would, read the answers or do not, leave or stay. The router may
be still for no more than a tenth of a second of its thread's processor time, answer nothing with 500, and
hold nothing in the end. The seed is printed; the same one sends the same bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import psutil

from app.uvicorn_server import SWITCH_INTERVAL_S, freeze_garbage_collection, give_memory_back
from tests.ggufs import make_tiny
from tests.security.test_stillness import AROUND, TRANSLATED, UNITS, Loop
from tests.stand_in import StandIn

BODY_MB, MEMORY_MB = 64, 192
STILL_S = 0.1
GROWTH_MB = 64.0
CLIENTS = 6
PATIENCE_S = 60.0

TARGETS = ["/v1/chat/completions", "/v1/embeddings", "/v1/messages", "/upstream/m/tokenize"]
TARGETS += [*TRANSLATED, "/v1/messages/count_tokens", "/api/embed", "/api/show", "/v1/responses/resp_1"]
TARGETS += ["/session", "/v1/models/load", "/health", "/v1/models", "/upstream/m/", "/", "/nowhere"]
NAMES = ("Host", "Cookie", "Origin", "X-Request-ID", "X-Anything", "Range", "Content-Type", "Accept")
TEXTS = [b"a", "\u00e9".encode(), b'\\"', b"\\u00e9", b"\\ud83d\\ude00", b"\\ud800", b"\\n", b" "]
"""In JSON."""

PIECES = [*UNITS.values(), b"\r\n\r\n", b"0\r\n\r\n", b'{"model":"m"},', bytes(range(256))]


class Case:
    """One connection's worth of bytes, and what its client does."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.pieces = [piece for _ in range(rng.choice([1, 1, 1, 2, 40])) for piece in self._request()]
        self.reads = rng.random() < 0.8
        self.cut = rng.random() if rng.random() < 0.2 else 1.0
        """Of the bytes, so much is sent."""

        self.patience_s = rng.choice([0.05, 0.3, 2])

    def _request(self) -> Iterator[bytes]:
        rng = self._rng
        target = rng.choice(TARGETS)
        body = self._body(target)
        method = rng.choice(["POST"] * 6 + ["GET", "PUT", "HEAD", "OPTIONS"])
        lines = [f"{method} {target}{self._end_of_target()} HTTP/1.1"]
        lines += ["Host: localhost"] if rng.random() < 0.95 else []
        lines += ["X-Api-Key: secret"] if rng.random() < 0.8 else []
        lines += [self._header() for _ in range(rng.choice([0, 0, 1, 3, 120]))]
        framing = rng.choice(["length", "length", "chunks", "wrong", "none"])
        if framing == "chunks":
            lines.append("Transfer-Encoding: chunked")
        elif framing != "none":
            lines.append(f"Content-Length: {len(body) + (rng.randrange(1000) if framing == 'wrong' else 0)}")
        yield "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")
        yield from self._chunks(body) if framing == "chunks" else [body]

    def _end_of_target(self) -> str:
        rng = self._rng
        return rng.choice(["", "", "", "?", "/", "%2f"]) * rng.choice([1, 1, 50, 9000])

    def _header(self) -> str:
        rng = self._rng
        unit = rng.choice(["a", "a=b; ", "9", "/", ":", "\u00e9", "http://", ","])
        return f"{rng.choice(NAMES)}: {(unit * 40_000)[: rng.choice([0, 10, 500, 33_000])]}"

    def _body(self, target: str) -> bytes:
        """Half of those that are translated can be read: so they are, and their answers, too."""
        rng = self._rng
        size = int(2 ** rng.uniform(0, 26.2)) if rng.random() < 0.5 else rng.randrange(200)
        if target in TRANSLATED and rng.random() < 0.5:
            unit = rng.choice(TEXTS)
            body = TRANSLATED[target].replace(b"%b", unit * (size // len(unit)))
            return body.replace(b"{", b'{"stream":%b,' % rng.choice([b"true", b"false"]), 1)
        unit = rng.choice(PIECES)
        around = rng.choice(list(AROUND.values()))
        return around.replace(b"%b", unit * (size // len(unit)))

    def _chunks(self, body: bytes) -> Iterator[bytes]:
        size = self._rng.choice([1, 7, 1000, 65_536, 2**22])
        body = body[: 300_000 * size]
        made = [b"%x\r\n%b\r\n" % (len(p), p) for i in range(0, len(body), size) if (p := body[i : i + size])]
        yield b"".join(made) + self._rng.choice([b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n", b"", b"x\r\n"])


class Answers(StandIn):
    """Of all sizes and kinds, whatever is asked."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(b"{}", b"200 OK")
        self._rng = rng

    def answer(self, request: bytes) -> bytes:
        rng = self._rng
        if request.startswith(b"HEAD") or rng.random() < 0.2:
            return super().answer(request)
        size, unit = int(2 ** rng.uniform(0, MOST_ANSWERED)), rng.choice(TEXTS)
        text = unit * (size // len(unit))
        if b'"stream":true' in request[:20_000].replace(b" ", b""):
            return self._stream(rng.choice(EVENTS), text)
        body = rng.choice(WHOLE).replace(b"%b", text)
        status = rng.choice([b"200 OK"] * 5 + [b"400 Bad Request"])
        return _head(status, b"application/json", b"Content-Length: %d" % len(body)) + body

    def _stream(self, events: list[bytes], text: bytes) -> bytes:
        """It may end early, and one event may hold all of the text."""
        rng = self._rng
        size = rng.choice([10, 1000, len(text) + 1])
        texts = [text[at : at + size] for at in range(0, min(len(text), 2000 * size), size)]
        begin, middle, end = events
        told = b"".join(
            [begin, *(middle.replace(b"%b", part) for part in texts), rng.choice([end, b"", b"\n"])]
        )
        head = _head(b"200 OK", b"text/event-stream", b"Transfer-Encoding: chunked")
        return head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(told), told)


MOST_ANSWERED = 18
"""Bytes of text in an answer, as a power of two."""

WHOLE = [
    b'{"id":"x","choices":[{"message":{"content":"%b"},"finish_reason":"stop"}]}',
    b'{"id":"x","content":"%b","stop":true,"output":[{"type":"message","content":[{"type":"output_text","text":"%b"}]}]}',
    b'{"error":{"code":400,"message":"%b","type":"invalid_request_error"}}',
    b"%b",
]
EVENTS = [
    [b"", b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n', b"data: [DONE]\n\n"],
    [
        b'event: response.created\ndata: {"type":"response.created","response":{"id":"x"}}\n\n',
        b'data: {"type":"response.output_text.delta","item_id":"i","delta":"%b"}\n\n',
        b'data: {"type":"response.completed","response":{"id":"x","output":[]}}\n\n',
    ],
    [b"", b"data: %b\n", b"\n"],
    [
        b"",
        b'event: content_block_delta\ndata: {"delta":{"text":"%b"}}\n\n',
        b"event: message_stop\ndata: {}\n\n",
    ],
]
"""The beginning, what comes again and again, and the end."""


def _head(status: bytes, type_: bytes, framing: bytes) -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Type: %b\r\n%b\r\n\r\n" % (status, type_, framing)


class Fuzzer:
    """Sends until the time is over."""

    def __init__(self, router: Router, seed: int, seconds: float) -> None:
        self._router, self._rng, self._ends = router, random.Random(seed), time.monotonic() + seconds
        self.statuses: Counter[str] = Counter()
        self.sent_mb = 0.0
        self.longest_s = self.most_mb = 0.0
        self.waits: list[float] = []
        self.faults: list[str] = []

    async def run(self) -> None:
        health = asyncio.create_task(self._ask_health())
        await asyncio.gather(*(self._client(number) for number in range(CLIENTS)))
        health.cancel()

    async def _client(self, number: int) -> None:
        rng = random.Random(self._rng.random())
        while time.monotonic() < self._ends and len(self.faults) < 20:
            case = Case(rng)
            with contextlib.suppress(ConnectionError, asyncio.TimeoutError, TimeoutError):
                await asyncio.wait_for(self._send(case), PATIENCE_S)
            state = self._router.state()
            self.longest_s, self.most_mb = (
                max(self.longest_s, state.longest_s),
                max(self.most_mb, state.rss_mb),
            )
            if state.longest_s > STILL_S:
                self._fault(f"still for {state.longest_s:.3f} s", case, number)

    async def _send(self, case: Case) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._router.port, limit=2**20)
        reading = asyncio.create_task(self._read(reader, case)) if case.reads else None
        left = int(sum(map(len, case.pieces)) * case.cut)
        try:
            for piece in case.pieces:
                for begin in range(0, min(len(piece), left), 2**18):
                    writer.write(piece[begin : begin + min(2**18, left)])
                    await writer.drain()
                self.sent_mb += min(len(piece), left) / 2**20
                left -= min(len(piece), left)
            if reading is not None:
                await asyncio.wait([reading], timeout=case.patience_s)
        finally:
            if reading is not None:
                reading.cancel()
            writer.transport.abort()

    async def _read(self, reader: asyncio.StreamReader, case: Case) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(2**18):
                for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", data):
                    self.statuses[status.decode()] += 1
                    if status == b"500":
                        self._fault("500", case, -1)

    async def _ask_health(self) -> None:
        while True:
            begun = time.monotonic()
            with contextlib.suppress(ConnectionError):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._router.port)
                writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                answer = await reader.read()
                if not answer.startswith(b"HTTP/1.1 200"):
                    self.faults.append(f"/health: {answer[:100]!r}")
                writer.close()
            self.waits.append(time.monotonic() - begun)
            await asyncio.sleep(0.02)

    def figures(self) -> str:
        waits = sorted(self.waits)
        return (
            f"{sum(self.statuses.values())} answers {dict(sorted(self.statuses.items()))}, "
            f"{self.sent_mb:.0f} MB, longest turn {self.longest_s * 1000:.1f} ms, "
            f"RSS at most {self.most_mb:.0f} MB, "
            f"/health p99 {waits[int(len(waits) * 0.99)] * 1000:.0f} ms of {len(waits)}"
        )

    def _fault(self, what: str, case: Case, number: int) -> None:
        beginning = b"".join(case.pieces)[:300]
        self.faults.append(f"{what}: client {number}, {sum(map(len, case.pieces))} bytes: {beginning!r}")


def serve(folder: Path, pipe: Connection, seed: int) -> None:
    """In a process of its own: what the clients' objects cost is not the router's."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    give_memory_back()
    answers = Answers(random.Random(seed))
    loop = Loop(
        make_tiny(folder / "tiny.gguf"), folder, answers, max_body_mb=BODY_MB, max_memory_mb=MEMORY_MB
    )
    loop.start()
    freeze_garbage_collection()
    pipe.send(loop.port)
    while pipe.recv() == "state":
        longest_s, loop.longest_s = loop.longest_s, 0.0
        pipe.send(
            State(
                longest_s,
                loop.memory.held - loop.stored.used_bytes,
                psutil.Process().memory_info().rss / 2**20,
            )
        )
    loop.stop()


class State(NamedTuple):
    """Of the router."""

    longest_s: float
    """The longest turn of its event loop since this was asked last."""
    held: int
    """Bytes, but for the answers that are stored."""
    rss_mb: float


class Router:
    """A process that is asked for its state."""

    def __init__(self, folder: Path, seed: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=serve, args=(folder, other, seed), daemon=True)
        self._process.start()
        self.port: int = self._pipe.recv()

    def state(self) -> State:
        self._pipe.send("state")
        found: State = self._pipe.recv()
        return found

    def stop(self) -> None:
        self._pipe.send("stop")
        self._process.join(30)


def fuzz(seconds: float, seed: int, folder: Path) -> None:
    """Raises `AssertionError` for what the router must not do."""
    router = Router(folder, seed)
    try:
        asyncio.run(Fuzzer(router, seed, min(seconds / 4, 60)).run())  # what is made once
        before = router.state()
        fuzzer = Fuzzer(router, seed + 1, seconds)
        asyncio.run(fuzzer.run())
        deadline = time.monotonic() + 20
        after = router.state()
        while (after.held or after.rss_mb - before.rss_mb > GROWTH_MB) and time.monotonic() < deadline:
            time.sleep(0.1)
            after = router.state()
        print(
            fuzzer.figures(),
            f"RSS {before.rss_mb:.0f} > {after.rss_mb:.0f} MB, held {after.held}",
            flush=True,
        )
        assert not fuzzer.faults, fuzzer.faults
        assert after.held == 0
        assert after.rss_mb - before.rss_mb < GROWTH_MB
    finally:
        router.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    given = parser.parse_args()
    print(f"seed {given.seed}, {given.minutes:g} minutes", flush=True)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        fuzz(given.minutes * 60, given.seed, Path(folder))


if __name__ == "__main__":
    main()
