"""Clients of every behaviour, and what each of them saw. The same seed makes the same clients."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import httpx

from tests.router_process import RouterProcess, chat
from tests.streams import pieces_of

ASK = "/v1/chat/completions"
END_TIMEOUT_S = 120.0
"""A request that has not ended by then never will."""

ERRORS = {
    "context_length_exceeded",  # llama-server's own, for those who ask for too much
    "load_failed",
    "model_crashed",
    "model_failed",
    "no_capacity",
    "queue_full",
    "queue_timeout",
    "shutting_down",
    "upstream_timeout",
    "vram_exhausted",
}
"""What a client may be told in a chaos run. A bug of ours (`internal_error`) is not among it."""


class Behaviour(Enum):
    PATIENT = "patient"
    LEAVES = "leaves"  # after a while, wherever its request is
    SLOW = "slow"  # takes its time between two reads
    WRONG = "wrong"  # asks for something that llama-server refuses


@dataclass(frozen=True)
class Wish:
    model: str
    behaviour: Behaviour
    stream: bool
    tokens: int
    priority: str
    patience_s: float


@dataclass
class Tally:
    """`whole`, `left`, `cut` (a plain answer whose connection broke), else the code of an error."""

    ends: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return self.ends.total()


@dataclass(frozen=True)
class Counted:
    """What the router has counted so far."""

    requests: float
    success: float

    @classmethod
    def by(cls, router: RouterProcess) -> Counted:
        name = "router_requests_total"
        return cls(router.metric(name), router.metric(name, status="success"))


class Clients:
    """So many clients, each with one request at a time, until `over` is set."""

    def __init__(self, url: str, models: Sequence[str], seed: int, clients: int) -> None:
        self.tally = Tally()
        self.over = asyncio.Event()
        self._url, self._models, self._seed, self._clients = url, models, seed, clients

    async def run(self) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=self._clients)
        async with httpx.AsyncClient(
            base_url=self._url, trust_env=False, timeout=END_TIMEOUT_S, limits=limits
        ) as http:
            await asyncio.gather(*(self._live(http, number) for number in range(self._clients)))

    def disagreement(self, before: Counted, after: Counted) -> list[str]:
        """Of the router's counters with what the clients saw meanwhile.

        One who left may have been answered in the same moment, or not heard.
        """
        requests, success = after.requests - before.requests, after.success - before.success
        total, left, whole = self.tally.total, self.tally.ends["left"], self.tally.ends["whole"]
        wrong = []
        if not total - left <= requests <= total:
            wrong.append(f"{requests} requests counted, {total} made, of which {left} left")
        if not whole <= success <= whole + left:
            wrong.append(f"{success} successes counted, {whole} seen, {left} left")
        return wrong

    async def rush(self, count: int, rng: random.Random) -> None:
        """Many at once, who all leave soon."""
        wishes = [self.wish(rng, Behaviour.LEAVES) for _ in range(count)]
        async with httpx.AsyncClient(
            base_url=self._url,
            trust_env=False,
            timeout=END_TIMEOUT_S,
            limits=httpx.Limits(max_connections=None),
        ) as http:
            await asyncio.gather(*(self._ask(http, wish) for wish in wishes))

    def wish(self, rng: random.Random, behaviour: Behaviour | None = None) -> Wish:
        chosen = behaviour or rng.choices(list(Behaviour), weights=[6, 2, 1, 1])[0]
        return Wish(
            model=rng.choice(self._models),
            behaviour=chosen,
            stream=chosen is Behaviour.SLOW or rng.random() < 0.6,
            tokens=rng.choice((1, 8, 64, 300)),
            priority=rng.choice(("high", "normal", "low")),
            patience_s=rng.uniform(0, 1.5),
        )

    async def _live(self, http: httpx.AsyncClient, number: int) -> None:
        rng = random.Random(f"{self._seed} {number}")
        while not self.over.is_set():
            await self._ask(http, self.wish(rng))
            await asyncio.sleep(rng.uniform(0, 0.1))

    async def _ask(self, http: httpx.AsyncClient, wish: Wish) -> None:
        try:
            if wish.behaviour is Behaviour.LEAVES:
                end = await asyncio.wait_for(self._exchange(http, wish), wish.patience_s)
            else:
                end = await self._exchange(http, wish)
        except asyncio.TimeoutError:
            end = "left"
        except httpx.TimeoutException:
            end = "no end"
            self.tally.violations.append(f"no end after {END_TIMEOUT_S} s: {wish}")
        except httpx.TransportError as error:
            end = "cut"
            if wish.stream:
                self.tally.violations.append(f"a stream without an end, {error!r}: {wish}")
        self.tally.ends[end] += 1

    async def _exchange(self, http: httpx.AsyncClient, wish: Wish) -> str:
        body = chat(wish.model, max_tokens=wish.tokens, stream=wish.stream)
        if wish.behaviour is Behaviour.WRONG:
            body["messages"] = [{"role": "user", "content": "the " * 5000}]
        text = ""
        headers = {"X-Request-Priority": wish.priority}
        async with http.stream("POST", ASK, json=body, headers=headers) as answer:
            async for piece in pieces_of(answer):
                text += piece
                if wish.behaviour is Behaviour.SLOW:
                    await asyncio.sleep(wish.patience_s / 10)
        try:
            return _end(answer, text, wish)
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            self.tally.violations.append(f"{error!r} {answer.status_code} {text[-300:]!r}: {wish}")
            return "malformed"


def _end(answer: httpx.Response, text: str, wish: Wish) -> str:
    """How it ended; raises if that is no end that the contract knows."""
    if not answer.headers["content-type"].startswith("text/event-stream"):
        return _judge(answer.status_code, json.loads(text), wish)
    events = [
        json.loads(e[6:])
        for e in map(str.strip, text.split("\n\n"))
        if e.startswith("data: ") and e != "data: [DONE]"
    ]
    assert text.endswith("\n\n"), "half an event"
    if "error" in events[-1]:
        return _judge(int(answer.status_code), events[-1], wish)
    assert text.endswith("data: [DONE]\n\n"), "a stream that just stops"
    return _judge(200, events[0], wish)


def _judge(status: int, body: dict[str, Any], wish: Wish) -> str:
    if "error" in body:
        code = str(body["error"]["code"])
        assert code in ERRORS and "internal error" not in body["error"]["message"], body
        return code
    assert status == 200
    assert body["model"] == wish.model, f"answered by {body['model']}"
    return "whole"
