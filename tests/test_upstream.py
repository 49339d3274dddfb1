"""The data path's client, against a server that says exactly the bytes a test gives it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from app.proxy import upstream as module
from app.proxy.upstream import MAX_HEAD_BYTES, READ_AHEAD_BYTES, Answer, Request, Upstream, UpstreamGone
from tests.serving import loops, soon

pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy. fixture is deprecated")

MB = 2**20
OK = b"HTTP/1.1 200 OK\r\n"
SIZED = OK + b"Content-Length: 2\r\n\r\nhi"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\nX-Trailer: 1\r\n\r\n"
RECV_BYTES = 256 * 1024
"""The most that one read from a socket gives."""


@pytest.fixture(params=loops())
def event_loop_policy(request: pytest.FixtureRequest) -> Any:
    return request.param()


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


class World:
    """A client and a server; each connection is a `Line`."""

    def __init__(self) -> None:
        self.upstream = Upstream()
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

    def send(self, body: bytes = b"{}", *, method: str = "POST", fresh: bool = False) -> asyncio.Task[Answer]:
        sending = self.upstream.send(Request(method, "/x?y=1", b"accept: */*\r\n", body, fresh), self.port)
        return asyncio.ensure_future(sending)

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
    take: Callable[[Any, bytes], None] = module._Connection.data_received

    def counted(connection: Any, data: bytes) -> None:
        take(connection, data)
        found.on_received(len(data))

    monkeypatch.setattr(module._Connection, "data_received", counted)
    monkeypatch.setattr(module, "IDLE_CONNECTION_S", 60.0)  # what ends, ends for another reason
    async with await asyncio.start_server(found.on_connect, "127.0.0.1", 0) as server:
        found.port = server.sockets[0].getsockname()[1]
        yield found
        await found.upstream.close()
        await asyncio.gather(*(line.ended() for line in found.lines))
        for line in found.lines:
            line.hang_up()


# --- what is sent


async def test_a_request_is_what_llama_server_expects(world: World) -> None:
    for fresh, last in ((False, b""), (True, b"connection: close\r\n")):
        sending = world.send(b"body", fresh=fresh)
        line = await world.accept()
        asked = await line.answer(OK + b"Connection: close\r\nContent-Length: 0\r\n\r\n")
        (await sending).close()
        assert asked == (
            b"POST /x?y=1 HTTP/1.1\r\nhost: 127.0.0.1:%d\r\naccept: */*\r\ncontent-length: 4\r\n" % world.port
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
@pytest.mark.parametrize("fresh", [False, True])
async def test_an_answer_is_read_to_its_end(world: World, data: bytes, body: bytes, fresh: bool) -> None:
    assert await world.whole(data, fresh=fresh) == body


@pytest.mark.parametrize(("data", "body"), WHOLE)
async def test_it_does_not_matter_where_an_answer_is_cut_in_two(
    world: World, data: bytes, body: bytes
) -> None:
    for cut in range(1, len(data)):
        sending, before = world.send(fresh=True), world.received
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
        (b"content-length", b"0"),
    ]
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
            await soon(world.upstream.send(Request("POST", "/", b"", b"", True), unused.getsockname()[1]))


@pytest.mark.parametrize("first", [b"", SIZED, b"nonsense"])
async def test_a_server_that_does_not_wait_for_the_question(first: bytes) -> None:
    """Whatever it says and when it leaves: there is an answer or `UpstreamGone`, and nothing hangs."""
    upstream = Upstream()

    def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        for _ in range(50):
            with contextlib.suppress(UpstreamGone):
                (await soon(upstream.send(Request("POST", "/", b"", b"{}", False), port))).close()
    await upstream.close()


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
        (SIZED, {"fresh": True}),  # it was told to close
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


@pytest.mark.parametrize("how", [{"fresh": True}, {"method": "GET", "body": b""}])
async def test_only_short_posts_take_a_kept_connection(world: World, how: dict[str, Any]) -> None:
    await world.whole()
    await world.whole(**how)
    assert world.connected == 2


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
async def test_a_kept_connection_that_was_closed_is_replaced(
    world: World, leave: Callable[[Line], None]
) -> None:
    line, answer = await world.exchange()
    answer.close()
    sending = world.send(b"once more")
    await line.asked()
    leave(line)
    again = await world.accept()
    assert (await again.answer()).endswith(b"once more")
    answer = await soon(sending)
    assert await body_of(answer) == b"hi"
    answer.close()
    assert world.connected == 2


async def test_it_is_replaced_once_and_not_by_another_kept_one(world: World) -> None:
    lines = [await world.exchange() for _ in range(3)]
    for _, answer in lines:
        answer.close()
    sending = world.send()
    await lines[-1][0].asked()
    lines[-1][0].hang_up()
    fresh = await world.accept()
    await fresh.asked()
    fresh.hang_up()
    with pytest.raises(UpstreamGone):
        await soon(sending)
    assert world.connected == 4


@pytest.mark.parametrize("said", [b"H", b"HTTP/1.1 100 Continue\r\n\r\n", b"nonsense"])
async def test_what_has_had_a_byte_of_an_answer_is_not_sent_again(world: World, said: bytes) -> None:
    line, answer = await world.exchange()
    answer.close()
    before = world.received
    sending = world.send()
    await line.answer(said)
    await world.until_received(before + len(said))
    line.hang_up()
    with pytest.raises(UpstreamGone):
        await soon(sending)
    assert world.connected == 1


async def test_who_hung_up_while_idle_is_forgotten(world: World) -> None:
    line, answer = await world.exchange()
    answer.close()
    (kept,) = world.upstream._idle[world.port]
    line.hang_up()
    while not kept.is_closing:  # noqa: ASYNC110 - nobody tells of it
        await asyncio.sleep(0)
    assert await world.whole() == b"hi"
    assert world.upstream._idle[world.port] != [kept]


async def test_idle_connections_are_dropped_in_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_CONNECTION_S", 0.05)
    for _ in range(2):  # the sweeper stops when there is nothing, and starts again
        lines = [await world.exchange() for _ in range(3)]
        for _, answer in lines:
            await body_of(answer)
            answer.close()
        world.upstream._idle[world.port][-1].idle_since += 0.03  # one sweep is not enough
        await asyncio.gather(*(line.ended() for line, _ in lines))
        assert world.upstream._idle == {}
        assert world.upstream._sweeper is None


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
    await world.upstream.close()
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
    """So much of it waits that reading is paused: the next answer would never be seen."""
    length = READ_AHEAD_BYTES + 1
    head = OK + b"Content-Length: %d\r\n\r\n" % length
    line, answer = await world.exchange(head + bytes(length - 1))
    await world.until_received(len(head) + length - 1)
    line.say(b"x")
    await world.until_received(len(head) + length)
    assert answer.ended
    answer.close()
    assert await world.whole() == b"hi"


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
    upstream = Upstream()
    with socket.socket() as deaf, contextlib.ExitStack() as callers:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for _ in range(3):  # what does not fit into the backlog is not answered
            caller = callers.enter_context(socket.socket())
            caller.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                caller.connect(deaf.getsockname())
        before = _open_sockets()
        sending = asyncio.ensure_future(
            upstream.send(Request("POST", "/", b"", b"", True), deaf.getsockname()[1])
        )
        while _open_sockets() == before:  # noqa: ASYNC110 - its socket
            await asyncio.sleep(0)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(sending)
        while _open_sockets() != before:  # noqa: ASYNC110 - uvloop closes in one of the loop's next turns
            await asyncio.sleep(0)
    await upstream.close()


def _open_sockets() -> int:
    found = 0
    for file in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the listing's own
            found += str(file.readlink()).startswith("socket:")
    return found


# --- a sink instead of a reader


def chunk_of(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


HEAD = OK + b"Transfer-Encoding: chunked\r\n\r\n"


class Sink:
    """Takes so many pieces, then no more."""

    def __init__(self, pieces: int = 1000) -> None:
        self.taken: list[bytes] = []
        self._pieces = pieces
        self._moved = asyncio.Event()

    def __call__(self, data: bytes) -> bool:
        if len(self.taken) == self._pieces:
            return False
        self.taken.append(data)
        self._moved.set()
        return True

    async def has(self, count: int) -> None:
        while len(self.taken) < count:
            self._moved.clear()
            await soon(self._moved.wait())


async def pouring(answer: Answer, sink: Sink) -> asyncio.Task[bytes]:
    reading = asyncio.ensure_future(answer.read(sink))
    await asyncio.sleep(0)  # it has begun to wait
    return reading


async def test_a_sink_is_given_what_comes_and_the_reader_the_last_piece(world: World) -> None:
    line, answer = await world.exchange(HEAD, fresh=True)
    sink = Sink()
    reading = await pouring(answer, sink)
    for count, piece in enumerate((b"one", b"two", b"three"), 1):
        line.say(chunk_of(piece))
        await sink.has(count)
    assert not reading.done()
    line.say(chunk_of(b"last") + b"0\r\n\r\n")
    assert await soon(reading) == b"last"
    assert (sink.taken, answer.ended) == ([b"one", b"two", b"three"], True)
    answer.close()


async def test_what_a_sink_refuses_is_read_and_so_is_what_follows(world: World) -> None:
    line, answer = await world.exchange(HEAD, fresh=True)
    sink = Sink(pieces=1)
    reading = await pouring(answer, sink)
    line.say(chunk_of(b"one"))
    await sink.has(1)
    line.say(chunk_of(b"two"))
    assert await soon(reading) == b"two"
    line.say(chunk_of(b"three"))
    assert await soon(answer.read()) == b"three"
    assert sink.taken == [b"one"]
    answer.close()


async def test_a_sink_is_not_used_when_nobody_reads(world: World) -> None:
    """Else a piece could overtake the one that the reader still holds."""
    line, answer = await world.exchange(HEAD, fresh=True)
    sink = Sink(pieces=0)
    reading = await pouring(answer, sink)
    line.say(chunk_of(b"one"))
    assert await soon(reading) == b"one"
    sink._pieces = 1000
    before = world.received
    line.say(chunk_of(b"two"))
    await world.until_received(before + len(chunk_of(b"two")))
    assert sink.taken == []
    assert await soon(answer.read(sink)) == b"two"
    answer.close()


async def test_more_than_may_be_read_ahead_does_not_stop_a_sink(world: World) -> None:
    line, answer = await world.exchange(HEAD, fresh=True)
    sink, whole = Sink(), b""
    line.say(chunk_of(b"x" * MB) + chunk_of(b"y" * MB) + b"0\r\n\r\n")
    while piece := await soon(answer.read(sink)):
        whole += b"".join(sink.taken) + piece
        sink.taken.clear()
    assert whole == b"x" * MB + b"y" * MB
    answer.close()


async def test_a_sinks_answer_may_be_cut(world: World) -> None:
    line, answer = await world.exchange(HEAD, fresh=True)
    sink = Sink()
    reading = await pouring(answer, sink)
    line.say(chunk_of(b"one"))
    await sink.has(1)
    line.hang_up()
    with pytest.raises(UpstreamGone):
        await soon(reading)
    answer.close()


async def test_a_reader_that_is_cancelled_takes_its_sink_along(world: World) -> None:
    line, answer = await world.exchange(HEAD, fresh=True)
    sink = Sink()
    reading = await pouring(answer, sink)
    line.say(chunk_of(b"one"))
    await sink.has(1)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    line.say(chunk_of(b"two"))
    assert await soon(answer.read()) == b"two"
    assert sink.taken == [b"one"]
    answer.close()


# --- without a task


async def warm(world: World) -> Line:
    """A kept connection."""
    line, answer = await world.exchange()
    assert await body_of(answer) == b"hi"
    answer.close()
    return line


def ask(world: World, *, method: str = "POST", fresh: bool = False) -> Answer | None:
    return world.upstream.ask(Request(method, "/x", b"", b"{}", fresh), world.port)


class News:
    """What an answer says when it has news, as whoever has no task looks at it."""

    def __init__(self, answer: Answer | None) -> None:
        assert answer is not None
        self.answer = answer
        self.told = 0
        self._told = asyncio.Event()
        answer.on_news = self._on_news

    def _on_news(self) -> None:
        self.told += 1
        self._told.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._told.clear()
            await soon(self._told.wait())


async def test_only_a_short_post_is_asked_at_once_and_only_on_a_kept_connection(world: World) -> None:
    assert ask(world) is None
    await warm(world)
    assert ask(world, fresh=True) is None
    assert ask(world, method="GET") is None
    answer = ask(world)
    assert answer is not None
    assert ask(world) is None, "it has one question at a time"
    assert world.connected == 1
    answer.close()


async def test_news_of_a_whole_answer_needs_no_task(world: World) -> None:
    line = await warm(world)
    for data, body in ((SIZED, b"hi"), (CHUNKED, b"abcdefg")):
        news = News(ask(world))
        answer = news.answer
        assert (answer.ended, answer.needs_reader, answer.untouched) == (False, False, True)
        await line.answer(data[:-3])
        await news.until(lambda answer=answer: not answer.untouched)  # type: ignore[misc]
        assert (answer.ended, answer.needs_reader) == (False, False)
        line.say(data[-3:])
        await news.until(lambda answer=answer: answer.ended)  # type: ignore[misc]
        assert not answer.needs_reader
        assert answer.has_some
        assert (answer.take(), answer.take(), answer.has_some) == (body, b"", False)
        answer.close()
    assert world.connected == 1


@pytest.mark.parametrize(
    "said",
    [OK + b"\r\n", OK + b"Content-Length: 99999999\r\n\r\n" + b"x" * 2 * READ_AHEAD_BYTES, b"HELLO\r\n"],
)
async def test_what_is_endless_long_or_broken_needs_a_reader(world: World, said: bytes) -> None:
    line = await warm(world)
    news = News(ask(world))
    await line.answer(said)
    await news.until(lambda: news.answer.needs_reader)
    assert not news.answer.ended
    news.answer.close()
    await line.ended()


async def test_the_loss_of_its_connection_is_news(world: World) -> None:
    line = await warm(world)
    news = News(ask(world))
    await line.asked()
    line.hang_up()
    await news.until(lambda: news.answer.needs_reader)
    assert (news.answer.untouched, news.answer.ended) == (True, False)
    asked, news.answer.on_news = news.answer, None
    sending = asyncio.ensure_future(
        world.upstream.send(Request("POST", "/x", b"", b"{}", False), world.port, asked)
    )
    await (await world.accept()).answer()
    answer = await soon(sending)
    assert await body_of(answer) == b"hi"
    answer.close()


async def test_who_takes_over_reads_all_that_has_come(world: World) -> None:
    line = await warm(world)
    news = News(ask(world))
    await line.answer(SIZED[:-1])
    await news.until(lambda: news.answer.has_some)
    asked, news.answer.on_news = news.answer, None
    answer = await soon(world.upstream.send(Request("POST", "/x", b"", b"{}", False), world.port, asked))
    line.say(SIZED[-1:])
    assert await body_of(answer) == b"hi"
    answer.close()
    kept = ask(world)
    assert kept is not None
    kept.close()


@pytest.mark.parametrize("said", [b"", OK, SIZED[:-1]], ids=["nothing", "head", "body"])
async def test_what_is_cut_cannot_be_asked_for_again(world: World, said: bytes) -> None:
    line = await warm(world)
    news = News(ask(world))
    await line.asked()
    line.say(said)
    if said:
        await news.until(lambda: not news.answer.untouched)
    told = news.told
    news.answer.cut("because")
    assert news.told == told + 1
    assert news.answer.needs_reader
    asked, news.answer.on_news = news.answer, None
    with pytest.raises(UpstreamGone, match="because"):
        await soon(world.upstream.send(Request("POST", "/x", b"", b"{}", False), world.port, asked))
    await line.ended()
    assert world.connected == 1


async def test_a_reader_hears_that_it_is_cut(world: World) -> None:
    line = await warm(world)
    answer = ask(world)
    assert answer is not None
    waiting = asyncio.ensure_future(answer.head())
    await line.asked()
    answer.cut("because")
    with pytest.raises(UpstreamGone, match="because"):
        await soon(waiting)
    answer.close()
