"""Slow and stuck processes one kind after the other, counted: `python -m tests.slowness.lines [NAME ...]`.

Each line is tried ROUNDS times (20) with real processes, and ends in a row: how often it came out right, and
the longest time that it took. It takes about an hour for all of them.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil

from tests import llama_build
from tests.freezing import frozen_thread
from tests.ggufs import make_tiny
from tests.router_process import RouterProcess, chat
from tests.slowness.server import Plan, stand_in

ROUNDS = int(os.environ.get("ROUNDS", "20"))
LIMIT_S = 5
FOUND_WITHIN_S = 2 * LIMIT_S + 10
ASK = "/v1/chat/completions"
LONG = {"n_ctx": 65536}


@dataclass
class Row:
    name: str
    right: int = 0
    tried: int = 0
    longest_s: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def note(self, wrong: str = "", took_s: float = 0.0) -> None:
        self.tried += 1
        self.right += not wrong
        self.longest_s = max(self.longest_s, took_s)
        if wrong:
            self.wrong.append(wrong)

    def __str__(self) -> str:
        told = f"{self.name:64} {self.right:3} of {self.tried:3}   longest {self.longest_s:6.1f} s"
        return "\n".join([told, *(f"    {wrong[:300]}" for wrong in self.wrong[:5])])


Line = Callable[[Path], Awaitable[list[Row]]]
LINES: dict[str, Line] = {}


def line(run: Line) -> Line:
    LINES[run.__name__] = run
    return run


@contextmanager
def routing(
    folder: Path, plans: Mapping[str, Plan | dict[str, Any]], **system: Any
) -> Iterator[RouterProcess]:
    """A model for each plan; what is no plan is the rest of the entry of a real one."""
    tiny = make_tiny(folder / "tiny.gguf", context=131072)
    models: dict[str, dict[str, Any]] = {}
    for alias, plan in plans.items():
        more = {"env": plan.env(), "parallel_requests": plan.slots} if isinstance(plan, Plan) else plan
        models[alias] = {"model_path": tiny, "params": LONG, **more}
    usual = {"request_timeout_sec": LIMIT_S, "max_restarts": 1_000_000, "restart_window_sec": 2}
    options = {**usual, "max_concurrent_models": len(models), "load_max_retries": 0, **system}
    binary = stand_in(folder, llama_build.of())
    router = RouterProcess(folder / "router", binary, models, system={**options, "log_level": "info"})
    router.start()
    try:
        yield router.wait_until_it_answers()
    finally:
        router.stop()


async def told(http: httpx.AsyncClient, body: dict[str, Any], timeout_s: float = 300) -> str:
    """Empty for a whole answer, else what came instead."""
    try:
        answer = await http.post(ASK, json=body, timeout=timeout_s)
    except httpx.TimeoutException:
        return "left"
    except httpx.TransportError as error:
        return repr(error)
    if answer.status_code != 200:
        return f"{answer.status_code} {answer.text}"
    return "" if not body.get("stream") or answer.text.endswith("[DONE]\n\n") else answer.text[-200:]


async def pid_of(http: httpx.AsyncClient, alias: str) -> int | None:
    found: int | None = (await http.get(f"/v1/models/{alias}/status")).json()["pid"]
    return found


async def replaced(http: httpx.AsyncClient, alias: str, pid: int, within_s: float) -> bool:
    ends = time.monotonic() + within_s
    while time.monotonic() < ends:
        if await pid_of(http, alias) not in (pid, None):
            return True
        await asyncio.sleep(0.1)
    return False


# --- stuck


@line
async def frozen(folder: Path) -> list[Row]:
    """The classic hang: the main loop stands, /health answers. Clients that wait, and clients that leave."""
    rows = []
    for slots in (1, 4):
        for patience_s in (60.0, 0.6):
            row = Row(f"main loop frozen, {slots} slots, clients wait {patience_s:g} s: found")
            with routing(folder, {"a": {"parallel_requests": slots}}) as router:
                async with router.open_client() as http:
                    for _ in range(ROUNDS):
                        row.note(*await _one_hang(router, http, slots, patience_s, _freeze))
            rows.append(row)
    return rows


@line
async def stopped(folder: Path) -> list[Row]:
    row = Row("SIGSTOP, found and replaced")
    with routing(folder, {"a": {"parallel_requests": 2}}) as router:
        async with router.open_client() as http:
            for _ in range(ROUNDS):
                row.note(*await _one_hang(router, http, 2, 60.0, _stop))
    return [row]


@line
async def spins(folder: Path) -> list[Row]:
    rows = []
    for tells in (True, False):
        row = Row(f"a main loop that spins, {'slots told' if tells else 'slots not told'}: found")
        with routing(folder, {"a": Plan(slots=2, tells_of_hangs=tells)}) as router:
            async with router.open_client() as http:
                for _ in range(ROUNDS):
                    row.note(*await _one_hang(router, http, 2, 60.0, _spin))
        rows.append(row)
    return rows


Hang = Callable[[int], Any]


async def _one_hang(
    router: RouterProcess, http: httpx.AsyncClient, clients: int, patience_s: float, hang: Hang
) -> tuple[str, float]:
    await http.post("/v1/models/load?wait=true", json={"model": "a"})
    pid = await pid_of(http, "a")
    assert pid is not None
    over = asyncio.Event()

    async def ask(number: int) -> None:
        while not over.is_set():
            stream = number % 2 == 1
            await told(http, chat("a", stream=stream, content=f"{number}"), patience_s)
            await asyncio.sleep(0.1)

    with hang(pid):
        begun = time.monotonic()
        asking = [asyncio.create_task(ask(number)) for number in range(clients)]
        is_found = await replaced(http, "a", pid, FOUND_WITHIN_S)
        took_s = time.monotonic() - begun
    over.set()
    if not is_found:
        with suppress(psutil.Error):
            psutil.Process(pid).kill()
    await asyncio.gather(*asking)
    return ("" if is_found else "not found", took_s)


def _freeze(pid: int) -> Any:
    return frozen_thread(pid)


@contextmanager
def _stop(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    yield


@contextmanager
def _spin(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGUSR2)
    yield


# --- slow


async def _healthy(
    router: RouterProcess, name: str, bodies: list[dict[str, Any]], rounds: int = ROUNDS
) -> Row:
    """Each round asks all of them at once: whole answers, from the process that was there."""
    row = Row(name)
    aliases = {str(body["model"]) for body in bodies}
    async with router.open_client() as http:
        for alias in aliases:
            loaded = await http.post("/v1/models/load?wait=true", json={"model": alias}, timeout=300)
            if loaded.status_code != 200:
                row.note(f"load: {loaded.text}")
                return row
        pids = {alias: await pid_of(http, alias) for alias in aliases}
        for _ in range(rounds):
            begun = time.monotonic()
            wrong = "; ".join(filter(None, await asyncio.gather(*(told(http, body) for body in bodies))))
            for alias, pid in pids.items():
                if await pid_of(http, alias) != pid:
                    wrong += f"; {alias} was replaced"
                    pids[alias] = await pid_of(http, alias)
            row.note(wrong, time.monotonic() - begun)
    return row


@line
async def quiet_logs(folder: Path) -> list[Row]:
    """Answers of twice the limit and more, plain and streamed, from processes that log nothing."""
    plans: dict[str, Plan | dict[str, Any]] = {
        "slow": Plan(slots=2, step_s=(1.0,)),
        "very-slow": Plan(slots=2, step_s=(0.7 * LIMIT_S,)),
        "dumb": Plan(slots=2, step_s=(1.0,), tells_slots=False, is_quiet=False),
    }
    with routing(folder, plans) as router:
        bodies = [chat(a, max_tokens=12, stream=s) for a in ("slow", "very-slow") for s in (False, True)]
        return [
            await _healthy(router, f"plain and streamed answers longer than {LIMIT_S} s, quiet log", bodies)
        ]


@line
async def four_sdk_clients(folder: Path) -> list[Row]:
    """One answer takes 60 s, and everybody's SDK repeats what fails."""
    row = Row("60 s for an answer, four clients of the OpenAI SDK, as many generations")
    counts = folder / "tasks"
    plan = Plan(slots=1, step_s=(2.0,), counts_tasks=str(counts))
    with routing(folder, {"a": plan}) as router:
        router.load("a")
        sdk = openai.AsyncOpenAI(base_url=f"{router.url}/v1", api_key="unused")
        begun = time.monotonic()
        message: Any = {"role": "user", "content": "Hello"}
        asked = (sdk.chat.completions.create(model="a", messages=[message], max_tokens=30) for _ in range(4))
        found = await asyncio.gather(*asked, return_exceptions=True)
        generations = counts.stat().st_size
        failed = [repr(answer) for answer in found if isinstance(answer, BaseException)]
        wrong = "; ".join(failed) or ("" if generations == 4 else f"{generations} generations")
        row.note(wrong, time.monotonic() - begun)
    return [row]


