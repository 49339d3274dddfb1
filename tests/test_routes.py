"""Paths as programs write them: which route is meant, at both entrances."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.configuration.file import parse
from app.main import create_app
from app.proxy.routes import BY_PATH, ENDPOINTS, INFO_PATHS, endpoint_of, meant_by, normal
from tests.fakes import FakeLauncher, FakeProbe
from tests.patience import is_ever
from tests.serving import BASE_URL, Browser, reached_by
from tests.stand_in import StandIn

SPELLINGS = {
    "/v1/chat/completions": "/v1/chat/completions",
    "/chat/completions": "/v1/chat/completions",
    "//v1/chat/completions": "/v1/chat/completions",
    "/v1//chat/completions/": "/v1/chat/completions",
    "/v1/v1/chat/completions": "/v1/chat/completions",
    "/v1/v1/v1/messages": "/v1/messages",
    "/completions": "/v1/completions",
    "/completion": "/completion",
    "/v1/completion": "/completion",
    "/embeddings": "/v1/embeddings",
    "/embedding": "/embedding",
    "/responses/": "/v1/responses",
    "/messages/count_tokens": "/v1/messages/count_tokens",
    "/responses/input_tokens": "/v1/responses/input_tokens",
    "/models": "/v1/models",
    "/models/": "/v1/models",
    "/models/org/qwen": "/v1/models/org/qwen",
    "/models/load": "/models/load",
    "/models/unload/": "/models/unload",
    "/models/sse": "/models/sse",
    "/v1/models/load": "/v1/models/load",
    "/rerank": "/rerank",
    "/v1/reranking": "/v1/reranking",
    "/v1/health": "/health",
    "/health/": "/health",
    "/v1/health/models": "/v1/health/models",
    "/v1/tokenize": "/tokenize",
    "/v1/props": "/props",
    "/": "/",
    "//": "/",
    "": "",
    "*": "*",
    "//upstream/qwen//a/": "/upstream/qwen//a/",
    "/upstream/qwen/chat/completions": "/upstream/qwen/chat/completions",
    "/ui/page.js": "/ui/page.js",
    "/v1": "/v1",
}


@pytest.mark.parametrize("path", SPELLINGS)
def test_a_path_is_read_as_the_route_that_it_means(path: str) -> None:
    assert normal(path) == SPELLINGS[path]
    assert normal(SPELLINGS[path]) == SPELLINGS[path]


def test_every_route_is_its_own_normal_form() -> None:
    for path in (*(e.path for e in ENDPOINTS), *(r.path for r in INFO_PATHS)):
        assert normal(path) == path
    for path, endpoint in BY_PATH.items():
        assert normal(path) == endpoint.path
        assert endpoint_of(f"//{path}/") is endpoint


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/api/v1/chat/completions", "/v1/chat/completions"),
        ("/openai/chat/completions", "/v1/chat/completions"),
        ("/x/v1/models", "/v1/models"),
        ("/openai/models", "/v1/models"),
        ("/v1/api/tags", "/api/tags"),
        ("/ollama/api/version", "/api/version"),
        ("/proxy/of/somebody/rerank", "/rerank"),
        ("/v1/chat/completion", "/v1/chat/completions"),
        ("/v1/chat/complete", "/v1/chat/completions"),
        ("/openai/v1/chat/completion", "/v1/chat/completions"),
        ("/v1/Embedings", "/v1/embeddings"),
        ("/tokenise", "/tokenize"),
        ("/v1/images/generations", None),
        ("/v1/messages/batches", None),
        ("/nothing", None),
        ("/", None),
    ],
)
def test_an_unknown_path_is_told_which_one_is_probably_meant(path: str, meant: str | None) -> None:
    assert meant_by(path) == meant


def test_a_long_path_costs_little() -> None:
    def seconds() -> float:
        begun = time.thread_time()
        for piece in ("/", "/v1", "v1/", "/a", "//"):
            for path in (piece * 300_000, "/" + piece * 300_000):
                normal(path)
                meant_by(path)
        return time.thread_time() - begun

    assert is_ever(lambda: seconds() < 0.5)


# --- over HTTP


KEYS = ["boss", {"key": "guest", "name": "guest"}]
BOSS, GUEST = ({"Authorization": f"Bearer {key}"} for key in ("boss", "guest"))


@pytest.fixture(params=["socket", "asgi"])
async def client(
    request: pytest.FixtureRequest, tiny_gguf: Path, tmp_path: Path, upstream: StandIn
) -> AsyncIterator[Browser]:
    kinds: dict[str, dict[str, Any]] = {
        "chat": {}, "embed": {"params": {"embedding": True}}, "rank": {"params": {"rerank": True}},
    }  # fmt: skip
    tree = {
        "api": {"api_keys": KEYS},
        "system": {"log_dir": str(tmp_path / "logs")},
        "models": {alias: {"model_path": str(tiny_gguf), **model} for alias, model in kinds.items()},
    }
    app = create_app(
        parse(json.dumps(tree), tmp_path, {}), launcher=FakeLauncher(upstream.port), probe=FakeProbe(10_000)
    )
    async with reached_by(request.param, app) as way, way.client() as found:
        yield found


def code_of(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["code"])


TRANSLATED = {
    "/api/chat": "/v1/chat/completions",
    "/api/generate": "/v1/chat/completions",
    "/api/embed": "/v1/embeddings",
    "/api/embeddings": "/v1/embeddings",
}


async def test_llama_server_is_asked_by_the_path_that_is_meant(client: Browser, upstream: StandIn) -> None:
    for asked, endpoint in BY_PATH.items():
        for path in (asked, f"{BASE_URL}//{asked.lstrip('/')}/"):
            fields = {"input": "a"} | endpoint.example | _named(endpoint.kinds)
            if endpoint.is_upload:
                answer = await client.post(path, data=fields, files={"file": b"RIFF"}, headers=GUEST)
            else:
                answer = await client.post(path, json=fields, headers=GUEST)
            assert answer.status_code == 200, (path, answer.text)
            assert upstream.targets[-1] == TRANSLATED.get(endpoint.path, endpoint.path)


def _named(kinds: Any) -> dict[str, str]:
    first = min(kind.value for kind in kinds)
    return {"model": {"chat": "chat", "embedding": "embed", "rerank": "rank"}[first]}


async def test_what_tells_something_is_found_too(client: Browser) -> None:
    paths = ("/models", "/v1/models/", "//v1/models", "/v1/v1/models", "/v1/health", "/health/", "/vram/")
    for path in (BASE_URL + path for path in paths):
        assert (await client.get(path, headers=GUEST)).status_code == 200, path
    assert (await client.get("/models/chat", headers=GUEST)).json()["id"] == "chat"
    assert (await client.get("/v1/health")).status_code == 200
    assert (await client.get(f"{BASE_URL}//v1/models")).status_code == 401
    lost = await client.get("/api/v1/models", headers=GUEST)
    assert (lost.status_code, "/v1/models?" in lost.json()["error"]["message"]) == (404, True)


async def test_the_tunnel_is_found_behind_two_slashes_and_for_admins_only(
    client: Browser, upstream: StandIn
) -> None:
    assert (await client.post(f"{BASE_URL}//upstream/chat/x%2Fy", json={}, headers=BOSS)).status_code == 200
    assert upstream.targets[-1] == "/x%2Fy"
    assert (await client.post(f"{BASE_URL}//upstream/chat/x", json={}, headers=GUEST)).status_code == 403


async def test_a_reading_never_loads_a_model_and_is_no_use_of_it(client: Browser, upstream: StandIn) -> None:
    paths = [f"{info.path}?model=chat" for info in INFO_PATHS]
    for path in paths:
        refused = await client.get(path, headers=BOSS | {"Sec-Fetch-Mode": "navigate"})
        assert (refused.status_code, code_of(refused)) == (503, "model_not_loaded")
    assert (await client.get("/v1/models/chat/status", headers=BOSS)).json()["status"] == "off"
    await client.post("/v1/models/load?wait=true", json={"model": "chat"}, headers=BOSS)
    used = (await client.get("/v1/models/chat/status", headers=BOSS)).json()["last_used"]
    for path in paths:
        assert (await client.get(path + "&x=1&autoload=false", headers=BOSS)).status_code == 200
        assert upstream.targets[-1] == path.split("?")[0] + "?x=1"
    assert (await client.get("/v1/models/chat/status", headers=BOSS)).json()["last_used"] == used


async def test_a_reading_without_a_model_is_that_of_the_only_loaded_one(
    client: Browser, upstream: StandIn
) -> None:
    for path in ("/props", "/slots", "/lora-adapters"):
        none = await client.get(path, headers=BOSS)
        assert (none.status_code, code_of(none)) == (400, "missing_model")
    for alias in ("chat", "embed"):
        await client.post("/v1/models/load?wait=true", json={"model": alias}, headers=BOSS)
        answer = await client.get("/props", headers=BOSS)
        assert answer.status_code == (200 if alias == "chat" else 400)
    assert "router_models_loaded" in (await client.get("/metrics", headers=BOSS)).text
    assert "/metrics" not in upstream.targets


async def test_slots_are_for_admins_and_the_rest_for_everybody(client: Browser) -> None:
    await client.post("/v1/models/load?wait=true", json={"model": "chat"}, headers=BOSS)
    assert (await client.get("/slots?model=chat", headers=GUEST)).status_code == 403
    assert (await client.get("/slots?model=chat")).status_code == 401
    for path in ("/props", "/lora-adapters", "/metrics"):
        assert (await client.get(f"{path}?model=chat", headers=GUEST)).status_code == 200
        assert (await client.head(f"{path}?model=chat", headers=GUEST)).status_code == 200
    assert (await client.get("/props?model=nobody", headers=GUEST)).status_code == 404


async def test_autoload_false_loads_nothing(client: Browser) -> None:
    for target in ("/v1/chat/completions", "/upstream/chat/tokenize"):
        asked = f"{target}?autoload=false"
        refused = await client.post(asked, json={"model": "chat"}, headers=BOSS)
        assert (refused.status_code, code_of(refused)) == (503, "model_not_loaded")
        assert (await client.get("/v1/models/chat/status", headers=BOSS)).json()["status"] == "off"
    allowed = await client.post("/v1/chat/completions?autoload=true", json={"model": "chat"}, headers=BOSS)
    assert allowed.status_code == 200
    again = await client.post("/v1/chat/completions?autoload=false", json={"model": "chat"}, headers=BOSS)
    assert again.status_code == 200
