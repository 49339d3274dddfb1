"""What clients are told of a model that could not be loaded."""

from __future__ import annotations

from typing import Any

from app.domain.errors import LoadFailed, LoadPostponed, ModelFailed, ModelNotLoaded
from app.llama.exit_reason import Failure, FailureKind

RETRY_AFTER_S = 30.0
TAIL_LINES = 20


def load_failed(alias: str, failure: Failure | None) -> LoadFailed | LoadPostponed:
    """For those who waited for the load."""
    message, details = f"{alias} could not be loaded: {_message(failure)}", _details(failure)
    if failure is not None and failure.kind is FailureKind.OUT_OF_FILES:
        return LoadPostponed(message, retry_after_s=RETRY_AFTER_S, details=details)
    return LoadFailed(message, details=details)


def model_failed(alias: str, failure: Failure | None) -> ModelFailed:
    """For those who come later."""
    hint = f"Fix the cause, then POST /v1/models/{alias}/reset"
    return ModelFailed(f"{alias} has failed: {_message(failure)} {hint}", details=_details(failure))


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
    tail = list(failure.log_tail[-TAIL_LINES:]) if failure and not failure.served else []
    return {"last_error": _message(failure), "log_tail": tail}
