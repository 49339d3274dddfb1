"""The bus, and the accounts of finished requests that it publishes in batches."""

from __future__ import annotations

from typing import Any

import pytest

from app.domain.event_bus import BATCH_S, BATCH_SIZE, EventBus
from app.domain.events import BatchPublished, Event, ModelChanged, RequestFinished
from tests.fakes import ManualTimers
from tests.records import finished


class World:
    """A bus whose timers go off when the test says so."""

    def __init__(self) -> None:
        self.timers = ManualTimers()
        self.bus = EventBus(BATCH_S, self.timers)
        self.seen: list[str] = []
        self.bus.subscribe(self._see, RequestFinished)

    def _see(self, event: Event) -> None:
        assert isinstance(event, RequestFinished)
        self.seen.append(event.request_id)

    def finish(self, *ids: str) -> None:
        for name in ids:
            self.bus.finished(lambda name=name: finished(request_id=name))  # type: ignore[misc]

    def ring(self) -> None:
        self.timers.advance(BATCH_S)


@pytest.fixture
def world() -> World:
    return World()


def fail(*_: Any) -> Any:
    raise RuntimeError("broken")


def test_accounts_wait_for_their_batch_and_keep_their_order(world: World) -> None:
    world.finish("1", "2", "3")
    assert world.seen == []
    world.ring()
    assert world.seen == ["1", "2", "3"]
    world.ring()
    world.bus.flush()
    assert world.seen == ["1", "2", "3"], "nothing is published twice"


def test_a_batch_has_one_timer(world: World) -> None:
    for batch in range(3):
        world.finish("1", "2", "3")
        assert len(world.timers.made) == batch + 1, "one timer for all of a batch"
        world.ring()


def test_flushing_publishes_at_once(world: World) -> None:
    world.finish("1", "2")
    world.bus.flush()
    assert world.seen == ["1", "2"]
    world.finish("3")
    world.ring()  # the first batch's timer, too
    assert world.seen == ["1", "2", "3"]


def test_without_timers_nothing_is_put_off() -> None:
    bus, seen = EventBus(), list[Event]()
    bus.subscribe(seen.append)
    bus.finished(finished)
    assert [type(event) for event in seen] == [RequestFinished, BatchPublished]


def test_an_account_that_fails_harms_nobody_else(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.finish("1")
    world.bus.finished(fail)
    world.finish("2")
    world.ring()
    assert world.seen == ["1", "2"]
    assert "broken" in caplog.text


def test_a_subscriber_that_fails_harms_nobody_else(world: World, caplog: pytest.LogCaptureFixture) -> None:
    end = world.bus.subscribe(fail, RequestFinished)
    world.bus.subscribe(world._see, RequestFinished)
    world.finish("1")
    world.ring()
    assert world.seen == ["1", "1"]
    assert "broken" in caplog.text
    end()
    caplog.clear()
    world.finish("2")
    world.ring()
    assert caplog.text == ""


def test_what_ends_while_a_batch_is_published_is_in_the_next_one(world: World) -> None:
    def once_more(event: Event) -> None:
        assert isinstance(event, RequestFinished)
        if event.request_id == "1":
            world.finish("3")
            world.bus.flush()

    world.bus.subscribe(once_more, RequestFinished)
    world.finish("1", "2")
    world.ring()
    world.ring()
    assert sorted(world.seen) == ["1", "2", "3"]


def test_other_events_do_not_wait(world: World) -> None:
    seen: list[Event] = []
    world.bus.subscribe(seen.append, ModelChanged)
    world.finish("1")
    world.bus.publish(ModelChanged("m"))
    assert (seen, world.seen) == ([ModelChanged("m")], [])


def test_a_full_batch_does_not_wait_for_its_time(world: World) -> None:
    """What hundreds of requests leave behind must not hold the event loop in one piece."""
    world.finish(*map(str, range(BATCH_SIZE - 1)))
    world.timers.advance(0.0)
    assert world.seen == []
    world.finish("last", "one more")
    world.timers.advance(0.0)
    assert len(world.seen) == BATCH_SIZE + 1
    world.ring()
    assert len(world.seen) == BATCH_SIZE + 1
