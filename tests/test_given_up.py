"""What becomes of the place of a request that was given up while llama-server worked for it."""

from __future__ import annotations

from typing import Any

import pytest

from app.core.health_monitor import HealthMonitor
from app.core.queue import RequestQueue, Ticket
from app.domain.priority import Priority
from app.domain.request_fingerprint import Fingerprint, Work
from app.domain.status import Status
from app.judgement.evidence import Evidence, Slot
from app.judgement.given_up import (
    LONGEST_S,
    LOOK_S,
    QUIET_LOOK_S,
    GivenUpAt,
    Running,
    look_for_free_slots_in_s,
    places_free_again,
)
from app.judgement.router_pauses import Pauses
from app.llama.exit_reason import Failure, FailureKind
from app.llama.slots_endpoint import SLOT_IS_FREE
from app.models.instance import ModelInstance
from app.proxy.request_parameters import slots_held
from tests.fakes import FakeRunner, World, failure

GIVEN_UP = 100.0
ONE = GivenUpAt(granted_at=98.0, since=GIVEN_UP)


def looked(*readings: tuple[float, int]) -> Evidence:
    """At these times, with so many slots at work."""
    evidence = Evidence(0.0)
    for at, busy in readings:
        evidence.probe_begun(at, at_slots=True)
        evidence.probe_answered(at)
        evidence.saw_slots(at, [Slot(task) for task in range(busy)])
    return evidence


def freed(evidence: Evidence, *running: Running, given_up: int = 1, now: float = 102.0) -> int:
    return places_free_again(evidence, [ONE] * given_up, running, now)


# --- what the slots say


@pytest.mark.parametrize("busy", [0, 1])
def test_a_place_is_free_when_its_slot_does_not_work(busy: int) -> None:
    assert freed(looked((101, busy))) == 1 - busy


def test_what_was_asked_before_it_was_given_up_says_nothing() -> None:
    assert freed(looked((99, 0))) == 0
    evidence = Evidence(0.0)
    evidence.probe_begun(99, at_slots=True)
    evidence.probe_answered(101)
    evidence.saw_slots(101, [])
    assert freed(evidence) == 0


def test_a_look_that_is_not_answered_says_nothing() -> None:
    evidence = looked((90, 0))
    evidence.probe_begun(101, at_slots=True)
    assert freed(evidence) == 0


def test_slots_of_others_are_told_apart() -> None:
    """One whose answer has begun sits in a slot, and one that was there at the look before."""
    begun, old, new = Running(101.0, True), Running(90.0, False), Running(101.0, False)
    evidence = looked((95, 2), (101.5, 1))
    assert [freed(evidence, other) for other in (begun, old, new)] == [1, 1, 0]
    assert freed(looked((95, 2), (101.5, 2)), old) == 0


def test_a_neighbour_that_asked_for_several_answers_holds_nobody_elses_place() -> None:
    evidence = looked((95, 4), (101.5, 3))
    assert freed(evidence, Running(90.0, has_begun=False, slots=3)) == 1
    assert freed(looked((95, 4), (101.5, 4)), Running(90.0, has_begun=False, slots=3)) == 0


@pytest.mark.parametrize(
    ("fields", "slots"),
    [
        ({}, 1),
        ({"n": 3}, 3),
        ({"n_cmpl": 2, "prompt": ["a", "b"]}, 4),
        ({"n": None, "prompt": "a text"}, 1),
        ({"n": -5, "input": []}, 1),
        ({"input": [1, 2, 3]}, 1),
        ({"input": [[1, 2], [3]]}, 2),
        ({"query": "q", "documents": ["a", "b", "c"]}, 3),
    ],
)
def test_a_request_holds_as_many_slots_as_answers_and_texts_are_asked_for(
    fields: dict[str, Any], slots: int
) -> None:
    assert slots_held(fields) == slots


def test_of_several_the_first_is_free_first() -> None:
    assert [freed(looked((101, busy)), given_up=2) for busy in (0, 1, 2, 3)] == [2, 1, 0, 0]


def test_a_build_that_does_not_tell_is_taken_for_one_that_notices_at_once() -> None:
    evidence = looked((90, 1))
    evidence.saw_slots(101, None)
    assert freed(evidence) == 1


def test_no_place_is_kept_for_ever() -> None:
    busy = looked((150, 4))
    assert freed(busy, now=GIVEN_UP + LONGEST_S - 1) == 0
    assert freed(busy, now=GIVEN_UP + LONGEST_S) == 1


# --- when they are looked at


def test_looks_are_further_apart_than_what_keeps_a_cancelled_request_alive() -> None:
    assert look_for_free_slots_in_s(Evidence(0.0), [ONE], GIVEN_UP) == pytest.approx(QUIET_LOOK_S)
    assert look_for_free_slots_in_s(looked((101, 1)), [ONE], 101.0) == pytest.approx(LOOK_S)
    assert LOOK_S > 1.0


def test_the_log_says_when_to_look() -> None:
    evidence = looked((101, 1))
    evidence.said_slot_is_free(101.1)
    assert look_for_free_slots_in_s(evidence, [ONE], 101.1) == 0.0


def test_a_log_that_tells_of_slots_is_waited_for() -> None:
    """A look would tell llama-server that somebody is there, for another second."""
    evidence = Evidence(0.0)
    evidence.said_slot_is_free(ONE.granted_at - 0.1)  # of the one before
    assert look_for_free_slots_in_s(evidence, [ONE], GIVEN_UP) == pytest.approx(LOOK_S)
    evidence.said_slot_is_free(ONE.granted_at + 0.1)  # it may have been its own
    assert look_for_free_slots_in_s(evidence, [ONE], GIVEN_UP) == 0.0


