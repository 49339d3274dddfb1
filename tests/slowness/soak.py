"""Random slowness and real hangs for SLOW_MINUTES: is any process judged wrongly?

`python -m tests.slowness.soak` ends with 1 if a process that did not hang was ended, if one that hung was not
replaced within twice its limit and 10 s, or if a request to a model that did not hang failed. Stand-ins are
slow in every phase; real llama-servers are frozen or stopped; now and then the router itself is stopped.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests import llama_build
from tests.freezing import frozen_thread
from tests.ggufs import make_tiny
from tests.router_process import RouterProcess, chat
from tests.slowness.server import Plan, stand_in
from tests.soaks import ended

MINUTES = float(os.environ.get("SLOW_MINUTES", "120"))
SEED = int(os.environ.get("SLOW_SEED", "1"))
LIMIT_S = 8.0
FOUND_WITHIN_S = 2 * LIMIT_S + 10
STEP_S = (0.02, 0.2, 1.0, 0.6 * LIMIT_S)
"""Between two tokens of a healthy process: never near the limit."""

ANSWER_TIMEOUT_S = 300.0
REST_S = (5.0, 40.0)
LOOK_S = 0.2
TELL_S = 300.0
STAND_INS, REAL = 5, 3
SLOTS = (1, 2, 4)
WAKING_S = 3.0
"""After a pause of the router nothing is judged for a moment."""

ASK = "/v1/chat/completions"


@dataclass
class Hang:
    """Of one process, from then on; it ends when that one is gone."""

    pid: int
    kind: str
    begun: float
    ended: float | None = None


@dataclass
class Model:
    alias: str
    slots: int
    is_real: bool
    hangs: list[Hang] = field(default_factory=list)
    ejected: set[int] = field(default_factory=set)
    """Processes that may go."""
    pid: int | None = None
    is_ready: bool = False

    def hung_in(self, begun: float, ended: float) -> bool:
        return any(h.begun <= ended and (h.ended is None or h.ended >= begun) for h in self.hangs)


class Soak:
    def __init__(self, router: RouterProcess, models: list[Model], seed: int) -> None:
        self.router, self.models, self.seed = router, models, seed
        self.wrong: list[str] = []
        self.counts: Counter[str] = Counter()
        self.found_s: list[float] = []
        self.paused_s = 0.0
        """How long the router was stopped so far."""
        self._may_run = asyncio.Event()
        self._may_run.set()
        self._over = asyncio.Event()
        self._began = time.monotonic()

    async def run(self, minutes: float) -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=self.router.url, trust_env=False, timeout=ANSWER_TIMEOUT_S, limits=limits
        ) as http:
            jobs = [self._watch(http), self._tell(), self._pause_router()]
            for model in self.models:
                jobs += [self._trouble(http, model)]
                jobs += [self._ask(http, model, number) for number in range(model.slots + 1)]
            tasks = [asyncio.create_task(job) for job in jobs]
            done, _ = await asyncio.wait(tasks, timeout=60 * minutes, return_when=asyncio.FIRST_EXCEPTION)
            self.wrong += [f"the soak itself: {t.exception()!r}" for t in done if t.exception()]
            self._over.set()
            await asyncio.wait(tasks, timeout=ANSWER_TIMEOUT_S)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def note(self, text: str) -> None:
        self.wrong.append(f"{time.monotonic() - self._began:.1f} s: {text}")
        print(f"  WRONG {self.wrong[-1]}", flush=True)

    # --- clients

    async def _ask(self, http: httpx.AsyncClient, model: Model, number: int) -> None:
        chance, asked = random.Random(f"{self.seed} {model.alias} {number}"), itertools.count(1000 * number)
        while not self._over.is_set():
            tokens = chance.choice((1, 8, 30)) * (40 if model.is_real else 1)
            body = chat(
                model.alias, max_tokens=tokens, stream=chance.random() < 0.5, content=f"{next(asked)}"
            )
            leaves_in_s = chance.uniform(0.1, LIMIT_S) if chance.random() < 0.2 else None
            begun = time.monotonic()
            try:
                end = await asyncio.wait_for(_answer(http, body), leaves_in_s)
            except asyncio.TimeoutError:
                end = "left"
            if end not in ("whole", "left") and not model.hung_in(begun, time.monotonic()):
                self.note(f"{model.alias}: a request of {tokens} tokens after {_since(begun)}: {end}")
            self.counts[end if len(end) < 30 else "error"] += 1
            await asyncio.sleep(chance.uniform(0, 3.0 if model.is_real else 1.0))

    # --- what is done to the processes

    async def _trouble(self, http: httpx.AsyncClient, model: Model) -> None:
        chance = random.Random(f"{self.seed} {model.alias}")
        while not self._over.is_set():
            await asyncio.sleep(chance.uniform(*REST_S))
            await self._may_run.wait()
            if model.pid is None or not model.is_ready or self._over.is_set():
                continue
            kind = chance.choice(("hang", "hang", "stop", "spin", "nap", "nap", "eject", "reset"))
            self.counts[kind] += 1
            with suppress(psutil.Error, ProcessLookupError):
                await self._do(kind, http, model, model.pid, chance)

    async def _do(
        self, kind: str, http: httpx.AsyncClient, model: Model, pid: int, chance: random.Random
    ) -> None:
        if kind == "nap":
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(chance.uniform(0.2, 0.3 * LIMIT_S))
            os.kill(pid, signal.SIGCONT)
        elif kind == "eject":
            model.ejected.add(pid)
            await http.post("/v1/models/eject", json={"model": model.alias})
        elif kind == "reset":
            await self._reset(model, pid)
        else:
            await self._hang(kind, model, pid)

    async def _reset(self, model: Model, pid: int) -> None:
        """Whoever has begun loses the answer, as when a proxy between them fails; nobody's process does."""
        if model.is_real:
            return
        hang = Hang(0, "reset", time.monotonic())  # no reason to end it
        model.hangs.append(hang)
        os.kill(pid, signal.SIGHUP)
        hang.ended = time.monotonic() + 1

    async def _hang(self, kind: str, model: Model, pid: int) -> None:
        with ExitStack() as stack:
            hang = Hang(pid, kind, time.monotonic())
            model.hangs.append(hang)
            if model.is_real and kind == "hang":
                stack.enter_context(frozen_thread(pid))
            else:
                numbers = {"hang": signal.SIGUSR1, "spin": signal.SIGUSR2}
                os.kill(pid, signal.SIGSTOP if model.is_real else numbers.get(kind, signal.SIGSTOP))
            await self._replaced(model, hang)
        hang.ended = time.monotonic() + 1  # whoever was in it hears of it in a moment

    async def _replaced(self, model: Model, hang: Hang) -> None:
        paused_s = self.paused_s
        while model.pid == hang.pid and psutil.pid_exists(hang.pid):
            await asyncio.sleep(LOOK_S)
            await self._may_run.wait()
            took_s = time.monotonic() - hang.begun - (self.paused_s - paused_s)
            if took_s > FOUND_WITHIN_S:
                self.note(f"{model.alias}: pid {hang.pid}, {hang.kind}: not found after {took_s:.1f} s")
                os.kill(hang.pid, signal.SIGKILL)
                return
        self.found_s.append(time.monotonic() - hang.begun - (self.paused_s - paused_s))

    async def _pause_router(self) -> None:
        chance = random.Random(f"{self.seed} router")
        while not self._over.is_set():
            await asyncio.sleep(chance.uniform(30, 180))
            if self._over.is_set():
                return
            self.counts["router stopped"] += 1
            self._may_run.clear()
            begun = time.monotonic()
            self.router.signal(signal.SIGSTOP)
            await asyncio.sleep(chance.choice((2.0, 5.0, 20.0, 40.0)))
            self.router.signal(signal.SIGCONT)
            self.paused_s += time.monotonic() - begun + WAKING_S
            self._may_run.set()

    # --- what is seen

    async def _watch(self, http: httpx.AsyncClient) -> None:
        """Every end of a process has its reason."""
        while not self._over.is_set():
            await asyncio.sleep(LOOK_S)
            status = (await http.get("/v1/models/status")).json()["models"]
            for model in self.models:
                pid = status[model.alias].get("pid")
                model.is_ready = status[model.alias]["status"] == "ready"
                if pid == model.pid:
                    continue
                gone, model.pid = model.pid, pid
                is_due = gone in model.ejected or any(h.pid == gone for h in model.hangs)
                if gone is not None and not is_due:
                    self.note(f"{model.alias}: pid {gone} was ended, and did not hang")
                self.counts["loads"] += pid is not None

    async def _tell(self) -> None:
        next_at, worst_s = time.monotonic() + TELL_S, 0.0
        while not self._over.is_set():
            begun = time.monotonic()
            await asyncio.sleep(LOOK_S)
            worst_s = max(worst_s, time.monotonic() - begun - LOOK_S)
            if begun >= next_at:
                next_at += TELL_S
                self.tell()
                print(f"  this program itself came late by up to {worst_s:.1f} s", flush=True)
                worst_s = 0.0

    def tell(self) -> None:
        minutes = (time.monotonic() - self._began) / 60
        longest = f"{max(self.found_s):.1f} s" if self.found_s else "none"
        print(f"  {minutes:.0f} min: {dict(sorted(self.counts.items()))}", flush=True)
        print(f"  {len(self.found_s)} hangs ended, the longest after {longest}", flush=True)
        print(f"  {len(self.wrong)} wrong verdicts", flush=True)


