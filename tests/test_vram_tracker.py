"""The ledger over a GPU whose every figure the test sets: who may have what, and what is believed when."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from app.core.vram_tracker import DeviceTracker
from app.domain.event_bus import EventBus
from app.domain.events import Event, ReadingTaken
from app.domain.views import HOST, DeviceView, MemoryNeed
from app.memory.ledger.reclaiming import RECLAIM_MAX_S
from app.memory.probes.interface import GpuError, NullProbe, Reading, resolve
from app.memory.probes.list_devices import ListDevicesProbe, parse_devices
from app.scheduling.placement import Capacity, fit
from tests.fakes import NOTHING_KEPT, Clock
from tests.patience import WAIT_S
from tests.router_process import until

TOTAL_MB = 10_000


class Gpu:
    """A probe of one card. `use` is what each process takes; `hidden` processes are not listed."""

    reason: str | None = None
    poll_s = 0.0

    def __init__(self) -> None:
        self.use: dict[int, int] = {}
        self.others_mb = 0
        self.lists_processes = True
        self.error: str | None = None
        self.device_error: str | None = None
        self.lost = False
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.asked = 0
        self.expired = 0
        self.closed = False

    def read(self) -> Sequence[Reading]:
        self.asked += 1
        self.may_answer.wait(60)
        if self.error is not None:
            raise GpuError(self.error)
        used = sum(self.use.values()) + self.others_mb
        offset = 0 if self.lists_processes else 70_000  # a container does not know the host's numbers
        return [
            Reading(
                "0",
                "GPU-a",
                "Card",
                TOTAL_MB,
                used,
                TOTAL_MB - used,
                by_pid={pid + offset: mb for pid, mb in self.use.items()},
                error=self.device_error,
                lost=self.lost,
            )
        ]

    def expire(self) -> None:
        self.expired += 1

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def gpu() -> Iterator[Gpu]:
    gpu = Gpu()
    yield gpu
    gpu.may_answer.set()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def tracker(gpu: Gpu, clock: Clock) -> DeviceTracker:
    tracker = DeviceTracker(gpu, kept_free=NOTHING_KEPT, clock=clock, bus=EventBus())
    await tracker.refresh()
    return tracker


def card(tracker: DeviceTracker) -> DeviceView:
    return next(d for d in tracker.ledger.devices() if d.id == "0")


def begin(tracker: DeviceTracker, alias: str, pid: int, mb: int) -> None:
    tracker.ledger.reserve(alias, {"0": mb})
    tracker.ledger.spawned(alias, pid)


async def load(tracker: DeviceTracker, gpu: Gpu, alias: str, pid: int, mb: int, uses_mb: int) -> None:
    begin(tracker, alias, pid, mb)
    gpu.use[pid] = uses_mb
    tracker.ledger.loaded(alias)
    await tracker.refresh()


# Reservations and measurements


async def test_a_reservation_counts_before_the_driver_shows_anything(tracker: DeviceTracker) -> None:
    begin(tracker, "a", 1, 4000)
    assert (card(tracker).free_mb, card(tracker).reserved_mb, card(tracker).used_mb) == (6000, 4000, 0)


async def test_two_loads_at_once_are_both_counted_in_full(tracker: DeviceTracker, gpu: Gpu) -> None:
    begin(tracker, "a", 1, 4000)
    begin(tracker, "b", 2, 3000)
    gpu.use = {1: 2500, 2: 100}
    await tracker.refresh()
    assert card(tracker).free_mb == 3000
    assert card(tracker).others_mb == 0


async def test_half_a_load_is_not_counted_twice(tracker: DeviceTracker, gpu: Gpu) -> None:
    begin(tracker, "a", 1, 4000)
    gpu.use[1] = 2500
    await tracker.refresh()
    assert card(tracker).free_mb == 6000


async def test_use_beyond_the_promise_is_believed(tracker: DeviceTracker, gpu: Gpu) -> None:
    await load(tracker, gpu, "a", 1, 4000, uses_mb=4700)
    assert card(tracker).free_mb == TOTAL_MB - 4700
    assert tracker.ledger.of("a").measured_mb == 4700


async def test_after_the_load_another_promise_can_be_made(tracker: DeviceTracker, gpu: Gpu) -> None:
    await load(tracker, gpu, "a", 1, 4000, uses_mb=3000)
    assert card(tracker).free_mb == 6000
    tracker.ledger.adjust("a", {"0": 3100})
    assert (card(tracker).free_mb, tracker.ledger.of("a").placement) == (6900, {"0": 3100})


async def test_the_most_that_was_ever_used_is_kept(tracker: DeviceTracker, gpu: Gpu) -> None:
    await load(tracker, gpu, "a", 1, 4000, uses_mb=3000)
    gpu.use[1] = 3600
    await tracker.refresh()
    gpu.use[1] = 3200
    await tracker.refresh()
    assert (tracker.ledger.of("a").measured_mb, tracker.ledger.of("a").peak_mb) == (3200, 3600)


async def test_what_other_programs_use_is_not_ours_to_give(tracker: DeviceTracker, gpu: Gpu) -> None:
    gpu.others_mb = 1500
    await load(tracker, gpu, "a", 1, 4000, uses_mb=4000)
    assert (card(tracker).free_mb, card(tracker).others_mb) == (4500, 1500)


async def test_in_a_container_use_is_measured_by_its_change(tracker: DeviceTracker, gpu: Gpu) -> None:
    gpu.lists_processes, gpu.others_mb = False, 500
    await tracker.refresh()
    await load(tracker, gpu, "a", 1, 4000, uses_mb=3300)
    assert tracker.ledger.of("a").measured_mb == 3300
    assert (card(tracker).others_mb, card(tracker).free_mb) == (500, 6000)


async def test_a_change_that_two_models_share_measures_neither(tracker: DeviceTracker, gpu: Gpu) -> None:
    gpu.lists_processes = False
    begin(tracker, "a", 1, 3000)
    begin(tracker, "b", 2, 3000)
    gpu.use = {1: 2900, 2: 2900}
    tracker.ledger.loaded("a")
    tracker.ledger.loaded("b")
    await tracker.refresh()
    assert (tracker.ledger.of("a").measured_mb, tracker.ledger.of("b").measured_mb) == (None, None)
    assert card(tracker).free_mb == 4000


# After an unload


async def test_freed_memory_is_expected_until_the_driver_shows_it(tracker: DeviceTracker, gpu: Gpu) -> None:
    await load(tracker, gpu, "a", 1, 4000, uses_mb=4000)
    tracker.ledger.release("a", crashed=False)
    await tracker.refresh()
    assert card(tracker).free_mb == 6000, "not before the driver says so"
    assert card(tracker).reclaiming_mb > 3000
    assert card(tracker).others_mb < 500, "it is on its way, not somebody else's"
    del gpu.use[1]
    await tracker.refresh()
    assert (card(tracker).free_mb, card(tracker).reclaiming_mb) == (TOTAL_MB, 0)


async def test_a_load_that_was_stopped_early_has_nothing_to_give_back(
    tracker: DeviceTracker, gpu: Gpu
) -> None:
    await load(tracker, gpu, "a", 1, 4000, uses_mb=4000)
    begin(tracker, "b", 2, 3000)
    await tracker.refresh()
    tracker.ledger.release("b", crashed=False)
    assert (card(tracker).reclaiming_mb, card(tracker).free_mb, card(tracker).others_mb) == (0, 6000, 0)


async def test_reclaiming_has_an_end(tracker: DeviceTracker, gpu: Gpu, clock: Clock) -> None:
    await load(tracker, gpu, "a", 1, 4000, uses_mb=4000)
    tracker.ledger.release("a", crashed=False)
    clock.now += RECLAIM_MAX_S
    await tracker.refresh()
    assert (card(tracker).reclaiming_mb, card(tracker).others_mb) == (0, 4000)


async def test_a_crashed_process_is_not_waited_for(tracker: DeviceTracker, gpu: Gpu) -> None:
    await load(tracker, gpu, "a", 1, 4000, uses_mb=4000)
    gpu.use.clear()
    tracker.ledger.release("a", crashed=True)
    gpu.others_mb = 4000  # somebody else was quicker
    await tracker.refresh()
    assert (card(tracker).reclaiming_mb, card(tracker).others_mb) == (0, 4000)


async def test_whoever_waits_for_freed_memory_hears_of_it(gpu: Gpu, clock: Clock) -> None:
    heard, bus = asyncio.Event(), EventBus()
    tracker = DeviceTracker(gpu, kept_free=NOTHING_KEPT, clock=clock, bus=bus)
    await tracker.refresh()
    await load(tracker, gpu, "a", 1, 4000, uses_mb=4000)

    def hear(event: Event) -> None:
        if isinstance(event, ReadingTaken) and event.is_news:
            heard.set()

    bus.subscribe(hear, ReadingTaken)
    running = asyncio.create_task(tracker.run())
    gpu.use.clear()
    tracker.ledger.release("a", crashed=False)
    await heard.wait()
    running.cancel()
    assert card(tracker).free_mb == TOTAL_MB
    assert gpu.expired, "a probe that remembers must ask again"


async def test_a_second_unload_waits_for_both(tracker: DeviceTracker, gpu: Gpu) -> None:
    await load(tracker, gpu, "a", 1, 4000, uses_mb=4000)
    await load(tracker, gpu, "b", 2, 4000, uses_mb=4000)
    tracker.ledger.release("a", crashed=False)
    tracker.ledger.release("b", crashed=False)
    del gpu.use[1]
    await tracker.refresh()
    assert card(tracker).reclaiming_mb > 3000
    assert card(tracker).free_mb + card(tracker).reclaiming_mb > 9000


# A driver in trouble


async def test_a_failing_driver_is_reported_and_the_ledger_goes_on(
    tracker: DeviceTracker, gpu: Gpu, clock: Clock
) -> None:
    await load(tracker, gpu, "a", 1, 4000, uses_mb=4000)
    gpu.error = "Driver Not Loaded"
    await tracker.refresh()
    assert "Driver Not Loaded" in (tracker.ledger.error or "")
    assert card(tracker).error == tracker.ledger.error
    begin(tracker, "b", 2, 3000)
    assert card(tracker).free_mb == 3000
    tracker.ledger.release("a", crashed=False)
    clock.now += RECLAIM_MAX_S
    await tracker.refresh()
    assert card(tracker).free_mb > 6500, "what we stopped is free, whether or not the driver says so"
    gpu.error = None
    del gpu.use[1]
    await tracker.refresh()
    assert tracker.ledger.error is None
    assert card(tracker).free_mb == 7000


async def test_a_hanging_driver_costs_one_thread_and_no_answer_is_lost(
    tracker: DeviceTracker, gpu: Gpu
) -> None:
    tracker.reading_timeout_s = 0.02
    gpu.may_answer.clear()
    asked = gpu.asked
    for _ in range(5):
        await tracker.refresh()
    assert "did not answer" in (tracker.ledger.error or "")
    assert gpu.asked == asked + 1
    assert [t.name for t in threading.enumerate()].count("gpu driver") == 1
    assert card(tracker).total_mb == TOTAL_MB
    tracker.reading_timeout_s = 10
    gpu.others_mb = 700
    gpu.may_answer.set()
    await tracker.refresh()
    assert tracker.ledger.error is None
    assert card(tracker).used_mb == 700


async def test_refreshes_never_overlap(tracker: DeviceTracker, gpu: Gpu) -> None:
    gpu.may_answer.clear()
    asked = gpu.asked
    refreshes = [asyncio.create_task(tracker.refresh()) for _ in range(3)]
    await until(lambda: gpu.asked > asked)
    gpu.may_answer.set()
    await asyncio.gather(*refreshes)
    assert gpu.asked == asked + 1


async def test_a_pause_of_this_program_is_no_silence_of_the_driver(
    tracker: DeviceTracker, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker.reading_timeout_s = WAIT_S
    gpu.may_answer.clear()
    loop, asked = asyncio.get_running_loop(), gpu.asked
    true_time = loop.time
    reading = asyncio.create_task(tracker.refresh())
    await until(lambda: gpu.asked > asked)
    monkeypatch.setattr(loop, "time", lambda: true_time() + 2 * WAIT_S)
    for _ in range(5):
        await asyncio.sleep(0)  # timers that are late ring
    gpu.may_answer.set()
    await reading
    assert tracker.ledger.error is None


async def test_a_hanging_driver_does_not_hold_up_the_end(tracker: DeviceTracker, gpu: Gpu) -> None:
    tracker.reading_timeout_s = 0.02
    gpu.may_answer.clear()
    await tracker.refresh()
    await tracker.close()
    assert not gpu.closed
    assert all(t.daemon for t in threading.enumerate() if t.name == "gpu driver")


async def test_the_probe_is_closed_at_the_end(tracker: DeviceTracker, gpu: Gpu) -> None:
    await tracker.close()
    assert gpu.closed


async def test_a_lost_card_takes_nothing_more_and_its_figures_stay(tracker: DeviceTracker, gpu: Gpu) -> None:
    await load(tracker, gpu, "a", 1, 4000, uses_mb=4000)
    gpu.device_error, gpu.lost = "GPU 0: GPU is lost", True
    await tracker.refresh()
    view = card(tracker)
    assert (tracker.ledger.error, view.error) == ("GPU 0: GPU is lost", "GPU 0: GPU is lost")
    assert (view.free_mb, view.total_mb, view.others_mb) == (0, TOTAL_MB, TOTAL_MB)


async def test_a_card_that_cannot_be_read_for_a_while_is_carried_on_by_the_ledger(
    tracker: DeviceTracker, gpu: Gpu
) -> None:
    gpu.device_error = "GPU 0: Unknown Error"
    await load(tracker, gpu, "a", 1, 4000, uses_mb=4000)
    assert card(tracker).free_mb == 6000
    gpu.device_error = None
    await tracker.refresh()
    assert (card(tracker).free_mb, tracker.ledger.error) == (6000, None)


async def test_without_a_gpu_there_is_the_host(clock: Clock) -> None:
    tracker = DeviceTracker(NullProbe("no driver"), kept_free=NOTHING_KEPT, clock=clock, bus=EventBus())
    await tracker.refresh()
    assert [d.id for d in tracker.ledger.devices()] == [HOST]
    assert not tracker.ledger.has_gpu and tracker.ledger.error is None


# What configurations call devices


def reading(id: str, *names: str) -> Reading:
    return Reading(id, "", "card", 1000, 0, 1000, names=names)


def test_devices_are_known_by_index_uuid_and_name() -> None:
    cards = [reading("0", "GPU-a"), reading("1", "GPU-b")]
    assert resolve(cards, [1, "GPU-a", "0", "GPU-x", 7]) == ("1", "0")
    listed = parse_devices("Available devices:\n  Vulkan0: A (B) card (2048 MiB, 2000 MiB free)\n")
    assert resolve(listed, [0]) == resolve(listed, ["Vulkan0"]) == ("Vulkan0",)


def test_the_index_of_a_partitioned_card_means_all_its_parts() -> None:
    parts = [reading("MIG-x", "0", "GPU-a"), reading("MIG-y", "0", "GPU-a"), reading("1")]
    assert resolve(parts, [0]) == ("MIG-x", "MIG-y")
    assert resolve(parts, ["MIG-y"]) == ("MIG-y",)


def test_a_process_is_never_split_over_parts_of_a_card() -> None:
    need = MemoryNeed(mb=1500, devices=("MIG-x", "MIG-y"))
    room = Capacity({"MIG-x": 1000, "MIG-y": 1000}, places=1)
    assert fit(need, room) is None
    assert room.most(need) == 1000


# Devices as llama-server lists them

LISTED = """Available devices:
  Vulkan0: AMD Radeon RX 7900 XTX (RADV NAVI31) (24560 MiB, 24100 MiB free)
  Vulkan1: Intel(R) Arc(tm) A770: 16G (16288 MiB, 16000 MiB free)
  BLAS: Accelerate (0 MiB, 0 MiB free)
