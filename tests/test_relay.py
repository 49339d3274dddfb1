"""What a relay does with an answer, piece by piece."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

from app.api.relay import Relay
from app.proxy.upstream import Answer

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
FIRST = b"9\r\ndata: 1\n\n\r\n"
LAST = b"9\r\ndata: 2\n\n\r\n0\r\n\r\n"


async def test_the_end_that_comes_while_a_slow_client_takes_a_piece_is_not_lost() -> None:
    answer = Answer(Mock(), single=True, is_head=False)
    answer.feed(HEAD + FIRST)
    relay = Relay(Mock(), Mock(), Mock(lowered=False), b"")
    relay._event_stream = True
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)
        if not answer.ended and message["type"] == "http.response.body":
            answer.feed(LAST)

    await relay._pass_on(answer, send)
    assert [message.get("body") for message in sent] == [None, b"data: 1\n\n", b"data: 2\n\n"]
    assert [message.get("more_body") for message in sent] == [None, True, False]