async def _answer(http: httpx.AsyncClient, body: dict[str, Any]) -> str:
    """`whole`, or what went wrong."""
    try:
        answer = await http.post(ASK, json=body)
    except httpx.TransportError as error:
        return repr(error)
    if answer.status_code != 200:
        return f"{answer.status_code} {answer.text[:200]}"
    if body["stream"] and not answer.text.endswith("data: [DONE]\n\n"):
        return f"ends with {answer.text[-200:]!r}"
    return "whole"


def _since(begun: float) -> str:
    return f"{time.monotonic() - begun:.1f} s"


def any_plan(chance: random.Random, slots: int, counts: Path) -> Plan:
    """Slow everywhere, and nowhere as long as a limit."""
    return Plan(
        slots=slots,
        seed=chance.randrange(1_000_000),
        counts=str(counts),
        bind_s=chance.choice((0.0, 0.5, 2.9, 3.1, 6.0)),
        silent_s=chance.choice((0.0, 0.0, 3.5, 8.0)),
        load_s=chance.choice((0.0, 1.0, 4.0)),
        reports=chance.random() < 0.5,
        health_s=chance.choice(((0.0,), (0.0, 0.0, 6.0), (0.5,), (3.0, 8.0))),
        props_s=chance.choice(((0.0,), (2.0,))),
        slots_s=chance.choice(((0.0,), (0.0, 2.0))),
        read_s=chance.choice(((0.0,), (0.0, 0.6 * LIMIT_S))),
        step_s=STEP_S,
        tells_of_hangs=chance.random() < 0.5,
        is_quiet=chance.random() < 0.5,
    )


