"""The real `pynvml` over a stub of the driver's library: what it reads, and what it survives."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.memory.probes.host_memory import host_reading
from tests.nvml import (
    AT_ONCE_S,
    GPU_LOST,
    NO_PERMISSION,
    NOT_LOADED,
    NOT_SUPPORTED,
    UNINITIALIZED,
    UNKNOWN,
    Driver,
    Router,
    gpu,
    nvml_library,
)
from tests.patience import WAIT_S

__all__ = ["nvml_library"]

pytest.importorskip("pynvml")
Start = Callable[..., Router]


@pytest.fixture
def driver(nvml_library: Path, tmp_path: Path) -> Driver:
    return Driver(nvml_library, tmp_path)


@pytest.fixture
def start(driver: Driver) -> Iterator[Start]:
    """Starts a router's probe over a driver that shows these lines."""
    started: list[Router] = []

    def begin(*lines: str, start_timeout_s: float = WAIT_S) -> Router:
        driver.show(*lines)
        started.append(Router(driver.env, start_timeout_s))
        return started[-1]

    yield begin
    for router in started:
        router.close()


def test_every_card_is_read_with_its_name_memory_and_load(start: Start) -> None:
    first, second = start(gpu(0, 24576, 1000), gpu(1, 8192, 8000, mig=0)).read()
    assert (first["id"], first["uuid"], first["name"]) == ("0", "GPU-0", "Stub-0")
    assert (first["total_mb"], first["used_mb"], first["free_mb"]) == (24576, 1000, 23576)
    assert (second["id"], second["total_mb"], second["free_mb"]) == ("1", 8192, 192)
    assert (first["utilization"], second["utilization"]) == (None, 0.42), "not supported is no error"
    assert first["driver"] == "570.1-1"


def test_memory_is_read_anew_each_time(start: Start, driver: Driver) -> None:
    router = start(gpu(0, 8192, 100))
    assert router.read()[0]["used_mb"] == 100
    driver.show(gpu(0, 8192, 5100))
    assert router.read()[0]["used_mb"] == 5100


def test_a_card_that_shares_the_machines_memory_has_that(start: Start) -> None:
    shared, own = start(gpu(0, 1, 0), gpu(1, 8192, 8000), f"fail memory GPU-0 {NOT_SUPPORTED}").read()
    assert (shared["error"], shared["total_mb"]) == (None, host_reading().total_mb)
    assert 0 < shared["free_mb"] < shared["total_mb"]
    assert shared["used_mb"] + shared["free_mb"] == shared["total_mb"]
    assert own["total_mb"] == 8192
    assert (shared["shares_host"], own["shares_host"]) == (True, False)


def test_a_card_without_any_memory_shares_the_machines(start: Start) -> None:
    (shared,) = start(gpu(0, 0, 0)).read()
    assert (shared["shares_host"], shared["total_mb"]) == (True, host_reading().total_mb)


def test_memory_by_process_is_read_where_the_driver_tells(start: Start) -> None:
    lines = ["proc GPU-0 4711 3000", "proc GPU-1 4711 500", "proc GPU-1 4712 -1"]
    first, second = start(gpu(0, 8192, 3000), gpu(1, 8192, 900), *lines).read()
    assert (first["by_pid"], second["by_pid"]) == ({"4711": 3000}, {"4711": 500})


def test_a_process_uses_its_memory_until_it_is_dead(start: Start) -> None:
    """Of the stub itself: the chaos suite relies on it."""
    with subprocess.Popen(["sleep", "600"]) as process:
        router = start(gpu(0, 8192, 100), f"live GPU-0 {process.pid} 3000")
        (found,) = router.read()
        assert (found["used_mb"], found["by_pid"]) == (3100, {str(process.pid): 3000})
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and a zombie still
        (found,) = router.read()
        assert (found["used_mb"], found["by_pid"]) == (100, {})


def test_very_many_processes_are_read(start: Start) -> None:
    (found,) = start(gpu(0, 8192, 3000), *(f"proc GPU-0 {pid} 1" for pid in range(1, 501))).read()
    assert len(found["by_pid"]) == 500


@pytest.mark.parametrize("call", ["compute", "graphics", "utilization", "uuid", "name", "migmode", "driver"])
@pytest.mark.parametrize("code", [NOT_SUPPORTED, NO_PERMISSION])
def test_what_a_card_does_not_tell_is_left_out(start: Start, call: str, code: int) -> None:
    (found,) = start(gpu(0, 8192, 100, mig=0), f"fail {call} * {code}").read()
    assert (found["total_mb"], found["error"]) == (8192, None)


