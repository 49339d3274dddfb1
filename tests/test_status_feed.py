"""What a reader of the live streams sees, whatever its speed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from app.api.metrics_feed import MetricsFeed
from app.api.sse_broadcast import BACKLOG, Broadcast
from app.api.status_feed import StatusFeed
from app.domain.event_bus import EventBus
from app.domain.events import ModelChanged, StatusChanged
from app.domain.status import Status


@dataclass(frozen=True)
class Told:
    id: int
    name: str
    data: Any


class Reader:
    """Reads only when it is asked to: as slow as the test wants."""

    def __init__(self, stream: AsyncIterator[bytes]) -> None:
        self._stream = stream
        self._coming: asyncio.Future[bytes] | None = None

    async def next(self) -> Told:
        coming, self._coming = self._ask(), None
        fields = dict(line.split(": ", 1) for line in (await coming).decode().splitlines() if line)
        return Told(int(fields["id"]), fields["event"], json.loads(fields["data"]))

    async def all(self) -> list[Told]:
        """What there is now, without waiting for more."""
        told: list[Told] = []
        while await self._has_more():
            told.append(await self.next())
        return told

    async def is_over(self) -> bool:
        try:
            await self._ask()
        except StopAsyncIteration:
            return True
        return False

    def _ask(self) -> asyncio.Future[bytes]:
        if self._coming is None:
            self._coming = asyncio.ensure_future(_next(self._stream))
        return self._coming

    async def _has_more(self) -> bool:
        coming = self._ask()
        for _ in range(5):
            await asyncio.sleep(0)  # a turn of the loop, no time
        return coming.done()


async def _next(stream: AsyncIterator[bytes]) -> bytes:
    return await stream.__anext__()


class World:
    def __init__(self) -> None:
        self.models: dict[str, dict[str, Any]] = {"m": {"depth": 0}}
        self.server = "ready"
        self.bus = EventBus()
        self.feed = StatusFeed(
            self.bus,
            full_status=lambda: {"models": {a: dict(m) for a, m in self.models.items()}},
            model_status=lambda a: {"alias": a, **self.models[a]} if a in self.models else None,
            server_status=lambda: {"status": self.server},
        )
        self.feed.server_update()

    async def reader(self) -> Reader:
        """One that has its first picture."""
        reader = Reader(self.feed.stream())
        assert (await reader.next()).name == "full_status"
        return reader

    def touch(self, depth: int, alias: str = "m") -> None:
        self.models[alias] = {"depth": depth}
        self.bus.publish(ModelChanged(alias))

    def move(self, new: Status, alias: str = "m") -> None:
        self.models[alias] = {"status": new.value}
        self.bus.publish(StatusChanged(alias, Status.OFF, new, ""))


@pytest.fixture
def world() -> World:
    return World()


async def test_the_picture_comes_first_then_every_move_in_order(world: World) -> None:
    reader = await world.reader()
    moves = [Status.STARTING, Status.LOADING, Status.READY, Status.STOPPING, Status.OFF]
    for move in moves:
        world.move(move)
    told = [await reader.next() for _ in moves]
    assert [t.name for t in told] == ["model_update"] * len(moves)
    assert [t.data["status"] for t in told] == [m.value for m in moves]


async def test_ids_only_grow_and_are_the_same_for_everybody(world: World) -> None:
    first, second = await world.reader(), await world.reader()
    for status in (Status.STARTING, Status.LOADING, Status.READY):
        world.move(status)
    seen = [t.id for t in await first.all()]
    assert seen == sorted(set(seen))
    assert [t.id for t in await second.all()] == seen


async def test_touches_are_told_once_with_the_last_state(world: World) -> None:
    reader = await world.reader()
    for depth in range(1, 50):
        world.touch(depth)
    assert await reader.all() == []
    world.feed.flush()
    assert [t.data["depth"] for t in await reader.all()] == [49]


async def test_what_did_not_change_is_not_told(world: World) -> None:
    reader = await world.reader()
    world.touch(1)
    world.feed.flush()
    world.touch(1)
    world.feed.flush()
    assert len(await reader.all()) == 1


async def test_a_state_that_comes_back_is_told_to_who_came_in_between(world: World) -> None:
    """It was taken for known, because readers of the past had seen it."""
    early = await world.reader()
    world.touch(1)
    world.feed.flush()
    assert len(await early.all()) == 1
    world.models["m"] = {"depth": 2}
    late = Reader(world.feed.stream())
    assert (await late.next()).data["models"]["m"]["depth"] == 2
    world.touch(1)
    world.feed.flush()
    assert [t.data["depth"] for t in await late.all()] == [1]


async def test_a_slow_reader_gets_a_fresh_picture_instead_of_what_it_missed(world: World) -> None:
    slow, quick = await world.reader(), await world.reader()
    for number in range(BACKLOG + 10):
        world.models["m"] = {"depth": number}
        world.bus.publish(StatusChanged("m", Status.OFF, Status.STARTING, ""))
        if number == BACKLOG // 2:
            assert len(await quick.all()) == number + 1
    world.feed.flush()  # else its timer may, after the picture, tell once more what is in it
    (picture,) = await slow.all()
    assert (picture.name, picture.data["models"]["m"]["depth"]) == ("full_status", BACKLOG + 9)
    assert len(await quick.all()) == BACKLOG + 10 - BACKLOG // 2 - 1
    world.move(Status.READY)
    (after,) = await slow.all()
    assert (after.name, after.id > picture.id) == ("model_update", True)


async def test_a_removed_model_leaves_every_picture(world: World) -> None:
    reader = await world.reader()
    world.bus.publish(ModelChanged("m"))
    del world.models["m"]
    world.feed.flush()
    (told,) = await reader.all()
    assert (told.name, told.data) == ("full_status", {"models": {}})


async def test_the_server_is_told_when_it_changes(world: World) -> None:
    reader = await world.reader()
    world.feed.server_update()
    assert await reader.all() == []
    world.server = "stopping"
    world.feed.server_update()
    (told,) = await reader.all()
    assert (told.name, told.data) == ("server_update", {"status": "stopping"})


async def test_at_the_end_readers_get_what_was_told_and_the_streams_end(world: World) -> None:
    waiting, behind = await world.reader(), await world.reader()
    assert await waiting.all() == []
    world.server = "stopping"
    world.feed.server_update()
    world.feed.close()
    for reader in (waiting, behind):
        assert (await reader.next()).data == {"status": "stopping"}
        assert await reader.is_over()
    assert world.feed.subscribers == 0


async def test_a_reader_that_waits_is_woken_by_the_end(world: World) -> None:
    reader = await world.reader()
    waiting = asyncio.ensure_future(reader.is_over())
    await asyncio.sleep(0)
    world.feed.close()
    assert await waiting


async def test_a_reader_that_leaves_is_forgotten(world: World) -> None:
    stream = world.feed.stream()
    await stream.__anext__()
    assert world.feed.subscribers == 1
    await stream.aclose()  # type: ignore[attr-defined]
    assert world.feed.subscribers == 0


async def test_heartbeats_go_to_everybody() -> None:
    channel = Broadcast(lambda: ("picture", {}))
    readers = [Reader(channel.stream()) for _ in range(3)]
    for reader in readers:
        await reader.next()
    channel.beat()
    told = [await reader.next() for reader in readers]
    assert {(t.name, t.id) for t in told} == {("heartbeat", told[0].id)}
    channel.close()


async def test_figures_are_made_once_for_everybody() -> None:
    made = []

    def snapshot() -> dict[str, Any]:
        made.append(1)
        return {"made": len(made)}

    feed = MetricsFeed(snapshot)
    readers = [Reader(feed.stream()) for _ in range(3)]
    for reader in readers:
        await reader.next()
    feed.tick()
    assert [(await reader.next()).data for reader in readers] == [{"made": 4}] * 3
    feed.close()
    assert all([await reader.is_over() for reader in readers])
