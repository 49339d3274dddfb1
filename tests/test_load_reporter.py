"""The log tells how far a slow load is."""

from __future__ import annotations

import logging

import pytest

from app.domain.event_bus import EventBus
from app.domain.events import ModelChanged, StatusChanged
from app.domain.status import Status
from app.domain.views import ModelView, ProcessView
from app.observability.load_reporter import EVERY_S, LoadReporter


class World:
    def __init__(self) -> None:
        self.now = 0.0
        self.progress: float | None = None
        self.bus = EventBus()
        LoadReporter(self.bus, self.view, lambda: self.now)

    def view(self, alias: str) -> ModelView:
        process = ProcessView(Status.LOADING, load_progress=self.progress)
        return ModelView(alias, Status.LOADING, processes=(process,))

    def become(self, status: Status) -> None:
        self.bus.publish(StatusChanged("m", Status.OFF, status, ""))

    def progressed(self, now: float, progress: float | None) -> None:
        self.now, self.progress = now, progress
        self.bus.publish(ModelChanged("m"))


@pytest.fixture
def world(caplog: pytest.LogCaptureFixture) -> World:
    caplog.set_level(logging.INFO)
    return World()


def test_a_slow_load_is_reported_now_and_then(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.become(Status.STARTING)
    world.become(Status.LOADING)
    for step in range(1, 13):
        world.progressed(step, step / 20)
    assert caplog.messages == ["m: loading, 25 %", "m: loading, 50 %"]


def test_a_quick_load_is_not(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.become(Status.STARTING)
    world.progressed(EVERY_S / 2, 0.9)
    world.become(Status.READY)
    world.progressed(EVERY_S * 2, None)
    assert caplog.messages == []


def test_a_load_without_known_progress_is_not(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.become(Status.STARTING)
    world.progressed(EVERY_S * 2, None)
    assert caplog.messages == []
