"""The router beside the least that a proxy in this language costs: `python -m bench.floor [ROUNDS]`.

Both stand before the same stub, in turns in one run; `bench/floor_proxy.py` parses and relays, and decides
nothing. The figures worth quoting are the ratios. Last come the longest times for which the router's event
loop stood still.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from app.llama.binary import find_binary
from bench.overhead import MODEL, Measure, Target, requests, streams
from bench.stub import stub
from tests.ggufs import make_tiny
from tests.ports import free_port
from tests.router_process import RouterProcess, until_now

SLOTS = 64
PACE = 50
"""Events a second of a paced stream."""

LIMITS = {
    "CPU of a request, 16 clients, us": 2.5,
    "CPU of an event, 16 streams, us": 1.5,
    "p99 latency, 64 clients, ms": 3.0,
    "median TTFT, 64 streams, ms": 2.0,
}
"""What is promised: at most so many times the floor."""

HOLD_MS = 10.0
MEASURES: tuple[Measure, ...] = (requests(16), requests(64), streams(16), streams(64))


class WatchedRouter(RouterProcess):
    program = ("-m", "bench.watched")


@contextmanager
def targets(
    folder: Path, events_per_s: int, router_type: type[RouterProcess] = RouterProcess
) -> Iterator[tuple[Target, Target, Target]]:
    """The stub alone, the floor and the router in front of it."""
    fake = stub(folder, find_binary(None))
    model = {
        "model_path": make_tiny(folder / "a.gguf"),
        "parallel_requests": SLOTS,
        "env": {"EVENTS_PER_S": str(events_per_s)},
    }
    env = {"HOLDS": str(folder / "holds.json")}
    router = router_type(folder, fake, {MODEL: model}, system={"log_level": "info"}, env=env)
    router.start()
    try:
        router.wait_until_it_answers().load(MODEL)
        port = router.status(MODEL)["port"]
        with _floor(port) as (floor_port, floor_pid):
            yield (
                Target("stub", f"http://127.0.0.1:{port}", None),
                Target("floor", f"http://127.0.0.1:{floor_port}", floor_pid),
                Target("router", router.url, router.pid),
            )
    finally:
        router.stop()


@contextmanager
def _floor(server_port: int) -> Iterator[tuple[int, int]]:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "bench.floor_proxy", str(port), str(server_port)])
    try:
        until_now(lambda: _listens(port))
        yield port, process.pid
    finally:
        process.terminate()
        process.wait(10)


def _listens(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def measure(rounds: int, some_targets: Sequence[Target]) -> None:
    for _ in range(rounds):
        for what in MEASURES:
            for target in some_targets:
                await what(target)


def holds(events_per_s: int) -> dict[str, list[float]]:
    """The longest ones under the same load, of a router of its own: the timer inside takes CPU, too."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with targets(folder, events_per_s, WatchedRouter) as (_, _, router):
            asyncio.run(measure(1, [router]))
        found: dict[str, list[float]] = json.loads((folder / "holds.json").read_text())
        return found


def show(all_targets: tuple[Target, Target, Target]) -> None:
    _, floor, router = all_targets
    print(f"{'':46}" + "".join(f"{t.name:>12}" for t in all_targets) + f"{'ratio':>8}{'limit':>8}")
    for figure in router.samples:
        shown = "".join(
            f"{statistics.median(t.samples[figure]):12.1f}" if figure in t.samples else f"{'':12}"
            for t in all_targets
        )
        ratio = router.median(figure) / floor.median(figure) if floor.median(figure) else float("nan")
        print(f"{figure:46}{shown}{ratio:8.2f}{LIMITS.get(figure, ''):>8}")


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    for events_per_s, what in ((PACE, f"paced, {PACE} events/s"), (0, "as fast as it goes")):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            with targets(folder, events_per_s) as found:
                asyncio.run(measure(rounds, found))
            print(f"--- streams {what}")
            show(found)
        for kind, values in holds(events_per_s).items():
            print(f"longest holds of the loop, {kind}: " + ", ".join(f"{value:.1f}" for value in values[-5:]))
        print()
    print(f"a hold over {HOLD_MS:.0f} ms of CPU time is a fault; processors: {os.cpu_count()}")


if __name__ == "__main__":
    main()
