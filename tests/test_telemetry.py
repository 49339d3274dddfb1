"""Totals, percentiles and the access log."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from app.core.prometheus_metrics import Metrics
from app.domain.event_bus import EventBus
from app.domain.events import ModelChanged, Outcome, RequestFinished, Usage
from app.domain.priority import Priority
from app.observability.access_log import AccessLog
from app.observability.router_log import JsonFormatter, TextFormatter
from app.observability.telemetry import RECENT, Telemetry, percentile
from tests.records import finished


class World:
    def __init__(self) -> None:
        self.bus = EventBus()
        self.telemetry = Telemetry(self.bus)
        AccessLog(self.bus)

    def summary(self, *events: RequestFinished) -> dict[str, Any]:
        for event in events:
            self.bus.publish(event)
        self.bus.flush()
        return self.telemetry.summary()


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[list[logging.LogRecord]]:
    caplog.set_level(logging.INFO, logger="app.access")
    written: list[logging.LogRecord] = []
    keeper = logging.Handler()
    keeper.emit = written.append  # type: ignore[method-assign, assignment]
    logging.getLogger("app.access").addHandler(keeper)
    yield written
    logging.getLogger("app.access").removeHandler(keeper)


def text(lines: list[logging.LogRecord]) -> str:
    """The only line, without its time and level."""
    (record,) = lines
    _, level, message = TextFormatter().format(record).split(maxsplit=2)
    assert level == "INFO"
    return message


def test_nothing_happened_yet(world: World) -> None:
    summary = world.summary()
    assert {value for value in summary.values() if not isinstance(value, dict)} == {0}
    assert (summary["requests_by_model"], summary["errors_by_type"]) == ({}, {})


def test_every_outcome_is_counted_where_it_belongs(world: World) -> None:
    summary = world.summary(*(finished(outcome) for outcome in Outcome))
    assert (summary["total_requests"], summary["success_count"]) == (5, 1)
    assert (summary["error_count"], summary["cancelled_count"]) == (3, 1), "who leaves is no error of ours"
    totals = world.telemetry.totals("m")
    assert (totals.requests, totals.errors) == (5, 3)
    assert all(totals.outcomes[outcome] == world.telemetry.outcome(outcome) == 1 for outcome in Outcome)


def test_errors_are_named_by_their_code_or_by_llama_servers_status(world: World) -> None:
    summary = world.summary(
        finished(Outcome.ERROR), finished(Outcome.REJECTED, error="queue_full"), finished(Outcome.CANCELLED)
    )
    assert summary["errors_by_type"] == {"upstream_400": 1, "queue_full": 1}


def test_tokens_are_summed_by_model_and_over_all(world: World) -> None:
    summary = world.summary(finished(), finished(alias="n"), finished(alias="n"))
    assert (summary["tokens_prompt"], summary["tokens_generated"]) == (30, 60)
    assert summary["requests_by_model"] == {"m": 1, "n": 2}
    assert world.telemetry.totals("n").tokens_generated == 40


def test_latencies_are_those_of_answers(world: World) -> None:
    """A queue that refuses quickly must not look like a fast model."""
    failed = [finished(outcome, duration_s=99) for outcome in Outcome if outcome is not Outcome.SUCCESS]
    summary = world.summary(*(finished(duration_s=n / 100) for n in range(1, 101)), *failed)
    shown = [summary[f"{name}_latency_ms"] for name in ("p50", "p95", "p99", "avg")]
    assert shown == [500, 950, 990, 505]
    assert summary["avg_ttft_ms"] == 500


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([], 0.5, None), ([7], 0.99, 7), ([1, 2], 0.5, 1), ([1, 2, 3], 0.5, 2), ([1, 2, 3, 4], 0.95, 4)],
)
def test_percentile_is_the_nearest_rank(values: list[float], share: float, expected: float | None) -> None:
    assert percentile(values, share) == expected


def test_memory_is_bounded_and_old_latencies_are_forgotten(world: World) -> None:
    summary = world.summary(
        *(finished(duration_s=50) for _ in range(100)), *(finished(duration_s=1) for _ in range(RECENT))
    )
    assert summary["total_requests"] == RECENT + 100
    assert summary["p99_latency_ms"] == summary["avg_latency_ms"] == 1000
    assert len(world.telemetry._latencies) == len(world.telemetry._ttfts) == RECENT


def test_the_last_speed_stays_until_there_is_another(world: World) -> None:
    world.summary(finished(), finished(usage=Usage(1, 1)))
    assert world.telemetry.totals("m").last_tps == 42.04
    assert world.telemetry.totals("unknown").last_tps is None
    assert "unknown" not in world.telemetry.by_model, "asking changes nothing"


def test_other_events_are_nothing_to_it(world: World, lines: list[logging.LogRecord]) -> None:
    world.bus.publish(ModelChanged("m"))
    assert world.summary()["total_requests"] == 0
    assert lines == []


def test_a_request_is_one_line_with_all_that_is_known(world: World, lines: list[logging.LogRecord]) -> None:
    world.summary(finished(load_s=0.2, client="ci", priority=Priority.HIGH))
    assert text(lines) == (
        "model=m endpoint=/v1/chat/completions status=200 outcome=success priority=high client=ci "
        "wait_ms=250 load_ms=200 ttft_ms=500 total_ms=1000 tokens=10+20 tps=42.0 id=id-1"
    )


def test_what_is_not_known_is_left_out(world: World, lines: list[logging.LogRecord]) -> None:
    event = finished(Outcome.REJECTED, error="queue_full", queue_wait_s=None, ttft_s=None, usage=Usage())
    world.summary(event)
    assert text(lines) == (
        "model=m endpoint=/v1/chat/completions status=503 outcome=rejected error=queue_full priority=normal "
        "total_ms=1000 id=id-1"
    )


def test_a_batch_of_requests_is_a_line_each(world: World, lines: list[logging.LogRecord]) -> None:
    world.summary(finished(request_id="1"), finished(request_id="2"), finished(alias="n"))
    (record,) = lines
    for formatter, ends in ((TextFormatter(), ["id=1", "id=2", "id=id-1"]), (JsonFormatter(), ['"}'] * 3)):
        written = formatter.format(record).splitlines()
        assert [line.endswith(end) for line, end in zip(written, ends, strict=True)] == [True] * 3
    world.summary(finished())
    assert len(lines) == 2, "what was written is not written again"


def test_as_json_every_field_is_a_field(world: World, lines: list[logging.LogRecord]) -> None:
    world.summary(finished())
    shown = json.loads(JsonFormatter().format(lines[0]))
    assert (shown["level"], shown["logger"], shown["model"]) == ("info", "app.access", "m")
    assert (shown["wait_ms"], shown["total_ms"], shown["tps"], shown["id"]) == (250, 1000, 42.0, "id-1")


def test_a_client_cannot_write_a_line_of_its_own(world: World, lines: list[logging.LogRecord]) -> None:
    world.summary(finished(client="x\nmodel=forged"))
    for formatter in (TextFormatter(), JsonFormatter()):
        assert len(formatter.format(lines[0]).splitlines()) == 1


def test_with_a_higher_level_nothing_is_written(
    world: World, lines: list[logging.LogRecord], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="app.access")
    world.summary(finished())
    assert lines == []


async def test_asking_for_figures_publishes_nothing() -> None:
    bus = EventBus(batch_s=60.0)  # a batch that is not due yet
    telemetry = Telemetry(bus)
    metrics = Metrics(bus, views=list, devices=list, clients=dict)
    bus.finished(finished)
    assert telemetry.totals("m").requests == telemetry.outcome(Outcome.SUCCESS) == 0
    assert telemetry.summary()["total_requests"] == 0
    assert 'router_requests_total{model="m"' not in metrics.text()
    bus.flush()
    assert telemetry.totals("m").requests == telemetry.outcome(Outcome.SUCCESS) == 1
    assert telemetry.summary()["total_requests"] == 1
    assert 'router_requests_total{model="m",status="success"} 1' in metrics.text()
