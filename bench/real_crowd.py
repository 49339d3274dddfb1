"""The crowd in front of real routers, in turns: `python -m bench.real_crowd [--load S] [--users 6,4,2] ...`.

Everybody asks a tiny model on real llama-servers, whose start is made as slow as a large model's. Beside this
router: llama-server's own router mode, and llama-swap, if there is one in PATH or named by --llama-swap.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import httpx

from app.domain.priority import Priority
from bench.crowd import HEADER, Evening, Question, row
from bench.peers import RouterMode
from tests import llama_build
from tests.ggufs import make_tiny
from tests.ports import free_port
from tests.router_process import RouterProcess, chat, until_now
from tests.shared_library import compile_library

N_CTX, SLOTS, ROOM = 32768, 2, 2
STARTS = Path(__file__).with_name("slow_start.c")


class Stage:
    """The models' files, and how their servers are started."""

    def __init__(self, folder: Path, users: Mapping[str, int], load_s: float) -> None:
        self.folder, self.users = folder, users
        self.llama_server = llama_build.of()
        self._count = folder / "starts"
        for seed, alias in enumerate(users):
            make_tiny(folder / f"{alias}.gguf", context=N_CTX, seed=seed)
        self.env = {
            "LD_PRELOAD": str(compile_library(STARTS, folder / "slow_start.so")),
            "SLOW_START_S": str(load_s),
            "SLOW_START_COUNT": str(self._count),
        }

    @property
    def starts(self) -> int:
        return self._count.stat().st_size if self._count.exists() else 0


@contextmanager
def ours(stage: Stage, folder: Path) -> Iterator[str]:
    models = {
        alias: {"model_path": stage.folder / f"{alias}.gguf", "params": {"n_ctx": N_CTX}, "env": stage.env}
        for alias in stage.users
    }
    system = {"max_concurrent_models": ROOM, "parallel_requests": SLOTS, "cpu_threads": 1}
    router = RouterProcess(folder, stage.llama_server, models, system=system)
    router.start()
    try:
        yield router.wait_until_it_answers().url
    finally:
        router.stop()


@contextmanager
def router_mode(stage: Stage, folder: Path) -> Iterator[str]:
    flags = ["-np", str(SLOTS), "-c", str(N_CTX * SLOTS), "-t", "1"]
    os.environ.update(stage.env)
    try:
        with RouterMode(
            stage.llama_server, stage.folder, flags, folder / "peer.log", max_models=ROOM
        ) as peer:
            yield peer.url
    finally:
        for name in stage.env:
            del os.environ[name]


@contextmanager
def llama_swap(stage: Stage, folder: Path, program: str, *, reverse: bool = False) -> Iterator[str]:
    aliases = sorted(stage.users, reverse=reverse)
    pairs = [f"{a} & {b}" for i, a in enumerate(aliases) for b in aliases[i + 1 :]]
    command = f"{stage.llama_server} --port ${{PORT}} --host 127.0.0.1 -np {SLOTS} -c {N_CTX * SLOTS} -t 1"
    command += " --cache-ram 0 --offline -ngl 0 -m "
    config = {
        "healthCheckTimeout": 120,
        "startPort": free_port(),
        "models": {
            alias: {
                "cmd": command + str(stage.folder / f"{alias}.gguf"),
                "proxy": "http://127.0.0.1:${PORT}",
                "concurrencyLimit": 100,
                "env": [f"{name}={value}" for name, value in stage.env.items()],
            }
            for alias in aliases
        },
        "routing": {
            "router": {
                "use": "matrix",
                "settings": {"matrix": {"sets": {f"s{i}": pair for i, pair in enumerate(pairs)}}},
            }
        },
    }
    path, address = folder / "llama-swap.yaml", f"127.0.0.1:{free_port()}"
    path.write_text(json.dumps(config))  # which is YAML too
    with (folder / "llama-swap.log").open("wb") as log:
        process = subprocess.Popen(
            [program, "--config", str(path), "--listen", address], stdout=log, stderr=log, cwd=folder
        )
    try:
        until_now(lambda: _answers(f"http://{address}/v1/models"))
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(30)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


# --- people