@pytest.mark.parametrize(
    "line",
    [
        b"0.06.699.092 I slot      release: id  0 | task 706 | stop processing: n_tokens = 8188\n",
        b"0.04.493.864 W srv          stop: cancel task, id_task = 12\n",
    ],
)
def test_both_builds_log_it_like_this(line: bytes) -> None:
    assert any(mark in line for mark in SLOT_IS_FREE)


# --- the queue


def queue_with(slots: int, *, alone: bool = False) -> tuple[RequestQueue, Ticket]:
    """One of its places belongs to a request that was given up."""
    queue = RequestQueue(slots, max_waiting=10)
    gone = ticket()
    gone.runs_alone = alone
    queue.push(gone)
    queue.grant(0.0)
    queue.give_up(gone, 1.0, None)
    queue.finish(gone, 1.0)
    assert queue.in_flight == 0
    return queue, gone


def ticket() -> Ticket:
    return Ticket(Priority.NORMAL, 0.0, 30.0)


def test_its_place_is_given_to_nobody_until_it_is_free() -> None:
    queue, _ = queue_with(slots=1)
    assert not queue.try_grant(ticket(), 2.0)
    waiting = ticket()
    queue.push(waiting)
    assert queue.grant(2.0) is None
    queue.free(1)
    assert queue.grant(2.0) is waiting


def test_the_other_places_are_given_away() -> None:
    queue, _ = queue_with(slots=2)
    assert queue.try_grant(ticket(), 2.0) and not queue.try_grant(ticket(), 2.0)


def test_a_suspect_that_was_given_up_still_runs_alone() -> None:
    queue, _ = queue_with(slots=2, alone=True)
    assert not queue.try_grant(ticket(), 2.0)
    queue.free(1)
    assert queue.try_grant(ticket(), 2.0)


def test_a_suspect_starts_beside_nothing_that_was_given_up() -> None:
    queue, _ = queue_with(slots=2)
    suspect = ticket()
    suspect.runs_alone = True
    queue.push(suspect)
    assert queue.grant(2.0) is None
    queue.free(1)
    assert queue.grant(2.0) is suspect


# --- the model


class Given:
    """A loaded model, a request in its only slot that was given up, and one that waits."""

    def __init__(self, world: World, work: Work | None = None) -> None:
        self.world = world
        self.pauses = Pauses(world.clock())
        self.monitor = HealthMonitor(lambda: world.manager.instances, 30, world.bus, self.pauses, world.clock)
        self.runner.evidence.shows_slots = True
        manager = world.manager
        gone, self.next = manager.ticket(Priority.NORMAL), manager.ticket(Priority.NORMAL)
        manager.enter(self.instance, gone)
        manager.enter(self.instance, self.next)
        self.monitor.given_up(self.instance, gone, work)
        manager.leave(self.instance, gone)

    @property
    def instance(self) -> ModelInstance:
        return self.world.manager.instances["a"]

    @property
    def runner(self) -> FakeRunner:
        return self.world.launcher.newest("a")

    async def look(self, working: list[Slot] | None) -> bool:
        """Whether the one that waits has got the place."""
        self.world.clock.now += LOOK_S
        self.pauses._last_tick = self.world.clock.now
        self.runner.sees = lambda runner: runner.evidence.saw_slots(runner.clock(), working)
        await self.world.check_health(self.monitor)
        await self.world.settle()
        return self.next in self.instance.queue.running


@pytest.fixture
async def world() -> World:
    world = World({"a": 1000})
    await world.settle()
    await world.manager.load(world.manager.instances["a"], wait=True)
    await world.settle()
    return world


async def test_who_waits_is_served_when_the_slot_is_seen_to_be_free(world: World) -> None:
    given = Given(world)
    assert not await given.look([Slot(1)])
    assert await given.look([])
    given.world.manager.leave(given.instance, given.next)
    await world.close()


async def test_a_log_that_tells_of_a_free_slot_is_news_for_who_watches(world: World) -> None:
    given = Given(world)
    given.monitor._round_is_due.clear()
    given.runner.evidence.said_slot_is_free(world.clock())
    assert given.monitor._round_is_due.is_set()
    given.world.manager.leave(given.instance, given.next)
    await world.close()


async def test_a_build_that_does_not_show_its_slots_keeps_no_place(world: World) -> None:
    given = Given(world)
    assert await given.look(None)
    given.world.manager.leave(given.instance, given.next)
    await world.close()


async def test_the_end_of_its_process_gives_the_place_back(world: World) -> None:
    given = Given(world)
    given.runner.die(failure(FailureKind.KILLED, "from outside"))
    await world.settle()
    assert given.instance.queue.given_up == []
    world.manager.leave(given.instance, given.next)
    await world.close()


async def test_a_crash_is_held_against_what_was_given_up_too(world: World) -> None:
    """Else clients with short time-outs could crash a model until it fails for everybody."""
    work = Work("/v1/x", b"poison")
    given = Given(world, work)
    given.runner.die(Failure(FailureKind.UNKNOWN, "crashed.", 134, ()))
    await world.settle()
    assert len(work.body) in given.instance.crash_inquiry._suspects.sizes
    assert given.instance.crash_inquiry._suspects._is_suspect(Fingerprint.of(work))
    assert given.instance.status is not Status.FAILED
    world.manager.leave(given.instance, given.next)
    await world.close()
