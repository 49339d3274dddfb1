"""The data path's client, against a server that says exactly the bytes a test gives it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from app.domain.errors import RouterError
from app.domain.priority import Priority
from app.proxy.answer_reader import MAX_HEAD_BYTES, AnswerHead
from app.proxy.exchange_interfaces import UpstreamGone
from app.proxy.forwarded_headers import Headers
from app.proxy.request_record import RoutedRequest
from app.proxy.upstream_connection import UpstreamConnection
from app.proxy.upstream_pool import MAX_AHEAD, Opening, UpstreamPool
from tests.event_loops import on_both_loops
from tests.serving import soon
from tests.upstreams import MB, OK, SIZED, Line

__all__ = ["on_both_loops"]  # fixtures

CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\nX-Trailer: 1\r\n\r\n"
READ_AHEAD_BYTES = 65536
"""What the answers of these tests take before they want no more."""

RECV_BYTES = 256 * 1024
"""The most that one read from a socket gives."""


def asking(method: str, target: str, headers: bytes, *, keep_alive: bool) -> RoutedRequest:
    """As much of a request as a connection needs to know."""
    return RoutedRequest(
        target, method, target, headers, False, keep_alive, Priority.NORMAL, False, request_id="id", client=""
    )


KEY = "secret"
LAST = asking("POST", "/", b"", keep_alive=False)


class Answer:
    """Asks for something and awaits what an exchange is called for."""

    def __init__(
        self,
        pool: UpstreamPool,
        port: int,
        request: RoutedRequest,
        body: bytes = b"{}",
        *,
        fresh: bool = False,
    ) -> None:
        self.status, self.headers = 0, cast(Headers, [])
        self.length: int | None = None
        self.ended = self._paused = False
        self.is_fresh: bool | None = None
        self._request, self._body, self._chunks = request, body, cast("list[bytes]", [])
        self._error: Exception | None = None
        self._link: UpstreamConnection | None = None
        self._news = asyncio.Event()
        self._opening: Opening | None = None
        if not fresh and (kept := pool.take(port)) is not None:
            self.connected(kept, False)
        else:
            self._opening = pool.open(port, cast(Any, self))

    @property
    def content_type(self) -> bytes:
        return dict(self.headers).get(b"content-type", b"")

    # --- what the pool and the connection call

    def connected(self, link: UpstreamConnection, is_fresh: bool) -> None:
        self._opening, self._link, self.is_fresh = None, link, is_fresh
        link.ask(self._request, KEY, self._body, self, is_fresh=is_fresh)

    def refused(self, error: RouterError) -> None:
        self._fail(error)

    def broken(self, error: UpstreamGone) -> None:
        self._link = None
        self._fail(error)

    def bug(self, bug: Exception) -> None:
        self._fail(bug)

    def _fail(self, error: Exception) -> None:
        assert not self.ended
        assert self._error is None
        self._error = error
        self._news.set()

    def head(self, head: AnswerHead, length: int | None) -> None:
        assert not self.status
        self.status, self.headers, self.length = head.status, head.headers, length
        self._news.set()

    def body(self, data: bytes, last: bool) -> bool:
        assert self.status
        assert data or last
        assert not self.ended
        if data:
            self._chunks.append(data)
        self.ended = last
        self._paused = sum(map(len, self._chunks)) > READ_AHEAD_BYTES and not last
        self._news.set()
        return not self._paused

    # --- what a test awaits

    async def complete_head(self) -> Answer:
        while not self.status or self._error:
            await self._more()
        return self

    async def read(self) -> bytes:
        """What has come since the last call; nothing at the end. Raises `UpstreamGone`."""
        while not self._chunks and not self.ended:
            await self._more()
        data = b"".join(self._chunks)
        self._chunks.clear()
        if self._paused and self._link is not None:
            self._paused = False
            self._link.resume()
        return data

    async def _more(self) -> None:
        if self._error:
            raise self._error
        self._news.clear()
        await self._news.wait()

    def close(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
        if self._link is not None:
            self._link.release()
        self._link = self._opening = None


async def answered(answer: Answer) -> Answer:
    """With its head; closed where that does not come."""
    try:
        return await answer.complete_head()
    except BaseException:
        answer.close()
        raise


class World:
    """A client and a server; each connection is a `Line`."""

    def __init__(self) -> None:
        self.upstream = UpstreamPool(idle_s=60.0)  # what ends, ends for another reason
        self.port = 0
        self.lines: list[Line] = []
        self.connected = 0
        self.received = 0
        """Bytes that the client has taken from its sockets."""
        self._moved = asyncio.Event()
        self._new: asyncio.Queue[Line] = asyncio.Queue()

    def on_connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connected += 1
        line = Line(reader, writer)
        self.lines.append(line)
        self._new.put_nowait(line)

    async def accept(self) -> Line:
        return await soon(self._new.get())

    def on_received(self, size: int) -> None:
        self.received += size
        self._moved.set()

    async def until_received(self, size: int) -> None:
        while self.received < size:
            self._moved.clear()
            await soon(self._moved.wait())

    def ask(
        self, body: bytes = b"{}", *, method: str = "POST", last: bool = False, fresh: bool = False
    ) -> Answer:
        """`last`: llama-server is told to close. `fresh`: on a new connection."""
        request = asking(method, "/x?y=1", b"accept: */*\r\n", keep_alive=not last)
        return Answer(self.upstream, self.port, request, body, fresh=fresh)

    def send(self, body: bytes = b"{}", **how: Any) -> asyncio.Task[Answer]:
        return asyncio.ensure_future(answered(self.ask(body, **how)))

    async def exchange(self, data: bytes = SIZED, **how: Any) -> tuple[Line, Answer]:
        """A new connection, and the head of what is said there."""
        sending = self.send(**how)
        line = await self.accept()
        await line.answer(data)
        return line, await soon(sending)

    async def whole(self, data: bytes = SIZED, **how: Any) -> bytes:
        _, answer = await self.exchange(data, **how)
        try:
            return await body_of(answer)
        finally:
            answer.close()


async def body_of(answer: Answer) -> bytes:
    pieces = []
    while piece := await soon(answer.read()):
        pieces.append(piece)
    assert answer.ended
    assert await answer.read() == b"", "the end stays the end"
    return b"".join(pieces)


async def until_gone(answer: Answer) -> bytes:
    """What comes before `UpstreamGone`."""
    pieces = []
    with pytest.raises(UpstreamGone):
        while True:
            pieces.append(await soon(answer.read()))
            assert pieces[-1], "it ended as if it were whole"
    return b"".join(pieces)


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """Afterwards no connection is left, whatever the test did."""
    found = World()
    take: Callable[[Any, bytes], None] = UpstreamConnection.data_received

    def counted(connection: Any, data: bytes) -> None:
        take(connection, data)
        found.on_received(len(data))

    monkeypatch.setattr(UpstreamConnection, "data_received", counted)
    async with await asyncio.start_server(found.on_connect, "127.0.0.1", 0) as server:
        found.port = server.sockets[0].getsockname()[1]
        yield found
        found.upstream.close()
        await asyncio.gather(*(line.ended() for line in found.lines))
        for line in found.lines:
            line.hang_up()


# --- what is sent


async def test_a_request_is_what_llama_server_expects(world: World) -> None:
    for is_last, last in ((False, b""), (True, b"connection: close\r\n")):
        sending = world.send(b"body", last=is_last)
        line = await world.accept()
        asked = await line.answer(OK + b"Connection: close\r\nContent-Length: 0\r\n\r\n")
        (await sending).close()
        assert asked == (
            b"POST /x?y=1 HTTP/1.1\r\nhost: 127.0.0.1:%d\r\naccept: */*\r\n" % world.port
            + b"authorization: Bearer secret\r\ncontent-length: 4\r\n"
            + last
            + b"\r\nbody"
        )


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "DELETE"])
async def test_without_a_body_there_is_no_length(world: World, method: str) -> None:
    sending = world.send(b"", method=method)
    line = await world.accept()
    asked = await line.answer(OK + b"Content-Length: 0\r\n\r\n")
    (await sending).close()
    assert asked.startswith(method.encode())
    assert b"content-length" not in asked


async def test_an_empty_post_says_that_it_is_empty(world: World) -> None:
    sending = world.send(b"")
    line = await world.accept()
    assert b"content-length: 0\r\n" in await line.answer()
    (await sending).close()


async def test_a_large_body_arrives_whole(world: World) -> None:
    body = bytes(range(256)) * (10 * MB // 256)
    sending = world.send(body)
    line = await world.accept()
    assert (await line.answer()).partition(b"\r\n\r\n")[2] == body
    answer = await soon(sending)
    assert await body_of(answer) == b"hi"
    answer.close()


async def test_an_answer_may_come_while_the_body_is_still_being_sent(world: World) -> None:
    """Nothing else may be said on that connection: what follows would be taken for the rest of the body."""
    sending = world.send(bytes(20 * MB))
    line = await world.accept()
    await line.head()
    line.say(b"HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\n\r\nlarge")
    answer = await soon(sending)
    assert (answer.status, await body_of(answer)) == (413, b"large")
    answer.close()
    await line.ended()
    assert await world.whole() == b"hi"
    assert world.connected == 2


# --- what comes back

WHOLE = [
    (SIZED, b"hi"),
    (CHUNKED, b"abcdefg"),
    (OK + b"Content-Length: 0\r\n\r\n", b""),
    (OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b""),
    (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", b""),
    (b"HTTP/1.1 100 Continue\r\n\r\n" + CHUNKED, b"abcdefg"),
    (
        b"HTTP/1.1 103 Early Hints\r\nContent-Length: 9\r\nLink: x\r\n\r\nHTTP/1.1 102 Wait\r\n\r\n" + SIZED,
        b"hi",
    ),
]


@pytest.mark.parametrize(("data", "body"), WHOLE)
@pytest.mark.parametrize("last", [False, True])
async def test_an_answer_is_read_to_its_end(world: World, data: bytes, body: bytes, last: bool) -> None:
    assert await world.whole(data, last=last) == body


@pytest.mark.parametrize(("data", "body"), WHOLE)
async def test_it_does_not_matter_where_an_answer_is_cut_in_two(
    world: World, data: bytes, body: bytes
) -> None:
    for cut in range(1, len(data)):
        sending, before = world.send(last=True), world.received
        line = await world.accept()
        await line.answer(data[:cut])
        await world.until_received(before + cut)
        line.say(data[cut:])
        answer = await soon(sending)
        assert await body_of(answer) == body, cut
        answer.close()
        await line.ended()


async def test_an_answer_may_come_byte_by_byte(world: World) -> None:
    sending = world.send()
    line = await world.accept()
    await line.asked()
    for sent, byte in enumerate(CHUNKED, 1):
        line.say(bytes([byte]))
        await world.until_received(sent)
    answer = await soon(sending)
    assert await body_of(answer) == b"abcdefg"
    answer.close()


async def test_without_a_length_the_body_ends_with_the_connection(world: World) -> None:
    line, answer = await world.exchange(OK + b"Content-Type: text/plain\r\n\r\nabc")
    assert await soon(answer.read()) == b"abc"
    line.say(b"def")
    assert await soon(answer.read()) == b"def"
    line.hang_up()
    assert await body_of(answer) == b""
    answer.close()


async def test_what_an_interim_answer_said_is_not_said_of_the_real_one(world: World) -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nContent-Type: text/hints\r\nContent-Length: 9\r\n\r\n"
    line, answer = await world.exchange(interim + OK + b"X-Real: 1\r\n\r\nabc")
    assert (answer.status, answer.headers, answer.content_type) == (200, [(b"x-real", b"1")], b"")
    line.hang_up()
    assert await body_of(answer) == b"abc", "it has no length, so it ends with the connection"
    answer.close()


async def test_head_has_the_length_of_a_body_that_does_not_come(world: World) -> None:
    for data in (OK + b"Content-Length: 5\r\n\r\n", OK + b"Transfer-Encoding: chunked\r\n\r\n", OK + b"\r\n"):
        line, answer = await world.exchange(data, body=b"", method="HEAD")
        assert answer.ended
        assert await body_of(answer) == b""
        answer.close()
        await line.ended()


async def test_headers_are_as_they_came_with_names_in_lower_case(world: World) -> None:
    data = (
        OK
        + b"Content-Type: Text/Plain\r\nX-Empty:\r\nX-TWICE: a\r\nx-twice:  b \r\nContent-Length: 0\r\n\r\n"
    )
    _, answer = await world.exchange(data)
    assert answer.headers == [
        (b"content-type", b"Text/Plain"),
        (b"x-empty", b""),
        (b"x-twice", b"a"),
        (b"x-twice", b"b "),
    ]
    assert answer.length == 0, "it is told apart"
    assert (answer.status, answer.content_type) == (200, b"Text/Plain")
    answer.close()


async def test_a_trailer_is_no_header(world: World) -> None:
    trailer = b"0\r\nContent-Type: x/y\r\nX-Other: 1\r\n\r\n"
    _, answer = await world.exchange(OK + b"Transfer-Encoding: chunked\r\n\r\n" + trailer)
    assert await body_of(answer) == b""
    assert (answer.headers, answer.content_type) == ([(b"transfer-encoding", b"chunked")], b"")
    answer.close()


# --- what does not come


@pytest.mark.parametrize("said", [b"", OK[:5], OK, SIZED[:30], b"HTTP/1.1 100 Continue\r\n\r\n"])
@pytest.mark.parametrize("leave", [Line.hang_up, Line.reset])
async def test_a_connection_that_ends_before_the_head_is_complete(
    world: World, said: bytes, leave: Callable[[Line], None]
) -> None:
    sending = world.send()
    line = await world.accept()
    await line.answer(said)
    await world.until_received(len(said))
    leave(line)
    with pytest.raises(UpstreamGone):
        await soon(sending)
    assert world.connected == 1, "it was a fresh connection: trying again is not our business"


@pytest.mark.parametrize(
    ("said", "body"),
    [
        (OK + b"Content-Length: 3\r\n\r\nab", b"ab"),
        (OK + b"Content-Length: 3\r\n\r\n", b""),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nab", b"ab"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab", b"ab"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n", b"ab"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n", b"ab"),
    ],
)
@pytest.mark.parametrize("leave", [Line.hang_up, Line.reset])
async def test_a_body_that_is_cut_off_is_never_taken_for_a_whole_one(
    world: World, said: bytes, body: bytes, leave: Callable[[Line], None]
) -> None:
    line, answer = await world.exchange(said)
    await world.until_received(len(said))
    leave(line)
    assert await until_gone(answer) == body
    answer.close()


async def test_an_answer_that_broke_off_before_any_of_it_was_read_can_be_asked_for_again(
    world: World,
) -> None:
    with pytest.raises(UpstreamGone):
        await world.exchange(OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\nnonsense\r\n")


async def test_a_body_without_length_is_not_whole_when_the_connection_breaks(world: World) -> None:
    line, answer = await world.exchange(OK + b"\r\nabc")
    assert await soon(answer.read()) == b"abc"
    line.reset()
    assert await until_gone(answer) == b""
    answer.close()


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/9.9 200 OK\r\n\r\n",
        b"HTTP/1.1 xyz OK\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\nabc",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nabc",
        OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nhi",
        OK + b"Content-Length: -2\r\n\r\nhi",
        OK + b"X: a\r\n b\r\n\r\n",
        OK + b"X: a\nInjected: b\r\n\r\n",
        OK + b"X: a\x00b\r\n\r\n",
    ],
)
async def test_what_is_no_http_ends_the_connection(world: World, garbage: bytes) -> None:
    sending = world.send()
    line = await world.accept()
    await line.answer(garbage)
    with pytest.raises(UpstreamGone, match="not HTTP"):
        await soon(sending)
    await line.ended()


async def test_a_head_that_does_not_end_is_cut_off(world: World) -> None:
    sending = world.send()
    line = await world.accept()
    await line.asked()
    line.say(OK)
    while not sending.done() and world.received < 10 * MAX_HEAD_BYTES:
        line.say(b"X: %s\r\n" % (b"a" * 1000))
        await asyncio.sleep(0)
    with pytest.raises(UpstreamGone, match="do not end"):
        await soon(sending)
    assert world.received <= MAX_HEAD_BYTES + RECV_BYTES
    await line.ended()


async def test_nobody_listens(world: World) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(UpstreamGone):
            await soon(answered(Answer(world.upstream, unused.getsockname()[1], LAST)))


@pytest.mark.parametrize("first", [b"", SIZED, b"nonsense"])
async def test_a_server_that_does_not_wait_for_the_question(first: bytes) -> None:
    """Whatever it says and when it leaves: there is an answer or `UpstreamGone`, and nothing hangs."""
    upstream = UpstreamPool()

    def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        for _ in range(50):
            with contextlib.suppress(UpstreamGone):
                (await soon(answered(Answer(upstream, port, LAST)))).close()
    upstream.close()


# --- connections that are kept


async def test_short_answers_share_a_connection(world: World) -> None:
    line, answer = await world.exchange()
    assert await body_of(answer) == b"hi"
    answer.close()
    answer.close()  # twice is once
    for _ in range(3):
        sending = world.send()
        await line.answer()
        answer = await soon(sending)
        assert await body_of(answer) == b"hi"
        answer.close()
    assert world.connected == 1


async def test_two_at_a_time_need_two_connections(world: World) -> None:
    first, second = await world.exchange(), await world.exchange()
    for _, answer in (first, second):
        assert await body_of(answer) == b"hi"
        answer.close()
    answers = [world.send(), world.send()]
    await asyncio.gather(first[0].answer(), second[0].answer())
    for sending in answers:
        (await soon(sending)).close()
    assert world.connected == 2


@pytest.mark.parametrize(
    ("data", "how"),
    [
        (CHUNKED, {}),  # llama-server closes after a stream although it promises not to
        (OK + b"Connection: close\r\nContent-Length: 2\r\n\r\nhi", {}),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", {}),
        (b"HTTP/1.1 204 No Content\r\n\r\n", {}),
        (SIZED + b"x", {}),
        (SIZED + SIZED, {}),
        (SIZED, {"last": True}),  # it was told to close
        (OK + b"Content-Length: 0\r\n\r\n", {"method": "HEAD", "body": b""}),
    ],
)
async def test_a_connection_that_may_not_be_used_again_is_closed(
    world: World, data: bytes, how: dict[str, Any]
) -> None:
    line, answer = await world.exchange(data, **how)
    await body_of(answer)
    answer.close()
    await line.ended()
    assert await world.whole() == b"hi"
    assert world.connected == 2


@pytest.mark.parametrize("how", [{"last": True}, {"method": "GET", "body": b""}])
async def test_every_request_takes_a_kept_connection(world: World, how: dict[str, Any]) -> None:
    line, answer = await world.exchange()
    answer.close()
    sending = world.send(**how)
    await line.answer()
    assert await body_of(await soon(sending)) == b"hi"
    sending.result().close()
    assert world.connected == 1


async def test_an_answer_ends_where_it_said_that_it_would(world: World) -> None:
    """A second answer behind it is neither its body nor its status, and nobody else's either."""
    more = b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\nContent-Type: x/y\r\n\r\nother"
    line, answer = await world.exchange(SIZED + more)
    assert (answer.status, answer.content_type, await body_of(answer)) == (200, b"", b"hi")
    answer.close()
    await line.ended()


