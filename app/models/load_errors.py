"""What clients are told of a model that could not be loaded."""

from __future__ import annotations

from typing import Any

from app.domain.errors import LoadFailed, ModelFailed, ModelNotLoaded
from app.llama.exit_reason import Failure

RETRY_AFTER_S = 30.0
TAIL_LINES = 20


def load_failed(alias: str, failure: Failure | None) -> LoadFailed:
    """For those who waited for the load."""
    return LoadFailed(f"{alias} could not be loaded: {_message(failure)}", **_details(failure))


def model_failed(alias: str, failure: Failure | None) -> ModelFailed:
    """For those who come later."""
    hint = f"Fix the cause, then POST /v1/models/{alias}/reset"
    return ModelFailed(f"{alias} has failed: {_message(failure)} {hint}", **_details(failure))


def model_not_loaded(alias: str) -> ModelNotLoaded:
    """For those who do not have it loaded."""
    return ModelNotLoaded(
        f"{alias} is not loaded, and this request does not load it: send it another one, or "
        "POST /v1/models/load",
        retry_after_s=RETRY_AFTER_S,
    )


def _message(failure: Failure | None) -> str:
    return failure.message if failure else "for an unknown reason."


def _details(failure: Failure | None) -> dict[str, Any]:
    heals = failure is not None and failure.kind.may_heal
    tail = list(failure.log_tail[-TAIL_LINES:]) if failure and not failure.served else []
    return {
        "retryable": heals,
        "retry_after_s": RETRY_AFTER_S if heals else None,
        "details": {"last_error": _message(failure), "log_tail": tail},
    }
