"""Bad requests by the thousand: no 500, no crash, no growth, always the error shape.

A short, seeded form runs with every test; `make fuzz` sends 20,000 (`FUZZ_REQUESTS` says how many).
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote

import psutil
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from app.configuration.file import parse
from app.main import create_app
from app.proxy.catch_bugs import internal_error
from app.proxy.request_reader import MAX_HEAD_BYTES
from app.proxy.routes import ENDPOINTS
from tests.event_loops import on_the_loop_of_the_way, way
from tests.fakes import FakeLauncher, FakeProbe
from tests.router_process import until
from tests.serving import Pair, Reply, Way, reached_by
from tests.stand_in import llama_server_stand_in

__all__ = ["on_the_loop_of_the_way", "way"]  # fixtures

REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "1200"))
BLOCK = 50
"""Requests that are sent at once."""

KEY = b"fuzz-key"
GROWTH_MB = 30.0
MESSAGES = re.compile(r"/+(v1/+)?messages(/|$)")
"""Paths whose errors have Anthropic's shape."""

OLLAMA = re.compile(r"/+api(/+(?!v1(/|$))|$)")
"""Paths whose errors have Ollama's: a text."""

STREAMS = ("/v1/models/status/stream", "/metrics/stream")


@dataclass(frozen=True)
class Call:
    """One request, bytes of any kind included."""

    method: str
    path: str
    headers: list[Pair]
    body: list[bytes]
    query: str = ""

    def __repr__(self) -> str:
        return f"{self.method} {self.path!r}?{self.query!r} {self.headers!r} {b''.join(self.body)[:200]!r}"

    async def send_by(self, way: Way) -> Reply | None:
        """The answer; None where the connection was cut off without a word, as it may be."""
        target = f"{self.path}?{self.query}" if self.query else self.path
        try:
            return await way.ask(self.method, target, self.headers, self.body)
        except (asyncio.IncompleteReadError, ConnectionError):
            assert self._may_be_cut_off(), self
            return None
        except Exception as error:
            raise AssertionError(self) from error

    def check(self, reply: Reply) -> None:
        """A 503 is honest only where the model could not be loaded; here every load works."""
        assert reply.status != 500 or OLLAMA.match(unquote(self.path)), (
            self
        )  # some mistakes are told so there
        if not self._is_preflight():
            assert reply[b"x-request-id"], self
            assert (reply[b"x-content-type-options"], reply[b"x-frame-options"]) == (b"nosniff", b"DENY"), (
                self
            )
        if reply.status < 400 or self.method == "HEAD" or reply.body == UPSTREAM_ERROR:
            return
        assert reply.body.startswith(b"{"), (self, reply.status, reply.body[:200])
        body = json.loads(reply.body)
        error, path = body["error"], unquote(self.path)
        if isinstance(error, str):
            assert OLLAMA.match(path) and len(error) < 4000, self
            assert error != OUR_MISTAKE, self
            return
        assert error.keys() >= {"message", "type", "param", "code"}, self
        assert len(error["message"]) < 4000, self
        if error["message"] != NO_HTTP:
            assert (body.get("type") == "error") == bool(MESSAGES.match(path)), self
            assert not OLLAMA.match(self.path), self

    def _may_be_cut_off(self) -> bool:
        """Its head is too long, or ends in the middle: what follows is garbage behind a request."""
        size = sum(len(name) + len(value) for name, value in self.headers)
        return size > MAX_HEAD_BYTES or any(b"\r\n\r\n" in value + b"\r\n" for _, value in self.headers)

    def _is_preflight(self) -> bool:
        """Answered without the guard."""
        names = {name for name, _ in self.headers}
        return self.method == "OPTIONS" and names >= {b"origin", b"access-control-request-method"}


OUR_MISTAKE = internal_error().message
NO_HTTP = "Invalid HTTP request received."
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
        b"chunked",
        b"close",
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
async def fuzzed(model: Path, folder: Path, way: str) -> AsyncIterator[Way]:
    """A router whose llama-servers refuse every request at once."""

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
    async with llama_server_stand_in(UPSTREAM_ERROR, b"400 Bad Request") as upstream:
        launcher = FakeLauncher(upstream.port)
        app = create_app(parse(json.dumps(tree), folder, {}), launcher=launcher, probe=FakeProbe(10_000))
        async with reached_by(way, app) as reached:
            yield reached