async def test_what_comes_on_an_idle_connection_is_nobodys_answer(world: World) -> None:
    line, answer = await world.exchange()
    await body_of(answer)
    answer.close()
    line.say(SIZED)
    await line.ended()
    assert await world.whole(OK + b"Content-Length: 5\r\n\r\nother") == b"other"
    assert world.connected == 2


@pytest.mark.parametrize("leave", [Line.hang_up, Line.reset])
@pytest.mark.parametrize("said", [b"", b"H", b"HTTP/1.1 100 Continue\r\n\r\n", b"nonsense"])
@pytest.mark.parametrize("kept", [True, False])
async def test_only_a_kept_connection_that_ends_without_a_byte_is_stale(
    world: World, leave: Callable[[Line], None], said: bytes, kept: bool
) -> None:
    """Then it says nothing of the process, and the request can be sent again."""
    line, answer = await world.exchange()
    if kept:
        answer.close()
    before, sending = world.received, world.send()
    if not kept:
        line = await world.accept()
    await line.answer(said)
    await world.until_received(before + len(said))
    leave(line)
    with pytest.raises(UpstreamGone) as gone:
        await soon(sending)
    assert gone.value.stale == (kept and not said)
    answer.close()


async def test_a_fresh_connection_is_no_kept_one(world: World) -> None:
    lines = [await world.exchange() for _ in range(3)]
    for _, answer in lines:
        answer.close()
    sending = world.send(fresh=True)
    await (await world.accept()).answer()
    (await soon(sending)).close()
    assert (sending.result().is_fresh, world.connected) == (True, 4)