@line
async def slow_health(folder: Path) -> list[Row]:
    """Asked every second."""
    rows = []
    for health_s in (6.0, 8.0):
        plan = Plan(slots=2, health_s=(health_s,), step_s=(1.0,), props_s=(6.0,))
        with routing(folder, {"a": plan}, health_check_interval_sec=1) as router:
            bodies = [chat("a", max_tokens=12), chat("a", max_tokens=12, stream=True)]
            name = f"/health takes {health_s:g} s and /props 6 s: loads, and stays"
            rows.append(await _healthy(router, name, bodies, max(ROUNDS // 2, 1)))
    return rows


@line
async def stopped_for_a_while(folder: Path) -> list[Row]:
    """With the default limit: nothing of that is a hang."""
    row = Row("process stopped for 25 s: the same one answers")
    system = {"request_timeout_sec": 120, "health_check_interval_sec": 1}
    with routing(folder, {"a": {"parallel_requests": 2}}, **system) as router:
        router.load("a")
        async with router.open_client() as http:
            for _ in range(max(ROUNDS // 3, 1)):
                pid = await pid_of(http, "a")
                assert pid is not None
                begun = time.monotonic()
                os.kill(pid, signal.SIGSTOP)
                bodies = [chat("a", stream=stream) for stream in (False, True)]
                asked = [asyncio.create_task(told(http, body)) for body in bodies]
                await asyncio.sleep(25)
                os.kill(pid, signal.SIGCONT)
                wrong = "; ".join(filter(None, await asyncio.gather(*asked)))
                is_same = await pid_of(http, "a") == pid
                row.note(wrong or ("" if is_same else "replaced"), time.monotonic() - begun)
    return [row]


@line
async def resets(folder: Path) -> list[Row]:
    """N streams reset at one moment, while /health takes its time."""
    row = Row("3 to 8 streams reset at one moment, /health takes 6 s: it stays")
    plan = Plan(slots=8, health_s=(6.0,), step_s=(0.2,))
    with routing(folder, {"a": plan}, request_timeout_sec=60) as router:
        router.load("a")
        async with router.open_client() as http:
            for number in range(ROUNDS):
                pid = await pid_of(http, "a")
                assert pid is not None
                bodies = [chat("a", max_tokens=1000, stream=True) for _ in range(3 + number % 6)]
                asked = [asyncio.create_task(told(http, body)) for body in bodies]
                await asyncio.sleep(1)
                begun = time.monotonic()
                os.kill(pid, signal.SIGHUP)
                await asyncio.gather(*asked)
                after = await told(http, chat("a", max_tokens=2))
                is_same = await pid_of(http, "a") == pid
                row.note(after or ("" if is_same else "replaced"), time.monotonic() - begun)
    return [row]


# --- loads


@line
async def late_ports(folder: Path) -> list[Row]:
    """One process for each load."""
    late = (2.9, 3.0, 3.1, 5.5, 20.0, 20.0)
    rows = []
    for silent_s in (0.0, 8.0):
        row = Row(
            f"six at a time, ports late by {', '.join(map(str, late[:5]))} s, then mute for {silent_s:g} s"
        )
        plans: dict[str, Plan | dict[str, Any]] = {
            f"m{i}": Plan(bind_s=s, silent_s=silent_s, counts=str(folder / f"starts-{silent_s}-{i}"))
            for i, s in enumerate(late)
        }
        with routing(folder, plans) as router:
            async with router.open_client() as http:
                for turn in range(1, 6):
                    begun = time.monotonic()
                    wrong = await asyncio.gather(*(told(http, chat(alias)) for alias in plans))
                    starts = [(folder / f"starts-{silent_s}-{i}").stat().st_size for i in range(len(late))]
                    text = "; ".join(filter(None, wrong)) or ("" if starts == [turn] * 6 else f"{starts}")
                    row.note(text, time.monotonic() - begun)
                    router.eject(*plans)
        rows.append(row)
    return rows


@line
async def odd_loads(folder: Path) -> list[Row]:
    plans: dict[str, Plan | dict[str, Any]] = {
        "ends with 0 once": Plan(ends_with=0, counts=str(folder / "once")),
        "floods its log for 5 s": Plan(flood_s=5.0),
        "/health takes 6 s once in ten": Plan(health_s=(0.0,) * 9 + (6.0,), load_s=3.0),
    }
    rows = []
    aliases = {f"m{i}": plan for i, plan in enumerate(plans.values())}
    with routing(folder, aliases, load_max_retries=1) as router:
        async with router.open_client() as http:
            for alias, name in zip(aliases, plans, strict=True):
                row = Row(f"a load that {name}")
                cpu = sum(psutil.Process(router.pid).cpu_times()[:2])
                begun = time.monotonic()
                row.note(await told(http, chat(alias)), time.monotonic() - begun)
                cpu = sum(psutil.Process(router.pid).cpu_times()[:2]) - cpu
                row.name += f" ({cpu:.2f} CPU s of the router)"
                rows.append(row)
    return rows


# --- the router stands still


@line
async def paused(folder: Path) -> list[Row]:
    """Alone, and with its processes; answers, streams, a load, and connections that rest."""
    rows = []
    for pause_s in (5, 20, 130):
        row = Row(f"the router stopped for {pause_s} s: nothing that was answered fails")
        for with_processes in (False, True):
            plans: dict[str, Plan | dict[str, Any]] = {
                "slow": Plan(slots=2, step_s=(0.5,)),
                "late": Plan(load_s=3.0),
                "real": {"parallel_requests": 2},
            }
            with routing(folder, plans) as router:
                row.note(*await _one_pause(router, pause_s, with_processes=with_processes))
        rows.append(row)
    return rows


async def _one_pause(router: RouterProcess, pause_s: float, *, with_processes: bool) -> tuple[str, float]:
    router.load("slow", "real")
    begun = time.monotonic()
    async with router.open_client() as http:
        kept = [await _kept_connection(router) for _ in range(3)]
        pids = [await pid_of(http, alias) for alias in ("slow", "real")]
        bodies = [
            chat(a, max_tokens=n, stream=s)
            for a, n in (("slow", 10), ("real", 300), ("late", 4))
            for s in (False, True)
        ]
        asked = [asyncio.create_task(told(http, body)) for body in bodies]
        await asyncio.sleep(1)
        stopped = [router.pid, *(c.pid for c in router.children() if with_processes)]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(pause_s)
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        rested = await asyncio.gather(*(_ask_on(*connection) for connection in kept))
        wrong = "; ".join(filter(None, [*await asyncio.gather(*asked), *rested]))
        if [await pid_of(http, alias) for alias in ("slow", "real")] != pids:
            wrong += "; replaced"
    return wrong, time.monotonic() - begun


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
REQUEST = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def _kept_connection(router: RouterProcess) -> Connection:
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    assert await _ask_on(reader, writer) == ""
    return reader, writer


async def _ask_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    try:
        writer.write(REQUEST)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(x for x in head.lower().split(b"\r\n") if x.startswith(b"content-length"))
        await reader.readexactly(int(length.split(b":")[1]))
    except (OSError, asyncio.IncompleteReadError) as error:
        return f"a kept connection: {error!r}"
    return "" if head.startswith(b"HTTP/1.1 200") else f"a kept connection: {head!r}"


async def main(names: list[str]) -> int:
    print(f"{ROUNDS} rounds, request_timeout_sec {LIMIT_S}, {llama_build.of()}", flush=True)
    is_wrong = False
    for name in names or LINES:
        with tempfile.TemporaryDirectory(prefix=f"slowness-{name}-") as folder:
            for row in await LINES[name](Path(folder)):
                print(row, flush=True)
                is_wrong |= row.right < row.tried
    return int(is_wrong)


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])))
