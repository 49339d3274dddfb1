"""Bad requests by the thousand: no 500, no crash, no growth, always the error shape.

A short, seeded form runs with every test; `make fuzz` sends 20,000 (`FUZZ_REQUESTS` says how many).
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import psutil
import pytest
import requests
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from app.api.openai import ENDPOINTS
from app.configuration.file import parse
from app.main import create_app
from tests.fakes import FakeLauncher, FakeProbe

REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "1200"))
BLOCK = 50
"""Requests that are sent at once."""

KEY = b"fuzz-key"
GROWTH_MB = 30.0
ANSWER_S = 20.0
STREAMS = ("/v1/models/status/stream", "/metrics/stream")


class Call:
    """One request as the server would hand it over, bytes of any kind included."""

    def __init__(
        self, method: str, path: str, headers: list[tuple[bytes, bytes]], body: list[bytes], query: str = ""
    ) -> None:
        self.method, self.path, self.headers, self.body, self.query = method, path, headers, body, query
        self.status = 0
        self.answer = b""
        self.answer_headers: dict[bytes, bytes] = {}

    def __repr__(self) -> str:
        return f"{self.method} {self.path!r}?{self.query!r} {self.headers!r} {b''.join(self.body)[:200]!r}"

    async def send_to(self, app: FastAPI) -> Call:
        left = [*self.body]
        done = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if left:
                piece = left.pop(0)
                return {"type": "http.request", "body": piece, "more_body": bool(left)}
            await done.wait()
            return {"type": "http.disconnect"}

        async def send(message: Mapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                self.status, self.answer_headers = message["status"], dict(message["headers"])
                if b"event-stream" in self.answer_headers.get(b"content-type", b""):
                    done.set()  # has begun: we leave
            self.answer += message.get("body", b"")

        await asyncio.wait_for(app(self._scope(), receive, send), ANSWER_S)
        return self

    def _scope(self) -> dict[str, Any]:
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": self.method,
            "scheme": "http",
            "path": unquote(self.path),
            "raw_path": self.path.encode(errors="replace"),
            "query_string": self.query.encode(errors="replace"),
            "root_path": "",
            "headers": self.headers,
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
        }

    def check(self) -> None:
        """A 503 is honest only where the model could not be loaded; here every load works."""
        assert self.status and self.status != 500, self
        if not self._is_preflight():
            assert self.answer_headers[b"x-request-id"]
            assert self.answer_headers[b"x-content-type-options"] == b"nosniff"
        if self.status < 400 or self.method == "HEAD" or self._is_llama_servers():
            return
        assert self.answer.startswith(b"{"), (self, self.status, self.answer[:200])
        body = json.loads(self.answer)
        assert body["error"].keys() >= {"message", "type", "param", "code"}, self
        assert len(body["error"]["message"]) < 4000, self
        if not self._is_preflight():
            assert (body.get("type") == "error") == unquote(self.path).startswith("/v1/messages"), self

    def _is_preflight(self) -> bool:
        """Answered outside of the door."""
        names = {name for name, _ in self.headers}
        return self.method == "OPTIONS" and names >= {b"origin", b"access-control-request-method"}

    def _is_llama_servers(self) -> bool:
        return self.answer == UPSTREAM_ERROR


UPSTREAM_ERROR = b'{"error":{"code":400,"message":"no","type":"invalid_request_error"}}'

# --- what is sent ------------------------------------------------------------------------------------

PATHS = [
    *(endpoint.path for endpoint in ENDPOINTS for _ in range(4)),
    "/v1/models/load",
    "/v1/models/eject",
    "/models/load",
    "/models/unload",
    "/v1/models",
    "/v1/models/failed",
    "/v1/models/status",
    "/v1/models/a/b/status",
    "/v1/models/a/b/plan",
    "/v1/models/a/b/logs",
    "/v1/models/a/b/reset",
    "/upstream/a/b/props",
    "/health",
    "/vram",
    "/v1/queue/stats",
    "/v1/telemetry/summary",
    "/docs",
    "/openapi.json",
    "/",
    "/ui/app.js",
    *STREAMS,
]
METHODS = [
    "GET",
    "POST",
    "PUT",
    "PATCH",
    "DELETE",
    "HEAD",
    "OPTIONS",
    "TRACE",
    "CONNECT",
    "get",
    "\u00e9",
    "",
]
NASTY = [
    "..",
    "%2e%2e",
    "%00",
    "%0d%0aX: 1",
    "//",
    "\\",
    "%5c..",
    "%ff",
    "a" * 5000,
    "?",
    "%",
    "%zz",
    "{{7*7}}",
    "'",
    "*",
    "~",
    "%F0%9F%92%A9",
    ";",
    "nan",
    "-1",
    "null",
]
NAMES = ["a/b", "b", "embed", "nobody", "", "..", "a" * 200, "\u0000", "\ud83d\ude00", "status", "load"]

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([10**400, -(10**30)])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
names = st.sampled_from(NAMES) | values
bodies = st.fixed_dictionaries(
    {},
    optional={
        "model": names,
        "stream": values,
        "messages": values,
        "input": values,
        "prompt": values,
        "x": values,
    },
)


@st.composite
def texts(draw: st.DrawFn) -> bytes:
    """JSON, nearly JSON, or nothing of the kind."""
    kind = draw(st.integers(0, 5))
    if kind == 0:
        return draw(st.binary(max_size=300))
    if kind == 1:
        return draw(
            st.sampled_from([b"[", b'{"a":', b"\xff", b"\xef\xbb\xbf{}", b'"\\ud800"', b"1e999", b"", b"nul"])
        ) * draw(st.sampled_from([1, 2, 300, 5000]))
    whole = json.dumps(draw(bodies if kind > 2 else values)).encode()
    if kind == 5:
        at, junk = draw(st.integers(0, len(whole))), draw(st.binary(max_size=4))
        return whole[:at] + junk + whole[at + draw(st.integers(0, 3)) :]
    return whole


header_values = st.binary(max_size=60) | st.sampled_from(
    [
        b"high",
        b"urgent",
        b"null",
        b"http://[",
        b"\xe9",
        b"a\r\nb: c",
        b"x" * 40000,
        b"application/json",
        b"text/plain",
        b"[",
        b"localhost",
        b"evil.example",
        b"-1",
        b"99999999999999999999",
        b"\xb2",
        b"Bearer " + KEY,
        b"cross-site",
    ]
)
header_names = st.sampled_from(
    [
        b"host",
        b"origin",
        b"sec-fetch-site",
        b"content-type",
        b"content-length",
        b"x-request-priority",
        b"x-request-id",
        b"authorization",
        b"x-api-key",
        b"accept",
        b"range",
        b"accept-encoding",
        b"connection",
        b"transfer-encoding",
        b"expect",
        b"cookie",
        b"access-control-request-method",
        b"last-event-id",
        b"x-forwarded-for",
    ]
)


@st.composite
def calls(draw: st.DrawFn) -> Call:
    path = draw(st.sampled_from(PATHS))
    if draw(st.integers(0, 3)) == 0:
        parts = path.split("/")
        parts[draw(st.integers(1, len(parts) - 1))] = draw(st.sampled_from(NASTY))
        path = "/".join(parts)
    method = draw(st.sampled_from(["POST"] * 12 + METHODS))
    body = draw(texts())
    cut = draw(st.integers(0, len(body)))
    headers = [(b"host", b"127.0.0.1:8000"), (b"content-type", b"application/json")]
    if draw(st.integers(0, 9)):
        headers.append((b"authorization", b"Bearer " + KEY))
    extra = draw(st.lists(st.tuples(header_names, header_values), max_size=3))
    replaced = {name for name, _ in extra if draw(st.booleans())}
    headers = [h for h in headers if h[0] not in replaced] + extra
    query = draw(
        st.sampled_from(
            [
                "",
                "wait=x",
                "wait=true",
                "mode=never",
                "lines=-1",
                "lines=9e9",
                "follow=%00",
                "a=%ff&a=",
                "\u00e9",
            ]
        )
    )
    return Call(method, path, headers, [body[:cut], body[cut:]], query)


# --- sending -----------------------------------------------------------------------------------------


@asynccontextmanager
async def fuzzed(model: Path, folder: Path) -> AsyncIterator[FastAPI]:
    """A router whose llama-servers refuse every request at once."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        is_head = (await reader.read(65536)).startswith(b"HEAD")
        writer.write(
            b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(UPSTREAM_ERROR), b"" if is_head else UPSTREAM_ERROR)
        )
        await writer.drain()
        writer.close()

    tree = {
        "api": {
            "api_keys": [KEY.decode()],
            "max_body_mb": 0.01,
            "cors_allow_origins": ["https://app.example"],
        },
        "system": {"log_dir": str(folder), "request_timeout_sec": 5, "drain_timeout_sec": 1},
        "models": {
            "a/b": {"model_path": str(model), "aliases": ["b"]},
            "embed": {"model_path": str(model), "params": {"embedding": True}},
        },
    }
    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        app = create_app(
            parse(json.dumps(tree), folder, {}), launcher=FakeLauncher(port), probe=FakeProbe(10_000)
        )
        async with app.router.lifespan_context(app):
            yield app


