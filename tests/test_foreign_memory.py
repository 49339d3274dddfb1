"""Memory that other programs hold: it is waited for, and nobody is refused for what was read long ago."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app.domain.errors import VramExhausted
from app.domain.status import Status
from app.domain.views import MemoryNeed
from app.llama.exit_reason import FailureKind
from app.scheduling.actions import Refuse, Wait
from app.scheduling.policy import plan
from tests.fakes import MakeWorld, Request, World, failure
from tests.views import LIMITS, NOW, gpu, head, model

NO_MEMORY = failure(FailureKind.OUT_OF_MEMORY, "there was not enough memory.")
PATIENT = replace(LIMITS, foreign_wait_s=10)


# The decision


def test_what_others_hold_is_waited_for() -> None:
    found = plan([model("a", waits=head())], [gpu(5000, others_mb=5000)], PATIENT, NOW)
    assert found.waits == {"a": Wait(at=NOW + 10, for_others=True)} and not found.actions
    assert found.watches_others and found.wake_at == NOW + 10
    assert found.waits["a"].why == "other programs hold the memory"


def test_when_the_time_is_over_only_a_fresh_reading_is_a_reason_to_refuse() -> None:
    waiting, later = model("a", waits=head()), NOW + 10
    old, fresh = (gpu(5000, others_mb=5000, asked_at=at) for at in (NOW + 9.9, NOW + 10))
    assert plan([waiting], [old], PATIENT, later).waits["a"].for_others
    (refusal,) = plan([waiting], [fresh], PATIENT, later).actions
    assert isinstance(refusal, Refuse) and refusal.by_others and refusal.arrived_by == NOW


def test_without_patience_the_devices_are_read_once_more_all_the_same() -> None:
    waiting = model("a", waits=head())
    found = plan([waiting], [gpu(5000, others_mb=5000, asked_at=NOW - 1)], LIMITS, NOW)
    assert found.watches_others and not found.actions


def test_what_can_never_fit_is_refused_at_once() -> None:
    found = plan(
        [model("a", mb=11_000, waits=head())], [gpu(5000, others_mb=5000, asked_at=0.0)], PATIENT, NOW
    )
    assert [type(action) for action in found.actions] == [Refuse]


def test_what_pinned_models_hold_is_refused_at_once() -> None:
    pinned = model("p", Status.READY, pinned=True)
    found = plan([pinned, model("a", waits=head())], [gpu(4000, asked_at=0.0)], PATIENT, NOW)
    assert [type(action) for action in found.actions] == [Refuse]


def test_nobody_is_stopped_while_others_are_waited_for() -> None:
    idle = model("i", Status.READY, mb=2000)
    waiting = model("a", need=MemoryNeed(9000, ("0",)), waits=head())
    found = plan([idle, waiting], [gpu(5000, others_mb=3000)], PATIENT, NOW)
    assert not found.actions


# Carried out


async def test_a_request_is_served_when_others_let_go(make_world: MakeWorld) -> None:
    world = await make_world({"a": 6000}, foreign_wait_sec=10)
    world.probe.others_mb[0] = 5000
    request = world.request("a")
    await world.settle()
    assert world.manager.scheduler.waits["a"].for_others and not request.task.done()
    await world.pass_time(9)
    world.probe.others_mb[0] = 0
    await world.pass_time(0.5)
    assert request.granted.is_set()


async def test_a_request_is_refused_when_others_do_not_let_go(make_world: MakeWorld) -> None:
    world = await make_world({"a": 6000}, foreign_wait_sec=10)
    world.probe.others_mb[0] = 5000
    first = world.request("a")
    await world.settle()
    await world.pass_time(6)
    second = world.request("a")
    await world.pass_time(4.5)
    with pytest.raises(VramExhausted) as error:
        await first.task
    assert error.value.retryable and error.value.details["available_mb"] == 5000
    assert not second.task.done(), "it has not waited long enough yet"
    await world.pass_time(6)
    with pytest.raises(VramExhausted):
        await second.task


async def test_nobody_is_refused_from_an_old_reading(make_world: MakeWorld) -> None:
    world = await make_world({"a": 6000}, foreign_wait_sec=0)
    world.probe.others_mb[0] = 5000
    await world.settle()
    world.clock.now += 1
    world.probe.others_mb[0] = 0  # nobody has looked since
    request = world.request("a")
    await world.settle()
    assert request.granted.is_set()


async def test_a_plan_that_is_asked_for_reads_the_devices_again(make_world: MakeWorld) -> None:
    world = await make_world({"a": 6000})
    world.probe.others_mb[0] = 5000
    await world.settle()
    world.probe.others_mb[0] = 0
    assert (await world.manager.preview(world.manager.instances["a"])).fits


# Out of memory because another program was quicker


async def lose_memory_while_it_loads(world: World) -> Request:
    """Another program takes it; the request waits on."""
    world.launcher.slow = True
    request = world.request("a")
    await world.settle()
    world.probe.others_mb[0] = 7000
    world.launcher.newest("a").fail_to_load(NO_MEMORY)
    await world.settle()
    return request


async def test_memory_that_was_taken_meanwhile_is_waited_for_and_the_need_is_not_raised(
    make_world: MakeWorld,
) -> None:
    world = await make_world({"a": 6000}, foreign_wait_sec=10)
    request = await lose_memory_while_it_loads(world)
    instance = world.manager.instances["a"]
    assert (instance.status, instance.lifecycle.restarts.attempts) == (Status.CRASHED, 0)
    await world.pass_time(3)
    assert world.manager.scheduler.waits["a"].for_others
    world.launcher.slow = False
    world.probe.others_mb[0] = 0
    await world.pass_time(1)
    assert request.granted.is_set() and world.reserved("a") == {"0": 6000}


async def test_such_losses_never_end_in_failed(make_world: MakeWorld) -> None:
    world = await make_world({"a": 6000}, foreign_wait_sec=2)
    for _ in range(4):
        request = await lose_memory_while_it_loads(world)
        await world.pass_time(1)
        await world.pass_time(3)
        with pytest.raises(VramExhausted):
            await request.task
        assert world.status("a") is Status.OFF
        world.probe.others_mb[0] = 0
        await world.settle()
    world.launcher.slow = False
    request = world.request("a")
    await world.settle()
    assert request.granted.is_set()


async def test_out_of_memory_without_another_program_still_raises_the_need(make_world: MakeWorld) -> None:
    world = await make_world({"a": 6000}, foreign_wait_sec=10)
    world.launcher.fail_next = [NO_MEMORY]
    request = world.request("a")
    await world.settle()
    assert world.manager.instances["a"].lifecycle.restarts.attempts == 1
    await world.pass_time(1)
    assert request.granted.is_set() and world.reserved("a") == {"0": 6600}


async def test_a_failed_attempt_is_forgotten_with_the_model(make_world: MakeWorld) -> None:
    """Else the next want of memory, days later, would be the last one."""
    world = await make_world({"a": 6000})
    for _ in range(2):
        world.launcher.fail_next = [NO_MEMORY]
        request = world.request("a")
        await world.settle()
        assert world.status("a") is Status.CRASHED
        world.probe.others_mb[0] = 7000
        await world.settle()
        for _ in range(3):
            await world.pass_time(1)
        assert request.task.done() and isinstance(request.task.exception(), VramExhausted)
        assert world.status("a") is Status.OFF
        world.probe.others_mb[0] = 0
        await world.settle()
