"""What scheduling promises, measured on real llama-servers: `python -m bench.scheduling [NAME ...]`.

Figures depend on the machine; what matters is each one beside what it is compared with.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from bench.peers import RouterMode
from tests import llama_build
from tests.ggufs import make_tiny
from tests.router_process import RouterProcess, chat, until

N_CTX = 32768
BURST = 24
BURST_TOKENS = 120
RANDOM_S = 60.0


@dataclass
class Answer:
    status: int
    began_at: float
    ended_at: float
    body: Any

    @property
    def service_s(self) -> float:
        timings = self.body["timings"]
        return float(timings["prompt_ms"] + timings["predicted_ms"]) / 1000


async def ask(session: aiohttp.ClientSession, url: str, body: dict[str, Any], **headers: str) -> Answer:
    began = time.monotonic()
    try:
        async with session.post(f"{url}/v1/chat/completions", json=body, headers=headers) as answer:
            return Answer(answer.status, began, time.monotonic(), await answer.json(content_type=None))
    except (aiohttp.ClientError, ValueError) as error:
        return Answer(0, began, time.monotonic(), str(error))


@contextmanager
def router(names: Sequence[str], folder: Path, **system: Any) -> Iterator[RouterProcess]:
    models = {name: {"model_path": folder / f"{name}.gguf", "params": {"n_ctx": N_CTX}} for name in names}
    process = RouterProcess(
        folder / "router", llama_build.of(), models, system={"log_level": "info", **system}
    )
    process.start()
    try:
        yield process.wait_until_it_answers()
    finally:
        process.stop()


@contextmanager
def models(*names: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        for seed, name in enumerate(names):
            make_tiny(Path(folder) / f"{name}.gguf", context=N_CTX, seed=seed)
        yield Path(folder)


async def burst(names: str = "ab") -> None:
    """24 requests A B A B ... at once with room for one model, beside router mode."""
    with models(*names) as folder:
        with router(names, folder, max_concurrent_models=1) as ours:
            answers, took = await _burst(ours.url, names)
            loads = {alias: ours.loads(alias) for alias in names}
            load_s = ours.metric("router_model_load_seconds_sum")
        service_s = sum(a.service_s for a in answers if a.status == 200)
        print(f"  router:      {_outcomes(answers)}, makespan {took:.2f} s, loads {loads}")
        bare_s = load_s + service_s
        print(f"               {took / bare_s:.2f} x (loads {load_s:.2f} s + service {service_s:.2f} s)")
        flags = ["-np", "1", "-c", str(N_CTX), "-t", "2"]
        with RouterMode(llama_build.of(), folder, flags, folder / "peer.log", max_models=1) as peer:
            answers, took = await _burst(peer.url, names)
        print(f"  router mode: {_outcomes(answers)}, makespan {took:.2f} s")


async def burst_of_three() -> None:
    """The same over three models."""
    await burst("abc")


async def _burst(url: str, names: str) -> tuple[list[Answer], float]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session:
        began = time.monotonic()
        asked = (
            ask(session, url, chat(names[i % len(names)], max_tokens=BURST_TOKENS)) for i in range(BURST)
        )
        return list(await asyncio.gather(*asked)), time.monotonic() - began


async def closed_loop() -> None:
    """Traffic on A without a pause from 4 clients, one request for B: how long B waits."""
    hold_s = 3.0
    with (
        models("a", "b") as folder,
        router(["a", "b"], folder, max_concurrent_models=1, max_swap_wait_sec=hold_s) as ours,
    ):
        async with aiohttp.ClientSession() as session:
            clients = [asyncio.create_task(_endless(session, ours.url)) for _ in range(4)]
            await ask(session, ours.url, chat("a"))
            answer = await ask(session, ours.url, chat("b"))
            for client in clients:
                client.cancel()
            done = await asyncio.gather(*clients, return_exceptions=True)
        load_s = ours.metric("router_model_load_seconds_sum", model="b")
        print(f"  B answered ({answer.status}) after {answer.ended_at - answer.began_at:.2f} s")
        print(f"  bound: max_swap_wait_sec {hold_s} s + one generation + load {load_s:.2f} s")
        print(f"  errors on A: {[e for e in done if not isinstance(e, asyncio.CancelledError)] or 'none'}")


async def _endless(session: aiohttp.ClientSession, url: str) -> None:
    while True:
        answer = await ask(session, url, chat("a", max_tokens=200))
        if answer.status != 200:
            raise AssertionError(answer.body)


async def priority() -> None:
    """200 low requests on one slot, then a high one: how many are served between."""
    with models("a") as folder, router(["a"], folder) as ours:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            await ask(session, ours.url, chat("a"))
            low = {"X-Request-Priority": "low"}
            waiting = [
                asyncio.create_task(ask(session, ours.url, chat("a", max_tokens=60), **low))
                for _ in range(200)
            ]
            await until(lambda: ours.status("a")["queue_depth"] >= 150)
            high = await ask(session, ours.url, chat("a", max_tokens=60), **{"X-Request-Priority": "high"})
            answers = await asyncio.gather(*waiting)
        between = sum(high.began_at < a.ended_at < high.ended_at for a in answers)
        left = sum(a.ended_at > high.ended_at for a in answers)
        print(f"  answered while the high one waited: {between} (one was running); after it: {left}")


async def random_traffic() -> None:
    """Random models, priorities, streams and disconnects: nothing lost, and the statistics agree."""
    names, chance = ["a", "b", "c", "d"], random.Random(1)
    seen: Counter[str] = Counter()
    with (
        models(*names) as folder,
        router(names, folder, max_concurrent_models=2, max_swap_wait_sec=1) as ours,
    ):
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            deadline = time.monotonic() + RANDOM_S
            clients = [_random_client(session, ours.url, names, chance, deadline, seen) for _ in range(24)]
            await asyncio.gather(*clients)
            await until(lambda: all(ours.is_quiet(alias) for alias in names))
        summary = ours.get("/v1/queue/stats")["summary"]
        loads = {alias: ours.loads(alias) for alias in names}
        counted = {s: int(ours.metric("router_requests_total", status=s)) for s in ("success", "cancelled")}
    print(f"  clients saw {dict(seen)}")
    print(f"  queue stats {summary}")
    print(f"  metrics     {counted}, loads {loads}")


async def _random_client(
    session: aiohttp.ClientSession,
    url: str,
    names: Sequence[str],
    chance: random.Random,
    deadline: float,
    seen: Counter[str],
) -> None:
    while time.monotonic() < deadline:
        body = chat(chance.choice(names), max_tokens=chance.randint(1, 150), stream=chance.random() < 0.5)
        headers = {"X-Request-Priority": chance.choice(["high", "normal", "low"])}
        patience = chance.uniform(0.01, 2.0) if chance.random() < 0.3 else 60.0
        try:
            seen[await asyncio.wait_for(_outcome(session, url, body, headers), patience)] += 1
        except asyncio.TimeoutError:
            seen["left"] += 1


async def _outcome(
    session: aiohttp.ClientSession, url: str, body: dict[str, Any], headers: dict[str, str]
) -> str:
    async with session.post(f"{url}/v1/chat/completions", json=body, headers=headers) as answer:
        text = await answer.text()
    whole = (
        text.count("data: [DONE]") == 1 if body["stream"] else text.count('"object":"chat.completion"') == 1
    )
    return f"{answer.status}" if whole or answer.status != 200 else "broken"


def _outcomes(answers: Sequence[Answer]) -> str:
    return ", ".join(
        f"{count} x {status}" for status, count in sorted(Counter(a.status for a in answers).items())
    )


SCENARIOS: dict[str, Callable[[], Awaitable[None]]] = {
    "burst": burst,
    "burst_of_three": burst_of_three,
    "closed_loop": closed_loop,
    "priority": priority,
    "random": random_traffic,
}


def main() -> None:
    for name in sys.argv[1:] or SCENARIOS:
        print(f"{name}: {SCENARIOS[name].__doc__}")
        asyncio.run(SCENARIOS[name]())  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