async def send_all(app: FastAPI, generated: Iterator[list[Call]]) -> Counter[int]:
    """Statuses. Memory and tasks after the first half are what they are after the second."""
    statuses: Counter[int] = Counter()
    settled: tuple[float, int] | None = None
    sent = 0
    for block in generated:
        for call in await asyncio.gather(*(call.send_to(app) for call in block)):
            call.check()
            statuses[call.status] += 1
        sent += len(block)
        if settled is None and sent >= REQUESTS // 2:
            settled = await _footprint()
    assert settled is not None
    memory_mb, tasks = await _footprint()
    assert memory_mb - settled[0] < GROWTH_MB, f"{settled[0]:.0f} to {memory_mb:.0f} MB"
    assert tasks <= settled[1] + 2
    assert (await Call("GET", "/health", [(b"host", b"localhost")], [b""]).send_to(app)).status == 200
    return statuses


async def _footprint() -> tuple[float, int]:
    await asyncio.sleep(0.2)
    gc.collect()
    return psutil.Process().memory_info().rss / 2**20, len(asyncio.all_tasks())


def blocks(strategy: st.SearchStrategy[Call], count: int) -> list[list[Call]]:
    """Generated beforehand: hypothesis does not run on an event loop."""
    made: list[Call] = []

    @seed(20_000)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(call: Call) -> None:
        made.append(call)

    collect()
    return [made[start : start + BLOCK] for start in range(0, len(made), BLOCK)]