# --- connections ahead


async def opened_ahead(world: World, wanted: int) -> list[Line]:
    world.upstream.open_ahead(world.port, wanted)
    lines = [await world.accept() for _ in range(wanted)]
    while world.port in world.upstream._opening:  # noqa: ASYNC110 - nobody tells of it
        await asyncio.sleep(0)
    return lines


async def test_who_waits_takes_a_connection_that_was_opened_ahead(world: World) -> None:
    lines = await opened_ahead(world, 2)
    sending = [world.send(last=True) for _ in lines]
    for line in lines:
        await line.answer()
    for each in sending:
        answer = await soon(each)
        assert (await body_of(answer), answer.is_fresh) == (b"hi", False)
        answer.close()
    assert world.connected == 2


async def test_what_is_being_opened_ahead_goes_to_who_comes_first(world: World) -> None:
    world.upstream.open_ahead(world.port, 1)
    asked = world.ask(last=True)
    assert isinstance(asked._opening, Opening)
    await (await world.accept()).answer()
    assert await body_of(await asked.complete_head()) == b"hi"
    assert world.connected == 1
    asked.close()


async def test_who_comes_next_is_not_left_with_a_connection_that_was_given_up(world: World) -> None:
    """The slot of who leaves goes to the next one in the same turn, while the connection is still there."""
    left = world.ask(last=True)
    left.close()
    asked = world.ask(last=True)
    await (await world.accept()).answer()
    assert await body_of(await soon(asked.complete_head())) == b"hi"
    asked.close()


