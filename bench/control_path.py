"""What deciding and showing costs, with 50 models and thousands waiting: `python -m bench.control_path`.

A step is the manager's own look: pictures of all models, the plan, what it says carried out, slots granted.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

from app.api.dependencies import Services
from app.configuration.file import parse
from app.core.queue import RequestQueue, Ticket
from app.domain.priority import Priority
from app.domain.status import Status
from app.main import create_app
from tests.fakes import FakeLauncher, FakeProbe, Request, World
from tests.ggufs import make_tiny

MODELS, WAITING, REPEATS = 50, 5000, 200
SHOWN_WAITING = 1000


async def make_world(loaded: int) -> World:
    """`loaded` models serve, with nothing left to grant; the others wait for their memory."""
    sizes = {f"m{i}": 1000 for i in range(MODELS)}
    world = World(sizes, gpu_mb=[1000 * loaded], max_concurrent_models=MODELS, max_swap_wait_sec=3600)
    await world.tracker.refresh()
    for i in range(WAITING):
        world.request(f"m{i % MODELS}", Priority(i % 3))
    await world.settle()
    serving = [i for i in world.manager.instances.values() if i.status is Status.READY]
    assert len(serving) == loaded, f"{len(serving)} of {loaded} are ready"
    return world


def median_ms(do: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        do()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


async def step_ms(loaded: int) -> tuple[float, float]:
    world = await make_world(loaded)
    manager = world.manager
    figures = median_ms(manager.scheduler._reconcile), median_ms(manager.views)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await asyncio.sleep(0)
    return figures


async def whole_router_ms() -> tuple[float, float, float]:
    """A step, a status snapshot as JSON and a scrape of one whole router with `SHOWN_WAITING` requests."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = str(make_tiny(folder / "tiny.gguf"))
        models = {f"m{i}": {"model_path": path, "parallel_requests": 1} for i in range(MODELS)}
        system = {"log_dir": str(folder / "logs"), "max_concurrent_models": 10}
        config = parse(json.dumps({"system": system, "models": models}), folder, {})
        app = create_app(config, launcher=FakeLauncher(), probe=FakeProbe(100_000))
        async with app.router.lifespan_context(app):
            services: Services = app.state.services
            waiting = [
                asyncio.create_task(_stay(services, f"m{i % MODELS}", i)) for i in range(SHOWN_WAITING)
            ]
            loaded = 0
            while loaded < 10:
                await asyncio.sleep(0.01)
                loaded = sum(i.status is Status.READY for i in services.manager.instances.values())
            figures = (
                median_ms(services.manager.scheduler._reconcile),
                median_ms(lambda: json.dumps(services.status.full())),
                median_ms(services.metrics.text),
            )
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
    return figures


async def _stay(services: Services, alias: str, number: int) -> None:
    """A request that is never over."""
    ticket = services.manager.ticket(Priority(number % 3))
    instance = services.manager.instances[alias]
    services.manager.enter(instance, ticket)
    try:
        await ticket.wait(600)
        await asyncio.Event().wait()
    finally:
        services.manager.leave(instance, ticket)


def rows() -> Iterator[tuple[str, str]]:
    step, snapshot, scrape = asyncio.run(whole_router_ms())
    what = f"{MODELS} models, {SHOWN_WAITING} waiting"
    yield f"scheduling step, {what}, ms", f"{step:.2f}"
    yield f"status of all as JSON, {what}, ms", f"{snapshot:.2f}"
    yield f"/metrics but for the process's own, {what}, ms", f"{scrape:.2f}"


def ticket_bytes() -> float:
    """A ticket in its heap."""
    queue = RequestQueue(1, WAITING)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for i in range(WAITING):
        queue.push(Ticket(Priority(i % 3), float(i), 30.0))
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return used / WAITING


async def waiting_bytes() -> float:
    """A client's whole wait as the manager sees it: ticket, lease, future and the task around them."""
    world = World({"m": 1000}, gpu_mb=[1000], max_queue_size_per_model=WAITING)
    world.launcher.slow = True
    await world.tracker.refresh()
    world.request("m")
    await world.settle()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    waiting = [Request(world, "m", Priority(i % 3)) for i in range(WAITING - 1)]
    await asyncio.sleep(0)
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    for request in waiting:
        request.task.cancel()
    await asyncio.gather(*(r.task for r in waiting), return_exceptions=True)
    return used / len(waiting)


def queue_operation_us() -> float:
    """A request comes and goes in a queue of 5,000."""
    queue = RequestQueue(1, 2 * WAITING)
    for i in range(WAITING):
        queue.push(Ticket(Priority(i % 3), float(i), 30.0))

    def come_and_go() -> None:
        ticket = Ticket(Priority.HIGH, 0.0, 30.0)
        queue.push(ticket)
        queue.finish(ticket, 0.0)

    return median_ms(come_and_go) * 1000


def main() -> None:
    for name, value in rows():
        print(f"{name:70}{value:>8}")
    print(f"{MODELS} models, {WAITING} waiting requests; medians of {REPEATS}")
    for loaded in (4, 25, 49):
        step, views = asyncio.run(step_ms(loaded))
        print(f"  step with {loaded:2} models loaded   {step:5.2f} ms, of which pictures {views:.2f} ms")
    print(f"  push and leave                {queue_operation_us():5.1f} us")
    print(f"  a waiting ticket              {ticket_bytes():5.0f} bytes")
    print(f"  with its lease, future, task  {asyncio.run(waiting_bytes()):5.0f} bytes")


if __name__ == "__main__":
    main()
