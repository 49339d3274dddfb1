"""Which headers go on to llama-server, and which come back."""

from __future__ import annotations

import pytest

from app.access.request_id import OURS
from app.proxy.forwarded_headers import as_lines, passed_back, through_tunnel, to_model

ACCEPT = (b"accept", b"text/event-stream")
JSON = (b"content-type", b"application/json")
FAR_END = (b"x-llama-server-proxy-header-authorization", b"Bearer far")
KEPT_TO_OURSELVES = [
    (b"host", b"127.0.0.1:8000"),
    (b"authorization", b"Bearer mine"),
    (b"x-api-key", b"mine"),
    (b"cookie", b"router_session_8000=mine"),
    (b"x-conversation-id", b"7"),
    (b"content-length", b"2"),
    (b"expect", b"100-continue"),
    (b"connection", b"keep-alive, x-of-this-hop"),
    (b"x-of-this-hop", b"1"),
    (b"keep-alive", b"timeout=5"),
    (b"proxy-authorization", b"Basic mine"),
    (b"proxy-connection", b"keep-alive"),
    (b"te", b"trailers"),
    (b"trailer", b"digest"),
    (b"transfer-encoding", b"chunked"),
    (b"upgrade", b"h2c"),
]


def test_the_tunnel_passes_all_that_is_meant_for_the_far_end() -> None:
    meant = [ACCEPT, FAR_END, (b"accept-encoding", b"gzip"), (b"x-forwarded-for", b"10.0.0.1")]
    assert through_tunnel([*meant, *KEPT_TO_OURSELVES]) == meant


def test_the_answer_to_a_body_comes_as_it_can_be_counted() -> None:
    """A llama-server with zlib packs it, where that is offered; its own page comes packed only."""
    assert through_tunnel([JSON, (b"accept-encoding", b"gzip"), FAR_END]) == [JSON, FAR_END]


def test_the_tunnel_keeps_order_and_repetition() -> None:
    several = [(b"accept", b"a"), (b"x-other", b""), (b"accept", b"b")]
    assert through_tunnel(several) == several


def test_to_a_model_goes_what_llama_server_heeds() -> None:
    more = [FAR_END, (b"accept-encoding", b"gzip"), (b"x-forwarded-for", b"10.0.0.1"), *KEPT_TO_OURSELVES]
    assert to_model([ACCEPT, *more, JSON]) == [ACCEPT, JSON]


def test_to_a_model_the_last_of_several_counts() -> None:
    assert to_model([JSON, ACCEPT, (b"content-type", b"text/plain")]) == [
        (b"content-type", b"text/plain"),
        ACCEPT,
    ]


@pytest.mark.parametrize("value", [b"a\r\nx-evil: 1", b"a\n", b"\x00", b"\x7f", b"a\x0b"])
def test_what_could_end_a_line_is_not_passed_on(value: bytes) -> None:
    assert to_model([(b"accept", value)]) == []
    assert through_tunnel([(b"x-any", value)]) == []


@pytest.mark.parametrize("name", [b"", b"x y", b"x:y", b"x\r\ny", b"\xc3\xa4"])
def test_what_is_no_name_is_not_passed_on(name: bytes) -> None:
    assert through_tunnel([(name, b"1")]) == []


def test_text_in_other_scripts_passes() -> None:
    header = (b"x-title", "\u00e4 \u65e5\u672c".encode())
    assert through_tunnel([header]) == [header]


def test_lines_as_they_are_sent() -> None:
    assert as_lines([ACCEPT, JSON]) == b"accept: text/event-stream\r\ncontent-type: application/json\r\n"
    assert as_lines([]) == b""


def test_an_answer_comes_back_but_for_this_hop_and_what_the_router_says_itself() -> None:
    meant = [
        JSON,
        (b"content-length", b"2"),
        (b"server", b"llama.cpp"),
        (b"etag", b"7"),
        (b"mcp-session-id", b"1"),
    ]
    dropped = [
        (b"connection", b"close, X-Of-This-Hop"),
        (b"x-of-this-hop", b"1"),
        (b"keep-alive", b"timeout=5, max=100"),
        (b"transfer-encoding", b"chunked"),
        (b"date", b"today"),
        (b"access-control-allow-origin", b"https://evil.example"),
        (b"access-control-allow-credentials", b"true"),
        *((name, b"theirs") for name in OURS),
    ]
    assert passed_back([*meant, *dropped], event_stream=False) == meant


def test_an_event_stream_is_not_held_back_on_its_way() -> None:
    headers = passed_back([(b"cache-control", b"max-age=60"), (b"content-type", b"text/event-stream")], True)
    assert headers == [
        (b"content-type", b"text/event-stream"),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),
    ]