async def test_no_more_is_opened_ahead_than_is_wanted_and_allowed(world: World) -> None:
    await opened_ahead(world, 2)
    world.upstream.open_ahead(world.port, 2)
    world.upstream.open_ahead(world.port, 100)
    assert len(world.upstream._opening[world.port]) == MAX_AHEAD - 2
    world.upstream.close()
    assert world.upstream._idle == {}


async def test_nobody_hears_of_a_connection_ahead_that_cannot_be_opened(world: World) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        world.upstream.open_ahead(unused.getsockname()[1], 1)
        while world.upstream._opening:  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0)
    assert world.upstream._idle == {}


async def test_who_hung_up_while_idle_is_forgotten(world: World) -> None:
    line, answer = await world.exchange()
    answer.close()
    (kept,) = world.upstream._idle[world.port]
    line.hang_up()
    while not kept.is_closing:  # noqa: ASYNC110 - nobody tells of it
        await asyncio.sleep(0)
    assert await world.whole() == b"hi"
    assert world.upstream._idle[world.port] != [kept]


async def test_idle_connections_are_dropped_in_time(world: World) -> None:
    world.upstream.idle_s = 0.05
    for _ in range(2):  # the sweeper stops when there is nothing, and starts again
        lines = [await world.exchange() for _ in range(3)]
        for _, answer in lines:
            await body_of(answer)
            answer.close()
        world.upstream._idle[world.port][-1].idle_since += 0.03  # one sweep is not enough
        await asyncio.gather(*(line.ended() for line, _ in lines))
        assert world.upstream._idle == {}
        assert world.upstream._sweep_alarm.at is None


