"""How long a model stays loaded after a request that says so."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from app.access.api_keys import Client
from app.access.header_lookup import RequestHeaders
from app.configuration.file import parse
from app.domain.errors import BadRequest
from app.domain.status import Status
from app.main import create_app
from app.proxy import model_ttl
from tests.fakes import FakeLauncher, FakeProbe, World
from tests.router_process import until
from tests.serving import Browser, reached_by
from tests.stand_in import llama_server_stand_in

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(0, 0), (90, 90), (1.5, 1.5), (-1, math.inf), ("0", 0), ("300", 300), ("5m", 300), ("1h30m", 5400),
     ("250ms", 0.25), ("-1", math.inf), ("-5m", math.inf), (" 10s ", 10), (None, None)],
)  # fmt: skip
def test_seconds_and_durations_are_read(value: object, seconds: float | None) -> None:
    assert model_ttl.in_field(value) == seconds
    if isinstance(value, str):
        assert model_ttl.in_header(RequestHeaders([(b"x-model-ttl", value.encode())])) == seconds


@pytest.mark.parametrize("value", ["", "soon", "5x", "5 m", "1e3", "m", True, [], {}, "1m" * 1000, "9" * 40])
def test_what_is_no_duration_is_refused(value: object) -> None:
    with pytest.raises(BadRequest, match="keep_alive"):
        model_ttl.in_field(value)


def test_a_key_without_admin_keeps_no_model_longer_than_it_is_configured() -> None:
    spec = World({"a": 1}).manager.fleet.find("a").spec
    guest, boss = Client(admin=False), Client()
    assert spec.idle_timeout_s == 300
    assert [model_ttl.allowed(s, spec, guest) for s in (0, 200, 900, math.inf)] == [0, 200, 300, 300]
    assert [model_ttl.allowed(s, spec, boss) for s in (0, 900, math.inf)] == [0, 900, math.inf]


async def serve(world: World) -> None:
    """One request, from its arrival to its end."""
    request = world.request("a")
    await world.settle()
    await request.finish()


async def test_a_model_is_let_go_when_its_time_is_over_and_not_before() -> None:
    world = World({"a": 1000})
    await serve(world)
    world.manager.fleet.find("a").ttl_s = 20
    await world.pass_time(19)
    assert world.status("a") is Status.READY
    await world.pass_time(2)
    assert world.status("a") is Status.OFF
    await world.close()


async def test_zero_ends_nobody_elses_work() -> None:
    world = World({"a": 1000}, parallel_requests=2)
    first, second = world.request("a"), world.request("a")
    await world.settle()
    await first.finish()
    world.manager.fleet.find("a").ttl_s = 0
    await world.pass_time(50)
    assert world.status("a") is Status.READY
    await second.finish()
    await world.pass_time(2)
    assert world.status("a") is Status.OFF
    await world.close()


async def test_what_is_kept_for_ever_gives_way_to_others_and_a_new_load_forgets_it() -> None:
    world = World({"a": 6000, "b": 6000}, gpu_mb=(10_000,))
    await serve(world)
    world.manager.fleet.find("a").ttl_s = math.inf
    await world.pass_time(10_000)
    assert world.status("a") is Status.READY
    other = world.request("b")
    await world.settle()
    assert (world.status("a"), world.status("b")) == (Status.OFF, Status.READY)
    await other.finish()
    await serve(world)
    await world.pass_time(301)
    assert world.status("a") is Status.OFF
    await world.close()


async def test_a_pinned_model_stays() -> None:
    world = World({"a": 1000}, models={"a": {"pinned": True}})
    await serve(world)
    world.manager.fleet.find("a").ttl_s = 0
    await world.pass_time(10)
    assert world.status("a") is Status.READY
    await world.close()


# --- over HTTP


@pytest.fixture(params=["socket", "asgi"])
async def client(request: pytest.FixtureRequest, tiny_gguf: Path, tmp_path: Path) -> AsyncIterator[Browser]:
    tree = {
        "system": {"log_dir": str(tmp_path / "logs")},
        "models": {"tiny": {"model_path": str(tiny_gguf)}},
    }
    async with llama_server_stand_in() as upstream:
        config = parse(json.dumps(tree), tmp_path, {})
        app = create_app(config, launcher=FakeLauncher(upstream.port), probe=FakeProbe(10_000))
        async with reached_by(request.param, app) as way, way.client() as found:
            yield found


async def evictions(client: Browser) -> str:
    return next(
        line
        for line in (await client.get("/metrics")).text.splitlines()
        if line.startswith('router_model_evictions_total{model="tiny",reason="idle"}')
    )


async def has_evicted(client: Browser, count: int) -> bool:
    return (await evictions(client)).endswith(f" {count}.0")


async def test_the_header_and_the_field_are_heard_and_the_header_counts(client: Browser) -> None:
    kept = {"model": "tiny", "keep_alive": "10m"}
    assert (await client.post(CHAT, json=kept)).status_code == 200
    assert await has_evicted(client, 0)
    for number, (body, headers) in enumerate(
        [({**kept, "keep_alive": 0}, {}), (kept, {"X-Model-TTL": "0"})], 1
    ):
        assert (await client.post(CHAT, json=body, headers=headers)).status_code == 200
        await until(partial(has_evicted, client, number))


async def test_an_unreadable_time_is_told(client: Browser) -> None:
    for body, headers in (({"keep_alive": "soon"}, {}), ({}, {"X-Model-TTL": "soon"})):
        refused = await client.post(CHAT, json={"model": "tiny", **body}, headers=headers)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_request")