"""


def test_the_list_of_devices_is_read() -> None:
    found = parse_devices("ggml_vulkan: Found 2 devices\n" + LISTED)
    assert [(r.id, r.total_mb, r.used_mb, r.free_mb) for r in found] == [
        ("Vulkan0", 24560, 460, 24100),
        ("Vulkan1", 16288, 288, 16000),
    ]
    assert found[0].name == "AMD Radeon RX 7900 XTX (RADV NAVI31)"
    assert parse_devices("Available devices:\n  (none)\n") == []


@pytest.fixture
def listing(tmp_path: Path) -> Path:
    """A llama-server that counts how often it is asked."""
    binary = tmp_path / "llama-server"
    (tmp_path / "list").write_text(LISTED)
    binary.write_text('#!/bin/sh\ncd "$(dirname "$0")"; echo >>asked; cat list\n')
    binary.chmod(0o755)
    return binary


def break_down(binary: Path) -> None:
    binary.write_text("#!/bin/sh\nexit 3\n")


def times_asked(binary: Path) -> int:
    asked = binary.with_name("asked")
    return len(asked.read_text().splitlines()) if asked.exists() else 0


async def test_devices_are_listed_again_only_after_a_load_or_an_unload(listing: Path, clock: Clock) -> None:
    probe = ListDevicesProbe(listing, parse_devices(LISTED))
    tracker = DeviceTracker(probe, kept_free=NOTHING_KEPT, clock=clock, bus=EventBus())
    for _ in range(3):
        await tracker.refresh()
    assert times_asked(listing) == 0
    tracker.ledger.reserve("a", {"Vulkan0": 4000})
    tracker.ledger.spawned("a", 1)
    listing.with_name("list").write_text(LISTED.replace("24100", "20100"))
    tracker.ledger.loaded("a")
    for _ in range(3):
        await tracker.refresh()
    assert times_asked(listing) == 1
    view = tracker.ledger.devices()[0]
    assert (view.id, view.used_mb, view.free_mb) == ("Vulkan0", 4460, 20100)
    assert tracker.ledger.of("a").measured_mb == 4000


async def test_a_list_that_fails_is_a_reported_state(listing: Path, clock: Clock) -> None:
    tracker = DeviceTracker(
        ListDevicesProbe(listing, parse_devices(LISTED)), kept_free=NOTHING_KEPT, clock=clock, bus=EventBus()
    )
    await tracker.refresh()
    break_down(listing)
    tracker.probe.expire()
    await tracker.refresh()
    assert "exit code 3" in (tracker.ledger.error or "")
    assert tracker.ledger.devices()[0].total_mb == 24560