def test_a_partitioned_card_is_offered_in_parts(start: Start) -> None:
    parts = ["mig 1 MIG-a 4864 12", "mig 1 MIG-b 9856 3000", "proc MIG-b 7 2900"]
    whole, a, b = start(gpu(0, 8192, 0), gpu(1, 40960, 3012, mig=1), *parts).read()
    assert (whole["id"], a["id"], b["id"]) == ("0", "MIG-a", "MIG-b")
    assert (a["total_mb"], b["total_mb"], b["by_pid"]) == (4864, 9856, {"7": 2900})
    assert a["names"] == ["1", "GPU-1"], "gpu_devices: [1] means all its parts"


@pytest.mark.parametrize("line", [f"init {NOT_LOADED}", "count 0 0", f"count 1 {UNKNOWN}"])
def test_without_a_usable_driver_there_is_no_gpu_and_a_reason(start: Start, line: str) -> None:
    answer = start(line).ask("read")
    assert (answer["kind"], answer["devices"]) == ("NullProbe", [])
    assert answer["reason"]


def test_without_a_library_there_is_no_gpu_and_a_reason() -> None:
    router = Router({"LD_LIBRARY_PATH": "/nowhere"})
    try:
        answer = router.ask("read")
        if answer["kind"] == "NvmlProbe":
            pytest.skip("this machine has an NVIDIA driver")
        assert "NVML" in answer["reason"] or "library" in answer["reason"].lower()
    finally:
        router.close()


def test_a_driver_that_fails_later_is_an_error_and_comes_back(start: Start, driver: Driver) -> None:
    router = start(gpu(0, 8192, 100))
    assert router.read()[0]["driver"] == "570.1-1"
    driver.show(gpu(0, 8192, 100), f"count 1 {UNKNOWN}", f"init {NOT_LOADED}")
    for _ in range(2):
        assert router.ask("read")["error"].startswith("GpuError")
    driver.show(gpu(0, 8192, 100))
    assert router.read()[0]["driver"] == "570.1-2", "NVML was started again"


def test_a_driver_that_was_unloaded_under_us_is_started_again(start: Start, driver: Driver) -> None:
    router = start(gpu(0, 8192, 100))
    router.read()
    driver.show(gpu(0, 8192, 100), f"fail memory * {UNINITIALIZED}")
    assert router.ask("read")["error"].startswith("GpuError")
    driver.show(gpu(0, 8192, 200))
    assert router.read()[0]["used_mb"] == 200


@pytest.mark.parametrize("call", ["handle", "memory", "uuid"])
def test_one_lost_card_does_not_hide_the_others(start: Start, driver: Driver, call: str) -> None:
    cards = gpu(0, 8192, 100), gpu(1, 4096, 50)
    router = start(*cards)
    router.read()
    driver.show(*cards, f"fail {call} GPU-1 {GPU_LOST}")
    first, second = router.read()
    assert (first["error"], first["total_mb"]) == (None, 8192)
    assert (second["lost"], second["error"]) == (True, "GPU 1: GPU is lost")
    assert (second["total_mb"], second["uuid"]) == (4096, "GPU-1"), "as it was last seen"
    driver.show(*cards)
    assert [r["error"] for r in router.read()] == [None, None]


def test_a_card_that_is_no_longer_counted_is_lost_not_forgotten(start: Start, driver: Driver) -> None:
    router = start(gpu(0, 8192, 100), gpu(1, 4096, 50))
    router.read()
    driver.show(gpu(0, 8192, 100))
    first, second = router.read()
    assert not first["lost"] and second["lost"]


def test_a_passing_trouble_of_a_card_is_not_its_loss(start: Start, driver: Driver) -> None:
    router = start(gpu(0, 8192, 100))
    router.read()
    driver.show(gpu(0, 8192, 100), f"fail memory GPU-0 {UNKNOWN}")
    (found,) = router.read()
    assert found["error"] and not found["lost"]
    driver.show(gpu(0, 8192, 100))
    assert router.read()[0]["error"] is None


def test_a_call_that_hangs_ends_in_time_and_so_does_the_program(start: Start, driver: Driver) -> None:
    router = start(gpu(0, 8192, 100))
    router.read()
    driver.show(gpu(0, 8192, 100), "hang memory")
    assert router.ask("read at once")["error"].startswith("TimeoutError")


def test_a_driver_that_hangs_at_the_start_is_kept_for_later(start: Start, driver: Driver) -> None:
    router = start(gpu(0, 8192, 100), "hang init", start_timeout_s=AT_ONCE_S)
    assert router.ask("read at once")["error"].startswith("TimeoutError")
    driver.show(gpu(0, 8192, 100))
    assert router.read()[0]["total_mb"] == 8192
