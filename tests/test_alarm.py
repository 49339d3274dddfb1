"""The one timer, on a clock that the test moves, and on the real event loop."""

from __future__ import annotations

import asyncio

import pytest

from app.domain.alarm import READ_FIRST_S, Alarm
from tests.fakes import ManualTimers


class Rung:
    def __init__(self) -> None:
        self.clock = ManualTimers()
        self.times: list[float] = []
        self.alarm = Alarm(lambda: self.times.append(self.clock.now), self.clock)


@pytest.fixture
def rung() -> Rung:
    return Rung()


def test_it_rings_once_at_its_time(rung: Rung) -> None:
    rung.alarm.set(103.0)
    rung.clock.advance(10.0)
    assert rung.times == [103.0]
    assert rung.alarm.at is None


def test_the_last_time_set_counts_whether_it_is_later_or_sooner(rung: Rung) -> None:
    rung.alarm.set(103.0)
    rung.alarm.set(106.0)
    rung.clock.advance(4.0)
    assert rung.times == []
    rung.alarm.set(105.0)
    rung.clock.advance(10.0)
    assert rung.times == [105.0]


def test_within_keeps_a_sooner_time(rung: Rung) -> None:
    rung.alarm.set_within(5.0)
    rung.alarm.set_within(8.0)
    assert rung.alarm.at == 105.0
    rung.alarm.set_within(2.0)
    rung.clock.advance(10.0)
    assert rung.times == [102.0]


def test_within_is_measured_from_what_is_set_not_from_an_older_timer(rung: Rung) -> None:
    rung.alarm.set(101.0)
    rung.alarm.set(150.0)  # the loop's timer still stands at 101
    rung.alarm.set_within(5.0)
    rung.clock.advance(60.0)
    assert rung.times == [105.0]


def test_a_cancelled_alarm_is_silent_and_may_be_set_again(rung: Rung) -> None:
    rung.alarm.set(103.0)
    rung.alarm.cancel()
    rung.alarm.cancel()
    rung.clock.advance(10.0)
    assert rung.times == []
    rung.alarm.set_within(1.0)
    rung.clock.advance(10.0)
    assert rung.times == [111.0]


def test_putting_it_off_makes_no_timers(rung: Rung) -> None:
    for tenth in range(1000):
        rung.alarm.set(101.0 + tenth / 10)
    assert len(rung.clock.made) == 1
    rung.clock.advance(200.0)
    assert rung.times == [101.0 + 99.9]
    assert len(rung.clock.made) == 2


def test_it_may_be_set_again_while_it_rings(rung: Rung) -> None:
    times: list[float] = []

    def ring() -> None:
        times.append(rung.clock.now)
        alarm.set_within(2.0)

    alarm = Alarm(ring, rung.clock)
    alarm.set_within(2.0)
    rung.clock.advance(7.0)
    assert times == [102.0, 104.0, 106.0]


def test_a_timer_that_fires_a_little_early_rings_once(rung: Rung) -> None:
    rung.alarm.set(103.0)
    rung.clock.now = 102.9996
    rung.clock.made[0].cancelled = True
    rung.clock.made[0].callback()
    assert rung.times == [102.9996]
    assert len(rung.clock.made) == 1


async def test_on_the_event_loop() -> None:
    rings = asyncio.Event()
    alarm = Alarm(rings.set)
    alarm.set_within(0.01)
    await rings.wait()
    assert alarm.at is None


def test_an_alarm_that_is_late_lets_what_came_meanwhile_be_read_first() -> None:
    timers, rung = ManualTimers(), list[float]()
    alarm = Alarm(lambda: rung.append(timers.now), timers)
    alarm.set(timers.now + 5)
    (timer,) = timers.made
    timers.now += 60  # this program stood still
    timer.cancelled = True
    timer.callback()
    assert rung == []
    timers.advance(READ_FIRST_S)
    assert len(rung) == 1


def test_what_is_read_first_may_put_off_an_alarm_that_is_late() -> None:
    timers, rung = ManualTimers(), list[float]()
    alarm = Alarm(lambda: rung.append(timers.now), timers)
    alarm.set(timers.now + 5)
    (timer,) = timers.made
    timers.now += 60
    timer.cancelled = True
    timer.callback()
    alarm.set(timers.now + 5)
    timers.advance(READ_FIRST_S)
    assert rung == []
    timers.advance(5)
    assert len(rung) == 1
