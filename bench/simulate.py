"""The router's policy and queue in virtual time, beside two simpler ways: `python -m bench.simulate [SEED]`.

fifo: one queue for all, the model that its head needs is loaded, idle ones go for it.
lru:  llama-server's router mode: a request for an unloaded model evicts the least recently used one at once.
"""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.domain.priority import Priority
from app.scheduling.actions import Limits
from bench.other_routers import FifoWorld, LruWorld
from bench.world import Outcome, Request, Spec, World

HOUR = 3600.0
LIMITS = Limits(max_models=99, max_swap_wait_s=10.0, aging_s=30.0)


@dataclass(frozen=True)
class Arrival:
    at: float
    alias: str
    priority: Priority
    service_s: float


@dataclass(frozen=True)
class Traffic:
    name: str
    specs: Sequence[Spec]
    device_mb: int
    arrivals: Sequence[Arrival]


@dataclass(frozen=True)
class Result:
    requests: Sequence[Request]
    loads: int

    @property
    def failed(self) -> int:
        return sum(1 for r in self.requests if r.outcome is not Outcome.SERVED)

    @property
    def makespan_s(self) -> float:
        return max(r.ended for r in self.requests)

    def wait_s(self, priority: Priority, quantile: float) -> float:
        served = (r for r in self.requests if r.outcome is Outcome.SERVED)
        waits = sorted(r.waited_s for r in served if r.ticket.priority is priority)
        return waits[min(int(len(waits) * quantile), len(waits) - 1)] if waits else math.nan


# --- the ways

WAYS: dict[str, tuple[type[World], Limits]] = {
    "router": (World, LIMITS),
    "fifo": (FifoWorld, Limits(LIMITS.max_models, 0, aging_s=0)),
    "lru": (LruWorld, Limits(LIMITS.max_models, 0, aging_s=0)),
}


def play(traffic: Traffic, way: str) -> Result:
    kind, limits = WAYS[way]
    world = kind(traffic.specs, [traffic.device_mb], limits, max_waiting=10**6)
    for arrival in traffic.arrivals:
        world.at(arrival.at, _arrive(world, arrival))
    world.run()
    return Result(world.requests, sum(m.loads for m in world.models.values()))


def _arrive(world: World, arrival: Arrival) -> Callable[[], None]:
    def happen() -> None:
        world.arrive(arrival.alias, arrival.priority, arrival.service_s)

    return happen


# --- traffic


def alternating(rounds: int = 30) -> Traffic:
    """Room for one of three models."""
    specs = [Spec(x, 6000, load_s=4) for x in "ABC"]
    letters = "ABAACABC" * rounds
    arrivals = [Arrival(i * 0.25, x, Priority.NORMAL, 0.2) for i, x in enumerate(letters)]
    return Traffic("A B A A C A B C", specs, 10_000, arrivals)


def many_models(rng: random.Random, hours: float = 24, per_s: float = 0.08) -> Traffic:
    """Twenty models on memory for four, some asked for far more often than others."""
    specs = [Spec(f"m{i}", 6000, load_s=10, slots=2, idle_timeout_s=300) for i in range(20)]
    arrivals, at = [], 0.0
    while (at := at + rng.expovariate(per_s)) < hours * HOUR:
        (spec,) = rng.choices(specs, [1 / (i + 1) for i in range(20)])
        (priority,) = rng.choices(tuple(Priority), (2, 6, 2))
        arrivals.append(Arrival(at, spec.alias, priority, 1 + rng.expovariate(1 / 8)))
    return Traffic("20 models, Poisson", specs, 24_500, arrivals)


def night(rng: random.Random, hours: int = 8) -> Traffic:
    """Batches for two models each hour, and bursts of people at two others; memory for two."""
    specs = [Spec(x, 6000, load_s=8) for x in ("batch1", "batch2", "chat1", "chat2")]
    arrivals = [
        Arrival(hour * HOUR + i * 0.05, alias, Priority.LOW, rng.uniform(3, 9))
        for hour in range(hours)
        for alias in ("batch1", "batch2")
        for i in range(150)
    ]
    at = 0.0
    while (at := at + rng.uniform(120, 900)) < hours * HOUR:
        alias = rng.choice(("chat1", "chat2"))
        arrivals += [
            Arrival(at + rng.uniform(0, 20), alias, Priority.HIGH, rng.uniform(2, 6)) for _ in range(6)
        ]
    return Traffic("night batch, bursts", specs, 12_500, sorted(arrivals, key=lambda a: a.at))


def all_traffic(seed: int) -> list[Traffic]:
    rng = random.Random(seed)
    return [alternating(), many_models(rng), night(rng)]


# --- the table

HEADER = f"{'':20} {'':7} {'requests':>8} {'failed':>7} {'loads':>6} {'makespan':>10}" + "".join(
    f"{p.label + ' wait p50':>16} {'p99':>7}" for p in Priority
)


def row(name: str, way: str, result: Result) -> str:
    waits = "".join(
        f"{_seconds(result.wait_s(p, 0.5)):>16} {_seconds(result.wait_s(p, 0.99)):>7}" for p in Priority
    )
    counts = f"{len(result.requests):>8} {result.failed:>7} {result.loads:>6} {result.makespan_s:>8.0f} s"
    return f"{name:20} {way:7} {counts}{waits}"


def _seconds(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.1f} s"


def main() -> None:
    seed, began = int(sys.argv[1]) if len(sys.argv) > 1 else 1, time.perf_counter()
    print(HEADER)
    for traffic in all_traffic(seed):
        for way in WAYS:
            print(row(traffic.name if way == "router" else "", way, play(traffic, way)))
    print(
        f"\nseed {seed}; waits are until the first slot of those that were served; "
        f"simulated in {time.perf_counter() - began:.1f} s"
    )


if __name__ == "__main__":
    main()
