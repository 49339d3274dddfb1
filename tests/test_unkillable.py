"""A process that outlives SIGKILL, inside a call of the kernel: it stays ours until it has died after all."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import httpx
import pytest

from app.configuration.file import parse
from app.domain.errors import VramExhausted
from app.domain.status import Status, StopReason
from app.main import create_app
from tests.fakes import FakeLauncher, FakeProbe, FakeRunner, World
from tests.ggufs import make_tiny
from tests.patience import WAIT_S
from tests.router_process import until


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World({"a": 4000, "b": 5000, "big": 7000})
    await made.settle()
    yield made
    for runner in list(made.launcher.live):
        runner.die()
    await made.settle()
    await made.close()


async def unkillable(world: World, alias: str) -> FakeRunner:
    """It has served, and was told in vain to end."""
    request = world.request(alias)
    await world.settle()
    await request.finish()
    runner = world.launcher.newest(alias)
    runner.is_immortal = True
    with anyio.fail_after(WAIT_S):
        assert await world.manager.eject(world.manager.fleet.find(alias), now=True, timeout_s=3600)
    await world.settle()
    return runner


async def test_its_memory_stays_promised_until_it_dies(world: World) -> None:
    runner = await unkillable(world, "a")
    assert world.status("a") is Status.OFF
    assert world.tracker.ledger.unkillable == (f"a (pid {runner.pid})",)
    (card, _) = world.tracker.ledger.devices()
    assert (card.reserved_mb, card.free_mb, card.others_mb) == (4000, 6000, 4000)
    runner.die()
    await world.settle()
    assert world.tracker.ledger.unkillable == () and not world.launcher.live
    (card, _) = world.tracker.ledger.devices()
    assert (card.reserved_mb, card.free_mb, card.others_mb) == (0, 10_000, 0)


async def test_what_it_holds_is_known_without_a_driver_too(world: World) -> None:
    world.probe.error = RuntimeError("the driver is gone")
    world.launcher.slow = True
    world.manager.preload(["a"])
    await world.settle()
    world.launcher.newest("a").is_immortal = True
    await world.manager.eject(world.manager.fleet.find("a"), now=True, timeout_s=3600)
    (card, _) = world.tracker.ledger.devices()
    assert (card.free_mb, card.others_mb) == (6000, 4000)


async def test_the_model_is_loaded_again_where_there_is_room_and_nobody_waits_for_the_dead(
    world: World,
) -> None:
    runner = await unkillable(world, "a")
    again = world.request("a")
    await world.settle()
    assert again.granted.is_set()
    assert world.launcher.newest("a") is not runner
    with pytest.raises(VramExhausted, match="at most 6000 MB"):
        await world.request("big").task
    await again.finish()
    swap = world.request("b")
    await world.settle()
    assert swap.granted.is_set(), "the new process can be ended"
    await swap.finish()
    runner.die()
    await world.settle()
    late = world.request("big")
    await world.settle()
    assert late.granted.is_set()


async def test_its_late_news_do_not_touch_the_process_that_followed(world: World) -> None:
    runner = await unkillable(world, "a")
    request = world.request("a")
    await world.settle()
    runner.on_change(runner)
    assert world.manager.instances["a"].runner is world.launcher.newest("a")
    assert world.status("a") is Status.READY
    runner.die()
    await world.settle()
    assert world.status("a") is Status.READY
    assert world.reserved("a") == {"0": 4000}
    await request.finish()


async def test_a_hang_that_cannot_be_ended_is_a_crash_and_cuts_its_requests(world: World) -> None:
    request = world.request("a")
    await world.settle()
    instance, runner = world.manager.instances["a"], world.launcher.newest("a")
    runner.is_immortal = True
    with anyio.fail_after(WAIT_S):
        await instance.kill_unresponsive(runner, "it missed 3 probes in a row")
    assert instance.status is Status.CRASHED
    failure = instance.lifecycle.failure
    assert failure is not None and "hung" in failure.message
    assert request.cut.is_set(), "its connection would never end"
    await request.leave()
    await world.pass_time(1)
    assert world.status("a") is Status.READY
    assert world.launcher.newest("a") is not runner


async def test_a_load_that_cannot_be_ended_leaves_the_model_usable(world: World) -> None:
    world.launcher.slow = True
    first = world.request("a")
    await world.settle()
    world.launcher.newest("a").is_immortal = True
    world.manager.instances["a"].drain(StopReason.MANUAL)
    world.launcher.slow = False
    await world.settle()
    assert first.granted.is_set()
    assert world.launcher.loads("a") == 2
    await first.finish()


async def test_a_model_that_is_removed_meanwhile_leaves_its_memory_promised(world: World) -> None:
    runner = await unkillable(world, "a")
    rest = {alias: model for alias, model in world.config.models.items() if alias != "a"}
    world.manager.apply(world.config.model_copy(update={"models": rest}))
    await world.settle()
    assert "a" not in world.manager.instances
    assert world.tracker.ledger.devices()[0].reserved_mb == 4000
    runner.die()
    await world.settle()
    assert world.tracker.ledger.devices()[0].reserved_mb == 0


async def test_it_does_not_keep_the_router_from_ending(world: World) -> None:
    request = world.request("a")
    await world.settle()
    world.launcher.newest("a").is_immortal = True
    await request.finish()
    with anyio.fail_after(WAIT_S):
        await world.manager.shutdown(0.1)


async def test_it_is_told_by_health_and_makes_nobody_ill(tmp_path: Path) -> None:
    model = make_tiny(tmp_path / "tiny.gguf")
    tree = {"system": {"log_dir": str(tmp_path / "logs")}, "models": {"a": {"model_path": str(model)}}}
    launcher = FakeLauncher()
    app = create_app(parse(json.dumps(tree), tmp_path, {}), launcher=launcher, probe=FakeProbe(10_000))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client,
    ):
        (await client.post("/v1/models/load?wait=true", json={"model": "a"})).raise_for_status()
        runner = launcher.newest("a")
        runner.is_immortal = True
        answer = await client.post("/v1/models/eject?mode=now", json={"model": "a"})
        assert answer.json()["status"] == "success"
        answer = await client.get("/health")
        assert answer.status_code == 200
        for name in ("unkillable_processes", "undead_processes"):  # the second for one release
            assert answer.json()["checks"]["manager"][name] == [f"a (pid {runner.pid})"]
        runner.die()
        await until(lambda: not launcher.live)
        assert "unkillable_processes" not in (await client.get("/health")).json()["checks"]["manager"]
