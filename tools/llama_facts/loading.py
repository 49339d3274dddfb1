"""What is seen and said from the spawn until a llama-server serves."""

from __future__ import annotations

import socket

from tests.ggufs import make_architecture
from tests.ports import free_port
from tools.llama_facts.fact import Claims
from tools.llama_facts.server import KEY, Server, Subject, ready, spec_of, started, within

LAST_LINE_S = 10.0
LOADS = 20
"""A tiny model loads within milliseconds: a look comes in between, sooner or later."""


def claims(subject: Subject) -> Claims:
    yield from _port_while_it_loads(subject)
    with ready(subject, spec_of(subject.tiny)) as server:
        yield from _key(server)
        yield "child protocol: `loading` and progress, then `ready`", _told(server), server.lines[:3]
    with ready(subject, spec_of(subject.tiny), child=False) as server:
        yield from _log(server)
    recurrent = make_architecture("jamba", subject.folder / "jamba.gguf")
    with ready(subject, spec_of(recurrent)) as server:
        _is_silent(server)
        kinds = {buffer.kind for buffer in server.log.buffers}
        yield "log: `RS buffer size = ... MiB` of a recurrent model", "rs" in kinds, kinds


def _port_while_it_loads(subject: Subject) -> Claims:
    """Refused, 503, 200: what the supervisor takes for starting, loading and serving."""
    seen: set[int | None] = set()
    for _ in range(LOADS):
        with started(subject, spec_of(subject.tiny)) as server:
            seen |= set(server.wait_until_ready())
        if 503 in seen:
            break
    yield "port: refused or 503 while it loads, then 200", seen <= {None, 503, 200} and 503 in seen, seen
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with started(subject, spec_of(subject.tiny), port=port) as server:
            code = server.exit_code(60)
        yield "port taken: exit code 1", code == 1, code
    port = free_port()
    with ready(subject, spec_of(subject.tiny), port=port):
        pass
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))
    yield "port: can be bound again once the process was killed", True, ""


def _key(server: Server) -> Claims:
    """How the router knows its own process: /health is public, /props is not."""
    health = server.ask("GET", "/health", key=None)
    yield '/health: 200 {"status":"ok"}, without a key', health.json == {"status": "ok"}, health
    for key, status in ((None, 401), ("wrong", 401), (KEY, 200)):
        name = {None: "without a key", KEY: "with its key"}.get(key, "with a wrong key")
        answer = server.ask("GET", "/props", key=key)
        yield f"/props {name}: {status}", answer.status == status, answer
    refused = server.ask("GET", "/props", key=None).error
    yield "401: `error` with `code`, `message`, `type`", {"code", "message", "type"} <= set(refused), refused


def _told(server: Server) -> bool:
    _is_silent(server)
    said = [line for line in server.lines if "cmd_child_to_router:state:" in line]
    return '"loading"' in said[0] and server.log.state == "ready" and server.log.progress == 1.0


def _is_silent(server: Server) -> None:
    """It writes its log a moment after it serves; this line is the last of a load."""
    within(LAST_LINE_S, lambda: any("listening on" in line for line in server.lines))
    within(LAST_LINE_S, lambda: server.log.state in ("ready", None))
    server.finish()


def _log(server: Server) -> Claims:
    _is_silent(server)
    log = server.log
    kinds = {buffer.kind for buffer in log.buffers}
    yield (
        "log: stages weights, context, warm-up",
        server.stages == ["weights", "context", "warm-up"],
        server.stages,
    )
    yield "log: `projected to use N MiB of host memory`", "host" in log.projected_mb, log.projected_mb
    for kind in ("model", "kv", "compute", "output"):
        yield f"log: `{kind if kind != 'kv' else 'KV'} buffer size = ... MiB`", kind in kinds, kinds
