"""When a model counts as hung, and what happens to it then. The clock is the test's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest

from app.core.health_monitor import HealthMonitor, Record, judge
from app.domain.events import Outcome, RequestFinished, Usage
from app.domain.priority import Priority
from app.domain.status import Health, Status
from app.llama.exit_reason import FailureKind
from tests.fakes import FakeRunner, World

TIMEOUT_S = 100.0
SOUND = Record(pid=1)


class Ward:
    """A loaded model `a` and the monitor that watches it."""

    def __init__(self, world: World) -> None:
        self.world = world
        instances = world.manager.instances.values
        self.monitor = HealthMonitor(instances, 30, TIMEOUT_S, world.bus, world.clock)

    @property
    def runner(self) -> FakeRunner:
        return self.world.launcher.newest("a")

    async def check(self, times: int = 1) -> None:
        for _ in range(times):
            await self.monitor.check_all()
            await self.world.settle()

    def time_out(self, *, silent: bool = True) -> None:
        """A request ends without a byte; `silent`: nor did the process write to its log."""
        self.world.clock.now += TIMEOUT_S
        self.runner.last_output = self.world.clock.now - (TIMEOUT_S if silent else 20)
        self.finish(error="upstream_timeout", ttft_s=None)

    def finish(self, *, error: str | None = None, ttft_s: float | None = 0.1) -> None:
        outcome = Outcome.TIMEOUT if error else Outcome.SUCCESS
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
                1,
                0,
                0,
                ttft_s,
                Usage(),
            )
        )

    def reported(self, field: str) -> object:
        return self.monitor.report()["a"][field]


@pytest.fixture
async def make_ward() -> AsyncIterator[Callable[..., Awaitable[Ward]]]:
    worlds: list[World] = []

    async def make(**options: object) -> Ward:
        world = World({"a": 1000}, enable_idle_timeout=False, **options)  # type: ignore[arg-type]
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


# --- the judgement


def test_no_news_is_good_news() -> None:
    assert judge(SOUND) is Health.HEALTHY


@pytest.mark.parametrize(("failures", "verdict"), [(1, "degraded"), (2, "degraded"), (3, "unhealthy")])
def test_several_missed_probes_in_a_row_are_a_hang(failures: int, verdict: str) -> None:
    assert judge(replace(SOUND, consecutive_failures=failures)).value == verdict


@pytest.mark.parametrize(("timeouts", "verdict"), [(1, "degraded"), (2, "unhealthy")])
def test_silent_time_outs_are_a_hang_although_the_probes_are_answered(timeouts: int, verdict: str) -> None:
    record = replace(SOUND, silent_timeouts=timeouts).after(True, 1.0, 0.0)
    assert judge(record).value == verdict


def test_one_good_probe_clears_the_missed_ones() -> None:
    record = SOUND.after(False, 0, 1).after(False, 0, 2).after(True, 4.0, 3)
    assert judge(record) is Health.HEALTHY
    assert (record.checks, record.failures, record.last_check) == (3, 2, 3)


def test_an_answer_clears_the_time_outs() -> None:
    assert judge(SOUND.after_silence().after_answer()) is Health.HEALTHY


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
    await ward.check(3)
    assert hung.stopped
    assert ward.world.status("a") is Status.CRASHED
    failure = ward.world.manager.instances["a"].lifecycle.failure
    assert failure is not None and failure.kind is FailureKind.TIMEOUT
    assert "hung (it missed 3 probes in a row)" in failure.message


async def test_it_is_started_again_and_begins_with_a_clean_record(ward: Ward) -> None:
    ward.runner.is_healthy = False
    await ward.check(3)
    await ward.world.pass_time(1)
    assert ward.world.status("a") is Status.READY
    assert ward.world.launcher.loads("a") == 2
    assert (ward.reported("status"), ward.reported("consecutive_failures")) == ("healthy", 0)


async def test_what_hangs_again_and_again_is_given_up(make_ward: Callable[..., Awaitable[Ward]]) -> None:
    ward = await make_ward(max_restarts=1)
    for _ in range(2):
        ward.runner.is_healthy = False
        await ward.check(3)
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
    await ward.check(3)
    assert await ejecting
    assert ward.world.status("a") is Status.OFF
    await running.leave()


async def test_requests_without_a_byte_end_a_stuck_model_that_answers_probes(ward: Ward) -> None:
    ward.time_out()
    await ward.check()
    assert ward.reported("status") == "degraded"
    ward.time_out()
    await ward.check()
    assert ward.world.status("a") is Status.CRASHED


async def test_a_long_prompt_that_is_worked_on_is_no_hang(ward: Ward) -> None:
    """llama-server notes each batch of a prompt in its log."""
    for _ in range(5):
        ward.time_out(silent=False)
        await ward.check()
    assert ward.world.status("a") is Status.READY
    assert ward.reported("status") == "healthy"


async def test_a_batch_that_takes_minutes_on_the_cpu_is_no_hang(
    make_ward: Callable[..., Awaitable[Ward]],
) -> None:
    ward = await make_ward(models={"a": {"params": {"n_gpu_layers": -1}}}, gpu_mb=[])
    ward.runner.is_working = True
    for _ in range(4):
        ward.time_out()
        await ward.check()
    assert ward.world.status("a") is Status.READY
    ward.runner.is_working = False
    for _ in range(2):
        ward.time_out()
        await ward.check()
    assert ward.world.status("a") is Status.CRASHED


async def test_a_model_that_answers_somebody_is_not_stuck(ward: Ward) -> None:
    for _ in range(5):
        ward.time_out()
        ward.finish()
        await ward.check()
    assert ward.world.status("a") is Status.READY


async def test_other_errors_say_nothing_about_a_hang(ward: Ward) -> None:
    for _ in range(5):
        ward.finish(error="queue_timeout", ttft_s=None)
    assert ward.reported("status") == "healthy"


async def test_a_suspected_model_that_answers_is_believed(ward: Ward) -> None:
    await ward.monitor.suspect(ward.world.manager.instances["a"], ward.runner)
    assert ward.runner.probes == 1
    assert ward.world.status("a") is Status.READY


async def test_a_suspected_model_that_does_not_listen_is_ended_at_once(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.core.health_monitor.REFUSED_EVERY_S", 0)
    ward.runner.is_healthy = False
    await ward.monitor.suspect(ward.world.manager.instances["a"], ward.runner)
    assert ward.runner.stopped
    assert ward.runner.probes == 3


async def test_a_missed_probe_is_followed_by_another_one_soon(ward: Ward) -> None:
    assert ward.monitor._pause_s() == 30
    ward.runner.is_healthy = False
    await ward.check()
    assert ward.monitor._pause_s() == 2


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
    await ward.check(2)
    await ward.world.pass_time(1)
    assert ward.world.status("a") is Status.READY
    assert shown() is None, "that was another process"
