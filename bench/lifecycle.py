"""What the router costs when it starts, idles, swaps and streams for long: `python -m bench.lifecycle`.

A swap is measured beside the bare sequence on the same files: stop the one llama-server, start the other,
wait until it serves, ask.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import httpx
import psutil

from bench.peers import Direct
from bench.stub import stub
from tests import llama_build
from tests.ggufs import make_tiny
from tests.router_process import RouterProcess, chat

SWAPS = 10
LARGE_SWAPS = 4
STREAM_BEFORE_S = 3.0
IDLE_S = 20.0
STREAMS = 64
EVENTS_PER_S = 160  # of each stream: together 10,240
STREAM_S = 30
CHAT = "/v1/chat/completions"

Row = tuple[str, str]


@contextmanager
def _router(folder: Path, binary: Path, models: dict[str, dict[str, object]]) -> Iterator[RouterProcess]:
    system = {"max_concurrent_models": 1, "max_swap_wait_sec": 0, "log_level": "info", "cpu_threads": 1}
    router = RouterProcess(folder, binary, models, system=system)
    try:
        yield router
    finally:
        router.stop()


def start_and_idle(folder: Path) -> Iterator[Row]:
    path = make_tiny(folder / "idle.gguf")
    with _router(folder / "idle", llama_build.of(), {"a": {"model_path": path}}) as router:
        began = time.perf_counter()
        router.start()
        router.wait_until_it_answers()
        yield "start to first answer of /health, s", f"{time.perf_counter() - began:.2f}"
        router.client.post(CHAT, json=chat("a", max_tokens=1)).raise_for_status()
        yield "start to first chat, its model's load included, s", f"{time.perf_counter() - began:.2f}"
        process = psutil.Process(router.pid)
        time.sleep(2)
        before = process.cpu_times()
        time.sleep(IDLE_S)
        after = process.cpu_times()
        spent = after.user + after.system - before.user - before.system
        yield f"idle for {IDLE_S:.0f} s, share of a core, %", f"{100 * spent / IDLE_S:.2f}"
        yield "memory, idle, MiB", f"{process.memory_info().rss / 2**20:.0f}"


def swaps(folder: Path) -> Iterator[Row]:
    binary = llama_build.of()
    paths = [make_tiny(folder / f"{name}.gguf") for name in "ab"]
    models: dict[str, dict[str, object]] = {
        name: {"model_path": p} for name, p in zip("ab", paths, strict=True)
    }
    ours, bare = [], []
    with _router(folder / "swaps", binary, models) as router:
        router.start()
        router.wait_until_it_answers().load("a")
        flags = ["-np", "1", "-c", "4096", "-t", "1"]
        direct = Direct(binary, paths[0], flags, folder / "bare.log").__enter__()
        for number in range(1, SWAPS + 1):
            began = time.perf_counter()
            router.client.post(CHAT, json=chat("ab"[number % 2], max_tokens=1)).raise_for_status()
            ours.append(time.perf_counter() - began)
            began = time.perf_counter()
            direct.__exit__()
            direct = Direct(binary, paths[number % 2], flags, folder / "bare.log").__enter__()
            httpx.post(direct.url + CHAT, json=chat("x", max_tokens=1), trust_env=False).raise_for_status()
            bare.append(time.perf_counter() - began)
        direct.__exit__()
    for name, samples in (("swap, router", ours), ("swap, bare sequence", bare)):
        yield f"{name}, s", f"{statistics.median(samples):.3f} ({min(samples):.3f}-{max(samples):.3f})"


def large_swaps(folder: Path) -> Iterator[Row]:
    """To a model that is asked for while another one streams: from the end of that to its first byte."""
    large = make_tiny(folder / "large.gguf", layers=8, width=2048, feed_forward=8192, heads=16, heads_kv=16)
    os.sync()
    models: dict[str, dict[str, object]] = {
        "long": {"model_path": make_tiny(folder / "long.gguf", context=131072), "params": {"n_ctx": 131072}},
        "large": {"model_path": large},
    }
    times: dict[str, list[float]] = {"in the page cache": [], "not read yet": []}
    with _router(folder / "large", llama_build.of(), models) as router:
        router.start()
        router.wait_until_it_answers().load("large")
        for where, samples in [*times.items()] * LARGE_SWAPS:
            router.load("long")
            if where == "not read yet":
                _forget(large)
            samples.append(asyncio.run(_swap_under_a_stream(router)))
    for where, samples in times.items():
        name = f"swap to a model of {large.stat().st_size / 2**30:.1f} GiB, {where}, after a stream, s"
        yield name, f"{statistics.median(samples):.2f} ({min(samples):.2f}-{max(samples):.2f})"


async def _swap_under_a_stream(router: RouterProcess) -> float:
    async with aiohttp.ClientSession() as session:
        body = chat("long", max_tokens=100_000, stream=True)
        async with session.post(router.url + CHAT, json=body) as answer:
            other = asyncio.create_task(_first_answer(session, router.url))
            ends = time.perf_counter() + STREAM_BEFORE_S
            while time.perf_counter() < ends:
                assert await answer.content.readany(), "the stream is too short"
        ended = time.perf_counter()
        return await other - ended


async def _first_answer(session: aiohttp.ClientSession, url: str) -> float:
    async with session.post(url + CHAT, json=chat("large", max_tokens=1)) as answer:
        answer.raise_for_status()
        await answer.read()
        return time.perf_counter()


def _forget(path: Path) -> None:
    """As if nobody had ever read it."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


async def _listen(session: aiohttp.ClientSession, url: str, seen: list[int]) -> None:
    body = chat("a", max_tokens=EVENTS_PER_S * STREAM_S, stream=True)
    async with session.post(url + CHAT, json=body) as answer:
        async for chunk in answer.content.iter_any():
            seen[0] += chunk.count(b"data: {")


async def _many_streams(router: RouterProcess) -> list[Row]:
    process, seen = psutil.Process(router.pid), [0]
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        listeners = [asyncio.ensure_future(_listen(session, router.url, seen)) for _ in range(STREAMS)]
        await asyncio.sleep(5)
        memory, cpu = process.memory_info().rss, sum(process.cpu_times()[:2])
        began, before = time.perf_counter(), seen[0]
        await asyncio.sleep(STREAM_S - 10)
        took, events = time.perf_counter() - began, seen[0] - before
        grown, spent = process.memory_info().rss - memory, sum(process.cpu_times()[:2]) - cpu
        await asyncio.gather(*listeners)
    return [
        (f"{STREAMS} streams of {EVENTS_PER_S} events/s from a stub, events/s", f"{events / took:.0f}"),
        ("  share of a core, %", f"{100 * spent / took:.0f}"),
        (f"  memory grown in {took:.0f} s, MiB", f"{grown / 2**20:.1f}"),
    ]


def long_streams(folder: Path) -> Iterator[Row]:
    path = make_tiny(folder / "streams.gguf")
    model: dict[str, object] = {
        "model_path": path,
        "parallel_requests": STREAMS,
        "params": {"n_ctx": 64},
        "env": {"EVENTS_PER_S": str(EVENTS_PER_S)},
    }
    with _router(folder / "streams", stub(folder, llama_build.of()), {"a": model}) as router:
        router.start()
        router.wait_until_it_answers().load("a")
        yield from asyncio.run(_many_streams(router))


def rows() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as name:
        for part in (start_and_idle, swaps, large_swaps, long_streams):
            yield from part(Path(name))


if __name__ == "__main__":
    for name, value in rows():
        print(f"{name:60}{value:>24}", flush=True)
