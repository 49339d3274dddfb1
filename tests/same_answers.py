"""A llama-server by hand beside one behind the router, both with the same user's settings: do they agree?

Byte for byte, but for what no two answers share: ids, times and timings, comments that keep a stream alive.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from app.domain.status import ModelKind
from tests.ports import free_port
from tests.router_process import MakeRouter, until_now

THREADS = 2
START_TIMEOUT_S = 60.0
ASK_TIMEOUT_S = 120.0
_FLAGS = {ModelKind.CHAT: (), ModelKind.EMBEDDING: ("--embeddings",), ModelKind.RERANK: ("--rerank",)}
_PARAMS: dict[ModelKind, dict[str, Any]] = {
    ModelKind.CHAT: {},
    ModelKind.EMBEDDING: {"embedding": True},
    ModelKind.RERANK: {"rerank": True},
}
_NEVER_THE_SAME = (
    (re.compile(rb'"(\w*id)":"[^"]*"'), rb'"\1":"ID"'),
    (re.compile(rb'"(created|created_at|completed_at)":\d+'), rb'"\1":0'),
    (re.compile(rb'"time_ms":\d+'), rb'"time_ms":0'),
    (re.compile(rb'"media_marker":"[^"]*"'), rb'"media_marker":""'),
    (re.compile(rb'"timings":\{[^{}]*\}'), rb'"timings":{}'),
    (re.compile(rb"^:[^\n]*\n\n", re.M), b""),
    (re.compile(rb"^(llamacpp:\w+) \S+$", re.M), rb"\1 0"),
)


@dataclass(frozen=True)
class Settings:
    """What a user decides about a model, for the router's configuration and for a command line alike."""

    path: Path
    kind: ModelKind = ModelKind.CHAT
    context: int = 1024
    slots: int = 1
    pooling: str | None = None
    extra: tuple[str, ...] = ()
    by_hand: tuple[str, ...] = ()
    """Typed only by hand, because the router is known to do it by itself: its documented changes."""

    def entry(self) -> dict[str, Any]:
        params = {"n_ctx": self.context, "n_gpu_layers": -1, **_PARAMS[self.kind]}
        if self.pooling is not None:
            params["pooling"] = self.pooling
        return {
            "model_path": self.path,
            "parallel_requests": self.slots,
            "params": params,
            "extra_args": list(self.extra),
        }

    def arguments(self, alias: str) -> list[str]:
        size = ["-c", str(self.context * self.slots), "-np", str(self.slots), "-t", str(THREADS)]
        pooling = [] if self.pooling is None else ["--pooling", self.pooling]
        more = [*_FLAGS[self.kind], *pooling, *self.extra, *self.by_hand]
        return ["-m", str(self.path), "-a", alias, "--device", "none", "--metrics", *size, *more]


@dataclass(frozen=True)
class Answer:
    status: int
    media_type: str
    body: bytes
    """Without what is never the same."""

    @classmethod
    def of(cls, response: httpx.Response) -> Answer:
        body = response.content
        for pattern, replacement in _NEVER_THE_SAME:
            body = pattern.sub(replacement, body)
        return cls(response.status_code, response.headers.get("content-type", ""), body)


class Pair:
    """One model twice."""

    def __init__(self, alias: str, bare: httpx.Client, routed: httpx.Client) -> None:
        self.alias, self._bare, self._routed = alias, bare, routed

    def same(self, path: str, body: object = None, *, method: str = "POST") -> Answer:
        """What both answer. Fails where they differ."""
        return self._compared(path, path, body, method)

    def same_through_tunnel(self, path: str, body: object = None, *, method: str = "POST") -> Answer:
        """The router is asked at `/upstream/{alias}`, where all of llama-server's paths are."""
        return self._compared(path, f"/upstream/{self.alias}{path}", body, method)

    def same_refusal(self, path: str, body: object) -> int:
        """Both refuse; the router keeps words and fields in the shape of the API. Its status."""
        by_hand, routed = self.ask_both(path, body)
        told, found = by_hand.json()["error"], routed.json()["error"]
        own = {name: value for name, value in told.items() if name not in ("code", "type", "message")}
        assert own.items() <= found.items()
        assert found["message"].endswith(told["message"])
        return routed.status_code

    def ask_both(self, path: str, body: object = None) -> tuple[httpx.Response, httpx.Response]:
        """By hand, and through the router."""
        return self._ask(self._bare, path, body, "POST"), self._ask(self._routed, path, body, "POST")

    def _compared(self, path: str, routed_path: str, body: object, method: str) -> Answer:
        expected = Answer.of(self._ask(self._bare, path, body, method))
        found = Answer.of(self._ask(self._routed, routed_path, body, method))
        assert found == expected, f"{method} {path} {body!r}\nby hand: {expected}\nrouted:  {found}"
        return found

    def _ask(self, client: httpx.Client, path: str, body: object, method: str) -> httpx.Response:
        if isinstance(body, bytes):
            headers = {"Content-Type": "application/json"}
            return client.request(method, path, content=body, headers=headers)
        json = {"model": self.alias, **body} if isinstance(body, dict) else body
        return client.request(method, path, json=json)


@contextmanager
def pairs(
    make_router: MakeRouter, llama_server: Path, folder: Path, models: dict[str, Settings]
) -> Iterator[dict[str, Pair]]:
    """All models by hand, and all behind one router, loaded. Those that differ by hand only are one there."""
    alias_of = {name: _first_alike(name, models) for name in models}
    aliases = tuple(dict.fromkeys(alias_of.values()))
    with ExitStack() as stack:
        bare = {
            name: stack.enter_context(
                _ByHand(llama_server, settings.arguments(alias_of[name]), folder / f"{name}.log")
            )
            for name, settings in models.items()
        }
        router = make_router(
            {alias: models[alias].entry() for alias in aliases},
            system={
                "cpu_threads": THREADS,
                "prompt_cache_mb": 1024,
                "max_concurrent_models": len(aliases),
                "preload_models": ["*"],
                "enable_idle_timeout": False,  # what a process has cached is told in its answers
            },
        )
        router.load(*aliases)
        router.client.timeout = httpx.Timeout(ASK_TIMEOUT_S)
        yield {name: Pair(alias, bare[name].when_ready(), router.client) for name, alias in alias_of.items()}


def _first_alike(name: str, models: dict[str, Settings]) -> str:
    """The first model that is the same to the router."""
    return next(n for n, s in models.items() if replace(s, by_hand=()) == replace(models[name], by_hand=()))


class _ByHand:
    """A llama-server with these arguments, until the end of the block."""

    def __init__(self, llama_server: Path, arguments: Sequence[str], log_path: Path) -> None:
        port = free_port()
        env = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_")}
        command = [str(llama_server), "--port", str(port), *arguments]
        self._log_path = log_path
        self._client = httpx.Client(
            base_url=f"http://127.0.0.1:{port}",
            timeout=ASK_TIMEOUT_S,
            trust_env=False,
            limits=httpx.Limits(max_keepalive_connections=0),  # it closes kept ones without a word
        )
        with log_path.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=env
            )

    def __enter__(self) -> _ByHand:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._client.close()

    def when_ready(self) -> httpx.Client:
        until_now(self._is_ready, START_TIMEOUT_S)
        return self._client

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, self._log_path.read_text(errors="replace")
        try:
            return self._client.get("/health").status_code == 200
        except httpx.TransportError:
            return False
