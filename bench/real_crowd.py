"""The crowd in front of real routers, in turns: `python -m bench.real_crowd [--load S] [--users 6,4,2] ...`.

Everybody asks a tiny model on real servers, which are made as slow as with a large one. Beside this router:
llama-server's own router mode, and llama-swap and Ollama where they are found in PATH or named. With
`--results FILE` evenings are kept there, and the tables show all that it holds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp

from app.domain.priority import Priority
from bench.crowd import HEADER, Evening, Question, row
from bench.real_routers import Pace, Router, Stage, llama_swap, ollama, ours, router_mode
from tests.router_process import chat

OURS = "this router"
MAY_BE_LOST = 0.01


@dataclass(frozen=True)
class Run:
    """One evening in front of one router."""

    crowd: str
    router: str
    seen: Evening

    def as_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Run:
        found = json.loads(line)
        seen = found["seen"]
        asked = [Question(**{**q, "level": Priority(q["level"])}) for q in seen["questions"]]
        return cls(found["crowd"], found["router"], Evening(seen["length_s"], seen["loads"], asked))


def evening_of(router: Router, options: argparse.Namespace, seed: int) -> Evening:
    with tempfile.TemporaryDirectory(prefix="crowd-") as name:
        models, place = Path(name) / "models", Path(name) / "router"
        models.mkdir()
        place.mkdir()
        pace = Pace(options.load, options.step, options.token)
        stage = Stage(models, _users(options), pace)
        with router(stage, place) as url:
            return asyncio.run(evening(url, stage, options, seed))


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
        tokens = chance.randint(options.tokens // 8, options.tokens)
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


# --- the tables


def show(runs: Sequence[Run]) -> None:
    for crowd in dict.fromkeys(run.crowd for run in runs):
        print(f"\n**{crowd}**\n\n{HEADER}")
        seen = {
            name: together([run.seen for run in runs if (run.crowd, run.router) == (crowd, name)])
            for name in dict.fromkeys(run.router for run in runs if run.crowd == crowd)
        }
        for name, evening in seen.items():
            _show_one(name, evening)
        if OURS in seen and len(seen) > 1:
            print()
            _compare(seen.pop(OURS), list(seen.values()))


def together(evenings: Sequence[Evening]) -> Evening:
    asked = [question for evening in evenings for question in evening.questions]
    return Evening(sum(e.length_s for e in evenings), sum(e.loads for e in evenings), asked)


def _show_one(name: str, seen: Evening) -> None:
    print(row(name, seen))
    for alias in sorted({q.alias for q in seen.questions}):
        _part(f"of {alias}", seen, lambda q, a=alias: q.alias == a)
    if any(q.level is Priority.HIGH for q in seen.questions):
        for level in (Priority.HIGH, Priority.NORMAL):
            _part(f"of {level.label} priority", seen, lambda q, p=level: q.level is p)


def _part(name: str, seen: Evening, of: Any) -> None:
    part = Evening(seen.length_s, 0, [q for q in seen.questions if of(q)])
    print(row(f"&nbsp;&nbsp;{name}, p95 {part.quantile(0.95):.2f}", part))


Figure = Callable[[Evening], float]
FIGURES: dict[str, tuple[Figure, Callable[[Sequence[float]], float]]] = {
    "p50 s": (lambda e: e.quantile(0.5), min),
    "p99 s": (lambda e: e.quantile(0.99), min),
    "longest s": (lambda e: e.quantile(1.0), min),
    "mean s": (lambda e: e.mean, min),
    "answers/min": (lambda e: e.answers_per_min, max),
    "loads/h": (lambda e: 3600 * e.loads / e.length_s, min),
}


def _compare(ours: Evening, others: Sequence[Evening]) -> None:
    """In each figure beside the best of the others, but for those that lost many answers."""
    others = [other for other in others if other.lost <= MAY_BE_LOST * len(other.questions)] or others
    print("| | this router | the best of the others | ratio |\n| --- | --- | --- | --- |")
    for name, (figure, best) in FIGURES.items():
        mine, theirs = figure(ours), best([figure(other) for other in others])
        print(f"| {name} | {mine:.2f} | {theirs:.2f} | {mine / theirs:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--load", type=float, default=3.0, help="seconds that a start takes longer")
    parser.add_argument("--users", default="6,4,2", help="of each model")
    parser.add_argument("--think", type=float, default=4.0, help="mean seconds between two questions")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--step", type=float, default=0.02, help="seconds that each token takes longer")
    parser.add_argument("--token", type=float, default=0.0003, help="and each one of a prompt")
    parser.add_argument("--tokens", type=int, default=50, help="of the longest answers")
    parser.add_argument("--rounds", type=int, default=1, help="0: only show what --results holds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--high", type=float, default=0.0, help="share of users with high priority")
    parser.add_argument("--llama-swap", default=shutil.which("llama-swap"))
    parser.add_argument("--ollama", default=shutil.which("ollama"))
    parser.add_argument("--only", default="", help="of the routers, by a part of their names")
    parser.add_argument("--results", type=Path, help="a file of evenings to add to")
    options = parser.parse_args()
    runs, title = _kept(options.results), f"{options.users} users, load {options.load:g} s"
    for turn in range(options.rounds):
        for name, router in _routers(options).items():
            runs.append(Run(title, name, evening_of(router, options, options.seed + turn)))
            if options.results:
                with options.results.open("a") as file:
                    file.write(runs[-1].as_json() + "\n")
            print(f"{title}, {name}, seed {options.seed + turn}: {runs[-1].seen.loads} loads", flush=True)
    show(runs)


def _kept(results: Path | None) -> list[Run]:
    if results is None or not results.exists():
        return []
    return [Run.from_json(line) for line in results.read_text().splitlines()]


def _users(options: argparse.Namespace) -> dict[str, int]:
    return {"abcdefghijkl"[i]: int(n) for i, n in enumerate(options.users.split(","))}


def _routers(options: argparse.Namespace) -> dict[str, Router]:
    known: dict[str, Router] = {OURS: ours, "router mode": router_mode}
    if options.llama_swap:
        known["llama-swap"] = llama_swap(options.llama_swap)
    if options.ollama:
        known["Ollama"] = ollama(options.ollama)
    return {name: router for name, router in known.items() if options.only in name}


if __name__ == "__main__":
    main()
