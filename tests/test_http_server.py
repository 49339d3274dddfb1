"""The whole way of a request on real sockets: the production protocol in front, scripted bytes behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import re
import socket
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from app.access.size_limits import MAX_HEADER_BYTES
from app.configuration.file import parse
from app.domain.events import Outcome
from app.domain.status import StopReason
from app.domain.units import MIB
from app.proxy import gateway, receive_buffer, reply_head, request_head, upstream_connection
from app.proxy import request_parameters as proxied
from app.proxy.answer_reader import AnswerReader
from app.proxy.connection_state import ConnectionState
from app.proxy.loop_turns import (
    LARGE_BODY_BYTES,
    LARGE_BODY_COST,
    LARGE_HEAD_COST,
    MODEL_COST,
    PART_COST,
    READ_COST,
    TURN_COST,
)
from app.proxy.preparation import Accepted
from app.proxy.receive_buffer import MAX_AHEAD_BYTES, ReceiveBuffer
from app.proxy.request_head import MAX_KNOWN_BYTES, MAX_KNOWN_HEADS, HeadLines, RequestHead
from app.proxy.request_memory_limit import STRANGERS_PART
from app.proxy.request_reader import MAX_HEAD_BYTES, BodyPart, RequestReader
from app.proxy.timeouts_and_heartbeats import CUT_AFTER_S
from app.uvicorn_server import GC_THRESHOLDS, freeze_garbage_collection
from tests.event_loops import on_both_loops
from tests.proxy_environment import (
    ANSWER,
    CHAT,
    STREAM,
    USAGE,
    MakeRouter,
    Router,
    make_router,
    request,
    router,
)
from tests.router_process import until
from tests.serving import Client, soon
from tests.upstreams import OK, SIZED, Line

__all__ = ["make_router", "on_both_loops", "router"]

GET_HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
HALF_A_HEAD = OK + b"Content-Le"
HALF_A_BODY = ANSWER[:-10]
LONG = b"x" * 3 * 2**20


def chunked(*pieces: bytes, headers: str = "", trailers: bytes = b"") -> bytes:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\n{headers}Transfer-Encoding: chunked\r\n\r\n"
    return (
        head.encode()
        + b"".join([b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces])
        + b"0\r\n%b\r\n" % trailers
    )


# --- an answer


async def test_a_request_to_a_model_makes_no_task(router: Router) -> None:
    client, line = await router.warm()
    for _ in range(3):
        client.say(request())
        await line.answer(ANSWER)
        assert (await client.reply()).body == USAGE
    other = await router.client()
    other.say(request({"model": "m", "stream": True}))
    await line.answer(STREAM + b"9\r\ndata: 1\n\n\r\n0\r\n\r\n")
    assert (await other.reply()).body == b"data: 1\n\n"
    assert router.tasks.started == 0


@pytest.mark.parametrize(
    "answer",
    [
        ANSWER,
        OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n",
        OK + b"Content-Length: 0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + ANSWER,
        b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 503 Whatever\r\nRetry-After: 1\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 599 Odd\r\nContent-Length: 2\r\n\r\n{}",
        OK
        + b"Server: llama.cpp\r\nDate: then\r\nKeep-Alive: timeout=5\r\nX-Request-ID: its-own\r\n"
        + b"Access-Control-Allow-Origin: *\r\nConnection: keep-alive\r\nX-Frame-Options: ALLOW\r\n"
        + b"Set-Cookie: a=b\r\nSet-Cookie: c=d\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nhi",
    ],
    ids=["usual", "chunked", "empty", "after 100", "400", "503", "599", "many headers"],
)
async def test_both_entrances_give_the_same_answer(make_router: MakeRouter, answer: bytes) -> None:
    """A connection that uvicorn has takes the same exchange behind ASGI."""
    replies, accounts, asked = [], [], []
    for tasks in (0, 1):
        router = await make_router()
        client, line = await router.warm()
        if tasks:
            assert (await client.ask(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")).status == 200
            router.tasks.started = 0
        body = {"model": "m", "messages": [], "priority": "\u00e9"}
        client.say(request(body, "X-Request-ID: mine", "Accept: */*", "X-Request-Priority: low"))
        asked.append((await line.answer(answer)).replace(b"%d" % router.launcher.port, b"PORT"))
        replies.append(await client.reply())
        accounts.append(await router.account())
        assert router.tasks.started == tasks
    bytes_, asgi = replies
    assert (bytes_.line, bytes_.body) == (asgi.line, asgi.body)
    timed = (b"x-queue-wait-ms", b"x-model-load-ms", b"date")
    names = [sorted(name for name, _ in reply.headers) for reply in replies]
    assert names[0] == names[1]
    assert {*timed} < {*names[0]}
    values = [sorted(h for h in reply.headers if h[0] not in timed) for reply in replies]
    assert values[0] == values[1]
    assert bytes_[b"x-request-id"] == b"mine"
    assert asked[0] == asked[1]
    differs = {"duration_s": 0, "queue_wait_s": 0, "ttft_s": 0, "quiet_s": 0}
    assert (accounts[0].ttft_s is None) == (accounts[1].ttft_s is None)
    assert accounts[0]._replace(**differs) == accounts[1]._replace(**differs)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [None, "", "a b", "x" * 129, "\u00e9"])
async def test_an_id_is_made_where_the_client_gives_none_that_can_be_used(
    router: Router, given: str | None
) -> None:
    client, line = await router.warm()
    ids = set()
    for _ in range(2):
        client.say(request(None, *([] if given is None else [f"X-Request-ID: {given}"])))
        await line.answer()
        ids.add((await client.reply())[b"x-request-id"])
    assert len(ids) == 2
    assert all(re.fullmatch(rb"[0-9a-f]{32}", made) for made in ids)
    assert router.tasks.started == 0


async def test_a_lowered_priority_is_told(make_router: MakeRouter) -> None:
    router = await make_router(api={"api_keys": [{"key": "k", "name": "low", "max_priority": "low"}]})
    key = "X-Api-Key: k"
    client, line = await router.warm(key)
    client.say(request(None, key, "X-Request-Priority: high"))
    await line.answer()
    assert (await client.reply())[b"x-priority-effective"] == b"low"
    account = await router.account()
    assert (account.client, account.priority.label) == ("low", "low")
    assert router.tasks.started == 0


async def test_a_body_in_many_pieces_arrives_whole(router: Router) -> None:
    client, line = await router.warm()
    body = json.dumps({"model": "m", "prompt": "x" * 500}).encode()
    client.say(chunked(*(body[i : i + 1] for i in range(len(body)))))
    assert (await line.answer()).endswith(b"content-length: %d\r\n\r\n%b" % (len(body), body))
    assert (await client.reply()).status == 200
    assert router.tasks.started == 0


# --- all kinds of requests

PADDED = {"model": "m", "prompt": "x" * 2**17}


KINDS = [
    (request({"model": "m", "stream": True}), 200),
    (request(None, "Cookie: a=b"), 200),
    (request(None, "Origin: http://localhost"), 200),
    (request(None, "Origin: http://evil.example"), 403),
    (request(None, "Sec-Fetch-Site: cross-site"), 403),
    (request(None, version="1.0"), 200),
    (request(target=CHAT + "?x=y"), 200),
    (request(target="/v1/chat%2fcompletions"), 200),
    (request(target="/upstream/m/tokenize"), 200),
    (request(b'{"model": "m"'), 400),
    (request(b'{"model": 1}'), 400),
    (request(b"[]"), 400),
    (request(b""), 400),
    (request({"model": "nobody"}), 404),
    (request({"model": "m"}, target="/v1/embeddings"), 400),
    (request(None, "Content-Type: text/plain"), 415),
    (request(None, "X-Request-Priority: highest"), 400),
    (request(None, "X-Progress: comments"), 400),
    (request(None, "X-Progress: Reasoning"), 200),
    (request(None, "Host: localhost"), 400),
    (request(None, *(f"X-{i}: y" for i in range(100))), 431),
    (request(PADDED), 200),
    (chunked(json.dumps(PADDED).encode()), 200),
    (request(None, length=2**21), 413),
    (request({"model": "m", "prompt": "x" * 2**20}), 413),
    (chunked(*[b" " * 2**16] * 20), 413),
    (request().replace(b"POST", b"GET"), 405),
]


@pytest.mark.parametrize(
    "first", [b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"], ids=["front", "asgi"]
)
async def test_every_kind_of_request_is_answered(make_router: MakeRouter, first: bytes) -> None:
    """By the protocol in front, and by the framework's entrance on a connection that uvicorn has."""
    router = await make_router(api={"max_body_mb": 1})
    router.answers = SIZED
    for said, status in KINDS:
        client = await router.client()
        assert (await client.ask(first or request())).status == 200
        assert (await client.ask(said)).status == status, said[:200]


