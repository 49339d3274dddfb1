"""When a model counts as hung, and what happens to it then. The clock is the test's."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from copy import copy

import pytest

from app.core.health_monitor import HealthMonitor
from app.domain.events import Outcome, RequestFinished, Usage
from app.domain.priority import Priority
from app.domain.status import Status
from app.judgement.evidence import Slot
from app.judgement.router_pauses import Pauses
from app.llama.exit_reason import FailureKind
from tests.fakes import FakeRunner, Runs, World

TIMEOUT_S = 100.0


class Ward:
    """A loaded model `a` and the monitor that watches it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.pauses = Pauses(world.clock())
        self.monitor = HealthMonitor(lambda: world.manager.instances, 30, world.bus, self.pauses, world.clock)

    @property
    def runner(self) -> FakeRunner:
        return self.world.launcher.newest("a")

    async def check(self, times: int = 1) -> None:
        for _ in range(times):
            self.world.clock.now += 1.5
            self.stay_awake()
            await self.world.check_health(self.monitor)
            await self.world.settle()

    def stay_awake(self) -> None:
        """As if the time keeper had ticked all the while."""
        self.pauses._last_tick = self.world.clock.now

    def time_out(self) -> None:
        """A request ends without a byte."""
        self.world.clock.now += TIMEOUT_S
        self.finish(error="upstream_timeout", ttft_s=None, duration_s=TIMEOUT_S)

    def finish(
        self,
        *,
        error: str | None = None,
        ttft_s: float | None = 0.1,
        duration_s: float = 1,
        queue_wait_s: float | None = 0,
        quiet_s: float | None = None,
    ) -> None:
        outcome = Outcome.TIMEOUT if error else Outcome.SUCCESS if ttft_s is not None else Outcome.CANCELLED
        self.world.bus.publish(
            RequestFinished(
                "id",
                "a",
                "/v1/chat/completions",
                "",
                Priority.NORMAL,
                outcome,
                200,
                error,
                duration_s,
                queue_wait_s,
                0,
                ttft_s,
                Usage(),
                (0 if ttft_s is not None else duration_s) if quiet_s is None else quiet_s,
            )
        )

    @property
    def hung(self) -> str | None:
        """Why it was ended, if it was."""
        failure = self.world.manager.instances["a"].lifecycle.failure
        return failure.message if failure is not None else None

    def reported(self, field: str) -> object:
        return self.monitor.report()["a"][field]


@pytest.fixture
async def make_ward() -> AsyncIterator[Callable[..., Awaitable[Ward]]]:
    worlds: list[World] = []

    async def make(**options: object) -> Ward:
        settings = {"request_timeout_sec": int(TIMEOUT_S), **options}
        world = World({"a": 1000}, enable_idle_timeout=False, **settings)  # type: ignore[arg-type]
        worlds.append(world)
        await world.settle()  # the first reading of the devices
        await world.manager.load(world.manager.instances["a"], wait=True)
        await world.settle()
        assert world.status("a") is Status.READY
        return Ward(world)

    yield make
    for world in worlds:
        await world.close()


@pytest.fixture
async def ward(make_ward: Callable[..., Awaitable[Ward]]) -> Ward:
    return await make_ward()


# --- what is done


async def test_a_model_that_answers_is_left_alone(ward: Ward) -> None:
    await ward.check(5)
    assert ward.world.status("a") is Status.READY
    assert (ward.reported("status"), ward.reported("uptime_percentage")) == ("healthy", 100.0)


async def test_one_missed_probe_harms_nobody(ward: Ward) -> None:
    ward.runner.is_healthy = False
    await ward.check(2)
    assert (ward.reported("status"), ward.reported("consecutive_failures")) == ("degraded", 2)
    ward.runner.is_healthy = True
    await ward.check()
    assert ward.reported("status") == "healthy"
    assert ward.world.launcher.loads("a") == 1