def entries(folder: Path, models: list[Model], seed: int) -> dict[str, dict[str, Any]]:
    tiny = make_tiny(folder / "tiny.gguf", context=131072)
    found: dict[str, dict[str, Any]] = {}
    for model in models:
        chance = random.Random(f"{seed} plan {model.alias}")
        entry: dict[str, Any] = {"model_path": tiny, "parallel_requests": model.slots}
        if model.is_real:
            entry |= {"extra_args": chance.choice(([], ["-lv", "1"])), "params": {"n_ctx": 8192}}
        else:
            plan = any_plan(chance, model.slots, folder / f"{model.alias}.starts")
            print(f"  {model.alias}: {plan}", flush=True)
            entry["env"] = plan.env()
        found[model.alias] = entry
    return found


@contextmanager
def running(folder: Path, models: list[Model], seed: int) -> Iterator[RouterProcess]:
    system = {
        "request_timeout_sec": int(LIMIT_S),
        "health_check_interval_sec": 5,
        "load_timeout_sec": 40,
        "load_max_retries": 0,
        "max_restarts": 1_000_000,
        "restart_window_sec": 2,
        "drain_timeout_sec": int(ANSWER_TIMEOUT_S),
        "max_concurrent_models": len(models),
        "queue_timeout_sec": 300,
        "log_level": "info",
    }
    binary = stand_in(folder, llama_build.of())
    router = RouterProcess(folder / "router", binary, entries(folder, models, seed), system=system)
    router.start()
    try:
        yield router.wait_until_it_answers()
    finally:
        router.stop()


def main() -> int:
    print(f"soak of slowness: {MINUTES:g} minutes, seed {SEED}, limit {LIMIT_S:g} s", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="slowness-"))
    models = [Model(f"stand-in-{i}", SLOTS[i % len(SLOTS)], False) for i in range(STAND_INS)]
    models += [Model(f"real-{i}", SLOTS[i % len(SLOTS)], True) for i in range(REAL)]
    with running(folder, models, SEED) as router:
        soak = Soak(router, models, SEED)
        asyncio.run(soak.run(MINUTES))
    soak.tell()
    return ended(soak.wrong, folder, "no process was judged wrongly")


if __name__ == "__main__":
    sys.exit(main())
