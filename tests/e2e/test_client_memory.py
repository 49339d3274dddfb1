"""The router's process under bodies that are more than it may hold: what it takes and gives back."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from tests.router_process import MakeRouter, RouterProcess, until_now

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="what a C library keeps is its own"
)

LIMIT_MB, BODY_MB = 48, 8
SLACK_MB = 24
"""What the same bodies take beside themselves: pieces that have just come, and pages that are kept."""

CLIENTS = 25
FIELDS = b'{"model":"m","x":"'


class Clients:
    """That send bodies, and do not read."""

    def __init__(self, router: RouterProcess, stack: ExitStack) -> None:
        self._router, self._stack = router, stack
        self._connections: list[socket.socket] = []

    def send(self, announced: int, sent: int) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self._router.port))
        connection.settimeout(30)
        self._stack.callback(connection.close)
        self._connections.append(connection)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {announced}\r\n\r\n"
        body = FIELDS + b"a" * (announced - len(FIELDS) - 2) + b'"}'
        connection.sendall(head.encode() + body[:sent])
        return connection

    def leave(self) -> None:
        for connection in self._connections:
            connection.close()


@contextmanager
def clients(router: RouterProcess) -> Iterator[Clients]:
    with ExitStack() as stack:
        yield Clients(router, stack)


def rss_mb(router: RouterProcess) -> float:
    size: int = psutil.Process(router.pid).memory_info().rss
    return size / 2**20


def held(router: RouterProcess) -> float:
    return router.metric("router_host_memory_bytes", kind="clients") / 2**20


def refused(sent: list[socket.socket], known: set[socket.socket]) -> int:
    """How many have their answer, which is that there is no place; `known`: those of before."""
    for connection in sent:
        if connection in known:
            continue
        connection.setblocking(False)
        try:
            answer = connection.recv(65536)
        except BlockingIOError:
            continue
        assert answer.startswith(b"HTTP/1.1 503 "), answer
        assert b'"overloaded"' in answer
        assert b"retry-after: " in answer.lower()
        known.add(connection)
    return len(known)


@pytest.fixture
def router(
    make_router: MakeRouter, tiny_gguf: Path, gated_llama_server: Path, tmp_path: Path
) -> RouterProcess:
    """Its model is never there: what asks for it waits."""
    model = {"model_path": tiny_gguf, "env": {"GATE": str(tmp_path / "never")}}
    limits = {"max_memory_mb": LIMIT_MB, "max_body_mb": BODY_MB}
    return make_router({"m": model}, binary=gated_llama_server, api=limits)


@pytest.mark.parametrize("is_whole", [False, True], ids=["arriving", "queued"])
def test_bodies_take_what_they_may_and_it_is_given_back(router: RouterProcess, is_whole: bool) -> None:
    size = BODY_MB * 2**20 - 1000
    before = rss_mb(router)
    with clients(router) as those:
        sent = [those.send(size, size if is_whole else size - 100_000) for _ in range(CLIENTS)]
        places = LIMIT_MB // BODY_MB
        until_now(lambda: held(router) > LIMIT_MB - BODY_MB)
        if is_whole:
            until_now(lambda: router.status("m")["queue_depth"] == places)
        known: set[socket.socket] = set()
        until_now(lambda: refused(sent, known) >= CLIENTS - places)
        assert refused(sent, known) == CLIENTS - places
        assert held(router) <= LIMIT_MB
        until_now(lambda: rss_mb(router) - before > places * BODY_MB / 2)  # it was really there
        assert rss_mb(router) - before < LIMIT_MB + SLACK_MB
        those.leave()
        until_now(lambda: held(router) == 0)
        until_now(lambda: rss_mb(router) - before < SLACK_MB)
