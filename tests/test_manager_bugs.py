"""A bug of ours must not wedge the router: it is logged, shown, and the next look at everything works."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from app.domain.errors import LoadFailed
from app.domain.status import Status
from app.models.instance import ModelInstance
from app.scheduling import policy
from app.scheduling.actions import Plan
from tests.fakes import World


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World({"a": 6000, "b": 6000}, parallel_requests=1)
    await made.settle()
    yield made
    await made.close()


@pytest.fixture
def broken_policy(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Every decision fails until it is undone."""

    def plan(*_: object) -> Plan:
        raise KeyError("a bug")

    monkeypatch.setattr(policy, "plan", plan)
    return monkeypatch


async def test_a_bug_in_the_policy_is_logged_once_and_shown(
    world: World, broken_policy: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world.request("a")
    await world.settle()
    assert world.manager.scheduler.error == "KeyError: 'a bug'"
    assert caplog.text.count("scheduling failed") == 1


async def test_models_that_serve_go_on_serving_meanwhile(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = world.request("a"), world.request("a")
    await world.settle()
    monkeypatch.setattr(policy, "plan", lambda *_: 1 / 0)
    await first.finish()
    await world.settle()
    assert second.granted.is_set()


async def test_it_is_tried_again_by_itself_and_heals(world: World, broken_policy: pytest.MonkeyPatch) -> None:
    request = world.request("a")
    await world.settle()
    assert world.manager.scheduler._alarm.at is not None, "nobody else may ever ask for another look"
    broken_policy.undo()
    await world.settle()
    assert request.granted.is_set()
    assert world.manager.scheduler.error is None


async def test_an_action_that_fails_does_not_stop_the_next_look(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(ModelInstance, "start", lambda *_: 1 / 0)
        request = world.request("a")
        await world.settle()
        assert world.manager.scheduler.error is not None
    await world.settle()
    assert request.granted.is_set()
    assert world.manager.scheduler.error is None


async def test_a_file_that_trips_the_estimate_fails_its_model_instead_of_letting_everybody_wait(
    world: World,
) -> None:
    world.sizes.pop("a")  # the fake inspection raises KeyError
    with pytest.raises(LoadFailed, match="could not make sense of its file"):
        await world.request("a").task
    assert world.status("a") is Status.FAILED
    request = world.request("b")
    await world.settle()
    assert request.granted.is_set()
