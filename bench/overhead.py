"""What the router costs, beside llama-server alone and its router mode: `python -m bench.overhead [ROUNDS]`.

The three are measured in turns in one run, on the same file with the same flags, so that a busy machine
harms all alike. CPU is that of the routing process alone. The figures worth quoting are the ratios.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psutil

from app.core.binary import find_binary
from bench.peers import Direct, RouterMode
from tests.ggufs import make_tiny
from tests.router_process import RouterProcess, chat

MODEL = "a"
SLOTS = 4
N_CTX = 4096
REQUESTS = 200
STREAMS = 16
EVENTS = 600


@dataclass
class Target:
    """Something that answers chats; `pid` is the process whose CPU is counted, None for none."""

    name: str
    url: str
    pid: int | None
    samples: dict[str, list[float]] = field(default_factory=dict)

    def add(self, figure: str, value: float) -> None:
        self.samples.setdefault(figure, []).append(value)

    def median(self, figure: str) -> float:
        return statistics.median(self.samples[figure])

    def cpu_s(self) -> float:
        if self.pid is None:
            return 0.0
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)


Measure = Callable[[aiohttp.ClientSession, Target], Awaitable[None]]


async def short_requests(session: aiohttp.ClientSession, target: Target) -> None:
    """One-token answers, one after the other."""
    before, latencies = target.cpu_s(), []
    for _ in range(REQUESTS):
        began = time.perf_counter()
        await _read(session, target, chat(MODEL, max_tokens=1))
        latencies.append(time.perf_counter() - began)
    target.add("CPU of a request, us", 1e6 * (target.cpu_s() - before) / REQUESTS)
    target.add("median latency, ms", 1e3 * statistics.median(latencies))
    target.add("p99 latency, ms", 1e3 * sorted(latencies)[-max(REQUESTS // 100, 1)])


async def many_clients(session: aiohttp.ClientSession, target: Target) -> None:
    """One-token answers for 16 clients at once."""
    before, began = target.cpu_s(), time.perf_counter()

    async def client() -> None:
        for _ in range(REQUESTS // 16):
            await _read(session, target, chat(MODEL, max_tokens=1))

    await asyncio.gather(*(client() for _ in range(16)))
    count = REQUESTS // 16 * 16
    target.add("requests/s, 16 clients", count / (time.perf_counter() - began))
    target.add("CPU of a request, 16 clients, us", 1e6 * (target.cpu_s() - before) / count)


async def streams(session: aiohttp.ClientSession, target: Target) -> None:
    """Long event streams, more than there are slots."""
    before, began, events = target.cpu_s(), time.perf_counter(), 0
    firsts: list[float] = []

    async def one() -> None:
        nonlocal events
        sent, first = time.perf_counter(), True
        body = chat(MODEL, max_tokens=EVENTS, stream=True)
        async with session.post(f"{target.url}/v1/chat/completions", json=body) as answer:
            async for line in answer.content:
                if line.startswith(b"data: {"):
                    events += 1
                    if first:
                        firsts.append(time.perf_counter() - sent)
                        first = False

    await asyncio.gather(*(one() for _ in range(STREAMS)))
    target.add("CPU of an event, us", 1e6 * (target.cpu_s() - before) / events)
    target.add("events/s", events / (time.perf_counter() - began))
    target.add("p99 TTFT, 16 streams, ms", 1e3 * max(firsts))


async def _read(session: aiohttp.ClientSession, target: Target, body: dict[str, object]) -> None:
    async with session.post(f"{target.url}/v1/chat/completions", json=body) as answer:
        await answer.read()
        assert answer.status == 200, target.name


@contextmanager
def targets() -> Iterator[list[Target]]:
    binary = find_binary(None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = folder / "models"
        models.mkdir()
        path = make_tiny(models / f"{MODEL}.gguf", context=N_CTX)
        router = RouterProcess(
            folder / "router",
            binary,
            {MODEL: {"model_path": path, "parallel_requests": SLOTS, "params": {"n_ctx": N_CTX // SLOTS}}},
            system={"log_level": "info", "cpu_threads": 1},
        )
        router.start()
        try:
            router.wait_until_it_answers().load(MODEL)
            flags = ["-np", str(SLOTS), "-c", str(N_CTX), "-t", "1"]
            with (
                Direct(binary, path, flags, folder / "direct.log") as direct,
                RouterMode(binary, models, flags, folder / "peer.log", max_models=1) as peer,
            ):
                yield [
                    Target("direct", direct.url, None),
                    Target("router", router.url, router.pid),
                    Target("router mode", peer.url, peer.pid),
                ]
        finally:
            router.stop()


async def measure(rounds: int) -> None:
    with targets() as measured:
        # A connection each: llama-server drops kept ones without a word after 100 requests.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(connector=connector) as session:
            for target in measured:
                await _read(session, target, chat(MODEL, max_tokens=1))  # loads it
            for _ in range(rounds):
                for what in (short_requests, many_clients, streams):
                    for target in measured:
                        await what(session, target)
            rss = {t.name: psutil.Process(t.pid).memory_info().rss / 2**20 for t in measured if t.pid}
        _print(measured, rss)


def _print(measured: list[Target], rss: dict[str, float]) -> None:
    direct, router, peer = measured
    print(f"{'':36}{'direct':>10}{'router':>10}{'router mode':>13}{'ratio':>8}")
    for figure in router.samples:
        values = [t.median(figure) for t in measured]
        print(f"{figure:36}{values[0]:10.1f}{values[1]:10.1f}{values[2]:13.1f}{values[1] / values[2]:8.2f}")
    added = [t.median("median latency, ms") - direct.median("median latency, ms") for t in (router, peer)]
    print(f"{'added median latency, ms':36}{'':10}{added[0]:10.2f}{added[1]:13.2f}{added[0] / added[1]:8.2f}")
    print(f"{'memory, MiB':36}{'':10}{rss['router']:10.0f}{rss['router mode']:13.0f}")


if __name__ == "__main__":
    asyncio.run(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
