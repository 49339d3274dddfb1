"""The way of a request through the modules of `app/proxy`, as it is taken: down, and back."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tests.event_loops import on_both_loops
from tests.proxy_environment import ANSWER, STREAM, MakeRouter, make_router, request

__all__ = ["make_router", "on_both_loops"]


@contextmanager
def traced(steps: list[tuple[str, str]]) -> Iterator[None]:
    """Each call from one module of `app/proxy` to another one, from the event loop or out of the folder."""

    def on_event(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and (callee := _name(frame)) is not None:
            caller = _caller(frame)
            if caller != callee:
                steps.append((caller, callee))

    sys.setprofile(on_event)
    try:
        yield
    finally:
        sys.setprofile(None)


def _caller(frame: FrameType) -> str:
    outer = frame.f_back
    while outer is not None and _name(outer) is None:
        outer = outer.f_back
    return "loop" if outer is None else _name(outer) or ""


def _name(frame: FrameType) -> str | None:
    package, _, module = frame.f_globals.get("__name__", "").rpartition(".")
    is_step = (
        package == "app.proxy" and module != "catch_bugs"
    )  # that stands around each input of an exchange
    return module if is_step else None


def entered(steps: list[tuple[str, str]]) -> list[str]:
    """The modules in the order in which they were entered first."""
    return list(dict.fromkeys(callee for _, callee in steps))


DOWN = [
    "http_server",
    "receive_buffer",
    "request_reader",
    "loop_turns",
    "request_head",
    "gateway",
    "request_body",
    "request_memory_limit",
    "preparation",
    "json_fields",
    "request_parameters",
    "request_record",
    "reply",
    "reply_head",
    "exchange_state",
    "timeouts_and_heartbeats",
    "exchange",
    "admission",
    "upstream_pool",
    "upstream_connection",
    "answer_reader",
]
BACK = [
    "upstream_connection",
    "answer_reader",
    "exchange",
    "reply",
    "answer_mode",
    "http_server",
    "answer_writer",
]
"""But for the rule of headers, and what is told of the request afterwards."""

TOLD = {
    "forwarded_headers", "request_record", "token_usage", "admission", "upstream_pool", "request_reader",
    "request_body", "request_memory_limit", "exchange_state", "reply_head", "receive_buffer",
}  # fmt: skip
EVENTS = STREAM + b"9\r\ndata: 1\n\n\r\n0\r\n\r\n"


async def way_of(make_router: MakeRouter, body: dict[str, Any], answer: bytes) -> Any:
    """Of a second request: connections and caches are there."""
    router = await make_router()
    client, line = await router.warm()
    down: list[tuple[str, str]] = []
    back: list[tuple[str, str]] = []
    with traced(down):
        client.say(request(body))
        await line.asked()
    with traced(back):
        line.say(answer)
        reply = await client.reply()
        await router.account()
    assert reply.status == 200
    return down, back


async def test_a_short_request_and_a_stream_take_the_same_way(make_router: MakeRouter) -> None:
    for body, answer in (({"model": "m"}, ANSWER), ({"model": "m", "stream": True}, EVENTS)):
        down, back = await way_of(make_router, body, answer)
        assert entered(down) == DOWN
        assert [name for name in entered(back) if name not in TOLD] == BACK
        assert set(entered(back)) == {*BACK, *TOLD}
        assert {callee for caller, callee in down if caller == "loop"} == {DOWN[0]}
        assert {callee for caller, callee in back if caller == "loop"} == {BACK[0], "request_record"}
