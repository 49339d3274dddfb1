"""What watching costs: `python -m bench.watching [metrics] [subscribers]`.

`metrics`: one `/metrics` with 50 models that have all been used. `subscribers`: 200 readers of the status
stream while a model loads for seconds with progress as a GPU shows it, beside the same without readers.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from statistics import median

import psutil

from app.core.prometheus_metrics import Metrics
from app.domain.event_bus import EventBus
from app.domain.events import Evicted, LoadFinished, LoadResult, Outcome, RequestFinished, Usage
from app.domain.priority import Priority
from app.domain.status import Status, StopReason
from app.domain.views import DeviceView, ModelView, ProcessView
from tests import llama_build
from tests.ggufs import make_tiny
from tests.router_process import RouterProcess, chat
from tests.slow_server import slow

MODELS = 50
READERS = 200
LOAD_S = 5
SWAPS = 4
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/messages")


def main(names: list[str]) -> None:
    if not names or "metrics" in names:
        asyncio.run(measure_metrics())
    if not names or "subscribers" in names:
        asyncio.run(measure_subscribers())


# --- /metrics


async def measure_metrics() -> None:
    bus, process = EventBus(), ProcessView(Status.READY, vram_mb=4711)
    views = [
        ModelView(f"model-{n}", Status.READY, estimated_mb=5000, processes=(process,)) for n in range(MODELS)
    ]
    devices = [DeviceView(str(n), "GPU", 24000, 12000, 12000, 100, utilization=0.5) for n in range(4)]
    metrics = Metrics(bus, views=lambda: views, devices=lambda: devices, clients=dict)
    await _print_scrape("unused", metrics, lambda: None)

    def live() -> None:
        for view in views:
            for event in _life(view.alias):
                bus.publish(event)

    live()
    await _print_scrape("all used, quiet now", metrics, lambda: None)
    await _print_scrape("all busy", metrics, live)


async def _print_scrape(what: str, metrics: Metrics, live: Callable[[], None]) -> None:
    """`live` is what happened since the last scrape."""
    whole, held = [], []
    for _ in range(20):
        live()
        started = time.perf_counter()
        scrape = asyncio.ensure_future(metrics.render())
        longest = 0.0
        while not scrape.done():
            last = time.perf_counter()
            await asyncio.sleep(0)
            longest = max(longest, time.perf_counter() - last)
        whole.append(time.perf_counter() - started)
        held.append(longest)
    lines = scrape.result().count(b"\n")
    print(
        f"/metrics, {MODELS} models, {what}: {1000 * median(whole):.1f} ms, "
        f"the event loop held for {1000 * median(held):.1f} ms, {lines} lines"
    )


def _life(alias: str) -> Iterator[LoadFinished | Evicted | RequestFinished]:
    yield LoadFinished(alias, LoadResult.SUCCESS, 2.0)
    yield Evicted(alias, StopReason.MEMORY)
    usage = Usage(100, 100, 10, 50.0)
    for endpoint in ENDPOINTS:
        for priority in Priority:
            for outcome in Outcome:
                yield RequestFinished(
                    "id", alias, endpoint, "", priority, outcome, 200, None, 1.0, 0.1, 0.0, 0.2, usage
                )


# --- the status stream


async def measure_subscribers() -> None:
    with _router() as router:
        for readers in (0, READERS):
            async with _listening(router, readers) as received:
                await asyncio.sleep(1)
                before, begun = _cpu_s(router), time.monotonic()
                await _swap(router)
                spent, took = _cpu_s(router) - before, time.monotonic() - begun
            print(
                f"{readers} readers: {1000 * spent / SWAPS:.0f} ms CPU per swap of {took / SWAPS:.1f} s, "
                f"{100 * spent / took:.1f} % of a core, {sum(received)} events"
            )


async def _swap(router: RouterProcess) -> None:
    async with router.open_client() as http:
        for number in range(SWAPS):
            answer = await http.post("/v1/chat/completions", json=chat("ab"[number % 2]))
            assert answer.status_code == 200, answer.text


def _cpu_s(router: RouterProcess) -> float:
    times = psutil.Process(router.pid).cpu_times()
    return times.user + times.system


@asynccontextmanager
async def _listening(router: RouterProcess, readers: int) -> AsyncIterator[list[int]]:
    """How many events each has received."""
    received = [0] * readers

    async def read(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
        writer.write(b"GET /v1/models/status/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        while text := await reader.read(1 << 16):
            received[number] += text.count(b"\nevent: ") + text.startswith(b"event: ")

    tasks = [asyncio.create_task(read(number)) for number in range(readers)]
    try:
        yield received
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextmanager
def _router() -> Iterator[RouterProcess]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        model = make_tiny(path / "tiny.gguf")
        models = {
            alias: {"model_path": model, "env": {"LOAD_S": str(LOAD_S)}}
            for alias in ("a", "b", *(f"idle-{n}" for n in range(8)))
        }
        binary = slow(path, llama_build.of())
        router = RouterProcess(path, binary, models, system={"max_concurrent_models": 1, "log_level": "info"})
        router.start()
        try:
            yield router.wait_until_it_answers()
        finally:
            router.stop()


if __name__ == "__main__":
    main(sys.argv[1:])