async def test_those_in_use_and_those_just_used_stay(world: World) -> None:
    line, answer = await world.exchange()
    answer.close()
    working = world.send()
    await line.asked()
    other, second = await world.exchange()
    second.close()
    world.upstream._sweep()
    line.say(SIZED)
    (await soon(working)).close()
    both = [world.send(), world.send()]
    await asyncio.gather(line.answer(), other.answer())
    for sending in both:
        (await soon(sending)).close()
    assert world.connected == 2


async def test_closing_closes_what_is_kept_and_keeps_nothing_more(world: World) -> None:
    kept, answer = await world.exchange()
    late, other = await world.exchange()
    answer.close()
    world.upstream.close()
    await kept.ended()
    assert await body_of(other) == b"hi", "it may finish"
    other.close()
    await late.ended()


# --- readers that leave, and readers that are slow


@pytest.mark.parametrize("said", [b"", b"2", b"2\r\nab\r\n"])
async def test_an_answer_that_is_left_ends_its_connection(world: World, said: bytes) -> None:
    line, answer = await world.exchange(OK + b"Transfer-Encoding: chunked\r\n\r\n" + said)
    answer.close()
    await line.ended()


async def test_a_whole_answer_that_nobody_read_does_not_block_its_connection(world: World) -> None:
    """Reading was paused in the middle of it."""
    length = READ_AHEAD_BYTES + 2
    head = OK + b"Content-Length: %d\r\n\r\n" % length
    line, answer = await world.exchange(head + bytes(length - 1))
    while not answer._paused:
        await world.until_received(world.received + 1)
    await answer.read()
    line.say(b"x")
    await body_of(answer)
    answer.close()
    sending = world.send()
    await line.answer()
    assert await body_of(await soon(sending)) == b"hi"
    sending.result().close()


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_slow_reader_stops_llama_server(world: World, chunked: bool) -> None:
    """Nothing is lost, and what waits here is bounded."""
    body = bytes(range(256)) * (10 * MB // 256)
    if chunked:
        said = OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"
    else:
        said = OK + b"Content-Length: %d\r\n\r\n" % len(body) + body
    _, answer = await world.exchange(said)
    pieces, pauses = [], 0
    while not answer.ended:
        while not answer._paused and not answer.ended:
            await world.until_received(world.received + 1)
        pauses += answer._paused
        for _ in range(3):  # the loop turns and nothing more comes in
            before = world.received
            await asyncio.sleep(0)
            assert not answer._paused or world.received == before
        pieces.append(await answer.read())
        assert len(pieces[-1]) <= READ_AHEAD_BYTES + RECV_BYTES
    pieces.append(await body_of(answer))
    assert b"".join(pieces) == body
    assert pauses > 10
    answer.close()


async def test_who_stays_paused_can_leave(world: World) -> None:
    line, answer = await world.exchange(OK + b"Content-Length: %d\r\n\r\n" % (10 * MB) + bytes(10 * MB))
    while not answer._paused:
        await world.until_received(world.received + 1)
    answer.close()
    await line.ended()


# --- cancellation


async def test_cancelled_while_it_waits_for_the_head(world: World) -> None:
    for kept in (False, True):
        if kept:
            line, answer = await world.exchange()
            answer.close()
        sending = world.send()
        line = line if kept else await world.accept()
        await line.asked()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(sending)
        await line.ended()
    assert world.connected == 2, "a cancelled request is not sent again"


async def test_cancelled_while_it_reads(world: World) -> None:
    line, answer = await world.exchange(OK + b"Content-Length: 3\r\n\r\nab")
    assert await soon(answer.read()) == b"ab"
    reading = asyncio.ensure_future(answer.read())
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await soon(reading)
    line.say(b"c")
    assert await body_of(answer) == b"c", "what was cancelled was the waiting"
    answer.close()


async def test_cancelled_in_the_moment_in_which_the_head_comes(world: World) -> None:
    sending = world.send()
    line = await world.accept()
    await line.answer()
    await world.until_received(len(SIZED))
    sending.cancel()
    await asyncio.wait([sending])
    if not sending.cancelled():  # it was faster
        sending.result().close()
    else:
        await line.ended()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts sockets, and fills Linux's backlog")
async def test_cancelled_while_it_connects() -> None:
    upstream = UpstreamPool()
    with socket.socket() as silent, contextlib.ExitStack() as callers:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        for _ in range(3):  # what does not fit into the backlog is not answered
            caller = callers.enter_context(socket.socket())
            caller.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                caller.connect(silent.getsockname())
        before = _open_sockets()
        sending = asyncio.ensure_future(answered(Answer(upstream, silent.getsockname()[1], LAST)))
        while _open_sockets() == before:  # noqa: ASYNC110 - its socket
            await asyncio.sleep(0)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(sending)
        while _open_sockets() != before:  # noqa: ASYNC110 - uvloop closes in one of the loop's next turns
            await asyncio.sleep(0)
    upstream.close()


def _open_sockets() -> int:
    found = 0
    for file in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the listing's own
            found += str(file.readlink()).startswith("socket:")
    return found


@pytest.mark.parametrize("said", [b"", OK, SIZED[:-1]], ids=["nothing", "head", "body"])
async def test_who_is_left_in_the_middle_of_an_answer_is_not_told(world: World, said: bytes) -> None:
    line, answer = await world.exchange()
    answer.close()
    before, asked = world.received, world.ask()
    await line.answer(said)
    await world.until_received(before + len(said))
    asked.close()
    await line.ended()
    assert asked._error is None
