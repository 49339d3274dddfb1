"""The machine's own memory: how it is read, within a control group too, and how loads are planned in it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.domain.errors import NeverFits
from app.domain.status import Status
from app.domain.units import MIB
from app.domain.views import HOST
from app.memory.amount_to_reserve import GPU_PROCESS_MB, PROCESS_MB
from app.memory.estimate.estimate import MemoryEstimate, MemoryShare
from app.memory.ledger.kept_free import KeptFree
from app.memory.probes.host_memory import Bound, group_bounds, host_reading, process_mb
from app.memory.probes.interface import Reading
from tests.fakes import MakeWorld
from tests.fakes import footprint as fake_footprint

GB = 1 << 30
V1 = "4:memory:/app/router\n2:cpu,cpuacct:/\n0::/\n"
V1_MOUNT = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
V2_MOUNT = "31 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"


class Machine:
    """A made-up /proc and /sys/fs/cgroup."""

    def __init__(self, root: Path, cgroup: str, mountinfo: str) -> None:
        self.root = root
        self.write("proc/self/cgroup", cgroup)
        self.write("proc/self/mountinfo", "22 1 0:3 / /proc rw - proc proc rw\n" + mountinfo)

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def v2(self, path: str, limit: int | str, used: int, files: int = 0) -> None:
        folder = f"sys/fs/cgroup{path}"
        self.write(f"{folder}/memory.max", f"{limit}\n")
        self.write(f"{folder}/memory.current", f"{used}\n")
        half = files // 2
        self.write(
            f"{folder}/memory.stat", f"anon 1\nfile {GB}\nactive_file {half}\ninactive_file {files - half}\n"
        )

    def v1(self, path: str, limit: int, used: int, files: int = 0) -> None:
        folder = f"sys/fs/cgroup/memory{path}"
        self.write(f"{folder}/memory.limit_in_bytes", f"{limit}\n")
        self.write(f"{folder}/memory.usage_in_bytes", f"{used}\n")
        self.write(
            f"{folder}/memory.stat", f"active_file 0\ntotal_active_file {files}\ntotal_inactive_file 0\n"
        )


# Reading


def test_a_group_of_the_second_version_bounds_the_machine(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "0::/system.slice/router.service\n", V2_MOUNT)
    machine.v2("/system.slice/router.service", GB // 4, 200 * MIB, files=50 * MIB)
    reading = host_reading(root=tmp_path)
    assert (reading.id, reading.total_mb) == (HOST, 256)
    assert (reading.free_mb, reading.used_mb) == (256 - 150, 150), "cached files can go"


def test_the_tightest_of_all_groups_above_counts(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "0::/a/b\n", V2_MOUNT)
    machine.v2("/a/b", "max", 10 * MIB)
    machine.v2("/a", GB // 8, 100 * MIB)
    assert group_bounds(tmp_path) == [Bound(GB // 8, GB // 8 - 100 * MIB)]
    assert host_reading(root=tmp_path).total_mb == 128


def test_a_group_of_the_first_version_counts_with_its_children(tmp_path: Path) -> None:
    machine = Machine(tmp_path, V1, V1_MOUNT)
    machine.v1("/app/router", GB // 4, 200 * MIB, files=50 * MIB)
    machine.v1("/app", 1 << 62, 0)
    assert group_bounds(tmp_path) == [Bound(GB // 4, GB // 4 - 150 * MIB)]


def test_in_a_container_the_mount_is_the_group_itself(tmp_path: Path) -> None:
    """The path is the host's, the mount begins at the container's own group."""
    path = "/docker/0a1b"
    machine = Machine(tmp_path, f"4:memory:{path}\n", V1_MOUNT.replace(" / /sys", f" {path} /sys"))
    machine.v1("", GB // 4, 100 * MIB)
    assert group_bounds(tmp_path) == [Bound(GB // 4, GB // 4 - 100 * MIB)]
    with_namespace = Machine(tmp_path / "b", "0::/\n", V2_MOUNT)
    with_namespace.v2("", GB // 4, 100 * MIB)
    assert group_bounds(tmp_path / "b") == [Bound(GB // 4, GB // 4 - 100 * MIB)]


def test_without_groups_it_is_the_machine(tmp_path: Path) -> None:
    assert group_bounds(tmp_path) == []
    reading = host_reading(root=tmp_path)
    assert reading.total_mb == psutil.virtual_memory().total // MIB
    assert 0 < reading.free_mb <= reading.total_mb


def test_a_process_counts_without_the_files_that_it_maps(tmp_path: Path) -> None:
    (tmp_path / "proc" / "7").mkdir(parents=True)
    (tmp_path / "proc" / "7" / "status").write_text(
        "Name:\tx\nVmRSS:\t 9000 kB\nRssAnon:\t 3072 kB\nRssFile:\t 5000 kB\nRssShmem:\t 1024 kB\n"
    )
    assert process_mb(7, tmp_path) == 4
    assert process_mb(8, tmp_path) is None
    assert host_reading((7, 8), tmp_path).by_pid == {7: 4}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_this_process_is_read() -> None:
    assert (process_mb(os.getpid()) or 0) > 1


def test_what_is_kept_free_follows_the_configuration() -> None:
    card = Reading("1", "GPU-x", "Card", 8000, 0, 8000, names=("card",))
    assert KeptFree.parse(700).of(card) == 700
    named = KeptFree.parse({"GPU-x": 900, "0": 100, HOST: 50})
    assert (named.of(card), named.of(replace(card, uuid="GPU-y"))) == (900, 500)
    host = Reading(HOST, HOST, "", 4096, 0, 4096)
    assert (named.of(host), KeptFree.parse(700).of(host)) == (50, 204)
    assert [KeptFree().of(replace(host, total_mb=mb)) for mb in (1000, 64_000)] == [128, 1024]


# Planning


def on_cpu(*aliases: str) -> dict[str, Any]:
    return {alias: {"params": {"n_gpu_layers": -1}} for alias in aliases}


def host(total_mb: int, used_mb: int = 0) -> Reading:
    return Reading(HOST, HOST, "host memory", total_mb, used_mb, total_mb - used_mb)


async def test_the_third_model_in_four_gigabytes_takes_the_place_of_another(make_world: MakeWorld) -> None:
    sizes = dict.fromkeys("abc", 1600)
    world = await make_world(
        sizes, gpu_mb=(), models=on_cpu(*"abc"), host=host(4096), max_concurrent_models=9
    )
    for alias in "abc":
        request = world.request(alias)
        for _ in range(3):
            await world.settle()
        assert request.granted.is_set()
        await request.finish()
        assert sum(world.reserved(a).get(HOST, 0) for a in "abc") <= 4096
    assert [world.status(a) for a in "abc"].count(Status.READY) == 2


async def test_a_model_too_large_for_the_machine_is_refused_with_its_numbers(make_world: MakeWorld) -> None:
    world = await make_world({"a": 5000}, gpu_mb=(), models=on_cpu("a"), host=host(4096))
    request = world.request("a")
    with pytest.raises(NeverFits, match="of the machine's own memory") as error:
        await request.task
    assert not error.value.retryable
    assert error.value.details["required_mb"] == 5000 + PROCESS_MB
    assert error.value.details["available_mb"] == 4096
    assert "n_gpu_layers" not in error.value.message


async def test_what_a_model_on_the_gpu_keeps_on_the_host_is_planned_too(make_world: MakeWorld) -> None:
    world = await make_world({"a": 3000}, host=host(1000))
    layers = MemoryShare(weights_bytes=2000 * MIB)
    found = fake_footprint(3000)
    estimate = MemoryEstimate(found.with_gpu.device, layers, exact=True)
    world.footprints["a"] = replace(found, with_gpu=estimate)
    request = world.request("a")
    with pytest.raises(NeverFits, match="of the machine's own memory") as error:
        await request.task
    assert error.value.details["required_mb"] == 2000 + GPU_PROCESS_MB
    assert error.value.message.endswith("or more params.n_gpu_layers")
    world.host = host(4000)
    request = world.request("a")
    await world.settle()
    assert request.granted.is_set()
    held = world.tracker.ledger.of("a").placement
    assert held["0"] == 3000 and held[HOST] >= 2000 + GPU_PROCESS_MB


async def test_mapped_weights_are_not_taken_for_free_memory(make_world: MakeWorld) -> None:
    """The system counts them as cache that can go, but the model would crawl without them."""
    world = await make_world({"a": 1600}, gpu_mb=(), models=on_cpu("a"), host=host(4096))
    request = world.request("a")
    await world.settle()
    await request.finish()
    pid = world.launcher.newest("a").pid
    world.host = replace(host(4096, used_mb=100), by_pid={pid: 60})
    await world.settle()
    (machine,) = world.tracker.ledger.devices()
    held = world.tracker.ledger.of("a").placement[HOST]
    assert machine.free_mb == 4096 - 100 - (held - 60)
    assert machine.others_mb == 40


async def test_the_prompt_cache_gets_what_is_left(make_world: MakeWorld) -> None:
    world = await make_world({"a": 1600}, gpu_mb=(), models=on_cpu("a"), host=host(2600))
    request = world.request("a")
    await world.settle()
    assert request.granted.is_set()
    left_mb = 2600 - 1600 - PROCESS_MB
    assert world.launcher.newest("a").layout.cache_mb == left_mb // 4  # type: ignore[attr-defined]


async def test_only_as_many_go_as_have_to_although_the_system_shows_freed_memory_later(
    make_world: MakeWorld,
) -> None:
    sizes = dict.fromkeys("abc", 1600)
    models = on_cpu(*"abc")
    world = await make_world(sizes, gpu_mb=(), models=models, host=host(4096), max_concurrent_models=9)

    def show() -> None:
        by_pid = {runner.pid: 1500 for runner in world.launcher.live}
        world.host = replace(host(4096, used_mb=sum(by_pid.values())), by_pid=by_pid)

    for alias in "ab":
        request = world.request(alias)
        await world.settle()
        show()
        await world.settle()
        await request.finish()
    request = world.request("c")
    await world.settle()  # the figures are still those of before
    assert not request.granted.is_set()
    show()
    await world.settle()
    assert request.granted.is_set()
    assert [world.status(a) for a in "abc"].count(Status.READY) == 2
