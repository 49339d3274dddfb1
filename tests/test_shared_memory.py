"""A GPU that shares the machine's memory (Grace Blackwell, Jetson, Apple): one store, planned as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from app.domain.errors import NeverFits
from app.domain.status import Status
from app.domain.units import MIB
from app.domain.views import HOST, DeviceView, MemoryNeed, Placement
from app.memory.amount_to_reserve import GPU_PROCESS_MB
from app.memory.estimate.estimate import MemoryEstimate, MemoryShare
from app.memory.ledger.kept_free import KeptFree
from app.memory.probes.interface import Reading
from app.scheduling.placement import Capacity, fit
from tests.fakes import NO_COST, FakeRunner, MakeWorld, World, footprint

TOTAL_MB = 10_000


class Machine:
    """One memory, of which the driver tells nothing, or only what each process uses of it."""

    reason: str | None = None
    poll_s = 0.05

    def __init__(self, world: World, others_mb: int = 0, *, tells_processes: bool = False) -> None:
        self.world, self.others_mb, self.tells_processes = world, others_mb, tells_processes
        self.leak_mb = 0

    def host(self, pids: Sequence[int] = ()) -> Reading:
        live = self.world.launcher.live
        used = self.others_mb + self.leak_mb + sum(sum(self.of(r).values()) for r in live)
        by_pid = {r.pid: self.of(r).get(HOST, 0) for r in live if r.pid in pids}
        return Reading(HOST, HOST, "host memory", TOTAL_MB, used, TOTAL_MB - used, by_pid=by_pid)

    def of(self, runner: FakeRunner) -> Placement:
        """It uses what was reserved for it."""
        return self.world.tracker.ledger.of(runner.spec.alias).placement

    def read(self) -> Sequence[Reading]:
        by_pid = {r.pid: self.of(r).get("0", 0) for r in self.world.launcher.live}
        shared = replace(self.host(), id="0", uuid="GPU-0", name="GB10", cost=NO_COST, shares_host=True)
        return [replace(shared, by_pid=by_pid if self.tells_processes else {})]

    def expire(self) -> None: ...

    def close(self) -> None: ...


@pytest.fixture(params=[False, True], ids=["no figures", "by process"])
def tells_processes(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


async def on(
    make_world: MakeWorld, sizes: dict[str, int], on_cpu: str = "", **machine: object
) -> tuple[World, Machine]:
    models = {alias: {"params": {"n_gpu_layers": -1}} for alias in on_cpu}
    world = await make_world(sizes, models=models, max_concurrent_models=9, prompt_cache_mb=0)
    found = Machine(world, **machine)  # type: ignore[arg-type]
    world.tracker.probe = world.tracker._driver._probe = found
    world.tracker._driver._read_host = lambda: found.host(world.tracker.ledger.pids())
    await world.settle()
    return world, found


def views(world: World) -> tuple[DeviceView, DeviceView]:
    """The GPU and the machine."""
    by_id = {view.id: view for view in world.tracker.ledger.devices()}
    return by_id["0"], by_id[HOST]


async def run(world: World, alias: str) -> None:
    request = world.request(alias)
    for _ in range(3):
        await world.settle()
    assert request.granted.is_set(), alias
    await request.finish()


def with_host_part(world: World, alias: str, mb: int, host_mb: int) -> None:
    found = footprint(mb)
    layers = MemoryShare(weights_bytes=(host_mb - GPU_PROCESS_MB) * MIB)
    world.footprints[alias] = replace(
        found, with_gpu=MemoryEstimate(found.with_gpu.device, layers, exact=True)
    )


# --- what is shown of it


async def test_what_models_hold_is_no_other_programs(make_world: MakeWorld, tells_processes: bool) -> None:
    world, _ = await on(make_world, {"a": 3000}, others_mb=700, tells_processes=tells_processes)
    with_host_part(world, "a", 3000, 1000)
    await run(world, "a")
    gpu, host = views(world)
    assert (gpu.others_mb, host.others_mb) == (700, 700)
    assert (gpu.free_mb, host.free_mb) == (TOTAL_MB - 700 - 4000, TOTAL_MB - 700 - 4000)
    assert gpu.is_gpu and gpu.shares_host and not host.shares_host


async def test_a_reservation_counts_on_both_before_anything_is_used(make_world: MakeWorld) -> None:
    world, _ = await on(make_world, {"a": 3000}, others_mb=700)
    world.tracker.ledger.reserve("a", {"0": 3000, HOST: 500})
    gpu, host = views(world)
    assert (gpu.free_mb, host.free_mb) == (TOTAL_MB - 700 - 3500, TOTAL_MB - 700 - 3500)
    world.tracker.ledger.release("a", crashed=False)


async def test_what_stopped_models_held_is_on_its_way_on_both(
    make_world: MakeWorld, tells_processes: bool
) -> None:
    world, machine = await on(make_world, {"a": 3000}, tells_processes=tells_processes)
    with_host_part(world, "a", 3000, 1000)
    await run(world, "a")
    machine.leak_mb = 4000  # the driver is slow
    await world.manager.eject(world.manager.instances["a"], now=True, timeout_s=1)
    await world.settle()
    assert [view.reclaiming_mb for view in views(world)] == [3600, 3600]
    assert [view.others_mb for view in views(world)] == [400, 400]


async def test_how_the_machines_memory_changes_is_no_measurement(make_world: MakeWorld) -> None:
    world, _ = await on(make_world, {"a": 3000})
    await run(world, "a")
    assert world.tracker.ledger.of("a").measured_mb is None
    world, _ = await on(make_world, {"a": 3000}, tells_processes=True)
    await run(world, "a")
    assert world.tracker.ledger.of("a").measured_mb == 3000


# --- what is planned in it


async def test_models_that_fit_together_are_loaded_together(
    make_world: MakeWorld, tells_processes: bool
) -> None:
    world, _ = await on(
        make_world, dict.fromkeys("abc", 2700), others_mb=500, tells_processes=tells_processes
    )
    for alias in "abc":
        await run(world, alias)
    assert [world.status(alias) for alias in "abc"] == [Status.READY] * 3


async def test_one_that_does_not_fit_beside_takes_the_place_of_another(
    make_world: MakeWorld, tells_processes: bool
) -> None:
    """Also where each would fit if there were two stores: on the GPU, and beside it on the host."""
    world, _ = await on(make_world, {"a": 4000, "b": 4000}, tells_processes=tells_processes)
    for alias in "ab":
        with_host_part(world, alias, 4000, 2000)
        await run(world, alias)
    assert [world.status(alias) for alias in "ab"] == [Status.OFF, Status.READY]


async def test_a_model_on_the_cpu_and_one_on_the_gpu_share_it(make_world: MakeWorld) -> None:
    world, _ = await on(make_world, {"a": 6000, "b": 6000}, on_cpu="b")
    await run(world, "a")
    await run(world, "b")
    assert [world.status(alias) for alias in "ab"] == [Status.OFF, Status.READY]


async def test_what_is_larger_than_the_machine_is_refused_for_good(make_world: MakeWorld) -> None:
    world, _ = await on(make_world, {"a": 6000})
    with_host_part(world, "a", 6000, 5000)
    with pytest.raises(NeverFits) as error:
        await world.request("a").task
    assert error.value.details == {**error.value.details, "required_mb": 6000, "available_mb": 5000}
    assert "n_gpu_layers" not in error.value.message


def test_capacity_takes_a_placement_from_both() -> None:
    room = Capacity({"0": 9000, HOST: 8000}, 3, shared=frozenset({"0"}))
    taken = room.minus({"0": 3000, HOST: 1000})
    assert taken.free == {"0": 6000, HOST: 4000}
    assert taken.plus({"0": 3000, HOST: 1000}).free == room.free
    assert room.most(MemoryNeed(1, ("0",))) == 8000
    assert fit(MemoryNeed(8001, ("0",)), room) is None
    now, coming = room.take({"0": 9000}, Capacity({"0": 9000, HOST: 9000}, 1, shared=frozenset({"0"})))
    assert (now.free, coming.free) == ({"0": 0, HOST: 0}, {"0": 9000, HOST: 8000})


def test_more_is_kept_free_of_it_than_of_a_cards_own_memory() -> None:
    """What is short there is short for everything that runs on the machine."""
    own = Reading("0", "GPU-0", "card", 64_000, 0, 64_000)
    shared = replace(own, shares_host=True)
    assert (KeptFree().of(own), KeptFree().of(shared)) == (500, 1024)
    assert KeptFree.parse(2000).of(shared) == 2000
    assert KeptFree.parse({"0": 100}).of(shared) == 100
