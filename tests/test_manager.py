"""The manager with real instances, queues and policy, over fake processes and a fake GPU."""

from __future__ import annotations

import asyncio
from unittest.mock import AsyncMock

import pytest

from app.core.config import Config
from app.core.queue import Ticket, TicketState
from app.domain.errors import (
    LoadFailed,
    ModelFailed,
    ModelNotFound,
    NeverFits,
    QueueFull,
    ShuttingDown,
    VramExhausted,
)
from app.domain.events import Evicted, LoadFinished, LoadResult, Restarted
from app.domain.priority import Priority
from app.domain.status import Status, StopReason
from app.llama.exit_reason import Failure, FailureKind
from tests.fakes import MakeWorld, World, failure


async def test_a_request_loads_its_model_and_is_served(make_world: MakeWorld) -> None:
    world = await make_world({"a": 1000})
    request = world.request("a")
    await world.settle()
    assert request.granted.is_set()
    assert world.status("a") is Status.READY
    await request.finish()
    assert world.manager.instances["a"].queue.in_flight == 0


async def test_two_requests_at_once_start_one_process(make_world: MakeWorld) -> None:
    world = await make_world({"a": 1000}, parallel_requests=2)
    first, second = world.request("a"), world.request("a")
    await world.settle()
    assert first.granted.is_set() and second.granted.is_set()
    assert world.launcher.loads("a") == 1


async def test_an_unknown_model_is_refused_with_the_nearest_names_first(make_world: MakeWorld) -> None:
    world = await make_world({"qwen3": 1, "llama": 1})
    with pytest.raises(ModelNotFound, match="qwen3, llama"):
        world.manager.fleet.find("qwen")


async def test_other_names_reach_the_same_model(make_world: MakeWorld) -> None:
    world = await make_world({"a": 1}, models={"a": {"aliases": ["gpt-4"]}})
    assert world.manager.fleet.find("gpt-4") is world.manager.fleet.find("a")


async def test_a_client_that_leaves_the_queue_leaves_no_trace(make_world: MakeWorld) -> None:
    world = await make_world({"a": 1000})
    running, waiting = world.request("a"), world.request("a")
    await world.settle()
    await waiting.leave()
    queue = world.manager.instances["a"].queue
    assert (queue.waiting, queue.in_flight) == (0, 1)
    await running.finish()
    assert queue.in_flight == 0


async def test_a_client_that_leaves_while_loading_does_not_stop_the_load(make_world: MakeWorld) -> None:
    world = await make_world({"a": 1000})
    world.launcher.slow = True
    request = world.request("a")
    await world.settle()
    await request.leave()
    assert world.status("a") is Status.STARTING
    world.launcher.newest("a").become_ready()
    await world.settle()
    assert world.status("a") is Status.READY


async def test_a_load_nobody_waits_for_is_abandoned_when_its_memory_is_wanted(make_world: MakeWorld) -> None:
    world = await make_world({"a": 6000, "b": 6000})
    world.launcher.slow = True
    request = world.request("a")
    await world.settle()
    await request.leave()
    world.launcher.slow = False
    other = world.request("b")
    await world.settle()
    assert other.granted.is_set()
    assert world.status("a") is Status.OFF
    assert LoadFinished("a", LoadResult.ABANDONED, 0.0) in world.events


async def test_a_swap_waits_for_the_running_request(make_world: MakeWorld) -> None:
    world = await make_world({"a": 6000, "b": 6000}, max_swap_wait_sec=0)
    running = world.request("a")
    await world.settle()
    wanted = world.request("b")
    await world.settle()
    assert world.status("a") is Status.DRAINING
    assert not running.cut.is_set() and not wanted.granted.is_set()
    await running.finish()
    assert wanted.granted.is_set()
    assert Evicted("a", StopReason.MEMORY) in world.events


async def test_what_is_loaded_next_is_prepared_while_others_finish(make_world: MakeWorld) -> None:
    world = await make_world({"a": 6000, "b": 6000, "c": 6000}, max_swap_wait_sec=0)
    running = world.request("a")
    await world.settle()
    assert world.launcher.preparing == [], "nobody has to go for it"
    second = world.request("b")
    world.request("c")
    await world.settle()
    assert world.launcher.preparing == ["b"], "one at a time: disks and caches are not for everybody"
    await second.leave()
    await world.settle()
    assert world.launcher.preparing == ["c"]
    await running.finish()
    await world.settle()
    assert (world.status("c"), world.launcher.preparing) == (Status.READY, [])