async def test_a_hung_model_takes_the_way_of_a_crash(ward: Ward) -> None:
    hung = ward.runner
    hung.is_healthy = False
    await ward.check(4)
    assert hung.stopped
    assert ward.world.status("a") is Status.CRASHED
    failure = ward.world.manager.instances["a"].lifecycle.failure
    assert failure is not None and failure.kind is FailureKind.TIMEOUT
    assert "hung (it missed 4 probes in a row)" in failure.message


async def test_it_is_started_again_and_begins_with_a_clean_record(ward: Ward) -> None:
    ward.runner.is_healthy = False
    await ward.check(4)
    await ward.world.pass_time(1)
    assert ward.world.status("a") is Status.READY
    assert ward.world.launcher.loads("a") == 2
    assert (ward.reported("status"), ward.reported("consecutive_failures")) == ("healthy", 0)


async def test_what_hangs_again_and_again_is_given_up(make_ward: Callable[..., Awaitable[Ward]]) -> None:
    ward = await make_ward(max_restarts=1)
    for _ in range(2):
        ward.runner.is_healthy = False
        await ward.check(4)
        await ward.world.pass_time(40)
    assert ward.world.status("a") is Status.FAILED


async def test_a_model_that_drains_is_watched_too(ward: Ward) -> None:
    running = ward.world.request("a")
    await ward.world.settle()
    ejecting = asyncio.ensure_future(
        ward.world.manager.eject(ward.world.manager.instances["a"], now=False, timeout_s=3600)
    )
    await ward.world.settle()
    assert ward.world.status("a") is Status.DRAINING
    ward.runner.is_healthy = False
    await ward.check(4)
    assert await ejecting
    assert ward.world.status("a") is Status.OFF
    await running.leave()


async def test_requests_without_a_byte_end_a_stuck_model_that_answers_probes(ward: Ward) -> None:
    ward.time_out()
    await ward.check()
    assert ward.world.launcher.loads("a") == 1, "found stuck once"
    ward.world.clock.now += 2
    await ward.check()
    assert ward.hung is not None and "nothing has moved for 10" in ward.hung


async def test_clients_that_leave_early_tell_as_much(ward: Ward) -> None:
    while ward.hung is None and ward.world.clock.now < 1000 + 2 * TIMEOUT_S + 10:
        ward.world.clock.now += 3
        ward.finish(ttft_s=None, duration_s=3)
        await ward.check()
    assert ward.hung is not None and "nothing has moved" in ward.hung


async def test_an_answer_that_stopped_in_its_middle_tells_as_much(ward: Ward) -> None:
    """Its end is no sign of life."""
    ward.world.clock.now += TIMEOUT_S
    ward.finish(error="upstream_timeout", ttft_s=0.1, duration_s=TIMEOUT_S, quiet_s=TIMEOUT_S)
    await ward.check()
    ward.world.clock.now += 2
    await ward.check()
    assert ward.hung is not None and "nothing has moved for 10" in ward.hung


async def test_a_slot_that_moves_is_no_hang(ward: Ward) -> None:
    tokens = itertools.count(1)
    ward.runner.sees = lambda r: r.evidence.saw_slots(r.clock(), [Slot(1, 5, 5, next(tokens))])
    for _ in range(5):
        ward.time_out()
        await ward.check(2)
    assert ward.world.status("a") is Status.READY
    assert ward.reported("status") == "healthy"


async def test_a_model_that_answers_somebody_is_not_stuck(ward: Ward) -> None:
    for _ in range(5):
        ward.time_out()
        ward.finish()
        await ward.check(2)
    assert ward.world.status("a") is Status.READY


async def test_requests_that_were_never_granted_say_nothing_about_a_hang(ward: Ward) -> None:
    for _ in range(5):
        ward.world.clock.now += TIMEOUT_S
        ward.finish(error="queue_timeout", ttft_s=None, queue_wait_s=None)
        await ward.check()
    assert ward.reported("status") == "healthy"