async def send_all(way: Way, generated: Sequence[Sequence[Call]]) -> Counter[int]:
    """Statuses. Memory and tasks after the first half are what they are after the second."""
    statuses: Counter[int] = Counter()
    settled: tuple[float, int] | None = None
    sent = 0
    for block in generated:
        statuses += await send_block(way, block)
        sent += len(block)
        if settled is None and sent >= REQUESTS // 2:
            settled = await _footprint()
    assert settled is not None
    before_mb, tasks = settled

    async def is_settled() -> bool:
        """What still ends has ended; on a busy machine that takes its time."""
        return (await _footprint())[1] <= tasks + 2

    await until(is_settled)
    memory_mb, _ = await _footprint()
    assert memory_mb - before_mb < GROWTH_MB, f"{before_mb:.0f} to {memory_mb:.0f} MB"
    return statuses


async def send_block(way: Way, block: Sequence[Call]) -> Counter[int]:
    """All at once, and then somebody else."""
    replies = await asyncio.gather(*(call.send_by(way) for call in block))
    told = [(call, reply) for call, reply in zip(block, replies, strict=True) if reply is not None]
    for call, reply in told:
        call.check(reply)
    health = await way.ask("GET", "/health", [(b"host", b"localhost")], [])
    assert health.status == 200
    return Counter(reply.status for _, reply in told)


async def _footprint() -> tuple[float, int]:
    """MB, and tasks but for those of loaded models: which are loaded is the last requests' choice."""
    await asyncio.sleep(0.2)
    gc.collect()
    tasks = [task for task in asyncio.all_tasks() if not task.get_name().startswith("supervise ")]
    return psutil.Process().memory_info().rss / 2**20, len(tasks)


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


@pytest.fixture(scope="module")
def generated() -> list[list[Call]]:
    return blocks(calls(), REQUESTS)


@pytest.mark.timeout(1800)
async def test_bad_requests_never_do_harm(
    tiny_gguf: Path, tmp_path: Path, way: str, generated: list[list[Call]]
) -> None:
    total = sum(map(len, generated))
    assert total >= REQUESTS * 0.9
    async with fuzzed(tiny_gguf, tmp_path, way) as reached:
        statuses = await send_all(reached, generated)
        metrics = await reached.ask("GET", "/metrics", [(b"host", b"localhost")], [])
    assert sum(statuses.values()) >= total * 0.99
    assert {400, 401, 403, 404, 405} < set(statuses), statuses  # it reached many ways to be refused
    assert b"nobody" not in metrics.body
    print(f"{total} bad requests by {way}: {dict(sorted(statuses.items()))}")


@pytest.fixture(scope="module")
def published(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[Call]]]:
    """Requests for each operation of the published document."""
    app = create_app(parse("{}", tmp_path_factory.mktemp("none"), {}))
    schema = schemathesis.openapi.from_dict(app.openapi())
    operations = [cast(Any, found).ok() for found in schema.get_all_operations()]
    each = max(2, REQUESTS // 4 // len(operations))
    return {o.label: blocks(o.as_strategy().map(_call_of), each) for o in operations}


@pytest.mark.timeout(1800)
async def test_requests_made_from_the_published_document_never_do_harm(
    tiny_gguf: Path, tmp_path: Path, way: str, published: dict[str, list[list[Call]]]
) -> None:
    assert len(published) > 30
    async with fuzzed(tiny_gguf, tmp_path, way) as reached:
        for block in chain.from_iterable(published.values()):
            await send_block(reached, block)


def _call_of(case: schemathesis.Case[Any]) -> Call:
    kwargs = case.as_transport_kwargs(base_url="http://127.0.0.1:8000")
    prepared = requests.Request(
        **{
            k: v
            for k, v in kwargs.items()
            if k in ("method", "url", "headers", "params", "json", "data", "cookies")
        }
    ).prepare()
    body = cast("bytes | str", prepared.body or b"")
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
