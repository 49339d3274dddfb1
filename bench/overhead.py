"""What the router costs, beside llama-server alone and its router mode: `python -m bench.overhead [ROUNDS]`.

All are measured in turns in one run, on the same file with the same flags, so that a busy machine harms all
alike. CPU is that of the routing process alone. The figures worth quoting are the ratios.
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

from bench.peers import Direct, Peer, RouterMode
from bench.stub import stub
from tests import llama_build
from tests.ggufs import make_tiny
from tests.router_process import RouterProcess, chat

MODEL = "a"
SLOTS = 4
N_CTX = 4096
REQUESTS = 512
STREAMED = 6400
"""Events of a round, over all streams together."""

STREAMS = 32
"""At least so many in a round: one after the other where there are fewer at once."""


@dataclass
class Target:
    """Something that answers chats; `pid` is the process whose CPU is counted, None for none."""

    name: str
    url: str
    pid: int | None
    samples: dict[str, list[float]] = field(default_factory=dict)

    def add(self, figure: str, value: float) -> None:
        if self.pid is None and figure.startswith("CPU"):
            return
        self.samples.setdefault(figure, []).append(value)

    def median(self, figure: str) -> float:
        return statistics.median(self.samples[figure])

    def cpu_s(self) -> float:
        """Of all threads of the process, in steps of nanoseconds; those of `/proc/PID/stat` are 10 ms."""
        return 0.0 if self.pid is None else time.clock_gettime(cpu_clock(self.pid))


def cpu_clock(pid: int) -> int:
    """Linux's identifier of another process's CPU clock, as clock_getcpuclockid(3) makes it."""
    every_thread = 2  # CPUCLOCK_SCHED, without the bit that picks one thread
    return (~pid << 3) | every_thread


Measure = Callable[[Target], Awaitable[None]]


def requests(clients: int, *, kept: bool = True) -> Measure:
    """One-token answers, for so many clients at once."""
    name = f"{clients} client{'s' * (clients > 1)}{'' if kept else ', a connection each'}"

    async def measure(target: Target) -> None:
        latencies: list[float] = []
        async with _session(kept) as session:

            async def client() -> None:
                for _ in range(REQUESTS // clients):
                    began = time.perf_counter()
                    await _ask(session, target, chat(MODEL, max_tokens=1))
                    latencies.append(time.perf_counter() - began)

            await _ask(session, target, chat(MODEL, max_tokens=1))
            before, began = target.cpu_s(), time.perf_counter()
            await asyncio.gather(*(client() for _ in range(clients)))
            took, spent = time.perf_counter() - began, target.cpu_s() - before
        target.add(f"CPU of a request, {name}, us", 1e6 * spent / len(latencies))
        target.add(f"median latency, {name}, ms", 1e3 * statistics.median(latencies))
        target.add(f"p99 latency, {name}, ms", 1e3 * _p99(latencies))
        if clients > 1:
            target.add(f"requests/s, {name}", len(latencies) / took)

    return measure


def streams(count: int) -> Measure:
    """Event streams; 16 and 64 are more than there are slots."""
    name = f"{count} stream{'s' * (count > 1)}"
    each = max(STREAMS // count, 1)

    async def measure(target: Target) -> None:
        firsts: list[float] = []
        events = 0

        async def one() -> None:
            nonlocal events
            body = chat(MODEL, max_tokens=STREAMED // (count * each), stream=True)
            for _ in range(each):
                began, first = time.perf_counter(), True
                async with session.post(f"{target.url}/v1/chat/completions", json=body) as answer:
                    async for line in answer.content:
                        if line.startswith(b"data: {"):
                            events += 1
                            if first:
                                firsts.append(time.perf_counter() - began)
                                first = False

        async with _session(kept=False) as session:
            before, began = target.cpu_s(), time.perf_counter()
            await asyncio.gather(*(one() for _ in range(count)))
            took, spent = time.perf_counter() - began, target.cpu_s() - before
        target.add(f"CPU of an event, {name}, us", 1e6 * spent / events)
        target.add(f"events/s, {name}", events / took)
        target.add(f"median TTFT, {name}, ms", 1e3 * statistics.median(firsts))
        target.add(f"p99 TTFT, {name}, ms", 1e3 * _p99(firsts))

    return measure


MEASURES = (
    requests(1),
    requests(1, kept=False),
    requests(16),
    requests(64),
    streams(1),
    streams(16),
    streams(64),
)


def _session(kept: bool) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=not kept))


def _p99(values: list[float]) -> float:
    return sorted(values)[-max(len(values) // 100, 1)]


async def _ask(session: aiohttp.ClientSession, target: Target, body: dict[str, object]) -> None:
    """llama-server drops a kept connection without a word after 100 requests: clients try again."""
    for last_try in (False, False, True):
        try:
            async with session.post(f"{target.url}/v1/chat/completions", json=body) as answer:
                await answer.read()
                assert answer.status == 200, f"{target.name}: {answer.status}"
                return
        except aiohttp.ClientError:
            if last_try:
                raise


@contextmanager
def targets() -> Iterator[tuple[list[Target], list[Target]]]:
    """Over the real llama-server: it alone, the router, its router mode. Over the stub: alone, the router."""
    binary = llama_build.of()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = folder / "models"
        models.mkdir()
        path = make_tiny(models / f"{MODEL}.gguf", context=N_CTX)
        flags = ["-np", str(SLOTS), "-c", str(N_CTX), "-t", "1"]
        fake = stub(folder, binary)
        with (
            _router(folder / "router", binary, path) as router,
            _router(folder / "router-stub", fake, path) as router_stub,
            Direct(binary, path, flags, folder / "direct.log") as direct,
            RouterMode(binary, models, flags, folder / "peer.log", max_models=1) as peer,
            Peer(fake, [], folder / "stub.log") as alone,
        ):
            yield (
                [
                    Target("llama-server", direct.url, None),
                    Target("router", router.url, router.pid),
                    Target("router mode", peer.url, peer.pid),
                ],
                [Target("stub", alone.url, None), Target("router", router_stub.url, router_stub.pid)],
            )


@contextmanager
def _router(folder: Path, binary: Path, path: Path) -> Iterator[RouterProcess]:
    model = {"model_path": path, "parallel_requests": SLOTS, "params": {"n_ctx": N_CTX // SLOTS}}
    router = RouterProcess(folder, binary, {MODEL: model}, system={"log_level": "info", "cpu_threads": 1})
    router.start()
    try:
        router.wait_until_it_answers().load(MODEL)
        yield router
    finally:
        router.stop()


async def measure(rounds: int) -> tuple[list[Target], list[Target]]:
    with targets() as groups:
        for group in groups:
            async with _session(kept=False) as session:
                for target in group:
                    await _ask(session, target, chat(MODEL, max_tokens=1))  # loads it
            for _ in range(rounds):
                for what in MEASURES:
                    for target in group:
                        await what(target)
            for target in group:
                if target.pid is not None:
                    target.add("memory, MiB", psutil.Process(target.pid).memory_info().rss / 2**20)
        return groups


def rows(group: list[Target]) -> list[tuple[str, list[str], float | None]]:
    """Of each figure its name, the values, and the router's in relation to the peer's."""
    found = []
    router = group[1]
    for figure in router.samples:
        values = [_spread(t.samples[figure]) if figure in t.samples else "" for t in group]
        ratio = None
        if len(group) > 2 and group[2].median(figure):
            ratio = router.median(figure) / group[2].median(figure)
        found.append((figure, values, ratio))
        if figure.startswith(("median latency", "p99 latency", "median TTFT")):
            added = [t.median(figure) - group[0].median(figure) for t in group[1:]]
            ratio = added[0] / added[1] if len(added) > 1 and min(added) > 0 else None
            found.append(("  of it added, ms", ["", *(f"{value:.2f}" for value in added)], ratio))
    return found


def _spread(samples: list[float]) -> str:
    shown = f"{statistics.median(samples):.1f}"
    return shown if len(samples) < 2 else f"{shown} ({min(samples):.1f}-{max(samples):.1f})"


def show(groups: tuple[list[Target], list[Target]]) -> None:
    for group in groups:
        print(f"{'':46}" + "".join(f"{t.name:>26}" for t in group) + f"{'ratio':>8}")
        for figure, values, ratio in rows(group):
            shown = "" if ratio is None else f"{ratio:8.2f}"
            print(f"{figure:46}" + "".join(f"{value:>26}" for value in values) + shown)
        print()


if __name__ == "__main__":
    show(asyncio.run(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 5)))