@pytest.mark.timeout(1800)
async def test_bad_requests_never_do_harm(tiny_gguf: Path, tmp_path: Path) -> None:
    generated = await asyncio.to_thread(blocks, calls(), REQUESTS)
    total = sum(map(len, generated))
    assert total >= REQUESTS * 0.9
    async with fuzzed(tiny_gguf, tmp_path) as app:
        statuses = await send_all(app, iter(generated))
        metrics = await Call("GET", "/metrics", [(b"host", b"localhost")], [b""]).send_to(app)
    assert sum(statuses.values()) == total
    assert {400, 401, 403, 404, 405} < set(statuses), statuses  # it reached many ways to be refused
    assert b"nobody" not in metrics.answer
    print(f"{total} bad requests: {dict(sorted(statuses.items()))}")


@pytest.mark.timeout(1800)
async def test_requests_made_from_the_published_document_never_do_harm(
    tiny_gguf: Path, tmp_path: Path
) -> None:
    async with fuzzed(tiny_gguf, tmp_path) as app:
        schema = schemathesis.openapi.from_dict(app.openapi())
        operations = [found.ok() for found in schema.get_all_operations()]
        each = max(2, REQUESTS // 4 // len(operations))
        seen: set[str] = set()
        for operation in operations:
            strategy = operation.as_strategy().map(_call_of)
            seen.add(operation.label)
            for block in await asyncio.to_thread(blocks, strategy, each):
                for call in await asyncio.gather(*(call.send_to(app) for call in block)):
                    call.check()
    assert len(seen) == len(operations) > 30


def _call_of(case: schemathesis.Case) -> Call:
    kwargs = case.as_transport_kwargs(base_url="http://127.0.0.1:8000")
    prepared = requests.Request(
        **{
            k: v
            for k, v in kwargs.items()
            if k in ("method", "url", "headers", "params", "json", "data", "cookies")
        }
    ).prepare()
    body = prepared.body or b""
    headers = [
        (
            name.lower().encode("latin-1", "replace"),
            value if isinstance(value, bytes) else str(value).encode("utf-8"),
        )
        for name, value in prepared.headers.items()
        if name.lower() != "authorization"
    ]
    headers += [(b"host", b"127.0.0.1:8000"), (b"authorization", b"Bearer " + KEY)]
    path, _, query = prepared.path_url.partition("?")
    return Call(
        prepared.method or "GET", path, headers, [body.encode() if isinstance(body, str) else body], query
    )
