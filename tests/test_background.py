"""Background tasks cannot die silently."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from app.domain.background import Background


@pytest.fixture
async def background() -> AsyncIterator[Background]:
    made = Background(restart_delay_s=0)
    yield made
    await made.stop()


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class Task:
    """Fails as often as it is told to, then runs until it is cancelled."""

    def __init__(self, *failures: Exception | None) -> None:
        self.failures = list(failures)
        self.runs = 0
        self.running = asyncio.Event()
        self.cancelled = False

    async def __call__(self) -> None:
        self.runs += 1
        if self.failures:
            failure = self.failures.pop(0)
            if failure is None:
                return
            raise failure
        self.running.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled = True


async def test_a_task_that_fails_is_logged_shown_and_started_again(
    background: Background, caplog: pytest.LogCaptureFixture
) -> None:
    task = Task(ValueError("a bug"))
    background.start("readings", task)
    await task.running.wait()
    assert task.runs == 2
    assert background.health["readings"].restarts == 1
    assert "background task readings failed" in caplog.text
    assert "ValueError: a bug" in caplog.text


async def test_the_error_stays_visible_until_it_has_run_for_a_while() -> None:
    background = Background(restart_delay_s=0.001)
    task = Task(ValueError("a bug"))
    background.start("readings", task)
    await task.running.wait()
    seen = [background.health["readings"].error]
    while background.health["readings"].error is not None:  # for ten times the delay
        seen.append(background.health["readings"].error)
        await asyncio.sleep(0)
    assert set(seen) == {"ValueError: a bug"}
    await background.stop()


async def test_a_task_that_returns_counts_as_failed(background: Background) -> None:
    task = Task(None)
    background.start("readings", task)
    await task.running.wait()
    assert background.health["readings"].restarts == 1


async def test_one_that_fails_for_ever_does_not_spin() -> None:
    background = Background(restart_delay_s=3600)
    task = Task(*[ValueError("a bug")] * 100)
    background.start("readings", task)
    await turns()
    assert task.runs == 1
    assert background.health["readings"].error == "ValueError: a bug"
    await background.stop()


async def test_a_task_that_runs_once_may_end(background: Background) -> None:
    task = Task(None)
    background.once("warm-up", task)
    await turns()
    assert (task.runs, background.health["warm-up"].error) == (1, None)


async def test_the_failure_of_a_task_that_runs_once_stays_visible(background: Background) -> None:
    background.once("warm-up", Task(ValueError("a bug")))
    await turns()
    assert background.health["warm-up"].error == "ValueError: a bug"


async def test_the_end_cancels_everything_and_waits_for_it(background: Background) -> None:
    tasks = [Task(), Task()]
    for number, task in enumerate(tasks):
        background.start(str(number), task)
        await task.running.wait()
    await background.stop()
    assert all(task.cancelled and task.runs == 1 for task in tasks)
