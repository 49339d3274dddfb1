"""The access log: a line for each request to a model, when it has ended."""

from __future__ import annotations

import logging
from typing import Any

from app.domain.event_bus import EventBus
from app.domain.events import BatchPublished, Event, Outcome, RequestFinished

access_log = logging.getLogger("app.access")

_OUTCOMES = {outcome: outcome.value for outcome in Outcome}
"""Their texts. Asking an enum takes as long as anything else here."""


class AccessLog:
    """Listens to the bus."""

    def __init__(self, bus: EventBus) -> None:
        self._finished: list[RequestFinished] = []
        bus.subscribe(self._on_finished, RequestFinished)
        bus.subscribe(self._write, BatchPublished)

    def _on_finished(self, event: Event) -> None:
        assert isinstance(event, RequestFinished)
        self._finished.append(event)

    def _write(self, _: Event) -> None:
        """A batch is one record: `logging` takes longer for one than everything else here for a request."""
        finished, self._finished = self._finished, []
        if finished and access_log.isEnabledFor(logging.INFO):
            access_log.info("requests", extra={"lines": [_line(event) for event in finished]})


def _line(event: RequestFinished) -> dict[str, Any]:
    """Prompts and answers are never logged."""
    prompt, generated, _, tps = event.usage
    line: dict[str, Any] = {
        "model": event.alias,
        "endpoint": event.endpoint,
        "status": event.status,
        "outcome": _OUTCOMES[event.outcome],
    }
    if event.error is not None:
        line["error"] = event.error
    line["priority"] = event.priority.label
    if event.client:
        line["client"] = event.client
    if event.queue_wait_s is not None:
        line["wait_ms"] = round(1000 * event.queue_wait_s)
    if load_ms := round(1000 * event.load_s):
        line["load_ms"] = load_ms
    if event.ttft_s is not None:
        line["ttft_ms"] = round(1000 * event.ttft_s)
    line["total_ms"] = round(1000 * event.duration_s)
    if prompt:
        line["tokens"] = f"{prompt}+{generated}"
    if tps:
        line["tps"] = round(tps, 1)
    line["id"] = event.request_id
    return line
