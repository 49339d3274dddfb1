"""Which model a request goes to: by its configured name, by one that means it, and without one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from app.configuration.file import ConfigError, parse
from app.domain.errors import MissingModel, ModelNotFound
from app.domain.status import ModelKind
from app.main import create_app
from tests.fakes import FakeLauncher, FakeProbe, MakeWorld
from tests.serving import Browser, reached_by
from tests.stand_in import StandIn

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
CHATS = frozenset({ModelKind.CHAT})
EMBED = {"params": {"embedding": True}}


async def test_a_configured_name_comes_before_one_that_resembles_it(make_world: MakeWorld) -> None:
    world = await make_world({"qwen": 1, "Qwen": 1, "qwen:latest": 1, "openai/qwen": 1})
    for name in ("qwen", "Qwen", "qwen:latest", "openai/qwen"):
        assert world.manager.fleet.serving(name, CHATS).alias == name
        assert world.manager.fleet.find(name).alias == name


@pytest.mark.parametrize("name", ["QWEN", "qwen:latest", "qwen[1m]", "openai/qwen", "GPT-4:LATEST"])
async def test_a_name_that_means_a_model_finds_it(make_world: MakeWorld, name: str) -> None:
    world = await make_world({"other": 1, "qwen": 1}, models={"qwen": {"aliases": ["gpt-4"]}})
    assert world.manager.fleet.find(name).alias == world.manager.fleet.serving(name, CHATS).alias == "qwen"


async def test_the_default_model_serves_what_names_none_and_what_names_an_unknown_one(
    make_world: MakeWorld,
) -> None:
    world = await make_world({"a": 1, "b": 1}, default_model="b")
    assert world.manager.fleet.serving(None, CHATS).alias == "b"
    assert world.manager.fleet.serving("gpt-3.5-turbo", CHATS).alias == "b"
    assert world.manager.fleet.serving("a", CHATS).alias == "a"


async def test_the_default_model_stands_for_no_other_kind_and_is_never_managed_for_another(
    make_world: MakeWorld,
) -> None:
    world = await make_world({"chat": 1, "embed": 1}, default_model="chat", models={"embed": EMBED})
    assert world.manager.fleet.serving(None, {ModelKind.EMBEDDING}).alias == "embed"
    with pytest.raises(ModelNotFound):
        world.manager.fleet.serving("text-embedding-3-small", {ModelKind.EMBEDDING})
    with pytest.raises(ModelNotFound):
        world.manager.fleet.find("gpt-3.5-turbo")


async def test_the_only_model_of_a_kind_serves_requests_without_a_name(make_world: MakeWorld) -> None:
    world = await make_world({"chat": 1, "embed": 1}, models={"embed": EMBED})
    assert world.manager.fleet.serving(None, CHATS).alias == "chat"
    assert world.manager.fleet.serving(None, {ModelKind.EMBEDDING}).alias == "embed"
    with pytest.raises(MissingModel, match="chat, embed"):
        world.manager.fleet.serving(None, frozenset(ModelKind))
    with pytest.raises(MissingModel, match="none for this"):
        world.manager.fleet.serving(None, {ModelKind.RERANK})
    with pytest.raises(ModelNotFound):
        world.manager.fleet.serving("gpt-3.5-turbo", CHATS)


# --- over HTTP

Start = Callable[..., Awaitable[Browser]]


@pytest.fixture(params=["socket", "asgi"])
async def start(
    request: pytest.FixtureRequest, tiny_gguf: Path, tmp_path: Path, upstream: StandIn
) -> AsyncIterator[Start]:
    """A router with these models, and a client of it."""
    async with AsyncExitStack() as stack:

        async def begin(models: Mapping[str, dict[str, Any]], **system: Any) -> Browser:
            tree = {
                "system": {"log_dir": str(tmp_path / "logs"), **system},
                "models": {alias: {"model_path": str(tiny_gguf), **model} for alias, model in models.items()},
            }
            app = create_app(
                parse(json.dumps(tree), tmp_path, {}),
                launcher=FakeLauncher(upstream.port),
                probe=FakeProbe(10_000),
            )
            way = await stack.enter_async_context(reached_by(request.param, app))
            return await stack.enter_async_context(way.client())

        yield begin


async def test_requests_reach_the_model_that_they_mean(start: Start) -> None:
    client = await start({"qwen": {"aliases": ["gpt-4"]}, "embed": EMBED})
    for name in ("qwen", "gpt-4", "GPT-4", "Qwen:latest", "qwen[1m]", "openai/qwen", None, ""):
        body: dict[str, Any] = {"messages": []} if name is None else {"model": name, "messages": []}
        assert (await client.post(CHAT, json=body)).status_code == 200, name
    assert (await client.post(EMBEDDINGS, json={"input": "x"})).status_code == 200
    metrics = (await client.get("/metrics")).text
    assert 'router_requests_total{model="qwen",status="success"} 8.0' in metrics
    assert 'router_requests_total{model="embed",status="success"} 1.0' in metrics
    missing = await client.post(CHAT, json={"model": "gpt-3.5-turbo"})
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


async def test_a_model_is_managed_by_every_name_that_means_it_and_by_no_default(start: Start) -> None:
    client = await start({"qwen": {}, "other": {}}, default_model="other")
    loaded = await client.post("/v1/models/load?wait=true", json={"model": "openai/Qwen"})
    assert (loaded.status_code, loaded.json()["model"]) == (200, "qwen")
    assert (await client.get("/v1/models/QWEN/status")).json()["model"] == "qwen"
    assert (await client.get("/v1/models/qwen:latest")).json()["id"] == "qwen"
    for body in ({"model": "gpt-4"}, {}):
        answer = await client.post("/v1/models/eject", json=body)
        assert answer.status_code in (404, 400), answer.text
    assert (await client.post(CHAT, json={"model": "gpt-4"})).status_code == 200
    assert (await client.get("/v1/models/gpt-4")).status_code == 404


async def test_the_tunnel_knows_what_is_meant(start: Start, upstream: StandIn) -> None:
    client = await start({"qwen": {}, "embed": EMBED, "org/one": {}})
    for target, received in {
        "qwen/embed": "/embed",
        "Qwen/embed": "/embed",
        "qwen[1m]/tokenize": "/tokenize",
        "openai/qwen/tokenize": "/tokenize",
        "Org/One/tokenize": "/tokenize",
    }.items():
        assert (await client.post(f"/upstream/{target}", json={})).status_code == 200, target
        assert upstream.targets[-1] == received
    assert (await client.post("/upstream/nobody/tokenize", json={})).status_code == 404
    assert (await client.post("/upstream/Qwen/%2e%2e/x", json={})).status_code == 400


@pytest.mark.parametrize(
    "alias",
    [
        "Qwen 3 (8B) [thinking]",
        "\u6a21\u578b",
        "\u043c\u043e\u0434\u0435\u043b\u044c",
        "100%?#&\"'\\<b>",
        "a" * 128,
    ],
)
async def test_an_alias_may_be_any_printable_text(start: Start, alias: str) -> None:
    client = await start({alias: {}, "other": {}})
    assert (await client.post(CHAT, json={"model": alias})).status_code == 200
    listed = (await client.get("/v1/models")).json()["data"]
    assert [entry["id"] for entry in listed] == [alias, "other"]
    path = quote(alias, safe="")
    status = (await client.get(f"/v1/models/{path}/status")).json()
    assert (status["model"], status["status"]) == (alias, "ready")
    assert (await client.post(f"/upstream/{path}/tokenize", json={})).status_code == 200
    assert (await client.get("/metrics")).status_code == 200


@pytest.mark.parametrize(
    "alias", ["", " a", "a ", "a,b", "a\nb", "a\x7f", "a\u200b", "a" * 129, "a//b", "a/.."]
)
def test_an_alias_that_could_be_taken_for_another_is_refused(alias: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"models\."):
        parse(json.dumps({"models": {alias: {"model_path": "x.gguf"}}}), tmp_path, {})


def test_a_default_model_must_be_one(tmp_path: Path) -> None:
    tree = {"system": {"default_model": "qwem"}, "models": {"qwen": {"model_path": "x.gguf"}}}
    with pytest.raises(ConfigError, match=r"system\.default_model: .*did you mean 'qwen'"):
        parse(json.dumps(tree), tmp_path, {})
