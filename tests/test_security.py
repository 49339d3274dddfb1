"""The guard, tried as an attacker would: host names, origins, keys, sizes, paths."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.access.failed_logins import MAX_ADDRESSES, MAX_FAILURES, WINDOW_S, FailedLogins
from app.access.sessions import LIFETIME_S, MAX_OF_ONE_KEY, MAX_SESSIONS, Sessions
from app.access.size_limits import MAX_HEADER_BYTES, MAX_HEADERS
from app.config_watcher import reload
from app.configuration.file import ConfigError, parse
from app.domain.errors import RouterError, TooManyLogins
from app.main import create_app
from tests.event_loops import on_the_loop_of_the_way, way
from tests.fakes import FakeLauncher, FakeProbe
from tests.serving import Browser, Way, reached_by
from tests.stand_in import StandIn

__all__ = ["on_the_loop_of_the_way", "way"]  # fixtures

CHAT = "/v1/chat/completions"
KEYS = ["boss-secret", {"key": "guest-secret", "name": "guest", "admin": False}]
BOSS = {"Authorization": "Bearer boss-secret"}
GUEST = {"Authorization": "Bearer guest-secret"}
AS_BROWSERS = {"Accept": "text/html"}
EVIL = {"Origin": "https://evil.example"}
CHANGES = [
    ("POST", CHAT),
    ("POST", "/v1/models/load"),
    ("POST", "/v1/models/eject"),
    ("POST", "/v1/models/org/tiny/reset"),
    ("POST", "/models/load"),
    ("POST", "/models/unload"),
    ("POST", "/upstream/org/tiny/tokenize"),
    ("GET", "/upstream/org/tiny/props"),
    ("HEAD", "/upstream/org/tiny/"),
    ("OPTIONS", "/upstream/org/tiny/"),
    ("DELETE", "/upstream/org/tiny/x"),
]
MANAGEMENT = [*CHANGES[1:8], ("GET", "/v1/models/org/tiny/logs")]


Start = Callable[..., Awaitable[Way]]


@pytest.fixture
async def start(way: str, tiny_gguf: Path, tmp_path: Path, upstream: StandIn) -> AsyncIterator[Start]:
    """Starts routers; what it takes is their section `api`."""
    async with AsyncExitStack() as stack:

        async def begin(**api: Any) -> Way:
            tree = {
                "api": api,
                "system": {"log_dir": str(tmp_path / "logs")},
                "models": {"org/tiny": {"model_path": str(tiny_gguf), "aliases": ["tiny"]}},
            }
            config = parse(json.dumps(tree), tmp_path, {})
            app = create_app(config, launcher=FakeLauncher(upstream.port), probe=FakeProbe(10_000))
            return await stack.enter_async_context(reached_by(way, app))

        yield begin


@pytest.fixture
async def opened(start: Start) -> AsyncIterator[Browser]:
    """A router without keys."""
    async with (await start(max_body_mb=0.01)).client() as client:
        yield client


@pytest.fixture
async def locked(start: Start) -> AsyncIterator[Browser]:
    """One with keys."""
    async with (await start(api_keys=KEYS)).client() as client:
        yield client


def error_of(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert error.keys() >= {"message", "type", "param", "code"}
    assert error["code"] == code
    return error


async def raw(
    way: Way, path: str, headers: list[tuple[bytes, bytes]], method: str = "GET"
) -> tuple[int, Any]:
    """Status and JSON for headers that no client library would send."""
    reply = await way.ask(method, path, headers, [])
    return reply.status, json.loads(reply.body)


# --- Host: DNS rebinding -----------------------------------------------------------------------------


NOBODY_CAN_REBIND = [
    "localhost",
    "localhost:8000",
    "LOCALHOST:1",
    "localhost.",
    "127.0.0.1",
    "127.0.0.1:8000",
    "[::1]",
    "[::1]:8000",
    "[FE80::1]",
    "192.168.1.5:80",
    "nas",
    "nas.local",
    "a.localhost",
    "Box.LAN:8000",
    "my_box",
]
ANY_OTHER_HOST = [
    "evil.example",
    "evil.example:8000",
    "EVIL.EXAMPLE.",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "localhost@evil.example",
    "localhost:80@evil.example",
    "localhost#evil.example",
    "localhost/evil.example",
    "evil.example/localhost",
    "evillocal.example",
    "notlocalhost.com",
    "evil.example:80:80",
    "[::1].evil.example",
    "[::1]evil.example",
    "[evil.example]",
    "[",
    "]",
    "[]",
    ":",
    ":80",
    ".",
    "..",
    "localhost:port",
    "localhost:8000:evil.example",
    "127.0.0.1 evil.example",
    "localhost,evil.example",
    "1.2.3.4.5",
    "xn--evil.ws",
    "",
    " ",
]


async def test_a_host_that_nobody_can_rebind_is_let_in(opened: Browser) -> None:
    for host in NOBODY_CAN_REBIND:
        assert (await opened.get("/v1/models", headers={"Host": host})).status_code == 200, host


async def test_any_other_host_is_refused(opened: Browser) -> None:
    for host in ANY_OTHER_HOST:
        for path in ("/v1/models", "/", "/health", "/nowhere", "/v1/chat/completions"):
            status, body = await raw(opened.way, path, [(b"host", host.encode())])
            assert (status, body["error"]["code"]) == (403, "host_not_allowed"), (host, path, body)


async def test_two_host_headers_are_refused_whatever_their_order(opened: Browser) -> None:
    for hosts in (["localhost", "evil.example"], ["evil.example", "localhost"], ["localhost", "localhost"]):
        status, _ = await raw(opened.way, "/v1/models", [(b"host", h.encode()) for h in hosts])
        assert status == 400


async def test_an_old_program_without_host_is_let_in(opened: Browser) -> None:
    assert (await raw(opened.way, "/health", []))[0] == 200


async def test_allowed_hosts_are_exact(start: Start) -> None:
    api = {"allowed_hosts": ["Router.example.com"]}
    async with (await start(**api)).client() as client:
        for host, status in {
            "router.example.com": 200,
            "ROUTER.example.com:8000": 200,
            "evil.router.example.com": 403,
            "router.example.com.evil.com": 403,
            "example.com": 403,
            "xrouter.example.com": 403,
        }.items():
            assert (await client.get("/health", headers={"Host": host})).status_code == status, host


@pytest.mark.parametrize("host", ["[", "evil.example", "a/b?c#d", ""])
async def test_without_the_guard_a_strange_host_still_breaks_nothing(start: Start, host: str) -> None:
    way = await start(allowed_hosts=["*"])
    for method, path in (("GET", "/nowhere"), ("DELETE", "/health"), ("GET", "/v1/models/nobody")):
        status, body = await raw(way, path, [(b"host", host.encode())], method)
        assert (status in (404, 405), set(body)) == (True, {"error"})


# --- Origin: pages of others -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        EVIL,
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://["},
        {"Origin": "http://127.0.0.1:3000"},
        {"Origin": "http://127.0.0.1:8000.evil.example"},
        {"Origin": "http://127.0.0.1:8000@evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
async def test_a_page_of_another_origin_changes_nothing(
    opened: Browser, upstream: StandIn, headers: dict[str, str]
) -> None:
    for method, path in CHANGES:
        answer = await opened.request(method, path, json={"model": "tiny"}, headers=headers)
        assert answer.status_code == 403
        if method != "HEAD":
            error_of(answer, 403, "origin_not_allowed")
    assert not upstream.requests
    assert (await opened.get("/v1/models/tiny/status")).json()["status"] == "off"


@pytest.mark.parametrize(
    "headers",
    [{}, {"Origin": "http://127.0.0.1:8000"}, {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}],
    ids=str,
)
async def test_our_own_page_and_programs_may(opened: Browser, headers: dict[str, str]) -> None:
    for method, path in CHANGES:
        answer = await opened.request(method, path, json={"model": "tiny"}, headers=headers)
        assert answer.status_code in (200, 202), (method, path, answer.text)


async def test_a_page_of_another_origin_can_read_nothing(opened: Browser) -> None:
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    for path in ("/v1/models", "/", "/vram", "/metrics", "/health", "/nowhere", CHAT):
        for method, more in (("GET", {}), ("OPTIONS", preflight)):
            answer = await opened.request(method, path, headers=EVIL | more)
            assert not [name for name in answer.headers if name.startswith("access-control")], path


async def test_only_the_configured_origin_may_read(start: Start) -> None:
    friend, preflight = {"Origin": "https://app.example"}, {"Access-Control-Request-Method": "POST"}
    api = {"cors_allow_origins": ["https://app.example"]}
    async with (await start(**api)).client() as client:
        allowed = await client.options(CHAT, headers=friend | preflight)
        assert allowed.headers["access-control-allow-origin"] == "https://app.example"
        assert "access-control-allow-credentials" not in allowed.headers
        load = await client.post("/v1/models/load", json={"model": "tiny"}, headers=friend)
        assert load.status_code == 202
        for origin in (
            "https://evil.example",
            "null",
            "https://app.example.evil.example",
            "http://app.example",
            "https://app.example:444",
            "https://sub.app.example",
        ):
            for answer in (
                await client.options(CHAT, headers={"Origin": origin} | preflight),
                await client.get("/v1/models", headers={"Origin": origin}),
            ):
                assert "access-control-allow-origin" not in answer.headers
            refused = await client.options(CHAT, headers={"Origin": origin} | preflight)
            error_of(refused, 403, "origin_not_allowed")


async def test_even_an_allowed_origin_needs_a_known_host(start: Start) -> None:
    async with (await start(cors_allow_origins=["*"])).client() as client:
        error_of(
            await client.get("/v1/models", headers=EVIL | {"Host": "evil.example"}), 403, "host_not_allowed"
        )


@pytest.mark.parametrize(
    "media_type",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "text/plain;application/json",
        "TEXT/PLAIN; charset=application/json",
        "application/jsonp",
        " ",
        "x",
    ],
)
async def test_what_a_form_can_post_is_no_request(opened: Browser, media_type: str) -> None:
    for path in (CHAT, "/v1/models/load", "/v1/models/eject", "/models/load", "/models/unload"):
        answer = await opened.post(path, content=b'{"model":"tiny"}', headers={"Content-Type": media_type})
        error_of(answer, 415, "unsupported_media_type")


async def test_every_answer_forbids_sniffing_and_framing(opened: Browser) -> None:
    for path in (
        "/",
        "/ui/app.js",
        "/health",
        "/v1/models",
        "/nowhere",
        "/docs",
        "/metrics",
        "/upstream/tiny/x",
    ):
        answer = await opened.get(path)
        assert answer.headers.get_list("x-content-type-options") == ["nosniff"], path
        assert answer.headers.get_list("x-frame-options") == ["DENY"], path
    for path in ("/", "/docs"):
        page = await opened.get(path, headers=AS_BROWSERS)
        policy = page.headers["content-security-policy"]
        assert policy == "default-src 'self'; frame-ancestors 'none'; base-uri 'none'"
        assert not re.search(r"https?:|<script>|<style|\son\w+=", page.text), (
            "nothing inline, nothing from others"
        )


async def test_no_part_of_the_page_is_older_than_the_router(opened: Browser) -> None:
    for path in ("/", "/ui/app.js", "/ui/base.css"):
        answer = await opened.get(path, headers=AS_BROWSERS)
        assert answer.headers["cache-control"] == "no-cache"
        again = await opened.get(path, headers={**AS_BROWSERS, "If-None-Match": answer.headers["etag"]})
        assert again.status_code in (200, 304)


# --- keys --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"X-Api-Key": ""},
        {"Authorization": "Basic boss-secret"},
        {"Authorization": "boss-secre"},
        {"Authorization": "Bearer boss-secre"},
        {"Authorization": "Bearer boss-secret2"},
        {"Authorization": "Bearer BOSS-SECRET"},
        {"Authorization": "Bearer wrong", "X-Api-Key": "boss-secret"},
        {"Cookie": "api_key=boss-secret"},
    ],
    ids=str,
)
async def test_a_wrong_key_opens_nothing_but_health_and_the_page(
    locked: Browser, headers: dict[str, str]
) -> None:
    paths = [
        "/v1/models",
        "/docs",
        "/openapi.json",
        "/redoc",
        "/nowhere",
        "/metrics/stream",
        "/vram",
        "/ui",
        "/v1/models/failed",
        "/health/x",
        "/Health",
        "/metrics/../v1/models",
        "/v1/models?api_key=boss-secret",
        "/v1/models?key=boss-secret",
    ]
    for path in paths:
        error_of(await locked.get(path, headers=headers), 401, "invalid_api_key")
    for method, path in CHANGES:
        if method not in ("HEAD", "OPTIONS"):
            answer = await locked.request(method, path, json={"model": "tiny"}, headers=headers)
            error_of(answer, 401, "invalid_api_key")
    for path in ("/", "/health", "/metrics", "/ui/app.js"):
        assert (await locked.get(path, headers=headers)).status_code == 200, path


@pytest.mark.parametrize(
    "given", [b"\xe9", b"boss-secret\xe9", b"\xff\xfe\x80", "ключ".encode(), b"a" * 20_000]
)
async def test_bytes_that_are_no_text_are_a_wrong_key(locked: Browser, given: bytes) -> None:
    for name, value in ((b"authorization", b"Bearer " + given), (b"x-api-key", given)):
        status, body = await raw(locked.way, "/v1/models", [(b"host", b"localhost"), (name, value)])
        assert (status, body["error"]["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize(
    "headers", [BOSS, {"Authorization": "bearer  boss-secret "}, {"X-Api-Key": "boss-secret"}]
)
async def test_the_right_key_opens_everything(locked: Browser, headers: dict[str, str]) -> None:
    assert (await locked.post(CHAT, json={"model": "tiny"}, headers=headers)).status_code == 200
    for path in ("/v1/models", "/docs", "/openapi.json", "/v1/models/tiny/logs", "/upstream/tiny/props"):
        assert (await locked.get(path, headers=headers)).status_code == 200, path


async def test_managing_needs_admin(locked: Browser, upstream: StandIn) -> None:
    for method, path in MANAGEMENT:
        for body in ({"model": "tiny"}, {"model": "nobody"}, {}):
            answer = await locked.request(method, path, json=body, headers=GUEST)
            assert answer.status_code == 403, path
            if method != "HEAD":
                error_of(answer, 403, "forbidden")
    assert not upstream.requests


async def test_a_preflight_is_no_way_around_the_keys(locked: Browser, upstream: StandIn) -> None:
    error_of(await locked.options("/upstream/tiny/props"), 403, "forbidden")
    assert (await locked.options("/v1/models")).status_code == 405
    assert not upstream.requests


async def test_the_log_of_a_failed_model_is_for_admins(locked: Browser) -> None:
    instance = locked.way.app.state.services.manager.instances["org/tiny"]
    locked.way.app.state.services.launcher.fail_next = [RuntimeError("it said: PROMPT")] * 9
    await locked.post("/v1/models/load?wait=true", json={"model": "tiny"}, headers=BOSS)
    assert instance.status.public == "failed"
    (mine,) = (await locked.get("/v1/models/failed", headers=BOSS)).json()["failed_models"]
    (theirs,) = (await locked.get("/v1/models/failed", headers=GUEST)).json()["failed_models"]
    assert theirs["log_tail"] == []
    assert mine.keys() == theirs.keys()


async def test_no_secret_is_in_any_answer_or_log(locked: Browser, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    paths = (
        "/v1/models",
        "/v1/models/status",
        "/v1/models/tiny/status",
        "/v1/models/tiny/plan",
        "/vram",
        "/health",
        "/v1/models/nobody",
        "/nowhere",
        "/v1/queue/stats",
        "/v1/telemetry/summary",
        "/metrics",
        "/openapi.json",
        "/v1/models/tiny/logs",
    )
    await locked.post("/v1/models/load?wait=true", json={"model": "tiny"}, headers=BOSS)
    texts = [(await locked.get(path, headers=BOSS)).text for path in paths]
    texts.append((await locked.post(CHAT, json={"model": "tiny", "stream": "x"}, headers=BOSS)).text)
    texts.append((await locked.get("/v1/models", headers={"Authorization": "Bearer a-wrong-secret"})).text)
    told = caplog.text + "".join(texts)
    assert not re.search(r"(boss|guest|wrong)-secret", told)


async def test_a_clients_key_is_not_passed_on_to_llama_server(locked: Browser, upstream: StandIn) -> None:
    personal = {"Cookie": "session=mine", "X-Api-Key": "boss-secret"}
    await locked.post(CHAT, json={"model": "tiny"}, headers=personal)
    await locked.get("/upstream/tiny/props", headers=BOSS | personal)
    assert len(upstream.requests) == 2
    for request in upstream.requests:
        assert request.lower().count(b"authorization:") == 1
        assert b"authorization: Bearer key\r\n" in request
        assert not re.search(rb"secret|mine", request)


async def test_the_tunnel_passes_what_is_meant_for_the_far_end(opened: Browser, upstream: StandIn) -> None:
    sent = {"X-Llama-Server-Proxy-Header-Authorization": "Bearer of-the-far-end", "Mcp-Session-Id": "7"}
    await opened.post("/upstream/tiny/mcp", json={}, headers=sent)
    await opened.post(CHAT, json={"model": "tiny"}, headers=sent)
    tunnelled, routed = upstream.requests
    for name, value in sent.items():
        assert f"{name.lower()}: {value}\r\n".encode() in tunnelled
    assert b"far-end" not in routed
    assert tunnelled.lower().count(b"\r\nhost:") == tunnelled.lower().count(b"\r\ncontent-length:") == 1


async def test_a_conversation_id_never_reaches_llama_server(opened: Browser, upstream: StandIn) -> None:
    """With it llama-server goes on computing when its client has left, and ignores SIGTERM."""
    sent = {"X-Conversation-Id": "mine"}
    for path in (CHAT, "/v1/messages", "/v1/responses", "/tokenize"):
        await opened.post(path, json={"model": "tiny"}, headers=sent)
    for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"):
        await opened.request(method, "/upstream/tiny/v1/chat/completions", headers=sent)
    assert len(upstream.requests) == 10
    assert not [request for request in upstream.requests if b"conversation" in request.lower()]


# --- sessions: the cookie of the page -----------------------------------------------------------------

OUR_PAGE = {"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-origin"}
COOKIE = "router_session_8000"


async def log_in(client: Browser, key: str = "boss-secret", **headers: str) -> httpx.Response:
    """From here on this client sends the cookie with everything, as a browser does."""
    return await client.post("/session", json={"key": key}, headers=OUR_PAGE | headers)


async def test_a_login_opens_what_its_key_opens(locked: Browser, upstream: StandIn) -> None:
    before = (await locked.get("/session")).json()
    assert before == {"key_needed": True, "logged_in": False, "name": "", "admin": False}
    answer = await log_in(locked)
    cookie = answer.headers["set-cookie"]
    assert re.fullmatch(rf"{COOKIE}=[\w-]{{43}}; HttpOnly; SameSite=strict", cookie)
    load = await locked.post("/v1/models/load?wait=true", json={"model": "tiny"}, headers=OUR_PAGE)
    assert load.status_code == 200
    for path in ("/v1/models", "/docs", "/v1/models/tiny/logs", "/upstream/tiny/props"):
        assert (await locked.get(path)).status_code == 200, path
    assert (await locked.get("/session")).json()["admin"]
    assert not [request for request in upstream.requests if b"ookie" in request]


async def test_a_login_gives_no_more_than_its_key(locked: Browser) -> None:
    told = (await log_in(locked, "guest-secret")).json()
    assert told == {"key_needed": True, "logged_in": True, "name": "guest", "admin": False}
    assert (await locked.get("/v1/models")).status_code == 200
    for method, path in MANAGEMENT:
        answer = await locked.request(method, path, json={"model": "tiny"}, headers=OUR_PAGE)
        assert answer.status_code == 403, path


@pytest.mark.parametrize("key", ["", "boss-secre", "BOSS-SECRET", "wrong-secret", "\u043a", "a" * 4000])
async def test_a_wrong_key_is_no_login(locked: Browser, caplog: pytest.LogCaptureFixture, key: str) -> None:
    caplog.set_level(logging.DEBUG)
    answer = await log_in(locked, key)
    error_of(answer, 401, "invalid_api_key")
    assert "set-cookie" not in answer.headers
    assert "login with a wrong key from 127.0.0.1" in caplog.text
    assert not key or key not in caplog.text + answer.text


async def test_a_login_that_is_too_large_is_refused_before_it_has_come(locked: Browser) -> None:
    error_of(await log_in(locked, "a" * 4096), 413, "request_too_large")
    error_of(
        await locked.post("/session", content=chunked(20_000), headers=OUR_PAGE), 413, "request_too_large"
    )


async def test_wrong_keys_from_one_address_are_limited(locked: Browser) -> None:
    for _ in range(MAX_FAILURES):
        error_of(await log_in(locked, "wrong-secret"), 401, "invalid_api_key")
    for key in ("wrong-secret", "boss-secret"):
        answer = await log_in(locked, key)
        error_of(answer, 429, "too_many_logins")
        assert 0 < int(answer.headers["retry-after"]) <= WINDOW_S
    assert (await locked.get("/v1/models", headers=BOSS)).status_code == 200


def test_failed_logins_are_forgotten_in_time_and_by_number() -> None:
    now = [0.0]
    failed = FailedLogins(lambda: now[0])
    for number in range(MAX_FAILURES):
        failed.check("a")
        failed.note("a")
        now[0] = number
    with pytest.raises(TooManyLogins):
        failed.check("a")
    failed.check("b")
    now[0] = WINDOW_S
    failed.check("a")
    for number in range(2 * MAX_ADDRESSES):
        failed.note(str(number))
    assert len(failed._failures) == MAX_ADDRESSES


def test_a_key_that_logs_in_without_end_ends_its_own_sessions_only() -> None:
    sessions = Sessions(lambda: 0.0)
    admins = sessions.open(b"admin")
    tokens = [sessions.open(b"guest") for _ in range(MAX_SESSIONS)]
    assert sessions.key_of(admins) == b"admin"
    living = [token for token in tokens if sessions.key_of(token)]
    assert living == tokens[-MAX_OF_ONE_KEY:]


@pytest.mark.parametrize("body", [b"{}", b'{"key":7}', b'{"key":null}', b"[]", b"{"])
async def test_a_login_without_a_key_is_a_mistake(locked: Browser, body: bytes) -> None:
    answer = await locked.post("/session", content=body)
    assert (answer.status_code, "set-cookie" in answer.headers) == (400, False)


async def test_a_form_of_another_page_logs_nobody_in_or_out(locked: Browser) -> None:
    await log_in(locked)
    for method in ("POST", "DELETE"):
        answer = await locked.request(method, "/session", json={"key": "guest-secret"}, headers=EVIL)
        error_of(answer, 403, "origin_not_allowed")
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = await locked.post("/session", content=b"key=guest-secret", headers=form)
    error_of(answer, 415, "unsupported_media_type")
    assert (await locked.get("/session")).json()["admin"]


@pytest.mark.parametrize("origins", [[], ["*"], ["http://127.0.0.1:3000"]], ids=str)
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://127.0.0.1:3000"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
    ids=str,
)
async def test_the_cookie_counts_on_our_own_page_only(
    start: Start, origins: list[str], headers: dict[str, str]
) -> None:
    """A browser sends it with what a page on another port asks for: the port is no part of a site."""
    api = {"api_keys": KEYS, "cors_allow_origins": origins}
    async with (await start(**api)).client() as client:
        await log_in(client)
        assert (await client.get("/v1/models")).status_code == 200
        error_of(await client.get("/v1/models", headers=headers), 401, "invalid_api_key")
        for method, path in (("POST", "/v1/models/org/tiny/reset"), ("GET", "/upstream/tiny/props")):
            assert (await client.request(method, path, headers=headers)).status_code in (401, 403)


async def test_a_key_in_a_header_goes_before_the_cookie(locked: Browser) -> None:
    await log_in(locked)
    for headers in ({"Authorization": "Bearer wrong"}, {"X-Api-Key": "wrong"}, {"X-Api-Key": ""}):
        error_of(await locked.get("/v1/models", headers=headers), 401, "invalid_api_key")
    assert (await locked.get("/session", headers=GUEST)).json()["name"] == "guest"
    a_proxys_own = {"Authorization": "Basic cHJveHk6cGFzcw=="}
    assert (await locked.get("/v1/models", headers=a_proxys_own)).status_code == 200


async def test_a_logout_ends_this_session_and_no_other(locked: Browser) -> None:
    await log_in(locked)
    stolen = {"Cookie": f"{COOKIE}={locked.cookies[COOKIE]}"}
    async with locked.way.client() as other:
        await log_in(other)
        answer = await locked.delete("/session", headers=OUR_PAGE)
        assert (answer.json()["logged_in"], COOKIE in locked.cookies) == (False, False)
        error_of(await locked.get("/v1/models", headers=stolen), 401, "invalid_api_key")
        assert (await other.get("/v1/models")).status_code == 200


async def test_behind_a_proxy_with_tls_the_cookie_is_for_tls_only(start: Start) -> None:
    api = {"api_keys": KEYS, "allowed_hosts": ["llm.example.com"]}
    async with (await start(**api)).client() as client:
        page = {"Host": "llm.example.com", "Origin": "https://llm.example.com"}
        assert (await log_in(client, **page)).headers["set-cookie"].endswith("; Secure")


async def test_a_reload_without_the_key_ends_its_sessions_and_streams(
    start: Start, tiny_gguf: Path, tmp_path: Path
) -> None:
    async with (await start(api_keys=KEYS)).client() as client:
        await log_in(client)
        app = client.way.app
        stream = app.state.services.feed.stream()
        await stream.__anext__()
        path = tmp_path / "config.json"
        models = {"org/tiny": {"model_path": str(tiny_gguf), "aliases": ["tiny"]}}
        demoted = [{"key": "boss-secret", "admin": False}]
        for keys, status, admin in ((KEYS[:1], 200, True), (demoted, 200, False), (KEYS[1:], 401, False)):
            path.write_text(json.dumps({"api": {"api_keys": keys}, "models": models}))
            await reload(app.state.configuration, path)
            assert (await client.get("/v1/models")).status_code == status
            assert (await client.get("/session")).json()["admin"] == admin
        assert [event async for event in stream] == []


async def test_without_keys_nobody_logs_in(opened: Browser) -> None:
    told = (await opened.get("/session")).json()
    assert told == {"key_needed": False, "logged_in": False, "name": "", "admin": True}
    error_of(await log_in(opened), 400, "invalid_request")


def test_sessions_end_by_themselves_and_are_bounded() -> None:
    now = [0.0]
    sessions = Sessions(lambda: now[0])
    first, second = sessions.open(b"a"), sessions.open(b"b")
    now[0] = LIFETIME_S - 1
    keys = [b"%d" % number for number in range(MAX_SESSIONS - 1)]
    tokens = [sessions.open(key) for key in keys]
    assert (sessions.key_of(first), sessions.key_of(second)) == (None, b"b")
    now[0] = LIFETIME_S
    assert (sessions.key_of(second), sessions.key_of(tokens[0])) == (None, b"0")
    assert len({first, second, *tokens}) == MAX_SESSIONS + 1
    for strange in ("", first[:-1], first + "=", "\xff"):
        assert sessions.key_of(strange) is None


# --- headers -----------------------------------------------------------------------------------------


asgi_only = pytest.mark.parametrize("way", ["asgi"])
"""What no parser of HTTP lets through; the application must not rely on it."""


@asgi_only
@pytest.mark.parametrize("given", [b"a\r\nX-Evil: 1", b"\x00"])
async def test_a_request_id_that_no_parser_lets_through_is_replaced_too(
    opened: Browser, given: bytes
) -> None:
    await test_a_request_id_that_could_do_harm_is_replaced(opened, given)


@pytest.mark.parametrize("given", [b"a b", b"\xe9", b"a" * 129, b"", b"<script>", b"a;b"])
async def test_a_request_id_that_could_do_harm_is_replaced(opened: Browser, given: bytes) -> None:
    answer = await opened.get("/health", headers={b"X-Request-ID": given})
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])
    assert "x-evil" not in answer.headers


async def test_a_usable_request_id_is_kept(opened: Browser) -> None:
    answer = await opened.get("/health", headers={"X-Request-ID": "abc-1.2:3_4"})
    assert answer.headers.get_list("x-request-id") == ["abc-1.2:3_4"]


@pytest.mark.parametrize(
    "given", [b"urgent", b"0", b"4", b"high, low", b"\xb9", b"high\tX-Evil: 1", b"1e0", b"", b"-1"]
)
async def test_a_strange_priority_is_refused(opened: Browser, given: bytes) -> None:
    answer = await opened.post(CHAT, json={"model": "tiny"}, headers={b"X-Request-Priority": given})
    error_of(answer, 400, "invalid_priority")


@asgi_only
async def test_a_control_character_is_not_passed_on(opened: Browser, upstream: StandIn) -> None:
    for given in (b"a\r\nX-Evil: 1", b"a\x00", b"a\x01", b"\x85"):
        answer = await opened.post(CHAT, json={"model": "tiny"}, headers={b"Accept": given})
        assert answer.status_code == 200
    assert not [request for request in upstream.requests if b"Evil" in request]


async def test_too_many_and_too_long_headers_are_refused(opened: Browser) -> None:
    many = {f"x-{number}": "a" for number in range(MAX_HEADERS + 1)}
    for headers in (many, {"X-Long": "a" * MAX_HEADER_BYTES}):
        error_of(await opened.get("/health", headers=headers), 431, "headers_too_large")


# --- paths -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "received"),
    [
        ("/upstream/tiny/props", "/props"),
        ("/upstream/tiny", "/"),
        ("/upstream/tiny/", "/"),
        ("/upstream/org/tiny/slots?a=1&b=%26", "/slots?a=1&b=%26"),
        ("/upstream/org%2Ftiny/slots", "/slots"),
        ("/upstream/tiny/a%20b", "/a%20b"),
        ("/upstream/tiny/a%3Fb=1", "/a%3Fb=1"),
        ("/upstream/tiny/a%23b", "/a%23b"),
        ("/upstream/tiny/%0dX-Evil:%201", "/%0dX-Evil:%201"),
        ("/upstream/tiny/x%20HTTP/1.1%0d%0dGET%20/y", "/x%20HTTP/1.1%0d%0dGET%20/y"),
        ("/upstream/tiny/%C3%A9?q=%C3%A9", "/%C3%A9?q=%C3%A9"),
        ("/upstream/tiny//slots", "//slots"),
        ("/upstream/tiny/http://evil.example/", "/http://evil.example/"),
        ("/upstream/tiny/@evil.example/", "/@evil.example/"),
        ("/upstream/tiny/a%252e%252e", "/a%252e%252e"),
    ],
)
async def test_a_path_reaches_llama_server_as_it_was_written(
    opened: Browser, upstream: StandIn, asked: str, received: str
) -> None:
    assert (await opened.get(asked, headers={"Sec-Fetch-Mode": "navigate"})).status_code == 200
    assert upstream.targets == [received]


async def test_a_line_break_in_a_path_is_no_path(opened: Browser, upstream: StandIn) -> None:
    for path in ("/upstream/tiny/%0d%0aX-Evil:%201", "/upstream/tiny/x%20HTTP/1.1%0d%0a%0d%0aGET%20/y"):
        error_of(await opened.get(path), 404, "not_found")
    assert not upstream.requests


@pytest.mark.parametrize(
    "path",
    [
        "..",
        "../x",
        "a/../b",
        "%2e%2e",
        "%2E%2e/x",
        "a/%2e%2e%2fb",
        "..%5Cx",
        "..\\x",
        "a/./b",
        "%2e",
        "a%2f..%2fb",
    ],
)
async def test_dots_cannot_lead_anywhere(opened: Browser, upstream: StandIn, path: str) -> None:
    status, body = await raw(opened.way, f"/upstream/tiny/{path}", [(b"host", b"localhost")])
    assert status == 400, body
    assert not upstream.requests


@pytest.mark.parametrize(
    "alias",
    [
        "..",
        "../../etc/passwd",
        "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "..%5c..%5cboot.ini",
        "/etc/passwd",
        "%00",
        "tiny%00",
        "%0d%0aevil",
        "a" * 3000,
        "%F0%9F%92%A9",
        "%ff",
        "tiny%20",
        "TINY2",
        "{alias}",
        "%3Cscript%3E",
    ],
)
async def test_an_alias_is_a_configured_name_or_unknown(opened: Browser, alias: str) -> None:
    for path in (
        f"/v1/models/{alias}/logs",
        f"/v1/models/{alias}",
        f"/upstream/{alias}/x",
        f"/v1/models/{alias}/plan",
    ):
        answer = await opened.get(path)
        assert answer.status_code in (400, 404), (path, answer.text)
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert "root:" not in answer.text


@pytest.mark.parametrize(
    "path",
    [
        "../page.py",
        "%2e%2e/page.py",
        "..%2fpage.py",
        "....//page.py",
        "%00",
        "app.js%00",
        "/etc/passwd",
        "a" * 3000,
        ".",
        "..%5cpage.py",
        "%ff",
        "",
    ],
)
async def test_the_pages_folder_is_not_left(opened: Browser, path: str) -> None:
    for spelling in (f"/ui/{path}", f"/ui//{path}"):
        status = (await opened.get(httpx.URL("http://127.0.0.1:8000" + spelling))).status_code
        assert status == 404, spelling


# --- bodies ------------------------------------------------------------------------------------------


def pieces(size: int) -> Iterator[bytes]:
    yield from (b" " * 1000 for _ in range(size // 1000))


async def chunked(size: int) -> AsyncIterator[bytes]:
    for piece in pieces(size):
        yield piece


@asgi_only
async def test_a_large_body_is_refused_however_its_length_is_told(opened: Browser) -> None:
    json_type = {"Content-Type": "application/json"}
    for path in (CHAT, "/v1/models/load", "/upstream/tiny/tokenize"):
        for more in (
            {},
            {"Content-Length": "10"},
            {"Content-Length": "-1"},
            {"Content-Length": "\u00b2"},
            {"Content-Length": "1" * 5000},
            {"Content-Length": "abc"},
        ):
            headers = [(k.encode(), v.encode("latin-1")) for k, v in (json_type | more).items()]
            answer = await opened.post(path, content=chunked(20_000), headers=headers)
            error_of(answer, 413, "request_too_large")


async def test_a_large_body_in_chunks_is_refused(opened: Browser) -> None:
    for path in (CHAT, "/v1/models/load", "/upstream/tiny/tokenize", "/session"):
        answer = await opened.post(
            path, content=chunked(20_000), headers={"Content-Type": "application/json"}
        )
        error_of(answer, 413, "request_too_large")


@asgi_only
async def test_a_declared_large_body_is_refused_before_it_is_read(opened: Browser) -> None:
    async def never() -> AsyncIterator[bytes]:
        raise AssertionError("it was read")
        yield b""

    answer = await opened.post(CHAT, content=never(), headers={"Content-Length": "20000"})
    error_of(answer, 413, "request_too_large")


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":'])
async def test_deep_nesting_is_refused(opened: Browser, opening: bytes) -> None:
    answer = await opened.post(CHAT, content=opening * 600, headers={"Content-Type": "application/json"})
    error_of(answer, 400, "invalid_json")


@asgi_only
async def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_mistake_of_ours(
    opened: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    messages: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0) if len(messages) > 1 else messages[0]

    async def send(message: MutableMapping[str, Any]) -> None:
        raise AssertionError(f"answered {message}")

    for path in (CHAT, "/v1/models/load"):
        messages[:] = [
            {"type": "http.request", "body": b'{"mod', "more_body": True},
            {"type": "http.disconnect"},
        ]
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"host", b"localhost")],
            "root_path": "",
        }
        await opened.way.app(scope, receive, send)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_every_error_has_a_status_of_its_kind() -> None:
    kinds = {
        401: "authentication_error",
        403: "permission_error",
        424: "api_error",
        429: "rate_limit_error",
        503: "overloaded_error",
        504: "timeout_error",
    }
    for error in RouterError.__subclasses__():
        expected = kinds.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
        assert error.type == expected


# --- keys in files -----------------------------------------------------------------------------------


def keys_of(entries: list[Any], folder: Path, env: dict[str, str] | None = None) -> list[str]:
    config = parse(json.dumps({"api": {"api_keys": entries}}), folder, env or {})
    return [key.key.get_secret_value() for key in config.api.api_keys]


def test_a_key_may_stand_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "alice.key").write_text("alice-secret\n")
    assert keys_of([{"key_file": "alice.key", "name": "alice"}, "other"], tmp_path) == [
        "alice-secret",
        "other",
    ]
    from_env = {"ROUTER_API__API_KEYS": json.dumps([{"key_file": str(tmp_path / "alice.key")}])}
    assert keys_of(["forgotten"], tmp_path, from_env) == ["alice-secret"]


@pytest.mark.parametrize(
    ("content", "entry", "told"),
    [
        (None, {"key_file": "k"}, "No such file"),
        (b"", {"key_file": "k"}, "printable ASCII"),
        (b"two SECRET-words", {"key_file": "k"}, "printable ASCII"),
        (b"\xffSECRET", {"key_file": "k"}, "holds no key"),
        (b"SECRET", {"key_file": "k", "key": "SECRET"}, "remove one"),
        (b"SECRET", {"key_file": ""}, "must not be empty"),
        (b"SECRET", {"name": "nobody"}, "key: is missing"),
    ],
)
def test_a_key_file_that_is_no_use_is_told_without_its_content(
    tmp_path: Path, content: bytes | None, entry: dict[str, str], told: str
) -> None:
    if content is not None:
        (tmp_path / "k").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        keys_of([entry], tmp_path)
    assert told in str(caught.value)
    assert "SECRET" not in str(caught.value)


def test_the_same_key_in_a_file_and_beside_it_is_told(tmp_path: Path) -> None:
    (tmp_path / "k").write_text("same")
    with pytest.raises(ConfigError, match="is the same key as"):
        keys_of(["same", {"key_file": "k"}], tmp_path)