async def test_a_client_that_expects_100_gets_it(router: Router) -> None:
    client, line = await router.warm()
    whole = request(None, "Expect: 100-continue")
    head, _, body = whole.partition(b"\r\n\r\n")
    client.say(head + b"\r\n\r\n")
    assert await soon(client._reader.readuntil(b"\r\n\r\n")) == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.say(body)
    await line.answer()
    assert (await client.reply()).status == 200


async def test_a_small_limit_holds_for_known_heads_too(make_router: MakeRouter) -> None:
    router = await make_router(api={"max_body_mb": 0.001})
    client, _ = await router.warm()
    body = b'{"model": "m"}' + b" " * 2000
    assert (await client.ask(request(body))).status == 413
    assert (await client.ask(chunked(body[:900], body[900:]))).status == 413


@pytest.mark.parametrize("key", ["", "X-Api-Key: wrong", "Authorization: Bearer wrong"])
async def test_without_the_key_nothing_is_answered(make_router: MakeRouter, key: str) -> None:
    router = await make_router(api={"api_keys": ["right"]})
    client, line = await router.warm("X-Api-Key: right")
    for _ in range(2):
        assert (await client.ask(request(None, *filter(None, [key])))).status == 401
    client.say(request(None, "X-Api-Key: right"))
    await line.answer()
    assert (await client.reply()).status == 200


async def test_a_key_that_a_reload_takes_away_is_refused_at_once(make_router: MakeRouter) -> None:
    router = await make_router(api={"api_keys": ["old", "both"]})
    old, both = "X-Api-Key: old", "X-Api-Key: both"
    client, line = await router.warm(old)
    client.say(request(None, both))
    await line.answer()
    assert (await client.reply()).status == 200
    now = router.services.config
    keys = parse(json.dumps({"api": {"api_keys": ["both", "new"]}}), Path(), {}).api.api_keys
    changed = now.model_copy(update={"api": now.api.model_copy(update={"api_keys": keys})})
    assert router.services.configuration.change(changed) == []
    assert (await client.ask(request(None, old))).status == 401
    for key in (both, "X-Api-Key: new"):
        client.say(request(None, key))
        await line.answer()
        assert (await client.reply()).status == 200
    assert router.tasks.started == 0


# --- heads that are known


def accept(router: Router, *headers: tuple[bytes, bytes]) -> Accepted:
    lines = HeadLines("POST", CHAT.encode(), "1.1", [(b"host", b"localhost"), *headers])
    head = RequestHead(lines, 0, None, b"".join(name + value for name, value in headers))
    accepted = router.app.gateway.accept(head)
    assert accepted is not None
    return accepted


async def test_only_so_many_heads_are_remembered(router: Router) -> None:
    known = router.app.gateway._known
    for number in range(3 * MAX_KNOWN_HEADS):
        accept(router, (b"x-number", b"%d" % number))
        assert len(known) <= MAX_KNOWN_HEADS
    assert known


async def test_a_large_head_is_not_remembered(router: Router) -> None:
    accept(router, (b"x", b"y" * MAX_KNOWN_BYTES))
    assert not router.app.gateway._known


async def test_a_tunnelled_request_has_its_own_id(router: Router) -> None:
    """However well its head is known."""
    client, line = await router.warm()
    for number in range(3):
        client.say(request(None, f"X-Request-ID: id-{number}", target="/upstream/m/tokenize"))
        line = line if number == 0 else await router.line()
        assert (b"x-request-id: id-%d\r\n" % number) in (await line.asked()).lower()
        line.say(ANSWER)
        assert (await client.reply()).status == 200


async def test_one_client_is_not_taken_for_another(make_router: MakeRouter) -> None:
    """By anything that tells them apart, the order of the headers too."""
    keys = [{"key": name, "name": name} for name in ("a", "b")]
    router = await make_router(api={"api_keys": keys})
    assert [accept(router, (b"x-api-key", key)).meta.client.name for key in (b"a", b"b", b"a")] == [
        "a",
        "b",
        "a",
    ]
    both = (b"x-api-key", b"a"), (b"x-api-key", b"b")
    names = [accept(router, *pair).meta.client.name for pair in (both, both[::-1])]
    assert names == ["a", "b"]


