"""Totals and recent latencies for people who have no Prometheus, and the access log."""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from app.domain.event_bus import EventBus
from app.domain.events import BatchPublished, Event, Outcome, RequestFinished

access_log = logging.getLogger("app.access")

RECENT = 2000
"""Percentiles are those of this many last requests."""


@dataclass
class ModelTotals:
    requests: int = 0
    errors: int = 0
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    tokens_generated: int = 0
    last_tps: float | None = None


class Telemetry:
    """Listens to the bus; memory is bounded whatever the traffic.

    Who shows its figures calls `EventBus.flush` first: asking here publishes nothing.
    """

    def __init__(self, bus: EventBus) -> None:
        self.by_model: dict[str, ModelTotals] = {}
        self._outcomes: Counter[Outcome] = Counter()
        self._errors: Counter[str] = Counter()
        self._latencies: deque[float] = deque(maxlen=RECENT)
        self._ttfts: deque[float] = deque(maxlen=RECENT)
        self._prompt = self._generated = 0
        self._lines: list[dict[str, Any]] = []
        bus.subscribe(self._on_event, RequestFinished)
        bus.subscribe(self._write, BatchPublished)

    def totals(self, alias: str) -> ModelTotals:
        return self.by_model.get(alias) or ModelTotals()

    def outcome(self, outcome: Outcome) -> int:
        return self._outcomes[outcome]

    def summary(self) -> dict[str, Any]:
        """Milliseconds; averages and percentiles over the last requests that succeeded."""
        latencies = sorted(self._latencies)
        total = sum(self._outcomes.values())
        return {
            "total_requests": total,
            "success_count": self._outcomes[Outcome.SUCCESS],
            "error_count": total - self._outcomes[Outcome.SUCCESS] - self._outcomes[Outcome.CANCELLED],
            "cancelled_count": self._outcomes[Outcome.CANCELLED],
            "avg_latency_ms": _ms(_mean(latencies)),
            "p50_latency_ms": _ms(percentile(latencies, 0.50)),
            "p95_latency_ms": _ms(percentile(latencies, 0.95)),
            "p99_latency_ms": _ms(percentile(latencies, 0.99)),
            "avg_ttft_ms": _ms(_mean(self._ttfts)),
            "tokens_prompt": self._prompt,
            "tokens_generated": self._generated,
            "requests_by_model": {alias: totals.requests for alias, totals in self.by_model.items()},
            "errors_by_type": dict(self._errors),
        }

    def _on_event(self, event: Event) -> None:
        if not isinstance(event, RequestFinished):
            return
        self._outcomes[event.outcome] += 1
        self._prompt += event.usage.prompt
        self._generated += event.usage.generated
        if event.outcome is Outcome.SUCCESS:
            self._latencies.append(event.duration_s)
            if event.ttft_s is not None:
                self._ttfts.append(event.ttft_s)
        elif event.outcome is not Outcome.CANCELLED:
            self._errors[event.error or f"upstream_{event.status}"] += 1
        totals = self.by_model.get(event.alias)
        if totals is None:
            totals = self.by_model[event.alias] = ModelTotals()
        self._count(totals, event)
        if access_log.isEnabledFor(logging.INFO):
            self._lines.append(_line(event))

    def _write(self, _: Event) -> None:
        """A batch is one record: `logging` takes longer for one than everything else here for a request."""
        lines, self._lines = self._lines, []
        if lines:
            access_log.info("requests", extra={"lines": lines})

    @staticmethod
    def _count(totals: ModelTotals, event: RequestFinished) -> None:
        totals.requests += 1
        totals.outcomes[event.outcome] += 1
        totals.errors += event.outcome not in (Outcome.SUCCESS, Outcome.CANCELLED)
        totals.tokens_generated += event.usage.generated
        totals.last_tps = event.usage.generation_tps or totals.last_tps


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """Nearest rank; None of nothing."""
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)] if ordered else None


def _mean(values: Sequence[float] | deque[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _ms(seconds: float | None) -> float:
    return round(1000 * (seconds or 0.0), 2)


def _line(event: RequestFinished) -> dict[str, Any]:
    """Of the access log. Prompts and answers are never logged."""
    prompt, generated, _, tps = event.usage
    fields = {
        "model": event.alias,
        "endpoint": event.endpoint,
        "status": event.status,
        "outcome": event.outcome.value,
        "error": event.error,
        "priority": event.priority.label,
        "client": event.client or None,
        "wait_ms": _rounded(event.queue_wait_s),
        "load_ms": _rounded(event.load_s) or None,
        "ttft_ms": _rounded(event.ttft_s),
        "total_ms": _rounded(event.duration_s),
        "tokens": f"{prompt}+{generated}" if prompt else None,
        "tps": round(tps, 1) if tps else None,
        "id": event.request_id,
    }
    return {key: value for key, value in fields.items() if value is not None}


def _rounded(seconds: float | None) -> int | None:
    return None if seconds is None else round(1000 * seconds)