async def test_what_a_running_request_got_last_is_looked_up(ward: Ward) -> None:
    """Nothing is told of each byte: it would cost more than the byte."""
    request = ward.world.request("a")
    await ward.world.settle()
    owner = request.ticket.owner
    assert owner is not None
    ward.world.clock.now += 3 * TIMEOUT_S
    owner.quiet_since = ward.world.clock.now - 1  # type: ignore[misc]
    await ward.check(2)
    assert ward.world.status("a") is Status.READY
    ward.world.clock.now += TIMEOUT_S
    await ward.check()
    ward.world.clock.now += 2
    await ward.check()
    assert ward.world.status("a") is Status.CRASHED
    await request.leave()


async def test_without_a_time_out_nothing_that_stands_still_is_ended(
    make_ward: Callable[..., Awaitable[Ward]],
) -> None:
    ward = await make_ward(request_timeout_sec=0)
    for _ in range(5):
        ward.time_out()
        await ward.check()
    assert ward.world.status("a") is Status.READY


async def test_a_request_is_waited_for_as_long_as_its_own_slot_moves(ward: Ward) -> None:
    """Of two in flight: their slots are told apart by the order in which they were started."""
    instance, asked = ward.world.manager.instances["a"], ward.world.clock.now
    instance.queue.running = {one := ward.world.manager.ticket(Priority.NORMAL), two := copy(one)}
    one.granted_at, two.granted_at = asked, asked + 0.001
    one.owner = two.owner = Runs(asyncio.Event(), quiet_since=asked)
    tokens = itertools.count(1)
    ward.runner.sees = lambda r: r.evidence.saw_slots(
        r.clock(), [Slot(7, 5, 5, 1), Slot(8, 5, 5, next(tokens))]
    )
    left: list[tuple[float, float]] = []
    for _ in range(7):
        ward.world.clock.now += TIMEOUT_S / 4
        await ward.check()
        left.append(tuple(ward.monitor.patience_s(instance, ward.runner, asked, n) for n in (0, 1)))  # type: ignore[arg-type]
    assert [first > 0 for first, _ in left] == [True] * 4 + [False] * 3
    assert all(second > 0 for _, second in left)
    assert ward.world.status("a") is Status.READY, "with other slots at work it is left alone"
    instance.queue.running = set()


async def test_a_suspected_model_that_answers_is_believed(ward: Ward) -> None:
    await ward.monitor.suspect(ward.world.manager.instances["a"], ward.runner)
    assert ward.runner.probes == 1
    assert ward.world.status("a") is Status.READY


async def test_a_suspected_model_that_does_not_listen_is_ended_at_once(
    ward: Ward,
) -> None:
    ward.monitor.suspect_every_s = 0
    ward.runner.is_healthy = False

    def pass_time(runner: FakeRunner) -> None:
        ward.world.clock.now += 1.5
        ward.stay_awake()

    ward.runner.sees = pass_time
    await ward.monitor.suspect(ward.world.manager.instances["a"], ward.runner)
    assert ward.runner.stopped
    assert ward.runner.probes == 4


async def test_a_missed_probe_is_followed_by_another_one_soon(ward: Ward) -> None:
    assert ward.monitor._pause_s() > 25
    ward.runner.is_healthy = False
    await ward.check()
    assert ward.monitor._pause_s() <= 1


async def test_the_verdict_is_part_of_the_models_picture(ward: Ward) -> None:
    def shown() -> str | None:
        process = ward.world.manager.instances["a"].view().process
        return process.health if process is not None else None

    assert shown() is None, "nobody has looked yet"
    await ward.check()
    assert shown() == "healthy"
    ward.runner.is_healthy = False
    await ward.check()
    assert shown() == "degraded"
    await ward.check(3)
    await ward.world.pass_time(1)
    assert ward.world.status("a") is Status.READY
    assert shown() is None, "that was another process"