async def test_a_session_that_has_ended_opens_nothing(make_router: MakeRouter) -> None:
    """Whatever was known of its head while it lasted."""
    router = await make_router(api={"api_keys": ["key"]})
    sessions, rules = router.app.sessions, router.app.state.rules
    token = sessions.open(b"key")
    cookie = f"Cookie: {rules.cookie}={token}"
    for target in (CHAT, "/upstream/m/tokenize"):
        client = await router.client()
        client.say(request(None, cookie, target=target))
        line = await router.line()
        await line.answer()
        assert (await client.reply()).status == 200
        line.hang_up()
    sessions.close(token)
    for target in (CHAT, "/upstream/m/tokenize"):
        assert (await (await router.client()).ask(request(None, cookie, target=target))).status == 401


# --- one after the other


@pytest.mark.parametrize(
    ("first", "status"),
    [
        (request(None, "X-Request-ID: 1"), 200),
        (request({"model": "m", "stream": True}, "X-Request-ID: 1"), 200),
        (request(None, "X-Request-ID: 1", "Cookie: a=b"), 200),
        (request({"model": "nobody"}, "X-Request-ID: 1"), 404),
        (request(b"{", "X-Request-ID: 1"), 400),
        (request(PADDED, "X-Request-ID: 1"), 200),
    ],
    ids=["plain", "stream", "cookie", "unknown", "no JSON", "large"],
)
async def test_pipelined_requests_are_answered_in_their_order(
    router: Router, first: bytes, status: int
) -> None:
    router.answers = SIZED
    client = await router.client()
    await client.ask(request())
    others = [request(None, f"X-Request-ID: {number}") for number in (2, 3)]
    client.say(first + b"".join(others) + request(None, "X-Request-ID: 4", "Cookie: a=b"))
    replies = [await client.reply() for _ in range(4)]
    assert [reply[b"x-request-id"] for reply in replies] == [b"1", b"2", b"3", b"4"]
    assert [reply.status for reply in replies] == [status, 200, 200, 200]
    assert (await client.ask(request())).status == 200


async def test_the_next_request_may_come_while_llama_server_computes(router: Router) -> None:
    client, line = await router.warm()
    client.say(request(None, "X-Request-ID: 1"))
    await line.asked()
    client.say(request(None, "X-Request-ID: 2"))
    line.say(ANSWER)
    assert (await client.reply())[b"x-request-id"] == b"1"
    await line.answer()
    assert (await client.reply())[b"x-request-id"] == b"2"
    assert router.tasks.started == 0


async def test_half_a_head_behind_a_request_harms_nobody(router: Router) -> None:
    client, line = await router.warm()
    second = request(None, "X-Request-ID: 2")
    client.say(request() + second[:10])
    await line.answer(ANSWER)
    assert (await client.reply()).body == USAGE
    client.say(second[10:])
    await line.answer()
    assert (await client.reply())[b"x-request-id"] == b"2"


async def test_garbage_is_told_after_the_answer_to_the_request_before_it(router: Router) -> None:
    client, line = await router.warm()
    client.say(request())
    await line.asked()
    client.say(b"HELLO\r\n\r\n")
    line.say(ANSWER)
    assert (await client.reply()).body == USAGE
    refused = await client.reply()
    assert (refused.status, refused[b"connection"]) == (400, b"close")
    assert await client.rest() == b""


async def test_a_client_that_does_not_read_gets_its_answers_when_it_does(router: Router) -> None:
    _, line = await router.warm()
    slow = await router.client(buffer=4096)
    slow.say(request())
    await line.asked()
    (connection,) = (found for found in router.connections if found._exchange is not None)
    connection._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    connection._transport.set_write_buffer_limits(0)
    large = b"x" * 60_000
    line.say(OK + b"Content-Length: %d\r\n\r\n" % len(large) + large)
    await until(lambda: connection._is_write_paused)
    slow.say(request())
    await line.answer(ANSWER)
    assert [(await slow.reply()).body for _ in range(2)] == [large, USAGE]


# --- the client leaves


@pytest.mark.parametrize("how", ["end", "reset"])
async def test_who_leaves_while_he_waits_leaves_no_trace(router: Router, how: str) -> None:
    first, line = await router.warm()
    first.say(request())
    await line.asked()
    leaver, third = await router.client(), await router.client()
    for count, client in enumerate((leaver, third), 1):
        client.say(request())
        await router.waiting(count)
    leave(leaver, how)
    account = await router.account()
    assert (account.status, account.outcome, account.queue_wait_s) == (499, Outcome.CANCELLED, None)
    await router.waiting(1)
    line.say(SIZED)
    await line.answer(ANSWER)
    assert (await third.reply()).body == USAGE
    assert (await first.reply()).body == b"hi"
    assert router.tasks.started == 0


@pytest.mark.parametrize("how", ["end", "reset"])
@pytest.mark.parametrize("said", [b"", HALF_A_HEAD, HALF_A_BODY])
async def test_who_leaves_while_llama_server_computes_stops_it(router: Router, said: bytes, how: str) -> None:
    client, line = await router.warm()
    client.say(request())
    await line.asked()
    line.say(said)
    other = await router.client()
    other.say(request())
    await router.waiting()
    leave(client, how)
    account = await router.account()
    assert (account.status, account.outcome) == (499, Outcome.CANCELLED)
    assert account.queue_wait_s is not None
    await line.ended()
    await (await router.line()).answer(ANSWER)  # the next one is granted, on another connection
    assert (await other.reply()).body == USAGE


def leave(client: Client, how: str) -> None:
    if how == "reset":
        linger = struct.pack("ii", 1, 0)
        client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        client.writer.transport.abort()
    else:
        client.leave()


async def test_who_leaves_in_the_middle_of_his_body_was_never_there(router: Router) -> None:
    client, line = await router.warm()
    client.say(request()[:-5])
    await until(lambda: router.connections[0]._state is ConnectionState.RECEIVING)
    client.leave()
    await until(lambda: not router.connections)
    other = await router.client()
    other.say(request())
    await line.answer()
    assert (await other.reply()).status == 200
    assert router.finished.qsize() <= 1
    assert router.tasks.started == 0


# --- llama-server fails


async def test_a_kept_connection_that_ends_without_a_byte_is_replaced(router: Router) -> None:
    for hang_up in (Line.hang_up, Line.reset):
        client, line = await router.warm()
        client.say(request())
        await line.asked()
        hang_up(line)
        fresh = await router.line()
        await fresh.answer(OK + b"Connection: close\r\n" + ANSWER.split(b"\r\n", 1)[1])
        assert (await client.reply()).body == USAGE
        assert (await router.account()).outcome is Outcome.SUCCESS
    assert counted(router, "router_request_replays_total") == {"m": 0.0}


