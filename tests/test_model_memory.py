"""A promise of memory against the truth: announced before the weights are read, logged, measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from app.core.config import Config
from app.domain.errors import LoadFailed, NeverFits, VramExhausted
from app.domain.events import Evicted, LoadFinished
from app.domain.file_identity import FileIdentity
from app.domain.status import Status, StopReason
from app.domain.units import MIB
from app.domain.views import HOST, Placement
from app.llama.exit_reason import FailureKind
from app.llama.load_output import Buffer
from app.memory import amount_to_reserve as footprint
from app.memory.amount_to_reserve import PROCESS_MB, Footprint
from app.memory.estimate.estimate import MemoryEstimate, MemoryShare
from app.memory.load_history import LoadRecord
from app.memory.model_memory import split_buffers
from app.memory.probes.fixed_cost import UNLISTED_MB, FixedCost
from tests.fakes import MakeWorld, World, failure
from tests.fakes import footprint as fake_footprint

NO_MEMORY = failure(FailureKind.OUT_OF_MEMORY, "there was not enough memory.")


def announced(mb: int, where: str = "device") -> str:
    return f"0.1 I common_params_fit_impl: projected to use {mb} MiB of {where} memory vs. 9999 MiB of free"


def logged(mb: int, device: str = "CUDA0") -> str:
    return f"0.2 I load_tensors:        {device} model buffer size =  {mb}.00 MiB"


def gpus(placement: Placement) -> dict[str, int]:
    return {device: mb for device, mb in placement.items() if device != HOST}


def free_mb(world: World) -> int:
    return world.tracker.ledger.room_mb("0")


async def serve(world: World, alias: str) -> None:
    request = world.request(alias)
    for _ in range(3):  # it may be stopped, looked at again and loaded again
        await world.settle()
    assert request.granted.is_set(), world.status(alias)
    await request.finish()


# Before the weights are read


async def test_an_announcement_within_the_promise_changes_nothing(make_world: MakeWorld) -> None:
    world = await make_world({"a": 3000})
    world.launcher.logs["a"] = [announced(2900)]
    await serve(world, "a")
    assert (world.launcher.loads("a"), world.reserved("a")) == (1, {"0": 3000})


async def test_a_promise_grows_where_there_is_room(make_world: MakeWorld) -> None:
    world = await make_world({"a": 3000})
    world.launcher.logs["a"] = [announced(4000)]
    await serve(world, "a")
    assert (world.launcher.loads("a"), world.reserved("a")) == (1, {"0": 4000})


async def test_a_load_too_big_for_its_place_is_stopped_and_makes_room_first(make_world: MakeWorld) -> None:
    world = await make_world({"other": 6000, "a": 3000})
    await serve(world, "other")
    world.launcher.logs["a"] = [announced(5000)]
    await serve(world, "a")
    assert world.launcher.loads("a") == 2, "stopped once, then loaded with what it needs"
    assert world.reserved("a") == {"0": 5000}
    assert world.status("other") is Status.OFF
    assert Evicted("other", StopReason.MEMORY) in world.events
    assert [e.result for e in world.events if isinstance(e, LoadFinished) and e.alias == "a"] == [
        "abandoned",
        "success",
    ]


async def test_the_second_load_of_such_a_model_is_right_at_once(make_world: MakeWorld) -> None:
    world = await make_world({"other": 6000, "a": 3000})
    await serve(world, "other")
    world.launcher.logs["a"] = [announced(5000), logged(5000)]
    await serve(world, "a")
    await serve(world, "other")
    await serve(world, "a")
    assert world.launcher.loads("a") == 3


async def test_what_turns_out_never_to_fit_is_refused_and_evicts_nobody(make_world: MakeWorld) -> None:
    world = await make_world({"other": 6000, "a": 3000})
    await serve(world, "other")
    world.launcher.logs["a"] = [announced(12_000)]
    with pytest.raises(NeverFits) as error:
        await world.request("a").task
    assert error.value.details["required_mb"] == 12_000
    assert not error.value.retryable
    assert world.status("other") is Status.READY
    assert world.launcher.loads("a") == 1


async def test_a_need_that_grows_with_every_load_ends_in_an_error(make_world: MakeWorld) -> None:
    sizes = {"pinned": 4000, "idle": 4000, "a": 1000}
    world = await make_world(sizes, models={"pinned": {"pinned": True}}, max_concurrent_models=9)
    await serve(world, "pinned")
    await serve(world, "idle")
    world.launcher.slow = True
    request = world.request("a")
    for mb in (5500, 7000):
        await world.settle()
        await world.settle()
        world.launcher.newest("a").say(announced(mb))
    await world.settle()
    await world.pass_time(1)
    with pytest.raises(VramExhausted) as error:
        await request.task
    assert error.value.details["required_mb"] == 7000
    assert world.launcher.loads("a") == 2


async def test_asking_whether_it_may_be_planned_again_changes_nothing(make_world: MakeWorld) -> None:
    memory = (await make_world({"a": 3000})).manager.instances["a"].memory
    assert [memory.may_plan_again for _ in range(3)] == [True] * 3
    memory.plan_again()
    assert [memory.may_plan_again for _ in range(3)] == [False] * 3


async def test_a_preloaded_model_is_planned_again_too(make_world: MakeWorld) -> None:
    world = await make_world({"pinned": 5000, "a": 3000}, models={"pinned": {"pinned": True}})
    await serve(world, "pinned")
    world.launcher.slow = True
    world.manager.preload(["a"])
    await world.settle()
    world.launcher.newest("a").say(announced(5200))
    await world.settle()
    assert world.status("a") is Status.OFF
    assert not world.manager.instances["a"].lifecycle.preload, "there is no room, so it is forgotten"


async def test_a_declared_need_is_the_last_word(make_world: MakeWorld) -> None:
    world = await make_world({"a": 3000}, models={"a": {"vram_mb": 2000}})
    world.launcher.logs["a"] = [announced(9000), logged(9000)]
    world.launcher.takes["a"] = 1500
    await serve(world, "a")
    assert (world.launcher.loads("a"), world.reserved("a")) == (1, {"0": 2000})


async def test_a_model_on_the_cpu_is_checked_against_host_memory(make_world: MakeWorld) -> None:
    world = await make_world({"a": 300}, models={"a": {"params": {"n_gpu_layers": -1}}})
    world.launcher.logs["a"] = [announced(320, "host"), logged(310, "CPU_Mapped")]
    await serve(world, "a")
    process_mb = PROCESS_MB
    assert world.reserved("a") == {"host": 320 + process_mb + world.config.system.prompt_cache_mb}
    assert world.manager.instances["a"].memory.measured_mb == 310


# After the load


async def test_after_the_load_the_rest_of_the_promise_is_free_again(make_world: MakeWorld) -> None:
    world = await make_world({"a": 6000, "b": 5000})
    world.launcher.logs["a"], world.launcher.takes["a"] = [logged(4000)], 4300
    await serve(world, "a")
    await world.settle()
    assert world.reserved("a") == {"0": 4300 + UNLISTED_MB}
    await serve(world, "b")
    assert world.status("a") is Status.READY, "both fit, now that more is known"


async def test_a_process_that_grows_is_believed(make_world: MakeWorld) -> None:
    world = await make_world({"a": 6000})
    world.launcher.logs["a"], world.launcher.takes["a"] = [logged(4000)], 4300
    await serve(world, "a")
    await world.settle()
    world.launcher.newest("a").placement["0"] = 4700
    await world.settle()
    assert world.reserved("a") == {"0": 4700 + UNLISTED_MB}
    world.launcher.newest("a").placement["0"] = 4400
    await world.settle()
    assert world.reserved("a") == {"0": 4700 + UNLISTED_MB}, "pools grow again"


async def test_what_was_measured_is_the_need_of_the_next_load(make_world: MakeWorld) -> None:
    world = await make_world({"a": 6000})
    world.launcher.logs["a"], world.launcher.takes["a"] = [logged(4000)], 4300
    await serve(world, "a")
    await world.settle()
    instance = world.manager.instances["a"]
    await world.manager.eject(instance, now=True, timeout_s=60)
    await world.settle()
    preview = await world.manager.preview(instance)
    assert gpus(preview.placement) == {"0": 4300 + UNLISTED_MB}
    assert instance.need is not None and instance.need.note == "measured at an earlier load"
    assert (instance.memory.estimated_mb, instance.memory.measured_mb) == (6000 + 300 + UNLISTED_MB, 4300)


async def test_the_overhead_of_one_model_serves_another_that_was_never_loaded(make_world: MakeWorld) -> None:
    world = await make_world({"a": 6000, "b": 1000})
    b = world.manager.instances["b"]
    assert gpus((await world.manager.preview(b)).placement) == {"0": 1000}
    world.launcher.logs["a"], world.launcher.takes["a"] = [logged(4000)], 4250
    await serve(world, "a")
    await world.settle()
    b.need = None
    assert gpus((await world.manager.preview(b)).placement) == {"0": 1250 + UNLISTED_MB}


async def test_a_change_of_the_flags_forgets_what_was_learned(make_world: MakeWorld) -> None:
    world = await make_world({"a": 6000})
    tree = {"models": {"a": {"model_path": "/a.gguf"}}}
    found = fake_footprint(6000)

    def key(**changes: Any) -> str:
        model = {**tree["models"]["a"], **changes}
        spec = Config.model_validate({"models": {"a": model}}).specs()["a"]
        return footprint.key(spec, found, "build", True)

    same = key(pinned=True, priority="high", idle_timeout_sec=5)
    assert key() == same
    changed = [
        key(params={"n_ctx": 8192}),
        key(params={"type_k": "q8_0"}),
        key(params={"n_gpu_layers": 10}),
        key(parallel_requests=3),
        key(extra_args=["--swa-full"]),
        key(env={"X": "1"}),
        key(model_path="/b.gguf"),
        footprint.key(world.config.specs()["a"], found, "another build", True),
        footprint.key(world.config.specs()["a"], replace(found, identity=FileIdentity(2, 2)), "build", True),
    ]
    assert len({same, *changed}) == 1 + len(changed)


# Out of memory


async def test_a_load_without_enough_memory_is_tried_again_and_idle_models_stay_where_that_gives_nothing(
    make_world: MakeWorld,
) -> None:
    world = await make_world({"idle": 2000, "a": 3000})
    await serve(world, "idle")
    world.launcher.fail_next = [NO_MEMORY] * 2
    request = world.request("a")
    await world.settle()
    await world.pass_time(1)
    with pytest.raises(LoadFailed, match="not enough memory"):
        await request.task
    assert (world.status("idle"), world.launcher.loads("idle")) == (Status.READY, 1)


async def test_without_enough_memory_idle_models_go_if_the_raised_need_takes_their_room(
    make_world: MakeWorld,
) -> None:
    world = await make_world(
        {"idle": 2000, "other": 500, "kept": 500, "a": 6900},
        models={"kept": {"pinned": True}},
        max_concurrent_models=9,
    )
    for alias in ("idle", "other", "kept"):
        await serve(world, alias)
    world.launcher.fail_next = [NO_MEMORY]
    request = world.request("a")
    await world.settle()
    await world.pass_time(1)
    assert request.granted.is_set()
    assert world.reserved("a") == {"0": 7590}, "a tenth more"
    assert [world.status(m) for m in ("idle", "other", "kept")] == [Status.OFF, Status.READY, Status.READY]


async def test_what_llama_server_had_asked_for_is_what_it_needs(make_world: MakeWorld) -> None:
    world = await make_world({"idle": 3000, "a": 3000})
    await serve(world, "idle")
    world.launcher.logs["a"] = [
        "load_tensors:        CUDA0 model buffer size =  3000.00 MiB",
        "load_tensors:   CPU_Mapped model buffer size =   900.00 MiB",
        f"alloc_tensor_range: failed to allocate CUDA0 buffer of size {4500 << 20}",
    ]
    world.launcher.fail_next = [NO_MEMORY]
    request = world.request("a")
    await world.settle()
    await world.pass_time(1)
    assert request.granted.is_set()
    assert world.launcher.newest("a").placement == {"0": 7500}
    assert world.status("idle") is Status.OFF


async def test_out_of_memory_twice_is_a_failure(make_world: MakeWorld) -> None:
    world = await make_world({"a": 3000}, load_max_retries=5)
    world.launcher.fail_next = [NO_MEMORY] * 3
    request = world.request("a")
    await world.settle()
    await world.pass_time(5)
    with pytest.raises(LoadFailed, match="not enough memory"):
        await request.task
    assert world.launcher.loads("a") == 2


async def test_a_need_is_never_raised_beyond_what_the_device_could_give(make_world: MakeWorld) -> None:
    world = await make_world({"a": 9900})
    world.launcher.fail_next = [NO_MEMORY]
    request = world.request("a")
    await world.settle()
    await world.pass_time(1)
    assert request.granted.is_set()


async def test_a_successful_load_takes_the_raise_back(make_world: MakeWorld) -> None:
    world = await make_world({"a": 3000})
    world.launcher.fail_next = [NO_MEMORY]
    world.launcher.logs["a"] = [logged(2900)]
    world.launcher.takes["a"] = 2950
    request = world.request("a")
    await world.settle()
    await world.pass_time(1)
    await request.finish()
    await world.settle()
    assert world.reserved("a") == {"0": 2950 + UNLISTED_MB}


# Small parts


def test_pinned_host_memory_is_not_the_devices() -> None:
    names = [
        "CUDA0",
        "Vulkan1",
        "ROCm0",
        "Metal",
        "RPC[127.0.0.1:1]",
        "CUDA_Host",
        "CPU",
        "CPU_Mapped",
        "AMX",
    ]
    buffers = [Buffer(name, "model", 2.0**n) for n, name in enumerate(names)]
    assert split_buffers(buffers) == (1 + 2 + 4 + 8 + 16, 32 + 64 + 128 + 256)


def test_on_the_host_the_factor_stays_for_what_the_log_does_not_tell() -> None:
    spec = Config.model_validate(
        {"models": {"a": {"model_path": "/a", "params": {"n_gpu_layers": -1}}}}
    ).specs()["a"]
    need = footprint.need(spec, fake_footprint(900), (), False, 1.5, LoadRecord(host_mb=1000))
    process_mb = round(1.5 * PROCESS_MB)
    assert (need.mb, need.estimate_mb) == (1000 + process_mb, 900 + process_mb)


def estimated(exact: bool) -> Footprint:
    share = MemoryShare(600 * MIB, 300 * MIB, 100 * MIB, compute_bytes=200 * MIB, overhead_bytes=40 * MIB)
    return replace(fake_footprint(1000), with_gpu=MemoryEstimate(share, MemoryShare(), exact=exact))


@pytest.mark.parametrize(("cost", "fixed"), [(FixedCost(400, 200), 900), (FixedCost(400, 200, True), 600)])
def test_the_factor_is_for_what_is_uncertain(cost: FixedCost, fixed: int) -> None:
    spec = Config.model_validate({"models": {"a": {"model_path": "/a"}}}).specs()["a"]
    need = footprint.need(spec, estimated(exact=True), ("0",), True, 1.5, LoadRecord(), cost)
    assert need.mb == need.estimate_mb == 1000 + 300 + 60 + fixed
    need = footprint.need(spec, estimated(exact=False), ("0",), True, 1.5, LoadRecord(), cost)
    assert need.mb == need.estimate_mb == 1500 + 300 + 60 + fixed
    need = footprint.need(spec, estimated(exact=True), ("0",), True, 1.5, LoadRecord(device_mb=950), cost)
    assert need.mb == 950 + 60 + fixed


def test_what_was_measured_while_it_served_is_taken_as_it_is() -> None:
    spec = Config.model_validate({"models": {"a": {"model_path": "/a"}}}).specs()["a"]
    seen, cost = LoadRecord(device_mb=950, measured_mb=1700), FixedCost(400, 200, is_known=True)
    need = footprint.need(spec, estimated(exact=True), ("0",), True, 1.5, seen, cost)
    assert need.mb == 1700 + UNLISTED_MB


# All together


async def test_four_models_of_three_gigabytes_never_hold_more_than_the_eight_there_are(
    make_world: MakeWorld,
) -> None:
    world = await make_world(dict.fromkeys("abcd", 3000), gpu_mb=(8000,), max_swap_wait_sec=0)
    samples: list[int] = []
    world.bus.subscribe(lambda _event: samples.append(world.tracker.ledger.devices()[0].reserved_mb))
    for alias in "abcd":
        world.launcher.takes[alias] = 2900
    requests = [world.request(alias) for _ in range(6) for alias in "abcd"]
    for _ in range(200):
        await world.settle()
        running = [r for r in requests if r.granted.is_set() and not r.task.done()]
        for request in running:
            await request.finish()
        if all(r.task.done() for r in requests):
            break
    assert all(r.task.done() and not r.task.exception() for r in requests)
    assert max(samples) == 6000 and len(samples) > 100
