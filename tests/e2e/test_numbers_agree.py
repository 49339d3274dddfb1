"""Clients, `/metrics`, the telemetry, the queue's figures and the streams: one truth."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.domain.events import Outcome
from tests.e2e.clients import SYSTEM, Clients, fleet, mixed_traffic
from tests.router_process import MakeRouter, RouterProcess

FAILED = (Outcome.ERROR, Outcome.REJECTED, Outcome.TIMEOUT)


@pytest.fixture(scope="module")
def router(
    make_shared_router: MakeRouter, tiny_gguf: Path, tiny_long_gguf: Path, truncated_gguf: Path
) -> RouterProcess:
    return make_shared_router(fleet(tiny_gguf, tiny_long_gguf, truncated_gguf), system=SYSTEM)


async def test_all_figures_are_those_of_the_clients(router: RouterProcess) -> None:
    async with router.open_client() as http:
        clients = Clients(http)
        await mixed_traffic(clients, router)
        live = await first_metrics(http)

    check_metrics(router, clients)
    check_telemetry(router.get("/v1/telemetry/summary"), clients)
    check_queue(router.get("/v1/queue/stats"), clients)
    check_queue(live["queues"], clients)
    for alias, totals in live["models"].items():
        outcomes = outcomes_of(clients, alias)
        assert totals["requests_total"] == sum(outcomes.values())
        assert totals["errors_total"] == sum(outcomes.get(o.value, 0) for o in FAILED)
        assert (totals["in_flight"], totals["queue_depth"]) == (0, 0)
    check_access_log(router, clients)


async def test_requests_that_reach_no_model_are_counted_nowhere(router: RouterProcess) -> None:
    before = router.get("/v1/telemetry/summary"), router.metric("router_requests_total")
    async with router.open_client() as http:
        clients = Clients(http)
        assert await clients.ask("nobody") == 404
        assert await clients.ask("embed") == 400  # chat on an embedding model
        assert await clients.ask("a", priority="urgent") == 400
    assert (router.get("/v1/telemetry/summary"), router.metric("router_requests_total")) == before
    assert "nobody" not in router.client.get("/metrics").text


def outcomes_of(clients: Clients, alias: str) -> dict[str, int]:
    return {outcome: n for (model, outcome), n in clients.outcomes.items() if model == alias}


def check_metrics(router: RouterProcess, clients: Clients) -> None:
    assert router.metric("router_requests_total") == clients.total
    assert router.metric("router_request_duration_seconds_count") == clients.total
    for (model, outcome), count in clients.outcomes.items():
        assert router.metric("router_requests_total", model=model, status=outcome) == count, (model, outcome)
    for (model, kind), count in clients.tokens.items():
        assert router.metric("router_tokens_total", model=model, kind=kind) == count, (model, kind)
    assert len(clients.tokens) > 4
    granted = clients.of(Outcome.SUCCESS) + clients.of(Outcome.ERROR) + clients.of(Outcome.TIMEOUT)
    granted -= 2  # whose model could not be loaded
    left_in_the_queue = 1
    waits = router.metric("router_queue_wait_seconds_count")
    assert waits == granted + clients.of(Outcome.CANCELLED) - left_in_the_queue
    assert router.metric("router_time_to_first_token_seconds_count") == waits - clients.of(Outcome.TIMEOUT)
    assert router.metric("router_model_restarts_total", model="a") == 2
    assert router.metric("router_request_replays_total", model="a") == 2


def check_telemetry(summary: dict[str, Any], clients: Clients) -> None:
    assert summary["total_requests"] == clients.total
    assert summary["success_count"] == clients.of(Outcome.SUCCESS)
    assert summary["cancelled_count"] == clients.of(Outcome.CANCELLED)
    assert summary["error_count"] == sum(map(clients.of, FAILED))
    assert sum(summary["errors_by_type"].values()) == summary["error_count"]
    assert summary["errors_by_type"] == {
        "upstream_400": 1,
        "load_failed": 1,
        "model_failed": 1,
        "queue_full": 2,
        "upstream_timeout": 1,
    }
    models = {model for model, _ in clients.outcomes}
    assert summary["requests_by_model"] == {m: sum(outcomes_of(clients, m).values()) for m in models}
    assert 0 < summary["p50_latency_ms"] <= summary["p95_latency_ms"] <= summary["p99_latency_ms"]


def check_queue(stats: dict[str, Any], clients: Clients) -> None:
    """`processed` are the requests that were answered, whatever the answer was."""
    expected = {
        "total_processed": clients.of(Outcome.SUCCESS) + clients.of(Outcome.ERROR),
        "total_rejected": clients.of(Outcome.REJECTED),
        "total_cancelled": clients.of(Outcome.CANCELLED),
        "total_timeouts": clients.of(Outcome.TIMEOUT),
    }
    assert stats["summary"] == {"total_queued": 0, "total_processing": 0, **expected}
    for name, total in expected.items():
        assert sum(model[name] for model in stats["per_model"].values()) == total


def check_access_log(router: RouterProcess, clients: Clients) -> None:
    """One line a request, in which nothing of what was asked or answered stands."""
    lines = re.findall(r"model=(\S+) .*outcome=(\w+) .*id=\w+$", router.log(), re.MULTILINE)
    assert len(lines) == clients.total
    assert sorted(set(lines)) == sorted(set(clients.outcomes))
    assert "Hello" not in router.log()


async def first_metrics(http: httpx.AsyncClient) -> dict[str, Any]:
    async with http.stream("GET", "/metrics/stream") as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                found: dict[str, Any] = json.loads(line[6:])
                return found
    raise AssertionError("the stream ended")
