"""What clients are told by the router itself about requests that it passes on."""

from __future__ import annotations

from app.core.config import SystemConfig
from app.core.queue import Ticket
from app.domain.errors import InternalError, ModelCrashed, QueueTimeout, UpstreamTimeout
from app.domain.status import Status
from app.models.instance import ModelInstance


def queue_timeout(instance: ModelInstance, limits: SystemConfig) -> QueueTimeout:
    return QueueTimeout(
        f"no place on {instance.alias} within {limits.queue_timeout_sec} s; try again later, "
        "send a higher X-Request-Priority, or raise system.queue_timeout_sec",
        retry_after_s=instance.queue.expected_wait_s(),
    )


def upstream_timeout(instance: ModelInstance) -> UpstreamTimeout:
    return UpstreamTimeout(
        f"llama-server for {instance.alias} has not moved for {instance.spec.request_timeout_s:g} s; look at "
        "its log, or raise request_timeout_sec"
    )


def crashed(instance: ModelInstance) -> ModelCrashed:
    return ModelCrashed(f"llama-server for {instance.alias} ended while it answered; send the request again")


def mistake() -> InternalError:
    return InternalError("the router made a mistake; its log says more")


def where_it_stands(instance: ModelInstance, ticket: Ticket, reason: str | None) -> str:
    """For a stream that waits. `reason`: why its model is not loaded yet, if it is not being loaded."""
    view = instance.view()
    if view.status not in (Status.STARTING, Status.LOADING):
        position = f"queued position={instance.queue.position(ticket)}"
        return position if reason is None else f'{position} reason="{reason}"'
    progress = view.process.load_progress if view.process is not None else None
    return "loading" if progress is None else f"loading progress={progress:.2f}"
