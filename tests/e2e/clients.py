"""Clients that keep their own accounts, and traffic in which everything happens that is counted."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from app.domain.events import Outcome
from tests.router_process import RouterProcess, chat, until
from tests.streams import pieces_of

CHAT, EMBED = "/v1/chat/completions", "/v1/embeddings"
ENDLESS = 100_000
SYSTEM: dict[str, Any] = {
    "max_concurrent_models": 1,
    "max_queue_size_per_model": 2,
    "max_restarts": 100,
}
"""What `mixed_traffic` needs: room for one, a short queue."""


def fleet(tiny: Path, tiny_long: Path, truncated: Path, *, gpu: bool = False) -> dict[str, dict[str, Any]]:
    """Whoever asks `embed` has little patience."""
    params = {"n_gpu_layers": 99} if gpu else {}
    return {
        "a": {"model_path": tiny_long, "params": {**params, "n_ctx": 131072}},
        "b": {"model_path": tiny, "params": params},
        "embed": {"model_path": tiny, "params": {**params, "embedding": True}, "request_timeout_sec": 2},
        "broken": {"model_path": truncated, "params": params},
    }


class Clients:
    """Counts what its clients got, by model and outcome; tokens as the answers themselves tell them."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.tokens: Counter[tuple[str, str]] = Counter()
        self._http = http

    @property
    def total(self) -> int:
        return self.outcomes.total()

    def of(self, outcome: Outcome) -> int:
        return sum(n for (_, found), n in self.outcomes.items() if found == outcome.value)

    async def ask(self, model: str, path: str = CHAT, *, priority: str = "normal", **body: Any) -> int:
        """A plain request; its status."""
        fields = chat(model, **body) if path == CHAT else {"model": model, **body}
        answer = await self._http.post(path, json=fields, headers={"X-Request-Priority": priority})
        if answer.status_code == 200:
            self._count_tokens(model, answer.json().get("usage"))
        self._count(model, answer.status_code)
        return answer.status_code

    async def stream(self, model: str, **body: Any) -> int:
        """A stream read to its end; its status."""
        fields = chat(model, stream=True, stream_options={"include_usage": True}, **body)
        async with self._http.stream("POST", CHAT, json=fields) as answer:
            lines = "".join([piece async for piece in pieces_of(answer)]).split("\n")
        for line in lines:
            if line.startswith("data: {"):
                self._count_tokens(model, json.loads(line[6:]).get("usage"))
        self._count(model, answer.status_code)
        return answer.status_code

    async def leave(self, model: str) -> None:
        """Read the beginning of a stream and hang up."""
        fields = chat(model, stream=True, max_tokens=ENDLESS)
        async with self._http.stream("POST", CHAT, json=fields) as answer:
            await answer.aiter_bytes().__anext__()
        self.outcomes[model, Outcome.CANCELLED.value] += 1

    async def give_up(self, waiting: asyncio.Task[int], model: str) -> None:
        """Hang up before anything came."""
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting
        self.outcomes[model, Outcome.CANCELLED.value] += 1

    def _count(self, model: str, status: int) -> None:
        known = {200: Outcome.SUCCESS, 503: Outcome.REJECTED, 504: Outcome.TIMEOUT}
        self.outcomes[model, known.get(status, Outcome.ERROR).value] += 1

    def _count_tokens(self, model: str, usage: Mapping[str, int] | None) -> None:
        if usage:
            self.tokens[model, "prompt"] += usage["prompt_tokens"]
            self.tokens[model, "generated"] += usage.get("completion_tokens", 0)


async def mixed_traffic(clients: Clients, router: RouterProcess) -> None:
    """Answers, streams, swaps, errors, a model that fails, a full queue, clients that leave, crashes."""
    for priority in ("high", "low"):
        assert await clients.ask("a", priority=priority) == 200
        assert await clients.stream("b") == 200
    assert await clients.ask("embed", EMBED, input="Hello") == 200
    assert await clients.ask("b", content="the " * 3000) == 400
    assert [await clients.ask("broken") for _ in range(2)] == [424, 424]
    await clients.leave("a")
    await until(lambda: router.is_quiet("a"))
    for _ in range(2):
        await _crash(clients, router, "a")
    await _crush(clients, router, "b")
    await _silence(clients, router)
    assert await clients.ask("a", "/v1/completions", prompt="Once", max_tokens=4) == 200
    assert await clients.stream("a") == 200


async def _crash(clients: Clients, router: RouterProcess, model: str) -> None:
    """Its process dies under a request that has not begun: it is answered by the next process."""
    await clients.ask(model)
    with router.frozen(model) as process:
        waiting = asyncio.create_task(clients.ask(model))
        await until(lambda: router.status(model)["in_flight"] == 1)
        process.kill()
        assert await waiting == 200


async def _crush(clients: Clients, router: RouterProcess, model: str) -> None:
    """More requests than may wait; one of those who wait leaves."""
    await clients.ask(model)
    with router.frozen(model):
        served = asyncio.create_task(clients.ask(model))
        await until(lambda: router.status(model)["in_flight"] == 1)
        waiting = [asyncio.create_task(clients.ask(model)) for _ in range(2)]
        await until(lambda: router.status(model)["queue_depth"] == 2)
        assert [await clients.ask(model), await clients.stream(model)] == [503, 503]
        await clients.give_up(waiting.pop(), model)
        await until(lambda: router.status(model)["queue_depth"] == 1)
    assert [await served, await waiting[0]] == [200, 200]


async def _silence(clients: Clients, router: RouterProcess) -> None:
    """A process that says nothing for longer than anybody wants to wait."""
    assert await clients.ask("embed", EMBED, input="Hello") == 200
    with router.frozen("embed"):
        assert await clients.ask("embed", EMBED, input="Hello") == 504
    await until(lambda: router.is_quiet("embed"))
