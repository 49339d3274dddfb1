"""No request keeps the event loop from everybody else: every field, header and path at its largest, with the
worst content, each while the loop's own turns are timed.

What is timed is the processor time that the loop's thread uses between two of its turns: what other programs
of a busy machine take does not count. The bound grows with a slow processor.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.access.size_limits import MAX_HEADER_BYTES, MAX_TARGET_BYTES
from app.configuration.file import parse
from app.main import create_app
from app.proxy.dialects.responses.stored_responses import StoredResponses
from app.proxy.request_memory_limit import ClientMemory
from app.proxy.routes import ENDPOINTS
from tests.fakes import FakeLauncher, FakeProbe
from tests.router_process import until_now
from tests.serving import Client, serving
from tests.stand_in import StandIn, listening

BODY_MB = 8
CHAT = "/v1/chat/completions"
TICK_S = 0.001
LONGEST_S = 0.05


class Served:
    """Serves on a loop in a thread of its own. `_run` sets `_ready`, and ends after `_stop`."""

    def __init__(self) -> None:
        self.port = 0
        self._loop, self._ready, self._stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=[self._run()])

    async def _run(self) -> None:
        raise NotImplementedError

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(30)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)
        self._loop.close()


class Upstream(Served):
    """The stand-in for llama-server, on a loop of its own: what it does with 64 MB is not the router's."""

    def __init__(self, stand_in: StandIn) -> None:
        super().__init__()
        self._stand_in = stand_in

    async def _run(self) -> None:
        async with listening(self._stand_in) as upstream:
            upstream.requests = deque(maxlen=0)
            self.port = upstream.port
            self._ready.set()
            await self._stop.wait()


