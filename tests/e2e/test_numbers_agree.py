"""Clients, `/metrics`, the telemetry, the queue's figures and the streams: one truth."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.domain.events import Outcome
from tests.e2e.crowd import SYSTEM, Crowd, fleet, mixed_traffic
from tests.router_process import MakeRouter, RouterProcess

FAILED = (Outcome.ERROR, Outcome.REJECTED, Outcome.TIMEOUT)


@pytest.fixture(scope="module")
def router(
    make_shared_router: MakeRouter, tiny_gguf: Path, tiny_long_gguf: Path, truncated_gguf: Path
) -> RouterProcess:
    return make_shared_router(fleet(tiny_gguf, tiny_long_gguf, truncated_gguf), system=SYSTEM)


async def test_all_figures_are_those_of_the_clients(router: RouterProcess) -> None:
    async with router.open_client() as http:
        crowd = Crowd(http)
        await mixed_traffic(crowd, router)
        live = await first_metrics(http)

    check_metrics(router, crowd)
    check_telemetry(router.get("/v1/telemetry/summary"), crowd)
    check_queue(router.get("/v1/queue/stats"), crowd)
    check_queue(live["queues"], crowd)
    for alias, totals in live["models"].items():
        outcomes = outcomes_of(crowd, alias)
        assert totals["requests_total"] == sum(outcomes.values())
        assert totals["errors_total"] == sum(outcomes.get(o.value, 0) for o in FAILED)
        assert (totals["in_flight"], totals["queue_depth"]) == (0, 0)
    check_access_log(router, crowd)


async def test_requests_that_reach_no_model_are_counted_nowhere(router: RouterProcess) -> None:
    before = router.get("/v1/telemetry/summary"), router.metric("router_requests_total")
    async with router.open_client() as http:
        crowd = Crowd(http)
        assert await crowd.ask("nobody") == 404
        assert await crowd.ask("embed") == 400  # chat on an embedding model
        assert await crowd.ask("a", priority="urgent") == 400
    assert (router.get("/v1/telemetry/summary"), router.metric("router_requests_total")) == before
    assert "nobody" not in router.client.get("/metrics").text


def outcomes_of(crowd: Crowd, alias: str) -> dict[str, int]:
    return {outcome: n for (model, outcome), n in crowd.outcomes.items() if model == alias}


def check_metrics(router: RouterProcess, crowd: Crowd) -> None:
    assert router.metric("router_requests_total") == crowd.total
    assert router.metric("router_request_duration_seconds_count") == crowd.total
    for (model, outcome), count in crowd.outcomes.items():
        assert router.metric("router_requests_total", model=model, status=outcome) == count, (model, outcome)
    for (model, kind), count in crowd.tokens.items():
        assert router.metric("router_tokens_total", model=model, kind=kind) == count, (model, kind)
    assert len(crowd.tokens) > 4
    granted = crowd.of(Outcome.SUCCESS) + crowd.of(Outcome.ERROR) + crowd.of(Outcome.TIMEOUT)
    left_in_the_queue = 1
    waits = router.metric("router_queue_wait_seconds_count")
    assert waits == granted + crowd.of(Outcome.CANCELLED) - left_in_the_queue
    assert router.metric("router_time_to_first_token_seconds_count") == waits - crowd.of(Outcome.TIMEOUT)
    assert router.metric("router_model_restarts_total", model="a") == 2
    assert router.metric("router_request_replays_total", model="a") == 2


def check_telemetry(summary: dict[str, Any], crowd: Crowd) -> None:
    assert summary["total_requests"] == crowd.total
    assert summary["success_count"] == crowd.of(Outcome.SUCCESS)
    assert summary["cancelled_count"] == crowd.of(Outcome.CANCELLED)
    assert summary["error_count"] == sum(map(crowd.of, FAILED))
    assert sum(summary["errors_by_type"].values()) == summary["error_count"]
    assert summary["errors_by_type"] == {
        "upstream_400": 1,
        "load_failed": 1,
        "model_failed": 1,
        "queue_full": 2,
        "upstream_timeout": 1,
    }
    models = {model for model, _ in crowd.outcomes}
    assert summary["requests_by_model"] == {m: sum(outcomes_of(crowd, m).values()) for m in models}
    assert 0 < summary["p50_latency_ms"] <= summary["p95_latency_ms"] <= summary["p99_latency_ms"]


def check_queue(stats: dict[str, Any], crowd: Crowd) -> None:
    """`processed` are the requests that llama-server answered, whatever it answered."""
    expected = {
        "total_processed": crowd.of(Outcome.SUCCESS) + crowd.of(Outcome.ERROR),
        "total_rejected": crowd.of(Outcome.REJECTED),
        "total_cancelled": crowd.of(Outcome.CANCELLED),
        "total_timeouts": crowd.of(Outcome.TIMEOUT),
    }
    assert stats["summary"] == {"total_queued": 0, "total_processing": 0, **expected}
    for name, total in expected.items():
        assert sum(model[name] for model in stats["per_model"].values()) == total


def check_access_log(router: RouterProcess, crowd: Crowd) -> None:
    """One line a request, in which nothing of what was asked or answered stands."""
    lines = re.findall(r"model=(\S+) .*outcome=(\w+) .*id=\w+$", router.log(), re.MULTILINE)
    assert len(lines) == crowd.total
    assert sorted(set(lines)) == sorted(set(crowd.outcomes))
    assert "Hello" not in router.log()


async def first_metrics(http: httpx.AsyncClient) -> dict[str, Any]:
    async with http.stream("GET", "/metrics/stream") as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                found: dict[str, Any] = json.loads(line[6:])
                return found
    raise AssertionError("the stream ended")
