"""Totals and recent latencies, for people who have no Prometheus."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from app.domain.event_bus import EventBus
from app.domain.events import Event, Outcome, RequestFinished

RECENT = 2000
"""Percentiles are those of this many last requests."""


@dataclass
class ModelTotals:
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    tokens_prompt: int = 0
    tokens_generated: int = 0
    last_tps: float | None = None

    @property
    def requests(self) -> int:
        return sum(self.outcomes.values())

    @property
    def errors(self) -> int:
        return self.requests - self.outcomes[Outcome.SUCCESS] - self.outcomes[Outcome.CANCELLED]


class Telemetry:
    """Listens to the bus; memory is bounded whatever the traffic.

    Who shows its figures calls `EventBus.flush` first: asking here publishes nothing.
    """

    def __init__(self, bus: EventBus) -> None:
        self.by_model: dict[str, ModelTotals] = {}
        self._errors: Counter[str] = Counter()
        self._latencies: deque[float] = deque(maxlen=RECENT)
        self._ttfts: deque[float] = deque(maxlen=RECENT)
        bus.subscribe(self._on_event, RequestFinished)

    def totals(self, alias: str) -> ModelTotals:
        return self.by_model.get(alias) or ModelTotals()

    def outcome(self, outcome: Outcome) -> int:
        return sum(totals.outcomes[outcome] for totals in self.by_model.values())

    def summary(self) -> dict[str, Any]:
        """Milliseconds; averages and percentiles over the last requests that succeeded."""
        latencies = sorted(self._latencies)
        models = self.by_model.values()
        return {
            "total_requests": sum(totals.requests for totals in models),
            "success_count": self.outcome(Outcome.SUCCESS),
            "error_count": sum(totals.errors for totals in models),
            "cancelled_count": self.outcome(Outcome.CANCELLED),
            "avg_latency_ms": _ms(_mean(latencies)),
            "p50_latency_ms": _ms(percentile(latencies, 0.50)),
            "p95_latency_ms": _ms(percentile(latencies, 0.95)),
            "p99_latency_ms": _ms(percentile(latencies, 0.99)),
            "avg_ttft_ms": _ms(_mean(self._ttfts)),
            "tokens_prompt": sum(totals.tokens_prompt for totals in models),
            "tokens_generated": sum(totals.tokens_generated for totals in models),
            "requests_by_model": {alias: totals.requests for alias, totals in self.by_model.items()},
            "errors_by_type": dict(self._errors),
        }

    def _on_event(self, event: Event) -> None:
        if not isinstance(event, RequestFinished):
            return
        totals = self.by_model.get(event.alias)
        if totals is None:
            totals = self.by_model[event.alias] = ModelTotals()
        outcome, usage = event.outcome, event.usage
        totals.outcomes[outcome] += 1
        totals.tokens_prompt += usage.prompt
        totals.tokens_generated += usage.generated
        totals.last_tps = usage.generation_tps or totals.last_tps
        if outcome is Outcome.SUCCESS:
            self._latencies.append(event.duration_s)
            if event.ttft_s is not None:
                self._ttfts.append(event.ttft_s)
        elif outcome is not Outcome.CANCELLED:
            self._errors[event.error or f"upstream_{event.status}"] += 1


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """Nearest rank; None of nothing."""
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)] if ordered else None


def _mean(values: Sequence[float] | deque[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _ms(seconds: float | None) -> float:
    return round(1000 * (seconds or 0.0), 2)
