"""A finished request, as observers are told of it."""

from __future__ import annotations

from typing import Any

from app.domain.events import Outcome, RequestFinished, Usage
from app.domain.priority import Priority

STATUS = {
    Outcome.SUCCESS: 200,
    Outcome.ERROR: 400,
    Outcome.REJECTED: 503,
    Outcome.TIMEOUT: 504,
    Outcome.CANCELLED: 499,
}


def finished(outcome: Outcome = Outcome.SUCCESS, **changes: Any) -> RequestFinished:
    fields: dict[str, Any] = {
        "request_id": "id-1",
        "alias": "m",
        "endpoint": "/v1/chat/completions",
        "client": "",
        "priority": Priority.NORMAL,
        "outcome": outcome,
        "status": STATUS[outcome],
        "error": None,
        "duration_s": 1.0,
        "queue_wait_s": 0.25,
        "load_s": 0.0,
        "ttft_s": 0.5,
        "usage": Usage(10, 20, 5, 42.04),
    }
    return RequestFinished(**{**fields, **changes})