class Loop(Served):
    """A router, and the longest turn of its loop."""

    memory: ClientMemory
    stored: StoredResponses

    def __init__(self, model: Path, folder: Path, stand_in: StandIn | None = None, **api: Any) -> None:
        """`stand_in`: for llama-server. `api`: its section, beside what is always in it."""
        super().__init__()
        self._model, self._folder, self._api = model, folder, api
        self.longest_s = 0.0
        self.answer = b""
        """What was read last."""
        self._upstream = Upstream(stand_in or StandIn(b"{}", b"200 OK"))

    async def _run(self) -> None:
        names = {f"model-{number}-{'ab' * 50}": {"model_path": str(self._model)} for number in range(300)}
        tree = {
            "api": {"api_keys": ["secret"], "allowed_hosts": ["router.example.com"], **self._api},
            "system": {"log_dir": str(self._folder / "logs")},
            "models": {
                "m": {"model_path": str(self._model)},
                "e": {"model_path": str(self._model), "params": {"embedding": True}},
                **names,
            },
        }
        config = parse(json.dumps(tree), self._folder, {})
        app = create_app(config, launcher=FakeLauncher(self._upstream.port), probe=FakeProbe(10_000))
        self.memory = app.gateway.memory
        async with serving(app) as self.port:
            self.stored = app.state.services.stored
            ticking = asyncio.create_task(self._tick())
            self._ready.set()
            await self._stop.wait()
            ticking.cancel()

    async def _tick(self) -> None:
        before = time.thread_time()
        while True:
            await asyncio.sleep(TICK_S)
            now = time.thread_time()
            self.longest_s, before = max(self.longest_s, now - before), now

    def start(self) -> None:
        self._upstream.start()
        super().start()

    def stop(self) -> None:
        super().stop()
        self._upstream.stop()

    def longest_of(self, request: bytes, *, whole: bool = False) -> float:
        """The longest turn while this request is answered, or cut off; seconds. `whole`: and read."""
        self.longest_s = 0.0
        asyncio.run(self._ask(request, whole=whole))
        return self.longest_s

    async def _ask(self, request: bytes, *, whole: bool) -> None:
        client = await Client.connect(self.port)
        client.say(request)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            if whole:
                self.answer = (await client.reply()).body
            else:
                await client._head()
        client.leave()
        other = await Client.connect(self.port)
        health = await other.ask(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", method="GET")
        assert health.status == 200
        other.leave()


@pytest.fixture(scope="module")
def loop(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    made = Loop(tiny_gguf, tmp_path_factory.mktemp("stillness"), max_body_mb=BODY_MB)
    made.start()
    made.longest_of(post(CHAT, b'{"model": "m"}'))  # what is done once for all
    made.longest_of(post(CHAT, b'{"model": "nobody"}'))
    made.longest_of(b"GET /docs HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: secret\r\n\r\n")
    yield made
    made.stop()


def post(target: str, body: bytes, *lines: str, key: bool = True) -> bytes:
    known = ["X-Api-Key: secret"] if key else []
    head = [f"POST {target} HTTP/1.1", "Host: localhost", *known, *lines, f"Content-Length: {len(body)}"]
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


def unit_s() -> float:
    """What this processor takes for a bit of work: 5 ms on an ordinary one."""

    def once() -> float:
        begun = time.thread_time()
        sum(range(400_000))
        return time.thread_time() - begun

    return min(once() for _ in range(5))


def assert_still(loop: Loop, request: bytes, *, whole: bool = False) -> None:
    """A turn that was long by chance is not long three times."""
    bound_s = max(LONGEST_S, 10 * unit_s())
    turns = []
    for _ in range(3):
        turns.append(loop.longest_of(request, whole=whole))
        if turns[-1] < bound_s:
            return
    raise AssertionError(f"the loop stood still for {min(turns):.3f} s, {bound_s:.3f} are allowed")


SIZE = BODY_MB * 2**20 - 1000
UNITS = {
    "digits": b"9" * 299 + b" ",
    "lists": b"[],",
    "objects": b'{"a":0},',
    "texts": b'"",',
    "escapes": b'\\"',
    "backslashes": b"\\\\",
    "blanks": b" ",
    "numbers": b"1e10,",
    "letters": b"a",
    "open": b"[",
}
AROUND = {
    "bare": b"%b",
    "field": b'{"model":"m","x":[%b0]}',
    "model": b'{"model":"%b"}',
    "members": b'{"model":"m","a":0,%b}',
}


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND.keys())
@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS.keys())
def test_no_body_for_a_model_does(loop: Loop, unit: bytes, around: bytes) -> None:
    assert_still(loop, post(CHAT, around.replace(b"%b", unit * (SIZE // len(unit)))))


@pytest.mark.parametrize("target", ["/session", "/v1/models/load", "/v1/models/eject"])
@pytest.mark.parametrize("unit", [UNITS["digits"], UNITS["lists"]], ids=["digits", "lists"])
def test_no_body_for_the_router_does(loop: Loop, target: str, unit: bytes) -> None:
    for key in (True, False):
        assert_still(loop, post(target, unit * (SIZE // len(unit)), key=key))


@pytest.mark.parametrize("unit", ["a", "ab", "\u00e9", "%2F", "/", "../", "."], ids=str)
def test_no_path_does(loop: Loop, unit: str) -> None:
    for size in (MAX_TARGET_BYTES - 200, 60_000):
        text = unit.encode() if not unit.isascii() else unit
        filling = (str(text) if isinstance(text, str) else "%C3%A9") * (size // 6)
        for path in ("/upstream/", "/upstream/m/", "/v1/models/", "/", "/ui/", "/v1/models?"):
            request = f"GET {path}{filling[:size]} HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: secret\r\n\r\n"
            assert_still(loop, request.encode())


@pytest.mark.parametrize(
    "name",
    ["Host", "Origin", "Cookie", "Authorization", "X-Api-Key", "X-Request-ID", "X-Request-Priority",
     "Content-Type", "Accept", "If-None-Match", "Range", "X-Anything"],
)  # fmt: skip
def test_no_header_does(loop: Loop, name: str) -> None:
    for unit in ("a", "a.", "a=b; ", "http://", ":", "\u00e9", "9", "[::", "/"):
        value = (unit * MAX_HEADER_BYTES)[: MAX_HEADER_BYTES - 500]
        assert_still(loop, post(CHAT, b'{"model": "m"}', f"{name}: {value}"))


NAMING = [*(e.path for e in ENDPOINTS if not e.is_upload), "/v1/models/load", "/models/load", "/api/show"]
"""Where a body names a model."""


@pytest.mark.parametrize("target", NAMING)
def test_no_name_of_a_model_does(loop: Loop, target: str) -> None:
    for unit in ("ab", "model-", "a./", "/", "[", " ", ":", "https://"):
        for size in (128, 60_000, SIZE):
            name = (unit * (size // len(unit) + 1))[:size]
            assert_still(loop, post(target, json.dumps({"model": name}).encode()))


LARGEST = 64 * 2**20 - 1000


@pytest.fixture(scope="module")
def large(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    """One that takes the largest bodies that there are without a word in the configuration."""
    made = Loop(tiny_gguf, tmp_path_factory.mktemp("large"))
    made.start()
    made.longest_of(post(CHAT, b'{"model": "m"}'))
    yield made
    made.stop()


@pytest.mark.parametrize("unit", ["letters", "lists", "escapes"])
def test_no_body_of_the_largest_size_does(large: Loop, unit: str) -> None:
    """It is received, read and sent on, or refused."""
    body = AROUND["field"].replace(b"%b", UNITS[unit] * (LARGEST // len(UNITS[unit])))
    assert_still(large, post(CHAT, body))
    until_now(lambda: large.memory.held == 0)  # it left when the head had come


TRANSLATED = {
    "/v1/responses": b'{"model":"m","input":"%b"}',
    "/v1/responses/input_tokens": b'{"model":"m","input":[{"role":"user","content":"%b"}]}',
    "/v1/messages": b'{"model":"m","messages":[{"role":"user","content":"%b"}]}',
    "/api/chat": b'{"model":"m","stream":false,"messages":[{"role":"user","content":"%b"}]}',
    "/api/generate": b'{"model":"m","stream":false,"prompt":"%b"}',
}
"""A text in the words of each API that is not llama-server's own."""


@pytest.mark.parametrize("unit", [b"a", "\u00e9".encode()], ids=["letters", "accents"])
@pytest.mark.parametrize("target", TRANSLATED)
def test_no_text_of_the_largest_size_that_is_translated_does(large: Loop, target: str, unit: bytes) -> None:
    assert_still(large, post(target, TRANSLATED[target].replace(b"%b", unit * (LARGEST // len(unit) - 100))))


@pytest.mark.parametrize("target", ["/v1/responses", "/api/chat"])
@pytest.mark.parametrize("count", [500, 25_000])
def test_no_number_of_messages_that_are_translated_does(large: Loop, target: str, count: int) -> None:
    name = "input" if target == "/v1/responses" else "messages"
    messages = [{"role": "user", "content": "hi"}] * count
    assert_still(large, post(target, json.dumps({"model": "m", "stream": False, name: messages}).encode()))


@pytest.fixture(scope="module")
def answers() -> StandIn:
    """What stands for llama-server behind `answering`."""
    return StandIn(b"{}", b"200 OK")


@pytest.fixture(scope="module")
def answering(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory, answers: StandIn) -> Iterator[Loop]:
    made = Loop(tiny_gguf, tmp_path_factory.mktemp("answering"), answers)
    made.start()
    made.longest_of(post(CHAT, b'{"model": "m"}'))
    yield made
    made.stop()


ANSWER_BYTES = 24 * 2**20
A_TEXT = b"a" * ANSWER_BYTES
CHAT_ANSWER = b'{"choices":[{"message":{"content":"%b"},"finish_reason":"stop"}]}' % A_TEXT
ANSWERS = {
    "/v1/responses": (
        "output",
        b'{"id":"resp_1","output":[{"type":"message","id":"msg_1","content":[{"type":"output_text","text":"%b"}]}]}'
        % A_TEXT,
    ),
    "/v1/messages": ("content", b'{"content":[{"type":"text","text":"%b"}]}' % A_TEXT),
    "/api/chat": ("message", CHAT_ANSWER),
    "/api/generate": ("response", CHAT_ANSWER),
    "/api/embed": (
        "embeddings",
        b'{"data":[%b{"index":9,"embedding":[1]}]}'
        % (b'{"index":1,"embedding":[0%b]},' % (b",0.0123456789" * 4096) * (ANSWER_BYTES // 2 // 53_300)),
    ),
}
"""A field of the answer in the words of its API, and what llama-server says."""


@pytest.mark.parametrize("target", ANSWERS)
def test_no_answer_that_is_translated_does(answering: Loop, answers: StandIn, target: str) -> None:
    """As a whole. It is passed on in pieces, too."""
    field, body = ANSWERS[target]
    answers.says(body)
    asked = TRANSLATED.get(target, b'{"model":"e","input":"%b"}').replace(b"%b", b"hi")
    assert_still(answering, post(target, asked), whole=True)
    assert len(json.dumps(json.loads(answering.answer)[field])) >= ANSWER_BYTES // 3
    until_now(lambda: answering.memory.held < ANSWER_BYTES * 2)  # but for what is stored


TINY = b"".join(b'data: {"choices":[{"delta":{"content":"%d"}}]}\n\n' % number for number in range(4000))
STREAMED_TEXT = b"a" * (2 * 2**20)
BEGUN = b"""event: response.created
data: {"type":"response.created","response":{"id":"resp_1"}}

data: {"type":"response.output_item.added","item":{"id":"msg_1","type":"message"}}

"""
STREAMS = {
    "/v1/responses, one event": (
        BEGUN
        + b'data: {"type":"response.output_text.delta","item_id":"msg_1","delta":"%b"}\n\n' % STREAMED_TEXT,
        len(STREAMED_TEXT),
    ),
    "/v1/responses, many events": (
        BEGUN + b'data: {"type":"response.output_text.delta","item_id":"msg_1","delta":"a"}\n\n' * 3000,
        3000 * 80,
    ),
    "/api/chat, one event": (
        b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % STREAMED_TEXT,
        len(STREAMED_TEXT),
    ),
    "/api/chat, many events": (TINY, 4000 * 80),
}
"""Under the endpoint, what llama-server says in one go, and how much its client gets of it at least."""


class Stream(StandIn):
    def says_events(self, events: bytes) -> None:
        self._body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(events), events)
        self._head = (
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )


@pytest.fixture(scope="module")
def stream() -> Stream:
    return Stream(b"{}", b"200 OK")


@pytest.fixture(scope="module")
def streaming(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory, stream: Stream) -> Iterator[Loop]:
    made = Loop(tiny_gguf, tmp_path_factory.mktemp("streaming"), stream)
    made.start()
    made.longest_of(post(CHAT, b'{"model": "m"}'))
    yield made
    made.stop()


@pytest.mark.parametrize("kind", STREAMS)
def test_no_stream_that_is_translated_does(streaming: Loop, stream: Stream, kind: str) -> None:
    """Neither by one event nor by many that come at once."""
    events, least = STREAMS[kind]
    stream.says_events(events)
    target = kind.partition(",")[0]
    asked = TRANSLATED[target].replace(b"%b", b"hi").replace(b'"stream":false', b'"stream":true')
    if b"stream" not in asked:
        asked = asked.replace(b"{", b'{"stream":true,', 1)
    assert_still(streaming, post(target, asked), whole=True)
    assert len(streaming.answer) >= least
    until_now(lambda: streaming.memory.held - streaming.stored.used_bytes == 0)


def test_no_request_of_which_an_answer_repeats_much_does(streaming: Loop, stream: Stream) -> None:
    stream.says_events(BEGUN)
    body = b'{"model":"m","stream":true,"input":"hi","instructions":"%b"}' % (b"a" * 16 * 2**20)
    assert_still(streaming, post("/v1/responses", body), whole=True)
    assert b"response.created" in streaming.answer


def test_a_crowd_that_asks_for_figures_is_answered_in_turns(loop: Loop) -> None:
    """With 300 models each takes some milliseconds."""
    request, count = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", 30

    async def ask_at_once() -> None:
        await asyncio.gather(*(loop._ask(request, whole=True) for _ in range(count)))

    def longest_of_crowd() -> float:
        loop.longest_s = 0.0
        asyncio.run(ask_at_once())
        return loop.longest_s

    alone_s = min(loop.longest_of(request, whole=True) for _ in range(3))
    assert any(longest_of_crowd() < alone_s * count / 4 for _ in range(3))


def test_no_prompt_that_is_shortened_does(answering: Loop, answers: StandIn) -> None:
    """llama-server refuses it as too long, again and again."""
    error = {"code": 400, "message": "too long", "type": "exceed_context_size_error"}
    told = {"error": {**error, "n_prompt_tokens": 5_000_000, "n_ctx": 4_999_999}}
    answers.says(json.dumps(told).encode(), b"400 Bad Request")
    text = b"a" * (LARGEST - 1000)
    assert_still(answering, post("/api/chat", TRANSLATED["/api/chat"].replace(b"%b", text)))


def in_chunks(target: str, data: bytes) -> bytes:
    head = [f"POST {target} HTTP/1.1", "Host: localhost", "X-Api-Key: secret", "Transfer-Encoding: chunked"]
    return "\r\n".join([*head, "", ""]).encode() + data + b"0\r\n\r\n"


CHUNKS = {
    "of a byte": b"1\r\na\r\n" * 300_000,
    "of blank lines": b"%x\r\n%b\r\n" % (2**21, b"\r\n\r\n" * 2**19),
    "with extensions": b"1;%b\r\na\r\n" % (b"a" * 60_000) * 30,
}


@pytest.mark.parametrize("target", [CHAT, "/v1/models/load", "/nowhere"])
@pytest.mark.parametrize("data", CHUNKS.values(), ids=CHUNKS.keys())
def test_no_chunks_do(loop: Loop, data: bytes, target: str) -> None:
    """Not even a single read of them, which may hold a hundred thousand."""
    assert_still(loop, in_chunks(target, data))


REFUSED = {
    "an empty body": post(CHAT, b""),
    "no such model": post(CHAT, b'{"model": "x"}'),
    "no key": post(CHAT, b"", key=False),
    "no such path": b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


@pytest.mark.parametrize("request_", REFUSED.values(), ids=REFUSED.keys())
def test_no_queue_of_requests_on_one_connection_does(loop: Loop, request_: bytes) -> None:
    """Each is answered in a turn of its own."""
    assert_still(loop, request_ * (500_000 // len(request_)))


@pytest.mark.parametrize("target", [CHAT, "/v1/models/load"])
def test_no_number_of_headers_does(loop: Loop, target: str) -> None:
    for lines in (["a:"] * 15_000, ["a: b"] * 90):
        assert_still(loop, post(target, b'{"model": "m"}', *lines))
