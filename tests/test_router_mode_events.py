"""The events of llama-server's router mode."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from app.api.router_mode_events import PeerFeed
from app.domain.events import ModelChanged
from tests.fakes import World
from tests.serving import soon


async def told(stream: AsyncIterator[bytes]) -> dict[str, Any]:
    event = (await soon(anext(stream))).decode()
    assert event.startswith("data: ") and event.endswith("\n\n")
    found: dict[str, Any] = json.loads(event.removeprefix("data: "))
    return found


async def test_a_load_and_an_eject_are_told_as_messages_without_a_name() -> None:
    world = World({"a": 1000})
    feed = PeerFeed(world.bus, world.manager.instances)
    stream = feed.stream()
    assert await told(stream) == {"model": "*", "event": "models_reload", "data": {}}
    request = world.request("a")
    await world.settle()
    loading, loaded = await told(stream), await told(stream)
    assert loading == {"model": "a", "event": "model_status", "data": {"status": "loading"}}
    assert loaded == {"model": "a", "event": "model_status", "data": {"status": "loaded"}}
    await request.finish()
    await world.manager.eject(world.manager.fleet.find("a"), now=True, timeout_s=5)
    assert (await told(stream))["data"] == {"status": "unloaded"}
    feed.close()
    assert [event async for event in stream] == []
    world.bus.publish(ModelChanged("a"))
    await world.close()