async def test_a_preparation_that_fails_harms_nothing(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await make_world({"a": 6000, "b": 6000}, max_swap_wait_sec=0)
    monkeypatch.setattr(world.launcher, "prepare", AsyncMock(side_effect=OSError("no disk")))
    running = world.request("a")
    await world.settle()
    waiting = world.request("b")
    await world.settle()
    await running.finish()
    await world.settle()
    assert waiting.granted.is_set()


async def test_a_draining_model_grants_nothing_and_its_new_request_survives(make_world: MakeWorld) -> None:
    world = await make_world({"a": 6000, "b": 6000}, max_swap_wait_sec=0)
    running = world.request("a")
    await world.settle()
    wanted = world.request("b")
    await world.settle()
    late = world.request("a")
    await world.settle()
    assert not late.granted.is_set()
    await running.finish()
    assert wanted.granted.is_set() and not late.granted.is_set()
    await wanted.finish()
    await world.settle()
    assert late.granted.is_set()
    assert world.launcher.loads("a") == 2


async def test_a_draining_model_serves_again_when_the_claimant_leaves(make_world: MakeWorld) -> None:
    world = await make_world({"a": 6000, "b": 6000}, max_swap_wait_sec=0)
    running = world.request("a")
    await world.settle()
    wanted, queued = world.request("b"), world.request("a")
    await world.settle()
    assert world.status("a") is Status.DRAINING
    await wanted.leave()
    assert world.status("a") is Status.READY
    await running.finish()
    assert queued.granted.is_set()
    assert world.launcher.loads("a") == 1


async def test_a_model_loaded_for_a_request_serves_it_before_it_is_evicted(make_world: MakeWorld) -> None:
    world = await make_world({"a": 6000, "b": 6000}, max_swap_wait_sec=0)
    world.launcher.slow = True
    first, second = world.request("a"), world.request("b", Priority.HIGH)
    await world.settle()
    loading = next(alias for alias in ("a", "b") if world.launcher.loads(alias))
    served, waiting = (first, second) if loading == "a" else (second, first)
    world.launcher.slow = False
    world.launcher.newest(loading).become_ready()
    await world.settle()
    assert served.granted.is_set() and not waiting.granted.is_set()
    await served.finish()
    assert waiting.granted.is_set()


async def test_a_higher_priority_is_granted_first(make_world: MakeWorld) -> None:
    world = await make_world({"a": 1000})
    running = world.request("a")
    await world.settle()
    low = world.request("a", Priority.LOW)
    await world.settle()
    high = world.request("a", Priority.HIGH)
    await world.settle()
    await running.finish()
    assert high.granted.is_set() and not low.granted.is_set()


async def test_the_queue_has_a_bound(make_world: MakeWorld) -> None:
    world = await make_world({"a": 1000}, max_queue_size_per_model=1)
    world.request("a")
    await world.settle()
    world.request("a")
    await world.settle()
    refused = world.request("a")
    with pytest.raises(QueueFull) as error:
        await refused.task
    assert error.value.retry_after_s is not None


async def test_what_can_never_fit_is_refused_and_evicts_nobody(make_world: MakeWorld) -> None:
    world = await make_world({"small": 6000, "huge": 20_000})
    request = world.request("small")
    await world.settle()
    await request.finish()
    refused = world.request("huge")
    with pytest.raises(NeverFits) as error:
        await refused.task
    assert not error.value.retryable
    assert error.value.details["required_mb"] == 20_000
    assert world.status("small") is Status.READY


@pytest.mark.parametrize("what", ["the file", "the rest"])
async def test_what_cannot_be_loaded_evicts_nobody_and_fails_at_once(
    make_world: MakeWorld, what: str
) -> None:
    world = await make_world({"good": 6000, "broken": 6000})
    request = world.request("good")
    await world.settle()
    await request.finish()
    found = world.broken if what == "the file" else world.launcher.unfit
    found["broken"] = failure(FailureKind.BAD_MODEL, "not a GGUF file.")
    with pytest.raises(LoadFailed, match="not a GGUF file"):
        await world.request("broken").task
    assert world.status("good") is Status.READY
    with pytest.raises(ModelFailed):
        await world.request("broken").task


async def test_reset_lets_a_failed_model_load_again(make_world: MakeWorld) -> None:
    world = await make_world({"a": 1000})
    world.launcher.fail_next = [failure(FailureKind.BAD_MODEL)]
    with pytest.raises(LoadFailed):
        await world.request("a").task
    assert world.manager.instances["a"].reset() == "it broke."
    assert world.manager.instances["a"].reset() is None
    request = world.request("a")
    await world.settle()
    assert request.granted.is_set()


async def test_a_load_that_may_heal_is_tried_again_with_back_off(make_world: MakeWorld) -> None:
    world = await make_world({"a": 1000}, load_max_retries=1)
    world.launcher.fail_next = [failure(FailureKind.PORT_TAKEN)]
    request = world.request("a")
    await world.settle()
    assert world.status("a") is Status.CRASHED
    await world.pass_time(1)
    assert request.granted.is_set()


async def test_a_load_that_keeps_failing_ends_every_wait(make_world: MakeWorld) -> None:
    world = await make_world({"a": 1000}, load_max_retries=1)
    world.launcher.fail_next = [failure(FailureKind.PORT_TAKEN)] * 2
    request = world.request("a")
    await world.settle()
    await world.pass_time(1)
    with pytest.raises(LoadFailed) as error:
        await request.task
    assert not error.value.retryable, "it has failed until somebody resets it"
    assert error.value.details["log_tail"] == ["the last line"]


async def test_what_a_model_said_while_it_served_is_in_no_answer(make_world: MakeWorld) -> None:
    """Clients made it say that, and others would read it."""
    world = await make_world({"a": 1000}, max_restarts=0)
    request = world.request("a")
    await world.settle()
    crash = Failure(FailureKind.UNKNOWN, "it crashed.", 1, ("what another client asked",), served=True)
    world.launcher.newest("a").die(crash)
    await request.finish()
    with pytest.raises(ModelFailed) as error:
        await world.request("a").task
    assert error.value.details == {"last_error": "it crashed.", "log_tail": []}


async def test_a_bug_in_the_launcher_ends_in_failed_not_in_a_stuck_state(make_world: MakeWorld) -> None:
    world = await make_world({"a": 1000})
    world.launcher.fail_next = [ZeroDivisionError("a bug")]
    with pytest.raises(LoadFailed, match="internal error"):
        await world.request("a").task
    assert world.status("a") is Status.FAILED
    assert world.reserved("a") == {}


async def test_a_crashed_model_comes_back_by_itself(make_world: MakeWorld) -> None:
    world = await make_world({"a": 1000})
    request = world.request("a")
    await world.settle()
    await request.finish()
    world.launcher.newest("a").die()
    await world.settle()
    assert world.status("a") is Status.CRASHED
    await world.pass_time(1)
    assert world.status("a") is Status.READY
    assert [event for event in world.events if isinstance(event, Restarted)] == [Restarted("a")]


async def test_a_model_that_crashes_too_often_has_failed(make_world: MakeWorld) -> None:
    world = await make_world({"a": 1000}, max_restarts=1)
    request = world.request("a")
    await world.settle()
    await request.finish()
    for _ in range(2):
        world.launcher.newest("a").die()
        await world.settle()
        await world.pass_time(5)
    assert world.status("a") is Status.FAILED


async def test_a_process_that_dies_while_draining_did_not_crash(make_world: MakeWorld) -> None:
    world = await make_world({"a": 6000, "b": 6000}, max_swap_wait_sec=0)
    running = world.request("a")
    await world.settle()
    world.request("b")
    await world.settle()
    world.launcher.newest("a").die()
    await world.settle()
    assert world.status("a") is Status.OFF
    assert world.status("b") is Status.READY
    await running.leave()


async def test_eject_waits_for_running_requests(make_world: MakeWorld) -> None:
    world = await make_world({"a": 1000})
    running = world.request("a")
    await world.settle()
    instance = world.manager.instances["a"]
    ejecting = asyncio.create_task(world.manager.eject(instance, now=False, timeout_s=60))
    await world.settle()
    assert world.status("a") is Status.DRAINING and not running.cut.is_set()
    await running.finish()
    assert await ejecting is True
    assert world.status("a") is Status.OFF


async def test_eject_now_cuts_running_requests(make_world: MakeWorld) -> None:
    world = await make_world({"a": 1000})
    running = world.request("a")
    await world.settle()
    assert await world.manager.eject(world.manager.instances["a"], now=True, timeout_s=60)
    assert running.cut.is_set()


async def test_waiting_requests_survive_an_eject(make_world: MakeWorld) -> None:
    world = await make_world({"a": 1000})
    world.request("a")
    await world.settle()
    waiting = world.request("a")
    await world.settle()
    await world.manager.eject(world.manager.instances["a"], now=True, timeout_s=60)
    await world.settle()
    assert world.launcher.loads("a") == 2
    assert world.status("a") is Status.READY
    await waiting.leave()


async def test_an_idle_model_is_unloaded(make_world: MakeWorld) -> None:
    world = await make_world({"a": 1000}, idle_timeout_sec=60)
    request = world.request("a")
    await world.settle()
    await world.pass_time(100)
    assert world.status("a") is Status.READY, "a running request is not idle time"
    await request.finish()
    await world.pass_time(59)
    assert world.status("a") is Status.READY
    await world.pass_time(2)
    assert world.status("a") is Status.OFF


async def test_preloading_takes_what_fits_and_evicts_nobody(make_world: MakeWorld) -> None:
    world = await make_world({"a": 6000, "b": 6000, "c": 3000})
    world.manager.preload(["a", "b", "c"])
    await world.settle()
    assert [world.status(alias) for alias in "abc"] == [Status.READY, Status.OFF, Status.READY]


async def test_load_without_a_request_makes_room_like_a_request(make_world: MakeWorld) -> None:
    world = await make_world({"a": 6000, "b": 6000})
    await world.manager.load(world.manager.instances["a"], wait=True)
    await world.manager.load(world.manager.instances["b"], wait=True)
    await world.settle()
    assert [world.status(alias) for alias in "ab"] == [Status.OFF, Status.READY]


async def test_shutdown_refuses_who_waits_and_lets_the_running_finish(make_world: MakeWorld) -> None:
    world = await make_world({"a": 1000})
    running = world.request("a")
    await world.settle()
    waiting = world.request("a")
    await world.settle()
    closing = asyncio.create_task(world.manager.shutdown(60))
    with pytest.raises(ShuttingDown):
        await waiting.task
    with pytest.raises(ShuttingDown):
        await world.request("a").task
    assert not running.cut.is_set()
    await running.finish()
    await closing
    assert not world.launcher.live


async def test_shutdown_cuts_what_does_not_finish_in_time(make_world: MakeWorld) -> None:
    world = await make_world({"a": 1000})
    running = world.request("a")
    await world.settle()
    await world.manager.shutdown(0)
    assert running.cut.is_set()
    await running.leave()


async def test_memory_that_other_programs_take_is_not_promised(make_world: MakeWorld) -> None:
    world = await make_world({"a": 6000})
    world.probe.others_mb = [5000]
    await world.tracker.refresh()
    with pytest.raises(VramExhausted) as error:
        await world.request("a").task
    assert error.value.retryable and error.value.details["available_mb"] == 5000


def _reconfigured(world: World, **models: dict[str, object]) -> Config:
    """The same configuration, with these models changed, added, or removed where empty."""
    tree = world.config.model_dump(mode="json")
    tree["models"] = {a: m for a, m in {**tree["models"], **models}.items() if m}
    return Config.model_validate(tree)


async def test_a_reload_keeps_the_process_of_an_unchanged_model(make_world: MakeWorld) -> None:
    world = await make_world({"a": 1000, "b": 1000})
    for alias in "ab":
        await world.manager.load(world.manager.instances[alias], wait=True)
    world.manager.apply(_reconfigured(world, b={"model_path": "/b.gguf", "params": {"n_ctx": 99}}))
    await world.settle()
    assert (world.status("a"), world.status("b")) == (Status.READY, Status.OFF)
    assert world.manager.instances["b"].spec.params.n_ctx == 99


async def test_a_changed_model_finishes_its_request_and_serves_the_next_as_it_is_defined_now(
    make_world: MakeWorld,
) -> None:
    world = await make_world({"a": 1000})
    running = world.request("a")
    await world.settle()
    waiting = world.request("a")
    world.manager.apply(_reconfigured(world, a={"model_path": "/other.gguf"}))
    await world.settle()
    assert not running.cut.is_set() and not waiting.granted.is_set()
    await running.finish()
    assert waiting.granted.is_set()
    assert str(world.launcher.newest("a").spec.path) == "/other.gguf"


async def test_a_change_that_only_the_router_cares_for_restarts_nothing(make_world: MakeWorld) -> None:
    world = await make_world({"a": 1000})
    await world.manager.load(world.manager.instances["a"], wait=True)
    world.manager.apply(_reconfigured(world, a={"model_path": "/a.gguf", "aliases": ["gpt-4"]}))
    assert world.status("a") is Status.READY
    assert world.manager.fleet.find("gpt-4").alias == "a"


async def test_a_removed_model_finishes_its_request_and_is_forgotten(make_world: MakeWorld) -> None:
    world = await make_world({"a": 1000, "b": 1000})
    running, waiting = world.request("a"), world.request("a")
    await world.settle()
    world.manager.apply(_reconfigured(world, a={}))
    with pytest.raises(ModelNotFound):
        world.manager.fleet.find("a")
    with pytest.raises(ModelNotFound, match="removed"):
        await waiting.task
    await running.finish()
    assert list(world.manager.instances) == ["b"]


async def test_an_added_model_can_be_used_at_once(make_world: MakeWorld) -> None:
    world = await make_world({"a": 1000})
    world.sizes["new"] = 1000
    world.manager.apply(_reconfigured(world, new={"model_path": "/new.gguf"}))
    request = world.request("new")
    await world.settle()
    assert request.granted.is_set()


# --- without a task


def _entered(world: World, alias: str, priority: Priority = Priority.NORMAL) -> Ticket:
    ticket = world.manager.ticket(priority)
    world.manager.enter(world.manager.instances[alias], ticket)
    return ticket


def _has_slot(ticket: Ticket) -> bool:
    return ticket.state is TicketState.GRANTED


async def test_a_free_slot_is_granted_at_once(make_world: MakeWorld) -> None:
    world = await make_world({"a": 1000}, parallel_requests=2)
    await world.request("a").finish()
    world.clock.now += 50
    first, second, third = [_entered(world, "a") for _ in range(3)]
    assert [_has_slot(ticket) for ticket in (first, second, third)] == [True, True, False]
    instance = world.manager.instances["a"]
    assert (first.granted_at, instance.lifecycle.last_used) == (world.clock.now, world.clock.now)
    world.manager.leave(instance, first)
    assert _has_slot(third)
    for ticket in (second, third):
        world.manager.leave(instance, ticket)
    assert (instance.queue.in_flight, instance.queue.waiting) == (0, 0)
    assert [process.served for process in instance.view().processes] == [4]


async def test_who_is_granted_at_once_overtakes_nobody(make_world: MakeWorld) -> None:
    """A slot may be free while somebody waits: here one of two has just been added."""
    world = await make_world({"a": 1000})
    running, waiting = world.request("a"), world.request("a")
    await world.settle()
    instance = world.manager.instances["a"]
    instance.queue.slots = 2
    late = _entered(world, "a", Priority.LOW)
    assert _has_slot(waiting.ticket)
    assert not _has_slot(late)
    await waiting.finish()
    assert _has_slot(late)
    world.manager.leave(instance, late)
    await running.finish()


async def test_nothing_is_granted_at_once_while_another_model_waits_for_room(make_world: MakeWorld) -> None:
    """The next look decides: the newcomer's key may be larger than that of the one who waits."""
    world = await make_world({"a": 6000, "b": 6000}, parallel_requests=2, max_swap_wait_sec=0)
    running = world.request("a")
    await world.settle()
    world.manager.scheduler.contended = {"b"}
    late = _entered(world, "a")
    assert not _has_slot(late)
    await world.settle()  # nobody waits for room after all
    assert _has_slot(late)
    world.manager.leave(world.manager.instances["a"], late)
    other = world.request("b")
    await world.settle()
    late = _entered(world, "a")
    assert not _has_slot(late)
    await running.finish()
    assert other.granted.is_set()
    assert not _has_slot(late)
    world.manager.leave(world.manager.instances["a"], late)


@pytest.mark.parametrize("status", [Status.OFF, Status.DRAINING, Status.FAILED])
async def test_only_a_model_that_serves_grants_at_once(make_world: MakeWorld, status: Status) -> None:
    world = await make_world({"a": 1000}, parallel_requests=2)
    instance = world.manager.instances["a"]
    if status is Status.DRAINING:
        running = world.request("a")
        await world.settle()
        instance.drain(StopReason.MANUAL)
    elif status is Status.FAILED:
        instance.check_failed(failure())
    assert instance.status is status
    if status is Status.FAILED:
        with pytest.raises(ModelFailed):
            _entered(world, "a")
        assert instance.queue.waiting == 0
        return
    late = _entered(world, "a")
    assert not _has_slot(late)
    if status is Status.DRAINING:
        await running.finish()
    await world.settle()
    assert _has_slot(late)
    world.manager.leave(instance, late)


async def test_a_router_that_closes_grants_nothing_at_once(make_world: MakeWorld) -> None:
    world = await make_world({"a": 1000})
    await world.request("a").finish()
    world.manager.closing = True
    with pytest.raises(ShuttingDown):
        _entered(world, "a")
    assert world.manager.instances["a"].queue.in_flight == 0
