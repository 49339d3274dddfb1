"""Requests that were refused without need, without a reason, or so that clients asked again for minutes."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.configuration.file import parse
from app.main import create_app
from app.observability import refusal_log
from tests.event_loops import on_the_loop_of_production
from tests.fakes import FakeLauncher, FakeProbe
from tests.router_process import until
from tests.serving import Browser, reached_by
from tests.stand_in import StandIn, router_before

__all__ = ["on_the_loop_of_production"]  # fixtures

CHAT = "/v1/chat/completions"
KEYS = ["boss-secret", {"key": "guest-secret", "name": "guest"}]
BOSS = {"Authorization": "Bearer boss-secret"}
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
Start = Callable[..., Awaitable[Browser]]


@pytest.fixture
async def start(tiny_gguf: Path, tmp_path: Path, upstream: StandIn) -> AsyncIterator[Start]:
    """A router on a socket, and a client of it; what it takes is the section `api`."""
    async with AsyncExitStack() as stack:

        async def begin(**api: Any) -> Browser:
            app = router_before(upstream, tiny_gguf, tmp_path, api)
            way = await stack.enter_async_context(reached_by("socket", app))
            return await stack.enter_async_context(way.client())

        yield begin


def code_of(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["code"])


# --- T3


async def test_localhost_as_an_origin_lets_in_pages_of_this_machine(start: Start) -> None:
    client = await start(cors_allow_origins=["localhost"], api_keys=["k"])
    local = (
        "http://localhost:3000",
        "http://127.0.0.1:5173",
        "http://[::1]",
        "http://0.0.0.0:8080",
        "https://app.localhost:8443",
    )
    for origin in local:
        preflight = await client.options(CHAT, headers={"Origin": origin, **PREFLIGHT})
        assert preflight.status_code == 200, origin
        assert preflight.headers["Access-Control-Allow-Origin"] == origin
        headers = {"Origin": origin, "Authorization": "Bearer k"}
        answer = await client.post(CHAT, json={"model": "tiny"}, headers=headers)
        assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (200, origin)


@pytest.mark.parametrize(
    "origin",
    ["http://localhost.evil.example", "http://evil.example", "null", "http://evil.example:localhost"],
)
async def test_localhost_as_an_origin_lets_in_nobody_else(start: Start, origin: str) -> None:
    client = await start(cors_allow_origins=["localhost"])
    preflight = await client.options(CHAT, headers={"Origin": origin, **PREFLIGHT})
    assert (preflight.status_code, code_of(preflight)) == (403, "origin_not_allowed")
    assert "Access-Control-Allow-Origin" not in preflight.headers
    answer = await client.post(CHAT, json={"model": "tiny"}, headers={"Origin": origin})
    assert (answer.status_code, code_of(answer)) == (403, "origin_not_allowed")


APPS = (
    "app://obsidian.md",
    "tauri://localhost",
    "http://tauri.localhost",
    "vscode-webview://1a2b",
    "file://x",
)


async def test_apps_as_an_origin_lets_in_desktop_apps_and_no_page(start: Start) -> None:
    client = await start(cors_allow_origins=["apps"])
    for origin in APPS:
        preflight = await client.options("/api/chat", headers={"Origin": origin, **PREFLIGHT})
        assert (preflight.status_code, preflight.headers["Access-Control-Allow-Origin"]) == (200, origin)
        answer = await client.post(CHAT, json={"model": "tiny"}, headers={"Origin": origin})
        assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (200, origin)
    for origin in ("http://localhost:3000", "https://app.example", "null", "chrome-extension://x"):
        answer = await client.post(CHAT, json={"model": "tiny"}, headers={"Origin": origin})
        assert (answer.status_code, code_of(answer)) == (403, "origin_not_allowed"), origin


# --- T5


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "boss-secret"},
        {"Authorization": "bearer boss-secret"},
        {"Authorization": "Bearer   boss-secret"},
        {"X-Api-Key": "boss-secret"},
        {"Authorization": "Basic cHJveHk6cGFzcw==", "X-Api-Key": "boss-secret"},
    ],
    ids=str,
)
async def test_a_key_is_taken_with_and_without_bearer(start: Start, headers: dict[str, str]) -> None:
    client = await start(api_keys=KEYS)
    assert (await client.get("/v1/models", headers=headers)).status_code == 200
    assert (await client.post(CHAT, json={"model": "tiny"}, headers=headers)).status_code == 200


@pytest.mark.parametrize("given", ["boss", "boss-secret2", "Basic boss-secret", "Token boss-secret", ""])
async def test_what_is_no_key_is_none_without_bearer_either(start: Start, given: str) -> None:
    client = await start(api_keys=KEYS)
    answer = await client.get("/v1/models", headers={"Authorization": given})
    assert (answer.status_code, code_of(answer)) == (401, "invalid_api_key")


# --- H8


async def test_behind_a_proxy_a_valid_key_makes_the_host_check_needless(start: Start) -> None:
    client = await start(api_keys=KEYS)
    for headers in (BOSS, {"X-Api-Key": "guest-secret"}):
        headers = {"Host": "box.tail1234.ts.net", **headers}
        assert (await client.get("/v1/models", headers=headers)).status_code == 200
        assert (await client.post(CHAT, json={"model": "tiny"}, headers=headers)).status_code == 200


async def test_without_a_valid_key_the_host_is_checked_as_ever(start: Start) -> None:
    client = await start(api_keys=KEYS)
    session = await client.post("/session", json={"key": "boss-secret"})
    assert session.status_code == 200  # from here on the client sends its cookie, as a browser does
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        answer = await client.get("/v1/models", headers={"Host": "evil.example", **headers})
        assert (answer.status_code, code_of(answer)) == (403, "host_not_allowed")
        assert "a valid API key" in answer.json()["error"]["message"]


async def test_a_key_is_no_licence_for_other_peoples_pages(start: Start) -> None:
    client = await start(api_keys=KEYS)
    headers = {"Origin": "https://evil.example", **BOSS}
    answer = await client.post(CHAT, json={"model": "tiny"}, headers=headers)
    assert (answer.status_code, code_of(answer)) == (403, "origin_not_allowed")


# --- R7

GUEST = {"Authorization": "Bearer guest-secret"}
HOPELESS: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "no key": ("GET", "/v1/models", {"headers": {"Authorization": "Bearer wrong"}}, 401),
    "not for this key": ("POST", "/v1/models/eject", {"json": {"model": "tiny"}, "headers": GUEST}, 403),
    "unknown host": ("GET", "/v1/models", {"headers": {"Host": "evil.example"}}, 403),
    "other origin": ("POST", CHAT, {"json": {}, "headers": {"Origin": "https://e.example", **BOSS}}, 403),
    "no such path": ("GET", "/v1/nothing", {}, 404),
    "no such model": ("POST", CHAT, {"json": {"model": "nobody"}}, 404),
    "no such model for Claude Code": ("POST", "/v1/messages", {"json": {"model": "nobody"}}, 404),
    "no such model to manage": ("GET", "/v1/models/nobody/status", {}, 404),
    "no such method": ("DELETE", "/v1/models", {}, 405),
    "no model": ("POST", "/v1/rerank", {"json": {}}, 400),
    "no JSON": ("POST", CHAT, {"content": b"{"}, 400),
    "wrong parameter": ("GET", "/v1/models/tiny/logs?lines=x", {}, 400),
    "wrong priority": (
        "POST",
        CHAT,
        {"json": {"model": "tiny"}, "headers": {"X-Request-Priority": "x"}},
        400,
    ),
    "wrong kind": ("POST", "/v1/embeddings", {"json": {"model": "tiny", "input": "x"}}, 400),
    "too large": ("POST", CHAT, {"content": b"x" * 200_000}, 413),
    "other type": ("POST", "/session", {"content": b"x", "headers": {"Content-Type": "text/csv"}}, 415),
    "large headers": ("GET", "/v1/models", {"headers": {"X-A": "x" * 40_000}}, 431),
}


@pytest.mark.parametrize("case", HOPELESS)
async def test_what_a_repeat_cannot_change_is_not_asked_for_minutes(start: Start, case: str) -> None:
    client = await start(api_keys=KEYS, max_body_mb=0.1)
    method, path, request, status = HOPELESS[case]
    request = {**request, "headers": {**BOSS, **request.get("headers", {})}}
    if case in ("unknown host", "other type"):  # a key makes both needless
        del request["headers"]["Authorization"]
    answer = await client.request(method, path, **request)
    assert answer.status_code == status, answer.text
    assert answer.headers["x-should-retry"] == "false"


async def test_a_client_in_a_page_of_another_origin_can_read_whether_to_ask_again(start: Start) -> None:
    """A browser shows a script only the headers that the answer names."""
    client = await start(api_keys=KEYS, cors_allow_origins=["https://chat.example"])
    for headers in ({}, BOSS):
        answer = await client.post(
            CHAT, json={"model": "nobody"}, headers={"Origin": "https://chat.example", **headers}
        )
        shown = answer.headers["access-control-expose-headers"].lower().split(", ")
        assert {"x-should-retry", "retry-after", "x-request-id"} <= set(shown)
        assert answer.headers["access-control-allow-origin"] == "https://chat.example"


# --- R9


async def test_each_refused_request_leaves_a_line_with_its_reason(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    client = await start(api_keys=KEYS)
    for path, headers in (
        ("/v1/models?api_key=QUERY-SECRET", {"Authorization": "Bearer WRONG-SECRET"}),
        ("/v1/models", {"X-Api-Key": "WRONG-SECRET", "Cookie": "a=WRONG-SECRET"}),
        ("/v1/models/tiny/logs", {**GUEST, "X-Request-ID": "mine-1"}),
        ("/nowhere/SECRETLESS", BOSS),
    ):
        await client.get(path, headers=headers)
    await client.post(CHAT, json={"model": "nobody", "messages": "PROMPT-SECRET"}, headers=BOSS)
    await client.options(CHAT, headers={"Origin": "https://e.example", **PREFLIGHT})
    await client.get("/v1/models", headers=BOSS)
    lines = [record.getMessage() for record in caplog.records if record.name == refusal_log.__name__]
    told = [(line.split()[1], line.split()[2], line.split(": ")[1]) for line in lines]
    assert told == [
        ("GET", "/v1/models", "401 invalid_api_key"),
        ("GET", "/v1/models", "401 invalid_api_key"),
        ("GET", "/v1/models/tiny/logs", "403 forbidden"),
        ("GET", "/nowhere/SECRETLESS", "404 not_found"),
        ("POST", CHAT, "404 model_not_found"),
        ("OPTIONS", CHAT, "403 origin_not_allowed"),
    ]
    assert all("127.0.0.1" in line for line in lines)
    assert "(guest)" in lines[2]
    assert lines[2].endswith("[mine-1]")
    ours = "\n".join(r.getMessage() for r in caplog.records if r.name.startswith("app."))
    assert "-SECRET" not in ours
    assert "boss-secret" not in ours


async def test_a_flood_of_refusals_is_a_few_lines_and_a_sum(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    client = await start(api_keys=KEYS)
    log = client.way.app.refusals = refusal_log.RefusalLog(window_s=3600.0)
    for _ in range(refusal_log.MAX_LINES + 30):
        await client.get("/v1/models")
    await client.get("/nowhere", headers=BOSS)
    lines = [record.getMessage() for record in caplog.records if record.name == refusal_log.__name__]
    assert len(lines) == refusal_log.MAX_LINES + 1
    assert "404 not_found" in lines[-1]
    log.close_window()
    assert caplog.records[-1].getMessage().endswith(": invalid_api_key 30")
    caplog.clear()
    log.close_window()
    await client.get("/v1/models")
    (again,) = (r.getMessage() for r in caplog.records if r.name == refusal_log.__name__)
    assert again.startswith("refused GET /v1/models")


# --- R14


async def test_a_page_may_reach_into_the_private_network_if_its_origin_may(start: Start) -> None:
    client = await start(cors_allow_origins=["https://chat.example"])
    headers = {**PREFLIGHT, "Access-Control-Request-Private-Network": "true"}
    answer = await client.options(CHAT, headers={"Origin": "https://chat.example", **headers})
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Private-Network"] == "true"
    assert answer.headers["Access-Control-Allow-Origin"] == "https://chat.example"
    other = await client.options(CHAT, headers={"Origin": "https://evil.example", **headers})
    assert (other.status_code, code_of(other)) == (403, "origin_not_allowed")
    assert "Access-Control-Allow-Private-Network" not in other.headers


@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/nowhere", "/upstream/tiny/props"])
@pytest.mark.parametrize("api", [{}, {"cors_allow_origins": ["https://other.example"]}, {"api_keys": ["k"]}])
async def test_a_preflight_that_is_refused_says_what_to_configure(
    start: Start, path: str, api: dict[str, Any]
) -> None:
    client = await start(**api)
    answer = await client.options(path, headers={"Origin": "https://chat.example", **PREFLIGHT})
    assert (answer.status_code, code_of(answer)) == (403, "origin_not_allowed")
    message = answer.json()["error"]["message"]
    assert "api.cors_allow_origins" in message
    assert "https://chat.example" in message


async def test_a_refused_preflight_has_the_shape_of_the_api_that_was_asked(start: Start) -> None:
    client = await start(cors_allow_origins=["https://other.example"])
    page, odd = {"Origin": "https://chat.example"}, {"Access-Control-Request-Method": "BREW"}
    for headers in (page | PREFLIGHT, page | odd, {"Origin": "https://other.example"} | odd):
        told = {path: (await client.options(path, headers=headers)).json() for path in (CHAT, "/api/chat")}
        assert told[CHAT]["error"]["code"] == "origin_not_allowed"
        assert told["/api/chat"] == {"error": told[CHAT]["error"]["message"]}


async def test_asking_for_options_is_no_preflight(start: Start) -> None:
    answer = await (await start()).options("/v1/models")
    assert (answer.status_code, code_of(answer)) == (405, "method_not_allowed")


async def test_a_preload_that_failed_is_seen_by_health(
    tmp_path: Path, tiny_gguf: Path, garbage_gguf: Path
) -> None:
    tree = {
        "system": {"log_dir": str(tmp_path), "preload_models": ["other-name"]},
        "models": {
            "bad": {"model_path": str(garbage_gguf), "aliases": ["other-name"]},
            "good": {"model_path": str(tiny_gguf)},
        },
    }
    app = create_app(parse(json.dumps(tree), tmp_path, {}), launcher=FakeLauncher(), probe=FakeProbe(10_000))
    async with reached_by("socket", app) as way, way.client() as client:

        async def status() -> dict[str, Any]:
            answer = await client.get("/health")
            assert answer.status_code == 200, "what restarts routers must not end models that serve"
            body: dict[str, Any] = answer.json()
            return body

        async def degraded() -> dict[str, Any] | None:
            body = await status()
            return body if body["status"] == "degraded" else None

        with_failure = await until(degraded)
        assert with_failure["checks"]["preload"] == {"status": "degraded", "failed": ["bad"]}


async def test_a_model_that_failed_by_a_request_is_no_news_for_health(
    tmp_path: Path, garbage_gguf: Path
) -> None:
    tree = {"system": {"log_dir": str(tmp_path)}, "models": {"bad": {"model_path": str(garbage_gguf)}}}
    app = create_app(parse(json.dumps(tree), tmp_path, {}), launcher=FakeLauncher(), probe=FakeProbe(10_000))
    async with reached_by("socket", app) as way, way.client() as client:
        assert (await client.post(CHAT, json={"model": "bad"})).status_code >= 400
        assert (await client.get("/v1/models/bad/status")).json()["status"] == "failed"
        assert (await client.get("/health")).json()["status"] == "ok"


async def test_health_fails_when_the_router_stops(start: Start) -> None:
    client = await start()
    app = client.way.app
    app.state.services.manager.close()
    assert (await client.get("/health")).status_code == 503