@pytest.mark.parametrize("said", [HALF_A_HEAD, HALF_A_BODY], ids=["head", "body"])
async def test_an_answer_that_breaks_off_is_asked_for_again(router: Router, said: bytes) -> None:
    """Nobody has seen a byte of it: the next process gives a whole one."""
    client, line = await router.warm()
    client.say(request())
    await line.asked()
    line.say(said)
    router.launcher.newest("m").die()
    line.hang_up()
    await (await router.line()).answer(ANSWER)
    assert (await client.reply()).body == USAGE
    assert (await router.account()).outcome is Outcome.SUCCESS
    assert router.launcher.loads("m") == 2
    assert counted(router, "router_request_replays_total") == {"m": 1.0}


@pytest.mark.parametrize("said", [b"", HALF_A_HEAD, HALF_A_BODY], ids=["nothing", "head", "body"])
async def test_a_request_that_is_cut_is_asked_for_again(router: Router, said: bytes) -> None:
    client, line = await router.warm()
    client.say(request())
    await line.asked()
    line.say(said)
    router.instance().stop(StopReason.MANUAL)
    await line.ended()
    await (await router.line()).answer(ANSWER)
    assert (await client.reply()).body == USAGE
    assert router.launcher.loads("m") == 2
    assert counted(router, "router_request_replays_total") == {"m": 1.0}
    client.say(request())
    await router.lines[-1].answer()
    assert (await client.reply()).status == 200


async def test_who_waits_while_its_process_is_stopped_is_served_by_the_next_one(
    router: Router,
) -> None:
    first, _, second = await router.one_runs_and_one_waits()
    router.instance().stop(StopReason.MANUAL)
    fresh = await router.line()
    await fresh.answer(ANSWER)
    await fresh.answer(ANSWER)
    assert [(await client.reply()).body for client in (first, second)] == [USAGE, USAGE]


async def test_what_is_no_http_is_asked_for_again_and_then_told(router: Router) -> None:
    client, line = await router.warm()
    client.say(request())
    await line.answer(b"HELLO\r\n\r\n")
    router.launcher.newest("m").die()
    await (await router.line()).answer(b"HELLO\r\n\r\n")
    reply = await client.reply()
    assert (reply.status, reply.code) == (502, "model_crashed")


async def test_who_waits_for_a_model_that_is_removed_is_told_so(router: Router) -> None:
    first, line, second = await router.one_runs_and_one_waits()
    router.services.manager.apply(parse(json.dumps({"models": {}}), Path(), {}))
    assert (await second.reply()).code == "model_not_found"
    line.say(ANSWER)
    assert (await first.reply()).body == USAGE


# --- other answers