async def evening(url: str, stage: Stage, options: argparse.Namespace, seed: int) -> Evening:
    before, seen = stage.starts, Evening(options.seconds)
    timeout = aiohttp.ClientTimeout(total=None, sock_read=300)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        deadline, levels = time.monotonic() + options.seconds, random.Random(f"{seed} levels")
        people = []
        for alias, count in stage.users.items():
            for number in range(count):
                level = Priority.HIGH if levels.random() < options.high else Priority.NORMAL
                chance = random.Random(f"{seed} {alias} {number}")
                people.append(_person(session, url, alias, level, chance, deadline, options, seen))
        await asyncio.gather(*people)
    seen.loads = stage.starts - before
    return seen


async def _person(
    session: aiohttp.ClientSession,
    url: str,
    alias: str,
    level: Priority,
    chance: random.Random,
    deadline: float,
    options: argparse.Namespace,
    seen: Evening,
) -> None:
    await asyncio.sleep(chance.uniform(0, options.think))
    while (asked := time.monotonic()) < deadline:
        tokens = chance.randint(50, 400)
        body = chat(alias, max_tokens=tokens, content="word " * chance.randint(10, 400), stream=True)
        headers = {"X-Request-Priority": level.label}
        first_word_s = await _ask(session, f"{url}/v1/chat/completions", body, headers)
        if asked + (0 if first_word_s != first_word_s else first_word_s) < deadline:
            seen.questions.append(Question(alias, level, asked, first_word_s))
        await asyncio.sleep(chance.expovariate(1 / options.think))


async def _ask(
    session: aiohttp.ClientSession, url: str, body: dict[str, Any], headers: dict[str, str]
) -> float:
    """Seconds to the first word; not a number where the answer was not whole."""
    asked, first, whole = time.monotonic(), float("nan"), False
    try:
        async with session.post(url, json=body, headers=headers) as answer:
            async for line in answer.content:
                if line.startswith(b"data: {") and b'"choices"' in line and first != first:
                    first = time.monotonic() - asked
                whole |= line.startswith(b"data: [DONE]")
    except (aiohttp.ClientError, asyncio.TimeoutError):
        pass
    return first if whole else float("nan")


# --- the table


def show(name: str, seen: Evening, stage: Stage) -> None:
    print(row(name, seen), flush=True)
    for alias in stage.users:
        _part(f"of {alias}", seen, lambda q, a=alias: q.alias == a)
    if any(q.level is Priority.HIGH for q in seen.questions):
        for level in (Priority.HIGH, Priority.NORMAL):
            _part(f"of {level.label} priority", seen, lambda q, p=level: q.level is p)


def _part(name: str, seen: Evening, of: Any) -> None:
    part = Evening(seen.length_s, 0, [q for q in seen.questions if of(q)])
    print(row(f"&nbsp;&nbsp;{name}, p95 {part.quantile(0.95):.2f}", part), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--load", type=float, default=3.0, help="seconds that a start takes longer")
    parser.add_argument("--users", default="6,4,2", help="of each model")
    parser.add_argument("--think", type=float, default=4.0, help="mean seconds between two questions")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--high", type=float, default=0.0, help="share of users with high priority")
    parser.add_argument("--llama-swap", default=shutil.which("llama-swap"))
    parser.add_argument("--only", default="", help="of the routers, by a part of their names")
    options = parser.parse_args()
    users = {"abcdefghijkl"[i]: int(n) for i, n in enumerate(options.users.split(","))}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "models").mkdir()
        stage = Stage(Path(folder) / "models", users, options.load)
        print(f"{options.users} users, load {options.load:g} s, {options.seconds:g} s\n\n{HEADER}")
        for turn in range(options.rounds):
            for name, router in _routers(options).items():
                place = Path(folder) / f"{turn} {name}".replace(" ", "-")
                place.mkdir()
                with router(stage, place) as url:
                    seen = asyncio.run(evening(url, stage, options, options.seed + turn))
                show(name, seen, stage)


def _routers(options: argparse.Namespace) -> dict[str, Any]:
    known: dict[str, Any] = {"this router": ours, "router mode": router_mode}
    if program := options.llama_swap:
        known["llama-swap"] = lambda stage, folder: llama_swap(stage, folder, program)
    return {name: router for name, router in known.items() if options.only in name}


if __name__ == "__main__":
    main()