async def test_a_stream_that_nobody_asked_for_passes_as_it_comes(router: Router) -> None:
    client, line = await router.warm()
    client.say(request())
    await line.answer(STREAM + b"9\r\ndata: 1\n\n\r\n")
    assert b"text/event-stream" in await soon(client._reader.readuntil(b"data: 1\n\n\r\n"))
    line.say(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")
    assert b"data: 2\n\n" in await soon(client._reader.readuntil(b"0\r\n\r\n"))


async def test_a_whole_stream_at_once_is_a_stream_too(router: Router) -> None:
    client, line = await router.warm()
    client.say(request())
    await line.answer(STREAM + b"9\r\ndata: 1\n\n\r\n0\r\n\r\n")
    reply = await client.reply()
    assert (reply[b"cache-control"], reply.body) == (b"no-cache", b"data: 1\n\n")


async def test_the_connection_of_a_failed_stream_ends_a_while_after_its_error(router: Router) -> None:
    client, line = await router.warm()
    client.say(request())
    await line.answer(STREAM + b"9\r\ndata: 1\n\n\r\n")
    await soon(client._reader.readuntil(b"data: 1\n\n\r\n"))
    clock = asyncio.get_running_loop().time  # uvloop's timers count in its milliseconds
    failed_at = clock()
    line.reset()
    router.launcher.newest("m").die()
    rest = await soon(client._reader.read())
    assert clock() - failed_at >= CUT_AFTER_S
    assert b'data: {"error":' in rest and rest.endswith(b"\n\n\r\n")  # and not by the end of the body


async def test_a_long_answer_waits_for_a_slow_client(router: Router) -> None:
    _, line = await router.warm()
    slow = await router.client(buffer=4096)
    slow.say(request())
    await line.answer(OK + b"Content-Length: %d\r\n\r\n" % len(LONG) + LONG[:-1])
    await until(lambda: any(connection._is_write_paused for connection in router.connections))
    line.say(LONG[-1:])
    assert (await slow.reply()).body == LONG
    assert (await router.account()).outcome is Outcome.SUCCESS


async def test_an_answer_without_a_length_ends_with_its_connection(router: Router) -> None:
    client, line = await router.warm()
    client.say(request())
    await line.answer(OK + b"\r\nabc")
    line.say(b"def")
    line.hang_up()
    assert (await client.reply()).body == b"abcdef"
    client.say(request())
    await (await router.line()).answer(ANSWER)
    assert (await client.reply()).body == USAGE


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_without_a_body_has_none(router: Router, status: int) -> None:
    client, line = await router.warm()
    client.say(request())
    await line.answer(b"HTTP/1.1 %d X\r\n\r\n" % status)
    reply = await client.reply()
    assert (reply.status, b"content-length" in reply, b"transfer-encoding" in reply) == (status, False, False)
    client.say(request())
    await (await router.line()).answer(ANSWER)
    assert (await client.reply()).body == USAGE


async def test_a_status_that_does_not_exist_is_no_answer(router: Router) -> None:
    client, line = await router.warm()
    client.say(request())
    await line.answer(b"HTTP/1.1 700 X\r\nContent-Length: 2\r\n\r\nhi")
    router.launcher.newest("m").die()
    await (await router.line()).answer(ANSWER)
    assert (await client.reply()).body == USAGE


# --- time


async def test_the_time_in_the_queue_is_that_of_the_configuration(make_router: MakeRouter) -> None:
    """It counts from the arrival."""
    router = await make_router(queue_timeout_sec=1)
    first, line = await router.warm()
    first.say(request())
    await line.asked()
    second = await router.client()
    second.say(request())
    assert (await second.reply()).code == "queue_timeout"
    account = await router.account()
    assert 1 <= account.duration_s < 30, "not the 300 s that it is by default"
    line.say(SIZED)
    await first.reply()


async def test_the_time_for_an_answer_is_that_of_the_configuration(make_router: MakeRouter) -> None:
    router = await make_router(request_timeout_sec=1)
    client, line = await router.warm()
    client.say(request())
    await line.asked()
    assert (await client.reply()).code == "upstream_timeout"
    assert 1 <= (await router.account()).duration_s < 60, "not the 300 s that it is by default"
    await line.ended()


async def test_what_comes_is_progress(make_router: MakeRouter) -> None:
    router = await make_router(request_timeout_sec=60)
    client, line = await router.warm()
    client.say(request())
    await line.answer(HALF_A_BODY)
    (exchange_,) = (found._exchange for found in router.connections if found._exchange is not None)
    await until(lambda: exchange_.reply._parts)
    assert exchange_.quiet_since is not None and exchange_.quiet_since > exchange_.ticket.granted_at
    exchange_.due(exchange_.ticket.granted_at + 60)  # when its time would have been over
    line.say(ANSWER[len(HALF_A_BODY) :])
    assert (await client.reply()).body == USAGE


async def test_the_time_of_a_load_is_told_once(router: Router) -> None:
    """Two wait for it; the second one is asked on the connection of the first."""
    router.launcher.slow = True
    clients = [await router.client() for _ in range(2)]
    for count, client in enumerate(clients, 1):
        client.say(request())
        await router.waiting(count)
    await until(lambda: router.launcher.loads("m"))
    began = router.instance().lifecycle.load_started
    router.instance().lifecycle.load_started = began - 100  # as if it took that long
    for connection in router.connections:
        assert connection._exchange is not None
        connection._exchange.ticket.arrived -= 100
    router.launcher.newest("m").become_ready()
    line = await router.line()
    for _ in clients:
        await line.answer()
    told = [int((await client.reply())[b"x-model-load-ms"]) for client in clients]
    assert all(100_000 <= ms < 150_000 for ms in told), told


# --- the connection's end


async def test_who_wants_the_connection_closed_gets_it_closed(router: Router) -> None:
    _, line = await router.warm()
    client = await router.client()
    client.say(request(None, "Connection: close"))
    await line.answer(ANSWER)
    reply = await client.reply()
    assert (reply[b"connection"], reply.body) == (b"close", USAGE)
    assert await client.rest() == b""
    assert router.tasks.started == 0


async def test_nothing_is_answered_after_connection_close(router: Router) -> None:
    _, line = await router.warm()
    client = await router.client()
    client.say(request(None, "Connection: close") + request())
    await line.answer(ANSWER)
    assert (await client.reply())[b"connection"] == b"close"
    assert await client.rest() == b""


async def test_an_idle_connection_is_closed(make_router: MakeRouter) -> None:
    router = await make_router(keep_alive_s=0)
    _, line = await router.warm()
    client = await router.client()
    client.say(request())
    await line.answer(ANSWER)
    assert (await client.reply()).body == USAGE
    assert await client.rest() == b""
    assert router.tasks.started == 0


@pytest.mark.parametrize("sent", [10, 50, -5, None], ids=["head", "headers", "body", "answer"])
async def test_a_connection_under_way_is_not_closed(router: Router, sent: int | None) -> None:
    """Whatever the timer of an earlier rest says."""
    client, line = await router.warm()
    (connection,) = router.connections
    whole = request()
    client.say(whole[:sent])
    if sent is None:
        await line.asked()
    else:
        await until(lambda: not connection._received.reader.is_between)
    connection._ring()
    assert not connection._transport.is_closing()
    if sent is not None:
        client.say(whole[sent:])
        await line.asked()
    line.say(ANSWER)
    assert (await client.reply()).body == USAGE


@pytest.mark.parametrize("how", ["end", "reset"])
async def test_a_connection_has_one_timer_for_all_its_requests(router: Router, how: str) -> None:
    client, line = await router.warm()
    (connection,) = router.connections
    alarm = connection._alarm
    timers: set[Any] = set()  # uvloop's are no `asyncio.TimerHandle`
    for _ in range(3):
        client.say(request())
        await line.answer()
        await client.reply()
        timers.add(alarm._handle)
    assert len(timers) == 1
    leave(client, how)
    await until(lambda: not router.connections)
    assert alarm._handle is None
    assert all(timer is not None and timer.cancelled() for timer in timers)


# --- the router's end


async def test_the_end_of_the_router_waits_for_a_request(router: Router) -> None:
    client, line = await router.warm()
    client.say(request())
    await line.asked()
    end = asyncio.ensure_future(router.shutdown())
    await until(lambda: router.services.manager.closing)
    late = await router.client()
    assert (await late.ask(request())).code == "shutting_down"
    line.say(ANSWER)
    assert (await client.reply()).body == USAGE
    assert await client.rest() == b""
    await soon(end)


async def test_the_request_of_a_server_that_closes_is_the_last_one_of_its_connection(router: Router) -> None:
    client, line = await router.warm()
    client.say(request())
    await line.asked()
    router.connections[0].shutdown()
    line.say(ANSWER)
    reply = await client.reply()
    assert (reply[b"connection"], reply.body) == (b"close", USAGE)
    assert await client.rest() == b""


@pytest.mark.parametrize("sent", [-5, -14], ids=["some of the body", "none of it"])
async def test_half_a_body_is_awaited_when_the_server_closes(router: Router, sent: int) -> None:
    client, line = await router.warm()
    whole = request()
    client.say(whole[:sent])
    (connection,) = router.connections
    await until(lambda: connection._state is ConnectionState.RECEIVING)
    connection.shutdown()
    client.say(whole[sent:])
    await line.answer(ANSWER)
    reply = await client.reply()
    assert (reply[b"connection"], reply.body) == (b"close", USAGE)
    assert await client.rest() == b""


async def test_half_a_body_at_the_end_of_the_router_is_told_so(router: Router) -> None:
    client, _ = await router.warm()
    whole = request()
    client.say(whole[:-5])
    await until(lambda: router.connections[0]._state is ConnectionState.RECEIVING)
    router.services.manager.closing = True
    assert (await client.ask(whole[-5:])).code == "shutting_down"


async def test_who_waits_at_the_end_of_the_router_is_told_so(router: Router) -> None:
    first, line, second = await router.one_runs_and_one_waits()
    end = asyncio.ensure_future(router.shutdown())
    assert (await second.reply()).code == "shutting_down"
    line.say(ANSWER)
    assert (await first.reply()).body == USAGE
    await soon(end)


async def test_the_end_of_the_router_cuts_what_takes_too_long(make_router: MakeRouter) -> None:
    router = await make_router(drain_timeout_sec=0)
    client, line = await router.warm()
    client.say(request())
    await line.asked()
    end = asyncio.ensure_future(router.shutdown())
    assert (await client.reply()).code == "shutting_down"
    await line.ended()
    await soon(end)


# --- bugs of our own


def fail(*_: object, **__: object) -> Any:
    raise RuntimeError("a bug")


@pytest.mark.parametrize(
    ("where", "name"),
    [
        (gateway, "request_id"),
        (proxied, "find_model"),
        (upstream_connection, "_head"),
        (AnswerReader, "feed"),
        (reply_head, "own_lines"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
async def test_a_bug_is_told_and_leaves_nothing_behind(
    router: Router,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    where: Any,
    name: str,
) -> None:
    client, line = await router.warm()
    with monkeypatch.context() as patch:
        patch.setattr(where, name, fail)
        client.say(request(None, "X-Request-ID: mine"))
        if name in ("own_lines", "feed"):
            await line.answer()
        told = await client.reply()
        assert (told.status, told.code, told[b"x-request-id"]) == (500, "internal_error", b"mine")
        assert "RuntimeError: a bug" in caplog.text
        if where in (upstream_connection, AnswerReader, reply_head):
            assert (await router.account()).outcome is Outcome.ERROR
    assert router.instance().queue.in_flight == 0
    other = await router.client()
    other.say(request())
    if name == "feed":  # nobody knows where the next answer would begin
        line = await router.line()
    await line.answer(ANSWER)
    assert (await other.reply()).body == USAGE


async def test_a_bug_in_reading_a_request_is_told_too(
    router: Router, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = await router.client()
    with monkeypatch.context() as patch:
        patch.setattr(request_head.KnownHeads, "read", fail)
        client.say(request())
        told = await client.reply()
        assert (told.status, told.code) == (500, "internal_error")
        assert await client.rest() == b""
    assert "RuntimeError: a bug" in caplog.text


# --- what is counted


def counted(router: Router, name: str, *labels: str) -> dict[str, float]:
    """The values of a metric by model, or by model and this label."""
    router.services.bus.flush()
    found = re.findall(rf"^{name}\{{(.*)\}} (.*)$", router.services.metrics.text(), re.M)
    keys = [dict(re.findall(r'(\w+)="([^"]*)"', text)) for text, _ in found]
    names = ("model", *labels)
    return {
        "/".join(key[name] for name in names): float(value)
        for key, (_, value) in zip(keys, found, strict=True)
    }


async def test_the_counters_agree_with_what_the_clients_saw(make_router: MakeRouter) -> None:
    router = await make_router(max_queue_size_per_model=1)
    first, line = await router.warm()
    first.say(request())
    await line.asked()
    second, third, leaver = [await router.client() for _ in range(3)]
    second.say(request())
    await router.waiting()
    assert counted(router, "router_requests_in_flight") == {"m": 1.0}
    assert counted(router, "router_queue_depth") == {"m": 1.0}
    assert (await third.ask(request())).code == "queue_full"
    line.say(b"HTTP/1.1 500 X\r\nContent-Length: 2\r\n\r\n{}")
    assert (await first.reply()).status == 500
    await line.asked()
    leaver.say(request())
    await router.waiting()
    leaver.leave()
    await router.waiting(0)
    line.say(ANSWER)
    assert (await second.reply()).status == 200
    outcomes = Counter([(await router.account()).outcome for _ in range(4)])
    expected = {Outcome.SUCCESS: 1, Outcome.ERROR: 1, Outcome.CANCELLED: 1, Outcome.REJECTED: 1}
    assert outcomes == expected
    expected[Outcome.SUCCESS] += 1  # the one that made it warm
    assert {
        key: value for key, value in counted(router, "router_requests_total", "status").items() if value
    } == {f"m/{outcome.value}": count for outcome, count in expected.items()}
    assert counted(router, "router_requests_in_flight") == {"m": 0.0}
    assert counted(router, "router_queue_depth") == {"m": 0.0}
    assert counted(router, "router_tokens_total", "kind")["m/prompt"] == 7


# --- trailers


async def test_a_trailer_is_no_header(make_router: MakeRouter) -> None:
    """Neither on the short way nor on the long one, for nobody who sends the same head later."""
    router = await make_router(api={"api_keys": ["right"]})
    client, line = await router.warm("X-Api-Key: right")
    body, key = b'{"model": "m"}', "X-Api-Key: right\r\n"
    trailers = b"Range: bytes=0-1\r\nHost: evil.example\r\nX-Request-Priority: low\r\n"
    for headers in (key, key + "Cookie: a=b\r\n"):
        client.say(chunked(body, headers=headers, trailers=trailers))
        assert b"range" not in await line.answer()
        assert (await client.reply()).status == 200
        client.say(chunked(json.dumps(PADDED).encode(), headers=headers))
        assert b"range" not in await line.answer()
        assert (await client.reply()).status == 200
        assert (await client.ask(chunked(body, trailers=key.encode()))).status == 401


@pytest.mark.parametrize("trailer", [b"a: b\r\n" * 1000, b"x" * 4096], ids=["many", "one"])
@pytest.mark.parametrize("headers", ["", "Cookie: a=b\r\n"], ids=["short", "long"])
async def test_trailers_that_never_end_are_cut_off(router: Router, headers: str, trailer: bytes) -> None:
    await router.warm()
    client = await router.client()
    client.say(chunked(b'{"model": "m"}', headers=headers)[:-2])
    sent, closed = 0, asyncio.ensure_future(client.rest())
    while not client.writer.is_closing() and sent < 100 * MAX_HEAD_BYTES:
        client.say(trailer)
        sent += len(trailer)
        with contextlib.suppress(ConnectionError):
            await client.writer.drain()
        await asyncio.sleep(0)
    client.leave()
    await closed
    assert sent < 50 * MAX_HEAD_BYTES


async def test_a_large_id_is_too_much_whether_the_rest_is_known_or_not(router: Router) -> None:
    client, _ = await router.warm()
    for _ in range(2):
        assert (await client.ask(request(None, "X-Request-ID: " + "x" * MAX_HEADER_BYTES))).status == 431


async def test_a_body_that_is_announced_as_too_large_is_refused_before_it_comes(
    make_router: MakeRouter,
) -> None:
    router = await make_router(api={"max_body_mb": 0.01})
    for length in (11_000, 70_000, 2**40):
        client, _ = await router.warm() if not router.lines else (await router.client(), None)
        client.say(request(b"", length=length))
        assert (await client.reply()).status == 413


# --- many at once


class PerTurn(Counter[int]):
    """What is added while this is entered, by turn of the event loop."""

    def __init__(self) -> None:
        super().__init__()
        self._turn = 0
        self._next: asyncio.Handle

    def note(self, amount: int = 1) -> None:
        self[self._turn] += amount

    def _count(self) -> None:
        self._turn, self._next = self._turn + 1, asyncio.get_running_loop().call_soon(self._count)

    def __enter__(self) -> PerTurn:
        self._count()
        return self

    def __exit__(self, *_: object) -> None:
        self._next.cancel()


async def receiving(router: Router, clients: list[Client], head: bytes) -> None:
    """Each has sent the head of a request, and it was read."""
    for client in clients:
        client.say(head)
    await until(lambda: all(c._state is ConnectionState.RECEIVING for c in router.connections))


async def test_of_many_requests_at_once_few_are_read_in_a_turn_of_the_loop(
    router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients = [await router.client() for _ in range(21)]
    for client in clients:
        assert (await client.ask(request({"model": "x"}))).status == 404
    entrance, read = router.app.gateway, RequestReader.next
    accept, accepted, heads = entrance.accept, PerTurn(), PerTurn()

    def noted(head: RequestHead) -> Accepted | None:
        accepted.note()
        return accept(head)

    def noted_head(self: RequestReader) -> RequestHead | BodyPart | None:
        event = read(self)
        heads.note(isinstance(event, RequestHead))
        return event

    monkeypatch.setattr(entrance, "accept", noted)
    monkeypatch.setattr(RequestReader, "next", noted_head)
    with accepted, heads:
        for client in clients:  # before the event loop looks
            client.say(request({"model": "x"}))
        for client in clients:
            assert (await client.reply()).status == 404
    for found in (accepted, heads):
        assert found.total() == len(clients)
        assert max(found.values()) <= TURN_COST // MODEL_COST


@pytest.mark.parametrize(
    "head", [b"GET / HTTP/1.1\r\nX: %b" % (b"a" * MAX_HEAD_BYTES), b"garbage!", b"GET / HTTP/1.1\nX: y"]
)
async def test_of_many_heads_that_do_not_end_few_are_refused_in_a_turn_of_the_loop(
    router: Router, monkeypatch: pytest.MonkeyPatch, head: bytes
) -> None:
    clients = [await router.client() for _ in range(21)]
    for client in clients:
        assert (await client.ask(request({"model": "x"}))).status == 404
    entrance, refused = router.app.gateway, PerTurn()
    tell = entrance.tell_refusal

    def noted(*told: Any) -> None:
        refused.note()
        tell(*told)

    monkeypatch.setattr(entrance, "tell_refusal", noted)
    with refused:
        for client in clients:
            client.say(head)
        for client in clients:
            assert (await client.reply()).status == 400
    assert refused.total() == len(clients)
    assert max(refused.values()) <= TURN_COST // LARGE_HEAD_COST


async def test_of_many_large_heads_that_do_not_end_few_are_looked_at_in_a_turn_of_the_loop(
    router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients = [await router.client() for _ in range(21)]
    for client in clients:
        assert (await client.ask(request({"model": "x"}))).status == 404
    read, looks = RequestReader.next, PerTurn()

    def noted(self: RequestReader) -> RequestHead | BodyPart | None:
        looks.note()
        return read(self)

    monkeypatch.setattr(RequestReader, "next", noted)
    with looks:
        for client in clients:
            client.say(b"GET /nowhere HTTP/1.1\r\nX: " + b"a" * (MAX_KNOWN_BYTES + 1))
        await until(lambda: looks.total() >= len(clients))
    assert max(looks.values()) <= TURN_COST // LARGE_HEAD_COST
    for client in clients:
        client.say(b"\r\nHost: localhost\r\n\r\n")
        assert (await client.reply()).status == 404


async def test_of_many_chunked_bodies_at_once_few_parts_are_read_in_a_turn_of_the_loop(
    router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them come on kept connections, with heads that have been read."""
    clients = [await router.client() for _ in range(21)]
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    await receiving(router, clients, head)
    read, parts = RequestReader.next, PerTurn()

    def noted(self: RequestReader) -> RequestHead | BodyPart | None:
        parts.note(self.has_chunks)
        return read(self)

    monkeypatch.setattr(RequestReader, "next", noted)
    chunk = b"\r\n\r\n" * 500
    with parts:
        for client in clients:
            client.say(b"%x\r\n%b\r\n0\r\n\r\n" % (len(chunk), chunk))
        for client in clients:
            assert (await client.reply()).status == 400
    assert parts.total() > 3 * len(clients)
    assert max(parts.values()) <= TURN_COST // PART_COST


@pytest.mark.parametrize("has_head_before", [True, False])
async def test_of_many_large_bodies_at_once_few_end_in_a_turn_of_the_loop(
    router: Router, monkeypatch: pytest.MonkeyPatch, has_head_before: bool
) -> None:
    """To read what is in them takes the longer the larger they are."""
    clients, said = [await router.client() for _ in range(21)], request(b" " * (LARGE_BODY_BYTES + 1))
    for client in clients:
        assert (await client.ask(request({"model": "x"}))).status == 404
    if has_head_before:
        head, end, said = said.partition(b"\r\n\r\n")
        await receiving(router, clients, head + end)
    read, ends = RequestReader.next, PerTurn()

    def noted(self: RequestReader) -> RequestHead | BodyPart | None:
        event = read(self)
        ends.note(isinstance(event, BodyPart) and event.last)
        return event

    monkeypatch.setattr(RequestReader, "next", noted)
    with ends:
        for client in clients:
            client.say(said)
        for client in clients:
            assert (await client.reply()).status == 400
    assert ends.total() == len(clients)
    assert max(ends.values()) <= TURN_COST // LARGE_BODY_COST


async def test_of_large_bodies_at_once_some_is_read_in_a_turn_of_the_loop(
    router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients, size, most = [await router.client() for _ in range(10)], 4_000_000, 262_144
    await receiving(router, clients, request(b"", length=size))
    feed, received = ReceiveBuffer.feed, PerTurn()

    def noted(self: ReceiveBuffer, data: bytes) -> None:
        received.note(len(data))
        feed(self, data)

    monkeypatch.setattr(ReceiveBuffer, "feed", noted)
    with received:
        for client in clients:  # the system takes some megabytes of each before the event loop looks
            client.say(b" " * size)
        for client in clients:
            assert (await client.reply()).status == 400
    assert received.total() == len(clients) * size
    assert max(received.values()) <= (len(clients) + TURN_COST // READ_COST) * most


async def test_a_request_that_waits_for_its_turn_has_not_stalled(router: Router) -> None:
    client = await router.client()
    await client.ask(request({"model": "x"}))
    (connection,) = router.connections
    turns, received = router.app.gateway.turns, connection._received
    turns._left, turns._is_scheduled = 0, True  # it does not come by itself
    client.say(request({"model": "x"}))
    await until(lambda: received._waits)
    assert not received.is_between
    assert [received.has_stalled() for _ in range(3)] == [False] * 3
    turns._is_scheduled = False
    turns._schedule()
    assert (await client.reply()).status == 404


async def test_a_body_that_waits_to_be_read_on_has_not_stalled(router: Router) -> None:
    client, size = await router.client(), 2_000_000
    await receiving(router, [client], request(b"", length=size))
    (connection,) = router.connections
    turns, received = router.app.gateway.turns, connection._received
    turns._left, turns._is_scheduled = 0, True  # it does not come by itself
    client.say(b" " * size)
    await until(lambda: received._rests)
    assert not received.is_between
    assert [received.has_stalled() for _ in range(4)][1:] == [False] * 3
    turns._is_scheduled = False
    turns._schedule()
    assert (await client.reply()).status == 400


async def test_of_a_chunked_body_whose_turn_does_not_come_no_more_is_read(
    router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receive_buffer, "LARGE_READ_BYTES", 10**9)  # they wait by themselves
    client = await router.client()
    client.say(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
    await until(lambda: any(c._state is ConnectionState.RECEIVING for c in router.connections))
    (connection,) = router.connections
    turns, received = router.app.gateway.turns, connection._received
    turns._left, turns._is_scheduled = 0, True  # it does not come by itself
    body = b" " * 10_000_000
    client.say(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
    await until(lambda: received._is_paused)
    assert MAX_AHEAD_BYTES < received.reader.waiting < len(body) / 10
    turns._is_scheduled = False
    turns._schedule()
    assert (await client.reply()).status == 400
    assert not received._is_paused


async def test_heads_that_waited_for_a_turn_have_no_more_place_than_others(make_router: MakeRouter) -> None:
    router = await make_router(api={"max_memory_mb": 1})
    memory, turns = router.app.gateway.memory, router.app.gateway.turns
    clients = [await router.client() for _ in range(10)]
    for client in clients:
        assert (await client.ask(request({"model": "x"}))).status == 404
    turns._left, turns._is_scheduled = 0, True  # it does not come by itself
    half = b"GET /api/nowhere HTTP/1.1\r\nX: " + b"a" * 30_000
    for client in clients[:2]:
        client.say(half)
    await until(lambda: memory.strangers == 2 * len(half))
    for client in clients[2:]:
        reply = await client.ask(half)
        assert (reply.status, json.loads(reply.body)) == (503, {"error": memory.full().message})
    assert memory.strangers == 2 * len(half) <= MIB // STRANGERS_PART
    turns._is_scheduled = False
    turns._schedule()
    await until(lambda: not turns.waiting)
    for client in clients[:2]:
        client.say(b"\r\nHost: localhost\r\n\r\n")
        assert (await client.reply()).status == 404


async def test_a_request_without_a_place_is_paused_until_its_turn(make_router: MakeRouter) -> None:
    router = await make_router(api={"max_memory_mb": 1})
    client = await router.client()
    assert (await client.ask(request({"model": "x"}))).status == 404
    (connection,) = router.connections
    memory, turns, received = router.app.gateway.memory, router.app.gateway.turns, connection._received
    memory.strangers += MIB  # others have all of it
    turns._left, turns._is_scheduled = 0, True
    client.say(request({"model": "x"}))
    await until(lambda: received._waits)
    for _ in range(2):
        assert received._is_paused
        connection._advance()  # as after the turn of a large read
    memory.strangers -= MIB
    turns._is_scheduled = False
    turns._schedule()
    assert (await client.reply()).status == 404


@pytest.mark.parametrize("asked", [request({"model": "x"}), GET_HEALTH], ids=["model", "own"])
async def test_who_waits_for_a_turn_when_the_router_ends_is_answered(router: Router, asked: bytes) -> None:
    clients = [await router.client() for _ in range(10)]
    for client in clients:
        assert (await client.ask(asked, method="GET")).status in (200, 404)
    turns = router.app.gateway.turns
    turns._left, turns._is_scheduled = 0, True  # it does not come by itself
    for client in clients:
        client.say(asked)
    await until(lambda: turns.waiting == len(clients))
    await router.shutdown()
    for client in clients:
        assert (await client.reply(to="GET")).status in (200, 404, 503)
        assert await client.rest() == b""


# --- what is left behind


def circles_of_ours() -> list[str]:
    """What only the garbage collector could free, by type."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        return [
            type(found).__qualname__ for found in gc.garbage if type(found).__module__.startswith("app.proxy")
        ]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()


@pytest.mark.parametrize("first", [b"", GET_HEALTH], ids=["front", "asgi"])
async def test_requests_leave_no_circles_behind(router: Router, first: bytes) -> None:
    """A collection holds the event loop; so there should be nothing to collect."""
    await router.warm()
    gc.collect()
    for body, answer in (({"model": "m"}, ANSWER), ({"model": "m", "stream": True}, STREAM + LAST_EVENT)):
        client = await router.client()
        if first:
            await client.ask(first)
        for number in range(3):
            client.say(request(body))
            line = router.lines[-1]
            if line.writer.is_closing() or (number and "stream" in body):
                line = await router.line()
            await line.answer(answer)
            assert (await client.reply()).status == 200
            await router.account()
        client.leave()
        await until(lambda: len(router.connections) == 1)
        router.lines[-1].hang_up()
    assert circles_of_ours() == []


LAST_EVENT = b"9\r\ndata: 1\n\n\r\n0\r\n\r\n"


def test_what_start_up_made_is_not_looked_at_by_collections(monkeypatch: pytest.MonkeyPatch) -> None:
    thresholds = gc.get_threshold()
    try:
        freeze_garbage_collection()
        assert gc.get_freeze_count() > 10_000
        assert gc.get_threshold() == GC_THRESHOLDS
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)
